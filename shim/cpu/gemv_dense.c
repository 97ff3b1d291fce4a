/* Rows of F32, F16, BF16 and Q8_0 weights times a float32 vector. */
#include <stdint.h>
#include <string.h>

#include "half.h"
#include "oxb_cpu.h"

#define LANES 16u
#define CHUNK 512u /* products added in float32 before they are added in float64 */
#define Q8_BLOCK 32u
#define Q8_BYTES 34u

static inline float sum_of_lanes(const float lane[LANES])
{
    float half[8];
    for (unsigned i = 0; i < 8; i++)
        half[i] = lane[i] + lane[i + 8];
    return ((half[0] + half[4]) + (half[2] + half[6])) + ((half[1] + half[5]) + (half[3] + half[7]));
}

static inline float load_f32(const uint8_t *row, uint64_t i)
{
    float value;
    memcpy(&value, row + 4 * i, sizeof value);
    return value;
}

static inline float load_f16(const uint8_t *row, uint64_t i)
{
    uint16_t value;
    memcpy(&value, row + 2 * i, sizeof value);
    return oxb_float_of_half(value);
}

static inline float load_bf16(const uint8_t *row, uint64_t i)
{
    uint16_t value;
    memcpy(&value, row + 2 * i, sizeof value);
    return oxb_float_of_bf16(value);
}

#define DEFINE_DOT(name, load)                                             \
    static double name(const uint8_t *row, const float *x, uint64_t k)     \
    {                                                                      \
        double sum = 0;                                                    \
        uint64_t i = 0;                                                    \
        while (k - i >= LANES) {                                           \
            const uint64_t rest = (k - i) / LANES * LANES;                 \
            const uint64_t end = i + (rest < CHUNK ? rest : CHUNK);        \
            float lane[LANES] = {0};                                       \
            for (; i < end; i += LANES)                                    \
                for (unsigned j = 0; j < LANES; j++)                       \
                    lane[j] += load(row, i + j) * x[i + j];                \
            sum += (double)sum_of_lanes(lane);                             \
        }                                                                  \
        for (; i < k; i++)                                                 \
            sum += (double)load(row, i) * (double)x[i];                    \
        return sum;                                                        \
    }

DEFINE_DOT(dot_f32, load_f32)
DEFINE_DOT(dot_f16, load_f16)
DEFINE_DOT(dot_bf16, load_bf16)

static double dot_q8_0(const uint8_t *row, const float *x, uint64_t k)
{
    double sum = 0;
    float lane[LANES] = {0};
    uint64_t pending = 0;
    for (uint64_t i = 0; i < k; i += Q8_BLOCK, row += Q8_BYTES) {
        uint16_t half;
        int8_t q[Q8_BLOCK];
        memcpy(&half, row, sizeof half);
        memcpy(q, row + 2, sizeof q);
        const float scale = oxb_float_of_half(half);
        if (oxb_half_is_finite(half)) {
            for (unsigned j = 0; j < LANES; j++)
                lane[j] += scale * ((float)q[j] * x[i + j] + (float)q[j + LANES] * x[i + LANES + j]);
        } else {
            /* scale * sum is not the sum of (q * scale) * x here. */
            for (unsigned j = 0; j < Q8_BLOCK; j++)
                sum += (double)((float)q[j] * scale) * (double)x[i + j];
        }
        if (++pending == CHUNK / Q8_BLOCK) {
            sum += (double)sum_of_lanes(lane);
            memset(lane, 0, sizeof lane);
            pending = 0;
        }
    }
    return sum + (double)sum_of_lanes(lane);
}

void oxb_cpu_dense_rows(const oxb_cpu_matrix *m, uint64_t first, uint64_t n, double *out)
{
    const uint64_t stride = m->k / oxb_cpu_group(m->format) * oxb_cpu_group_bytes(m->format);
    const uint8_t *row = m->weight + m->codes_offset + first * stride;
    for (uint64_t i = 0; i < n; i++, row += stride) {
        switch (m->format) {
        case OXB_KERNEL_F32:
            out[i] = dot_f32(row, m->x, m->k);
            break;
        case OXB_KERNEL_F16:
            out[i] = dot_f16(row, m->x, m->k);
            break;
        case OXB_KERNEL_BF16:
            out[i] = dot_bf16(row, m->x, m->k);
            break;
        default:
            out[i] = dot_q8_0(row, m->x, m->k);
            break;
        }
    }
}
