/* For each set of four lanes of 32 bits, the places of the bytes of those in it, in order: for
 * instructions that look up the bytes of a register. */
#ifndef CPU_SUBSETS_H
#define CPU_SUBSETS_H

#include <stdint.h>

#define LANE(i)           4 * (i), 4 * (i) + 1, 4 * (i) + 2, 4 * (i) + 3
#define LANES(a, b, c, d) {LANE(a), LANE(b), LANE(c), LANE(d)}

static const uint8_t simd_subsets[16][16] = {
    LANES(0, 0, 0, 0), LANES(0, 0, 0, 0), LANES(1, 0, 0, 0), LANES(0, 1, 0, 0),
    LANES(2, 0, 0, 0), LANES(0, 2, 0, 0), LANES(1, 2, 0, 0), LANES(0, 1, 2, 0),
    LANES(3, 0, 0, 0), LANES(0, 3, 0, 0), LANES(1, 3, 0, 0), LANES(0, 1, 3, 0),
    LANES(2, 3, 0, 0), LANES(0, 2, 3, 0), LANES(1, 2, 3, 0), LANES(0, 1, 2, 3)};

#undef LANE
#undef LANES

#endif
