/* The two ends of a model: the embedding of a token, and the choice of the next one. */
#include <math.h>
#include <string.h>

#include "cpu/cache.h"
#include "cpu/half.h"
#include "cpu/panels.h"

#define LANES 16u

uint64_t cpu_embed_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_embed_args *a = args;
    switch (binding) {
    case 0: return cpu_weight_bytes(kernel, a->codes_offset, a->n_rows, a->k);
    case 1: return (uint64_t)a->max_tokens * 4;
    case 2: return cpu_states_bytes(a->batch, a->n_tokens);
    default: return cpu_mul((uint64_t)a->n_tokens * 4, a->k);
    }
}

static float codes_weight(const uint8_t *scales, const uint8_t *codes, uint64_t i,
                          uint32_t format) {
    const uint64_t group = i / cpu_group(format);
    const uint8_t *scale_at = scales + group * cpu_scale_bytes(format);
    uint16_t scale;
    memcpy(&scale, scale_at, sizeof scale);
    int code;
    switch (format) {
    case OXB_DEVICE_FORMAT_Q1_G128: code = 2 * ((codes[i / 8] >> i % 8) & 1); break;
    case OXB_DEVICE_FORMAT_T1_G128:
        code = (int)cpu_digit_of(scale_at, codes + group * cpu_group_bytes(format),
                                 (unsigned)(i % cpu_group(format)));
        break;
    default: code = (codes[i / 4] >> 2 * (i % 4)) & 3; break;
    }
    return (float)(code - 1) * cpu_float_of_half(scale);
}

static void embed_row(const cpu_call *call, uint64_t row, float *y) {
    const struct oxb_embed_args *a = call->args;
    const uint32_t format = call->kernel->format;
    if (call->kernel->layout != OXB_LAYOUT_PLAIN) {
        const cpu_panels p = cpu_panels_at(call->bindings[0].address, a->codes_offset, format,
                                           call->kernel->layout, a->k);
        for (uint64_t group = 0; group < p.n_groups; group++)
            cpu_panel_weights(&p, row, group, y + group * p.group_size);
        return;
    }
    const uint64_t groups = a->k / cpu_group(format);
    const uint8_t *scales =
        (const uint8_t *)call->bindings[0].address + row * groups * cpu_scale_bytes(format);
    const uint8_t *codes = (const uint8_t *)call->bindings[0].address + a->codes_offset +
                           row * groups * cpu_group_bytes(format);
    if (!cpu_has_scales(format)) {
        cpu_dense_weights(format, codes, 0, a->k, y);
        return;
    }
    for (uint64_t i = 0; i < a->k; i++) y[i] = codes_weight(scales, codes, i, format);
}

void cpu_embed(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_embed_args *a = call->args;
    const void *states = call->bindings[2].address;
    const uint32_t *tokens = call->bindings[1].address;
    for (uint64_t t = first; t < last && t < a->n_tokens; t++) {
        const uint64_t at =
            cpu_state_of(states, a->batch, t)->tokens + cpu_position_of(states, a->batch, t);
        float *y = (float *)call->bindings[3].address + t * a->k;
        if (at < a->max_tokens && tokens[at] < a->n_rows) {
            embed_row(call, tokens[at], y);
            continue;
        }
        for (uint64_t i = 0; i < a->k; i++) /* a wrong result must show */
            y[i] = NAN;
    }
}

/* The lowest index of the largest value, n where all are NaN. */
static uint32_t largest(const float *x, uint32_t n) {
    float lane[LANES];
    for (unsigned j = 0; j < LANES; j++) lane[j] = -INFINITY;
    uint64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (unsigned j = 0; j < LANES; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (; i < n; i++) lane[0] = x[i] > lane[0] ? x[i] : lane[0];
    for (unsigned j = 1; j < LANES; j++) lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
    for (uint32_t index = 0; index < n; index++)
        if (x[index] == lane[0]) return index;
    return n;
}

uint64_t cpu_argmax_blocks_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_argmax_blocks_args *a = args;
    (void)kernel;
    if (a->n == 0 || a->n_blocks != (a->n - 1) / OXB_ARGMAX_BLOCK + 1) return CPU_BAD_ARGS;
    return cpu_mul(a->n_vectors,
                   binding == 0 ? (uint64_t)a->n * 4 : a->n_blocks * sizeof(struct oxb_best));
}

/* Threadgroups count the blocks of a vector of logits, then vectors. */
void cpu_argmax_blocks(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_argmax_blocks_args *a = call->args;
    struct oxb_best *best = call->bindings[1].address;
    for (uint64_t i = first; i < last && i < (uint64_t)a->n_vectors * a->n_blocks; i++) {
        const uint32_t start = (uint32_t)(i % a->n_blocks) * OXB_ARGMAX_BLOCK;
        const uint32_t n = a->n - start < OXB_ARGMAX_BLOCK ? a->n - start : OXB_ARGMAX_BLOCK;
        const float *x = (const float *)call->bindings[0].address + i / a->n_blocks * a->n + start;
        const uint32_t index = largest(x, n);
        best[i] = index < n ? (struct oxb_best){x[index], start + index}
                            : (struct oxb_best){-INFINITY, OXB_NO_INDEX};
    }
}

/* The index of the best of the blocks, 0 where there is none. */
static uint32_t best_index(const struct oxb_best *best, uint32_t n) {
    struct oxb_best found = {-INFINITY, OXB_NO_INDEX};
    for (uint32_t i = 0; i < n; i++)
        if (best[i].value > found.value ||
            (best[i].value == found.value && best[i].index < found.index))
            found = best[i];
    return found.index == OXB_NO_INDEX ? 0 : found.index;
}

uint64_t cpu_argmax_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_argmax_args *a = args;
    (void)kernel;
    return cpu_mul(a->n_vectors, binding == 0 ? a->n_blocks * sizeof(struct oxb_best) : 4);
}

void cpu_argmax(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_argmax_args *a = call->args;
    const struct oxb_best *best = call->bindings[0].address;
    uint32_t *out = call->bindings[1].address;
    for (uint64_t v = first; v < last && v < a->n_vectors; v++)
        out[v] = best_index(best + v * a->n_blocks, a->n_blocks);
}

uint64_t cpu_advance_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_advance_args *a = args;
    (void)kernel;
    switch (binding) {
    case 0: return a->n_blocks * sizeof(struct oxb_best);
    case 1: return (uint64_t)a->max_tokens * 4;
    default: return sizeof(struct oxb_decode_state);
    }
}

void cpu_advance(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_advance_args *a = call->args;
    uint32_t *tokens = call->bindings[1].address;
    struct oxb_decode_state *state = call->bindings[2].address;
    if (first > 0 || last == 0) return;
    state->position += a->n_tokens;
    if (a->n_blocks != 0 && state->position < a->max_tokens)
        tokens[state->position] = best_index(call->bindings[0].address, a->n_blocks);
}
