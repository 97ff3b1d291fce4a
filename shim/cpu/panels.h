/* The layout of block weights that vector kernels read: panels of 64 rows (128 of trits), in tiles
 * of 16.
 *
 * Scales, then codes, each [panel][group][tile]: a tile holds 16 half scales, and its words as
 * [word][row 16], so that one load brings a word of 16 rows, and a thread that walks down the rows
 * reads memory in one direction. Rows past the last are codes and scales of zero bits.
 *
 * The codes of a word, with 1 or 2 bits each: field l of byte b is weight 4 l + b, so that a shift
 * and a mask leave four neighbouring weights in the four bytes. In trits, field f of word w stands
 * for weights 18 w + 3 f and the next two: n = w0 + 3 w1 + 9 w2, each of them -1, 0 or 1, with |n|
 * in bits 5 f to 5 f + 3 and whether n is negative in the bit below them, so that to turn the word
 * right by 5 f leaves |n| at the bottom and the sign at the top. Weights 126 and 127 are the two
 * bits of words 0 and 1 that are left, 29 and 30. A matrix with a code of 3 has no trits.
 */
#ifndef CPU_PANELS_H
#define CPU_PANELS_H

#include <stdint.h>

#include "cpu.h"
#include "oxb_shim.h"

#define CPU_TRIT_WORDS 7u /* of 128 weights */

/* How `layout` holds the codes of a device format; CPU_CODE_COUNT where it cannot. */
cpu_code cpu_panel_code(uint32_t format, uint32_t layout);

/* Tiles of a panel: how many share each table as it is loaded, where there are registers for it.
 * Trits have the largest tables. */
static inline uint64_t cpu_panel_tiles(cpu_code code) {
    return code == CPU_TRITS ? CPU_MAX_PANEL : 4;
}

static inline uint64_t cpu_panel_rows_of(cpu_code code) {
    return cpu_panel_tiles(code) * CPU_LANES;
}

/* Words of a group. */
static inline uint64_t cpu_panel_words(cpu_code code, uint64_t group) {
    return code == CPU_BITS ? group / 32 : code == CPU_PAIRS ? group / 16 : CPU_TRIT_WORDS;
}

/* Bytes of an n_rows x k matrix, and of the scales that come first; UINT64_MAX where that does not
 * fit. */
uint64_t cpu_panel_bytes(cpu_code code, uint64_t group, uint64_t n_rows, uint64_t k,
                         uint64_t *codes_offset);

/* A matrix in panels. */
typedef struct cpu_panels {
    const uint16_t *scales;
    const uint32_t *codes;
    uint64_t n_groups; /* of a row */
    uint64_t words;    /* of a group */
    uint32_t group;    /* weights */
    cpu_code code;
} cpu_panels;

/* Where a group of a tile lies, counted in tiles. */
static inline uint64_t cpu_tile_at(const cpu_panels *p, uint64_t tile, uint64_t group) {
    const uint64_t tiles = cpu_panel_tiles(p->code);
    return (tile / tiles * p->n_groups + group) * tiles + tile % tiles;
}

cpu_panels cpu_panels_at(const void *weight, uint64_t codes_offset, uint32_t format,
                         uint32_t layout, uint64_t k);

/* Rows of one or two parts of a matrix times the vectors, n rows of each: row (first[p] + i) times
 * vector v is sums.part[p][v * sums.stride + i]. */
typedef struct cpu_sums {
    const double *part[2];
    uint64_t stride;
} cpu_sums;

/* `out` holds two tiles more than the rows of each part, for each of 1, 2 or 4 vectors; `again`:
 * `tables` are those of the vectors. */
cpu_sums cpu_panel_rows(const cpu_call *call, const cpu_matrix *m, const uint64_t *first,
                        uint32_t n_parts, uint64_t n, int again, double *out, float *tables);

#define CPU_INT8_ROWS    32u /* of a part, the most at once */
#define CPU_INT8_VECTORS 64u /* the most at once */

/* The same for quantised vectors; `bytes` holds CPU_TABLES. */
cpu_sums cpu_int8_rows(const cpu_call *call, const cpu_matrix *m, const uint64_t *first,
                       uint32_t n_parts, uint64_t n, double *out, uint32_t *bytes);

/* Replace what is not finite by what the definition says, for vectors `out` has, n rows of a part.
 */
void cpu_repair_rows(const cpu_panels *p, const cpu_matrix *m, uint64_t first, uint64_t n,
                     double *out, uint64_t stride);

/* Group `group` of a row by the definition: (code - 1) * scale, or +-scale. */
void cpu_panel_weights(const cpu_panels *p, uint64_t row, uint64_t group, float *weights);

/* Pack a matrix in a file format, on up to `threads` threads. Returns 0 where a code does not fit.
 */
int cpu_pack(const cpu_isa *isa, oxb_file_format format, oxb_layout layout, const void *from,
             uint64_t n_rows, uint64_t k, void *to, uint32_t threads);

#endif
