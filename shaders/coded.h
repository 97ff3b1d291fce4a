// Products of a coded matrix and a vector: what the forms of gemv and swiglu share for 1-bit and
// 2-bit codes. A form is a type with the members
//
//   rows      of a set: a SIMD-group computes 1, 2 or 4 sets of each matrix
//   memory    threadgroup memory of its own
//
// and a function multiply_codes() for a coded_memory of it, which computes, for each split of k,
//
//   memory.sums[split][r * rows + i]   the split's share of the product of the vector and row
//                                      m * n_rows + first + i + rows * q of w, for r = m * ROWS +
//                                      q, in matrix m of MATRICES
//   memory.squares[split]              with a norm, the sum of the squares of its share of x
//
// in which a row past n_rows repeats the last one, whose sum must not be used. It ends with a
// barrier of the threadgroup.
#ifndef OXB_CODED_H
#define OXB_CODED_H

// Split s takes loads s, s + 8, s + 16 ... of a row. Their number does not depend on that of the
// SIMD-groups, so that the order of additions, and with it the result, does not either.
#define OXB_SPLITS 8u

template <typename Form, uint SETS>
struct coded_memory {
    typename Form::memory own;
    float sums[OXB_SPLITS][SETS * Form::rows];
    float squares[OXB_SPLITS]; // sums over the activations of each split
    float partial[OXB_MAX_SIMDGROUPS];
};

// What the matrix is multiplied by: x, or x * scale * inverse * weight where there is a norm.
struct coded_input {
    device const float *x;
    device const float *weight;
    float scale, inverse;
};

template <bool NORM>
inline float normalised(coded_input input, float x, float weight) {
    return NORM ? x * input.scale * input.inverse * weight : x;
}

// Rows of the lane's sets, of all matrices; `set` is the first row of a set that is the lane's.
template <uint MATRICES, uint ROWS, uint SET_ROWS>
inline void rows_of_lane(uint set, uint n_rows, thread uint *row) {
    OXB_UNROLL
    for (uint r = 0; r < MATRICES * ROWS; r++)
        row[r] = r / ROWS * n_rows + min(set + r % ROWS * SET_ROWS, n_rows - 1u);
}

inline bool is_finite(half scale) { return (as_type<ushort>(scale) & 0x7c00) != 0x7c00; }

// The sum of level * scale * activation over a word of codes from weight j on, for a scale that is
// infinite or NaN: the scale times the sum of the others would differ.
template <typename Format, bool NORM>
inline float add_by_definition(uint codes, float scale, coded_input input, uint j, float sum) {
    OXB_ROLLED
    for (uint i = 0; i < Format::lane_weights; i++) {
        const float weight = NORM ? input.weight[j + i] : 1.0f;
        const float value = normalised<NORM>(input, input.x[j + i], weight);
        sum = fma(Format::code::level(codes, i) * scale, value, sum);
    }
    return sum;
}

template <typename Form, uint SETS>
inline float sum_of_splits(threadgroup const coded_memory<Form, SETS> &memory, uint i) {
    float sum = 0.0f;
    OXB_UNROLL
    for (uint split = 0; split < OXB_SPLITS; split++) sum += memory.sums[split][i];
    return sum;
}

#endif
