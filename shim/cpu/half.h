/* IEEE half and bfloat16 by bits: exact, without a branch, so that loops over arrays vectorise. */
#ifndef CPU_HALF_H
#define CPU_HALF_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline float cpu_float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t cpu_bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* All bits set where `condition` holds. Masks, not ?:, because GCC 12 does not vectorise a
 * selection between integer and floating point. */
static inline uint32_t cpu_mask(int condition) { return 0u - (uint32_t)condition; }

/* A subnormal half becomes 2^-14 + itself, from which 2^-14 is taken away exactly: no float32
 * denormal arises, which would be slow on some processors and zero under flush-to-zero. */
static inline float cpu_float_of_half(uint16_t half) {
    const uint32_t magnitude = (uint32_t)(half & 0x7fffu) << 13;
    const uint32_t not_finite = cpu_mask(magnitude >= 31u << 23);
    const uint32_t tiny = cpu_mask(magnitude < 1u << 23);
    const uint32_t bits = magnitude + (112u << 23) + (not_finite & 112u << 23) + (tiny & 1u << 23);
    const float value = cpu_float_of_bits(bits) - cpu_float_of_bits(tiny & 113u << 23);
    return cpu_float_of_bits(cpu_bits_of_float(value) | (uint32_t)(half & 0x8000u) << 16);
}

/* A row of halves at a third of the cost: shifted into place, they are 2^112 too small, subnormal
 * ones included. Infinity and NaN come out finite, so that a row that holds one is converted again.
 */
static inline void cpu_floats_of_halves(const uint16_t *from, float *to, size_t n) {
    int16_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        const int32_t high = (int32_t)((uint32_t)from[i] << 16);
        const int16_t magnitude = (int16_t)(from[i] & 0x7fffu);
        largest = magnitude > largest ? magnitude : largest;
        to[i] = cpu_float_of_bits((uint32_t)(high >> 3) & 0x8fffe000u) * 0x1p112f;
    }
    if (largest < 0x7c00) return;
    for (size_t i = 0; i < n; i++) to[i] = cpu_float_of_half(from[i]);
}

/* Round to nearest, ties to even; too large becomes infinite, NaN stays NaN. */
static inline uint16_t cpu_half_of_float(float value) {
    const uint32_t all = cpu_bits_of_float(value);
    const uint32_t magnitude = all & 0x7fffffffu;
    const uint32_t tiny = cpu_mask(magnitude < 113u << 23);
    const uint32_t large = cpu_mask(magnitude >= 143u << 23);
    const uint32_t nan = cpu_mask(magnitude > 255u << 23);
    /* Adding 0.5 leaves the units of a subnormal half in the last bits, rounded. */
    const uint32_t small =
        cpu_bits_of_float(cpu_float_of_bits(magnitude & tiny) + 0.5f) - (126u << 23);
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t rest = (normal & ~large) | (large & 0x7c00u) | (nan & 0x0200u);
    return (uint16_t)((small & tiny) | (rest & ~tiny) | (all >> 16 & 0x8000u));
}

static inline float cpu_float_of_bf16(uint16_t value) {
    return cpu_float_of_bits((uint32_t)value << 16);
}

#endif
