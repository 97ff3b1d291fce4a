/* Strips of rows times a vector, by tables: what each variant compiles for its registers.
 *
 * For each field of a word there is a table of what it can contribute before the scale. A lane
 * holds a row, so that one load brings a word of 16 rows, and a table is loaded once for several
 * strips. Words are shifted down a field at a time. Included after the simd_*.h of the variant;
 * panels.h has the order of the weights in a word.
 */
#ifndef CPU_STRIPS_H
#define CPU_STRIPS_H

#include <stdint.h>

#include "cpu/panels.h"
#include "isa.h"

#define LANES           CPU_LANES
#define PREFETCH_CODES  8192u /* bytes ahead */
#define PREFETCH_SCALES 1024u
#define MOST_SUMS       (4u * CPU_MOST_TOGETHER)

/* What bit i of an index contributes per unit of its activation. */
static const float bit_sign[4][16] = {
    {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1},
    {-1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1},
    {-1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1},
    {-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1},
};

/* The same of code i of a pair. */
static const float pair_value[2][16] = {
    {-1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2},
    {-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2},
};

SIMD_INLINE void table_of_pair(float *table, float x0, float x1) {
    const lanes low = lanes_mul(lanes_load(pair_value[0]), lanes_of(x0));
    lanes_store(table, lanes_fma(lanes_load(pair_value[1]), lanes_of(x1), low));
}

SIMD_TARGET static void tables_of_bits(float *tables, const float *x, uint64_t n_groups,
                                       uint32_t group, uint32_t v, uint32_t n_vectors) {
    const lanes sign[4] = {lanes_load(bit_sign[0]), lanes_load(bit_sign[1]),
                           lanes_load(bit_sign[2]), lanes_load(bit_sign[3])};
    tables += v * LANES;
    for (uint64_t word = 0; word < n_groups * group / 32; word++, x += 32)
        for (unsigned field = 0; field < 8; field++, tables += n_vectors * LANES) {
            const float *at = x + 16 * (field % 2) + field / 2;
            lanes sum = lanes_mul(sign[0], lanes_of(at[0]));
            sum = lanes_fma(sign[1], lanes_of(at[4]), sum);
            sum = lanes_fma(sign[2], lanes_of(at[8]), sum);
            lanes_store(tables, lanes_fma(sign[3], lanes_of(at[12]), sum));
        }
}

SIMD_TARGET static void tables_of_pairs(float *tables, const float *x, uint64_t n_groups,
                                        uint32_t group, uint32_t v, uint32_t n_vectors) {
    tables += v * LANES;
    for (uint64_t word = 0; word < n_groups * group / 16; word++, x += 16)
        for (unsigned field = 0; field < 8; field++, tables += n_vectors * LANES) {
            const float *at = x + 8 * (field % 2) + field / 2;
            table_of_pair(tables, at[0], at[4]);
        }
}

/* A word of each of `n` strips, whose codes are `strip` words apart. A line is fetched for each
 * that is read: many at once would wait for each other. */
SIMD_INLINE void load_words(words *code, const uint32_t *codes, uint64_t strip, unsigned n,
                            int streams) {
    const char *ahead = (const char *)codes + PREFETCH_CODES;
    for (unsigned t = 0; t < n; t++) code[t] = words_load(codes + t * strip);
    if (streams)
        for (unsigned t = 0; t < n; t++)
            __builtin_prefetch(ahead + t * strip * sizeof *codes, 0, 0);
    else
        for (unsigned t = 0; t < n; t++) __builtin_prefetch(ahead + t * strip * sizeof *codes);
}

/* Eight fields of 4 bits in each of `n_words` words, of `n` strips; tables of `v` vectors side by
 * side. */
SIMD_INLINE const float *add_nibbles(lanes *sum, const uint32_t *codes, uint64_t n_words,
                                     unsigned n, unsigned v, const float *tables, int streams) {
    for (uint64_t word = 0; word < n_words; word++, codes += LANES) {
        words code[CPU_MAX_PANEL];
        load_words(code, codes, n_words * LANES, n, streams);
#pragma GCC unroll 8
        for (unsigned field = 0; field < 8; field++) {
#pragma GCC unroll 4
            for (unsigned i = 0; i < v; i++, tables += LANES) {
                const table16 table = table16_load(tables);
#pragma GCC unroll 8
                for (unsigned t = 0; t < n; t++) {
                    sum[i * n + t] = lanes_add(sum[i * n + t], table16_look_up(table, code[t]));
                    if (i + 1 == v) code[t] = words_shift(code[t], 4);
                    simd_in_order(&sum[i * n + t], &code[t]);
                }
            }
        }
    }
    return tables;
}

#if SIMD_TRITS
#define TRIT_FIELDS 6u /* of a word */

/* The digits of 0 to 13 in threes, each -1, 0 or 1, the lowest first. */
static const float trit_value[3][16] = {
    {0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1},
    {0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1},
    {0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1},
};

/* Of a group: a table for each field, then one for the last two weights. */
SIMD_TARGET static void tables_of_trits(float *tables, const float *x, uint64_t n_groups,
                                        uint32_t group, uint32_t v, uint32_t n_vectors) {
    const lanes value[3] = {lanes_load(trit_value[0]), lanes_load(trit_value[1]),
                            lanes_load(trit_value[2])};
    tables += v * LANES;
    for (uint64_t g = 0; g < n_groups; g++, x += group) {
        for (unsigned field = 0; field < CPU_TRIT_WORDS * TRIT_FIELDS;
             field++, tables += n_vectors * LANES) {
            lanes sum = lanes_mul(value[0], lanes_of(x[3 * field]));
            sum = lanes_fma(value[1], lanes_of(x[3 * field + 1]), sum);
            lanes_store(tables, lanes_fma(value[2], lanes_of(x[3 * field + 2]), sum));
        }
        table_of_pair(tables, x[126], x[127]);
        tables += n_vectors * LANES;
    }
}

/* The last two weights of a group, as the index of a pair. */
SIMD_INLINE words last_trits(const uint32_t *codes) {
    const words low = words_and(words_shift(words_load(codes), 29), words_of(3));
    const words high = words_shift(words_load(codes + LANES), 29);
    return words_or(low, words_shift_left(high, 2));
}

SIMD_INLINE const float *add_trits(lanes *sum, const uint32_t *codes, unsigned n, unsigned v,
                                   const float *tables, int streams) {
    const uint64_t strip = CPU_TRIT_WORDS * LANES;
    for (uint64_t word = 0; word < CPU_TRIT_WORDS; word++) {
        words code[CPU_MAX_PANEL];
        load_words(code, codes + word * LANES, strip, n, streams);
#pragma GCC unroll 6
        for (unsigned field = 0; field < TRIT_FIELDS; field++) {
            lanes sign[CPU_MAX_PANEL];
            for (unsigned t = 0; t < n; t++) sign[t] = lanes_of_signs(code[t]);
#pragma GCC unroll 4
            for (unsigned i = 0; i < v; i++, tables += LANES) {
                const table16 table = table16_load(tables);
#pragma GCC unroll 8
                for (unsigned t = 0; t < n; t++) {
                    sum[i * n + t] =
                        lanes_fma(table16_look_up(table, code[t]), sign[t], sum[i * n + t]);
                    if (i + 1 == v) code[t] = words_next_trits(code[t]);
                    simd_in_order(&sum[i * n + t], &code[t]);
                }
            }
        }
    }
    for (unsigned t = 0; t < n; t++) {
        const words index = last_trits(codes + t * strip);
        for (unsigned i = 0; i < v; i++)
            sum[i * n + t] =
                lanes_add(sum[i * n + t], table16_look_up(table16_load(tables + i * LANES), index));
    }
    return tables + v * LANES;
}
#endif

/* Digits of a unit, from the top, that a field has: its table has 27 or 9 sums. */
#if SIMD_THREES
#define DIGIT_FIELDS          4u /* of ten digits */
#define LAST_FIELDS           3u /* of eight */
#define DIGITS_OF(field)      ((field) < 2 ? 3u : 2u)
#define FIRST_DIGIT_OF(field) ((field) < 2 ? 3u * (field) : 2u + 2u * (field))
#else
#define DIGIT_FIELDS          5u
#define LAST_FIELDS           4u
#define DIGITS_OF(field)      2u
#define FIRST_DIGIT_OF(field) (2u * (field))
#endif
#define DIGIT_TABLE(field) (DIGITS_OF(field) == 3 ? 2 * LANES : LANES) /* floats */

/* The levels of the lowest, the middle and the highest of three digits. */
static const float digit_value[3][32] = {
    {-1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1},
    {-1, -1, -1, 0, 0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1},
    {-1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1},
};

/* Of the digits from `first` on of the unit that begins with byte b of a group, of `n` digits a
 * byte. */
SIMD_INLINE void table_of_digits(float *table, const float *x, unsigned b, unsigned n,
                                 unsigned first, unsigned digits) {
    float at[3] = {0};
    for (unsigned i = 0; i < digits; i++)
        at[digits - 1 - i] = x[cpu_digit_weight(b + (first + i) / n, (first + i) % n)];
    for (unsigned part = 0; part < (digits == 3 ? 2 : 1); part++) {
        const unsigned from = part * LANES;
        lanes sum = lanes_mul(lanes_load(digit_value[0] + from), lanes_of(at[0]));
        sum = lanes_fma(lanes_load(digit_value[1] + from), lanes_of(at[1]), sum);
        if (digits == 3) sum = lanes_fma(lanes_load(digit_value[2] + from), lanes_of(at[2]), sum);
        lanes_store(table + from, sum);
    }
}

/* Of a group: for each field of a word a table for its lower unit and one for the upper; then one
 * for each field of the unit beside the scale. */
SIMD_TARGET static void tables_of_digits(float *tables, const float *x, uint64_t n_groups,
                                         uint32_t group, uint32_t v, uint32_t n_vectors) {
    for (uint64_t g = 0; g < n_groups; g++, x += group) {
        for (unsigned b = 0; b < 4 * CPU_DIGIT_WORDS; b += 4)
            for (unsigned field = 0; field < DIGIT_FIELDS; field++) {
                const unsigned first = FIRST_DIGIT_OF(field), digits = DIGITS_OF(field);
                float *table = tables + 2 * v * DIGIT_TABLE(field);
                table_of_digits(table, x, b, 5, first, digits);
                table_of_digits(table + DIGIT_TABLE(field), x, b + 2, 5, first, digits);
                tables += 2 * n_vectors * DIGIT_TABLE(field);
            }
        for (unsigned field = 0; field < LAST_FIELDS; field++) {
            table_of_digits(tables + v * DIGIT_TABLE(field), x, 4 * CPU_DIGIT_WORDS, 4,
                            FIRST_DIGIT_OF(field), DIGITS_OF(field));
            tables += n_vectors * DIGIT_TABLE(field);
        }
    }
}

SIMD_INLINE lanes sum_of_digits(const float *table, words index, unsigned digits) {
#if SIMD_THREES
    if (digits == 3) return table27_look_up(table27_load(table), index);
#endif
    (void)digits;
    return table9_look_up(table9_load(table), index);
}

/* The next digits of each unit, as an index; `power` is 9 or 27 in each half. */
SIMD_INLINE words next_digits(words *units, words power) {
    const words index = halves_high(*units, power);
    *units = halves_low(*units, power);
    return index;
}

SIMD_INLINE const float *add_digits(lanes *sum, const uint32_t *codes, const uint16_t *beside,
                                    unsigned n, unsigned v, const float *tables, int streams) {
    /* Behind an asm: GCC would take a multiplication by a constant apart. */
    words powers[2] = {words_of(0x00090009), words_of(0x001b001b)};
    simd_in_order(&sum[0], &powers[0]);
    simd_in_order(&sum[0], &powers[1]);
    for (unsigned word = 0; word < CPU_DIGIT_WORDS; word++) {
        words units[CPU_MAX_PANEL], index[CPU_MAX_PANEL];
        load_words(units, codes + word * LANES, CPU_DIGIT_WORDS * LANES, n, streams);
#pragma GCC unroll 5
        for (unsigned field = 0; field < DIGIT_FIELDS; field++) {
            const unsigned digits = DIGITS_OF(field);
            const words power = powers[digits - 2];
            for (unsigned t = 0; t < n && v > 1; t++) index[t] = next_digits(&units[t], power);
#pragma GCC unroll 4
            for (unsigned i = 0; i < v; i++, tables += 2 * DIGIT_TABLE(field)) {
#pragma GCC unroll 8
                for (unsigned t = 0; t < n; t++) {
                    lanes *to = &sum[i * n + t];
                    const words low = v > 1 ? index[t] : next_digits(&units[t], power);
                    *to = lanes_add(*to, sum_of_digits(tables, low, digits));
                    *to = lanes_add(*to, sum_of_digits(tables + DIGIT_TABLE(field),
                                                       words_shift(low, 16), digits));
                    simd_in_order(to, &units[t]);
                }
            }
        }
    }
    words unit[CPU_MAX_PANEL];
    for (unsigned t = 0; t < n; t++)
        unit[t] = words_of_units(beside + t * cpu_panel_scales(CPU_DIGITS));
#pragma GCC unroll 4
    for (unsigned field = 0; field < LAST_FIELDS; field++) {
        words index[CPU_MAX_PANEL];
        for (unsigned t = 0; t < n; t++)
            index[t] = next_digits(&unit[t], powers[DIGITS_OF(field) - 2]);
#pragma GCC unroll 4
        for (unsigned i = 0; i < v; i++, tables += DIGIT_TABLE(field))
#pragma GCC unroll 8
            for (unsigned t = 0; t < n; t++)
                sum[i * n + t] =
                    lanes_add(sum[i * n + t], sum_of_digits(tables, index[t], DIGITS_OF(field)));
    }
    return tables;
}

/* Some strips times some vectors, `n` and `v` of them known to the compiler. */
SIMD_INLINE void rows_of_strips(const cpu_strips *w, unsigned first, unsigned n, unsigned v,
                                cpu_packing packing, uint32_t group, const float *tables,
                                double *sums) {
    const uint64_t n_words = cpu_panel_words(packing, group);
    const uint32_t *codes = w->codes + first * n_words * LANES;
    const uint64_t n_scales = cpu_panel_scales(packing);
    const uint16_t *scales = w->scales + first * n_scales;
    int add = w->add;
    sums += first * LANES;
    for (uint64_t g = 0; g < w->n_groups;) {
        lanes total[MOST_SUMS];
        for (unsigned t = 0; t < n * v; t++) total[t] = lanes_zero();
        const uint64_t flush = g + CPU_FLUSH / group;
        const uint64_t end = flush < w->n_groups ? flush : w->n_groups;
        for (; g < end; g++) {
            lanes sum[MOST_SUMS];
            for (unsigned t = 0; t < n * v; t++) sum[t] = lanes_zero();
            for (unsigned t = 0; t < n; t += 2)
                __builtin_prefetch((const char *)(scales + t * n_scales) + PREFETCH_SCALES);
            if (packing == CPU_DIGITS)
                tables = add_digits(sum, codes, scales + LANES, n, v, tables, w->streams);
#if SIMD_TRITS
            else if (packing == CPU_TRITS)
                tables = add_trits(sum, codes, n, v, tables, w->streams);
#endif
            else
                tables = add_nibbles(sum, codes, n_words, n, v, tables, w->streams);
#pragma GCC unroll 4
            for (unsigned i = 0; i < v; i++)
#pragma GCC unroll 8
                for (unsigned t = 0; t < n; t++)
                    total[i * n + t] = lanes_fma(
                        sum[i * n + t], lanes_of_halves(scales + t * n_scales), total[i * n + t]);
            codes += cpu_panel_strips(packing) * n_words * LANES;
            scales += cpu_panel_strips(packing) * n_scales;
        }
        for (unsigned i = 0; i < v; i++)
            for (unsigned t = 0; t < n; t++)
                lanes_to_doubles(sums + i * w->stride + t * LANES, total[i * n + t], add);
        add = 1;
    }
}

SIMD_INLINE void rows_of_vectors(const cpu_strips *w, unsigned together, unsigned v,
                                 cpu_packing packing, uint32_t group, const float *tables,
                                 double *sums) {
    unsigned strip = 0;
    for (; strip + together <= w->n_strips; strip += together)
        rows_of_strips(w, strip, together, v, packing, group, tables, sums);
    for (; strip < w->n_strips; strip++)
        rows_of_strips(w, strip, 1, v, packing, group, tables, sums);
}

SIMD_INLINE void rows_of_panel(const cpu_strips *w, cpu_packing packing, uint32_t group,
                               const float *tables, double *sums) {
    if (w->n_vectors == 1)
        rows_of_vectors(w,
                        packing == CPU_TRITS || (packing == CPU_DIGITS && SIMD_THREES)
                            ? CPU_MAX_PANEL
                            : SIMD_STRIPS,
                        1, packing, group, tables, sums);
    else if (w->n_vectors == 2)
        rows_of_vectors(w, SIMD_STRIPS_OF_TWO, 2, packing, group, tables, sums);
    else
        rows_of_vectors(w, SIMD_STRIPS_OF_FOUR, 4, packing, group, tables, sums);
}

SIMD_TARGET static void rows_of_bits(const cpu_strips *w, const float *tables, double *sums) {
    rows_of_panel(w, CPU_BITS, 128, tables, sums);
}

SIMD_TARGET static void rows_of_pairs(const cpu_strips *w, const float *tables, double *sums) {
    if (w->group_size == 128)
        rows_of_panel(w, CPU_PAIRS, 128, tables, sums);
    else
        rows_of_panel(w, CPU_PAIRS, 64, tables, sums);
}

#if SIMD_TRITS
SIMD_TARGET static void rows_of_trits(const cpu_strips *w, const float *tables, double *sums) {
    rows_of_panel(w, CPU_TRITS, 128, tables, sums);
}
#define TRIT_KERNELS [CPU_TRITS] = {tables_of_trits, rows_of_trits},
#else
#define TRIT_KERNELS
#endif

SIMD_TARGET static void rows_of_digits(const cpu_strips *w, const float *tables, double *sums) {
    rows_of_panel(w, CPU_DIGITS, 128, tables, sums);
}

#define PACKING_KERNELS                                            \
    .packing = {[CPU_BITS] = {tables_of_bits, rows_of_bits},       \
                [CPU_PAIRS] = {tables_of_pairs, rows_of_pairs},    \
                [CPU_DIGITS] = {tables_of_digits, rows_of_digits}, \
                TRIT_KERNELS}

#endif
