// Rows of memory as operands of shaders/matrix.h, without a stay in threadgroup memory: 16 rows of
// halves as they lie, in loads of 16 bytes.
//
//   along    a row is a vector, and its elements lie along it: the keys of 16 positions, two eights
//            of vectors
//   across   a row is an element of all vectors, which lie along it: the values of 16 positions
//
// The order of elements, and of vectors, is the device's own: one that makes a lane's part of a
// tile of what the lane has loaded. What a row of a matrix is multiplied by has its elements in the
// order of matrix_along_element().
#ifndef OXB_MATRIX_MEMORY_H
#define OXB_MATRIX_MEMORY_H

// The first halves of two words, and the second ones.
inline uint matrix_firsts(uint a, uint b) { return (a & 0xffffu) | b << 16u; }
inline uint matrix_seconds(uint a, uint b) { return a >> 16u | (b & 0xffff0000u); }

inline uint matrix_either(uint a, uint b, uint i) {
    return i % 2u == 0u ? matrix_firsts(a, b) : matrix_seconds(a, b);
}

#if defined(MSL_CUDA_H)

#define OXB_QUAD_LOW  1u // bits of a lane that tell the quads of a row apart
#define OXB_QUAD_HIGH 2u

inline uint matrix_lane(uint row, uint quad) { return row * 4u + quad; }

// Load i of an eight of rows along: a row of the eight, and 8 halves of it, counted in eights.
inline uint matrix_along_row(uint lane, uint) { return lane / 4u; }
inline uint matrix_along_unit(uint lane, uint i) { return 4u * i + lane % 4u; }

// The words of a step, from the loads of an eight of rows.
inline void matrix_along(thread const uint4 *loads, uint step, thread uint &first,
                         thread uint &second) {
    first = loads[step / 2u][step % 2u * 2u];
    second = loads[step / 2u][step % 2u * 2u + 1u];
}

// Element i of a quad in a step.
inline uint matrix_along_element(uint step, uint quad, uint i) {
    return step / 2u * 32u + quad * 8u + step % 2u * 4u + i;
}

// Load i of 16 rows across: four for 64 vectors.
inline uint matrix_across_row(uint lane, uint i) {
    return lane % 4u * 2u + i % 2u + i / 2u % 2u * 8u;
}
inline uint matrix_across_unit(uint lane, uint i) { return i / 4u * 8u + lane / 4u; }

// The words of an eight of vectors.
inline void matrix_across(thread const uint4 *loads, uint eight, thread uint &first,
                          thread uint &second) {
    const uint at = eight / 8u * 4u, word = eight % 8u / 2u;
    first = matrix_either(loads[at][word], loads[at + 1u][word], eight);
    second = matrix_either(loads[at + 2u][word], loads[at + 3u][word], eight);
}

// A lane's sums are runs of eight vectors that lie side by side: from which on, and which sum of
// which eight has number j of a run.
inline uint matrix_run_start(uint run, uint quad) {
    return run / 2u * 64u + quad * 16u + run % 2u * 8u;
}
inline uint matrix_run_eight(uint run, uint j) { return run / 2u * 8u + j; }
inline uint matrix_run_sum(uint run, uint) { return run % 2u; }
// Where vector v is.
inline uint matrix_run_of(uint v) { return v / 64u * 2u + v / 8u % 2u; }
inline uint matrix_run_quad(uint v) { return v / 16u % 4u; }

inline void matrix_scale(thread matrix_sums &sums, float upper, float lower) {
    sums.at[0] *= upper;
    sums.at[1] *= upper;
    sums.at[2] *= lower;
    sums.at[3] *= lower;
}

#else

#define OXB_QUAD_LOW  1u
#define OXB_QUAD_HIGH 8u

inline uint matrix_lane(uint row, uint quad) {
    return (row & 4u) << 2u | (row & 3u) << 1u | (quad & 2u) << 2u | (quad & 1u);
}

inline uint matrix_along_row(uint lane, uint i) { return 2u * matrix_quad(lane) + i % 2u; }
inline uint matrix_along_unit(uint lane, uint i) { return i / 2u * 8u + matrix_row(lane); }

inline void matrix_along(thread const uint4 *loads, uint step, thread uint &first,
                         thread uint &second) {
    const uint at = step / 4u * 2u, word = step % 4u;
    first = matrix_firsts(loads[at][word], loads[at + 1u][word]);
    second = matrix_seconds(loads[at][word], loads[at + 1u][word]);
}

inline uint matrix_along_element(uint step, uint quad, uint i) {
    return step / 4u * 64u + (quad * 2u + i % 2u) * 8u + step % 4u * 2u + i / 2u;
}

inline uint matrix_across_row(uint lane, uint i) { return matrix_row(lane) + i % 2u * 8u; }
inline uint matrix_across_unit(uint lane, uint i) { return i / 2u * 4u + matrix_quad(lane); }

inline void matrix_across(thread const uint4 *loads, uint eight, thread uint &first,
                          thread uint &second) {
    first = loads[eight / 4u * 2u][eight % 4u];
    second = loads[eight / 4u * 2u + 1u][eight % 4u];
}

inline uint matrix_run_start(uint run, uint quad) { return run * 32u + quad * 8u; }
inline uint matrix_run_eight(uint run, uint j) { return run * 4u + j / 2u; }
inline uint matrix_run_sum(uint, uint j) { return j % 2u; }
inline uint matrix_run_of(uint v) { return v / 32u; }
inline uint matrix_run_quad(uint v) { return v / 8u % 4u; }

inline void matrix_scale(thread matrix_sums &sums, float upper, float lower) {
    sums.low.thread_elements()[0] *= upper;
    sums.low.thread_elements()[1] *= upper;
    sums.high.thread_elements()[0] *= lower;
    sums.high.thread_elements()[1] *= lower;
}

#endif

// Over the lanes of a row of sums, which hold its columns; the same bits in all of them.
inline float matrix_row_max(float x) {
    x = max(x, simd_shuffle_xor(x, ushort(OXB_QUAD_LOW)));
    return max(x, simd_shuffle_xor(x, ushort(OXB_QUAD_HIGH)));
}
inline float matrix_row_sum(float x) {
    x += simd_shuffle_xor(x, ushort(OXB_QUAD_LOW));
    return x + simd_shuffle_xor(x, ushort(OXB_QUAD_HIGH));
}

#endif
