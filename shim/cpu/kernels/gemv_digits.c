/* Rows of base-3 digits (t1_g128) times a float32 vector, by tables of sums.
 *
 * A load of 64 weights is 12 bytes of five digits, and a byte of four codes beside the scale. For
 * each of these bytes there is a table of what it can contribute before the scale, so that a row
 * costs one look-up and one addition per byte. The tables of a load stay in the first-level cache
 * while all rows pass. Few rows do not pay for them: those add the two sums that an entry is made
 * of, the same numbers in the same order.
 */
#include <stdint.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/half.h"

#define BYTES       13u /* of a load, with that beside the scale */
#define WEIGHTS     64u /* of a load */
#define GROUP       128u
#define GROUP_BYTES 24u
#define SCALE_BYTES 4u
#define FEW_ROWS    56u

/* The parts of a byte's sum: of its first three digits and of its last two, or of its lower two
 * codes and its upper two. */
typedef struct byte_parts {
    float high[27], low[16];
} byte_parts;

typedef struct digit_scratch {
    float bytes[BYTES][256];
    byte_parts parts[BYTES];
    float scales[CPU_TABLE_ROWS];
} digit_scratch;

_Static_assert(sizeof(digit_scratch) <= CPU_TABLES, "the tables must fit the scratch of a thread");

/* Where a byte's parts are: the first three digits and the last two, as numbers to base 3. */
static inline unsigned high_digits(unsigned byte) { return byte * 27 >> 8; }

static inline unsigned low_digits(unsigned byte) { return (byte * 27 & 255) * 9 >> 8; }

/* By multiplication, so that a level of 0 times an infinite activation is NaN. */
static float level_of(unsigned code, float x) { return (float)((int)code - 1) * x; }

/* The parts of byte b of a load's 12, whose activations are x. */
static void digit_parts(byte_parts *p, const float *x, unsigned b) {
    const float *run = x + b % 4 * 16, *four = run + b / 4 * 4;
    for (unsigned i = 0; i < 27; i++)
        p->high[i] =
            level_of(i / 9, four[0]) + level_of(i / 3 % 3, four[1]) + level_of(i % 3, four[2]);
    for (unsigned i = 0; i < 9; i++)
        p->low[i] = level_of(i / 3, four[3]) + level_of(i % 3, run[12 + b / 4]);
}

/* The last code of each run of 16. */
static void beside_parts(byte_parts *p, const float *x) {
    for (unsigned i = 0; i < 16; i++) {
        p->high[i] = level_of(i & 3, x[15]) + level_of(i >> 2, x[31]);
        p->low[i] = level_of(i & 3, x[47]) + level_of(i >> 2, x[63]);
    }
}

static inline float of_digits(const byte_parts *p, unsigned byte) {
    return p->high[high_digits(byte)] + p->low[low_digits(byte)];
}

static inline float of_beside(const byte_parts *p, unsigned byte) {
    return p->high[byte & 15] + p->low[byte >> 4];
}

static void load_tables(digit_scratch *t, const float *x, int few) {
    for (unsigned b = 0; b < BYTES - 1; b++) digit_parts(&t->parts[b], x, b);
    beside_parts(&t->parts[BYTES - 1], x);
    if (few) return;
    for (unsigned b = 0; b < BYTES - 1; b++) {
        float sums[243]; /* by the five digits as a number */
        for (unsigned high = 0; high < 27; high++)
            for (unsigned low = 0; low < 9; low++)
                sums[9 * high + low] = t->parts[b].high[high] + t->parts[b].low[low];
        for (unsigned byte = 0; byte < 256; byte++) t->bytes[b][byte] = sums[byte * 243 >> 8];
    }
    for (unsigned byte = 0; byte < 256; byte++)
        t->bytes[BYTES - 1][byte] = of_beside(&t->parts[BYTES - 1], byte);
}

/* Four chains, so that an addition does not wait for the one before. */
#define CHAIN(i)    (VALUE(i) + VALUE((i) + 4) + VALUE((i) + 8))
#define SUM_OF_LOAD ((CHAIN(0) + CHAIN(1)) + (CHAIN(2) + CHAIN(3)))

/* The bytes come from wide loads: the look-ups alone keep the load ports busy. */
static inline float sum_by_bytes(const digit_scratch *t, const uint8_t *codes, unsigned beside) {
    uint64_t low;
    uint32_t high;
    memcpy(&low, codes, sizeof low);
    memcpy(&high, codes + sizeof low, sizeof high);
#define VALUE(i) t->bytes[i][((i) < 8 ? low >> 8 * ((i) % 8) : high >> 8 * ((i) % 4)) & 255]
    return SUM_OF_LOAD + t->bytes[BYTES - 1][beside];
#undef VALUE
}

static inline float sum_by_parts(const digit_scratch *t, const uint8_t *codes, unsigned beside) {
#define VALUE(i) of_digits(&t->parts[i], codes[i])
    return SUM_OF_LOAD + of_beside(&t->parts[BYTES - 1], beside);
#undef VALUE
}

/* With an infinite or NaN scale, scale * sum is not the sum of (code * scale) * x. */
static double load_by_definition(float scale, const uint8_t *at, const uint8_t *codes,
                                 unsigned load, const float *x) {
    double sum = 0;
    for (unsigned i = 0; i < WEIGHTS; i++)
        sum += (double)level_of(cpu_digit_of(at, codes, WEIGHTS * load + i), scale) * x[i];
    return sum;
}

/* The rows of a part, one load of scale group `group`; `few` is known to the compiler. */
static inline void add_rows(const cpu_matrix *m, uint64_t first, uint64_t n, uint64_t group,
                            unsigned load, const float *scales, int few, const digit_scratch *t,
                            double *sums) {
    const uint64_t groups = m->k / GROUP;
    const float *x = m->x + group * GROUP + load * WEIGHTS;
    const uint8_t *scale = m->weight + (first * groups + group) * SCALE_BYTES;
    const uint8_t *codes = m->weight + m->codes_offset + (first * groups + group) * GROUP_BYTES;
    for (uint64_t i = 0; i < n; i++) {
        const unsigned beside = scale[2 + load];
        const uint8_t *of_load = codes + 12 * load;
        if ((cpu_bits_of_float(scales[i]) & 0x7f800000u) == 0x7f800000u)
            sums[i] += load_by_definition(scales[i], scale, codes, load, x);
        else
            sums[i] += (double)(scales[i] * (few ? sum_by_parts(t, of_load, beside)
                                                 : sum_by_bytes(t, of_load, beside)));
        scale += groups * SCALE_BYTES;
        codes += groups * GROUP_BYTES;
    }
}

static void read_scales(const cpu_matrix *m, uint64_t first, uint64_t n, uint64_t group,
                        float *scales) {
    const uint64_t groups = m->k / GROUP;
    const uint8_t *from = m->weight + (first * groups + group) * SCALE_BYTES;
    for (uint64_t i = 0; i < n; i++, from += groups * SCALE_BYTES) {
        uint16_t half;
        memcpy(&half, from, sizeof half);
        scales[i] = cpu_float_of_half(half);
    }
}

void cpu_digits_rows(const cpu_matrix *m, const uint64_t *first, uint32_t n_parts, uint64_t n,
                     double *sums, void *scratch) {
    digit_scratch *t = scratch;
    const int few = n_parts * n < FEW_ROWS;
    for (uint64_t i = 0; i < n_parts * n; i++) sums[i] = 0;
    for (uint64_t group = 0; group < m->k / GROUP; group++) {
        for (uint32_t part = 0; part < n_parts; part++)
            read_scales(m, first[part], n, group, t->scales + part * n);
        for (unsigned load = 0; load < GROUP / WEIGHTS; load++) {
            load_tables(t, m->x + group * GROUP + load * WEIGHTS, few);
            for (uint32_t part = 0; part < n_parts; part++) {
                const float *scales = t->scales + part * n;
                if (few)
                    add_rows(m, first[part], n, group, load, scales, 1, t, sums + part * n);
                else
                    add_rows(m, first[part], n, group, load, scales, 0, t, sums + part * n);
            }
        }
    }
}
