/* The key and value caches, and attention of one token over them. */
#include <math.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/half.h"

#define HEADS CPU_ATTEND_HEADS
#define EMPTY -1.0f /* in place of the total of a split without positions */

_Static_assert(CPU_ATTEND_SCRATCH <= CPU_SCRATCH, "attention must fit the scratch of a thread");

static uint64_t cache_bytes(const cpu_kernel *kernel, uint64_t layer_offset, uint64_t n_kv_heads,
                            uint64_t max_seq, uint64_t head_dim) {
    const uint64_t layer = cpu_mul(cpu_mul(n_kv_heads, max_seq), head_dim);
    return cpu_mul(cpu_add(layer_offset, layer), kernel->format ? 2 : 4);
}

static uint64_t qkv_bytes(uint64_t n_tokens, uint64_t n_heads, uint64_t n_kv_heads,
                          uint64_t head_dim) {
    return cpu_mul(cpu_mul(n_tokens, n_heads + 2 * n_kv_heads), head_dim * 4);
}

uint64_t cpu_kv_store_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_kv_store_args *a = args;
    switch (binding) {
    case 0: return qkv_bytes(a->n_tokens, a->n_heads, a->n_kv_heads, a->head_dim);
    case 3: return sizeof(struct oxb_decode_state);
    default: return cache_bytes(kernel, a->layer_offset, a->n_kv_heads, a->max_seq, a->head_dim);
    }
}

static void store_row(const float *from, void *cache, uint64_t offset, uint64_t n, int half_cache) {
    if (half_cache) {
        uint16_t *to = (uint16_t *)cache + offset;
        for (uint64_t i = 0; i < n; i++) to[i] = cpu_half_of_float(from[i]);
    } else {
        memcpy((float *)cache + offset, from, n * sizeof *from);
    }
}

void cpu_kv_store(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_kv_store_args *a = call->args;
    const struct oxb_decode_state *state = call->bindings[3].address;
    const int half_cache = call->kernel->format != 0;
    const uint64_t heads = (uint64_t)a->n_heads + 2 * (uint64_t)a->n_kv_heads;
    for (uint64_t i = first; i < last && i < (uint64_t)a->n_kv_heads * a->n_tokens; i++) {
        const uint64_t token = i / a->n_kv_heads, h = i % a->n_kv_heads;
        const uint64_t position = (uint64_t)state->position + token;
        if (position >= a->max_seq) return;
        const float *k = (const float *)call->bindings[0].address +
                         (token * heads + a->n_heads + h) * a->head_dim;
        const float *v = k + (uint64_t)a->n_kv_heads * a->head_dim;
        const uint64_t offset = a->layer_offset + (h * a->max_seq + position) * a->head_dim;
        store_row(k, call->bindings[1].address, offset, a->head_dim, half_cache);
        store_row(v, call->bindings[2].address, offset, a->head_dim, half_cache);
    }
}

uint64_t cpu_attention_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_attention_args *a = args;
    if (a->head_dim == 0 || a->head_dim > CPU_MAX_HEAD_DIM || a->n_kv_heads == 0 || a->heads == 0 ||
        a->n_heads != (uint64_t)a->heads * a->n_kv_heads || a->tokens != CPU_TOKENS ||
        a->n_splits == 0)
        return CPU_BAD_ARGS;
    switch (binding) {
    case 0: return qkv_bytes(a->n_tokens, a->n_heads, a->n_kv_heads, a->head_dim);
    case 1:
    case 2: return cache_bytes(kernel, a->layer_offset, a->n_kv_heads, a->max_seq, a->head_dim);
    case 3: return sizeof(struct oxb_decode_state);
    default:
        return cpu_mul(cpu_mul(cpu_mul(a->n_tokens, a->n_heads), a->n_splits),
                       ((uint64_t)a->head_dim + (a->n_splits > 1 ? 2 : 0)) * 4);
    }
}

/* Where a head's results go: to the output, or to those of its split. */
static float *output_of(const cpu_call *call, uint64_t token, uint64_t head, uint64_t split) {
    const struct oxb_attention_args *a = call->args;
    const uint64_t row = token * a->n_heads + head;
    float *out = call->bindings[4].address;
    return a->n_splits == 1 ? out + row * a->head_dim
                            : out + (row * a->n_splits + split) * (a->head_dim + 2ull);
}

/* n_heads query heads of a token over positions [begin, end). */
static void attend(const cpu_call *call, uint64_t token, uint64_t kv_head, uint64_t first_head,
                   uint64_t n_heads, uint64_t split, uint64_t begin, uint64_t end) {
    const struct oxb_attention_args *a = call->args;
    const uint64_t n = a->head_dim;
    const uint64_t row = a->layer_offset + (kv_head * a->max_seq + begin) * n;
    const uint64_t bytes = call->kernel->format ? sizeof(uint16_t) : sizeof(float);
    cpu_attend_head head[CPU_ATTEND_HEADS];
    for (uint64_t h = 0; h < n_heads; h++)
        head[h].out = output_of(call, token, first_head + h, split);
    const cpu_attend job = {.q = (const float *)call->bindings[0].address +
                                 (token * (a->n_heads + 2 * (uint64_t)a->n_kv_heads) + first_head) *
                                     n,
                            .k = (const char *)call->bindings[1].address + row * bytes,
                            .v = (const char *)call->bindings[2].address + row * bytes,
                            .positions = end - begin,
                            .head_dim = a->head_dim,
                            .n_heads = (uint32_t)n_heads,
                            .half = call->kernel->format != 0,
                            .scale = a->scale,
                            .head = head,
                            .scratch = call->scratch};
    call->isa->f32->attend(&job);
    for (uint64_t h = 0; h < n_heads; h++) {
        float *out = head[h].out;
        if (a->n_splits > 1) {
            out[n] = head[h].max;
            out[n + 1] = begin == end ? EMPTY : head[h].total;
        } else {
            for (uint64_t i = 0; i < n; i++) out[i] /= head[h].total;
        }
    }
}

/* One token and key-value head: its query heads, some at a time, over one split. */
static void attend_token(const cpu_call *call, uint64_t token, uint64_t kv_head, uint64_t split) {
    const struct oxb_attention_args *a = call->args;
    const struct oxb_decode_state *state = call->bindings[3].address;
    const uint64_t positions = (uint64_t)state->position + token + 1;
    const uint64_t first = kv_head * a->heads;
    if (positions > a->max_seq) { /* a wrong result must show */
        for (uint64_t h = 0; h < a->heads; h++) {
            float *out = output_of(call, token, first + h, split);
            for (uint64_t i = 0; i < a->head_dim + (a->n_splits > 1 ? 2ull : 0); i++) out[i] = NAN;
        }
        return;
    }
    /* A split has a fixed number of positions, the last one the rest, so that the bits of a row do
     * not depend on the length that it was recorded for. One past the text is empty. */
    const uint64_t begin = split * CPU_SPLIT < positions ? split * CPU_SPLIT : positions;
    const int last = split + 1 == a->n_splits || positions - begin < CPU_SPLIT;
    const uint64_t end = last ? positions : begin + CPU_SPLIT;
    for (uint64_t h = 0; h < a->heads; h += HEADS) {
        const uint64_t count = a->heads - h < HEADS ? a->heads - h : HEADS;
        attend(call, token, kv_head, first + h, count, split, begin, end);
    }
}

/* Threadgroups count key-value heads, then tiles of tokens, then splits. */
void cpu_attention(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_attention_args *a = call->args;
    const uint64_t tiles = ((uint64_t)a->n_tokens + CPU_TOKENS - 1) / CPU_TOKENS;
    for (uint64_t i = first; i < last && i < tiles * a->n_kv_heads * a->n_splits; i++) {
        const uint64_t kv_head = i % a->n_kv_heads;
        const uint64_t start = i / a->n_kv_heads % tiles * CPU_TOKENS;
        const uint64_t rest = a->n_tokens - start;
        for (uint64_t t = 0; t < (rest < CPU_TOKENS ? rest : CPU_TOKENS); t++)
            attend_token(call, start + t, kv_head, i / a->n_kv_heads / tiles);
    }
}

uint64_t cpu_combine_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_combine_args *a = args;
    (void)kernel;
    if (a->n_splits == 0 || a->head_dim > CPU_MAX_HEAD_DIM) return CPU_BAD_ARGS;
    return cpu_mul(a->n_rows,
                   binding == 0 ? a->n_splits * (a->head_dim + 2ull) * 4 : a->head_dim * 4ull);
}

void cpu_combine(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_combine_args *a = call->args;
    const uint64_t n = a->head_dim;
    for (uint64_t row = first; row < last && row < a->n_rows; row++) {
        const float *splits =
            (const float *)call->bindings[0].address + row * a->n_splits * (n + 2);
        float *out = (float *)call->bindings[1].address + row * n;
        float max = -INFINITY, total = 0;
        for (uint64_t s = 0; s < a->n_splits; s++)
            max = splits[s * (n + 2) + n] > max ? splits[s * (n + 2) + n] : max;
        for (uint64_t i = 0; i < n; i++) out[i] = -0.0f; /* so that a sum of one split is itself */
        for (uint64_t s = 0; s < a->n_splits; s++) {
            const float *split = splits + s * (n + 2);
            if (split[n + 1] == EMPTY) continue;
            const float fade = expf(split[n] - (max == -INFINITY ? 0.0f : max));
            total += split[n + 1] * fade;
            for (uint64_t i = 0; i < n; i++) out[i] += split[i] * fade;
        }
        for (uint64_t i = 0; i < n; i++) out[i] /= total;
    }
}
