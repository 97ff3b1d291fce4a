/* Sums of squares, in float64: no length overflows. */
#ifndef CPU_SQUARES_H
#define CPU_SQUARES_H

#include <math.h>
#include <stdint.h>

#define CPU_SQUARE_LANES 8u

static inline double cpu_squares(const float *x, uint64_t n) {
    double lane[CPU_SQUARE_LANES] = {0};
    uint64_t i = 0;
    for (; i + CPU_SQUARE_LANES <= n; i += CPU_SQUARE_LANES)
        for (unsigned j = 0; j < CPU_SQUARE_LANES; j++)
            lane[j] += (double)x[i + j] * (double)x[i + j];
    double sum =
        ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
    for (; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

/* 1 / sqrt(mean(x^2) + eps) */
static inline double cpu_inverse_rms(const float *x, uint64_t n, float eps) {
    return 1.0 / sqrt(cpu_squares(x, n) / (double)n + (double)eps);
}

#endif
