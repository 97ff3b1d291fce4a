/* The layout of block weights that vector kernels read: panels of 64 rows (128 of trits and
 * digits), in strips of 16.
 *
 * Scales, then codes, each [panel][scale group][strip]: a strip holds 16 half scales, and its words
 * as [word][row 16], so that one load brings a word of 16 rows, and a thread that walks down the
 * rows reads memory in one direction. Rows past the last are codes and scales of zero bits.
 *
 * The codes of a word, with 1 or 2 bits each: field l of byte b is weight 4 l + b, so that a shift
 * and a mask leave four neighbouring weights in the four bytes. In trits, field f of word w stands
 * for weights 18 w + 3 f and the next two: n = w0 + 3 w1 + 9 w2, each of them -1, 0 or 1, with |n|
 * in bits 5 f to 5 f + 3 and whether n is negative in the bit below them, so that rotating the word
 * right by 5 f leaves |n| in the lowest bits and the sign in the highest. Weights 126 and 127 are
 * the two bits of words 0 and 1 that are left, 29 and 30. A matrix with a code of 3 has no trits.
 *
 * Digits are PTQ1_0's, two of its bytes to a unit of 16 bits. A unit u stands for the fraction
 * u / 65536, whose first ten digits to base 3 are the five of each byte: 3^n u has the next digits
 * above bit 16 for any n of them at once. Words 0 to 5 have bytes 4 w and 4 w + 1 of a block below,
 * the next two above. The unit of the last two bytes, eight digits, is behind the 16 scales of the
 * strip, one for each row.
 */
#ifndef CPU_PANELS_H
#define CPU_PANELS_H

#include <stdint.h>

#include "cpu.h"
#include "oxb_shim.h"

#define CPU_TRIT_WORDS  7u /* of 128 weights */
#define CPU_DIGIT_WORDS 6u /* the same, with one more unit beside the scale */

/* How `layout` packs the codes of a device format; CPU_PACKING_COUNT where it does not. */
cpu_packing cpu_panel_packing(uint32_t format, uint32_t layout);

/* Strips of a panel: they share each table that is loaded, as far as registers allow. Trits and
 * digits have the largest tables. */
static inline uint64_t cpu_panel_strips(cpu_packing packing) {
    return packing == CPU_TRITS || packing == CPU_DIGITS ? CPU_MAX_PANEL : 4;
}

/* Of a strip's scale group, 16 bits each: scales, and units beside them. */
static inline uint64_t cpu_panel_scales(cpu_packing packing) {
    return packing == CPU_DIGITS ? 2 * CPU_LANES : CPU_LANES;
}

static inline uint64_t cpu_panel_rows_of(cpu_packing packing) {
    return cpu_panel_strips(packing) * CPU_LANES;
}

/* Words of a scale group. */
static inline uint64_t cpu_panel_words(cpu_packing packing, uint64_t group_size) {
    return packing == CPU_BITS    ? group_size / 32
           : packing == CPU_PAIRS ? group_size / 16
           : packing == CPU_TRITS ? CPU_TRIT_WORDS
                                  : CPU_DIGIT_WORDS;
}

/* Bytes of an n_rows x k matrix, and of the scales that come first; UINT64_MAX where that does not
 * fit. */
uint64_t cpu_panel_bytes(cpu_packing packing, uint64_t group_size, uint64_t n_rows, uint64_t k,
                         uint64_t *codes_offset);

/* A matrix in panels. */
typedef struct cpu_panels {
    const uint16_t *scales;
    const uint32_t *codes;
    uint64_t n_groups;   /* of a row */
    uint64_t words;      /* of a scale group */
    uint64_t n_scales;   /* of a scale group of a strip: cpu_panel_scales() */
    uint32_t group_size; /* weights */
    cpu_packing packing;
} cpu_panels;

/* Where a scale group of a strip lies, counted in strips. */
static inline uint64_t cpu_strip_at(const cpu_panels *p, uint64_t strip, uint64_t group) {
    const uint64_t strips = cpu_panel_strips(p->packing);
    return (strip / strips * p->n_groups + group) * strips + strip % strips;
}

/* Which weight digit n of byte b of a block is: the order of PTQ1_0. */
static inline unsigned cpu_digit_weight(unsigned b, unsigned n) {
    return b < 16 ? 16 * n + b : b < 24 ? 80 + 8 * n + (b - 16) : 120 + 2 * n + (b - 24);
}

cpu_panels cpu_panels_at(const void *weight, uint64_t codes_offset, uint32_t format,
                         uint32_t layout, uint64_t k);

/* Rows of one or two parts of a matrix times the vectors, n rows of each (gate and up of SwiGLU):
 * row (first[p] + i) times vector v is sums.part[p][v * sums.stride + i]. */
typedef struct cpu_sums {
    const double *part[2];
    uint64_t stride;
} cpu_sums;

/* `out` holds two strips more than the rows of each part, for each of 1, 2 or 4 vectors; `again`:
 * `tables` are those of the vectors. */
cpu_sums cpu_panel_rows(const cpu_call *call, const cpu_matrix *m, const uint64_t *first,
                        uint32_t n_parts, uint64_t n, int again, double *out, float *tables);

#define CPU_INT8_ROWS    32u /* of a part, the most at once */
#define CPU_INT8_VECTORS 64u /* the most at once */

/* The same for quantised vectors; `bytes` holds CPU_TABLES. */
cpu_sums cpu_int8_rows(const cpu_call *call, const cpu_matrix *m, const uint64_t *first,
                       uint32_t n_parts, uint64_t n, double *out, uint32_t *bytes);

/* Replace results that are not finite by those of the definition: n rows of a part, m's vectors. */
void cpu_repair_rows(const cpu_panels *p, const cpu_matrix *m, uint64_t first, uint64_t n,
                     double *out, uint64_t stride);

/* Scale group `group` of a row by the definition: (code - 1) * scale, or +-scale. */
void cpu_panel_weights(const cpu_panels *p, uint64_t row, uint64_t group, float *weights);

/* Pack a matrix in a file format, on up to `threads` threads. Returns 0 where a code does not fit.
 */
int cpu_pack(const cpu_isa *isa, const oxb_host *host, oxb_file_format format, uint32_t layout,
             const void *from, uint64_t n_rows, uint64_t k, void *to, uint32_t threads);

#endif
