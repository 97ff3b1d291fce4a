/* The key and value caches, and attention of one token over them. */
#include <math.h>
#include <string.h>

#include "half.h"
#include "oxb_cpu.h"
#include "vector.h"

#define BLOCK 64u /* positions whose weights are rescaled together */
#define HEADS 4u  /* query heads that share each row of the caches as it is read */

typedef struct head_state {
    float out[OXB_CPU_MAX_HEAD_DIM];   /* sum of the blocks done */
    float block[OXB_CPU_MAX_HEAD_DIM]; /* sum of this block: two levels keep the rounding small */
    float weight[BLOCK];
    float max;
    float total;
} head_state;

typedef struct attention_scratch {
    head_state head[HEADS];
    float row[OXB_CPU_MAX_HEAD_DIM];
} attention_scratch;

_Static_assert(sizeof(attention_scratch) <= OXB_CPU_SCRATCH, "attention must fit the scratch of a thread");

static uint64_t cache_bytes(const oxb_cpu_kernel *kernel, uint64_t layer_offset, uint64_t n_kv_heads,
                            uint64_t max_seq, uint64_t head_dim)
{
    const uint64_t layer = oxb_cpu_mul(oxb_cpu_mul(n_kv_heads, max_seq), head_dim);
    return oxb_cpu_mul(oxb_cpu_add(layer_offset, layer), kernel->format ? 2 : 4);
}

uint64_t oxb_cpu_kv_store_need(const oxb_cpu_kernel *kernel, const void *args, uint32_t binding)
{
    const struct oxb_kv_store_args *a = args;
    switch (binding) {
    case 0:
        return oxb_cpu_mul((uint64_t)a->n_heads + 2 * (uint64_t)a->n_kv_heads, (uint64_t)a->head_dim * 4);
    case 3:
        return sizeof(struct oxb_decode_state);
    default:
        return cache_bytes(kernel, a->layer_offset, a->n_kv_heads, a->max_seq, a->head_dim);
    }
}

static void store_row(const float *from, void *cache, uint64_t offset, uint64_t n, int half_cache)
{
    if (half_cache) {
        uint16_t *to = (uint16_t *)cache + offset;
        for (uint64_t i = 0; i < n; i++)
            to[i] = oxb_half_of_float(from[i]);
    } else {
        memcpy((float *)cache + offset, from, n * sizeof *from);
    }
}

void oxb_cpu_kv_store(const oxb_cpu_call *call, uint64_t first, uint64_t last)
{
    const struct oxb_kv_store_args *a = call->args;
    const struct oxb_decode_state *state = call->bindings[3].address;
    const int half_cache = call->kernel->format != 0;
    if (state->position >= a->max_seq)
        return;
    for (uint64_t h = first; h < last && h < a->n_kv_heads; h++) {
        const float *k = (const float *)call->bindings[0].address + (a->n_heads + h) * a->head_dim;
        const float *v = k + (uint64_t)a->n_kv_heads * a->head_dim;
        const uint64_t offset = a->layer_offset + (h * a->max_seq + state->position) * a->head_dim;
        store_row(k, call->bindings[1].address, offset, a->head_dim, half_cache);
        store_row(v, call->bindings[2].address, offset, a->head_dim, half_cache);
    }
}

uint64_t oxb_cpu_attention_need(const oxb_cpu_kernel *kernel, const void *args, uint32_t binding)
{
    const struct oxb_attention_args *a = args;
    if (a->head_dim == 0 || a->head_dim > OXB_CPU_MAX_HEAD_DIM || a->n_kv_heads == 0 ||
        a->n_heads % a->n_kv_heads != 0)
        return OXB_CPU_BAD_ARGS;
    switch (binding) {
    case 1:
    case 2:
        return cache_bytes(kernel, a->layer_offset, a->n_kv_heads, a->max_seq, a->head_dim);
    case 3:
        return sizeof(struct oxb_decode_state);
    default:
        return oxb_cpu_mul((uint64_t)a->n_heads, (uint64_t)a->head_dim * 4);
    }
}

static const float *load_row(const void *cache, uint64_t offset, uint64_t n, int half_cache, float *row)
{
    if (!half_cache)
        return (const float *)cache + offset;
    oxb_floats_of_halves((const uint16_t *)cache + offset, row, n);
    return row;
}

/* Turn the block's scores into weights relative to the largest score so far. */
static void soften(head_state *s, uint64_t n, uint64_t head_dim)
{
    float max = s->max;
    for (uint64_t p = 0; p < n; p++)
        max = s->weight[p] > max ? s->weight[p] : max;
    /* All scores -inf so far: weights of 0, not NaN, since a later score may be finite. */
    const float base = max == -INFINITY ? 0.0f : max;
    const float fade = expf(s->max - base);
    float total = 0;
    for (uint64_t p = 0; p < n; p++) {
        s->weight[p] = expf(s->weight[p] - base);
        total += s->weight[p];
    }
    s->max = max;
    s->total = s->total * fade + total;
    for (uint64_t i = 0; i < head_dim; i++)
        s->out[i] *= fade;
}

static inline void attend(const oxb_cpu_call *call, uint64_t kv_head, uint64_t first_head,
                          uint64_t n_heads, uint64_t positions, int half_cache)
{
    const struct oxb_attention_args *a = call->args;
    attention_scratch *scratch = call->scratch;
    const float *q = (const float *)call->bindings[0].address + first_head * a->head_dim;
    float *out = (float *)call->bindings[4].address + first_head * a->head_dim;
    const uint64_t n = a->head_dim;
    const uint64_t base = a->layer_offset + kv_head * a->max_seq * n;

    for (uint64_t h = 0; h < n_heads; h++) {
        head_state *s = &scratch->head[h];
        s->max = -INFINITY;
        s->total = 0;
        memset(s->out, 0, n * sizeof *s->out);
    }
    for (uint64_t start = 0; start < positions; start += BLOCK) {
        const uint64_t count = positions - start < BLOCK ? positions - start : BLOCK;
        for (uint64_t p = 0; p < count; p++) {
            const float *k =
                load_row(call->bindings[1].address, base + (start + p) * n, n, half_cache, scratch->row);
            for (uint64_t h = 0; h < n_heads; h++)
                scratch->head[h].weight[p] = oxb_dot(q + h * n, k, n) * a->scale;
        }
        for (uint64_t h = 0; h < n_heads; h++) {
            soften(&scratch->head[h], count, n);
            memset(scratch->head[h].block, 0, n * sizeof(float));
        }
        for (uint64_t p = 0; p < count; p++) {
            const float *v =
                load_row(call->bindings[2].address, base + (start + p) * n, n, half_cache, scratch->row);
            for (uint64_t h = 0; h < n_heads; h++) {
                const float weight = scratch->head[h].weight[p];
                float *block = scratch->head[h].block;
                for (uint64_t i = 0; i < n; i++)
                    block[i] += weight * v[i];
            }
        }
        for (uint64_t h = 0; h < n_heads; h++)
            for (uint64_t i = 0; i < n; i++)
                scratch->head[h].out[i] += scratch->head[h].block[i];
    }
    for (uint64_t h = 0; h < n_heads; h++)
        for (uint64_t i = 0; i < n; i++)
            out[h * n + i] = scratch->head[h].out[i] / scratch->head[h].total;
}

void oxb_cpu_attention(const oxb_cpu_call *call, uint64_t first, uint64_t last)
{
    const struct oxb_attention_args *a = call->args;
    const struct oxb_decode_state *state = call->bindings[3].address;
    const uint64_t per_kv = a->n_heads / a->n_kv_heads;
    for (uint64_t kv = first; kv < last && kv < a->n_kv_heads; kv++) {
        if (state->position >= a->max_seq) { /* a wrong result must show */
            float *out = (float *)call->bindings[4].address + kv * per_kv * a->head_dim;
            for (uint64_t i = 0; i < per_kv * a->head_dim; i++)
                out[i] = NAN;
            continue;
        }
        for (uint64_t h = 0; h < per_kv; h += HEADS) {
            const uint64_t count = per_kv - h < HEADS ? per_kv - h : HEADS;
            const uint64_t positions = (uint64_t)state->position + 1;
            if (call->kernel->format)
                attend(call, kv, kv * per_kv + h, count, positions, 1);
            else
                attend(call, kv, kv * per_kv + h, count, positions, 0);
        }
    }
}
