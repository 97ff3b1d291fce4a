/* F32, F16, BF16 and Q8_0 weights as float32. */
#include <stdint.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/half.h"

#define Q8_BLOCK 32u
#define Q8_BYTES 34u

static uint16_t half_at(const uint8_t *address) {
    uint16_t value;
    memcpy(&value, address, sizeof value);
    return value;
}

/* Exact: an 8-bit code times an 11-bit scale fits float32, so an infinite scale needs no other
 * path. */
static void q8_0_weights(const uint8_t *row, uint64_t first, uint64_t n, float *w) {
    for (uint64_t i = 0; i < n; i += Q8_BLOCK) {
        const uint8_t *block = row + (first + i) / Q8_BLOCK * Q8_BYTES;
        const float scale = cpu_float_of_half(half_at(block));
        int8_t q[Q8_BLOCK];
        memcpy(q, block + 2, sizeof q);
        for (unsigned j = 0; j < Q8_BLOCK; j++) w[i + j] = (float)q[j] * scale;
    }
}

void cpu_dense_weights(uint32_t format, const uint8_t *row, uint64_t first, uint64_t n, float *w) {
    switch (format) {
    case OXB_DEVICE_FORMAT_F32: memcpy(w, row + 4 * first, (size_t)n * 4); break;
    case OXB_DEVICE_FORMAT_F16:
        cpu_floats_of_halves((const uint16_t *)(const void *)row + first, w, n);
        break;
    case OXB_DEVICE_FORMAT_BF16:
        for (uint64_t i = 0; i < n; i++) w[i] = cpu_float_of_bf16(half_at(row + 2 * (first + i)));
        break;
    default: q8_0_weights(row, first, n, w); break;
    }
}
