/* The exponential in float32 without a branch, so that loops over it vectorise: within 2e-7 of the true
 * value, relatively; infinite above 88.73, 0 below -104, NaN for NaN. */
#ifndef OXB_CPU_EXP_H
#define OXB_CPU_EXP_H

#include <stdint.h>

#include "half.h"

static inline float oxb_exp(float x)
{
    const float shifter = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    const float shifted = x * 1.44269504f + shifter;
    const float n = shifted - shifter;
    const int32_t power = (int32_t)(oxb_bits_of_float(shifted) - oxb_bits_of_float(shifter));
    /* ln 2 in two parts: n times the first is exact. */
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    /* Minimax on |r| <= ln 2 / 2. */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + r + 1.0f;
    /* 2^power in two factors, so that the result may be subnormal or infinite. */
    const int32_t half = power >> 1;
    const float first = oxb_float_of_bits((uint32_t)(half + 127) << 23);
    const float second = oxb_float_of_bits((uint32_t)(power - half + 127) << 23);
    return p * first * second;
}

#endif
