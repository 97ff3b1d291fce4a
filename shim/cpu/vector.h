/* Sums of products in a fixed order. The lanes are vectors by name: GCC 12 leaves a plain array of
 * partial sums in memory. */
#ifndef OXB_CPU_VECTOR_H
#define OXB_CPU_VECTOR_H

#include <stdint.h>
#include <string.h>

typedef float oxb_four __attribute__((vector_size(16)));

static inline oxb_four oxb_load_four(const float *from)
{
    oxb_four value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* In float32: `n` small, or the result added up in float64. */
static inline float oxb_dot(const float *a, const float *b, uint64_t n)
{
    oxb_four lane[4] = {{0}, {0}, {0}, {0}};
    const uint64_t whole = n / 16 * 16;
    for (uint64_t i = 0; i < whole; i += 16)
        for (unsigned j = 0; j < 4; j++)
            lane[j] += oxb_load_four(a + i + 4 * j) * oxb_load_four(b + i + 4 * j);
    const oxb_four all = (lane[0] + lane[1]) + (lane[2] + lane[3]);
    float sum = (all[0] + all[2]) + (all[1] + all[3]);
    for (uint64_t i = whole; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

#endif
