/* Rows of 1-bit and 2-bit codes times a float32 vector, by tables of sums.
 *
 * A 16-byte load of codes holds 128 weights of 1 bit or 64 of 2 bits. For each of its bytes there
 * is a table of the 256 values that the byte can contribute before the scale, so that a row costs
 * one look-up and one addition per byte. The tables of a load (16 KB) stay in the first-level cache
 * while all rows pass. Few rows do not pay for them: those look up each half of a byte in
 * the 16-entry tables that the large ones are made of, and add the same numbers in the same order.
 */
#include <stdint.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/half.h"
#include "cpu/vector.h"

#define LOAD_BYTES    16u
#define FEW_ROWS      56u
#define PREFETCH_ROWS 32u
#define SCALES        8u /* scales of a row that are read together */

#if defined(__GNUC__) || defined(__clang__)
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define PREFETCH(address) ((void)(address))
#endif

typedef struct row_scratch {
    float bytes[LOAD_BYTES][256];
    float nibbles[2 * LOAD_BYTES][16];
    float scales[CPU_TABLE_ROWS];
    uint16_t halves[SCALES][CPU_TABLE_ROWS]; /* the next scales, a row's apart */
} row_scratch;

_Static_assert(sizeof(row_scratch) <= CPU_TABLES, "the tables must fit the scratch of a thread");

/* What two bits of codes contribute, for each of their four values. By multiplication, so that a
 * code of value 0 times an infinite activation is NaN. */
static void pair_table(float table[4], const float *x, int two_bits) {
    for (int code = 0; code < 4; code++)
        table[code] = two_bits ? (float)(code - 1) * x[0]
                               : (code & 1 ? x[0] : -x[0]) + (code & 2 ? x[1] : -x[1]);
}

static void nibble_tables(row_scratch *t, const float *x, int two_bits) {
    float pair[4 * LOAD_BYTES][4];
    for (unsigned i = 0; i < 4 * LOAD_BYTES; i++)
        pair_table(pair[i], x + (two_bits ? i : 2 * i), two_bits);
    for (unsigned i = 0; i < 2 * LOAD_BYTES; i++)
        for (unsigned h = 0; h < 4; h++)
            for (unsigned l = 0; l < 4; l++)
                t->nibbles[i][4 * h + l] = pair[2 * i][l] + pair[2 * i + 1][h];
}

/* In vectors of four by name: GCC leaves the plain loops scalar, which costs as much as 200 rows.
 */
static void byte_tables(row_scratch *t) {
    for (unsigned i = 0; i < LOAD_BYTES; i++) {
        cpu_four low[4];
        memcpy(low, t->nibbles[2 * i], sizeof low);
        for (unsigned h = 0; h < 16; h++)
            for (unsigned l = 0; l < 4; l++) {
                const cpu_four sum = low[l] + t->nibbles[2 * i + 1][h];
                memcpy(&t->bytes[i][16 * h + 4 * l], &sum, sizeof sum);
            }
    }
}

/* Four chains of four, so that an addition does not wait for the one before. */
#define CHAIN(value, i) (value(i) + value((i) + 4) + value((i) + 8) + value((i) + 12))
#define SUM_OF_LOAD(value) \
    ((CHAIN(value, 0) + CHAIN(value, 1)) + (CHAIN(value, 2) + CHAIN(value, 3)))

/* The bytes come from two wide loads: the look-ups alone keep the load ports busy. */
#define BYTE(i) ((half[(i) / 8] >> 8 * ((i) % 8)) & 255)

static inline float load_by_bytes(const row_scratch *t, const uint8_t *codes) {
    uint64_t half[2];
    memcpy(half, codes, sizeof half);
#define VALUE(i) t->bytes[i][BYTE(i)]
    return SUM_OF_LOAD(VALUE);
#undef VALUE
}

static inline float load_by_nibbles(const row_scratch *t, const uint8_t *codes) {
    uint64_t half[2];
    memcpy(half, codes, sizeof half);
#define VALUE(i) (t->nibbles[2 * (i)][BYTE(i) & 15] + t->nibbles[2 * (i) + 1][BYTE(i) >> 4])
    return SUM_OF_LOAD(VALUE);
#undef VALUE
}

/* With an infinite or NaN scale, scale * sum is not the sum of (code * scale) * x. */
static double load_by_definition(float scale, const uint8_t *codes, const float *x, int two_bits) {
    double sum = 0;
    for (unsigned i = 0; i < (two_bits ? 4 : 8) * LOAD_BYTES; i++) {
        const int code =
            two_bits ? (codes[i / 4] >> 2 * (i % 4)) & 3 : 2 * ((codes[i / 8] >> i % 8) & 1);
        sum += (double)((float)(code - 1) * scale) * x[i];
    }
    return sum;
}

/* Rows first[p] to first[p] + n - 1 of each part; sums[p * n + i] belongs to row first[p] + i. */
typedef struct row_sums {
    const cpu_matrix *m;
    const uint64_t *first;
    uint32_t n_parts;
    uint64_t n;
    uint64_t loads;  /* of a row */
    uint64_t groups; /* scales of a row */
    int two_bits;
    double *sums;
    row_scratch *t;
} row_sums;

static const uint8_t *scales_at(const row_sums *s, uint64_t row, uint64_t group) {
    return s->m->weight + (row * s->groups + group) * 2;
}

static const uint8_t *codes_at(const row_sums *s, uint64_t row, uint64_t load) {
    return s->m->weight + s->m->codes_offset + (row * s->loads + load) * LOAD_BYTES;
}

static inline void read_scales_of(const row_sums *s, uint64_t group, uint64_t count) {
    for (uint32_t part = 0; part < s->n_parts; part++) {
        const uint8_t *from = scales_at(s, s->first[part], group);
        uint16_t *to = s->t->halves[0] + part * s->n;
        for (uint64_t i = 0; i < s->n; i++, from += s->groups * 2) {
            uint16_t half[SCALES];
            memcpy(half, from, (size_t)count * 2);
            for (uint64_t j = 0; j < count; j++) to[j * CPU_TABLE_ROWS + i] = half[j];
        }
    }
}

static void read_scales(const row_sums *s, uint64_t group, uint64_t count) {
    if (count == SCALES)
        read_scales_of(s, group, SCALES); /* the usual count, known to the compiler */
    else
        read_scales_of(s, group, count);
}

/* Returns whether all are finite. */
static int convert_scales(row_scratch *t, uint64_t j, uint64_t n) {
    int16_t largest = 0;
    for (uint64_t i = 0; i < n; i++) {
        const int16_t magnitude = (int16_t)(t->halves[j][i] & 0x7fff);
        largest = magnitude > largest ? magnitude : largest;
        t->scales[i] = cpu_float_of_half(t->halves[j][i]);
    }
    return largest < 0x7c00;
}

static inline void add_rows(const row_sums *s, uint32_t part, uint64_t load,
                            float (*load_sum)(const row_scratch *, const uint8_t *)) {
    const row_scratch *t = s->t;
    const uint8_t *codes = codes_at(s, s->first[part], load);
    const uint64_t stride = s->loads * LOAD_BYTES;
    const uint64_t n = s->n;
    const float *scales = t->scales + part * n;
    double *sums = s->sums + part * n;
    for (uint64_t i = 0; i < n; i++, codes += stride) {
        if (n - i > PREFETCH_ROWS) PREFETCH(codes + PREFETCH_ROWS * stride);
        sums[i] += (double)(scales[i] * load_sum(t, codes));
    }
}

static void add_rows_by_definition(const row_sums *s, uint32_t part, uint64_t load,
                                   const float *x) {
    const float *scales = s->t->scales + part * s->n;
    for (uint64_t i = 0; i < s->n; i++) {
        const uint8_t *codes = codes_at(s, s->first[part] + i, load);
        const int finite = (cpu_bits_of_float(scales[i]) & 0x7f800000u) != 0x7f800000u;
        s->sums[part * s->n + i] += finite ? (double)(scales[i] * load_by_nibbles(s->t, codes))
                                           : load_by_definition(scales[i], codes, x, s->two_bits);
    }
}

void cpu_codes_rows(const cpu_matrix *m, const uint64_t *first, uint32_t n_parts, uint64_t n,
                    double *sums, void *scratch) {
    const int two_bits = m->format != OXB_DEVICE_FORMAT_Q1_G128;
    const uint64_t weights = two_bits ? 4 * LOAD_BYTES : 8 * LOAD_BYTES; /* of a 16-byte load */
    const uint64_t group = cpu_group(m->format);
    const row_sums s = {.m = m,
                        .first = first,
                        .n_parts = n_parts,
                        .n = n,
                        .loads = m->k / weights,
                        .groups = m->k / group,
                        .two_bits = two_bits,
                        .sums = sums,
                        .t = scratch};
    const int few = n_parts * n < FEW_ROWS;
    int finite = 1;
    for (uint64_t i = 0; i < n_parts * n; i++) sums[i] = 0;
    for (uint64_t load = 0; load < s.loads; load++) {
        const float *x = m->x + load * weights;
        const uint64_t g = load * weights / group;
        if (load * weights % group == 0) {
            if (g % SCALES == 0) read_scales(&s, g, s.groups - g < SCALES ? s.groups - g : SCALES);
            finite = convert_scales(s.t, g % SCALES, n_parts * n);
        }
        nibble_tables(s.t, x, two_bits);
        if (!few && finite) byte_tables(s.t);
        for (uint32_t part = 0; part < n_parts; part++) {
            if (!finite)
                add_rows_by_definition(&s, part, load, x);
            else if (few)
                add_rows(&s, part, load, load_by_nibbles);
            else
                add_rows(&s, part, load, load_by_bytes);
        }
    }
}
