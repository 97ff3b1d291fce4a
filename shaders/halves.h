// Vectors as halves: where the tiles of shaders/matrix.h lie in memory.
//
// As two halves. A block is the activations that meet one 16-byte load of codes: 128 for 1-bit, 64
// for 2-bit codes. Of each block x * 2^shift is rounded to a half, and what is left, times 2^11, to
// another: 22 bits of each activation down to 2^-28 of the largest of the block, and below that to
// within 2^-50 of the largest, so that beside an outlier of more than 2^31 times the others that
// meets codes of level 0 alone the bound of a GEMV is not kept. The shift brings the largest to
// 2^14 or above, where neither half overflows; it is 126 at the most, so that 2^-shift is normal.
// Zero and not zero stay apart: the least of what is left is the least half.
//
// A step is the tile of 16 elements of eight vectors that one product of matrices takes. Word q of
// a row's load meets quad q: pair p of step s is code 2 s + p of the word and the one half a word
// on.
//
// In the buffer: words [eight of vectors][block][step][lane][4]; then 2^-shift as float
// [eight][block][8].
//
// As one half. The shift is that of the largest of the whole vector: each activation keeps the 11
// bits of a half down to 2^-28 of the largest, and below that is off by 2^-39 of it at the most. A
// lane's four words are those of two steps. In the buffer: words [eight][two steps][lane][4]; then
// 2^-shift as float [eight][8].
#ifndef OXB_HALVES_H
#define OXB_HALVES_H

#define OXB_HALVES_REST 2048.0f                // 2^11
#define OXB_LEAST_HALF  5.960464477539063e-08f // 2^-24

inline uint halves_steps(uint block) { return block / 16u; }

inline ulong halves_tile(uint eight, uint blocks, uint block, uint steps) {
    return (ulong(eight) * blocks + block) * steps * OXB_SIMD_WIDTH;
}

// Element of a block that is element i of a quad in a step, for blocks of `size`.
inline uint halves_element(uint step, uint quad, uint i, uint size) {
    const uint word = size / 4u;
    return quad * word + 2u * step + i / 2u + i % 2u * (word / 2u);
}

// Of the single halves of a vector: two steps of an eight, and the vector's 2^-shift.
inline ulong half_tile(uint eight, uint k) { return ulong(eight) * (k / 32u) * OXB_SIMD_WIDTH; }

inline device const float *half_units(device const uchar *halves, uint n_eights, uint k) {
    return (device const float *)((device const uint4 *)halves + half_tile(n_eights, k));
}

#endif
