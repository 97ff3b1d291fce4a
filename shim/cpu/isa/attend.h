/* Attention of some query heads over the rows of one key-value head, and SwiGLU: what each variant
 * compiles for its registers. Included after its simd_*.h.
 *
 * Rows are read in blocks of positions: the scores of a block, their exponentials relative to the
 * largest score so far, then the sum of the values. Each block is added up apart, which keeps the
 * rounding small.
 */
#ifndef CPU_ATTEND_H
#define CPU_ATTEND_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cpu/hadamard.h"
#include "exp.h"
#include "isa.h"
#include "oxb_args.h"
#include "oxb_shim.h"

#define BLOCK   CPU_ATTEND_BLOCK
#define MAX_DIM OXB_MAX_HEAD_DIM
#define HEADS   CPU_ATTEND_HEADS
#define WIDE    CPU_LANES

typedef struct attend_scratch {
    float q[HEADS][MAX_DIM];
    float out[HEADS][MAX_DIM];
    float weight[HEADS][BLOCK];
    float rows[BLOCK * MAX_DIM]; /* of a block, padded to whole vectors */
} attend_scratch;

_Static_assert(sizeof(attend_scratch) <= CPU_ATTEND_SCRATCH,
               "the scratch of attention is too small");

/* Keys or values of some positions. */
typedef struct attend_rows {
    const void *elements;  /* n of each position */
    const uint16_t *words; /* of q8: n / 16 of each position */
} attend_rows;

/* 0xffff where a word has the low bits of elements i to i + 15, 0 where it is the unit. */
SIMD_INLINE uint16_t low_bits_of(uint64_t i, uint64_t n) { return i + WIDE < n ? 0xffff : 0; }

SIMD_INLINE const void *row_at(const void *rows, uint64_t i, unsigned kv_format) {
    const uint64_t bytes = kv_format == OXB_KV_Q8    ? sizeof(int8_t)
                           : kv_format == OXB_KV_F16 ? sizeof(uint16_t)
                                                     : sizeof(float);
    return (const char *)rows + i * bytes;
}

/* Row p from element i on. */
SIMD_INLINE attend_rows row_of(attend_rows rows, uint64_t p, uint64_t n, uint64_t i,
                               unsigned kv_format) {
    return (attend_rows){row_at(rows.elements, p * n + i, kv_format),
                         kv_format == OXB_KV_Q8 ? rows.words + p * (n / WIDE) + i / WIDE : NULL};
}

/* Vector `at` of a row; of q8 in halves of its units, with those of the bits in `mask`. */
SIMD_INLINE lanes load_row(attend_rows row, uint64_t at, uint16_t mask, unsigned kv_format) {
    switch (kv_format) {
    case OXB_KV_Q8:
        return lanes_of_bytes_and_bits((const int8_t *)row.elements + at * WIDE,
                                       row.words[at] & mask);
    case OXB_KV_F16: return lanes_of_halves((const uint16_t *)row.elements + at * WIDE);
    default: return lanes_load((const float *)row.elements + at * WIDE);
    }
}

/* weight[h][p] *= two units of row p: what an element of q8 counts. */
SIMD_INLINE void scale_by_units(attend_scratch *s, attend_rows rows, uint64_t count, uint64_t n,
                                unsigned heads) {
    for (uint64_t p = 0; p < count; p++) {
        const uint32_t bits = (uint32_t)rows.words[(p + 1) * (n / WIDE) - 1] << 16;
        float unit;
        memcpy(&unit, &bits, sizeof unit);
        for (unsigned h = 0; h < heads; h++) s->weight[h][p] *= 2 * unit;
    }
}

/* weight[h][p] = q[h] . row p, times the scale. */
SIMD_INLINE void scores(attend_scratch *s, attend_rows rows, uint64_t count, uint64_t n,
                        unsigned heads, float scale, unsigned kv_format) {
    for (uint64_t p = 0; p < count; p++) {
        const attend_rows row = row_of(rows, p, n, 0, kv_format);
        lanes sum[HEADS];
        for (unsigned h = 0; h < heads; h++) sum[h] = lanes_zero();
        for (uint64_t i = 0; i < n; i += WIDE) {
            const lanes k = load_row(row, i / WIDE, low_bits_of(i, n), kv_format);
            for (unsigned h = 0; h < heads; h++)
                sum[h] = lanes_fma(lanes_load(s->q[h] + i), k, sum[h]);
        }
        for (unsigned h = 0; h < heads; h++) s->weight[h][p] = lanes_sum(sum[h]) * scale;
    }
}

/* out[h] += sum of weight[h][p] * row p, for `wide` vectors from element `at`. */
SIMD_INLINE void add_values(attend_scratch *s, attend_rows rows, uint64_t count, uint64_t n,
                            uint64_t at, unsigned wide, unsigned heads, unsigned kv_format) {
    lanes sum[HEADS][SIMD_ROW];
    uint16_t mask[SIMD_ROW];
    for (unsigned j = 0; j < wide; j++) mask[j] = low_bits_of(at + j * WIDE, n);
    for (unsigned h = 0; h < heads; h++)
        for (unsigned j = 0; j < wide; j++) sum[h][j] = lanes_zero();
    for (uint64_t p = 0; p < count; p++) {
        const attend_rows row = row_of(rows, p, n, at, kv_format);
        lanes v[SIMD_ROW];
        for (unsigned j = 0; j < wide; j++) v[j] = load_row(row, j, mask[j], kv_format);
        for (unsigned h = 0; h < heads; h++) {
            const lanes weight = lanes_of(s->weight[h][p]);
            for (unsigned j = 0; j < wide; j++) sum[h][j] = lanes_fma(weight, v[j], sum[h][j]);
        }
    }
    for (unsigned h = 0; h < heads; h++)
        for (unsigned j = 0; j < wide; j++) {
            float *out = s->out[h] + at + j * WIDE;
            lanes_store(out, lanes_add(lanes_load(out), sum[h][j]));
        }
}

SIMD_INLINE void values(attend_scratch *s, attend_rows rows, uint64_t count, uint64_t n,
                        unsigned heads, unsigned kv_format) {
    uint64_t at = 0;
    for (; at + SIMD_ROW * WIDE <= n; at += SIMD_ROW * WIDE)
        add_values(s, rows, count, n, at, SIMD_ROW, heads, kv_format);
    for (; at < n; at += WIDE) add_values(s, rows, count, n, at, 1, heads, kv_format);
}

/* Turn the block's scores into weights relative to the largest score so far. */
SIMD_INLINE void soften(attend_scratch *s, cpu_attend_head *head, unsigned h, uint64_t count,
                        uint64_t n) {
    float *weight = s->weight[h];
    float max = head->max;
    for (uint64_t p = 0; p < count; p++) max = weight[p] > max ? weight[p] : max;
    for (uint64_t p = count; p < BLOCK; p++) weight[p] = -INFINITY;
    /* All scores -inf so far: weights of 0, not NaN, since a later score may be finite. */
    const float base = max == -INFINITY ? 0.0f : max;
    float fade[WIDE];
    lanes_store(fade, lanes_exp(lanes_of(head->max - base)));
    lanes total = lanes_zero();
    for (uint64_t p = 0; p < BLOCK; p += WIDE) {
        const lanes value = lanes_exp(lanes_sub(lanes_load(weight + p), lanes_of(base)));
        lanes_store(weight + p, value);
        total = lanes_add(total, value);
    }
    head->max = max;
    head->total = head->total * fade[0] + lanes_sum(total);
    for (uint64_t i = 0; i < n; i += WIDE)
        lanes_store(s->out[h] + i, lanes_mul(lanes_load(s->out[h] + i), lanes_of(fade[0])));
}

/* Rows that are no whole vectors, as padded floats. Those of q8 are whole vectors. */
SIMD_INLINE attend_rows whole_rows(attend_scratch *s, attend_rows rows, uint64_t count, uint64_t n,
                                   unsigned kv_format) {
    const uint64_t padded = (n + WIDE - 1) / WIDE * WIDE;
    uint16_t row[2 * MAX_DIM] = {0}; /* large enough for floats */
    const attend_rows one = {row, NULL};
    memset(s->rows, 0, count * padded * sizeof(float));
    for (uint64_t p = 0; p < count; p++) {
        const char *from = row_at(rows.elements, p * n, kv_format);
        const char *end = row_at(rows.elements, (p + 1) * n, kv_format);
        memcpy(row, from, (uint64_t)(end - from));
        for (uint64_t i = 0; i < padded; i += WIDE)
            lanes_store(s->rows + p * padded + i, load_row(one, i / WIDE, 0, kv_format));
    }
    return (attend_rows){s->rows, NULL};
}

SIMD_INLINE attend_rows rows_of(const cpu_attend *a, const void *cache, uint64_t page,
                                uint64_t place, uint64_t n, unsigned kv_format) {
    const char *head = (const char *)cache + page * a->page_stride;
    const uint16_t *units = (const uint16_t *)(const void *)(head + a->page_size * n);
    return (attend_rows){row_at(head, place * n, kv_format),
                         kv_format == OXB_KV_Q8 ? units + place * (n / WIDE) : NULL};
}

/* A block of positions. */
SIMD_INLINE void attend_block(const cpu_attend *a, uint64_t start, uint64_t count, uint64_t n,
                              unsigned heads, unsigned kv_format) {
    attend_scratch *s = a->scratch;
    const uint64_t padded = (n + WIDE - 1) / WIDE * WIDE;
    const uint64_t page = a->pages != NULL ? a->pages[start / a->page_size] : 0;
    const uint64_t place = a->pages != NULL ? start % a->page_size : start;
    const attend_rows keys = rows_of(a, a->k, page, place, n, kv_format);
    const attend_rows vs = rows_of(a, a->v, page, place, n, kv_format);
    if (kv_format == OXB_KV_Q8 || n == padded)
        scores(s, keys, count, n, heads, a->scale, kv_format);
    else
        scores(s, whole_rows(s, keys, count, n, kv_format), count, padded, heads, a->scale,
               OXB_KV_F32);
    if (kv_format == OXB_KV_Q8) scale_by_units(s, keys, count, n, heads);
    for (unsigned h = 0; h < heads; h++) soften(s, &a->head[h], h, count, padded);
    if (kv_format == OXB_KV_Q8) scale_by_units(s, vs, count, n, heads);
    if (kv_format == OXB_KV_Q8 || n == padded)
        values(s, vs, count, n, heads, kv_format);
    else
        values(s, whole_rows(s, vs, count, n, kv_format), count, padded, heads, OXB_KV_F32);
}

/* A query as the keys of q8 are turned. */
SIMD_INLINE void turn_query(float *q, uint64_t n) {
    cpu_hadamard(q, n);
    for (uint64_t i = 0; i < n; i++) q[i] *= 1.0f / 32;
}

SIMD_INLINE void attend_heads(const cpu_attend *a, uint64_t n, unsigned heads, unsigned kv_format) {
    attend_scratch *s = a->scratch;
    const uint64_t padded = (n + WIDE - 1) / WIDE * WIDE;
    for (unsigned h = 0; h < heads; h++) {
        memset(s->q[h], 0, padded * sizeof(float));
        memcpy(s->q[h], a->q + h * n, n * sizeof(float));
        if (kv_format == OXB_KV_Q8) turn_query(s->q[h], n);
        memset(s->out[h], 0, padded * sizeof(float));
        a->head[h].max = -INFINITY;
        a->head[h].total = 0;
    }
    for (uint64_t start = a->begin; start < a->end; start += BLOCK)
        attend_block(a, start, a->end - start < BLOCK ? a->end - start : BLOCK, n, heads,
                     kv_format);
    for (unsigned h = 0; h < heads; h++) memcpy(a->head[h].out, s->out[h], n * sizeof(float));
}

/* For two heads, the usual number, and for others in fours; of q8 for the usual head_dim. */
SIMD_TARGET static void attend(const cpu_attend *a) {
    const uint64_t n = a->head_dim;
    if (a->kv_format == OXB_KV_F32)
        attend_heads(a, n, a->n_heads, OXB_KV_F32);
    else if (a->kv_format == OXB_KV_F16 && a->n_heads == 2)
        attend_heads(a, n, 2, OXB_KV_F16);
    else if (a->kv_format == OXB_KV_F16 && a->n_heads == HEADS)
        attend_heads(a, n, HEADS, OXB_KV_F16);
    else if (a->kv_format == OXB_KV_F16)
        attend_heads(a, n, a->n_heads, OXB_KV_F16);
    else if (n == 128 && a->n_heads == 2)
        attend_heads(a, 128, 2, OXB_KV_Q8);
    else if (n == 128 && a->n_heads == HEADS)
        attend_heads(a, 128, HEADS, OXB_KV_Q8);
    else
        attend_heads(a, n, a->n_heads, OXB_KV_Q8);
}

SIMD_INLINE lanes silu_of(const double *gate, const double *up) {
    const lanes g = lanes_of_doubles(gate);
    const lanes below = lanes_add(lanes_of(1.0f), lanes_exp(lanes_sub(lanes_zero(), g)));
    return lanes_mul(lanes_div(g, below), lanes_of_doubles(up));
}

/* s = silu(gate) * up; gate and up may be read to the end of a vector. */
SIMD_TARGET static void swiglu(const double *gate, const double *up, float *s, uint64_t n) {
    uint64_t i = 0;
    for (; i + WIDE <= n; i += WIDE) lanes_store(s + i, silu_of(gate + i, up + i));
    if (i < n) {
        float rest[WIDE];
        lanes_store(rest, silu_of(gate + i, up + i));
        memcpy(s + i, rest, (n - i) * sizeof *s);
    }
}

#define VECTOR_KERNELS .attend = attend, .swiglu = swiglu

#endif
