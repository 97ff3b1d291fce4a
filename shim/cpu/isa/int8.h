/* Strips of rows times vectors of 8-bit activations: what each variant compiles for its registers.
 *
 * A vector is cut into blocks of CPU_INT8_BLOCK activations, each of which is a whole number from
 * -127 to 127 times the block's scale. The codes of a strip are expanded to bytes first, four
 * weights of 16 rows to a register, which many vectors share. A dot product of codes is exact; the
 * scales are applied in float32. Included after the simd_*.h of the variant.
 */
#ifndef CPU_INT8_H
#define CPU_INT8_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cpu/panels.h"
#include "isa.h"

#define LANES       CPU_LANES
#define BLOCK_WORDS (CPU_INT8_BLOCK / 4)
#define ROUNDER     12582912.0f /* 1.5 * 2^23: to add and to take off again leaves a whole number */
#define TINY \
    2e-36f /* a block of smaller activations counts as zeros: its scale would be subnormal */

_Static_assert(CPU_INT8_BLOCK == LANES, "a block is one vector of lanes");

/* A block that is not finite has a scale of NaN: whoever multiplies by it sees a NaN and goes by
 * the definition. */
SIMD_TARGET static void quantize(const float *x, uint64_t k, uint32_t group, void *to) {
    int8_t *q = to;
    float *scales = (float *)(void *)(q + k), *sums = scales + k / LANES;
    const uint64_t blocks = group / LANES;
    for (uint64_t i = 0; i < k / LANES; i++, x += LANES, q += LANES) {
        const lanes value = lanes_load(x);
        const float largest = lanes_largest_magnitude(value);
        const float inverse = largest > TINY ? 127.0f / largest : 0.0f;
        const lanes whole =
            lanes_sub(lanes_fma(value, lanes_of(inverse), lanes_of(ROUNDER)), lanes_of(ROUNDER));
        scales[i] = largest < INFINITY ? largest * (1.0f / 127.0f) : NAN;
        lanes_to_bytes(q, whole);
        const float sum = scales[i] * lanes_sum(whole);
        sums[i / blocks] = i % blocks == 0 ? -sum : sums[i / blocks] - sum;
    }
}

/* Fields of 1 or 2 bits, known to the compiler; a bit becomes 0 or 2. */
SIMD_INLINE void expand_fields(uint32_t *to, const uint32_t *codes, uint64_t n_groups,
                               uint64_t stride, uint64_t n_words, unsigned bits) {
    const words mask = words_of(bits == 1 ? 0x01010101u : 0x03030303u);
    for (uint64_t g = 0; g < n_groups; g++, codes += stride)
        for (uint64_t word = 0; word < n_words; word++) {
            words code = words_load(codes + word * LANES);
            for (unsigned field = 0; field < 8 / bits; field++, to += LANES) {
                const words four = words_and(code, mask);
                words_store(to, bits == 1 ? words_add(four, four) : four);
                code = words_shift(code, bits);
            }
        }
}

SIMD_TARGET static void expand_bits(uint32_t *to, const uint32_t *codes, const uint16_t *beside,
                                    uint64_t n_groups, uint64_t stride, uint32_t group) {
    (void)beside;
    expand_fields(to, codes, n_groups, stride, group / 32, 1);
}

SIMD_TARGET static void expand_pairs(uint32_t *to, const uint32_t *codes, const uint16_t *beside,
                                     uint64_t n_groups, uint64_t stride, uint32_t group) {
    (void)beside;
    expand_fields(to, codes, n_groups, stride, group / 16, 2);
}

#if SIMD_TRITS
#define SIGNED(w0, w1, w2) \
    (uint32_t)((w0) + 1) | (uint32_t)((w1) + 1) << 8 | (uint32_t)((w2) + 1) << 16
#define SIZES(s)                                                                                  \
    SIGNED(0, 0, 0), SIGNED(s 1, 0, 0), SIGNED(-(s 1), s 1, 0), SIGNED(0, s 1, 0),                \
        SIGNED(s 1, s 1, 0), SIGNED(-(s 1), -(s 1), s 1), SIGNED(0, -(s 1), s 1),                 \
        SIGNED(s 1, -(s 1), s 1), SIGNED(-(s 1), 0, s 1), SIGNED(0, 0, s 1), SIGNED(s 1, 0, s 1), \
        SIGNED(-(s 1), s 1, s 1), SIGNED(0, s 1, s 1), SIGNED(s 1, s 1, s 1), 0, 0

/* The three codes of a field in three bytes. */
static const uint32_t trit_bytes[2][16] = {{SIZES(+)}, {SIZES(-)}};

/* The codes of a field that is turned down to the bottom of its word. */
SIMD_INLINE words three_codes(table16 positive, table16 negative, words field) {
    const words plus = words_of_lanes(table16_look_up(positive, field));
    const words minus = words_of_lanes(table16_look_up(negative, field));
    return words_select(field, minus, plus);
}

/* Four fields are twelve weights in a row, three words. The last two of 42 and two weights beside
 * them are two. */
SIMD_TARGET static void expand_trits(uint32_t *to, const uint32_t *codes, const uint16_t *beside,
                                     uint64_t n_groups, uint64_t stride, uint32_t group) {
    const table16 plus = table16_load((const float *)(const void *)trit_bytes[0]);
    const table16 minus = table16_load((const float *)(const void *)trit_bytes[1]);
    (void)beside;
    (void)group;
    for (uint64_t g = 0; g < n_groups; g++, codes += stride) {
        words four[4], word = words_of(0);
#pragma GCC unroll 42
        for (unsigned field = 0; field < 42; field++) {
            word = field % 6 == 0 ? words_load(codes + field / 6 * LANES) : words_next_trits(word);
            four[field % 4] = three_codes(plus, minus, word);
            if (field % 4 != 3) continue;
            words_store(to, words_or(four[0], words_shift_left(four[1], 24)));
            words_store(to + LANES,
                        words_or(words_shift(four[1], 8), words_shift_left(four[2], 16)));
            words_store(to + 2 * LANES,
                        words_or(words_shift(four[2], 16), words_shift_left(four[3], 8)));
            to += 3 * LANES;
        }
        const words three = words_of(3);
        const words low = words_and(words_shift(words_load(codes), 29), three);
        const words high = words_and(words_shift(words_load(codes + LANES), 29), three);
        words_store(to, words_or(four[0], words_shift_left(four[1], 24)));
        words_store(to + LANES,
                    words_or(words_or(words_shift(four[1], 8), words_shift_left(low, 16)),
                             words_shift_left(high, 24)));
        to += 2 * LANES;
    }
}
#define EXPAND_TRITS [CPU_TRITS] = expand_trits,
#else
#define EXPAND_TRITS
#endif

/* The next digit of each unit. */
SIMD_INLINE words next_digit(words *units) {
    const words three = words_of(0x00030003u), digit = halves_high(*units, three);
    *units = halves_low(*units, three);
    return digit;
}

/* Digit n of the four bytes of a word is a word of four weights in a row: PTQ1_0 keeps 16 such
 * bytes together, then 8, then two. */
SIMD_TARGET static void expand_digits(uint32_t *to, const uint32_t *codes, const uint16_t *beside,
                                      uint64_t n_groups, uint64_t stride, uint32_t group) {
    const uint64_t beside_stride = stride / CPU_DIGIT_WORDS * 2;
    (void)group;
    for (uint64_t g = 0; g < n_groups; g++, codes += stride, beside += beside_stride) {
        for (unsigned w = 0; w < CPU_DIGIT_WORDS; w++) {
            words units = words_load(codes + w * LANES), first[5];
            const unsigned at = w < 4 ? w : 16 + w, apart = w < 4 ? 4 : 2;
#pragma GCC unroll 5
            for (unsigned n = 0; n < 5; n++) first[n] = next_digit(&units);
#pragma GCC unroll 5
            for (unsigned n = 0; n < 5; n++)
                words_store(to + (at + n * apart) * LANES,
                            words_or(first[n], words_shift_left(next_digit(&units), 8)));
        }
        words unit = words_of_units(beside), first[4];
#pragma GCC unroll 4
        for (unsigned n = 0; n < 4; n++) first[n] = next_digit(&unit);
#pragma GCC unroll 2
        for (unsigned n = 0; n < 2; n++) {
            const words low = words_or(first[2 * n], words_shift_left(next_digit(&unit), 8));
            const words high = words_or(first[2 * n + 1], words_shift_left(next_digit(&unit), 8));
            words_store(to + (30 + n) * LANES, words_or(low, words_shift_left(high, 16)));
        }
        to += 32 * LANES;
    }
}

/* `n` strips times `v` vectors, known to the compiler. */
SIMD_INLINE void int8_strips(const cpu_int8_strips *w, unsigned first, unsigned n,
                             unsigned first_vector, unsigned v, double *sums) {
    const uint32_t *codes = w->codes + first * w->code_stride;
    const uint16_t *scales = w->scales + first * w->strip_scales;
    const uint64_t stride = w->q_stride;
    const int8_t *q = w->q + first_vector * stride;
    const char *q_scale = (const char *)w->q_scales + first_vector * stride;
    const char *q_sum = (const char *)w->q_sums + first_vector * stride;
    lanes total[INT8_SUMS];
    for (unsigned t = 0; t < n * v; t++) total[t] = lanes_zero();
    for (uint64_t g = 0; g < w->n_groups; g++, q_sum += sizeof(float)) {
        lanes sum[INT8_SUMS];
#pragma GCC unroll 8
        for (unsigned i = 0; i < v; i++) {
            float start;
            memcpy(&start, q_sum + i * stride, sizeof start);
#pragma GCC unroll 4
            for (unsigned t = 0; t < n; t++) sum[i * n + t] = lanes_of(start);
        }
        for (uint64_t block = 0; block < w->group_size / CPU_INT8_BLOCK;
             block++, q_scale += sizeof(float)) {
            dots dot[INT8_SUMS];
#pragma GCC unroll 4
            for (unsigned word = 0; word < BLOCK_WORDS; word++, codes += LANES, q += 4) {
                words code[INT8_STRIPS];
#pragma GCC unroll 4
                for (unsigned t = 0; t < n; t++) code[t] = words_load(codes + t * w->code_stride);
#pragma GCC unroll 8
                for (unsigned i = 0; i < v; i++) {
                    uint32_t four;
                    memcpy(&four, q + i * stride, sizeof four);
                    const words x = words_of(four);
#pragma GCC unroll 4
                    for (unsigned t = 0; t < n; t++)
                        dot[i * n + t] =
                            word == 0 ? dots_of(code[t], x) : dots_add(dot[i * n + t], code[t], x);
                }
            }
#pragma GCC unroll 8
            for (unsigned i = 0; i < v; i++) {
                float scale;
                memcpy(&scale, q_scale + i * stride, sizeof scale);
#pragma GCC unroll 4
                for (unsigned t = 0; t < n; t++)
                    sum[i * n + t] =
                        lanes_fma(lanes_of_dots(dot[i * n + t]), lanes_of(scale), sum[i * n + t]);
            }
        }
#pragma GCC unroll 4
        for (unsigned t = 0; t < n; t++) {
            const lanes scale = lanes_of_halves(scales + t * w->strip_scales);
#pragma GCC unroll 8
            for (unsigned i = 0; i < v; i++)
                total[i * n + t] = lanes_fma(sum[i * n + t], scale, total[i * n + t]);
        }
        scales += w->scale_stride;
    }
    for (unsigned i = 0; i < v; i++)
        for (unsigned t = 0; t < n; t++)
            lanes_to_doubles(sums + (first_vector + i) * w->stride + (first + t) * LANES,
                             total[i * n + t], w->add);
}

SIMD_INLINE void int8_vectors(const cpu_int8_strips *w, unsigned first_vector, unsigned v,
                              double *sums) {
    unsigned strip = 0;
    for (; strip + INT8_STRIPS <= w->n_strips; strip += INT8_STRIPS)
        int8_strips(w, strip, INT8_STRIPS, first_vector, v, sums);
#if INT8_STRIPS > 1
    for (; strip < w->n_strips; strip++) int8_strips(w, strip, 1, first_vector, v, sums);
#endif
}

/* In runs as equal as can be: a run of one vector costs almost as much as one of several. */
SIMD_TARGET static void int8_rows(const cpu_int8_strips *w, double *sums) {
    unsigned left = w->n_vectors, runs = (left + INT8_VECTORS - 1) / INT8_VECTORS;
    for (unsigned first = 0; runs > 0; runs--) {
        const unsigned v = (left + runs - 1) / runs;
        switch (v) {
#define VECTORS(v) \
    case v: int8_vectors(w, first, v, sums); break
#if INT8_VECTORS > 4
            VECTORS(6);
            VECTORS(5);
#endif
#if INT8_VECTORS > 2
            VECTORS(4);
            VECTORS(3);
#endif
            VECTORS(2);
        default: int8_vectors(w, first, 1, sums);
        }
        first += v;
        left -= v;
    }
}

#define INT8_KERNELS                         \
    .quantize = quantize,                    \
    .expand = {[CPU_BITS] = expand_bits,     \
               [CPU_PAIRS] = expand_pairs,   \
               [CPU_DIGITS] = expand_digits, \
               EXPAND_TRITS},                \
    .rows = int8_rows

#endif
