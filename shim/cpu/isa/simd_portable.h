/* Sixteen lanes in C alone: four vectors of the compiler's, which every processor has. */
#ifndef CPU_SIMD_PORTABLE_H
#define CPU_SIMD_PORTABLE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cpu/half.h"
#include "cpu/vector.h"

#define SIMD_TARGET
#define SIMD_INLINE static inline __attribute__((always_inline))
#define SIMD_ROW    1u /* vectors of a row that attention sums in registers, for 4 heads */
#define SIMD_DELTA  2u /* vectors of a state that the delta rule sums in registers */

typedef struct lanes {
    cpu_four v[4];
} lanes;

#define EACH(expression)                                         \
    lanes result;                                                \
    for (unsigned i = 0; i < 4; i++) result.v[i] = (expression); \
    return result

SIMD_INLINE lanes lanes_of(float value) { EACH(((cpu_four){value, value, value, value})); }

SIMD_INLINE lanes lanes_zero(void) { return lanes_of(0); }

SIMD_INLINE lanes lanes_load(const float *from) { EACH(cpu_load_four(from + 4 * i)); }

SIMD_INLINE void lanes_store(float *to, lanes a) { memcpy(to, &a, sizeof a); }

SIMD_INLINE lanes lanes_add(lanes a, lanes b) { EACH(a.v[i] + b.v[i]); }

SIMD_INLINE lanes lanes_div(lanes a, lanes b) { EACH(a.v[i] / b.v[i]); }

SIMD_INLINE lanes lanes_sub(lanes a, lanes b) { EACH(a.v[i] - b.v[i]); }

SIMD_INLINE lanes lanes_mul(lanes a, lanes b) { EACH(a.v[i] * b.v[i]); }

/* a * b + c, rounded twice. */
SIMD_INLINE lanes lanes_fma(lanes a, lanes b, lanes c) { EACH(a.v[i] * b.v[i] + c.v[i]); }

typedef int32_t four_words __attribute__((vector_size(16)));

/* a where `mask` is all ones, b where it is all zeros. */
SIMD_INLINE cpu_four select_four(four_words mask, cpu_four a, cpu_four b) {
    return (cpu_four)(((four_words)a & mask) | ((four_words)b & ~mask));
}

/* Lane by lane a where a > b, else b: b where one is NaN. */
SIMD_INLINE lanes lanes_larger(lanes a, lanes b) {
    EACH(select_four((four_words)(a.v[i] > b.v[i]), a.v[i], b.v[i]));
}

SIMD_INLINE lanes lanes_smaller(lanes a, lanes b) {
    EACH(select_four((four_words)(a.v[i] < b.v[i]), a.v[i], b.v[i]));
}

/* 2^n for whole n from -126 to 127. */
SIMD_INLINE lanes lanes_power(lanes n) {
    const float shifter = 12582912.0f; /* 1.5 * 2^23: leaves n in the low bits */
    const int32_t at = (int32_t)cpu_bits_of_float(shifter) - 127;
    EACH((cpu_four)(((four_words)(n.v[i] + shifter) - at) << 23));
}

SIMD_INLINE lanes lanes_of_halves(const uint16_t *from) {
    float value[16];
    cpu_floats_of_halves(from, value, 16);
    return lanes_load(value);
}

SIMD_INLINE lanes lanes_of_half(uint16_t half) { return lanes_of(cpu_float_of_half(half)); }

SIMD_INLINE void lanes_to_halves(uint16_t *to, lanes a) {
    float value[16];
    lanes_store(value, a);
    for (unsigned i = 0; i < 16; i++) to[i] = cpu_half_of_float(value[i]);
}

SIMD_INLINE lanes lanes_of_bf16(const uint16_t *from) {
    float value[16];
    for (unsigned i = 0; i < 16; i++) value[i] = cpu_float_of_bf16(from[i]);
    return lanes_load(value);
}

SIMD_INLINE lanes lanes_of_bytes(const int8_t *from) {
    float value[16];
    for (unsigned i = 0; i < 16; i++) value[i] = from[i];
    return lanes_load(value);
}

/* And a half more where the lane's bit is set. */
SIMD_INLINE lanes lanes_of_bytes_and_bits(const int8_t *from, uint32_t bits) {
    float value[16];
    for (unsigned i = 0; i < 16; i++) value[i] = (float)from[i] + (bits >> i & 1 ? 0.5f : 0.0f);
    return lanes_load(value);
}

SIMD_INLINE lanes lanes_of_doubles(const double *from) {
    float value[16];
    for (unsigned i = 0; i < 16; i++) value[i] = (float)from[i];
    return lanes_load(value);
}

SIMD_INLINE float lanes_sum(lanes a) {
    const cpu_four four = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

typedef struct words {
    uint32_t v[16];
} words;

#define EACH_WORD(expression)                                     \
    words result;                                                 \
    for (unsigned i = 0; i < 16; i++) result.v[i] = (expression); \
    return result

SIMD_INLINE words words_load(const uint32_t *from) { EACH_WORD(from[i]); }

SIMD_INLINE void words_store(uint32_t *to, words a) { memcpy(to, &a, sizeof a); }

SIMD_INLINE words words_of(uint32_t value) { EACH_WORD(value); }

SIMD_INLINE words words_add(words a, words b) { EACH_WORD(a.v[i] + b.v[i]); }

SIMD_INLINE words words_sub(words a, words b) { EACH_WORD(a.v[i] - b.v[i]); }

SIMD_INLINE words words_and(words a, words b) { EACH_WORD(a.v[i] & b.v[i]); }

SIMD_INLINE words words_xor(words a, words b) { EACH_WORD(a.v[i] ^ b.v[i]); }

SIMD_INLINE words words_shift(words a, unsigned bits) { EACH_WORD(a.v[i] >> bits); }

SIMD_INLINE words words_shift_left(words a, unsigned bits) { EACH_WORD(a.v[i] << bits); }

SIMD_INLINE words words_shift_by(words a, words bits) { EACH_WORD(a.v[i] >> bits.v[i]); }

SIMD_INLINE words words_shift_left_by(words a, words bits) { EACH_WORD(a.v[i] << bits.v[i]); }

/* Both words of a * b. */
SIMD_INLINE void words_product(words a, words b, words *high, words *low) {
    for (unsigned i = 0; i < 16; i++) {
        const uint64_t product = (uint64_t)a.v[i] * b.v[i];
        high->v[i] = (uint32_t)(product >> 32);
        low->v[i] = (uint32_t)product;
    }
}

/* Whole numbers towards 0, which must fit. */
SIMD_INLINE words words_of_whole(lanes a) { EACH_WORD((uint32_t)(int32_t)a.v[i / 4][i % 4]); }

SIMD_INLINE lanes lanes_of_whole(words a) {
    EACH(((cpu_four){(float)(int32_t)a.v[4 * i], (float)(int32_t)a.v[4 * i + 1],
                     (float)(int32_t)a.v[4 * i + 2], (float)(int32_t)a.v[4 * i + 3]}));
}

SIMD_INLINE words words_of_bits(lanes a) {
    words result;
    memcpy(&result, &a, sizeof a);
    return result;
}

/* A bit for each lane of all ones. */
SIMD_INLINE uint32_t bits_of_masks(const int32_t masks[16]) {
    uint32_t bits = 0;
    for (unsigned i = 0; i < 16; i++) bits |= (uint32_t)masks[i] & 1u << i;
    return bits;
}

/* Bit by bit whether a lane of a is at least that of b: not where one is NaN. */
SIMD_INLINE uint32_t lanes_reach(lanes a, lanes b) {
    four_words any = {0, 0, 0, 0}, mask[4];
    int32_t masks[16];
    uint64_t halves[2];
    for (unsigned i = 0; i < 4; i++) any |= mask[i] = (four_words)(a.v[i] >= b.v[i]);
    memcpy(halves, &any, sizeof any);
    if ((halves[0] | halves[1]) == 0) return 0;
    memcpy(masks, mask, sizeof mask);
    return bits_of_masks(masks);
}

/* Bit by bit whether a <= b, both signed. */
SIMD_INLINE uint32_t words_up_to(words a, words b) {
    int32_t masks[16];
    for (unsigned i = 0; i < 16; i++) masks[i] = -((int32_t)a.v[i] <= (int32_t)b.v[i]);
    return bits_of_masks(masks);
}

/* The lanes whose bits are set, -inf in place of the others. */
SIMD_INLINE lanes lanes_keep(lanes a, uint32_t bits) {
    float value[16];
    lanes_store(value, a);
    for (unsigned i = 0; i < 16; i++) value[i] = bits >> i & 1 ? value[i] : -INFINITY;
    return lanes_load(value);
}

/* The lanes whose bits are set, in order, then anything up to 16 lanes. */
SIMD_INLINE void lanes_pack(float *to, lanes a, uint32_t bits) {
    float from[16];
    lanes_store(from, a);
    for (unsigned i = 0; i < 16; i++) {
        *to = from[i];
        to += bits >> i & 1;
    }
}

SIMD_INLINE float lanes_largest(lanes a) {
    float largest = a.v[0][0];
    for (unsigned i = 1; i < 16; i++)
        largest = a.v[i / 4][i % 4] > largest ? a.v[i / 4][i % 4] : largest;
    return largest;
}

/* Of four vectors of four fours each: lane 4 i + j of the new vector k is lane 4 i + k of the old
 * vector j. */
SIMD_INLINE void lanes_deal(lanes v[4]) {
    for (unsigned i = 0; i < 4; i++) {
        const cpu_four old[4] = {v[0].v[i], v[1].v[i], v[2].v[i], v[3].v[i]};
        for (unsigned k = 0; k < 4; k++)
            v[k].v[i] = (cpu_four){old[0][k], old[1][k], old[2][k], old[3][k]};
    }
}

/* Of four vectors of four fours each: four i of the new vector k is four k of the old vector i. */
SIMD_INLINE void lanes_regroup(lanes v[4]) {
    for (unsigned i = 0; i < 4; i++)
        for (unsigned k = i + 1; k < 4; k++) {
            const cpu_four four = v[i].v[k];
            v[i].v[k] = v[k].v[i];
            v[k].v[i] = four;
        }
}

#undef EACH_WORD
#undef EACH
#endif
