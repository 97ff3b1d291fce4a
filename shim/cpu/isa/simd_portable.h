/* Sixteen lanes in C alone: four vectors of the compiler's, which every processor has. */
#ifndef CPU_SIMD_PORTABLE_H
#define CPU_SIMD_PORTABLE_H

#include <stdint.h>
#include <string.h>

#include "cpu/half.h"
#include "cpu/vector.h"

#define SIMD_TARGET
#define SIMD_INLINE static inline __attribute__((always_inline))
#define SIMD_ROW    1u /* vectors of a row that attention sums in registers, for 4 heads */

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

SIMD_INLINE lanes lanes_of_doubles(const double *from) {
    float value[16];
    for (unsigned i = 0; i < 16; i++) value[i] = (float)from[i];
    return lanes_load(value);
}

SIMD_INLINE float lanes_sum(lanes a) {
    const cpu_four four = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

#undef EACH
#endif
