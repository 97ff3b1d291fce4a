/* The key and value caches, and attention of one token over them. */
#include <math.h>
#include <string.h>

#include "cpu/cache.h"
#include "cpu/half.h"

#define HEADS CPU_ATTEND_HEADS
#define EMPTY -1.0f /* in place of the total of a split without positions */

_Static_assert(CPU_ATTEND_SCRATCH <= CPU_SCRATCH, "attention must fit the scratch of a thread");

static uint64_t qkv_bytes(uint64_t n_tokens, uint64_t n_heads, uint64_t n_kv_heads,
                          uint64_t head_dim) {
    return cpu_mul(cpu_mul(n_tokens, n_heads + 2 * n_kv_heads), head_dim * 4);
}

uint64_t cpu_kv_store_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_kv_store_args *a = args;
    switch (binding) {
    case 0: return qkv_bytes(a->n_tokens, a->n_heads, a->n_kv_heads, a->head_dim);
    case 3: return cpu_states_bytes(a->batch, a->n_tokens);
    case 4: return cpu_tables_bytes(&a->cache);
    default: return cpu_cache_bytes(&a->cache, kernel->format, a->n_kv_heads, a->head_dim);
    }
}

/* The unit of a row in 8 bits: NaN where an element is not finite. */
static float unit_of(const float *x, uint64_t n) {
    uint32_t largest = 0; /* magnitudes are in the order of their bits */
    for (uint64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    if (largest >= 0x7f800000u) return NAN;
    float magnitude;
    memcpy(&magnitude, &largest, sizeof magnitude);
    return magnitude / 127.0f;
}

static void store_bytes(const float *from, int8_t *to, float *unit, uint64_t n) {
    const float whole = 12582912.0f; /* 1.5 * 2^23: a sum with it has no fraction */
    const float u = unit_of(from, n);
    *unit = u;
    if (!(u > 0)) {
        memset(to, 0, n);
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        float x = from[i] / u;
        x = x > 127.0f ? 127.0f : x < -127.0f ? -127.0f : x;
        to[i] = (int8_t)(x + whole - whole);
    }
}

/* A key or value to row `place` of its head in a page, which begins at element `head`. */
static void store_row(const float *from, void *cache, uint64_t head, uint64_t place,
                      const struct oxb_kv_store_args *a, uint32_t kv_format) {
    const uint64_t n = a->head_dim, at = head + place * n;
    if (kv_format == OXB_KV_Q8) {
        int8_t *bytes = (int8_t *)cache + head;
        float *units = (float *)(void *)(bytes + a->cache.page_size * n);
        store_bytes(from, bytes + place * n, units + place, n);
    } else if (kv_format == OXB_KV_F16) {
        uint16_t *to = (uint16_t *)cache + at;
        for (uint64_t i = 0; i < n; i++) to[i] = cpu_half_of_float(from[i]);
    } else {
        memcpy((float *)cache + at, from, n * sizeof *from);
    }
}

void cpu_kv_store(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_kv_store_args *a = call->args;
    const struct oxb_cache *cache = &a->cache;
    const void *states = call->bindings[3].address;
    const uint64_t heads = (uint64_t)a->n_heads + 2 * (uint64_t)a->n_kv_heads;
    for (uint64_t i = first; i < last && i < (uint64_t)a->n_kv_heads * a->n_tokens; i++) {
        const uint64_t token = i / a->n_kv_heads, h = i % a->n_kv_heads;
        const uint64_t position = cpu_position_of(states, a->batch, token);
        if (position >= cache->max_seq) continue;
        const uint32_t page = cpu_page_of(cache, call->bindings[4].address,
                                          cpu_state_of(states, a->batch, token), position);
        if (page == CPU_NO_PAGE) continue;
        const float *k = (const float *)call->bindings[0].address +
                         (token * heads + a->n_heads + h) * a->head_dim;
        const float *v = k + (uint64_t)a->n_kv_heads * a->head_dim;
        const uint64_t head =
            page * cache->page_stride + cache->layer_offset + h * cache->head_stride;
        const uint64_t place = position % cache->page_size;
        store_row(k, call->bindings[1].address, head, place, a, call->kernel->format);
        store_row(v, call->bindings[2].address, head, place, a, call->kernel->format);
    }
}

uint64_t cpu_attention_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_attention_args *a = args;
    if (a->head_dim == 0 || a->head_dim > CPU_MAX_HEAD_DIM || a->n_kv_heads == 0 || a->heads == 0 ||
        a->n_heads != (uint64_t)a->heads * a->n_kv_heads || a->tokens != CPU_TOKENS ||
        a->n_splits == 0 || a->first_token >= a->n_tokens)
        return CPU_BAD_ARGS;
    switch (binding) {
    case 0: return qkv_bytes(a->n_tokens, a->n_heads, a->n_kv_heads, a->head_dim);
    case 1:
    case 2: return cpu_cache_bytes(&a->cache, kernel->format, a->n_kv_heads, a->head_dim);
    case 3: return cpu_states_bytes(a->batch, a->n_tokens);
    case 4: return cpu_tables_bytes(&a->cache);
    default:
        return cpu_mul(cpu_mul(cpu_mul(a->n_tokens, a->n_heads), a->n_splits),
                       ((uint64_t)a->head_dim + (a->n_splits > 1 ? 2 : 0)) * 4);
    }
}

/* Where a head's results go: to the output, or to those of its split. */
static float *output_of(const cpu_call *call, uint64_t token, uint64_t head, uint64_t split) {
    const struct oxb_attention_args *a = call->args;
    const uint64_t row = token * a->n_heads + head;
    float *out = call->bindings[5].address;
    return a->n_splits == 1 ? out + row * a->head_dim
                            : out + (row * a->n_splits + split) * (a->head_dim + 2ull);
}

/* n_heads query heads of a token over positions [begin, end), whose pages exist. */
static void attend(const cpu_call *call, uint64_t token, uint64_t kv_head, uint64_t first_head,
                   uint64_t n_heads, uint64_t split, uint64_t begin, uint64_t end) {
    const struct oxb_attention_args *a = call->args;
    const struct oxb_cache *cache = &a->cache;
    const struct oxb_decode_state *state = cpu_state_of(call->bindings[3].address, a->batch, token);
    const uint64_t n = a->head_dim, bytes = cpu_element_bytes(call->kernel->format);
    const uint64_t start = (cache->layer_offset + kv_head * cache->head_stride) * bytes;
    cpu_attend_head head[CPU_ATTEND_HEADS];
    for (uint64_t h = 0; h < n_heads; h++)
        head[h].out = output_of(call, token, first_head + h, split);
    const cpu_attend job = {
        .q = (const float *)call->bindings[0].address +
             (token * (a->n_heads + 2 * (uint64_t)a->n_kv_heads) + first_head) * n,
        .k = (const char *)call->bindings[1].address + start,
        .v = (const char *)call->bindings[2].address + start,
        .pages = cache->table_size == 0
                     ? NULL
                     : (const uint32_t *)call->bindings[4].address + state->pages,
        .page_stride = cache->page_stride * bytes,
        .page_size = cache->page_size,
        .begin = begin,
        .end = end,
        .head_dim = a->head_dim,
        .n_heads = (uint32_t)n_heads,
        .kv_format = call->kernel->format,
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

/* Whether positions [begin, end) of a token's text all have a place. */
static int placed(const cpu_call *call, uint64_t token, uint64_t begin, uint64_t end) {
    const struct oxb_attention_args *a = call->args;
    const struct oxb_cache *cache = &a->cache;
    const struct oxb_decode_state *state = cpu_state_of(call->bindings[3].address, a->batch, token);
    if (cpu_position_of(call->bindings[3].address, a->batch, token) >= cache->max_seq) return 0;
    if (cache->table_size == 0) return 1;
    for (uint64_t p = begin; p < end; p += cache->page_size - p % cache->page_size)
        if (cpu_page_of(cache, call->bindings[4].address, state, p) == CPU_NO_PAGE) return 0;
    return 1;
}

/* One token and key-value head: its query heads, some at a time, over one split. */
static void attend_token(const cpu_call *call, uint64_t token, uint64_t kv_head, uint64_t split) {
    const struct oxb_attention_args *a = call->args;
    const uint64_t positions = cpu_position_of(call->bindings[3].address, a->batch, token) + 1;
    const uint64_t first = kv_head * a->heads;
    /* A split has a fixed number of positions, the last one the rest, so that the bits of a row do
     * not depend on the length that it was recorded for. One past the text is empty. */
    const uint64_t begin = split * CPU_SPLIT < positions ? split * CPU_SPLIT : positions;
    const int last = split + 1 == a->n_splits || positions - begin < CPU_SPLIT;
    const uint64_t end = last ? positions : begin + CPU_SPLIT;
    if (!placed(call, token, begin, end)) { /* a wrong result must show */
        for (uint64_t h = 0; h < a->heads; h++) {
            float *out = output_of(call, token, first + h, split);
            for (uint64_t i = 0; i < a->head_dim + (a->n_splits > 1 ? 2ull : 0); i++) out[i] = NAN;
        }
        return;
    }
    for (uint64_t h = 0; h < a->heads; h += HEADS) {
        const uint64_t count = a->heads - h < HEADS ? a->heads - h : HEADS;
        attend(call, token, kv_head, first + h, count, split, begin, end);
    }
}

/* Threadgroups count key-value heads, then tiles of tokens, then splits. */
void cpu_attention(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_attention_args *a = call->args;
    const uint64_t tiles = ((uint64_t)a->n_tokens - a->first_token + CPU_TOKENS - 1) / CPU_TOKENS;
    for (uint64_t i = first; i < last && i < tiles * a->n_kv_heads * a->n_splits; i++) {
        const uint64_t kv_head = i % a->n_kv_heads;
        const uint64_t start = a->first_token + i / a->n_kv_heads % tiles * CPU_TOKENS;
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
