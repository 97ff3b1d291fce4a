/* IEEE half and bfloat16 by bits: exact, without a branch, so that loops over arrays vectorise. */
#ifndef OXB_CPU_HALF_H
#define OXB_CPU_HALF_H

#include <stdint.h>
#include <string.h>

static inline float oxb_float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t oxb_bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline int oxb_half_is_finite(uint16_t half)
{
    return (half & 0x7c00u) != 0x7c00u;
}

/* Subnormal halves go through a subtraction of normal floats, which is exact and does not depend on
 * the processor's treatment of denormals. */
static inline float oxb_float_of_half(uint16_t half)
{
    const int32_t magnitude = (int32_t)(half & 0x7fffu) << 13;
    const int32_t rebias = 112 << 23;
    const int32_t normal = magnitude + rebias + (magnitude >= 31 << 23 ? rebias : 0);
    const float tiny =
        oxb_float_of_bits((uint32_t)(magnitude + (113 << 23))) - oxb_float_of_bits(113u << 23);
    const uint32_t bits = magnitude < 1 << 23 ? oxb_bits_of_float(tiny) : (uint32_t)normal;
    return oxb_float_of_bits(bits | (uint32_t)(half & 0x8000u) << 16);
}

/* Round to nearest, ties to even; too large becomes infinite, NaN stays NaN. */
static inline uint16_t oxb_half_of_float(float value)
{
    const uint32_t all = oxb_bits_of_float(value);
    const int32_t magnitude = (int32_t)(all & 0x7fffffffu);
    /* Adding 0.5 leaves the units of a subnormal half in the last bits, rounded. */
    const uint32_t tiny =
        oxb_bits_of_float(oxb_float_of_bits((uint32_t)magnitude) + 0.5f) - oxb_bits_of_float(0.5f);
    const uint32_t normal =
        ((uint32_t)magnitude - (112u << 23) + 0xfffu + (((uint32_t)magnitude >> 13) & 1u)) >> 13;
    const uint32_t huge = magnitude > 255 << 23 ? 0x7e00u : 0x7c00u;
    uint32_t bits = magnitude < 113 << 23 ? tiny : normal;
    bits = magnitude >= 143 << 23 ? huge : bits;
    return (uint16_t)(bits | (all >> 16 & 0x8000u));
}

static inline float oxb_float_of_bf16(uint16_t value)
{
    return oxb_float_of_bits((uint32_t)value << 16);
}

#endif
