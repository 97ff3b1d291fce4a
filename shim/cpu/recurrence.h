/* Where the recurrent states of a dispatch lie. */
#ifndef CPU_RECURRENCE_H
#define CPU_RECURRENCE_H

#include "cache.h"

/* Bytes of the buffer of states, a part of which has `part` elements, or CPU_BAD_ARGS. */
static inline uint64_t cpu_recurrent_bytes(const struct oxb_recurrence *r, uint64_t part) {
    if (r->ring == 0 || r->ring > r->n_slots || r->n_tokens == 0 ||
        cpu_add(r->offset, part) > r->slot_stride)
        return CPU_BAD_ARGS;
    return cpu_mul(cpu_mul(r->n_slots, r->slot_stride), 4);
}

static inline uint64_t cpu_sequences(const struct oxb_recurrence *r) {
    return r->batch ? r->n_tokens : 1;
}

/* Bytes of a row of `row` elements for each token. */
static inline uint64_t cpu_token_rows(const struct oxb_recurrence *r, uint64_t stride,
                                      uint64_t row) {
    if (r->n_tokens == 0 || (r->n_tokens > 1 && stride < row)) return CPU_BAD_ARGS;
    return cpu_mul(cpu_add(cpu_mul(r->n_tokens - 1ull, stride), row), 4);
}

/* The state of a sequence before and after its tokens in flight, which may be one. */
typedef struct cpu_recurrent {
    const float *from; /* NULL: zeros */
    float *to;         /* NULL: the sequence has no place */
} cpu_recurrent;

static inline cpu_recurrent cpu_recurrent_of(const struct oxb_recurrence *r, const void *states,
                                             void *slots, uint64_t sequence) {
    const struct oxb_decode_state *state = cpu_state_of(states, r->batch, sequence);
    const uint64_t n = r->batch ? 1 : r->n_tokens, p = state->position;
    if (p + n > UINT32_MAX || (uint64_t)state->recurrent + r->ring > r->n_slots)
        return (cpu_recurrent){NULL, NULL};
    float *first = (float *)slots + state->recurrent * r->slot_stride + r->offset;
    return (cpu_recurrent){p == 0 ? NULL : first + p % r->ring * r->slot_stride,
                           first + (p + n) % r->ring * r->slot_stride};
}

#endif
