/* Rows of F32, F16, BF16 and Q8_0 weights times a vector: what each variant compiles for its
 * registers. Included after its simd_*.h. */
#ifndef CPU_DENSE_H
#define CPU_DENSE_H

#include <stdint.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/half.h"

#define CHAINS 4u /* sums side by side, so that an addition does not wait for the one before */
#define WIDE   CPU_LANES

/* Weights [i, i + 16) of a row. Those of Q8_0 are exact: 8 bits times 11, so that an infinite scale
 * needs no other path. */
SIMD_INLINE lanes dense_weights(uint32_t format, const uint8_t *row, uint64_t i) {
    switch (format) {
    case OXB_DEVICE_FORMAT_F32: return lanes_load((const float *)(const void *)row + i);
    case OXB_DEVICE_FORMAT_F16: return lanes_of_halves((const uint16_t *)(const void *)row + i);
    case OXB_DEVICE_FORMAT_BF16: return lanes_of_bf16((const uint16_t *)(const void *)row + i);
    default: {
        const uint8_t *block = row + i / 32 * 34;
        uint16_t scale;
        memcpy(&scale, block, sizeof scale);
        return lanes_mul(lanes_of_bytes((const int8_t *)block + 2 + i % 32), lanes_of_half(scale));
    }
    }
}

/* The weights past the last whole vector, of formats that have any number. */
SIMD_INLINE lanes last_product(uint32_t format, const uint8_t *row, const float *x, uint64_t from,
                               uint64_t k) {
    uint8_t weights[WIDE * sizeof(float)] = {0};
    float rest[WIDE] = {0};
    const uint64_t size = format == OXB_DEVICE_FORMAT_F32 ? 4 : 2;
    memcpy(weights, row + from * size, (size_t)((k - from) * size));
    memcpy(rest, x + from, (size_t)((k - from) * sizeof *x));
    return lanes_mul(dense_weights(format, weights, 0), lanes_load(rest));
}

SIMD_INLINE double dense_row(uint32_t format, const uint8_t *row, const float *x, uint64_t k) {
    const uint64_t whole = k / WIDE * WIDE;
    double result = 0;
    for (uint64_t i = 0; i < whole;) {
        const uint64_t end = whole - i < CPU_FLUSH ? whole : i + CPU_FLUSH;
        lanes sum[CHAINS] = {lanes_zero(), lanes_zero(), lanes_zero(), lanes_zero()};
        for (; i + CHAINS * WIDE <= end; i += CHAINS * WIDE)
            for (unsigned c = 0; c < CHAINS; c++)
                sum[c] = lanes_fma(dense_weights(format, row, i + c * WIDE),
                                   lanes_load(x + i + c * WIDE), sum[c]);
        for (; i < end; i += WIDE)
            sum[0] = lanes_fma(dense_weights(format, row, i), lanes_load(x + i), sum[0]);
        result +=
            (double)lanes_sum(lanes_add(lanes_add(sum[0], sum[1]), lanes_add(sum[2], sum[3])));
    }
    return whole == k ? result : result + (double)lanes_sum(last_product(format, row, x, whole, k));
}

SIMD_INLINE void dense_rows_of(uint32_t format, const uint8_t *row, uint64_t stride, uint64_t n,
                               const float *x, uint64_t k, double *sums) {
    for (uint64_t i = 0; i < n; i++, row += stride) sums[i] = dense_row(format, row, x, k);
}

SIMD_TARGET static void dense_rows(uint32_t format, const uint8_t *row, uint64_t stride, uint64_t n,
                                   const float *x, uint64_t k, double *sums) {
    switch (format) {
    case OXB_DEVICE_FORMAT_F32:
        dense_rows_of(OXB_DEVICE_FORMAT_F32, row, stride, n, x, k, sums);
        break;
    case OXB_DEVICE_FORMAT_F16:
        dense_rows_of(OXB_DEVICE_FORMAT_F16, row, stride, n, x, k, sums);
        break;
    case OXB_DEVICE_FORMAT_BF16:
        dense_rows_of(OXB_DEVICE_FORMAT_BF16, row, stride, n, x, k, sums);
        break;
    default: dense_rows_of(OXB_DEVICE_FORMAT_Q8_0, row, stride, n, x, k, sums); break;
    }
}

#define DENSE_KERNELS .dense = dense_rows

#endif
