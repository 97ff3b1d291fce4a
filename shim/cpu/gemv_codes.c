/* Rows of 1-bit and 2-bit codes times a float32 vector, by tables of sums.
 *
 * A unit is 16 bytes of codes: 128 weights of 1 bit or 64 of 2 bits. For each of its bytes there is a
 * table of the 256 values that the byte can contribute before the scale, so that a row costs one
 * look-up and one addition per byte. The tables of a unit (16 KB) stay in the first-level cache while
 * all rows of a tile pass. Few rows do not pay for them: those look up each half of a byte in the
 * 16-entry tables that the large ones are made of, and add the same numbers in the same order.
 */
#include <stdint.h>
#include <string.h>

#include "half.h"
#include "oxb_cpu.h"

#define UNIT 16u
#define FEW_ROWS 48u
#define PREFETCH_ROWS 32u

#if defined(__GNUC__) || defined(__clang__)
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define PREFETCH(address) ((void)(address))
#endif

typedef struct unit_tables {
    float bytes[UNIT][256];
    float nibbles[2 * UNIT][16];
} unit_tables;

_Static_assert(sizeof(unit_tables) + OXB_CPU_TILE * sizeof(double) <= OXB_CPU_SCRATCH,
               "tables and sums of a tile must fit the scratch of a thread");

/* What two bits of codes contribute, for each of their four values. By multiplication, so that a code
 * of value 0 times an infinite activation is NaN. */
static void pair_table(float table[4], const float *x, int two_bits)
{
    for (int code = 0; code < 4; code++)
        table[code] = two_bits ? (float)(code - 1) * x[0]
                               : (code & 1 ? x[0] : -x[0]) + (code & 2 ? x[1] : -x[1]);
}

static void nibble_tables(unit_tables *t, const float *x, int two_bits)
{
    const unsigned step = two_bits ? 1 : 2;
    for (unsigned i = 0; i < 2 * UNIT; i++) {
        float low[4], high[4];
        pair_table(low, x + 2 * step * i, two_bits);
        pair_table(high, x + 2 * step * i + step, two_bits);
        for (unsigned h = 0; h < 4; h++)
            for (unsigned l = 0; l < 4; l++)
                t->nibbles[i][4 * h + l] = low[l] + high[h];
    }
}

static void byte_tables(unit_tables *t)
{
    for (unsigned i = 0; i < UNIT; i++)
        for (unsigned h = 0; h < 16; h++)
            for (unsigned l = 0; l < 16; l++)
                t->bytes[i][16 * h + l] = t->nibbles[2 * i][l] + t->nibbles[2 * i + 1][h];
}

/* Four chains of four, so that an addition does not wait for the one before. */
#define CHAIN(value, i) (value(i) + value((i) + 4) + value((i) + 8) + value((i) + 12))
#define SUM_OF_UNIT(value) \
    ((CHAIN(value, 0) + CHAIN(value, 1)) + (CHAIN(value, 2) + CHAIN(value, 3)))

/* The bytes come from two wide loads: the look-ups alone keep the load ports busy. */
#define BYTE(i) ((half[(i) / 8] >> 8 * ((i) % 8)) & 255)

static inline float unit_by_bytes(const unit_tables *t, const uint8_t *codes)
{
    uint64_t half[2];
    memcpy(half, codes, sizeof half);
#define VALUE(i) t->bytes[i][BYTE(i)]
    return SUM_OF_UNIT(VALUE);
#undef VALUE
}

static inline float unit_by_nibbles(const unit_tables *t, const uint8_t *codes)
{
    uint64_t half[2];
    memcpy(half, codes, sizeof half);
#define VALUE(i) (t->nibbles[2 * (i)][BYTE(i) & 15] + t->nibbles[2 * (i) + 1][BYTE(i) >> 4])
    return SUM_OF_UNIT(VALUE);
#undef VALUE
}

/* With an infinite or NaN scale, scale * sum is not the sum of (code * scale) * x. */
static double unit_by_definition(float scale, const uint8_t *codes, const float *x, int two_bits)
{
    double sum = 0;
    for (unsigned i = 0; i < (two_bits ? 4 : 8) * UNIT; i++) {
        const int code = two_bits ? (codes[i / 4] >> 2 * (i % 4)) & 3 : 2 * ((codes[i / 8] >> i % 8) & 1);
        sum += (double)((float)(code - 1) * scale) * x[i];
    }
    return sum;
}

/* One unit of `n` rows. */
typedef struct unit_rows {
    const uint8_t *codes;
    const uint8_t *scales;
    size_t code_stride;
    size_t scale_stride;
    const float *x;
    int two_bits;
} unit_rows;

static inline void add_rows(const unit_rows *u, const unit_tables *t, size_t n, double *out,
                            float (*unit_sum)(const unit_tables *, const uint8_t *))
{
    const uint8_t *codes = u->codes;
    const uint8_t *scales = u->scales;
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, scales, sizeof half);
        const float scale = oxb_float_of_half(half);
        if (oxb_half_is_finite(half))
            out[i] += (double)(scale * unit_sum(t, codes));
        else
            out[i] += unit_by_definition(scale, codes, u->x, u->two_bits);
        if (n - i > PREFETCH_ROWS) {
            PREFETCH(codes + PREFETCH_ROWS * u->code_stride);
        }
        codes += u->code_stride;
        scales += u->scale_stride;
    }
}

/* out[p * n + i] = row (first[p] + i) of W times x, for each part p; n_parts * n <= OXB_CPU_TILE. */
void oxb_cpu_codes_rows(const oxb_cpu_matrix *m, const uint64_t *first, uint32_t n_parts, uint64_t n,
                        double *out, void *tables)
{
    unit_tables *t = tables;
    const int two_bits = m->format != OXB_KERNEL_Q1_G128;
    const uint64_t unit_weights = two_bits ? 4 * UNIT : 8 * UNIT;
    const uint64_t units = m->k / unit_weights;
    const uint64_t group = oxb_cpu_group(m->format);
    const int few = n_parts * n < FEW_ROWS;

    for (uint64_t i = 0; i < n_parts * n; i++)
        out[i] = 0;
    for (uint64_t unit = 0; unit < units; unit++) {
        unit_rows u = {.code_stride = units * UNIT,
                       .scale_stride = m->k / group * 2,
                       .x = m->x + unit * unit_weights,
                       .two_bits = two_bits};
        nibble_tables(t, u.x, two_bits);
        if (!few)
            byte_tables(t);
        for (uint32_t part = 0; part < n_parts; part++) {
            u.codes = m->weight + m->codes_offset + first[part] * u.code_stride + unit * UNIT;
            u.scales = m->weight + first[part] * u.scale_stride + unit * unit_weights / group * 2;
            if (few)
                add_rows(&u, t, n, out + part * n, unit_by_nibbles);
            else
                add_rows(&u, t, n, out + part * n, unit_by_bytes);
        }
    }
}
