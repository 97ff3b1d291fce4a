// Products of small tiles on matrix units: 16 rows of a matrix by 8 vectors over 16 elements, in
// half, accumulated in float. The elements lie over the lanes of a SIMD-group in an order of the
// device's own, which the functions here name:
//
//   rows     lane: pairs of elements of rows matrix_row(lane) and 8 below it; quad
//   matrix_quad(lane)
//            holds elements 2 quad, 2 quad + 1 and, 8 on, a second pair
//   vectors  the same elements of 8 vectors, in memory where matrix_store() puts them: four words
//   of
//            a lane, two of what they are rounded to and two of the rest
//   sums     of rows matrix_row(lane) and 8 below it, vectors 2 quad and 2 quad + 1
//
// Every product of two halves is exact in float. Zeros, infinities and NaN follow IEEE.
//
// And in signed bytes, accumulated in int, of 16 rows by 8 columns over 32 elements, which lie
// alike on every device:
//
//   rows     lane: elements 4 (lane % 4) to 4 (lane % 4) + 3, and those 16 on, of rows lane / 4 and
//            8 below it
//   columns  the same elements of column lane / 4
//   sums     of rows lane / 4 and 8 below it, columns 2 (lane % 4) and 2 (lane % 4) + 1
#ifndef OXB_MATRIX_H
#define OXB_MATRIX_H

inline uint matrix_join(half low, half high) {
    return uint(as_type<ushort>(low)) | uint(as_type<ushort>(high)) << 16u;
}

// matrix_store(tile, vector, quad, near, rest) stores the elements of a quad: 2 quad and 2 quad +
// 1, then those 8 on. Element i of them is half matrix_half(vector, quad, i) of the tile, and its
// rest four halves on.

#if defined(MSL_CUDA_H)

inline uint matrix_row(uint lane) { return lane / 4u; }
inline uint matrix_quad(uint lane) { return lane % 4u; }

inline uint matrix_half(uint vector, uint quad, uint i) { return (vector * 4u + quad) * 8u + i; }

inline void matrix_store(device uint4 *tile, uint vector, uint quad, thread const half *near,
                         thread const half *rest) {
    uint words[4];
    OXB_UNROLL
    for (uint pair = 0; pair < 2u; pair++) {
        words[pair] = matrix_join(near[2u * pair], near[2u * pair + 1u]);
        words[2u + pair] = matrix_join(rest[2u * pair], rest[2u * pair + 1u]);
    }
    tile[vector * 4u + quad] = uint4(words[0], words[1], words[2], words[3]);
}

struct matrix_sums {
    float at[4];
};

inline void matrix_clear(thread matrix_sums &sums) {
    OXB_UNROLL
    for (uint i = 0; i < 4u; i++) sums.at[i] = 0.0f;
}

// Sum i: of row 8 (i / 2) below the lane's, vector i % 2 of the lane's.
inline float matrix_sum(thread const matrix_sums &sums, uint i) { return sums.at[i]; }

// sums += rows * vectors. rows[2 pair + h]: a pair of elements of the row 8 h below the lane's.
inline void matrix_add(thread matrix_sums &sums, thread const uint *rows, uint first, uint second) {
    metal::msl_matrix_tile(sums.at, rows, first, second);
}

// a * b + c of each of two halves.
inline uint matrix_fma(uint a, uint b, uint c) { return metal::msl_pair_fma(a, b, c); }

// A constant in a register: an instruction takes one other constant, and the compiler would make
// this one anew for each.
inline uint matrix_keep(uint value) { return metal::msl_keep(value); }

// Keeps the compiler from moving loads to before this place.
inline void matrix_fence() { metal::msl_matrix_fence(); }

// sums = before + rows * columns. rows[2 part + h]: elements 16 part on of the row 8 h below the
// lane's; first and second: the two parts of the lane's column. Sum i: of row 8 (i / 2) below the
// lane's, column i % 2 of the lane's.
inline void matrix_add_bytes(thread int *sums, thread const int *before, thread const uint *rows,
                             uint first, uint second, uint) {
    metal::msl_matrix_bytes(sums, before, rows, first, second);
}

// Byte i of the result is byte (selector >> 4 i & 15) of b:a.
inline uint matrix_permute(uint a, uint b, uint selector) { return __byte_perm(a, b, selector); }

#else

inline uint matrix_row(uint lane) { return (lane >> 2u & 4u) + (lane >> 1u & 3u); }
inline uint matrix_quad(uint lane) { return (lane >> 2u & 2u) + (lane & 1u); }

inline uint matrix_half(uint vector, uint quad, uint i) {
    const uint row = 2u * quad + i % 2u, column = vector / 2u;
    const uint lane = (row & 4u) << 2u | (row & 3u) << 1u | (column & 2u) << 2u | (column & 1u);
    return lane * 8u + i / 2u * 2u + vector % 2u;
}

inline void matrix_store(device uint4 *tile, uint vector, uint quad, thread const half *near,
                         thread const half *rest) {
    OXB_UNROLL
    for (uint i = 0; i < 4u; i++) {
        device half *to = (device half *)tile + matrix_half(vector, quad, i);
        to[0] = near[i];
        to[4] = rest[i];
    }
}

struct matrix_sums {
    simdgroup_float8x8 low, high; // rows 0..7 and 8..15
};

inline void matrix_clear(thread matrix_sums &sums) {
    sums.low = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    sums.high = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
}

inline float matrix_sum(thread matrix_sums &sums, uint i) {
    return i < 2u ? sums.low.thread_elements()[i % 2u] : sums.high.thread_elements()[i % 2u];
}

// A lane's two elements one by one: thread_elements() is a vector of 64 in Apple's compiler.
inline void matrix_set(thread simdgroup_half8x8 &matrix, uint pair) {
    const half2 two = as_type<half2>(pair);
    matrix.thread_elements()[0] = two.x;
    matrix.thread_elements()[1] = two.y;
}

inline void matrix_add(thread matrix_sums &sums, thread const uint *rows, uint first, uint second) {
    simdgroup_half8x8 row, vectors;
    matrix_set(vectors, first);
    matrix_set(row, rows[0]);
    simdgroup_multiply_accumulate(sums.low, row, vectors, sums.low);
    matrix_set(row, rows[1]);
    simdgroup_multiply_accumulate(sums.high, row, vectors, sums.high);
    matrix_set(vectors, second);
    matrix_set(row, rows[2]);
    simdgroup_multiply_accumulate(sums.low, row, vectors, sums.low);
    matrix_set(row, rows[3]);
    simdgroup_multiply_accumulate(sums.high, row, vectors, sums.high);
}

inline uint matrix_fma(uint a, uint b, uint c) {
    return as_type<uint>(fma(as_type<half2>(a), as_type<half2>(b), as_type<half2>(c)));
}

inline uint matrix_keep(uint value) { return value; }

inline void matrix_fence() {}

inline int matrix_dot(uint a, uint b) {
    const char4 left = as_type<char4>(a), right = as_type<char4>(b);
    int sum = 0;
    OXB_UNROLL
    for (uint i = 0; i < 4u; i++) sum += int(left[i]) * int(right[i]);
    return sum;
}

inline void matrix_add_bytes(thread int *sums, thread const int *before, thread const uint *rows,
                             uint first, uint second, uint lane) {
    const uint4 own_rows = uint4(rows[0], rows[1], rows[2], rows[3]);
    const uint2 own_column = uint2(first, second);
    const uint row = lane & 28u, column = lane % 4u * 8u;
    OXB_UNROLL
    for (uint i = 0; i < 4u; i++) sums[i] = before[i];
    for (uint quad = 0; quad < 4u; quad++) {
        const uint4 a = simd_shuffle(own_rows, ushort(row + quad));
        OXB_UNROLL
        for (uint i = 0; i < 2u; i++) {
            const uint2 b = simd_shuffle(own_column, ushort(column + 4u * i + quad));
            sums[i] += matrix_dot(a[0], b[0]) + matrix_dot(a[2], b[1]);
            sums[2u + i] += matrix_dot(a[1], b[0]) + matrix_dot(a[3], b[1]);
        }
    }
}

inline uint matrix_permute(uint a, uint b, uint selector) {
    uint bytes = 0;
    OXB_UNROLL
    for (uint i = 0; i < 4u; i++) {
        const uint from = selector >> 4u * i & 15u;
        bytes |= ((from < 4u ? a : b) >> 8u * (from & 3u) & 255u) << 8u * i;
    }
    return bytes;
}

#endif

// Levels of two codes of a word as halves: pair p is code p and the one half a word on.

// `held` is matrix_hold() of the kind of code.

struct matrix_held {
    uint bits;
};

inline matrix_held matrix_hold(code_1bit) { return {matrix_keep(0xbc00bc00u)}; }

inline uint matrix_pair(code_1bit, uint word, uint p, matrix_held held) {
    return (word << (15u - p) & 0x80008000u) ^ held.bits; // the bit becomes the sign of 1
}

inline matrix_held matrix_hold(code_2bit) { return {matrix_keep(0x64006400u)}; }

inline uint matrix_pair(code_2bit, uint word, uint p, matrix_held held) {
    // In the significand of 1024 a code of up to 10 bits is the integer that it is.
    const uint at = 2u * (p < 5u ? p : p - 5u);
    const uint bits = ((p < 5u ? word : word >> 10u) & 0x30003u << at) | held.bits;
    const uint shrink = 0x3c00u - (at << 10u); // 2^-at
    // -(1024 * 2^-at + 1)
    const uint less = at == 0u   ? 0xe401u
                      : at == 2u ? 0xdc04u
                      : at == 4u ? 0xd410u
                      : at == 6u ? 0xcc40u
                                 : 0xc500u;
    return matrix_fma(bits, shrink * 0x10001u, less * 0x10001u);
}

// Two weights as halves: the levels of matrix_pair() times their row's scale, which
// matrix_factor() holds. Exact but for level 2 of a scale above 32752, which becomes infinite.
// `held` is matrix_hold_weights() of the kind of code: constants in registers, since an instruction
// takes one other. `nothing` is a zero that the compiler does not know, so that it keeps them
// there.

struct matrix_held_levels {
    uint bits, less[3];
};

inline matrix_held matrix_hold_weights(code_1bit, uint nothing) { return {nothing}; }

inline uint matrix_factor(code_1bit, half scale) {
    return (as_type<ushort>(scale) ^ 0x8000u) * 0x10001u;
}

inline uint matrix_weights(code_1bit, uint word, uint p, uint factor, matrix_held) {
    return (word << (15u - p) & 0x80008000u) ^ factor; // the bit turns the sign of -scale
}

inline matrix_held_levels matrix_hold_weights(code_2bit, uint nothing) {
    return {0x64006400u + nothing,
            {0xe401e401u + nothing, 0xdc04dc04u + nothing, 0xd410d410u + nothing}};
}

inline uint matrix_factor(code_2bit, half scale) { return as_type<ushort>(scale) * 0x10001u; }

inline uint matrix_weights(code_2bit, uint word, uint p, uint factor, matrix_held_levels held) {
    // As in matrix_pair(), with shifts in the place of two constants: 1024 + code * 2^at.
    const uint at = p % 3u * 2u;
    const uint bits = (word >> p / 3u * 6u & 0x30003u << at) | held.bits;
    const uint level = matrix_fma(bits, (0x3c00u - (at << 10u)) * 0x10001u, held.less[p % 3u]);
    return matrix_fma(level, factor, 0x80008000u); // less zero
}

#endif
