/* Where the rows of a dispatch stand in their texts, and where their keys and values lie. */
#ifndef CPU_CACHE_H
#define CPU_CACHE_H

#include "cpu.h"
#include "oxb_args.h"

/* The state that token t has. */
static inline const struct oxb_decode_state *cpu_state_of(const void *states, uint32_t batch,
                                                          uint64_t t) {
    return (const struct oxb_decode_state *)states + (batch ? t : 0);
}

static inline uint64_t cpu_position_of(const void *states, uint32_t batch, uint64_t t) {
    return (uint64_t)cpu_state_of(states, batch, t)->position + (batch ? 0 : t);
}

/* Bytes of the states of n_tokens tokens. */
static inline uint64_t cpu_states_bytes(uint32_t batch, uint64_t n_tokens) {
    return (batch ? n_tokens : 1) * sizeof(struct oxb_decode_state);
}

static inline uint64_t cpu_element_bytes(uint32_t kv_format) {
    return kv_format == OXB_KV_F32 ? 4 : kv_format == OXB_KV_F16 ? 2 : 1;
}

/* The bytes that a cache takes, or CPU_BAD_ARGS. */
static inline uint64_t cpu_cache_bytes(const struct oxb_cache *c, uint32_t kv_format,
                                       uint64_t n_kv_heads, uint64_t head_dim) {
    const uint64_t row = head_dim + (kv_format == OXB_KV_Q8 ? head_dim / 8 : 0);
    if (c->page_size == 0 || c->n_pages == 0 || c->head_stride < cpu_mul(c->page_size, row) ||
        (kv_format == OXB_KV_Q8 && /* words of 16 bits, a whole number in a row */
         (head_dim % 32 != 0 || (c->head_stride | c->layer_offset | c->page_stride) % 2 != 0)) ||
        (c->table_size == 0 ? c->page_size < c->max_seq : c->page_size % CPU_ATTEND_BLOCK != 0))
        return CPU_BAD_ARGS;
    const uint64_t last = c->table_size == 0 ? 0 : cpu_mul(c->n_pages - 1ull, c->page_stride);
    const uint64_t layer = cpu_add(c->layer_offset, cpu_mul(n_kv_heads, c->head_stride));
    return cpu_mul(cpu_add(last, layer), cpu_element_bytes(kv_format));
}

/* Bytes of the tables of all sequences; `pages` is not read where there are none. */
static inline uint64_t cpu_tables_bytes(const struct oxb_cache *c) {
    return (uint64_t)c->table_size * 4;
}

#define CPU_NO_PAGE UINT32_MAX

/* The page of a position below max_seq, or CPU_NO_PAGE. */
static inline uint32_t cpu_page_of(const struct oxb_cache *c, const uint32_t *tables,
                                   const struct oxb_decode_state *state, uint64_t position) {
    if (c->table_size == 0) return 0;
    const uint64_t at = state->pages + position / c->page_size;
    return at < c->table_size && tables[at] < c->n_pages ? tables[at] : CPU_NO_PAGE;
}

#endif
