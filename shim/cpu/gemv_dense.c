/* Rows of F32, F16, BF16 and Q8_0 weights times a float32 vector. */
#include <stdint.h>
#include <string.h>

#include "half.h"
#include "oxb_cpu.h"
#include "vector.h"

#define CHUNK 512u /* products added in float32 before they are added in float64 */
#define Q8_BLOCK 32u
#define Q8_BYTES 34u

static uint16_t half_at(const uint8_t *address)
{
    uint16_t value;
    memcpy(&value, address, sizeof value);
    return value;
}

/* Exact: an 8-bit code times an 11-bit scale fits float32, so an infinite scale needs no other path. */
static void q8_0_weights(const uint8_t *row, uint64_t first, uint64_t n, float *w)
{
    for (uint64_t i = 0; i < n; i += Q8_BLOCK) {
        const uint8_t *block = row + (first + i) / Q8_BLOCK * Q8_BYTES;
        const float scale = oxb_float_of_half(half_at(block));
        int8_t q[Q8_BLOCK];
        memcpy(q, block + 2, sizeof q);
        for (unsigned j = 0; j < Q8_BLOCK; j++)
            w[i + j] = (float)q[j] * scale;
    }
}

void oxb_cpu_dense_weights(uint32_t format, const uint8_t *row, uint64_t first, uint64_t n, float *w)
{
    switch (format) {
    case OXB_KERNEL_F32:
        memcpy(w, row + 4 * first, (size_t)n * 4);
        break;
    case OXB_KERNEL_F16:
        oxb_floats_of_halves((const uint16_t *)(const void *)row + first, w, n);
        break;
    case OXB_KERNEL_BF16:
        for (uint64_t i = 0; i < n; i++)
            w[i] = oxb_float_of_bf16(half_at(row + 2 * (first + i)));
        break;
    default:
        q8_0_weights(row, first, n, w);
        break;
    }
}

void oxb_cpu_dense_rows(const oxb_cpu_matrix *m, uint64_t first, uint64_t n, double *sums)
{
    const uint64_t stride = m->k / oxb_cpu_group(m->format) * oxb_cpu_group_bytes(m->format);
    const uint8_t *row = m->weight + m->codes_offset + first * stride;
    float chunk[CHUNK];
    for (uint64_t i = 0; i < n; i++, row += stride) {
        sums[i] = 0;
        for (uint64_t j = 0; j < m->k; j += CHUNK) {
            const uint64_t count = m->k - j < CHUNK ? m->k - j : CHUNK;
            oxb_cpu_dense_weights(m->format, row, j, count, chunk);
            sums[i] += (double)oxb_dot(chunk, m->x + j, count);
        }
    }
}
