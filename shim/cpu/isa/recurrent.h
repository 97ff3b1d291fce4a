/* The convolution along the tokens, the gated delta rule, gates and the Walsh-Hadamard transform.
 * Included after the simd_*.h of a variant. */
#ifndef CPU_RECURRENT_H
#define CPU_RECURRENT_H

#include <stdint.h>
#include <string.h>

#include "exp.h"
#include "isa.h"

#define VECTOR 16u
/* Rows of a state come from memory. Those columns that are worked on later are fetched with the
 * first ones, so many rows ahead. */
#define AHEAD 8u

/* 1 + exp(-x) */
SIMD_INLINE lanes lanes_gate(lanes x) {
    return lanes_add(lanes_of(1.0f), lanes_exp(lanes_sub(lanes_zero(), x)));
}

SIMD_INLINE lanes convolved(const float *const *rows, const float *weights, uint64_t stride,
                            uint32_t width, uint64_t at) {
    lanes sum = lanes_mul(lanes_load(weights), lanes_load(rows[0] + at));
    for (uint32_t j = 1; j < width; j++)
        sum = lanes_fma(lanes_load(weights + j * stride), lanes_load(rows[j] + at), sum);
    return lanes_div(sum, lanes_gate(sum));
}

SIMD_TARGET static void conv(const float *const *rows, const float *weights, uint64_t stride,
                             uint32_t width, float *y, uint64_t n) {
    uint64_t i = 0;
    for (; i + VECTOR <= n; i += VECTOR)
        lanes_store(y + i, convolved(rows, weights + i, stride, width, i));
    if (i == n) return;
    float rest[OXB_MAX_CONV_WIDTH][VECTOR] = {{0}}, factors[OXB_MAX_CONV_WIDTH][VECTOR] = {{0}};
    const float *of_rest[OXB_MAX_CONV_WIDTH] = {NULL};
    for (uint32_t j = 0; j < width; j++) {
        memcpy(rest[j], rows[j] + i, (n - i) * sizeof *y);
        memcpy(factors[j], weights + j * stride + i, (n - i) * sizeof *y);
        of_rest[j] = rest[j];
    }
    float out[VECTOR];
    lanes_store(out, convolved(of_rest, factors[0], VECTOR, width, 0));
    memcpy(y + i, out, (n - i) * sizeof *y);
}

SIMD_INLINE lanes gated(const float *x, const float *z, const float *weight, cpu_factor factor,
                        int silu) {
    const lanes open = lanes_load(z);
    const lanes gate = lanes_div(silu ? open : lanes_of(1.0f), lanes_gate(open));
    const lanes value = lanes_load(x);
    if (!weight) return lanes_mul(gate, value);
    const lanes normed = lanes_mul(lanes_mul(value, lanes_of(factor.power)), lanes_of(factor.rest));
    return lanes_mul(gate, lanes_mul(normed, lanes_load(weight)));
}

SIMD_TARGET static void gate(const float *x, const float *z, const float *weight, cpu_factor factor,
                             int silu, float *y, uint64_t n) {
    uint64_t i = 0;
    for (; i + VECTOR <= n; i += VECTOR)
        lanes_store(y + i, gated(x + i, z + i, weight ? weight + i : NULL, factor, silu));
    if (i == n) return;
    float rest[3][VECTOR] = {{0}}, out[VECTOR];
    memcpy(rest[0], x + i, (n - i) * sizeof *x);
    memcpy(rest[1], z + i, (n - i) * sizeof *z);
    if (weight) memcpy(rest[2], weight + i, (n - i) * sizeof *weight);
    lanes_store(out, gated(rest[0], rest[1], weight ? rest[2] : NULL, factor, silu));
    memcpy(y + i, out, (n - i) * sizeof *y);
}

_Static_assert(SIMD_DELTA *VECTOR <= CPU_DELTA_COLUMNS, "a strip has room for its columns");

/* Products of k and of q with some columns of a state. */
typedef struct delta_sums {
    lanes seen[SIMD_DELTA], asked[SIMD_DELTA];
} delta_sums;

SIMD_INLINE void delta_sum(delta_sums *sums, lanes k, lanes q, lanes row, unsigned v) {
    sums->seen[v] = lanes_fma(k, row, sums->seen[v]);
    sums->asked[v] = lanes_fma(q, row, sums->asked[v]);
}

/* The state behind a token, and its products with what the next one brings. With S the state before
 * it, the output is q (g S + k d) = g (q S) + (q k) d, so that a token reads its state once. */
SIMD_INLINE void delta_step(const cpu_delta *d, unsigned width, uint32_t t, const float *from,
                            uint64_t from_stride, float *to, uint64_t to_stride, uint64_t column,
                            delta_sums *sums) {
    const cpu_delta_step *s = d->steps + t;
    const cpu_delta_step *next = t + 1 < d->n_steps ? s + 1 : NULL;
    const lanes fade = lanes_of(s->fade), rate = lanes_of(s->rate), along = lanes_of(s->along);
    lanes change[SIMD_DELTA];
    for (unsigned v = 0; v < width; v++) {
        const lanes value = lanes_load(d->v + t * d->v_stride + column + v * VECTOR);
        change[v] = lanes_mul(rate, lanes_sub(value, lanes_mul(fade, sums->seen[v])));
        lanes_store(d->y + t * d->y_stride + column + v * VECTOR,
                    lanes_fma(along, change[v], lanes_mul(fade, sums->asked[v])));
        sums->seen[v] = sums->asked[v] = lanes_zero();
    }
    for (uint32_t i = 0; i < d->key_dim; i++, to += to_stride) {
        const lanes k = lanes_of(s->k[i]);
        for (unsigned v = 0; v < width; v++) {
            const lanes old = from ? lanes_load(from + v * VECTOR) : lanes_zero();
            const lanes row = lanes_fma(k, change[v], lanes_mul(fade, old));
            lanes_store(to + v * VECTOR, row);
            if (next) delta_sum(sums, lanes_of(next->k[i]), lanes_of(next->q[i]), row, v);
        }
        if (from) from += from_stride;
    }
}

/* Vectors of columns over all tokens. Between the first and the last one they lie in the strip:
 * with keys of 128 elements 16 KB of a first-level cache, or with a SIMD_DELTA of 8 64 KB of a
 * second. */
SIMD_INLINE void delta_columns(const cpu_delta *d, unsigned width, uint64_t column) {
    const float *from = d->from ? d->from + column : NULL;
    float *to = d->to + column;
    delta_sums sums;
    for (unsigned v = 0; v < width; v++) sums.seen[v] = sums.asked[v] = lanes_zero();
    for (uint32_t i = 0; from && i < d->key_dim; i++) {
        const lanes k = lanes_of(d->steps->k[i]), q = lanes_of(d->steps->q[i]);
        if (column == 0 && i + AHEAD < d->key_dim)
            for (uint64_t c = width * VECTOR; c < d->n_columns; c += VECTOR)
                __builtin_prefetch(from + (i + AHEAD) * d->stride + c);
        for (unsigned v = 0; v < width; v++)
            delta_sum(&sums, k, q, lanes_load(from + i * d->stride + v * VECTOR), v);
    }
    if (d->n_steps == 1) {
        delta_step(d, width, 0, from, d->stride, to, d->stride, column, &sums);
        return;
    }
    const uint64_t strip = width * VECTOR;
    delta_step(d, width, 0, from, d->stride, d->strip, strip, column, &sums);
    for (uint32_t t = 1; t + 1 < d->n_steps; t++)
        delta_step(d, width, t, d->strip, strip, d->strip, strip, column, &sums);
    delta_step(d, width, d->n_steps - 1, d->strip, strip, to, d->stride, column, &sums);
}

SIMD_TARGET static void delta(const cpu_delta *d) {
    uint64_t column = 0;
    for (; column + SIMD_DELTA * VECTOR <= d->n_columns; column += SIMD_DELTA * VECTOR)
        delta_columns(d, SIMD_DELTA, column);
    for (; column < d->n_columns; column += 2 * VECTOR) delta_columns(d, 2, column);
}

/* The transform of four numbers, lane by lane. */
SIMD_INLINE void hadamard_four(lanes v[4]) {
    const lanes a = lanes_add(v[0], v[1]), b = lanes_sub(v[0], v[1]);
    const lanes c = lanes_add(v[2], v[3]), d = lanes_sub(v[2], v[3]);
    v[0] = lanes_add(a, c);
    v[1] = lanes_add(b, d);
    v[2] = lanes_sub(a, c);
    v[3] = lanes_sub(b, d);
}

/* Of 64 neighbours: along the lanes of fours, along the fours of vectors, along the vectors. */
SIMD_INLINE void hadamard_near(float *x) {
    lanes v[4];
    for (unsigned i = 0; i < 4; i++) v[i] = lanes_load(x + VECTOR * i);
    lanes_deal(v);
    hadamard_four(v);
    lanes_deal(v);
    lanes_regroup(v);
    hadamard_four(v);
    lanes_regroup(v);
    hadamard_four(v);
    for (unsigned i = 0; i < 4; i++) lanes_store(x + VECTOR * i, v[i]);
}

SIMD_INLINE void hadamard_two(float *x, uint64_t apart) {
    for (uint64_t i = 0; i < apart; i += VECTOR) {
        const lanes low = lanes_load(x + i), high = lanes_load(x + apart + i);
        lanes_store(x + i, lanes_add(low, high));
        lanes_store(x + apart + i, lanes_sub(low, high));
    }
}

SIMD_TARGET static void hadamard(float *x, uint64_t n) {
    uint64_t apart = 64;
    if (n < 64) { /* 16 or 32 */
        for (apart = 1; apart < VECTOR; apart *= 2)
            for (uint64_t i = 0; i < n; i++) {
                if (i & apart) continue;
                const float low = x[i], high = x[i + apart];
                x[i] = low + high;
                x[i + apart] = low - high;
            }
    } else {
        for (uint64_t i = 0; i < n; i += 64) hadamard_near(x + i);
    }
    for (; 4 * apart <= n; apart *= 4)
        for (uint64_t start = 0; start < n; start += 4 * apart)
            for (uint64_t i = start; i < start + apart; i += VECTOR) {
                lanes v[4];
                for (unsigned j = 0; j < 4; j++) v[j] = lanes_load(x + i + j * apart);
                hadamard_four(v);
                for (unsigned j = 0; j < 4; j++) lanes_store(x + i + j * apart, v[j]);
            }
    for (; apart < n; apart *= 2)
        for (uint64_t start = 0; start < n; start += 2 * apart) hadamard_two(x + start, apart);
}

#define RECURRENT_KERNELS \
    .recurrent = {.conv = conv, .delta = delta, .gate = gate, .hadamard = hadamard}

#endif
