// Products of a dense matrix and a vector: what gemv and swiglu share for dense formats.
#ifndef OXB_ROWS_H
#define OXB_ROWS_H

// Rows of the output that a SIMD-group computes, or sets of rows for coded formats (coded.h): 1, 2
// or 4. More rows share each load of the activations; fewer give small matrices enough threadgroups
// to occupy the GPU. The constant selects a template instance: a loop bounded by the constant
// itself might stay rolled, and arrays of sums would spill from registers.
constant uint rows_constant [[function_constant(0)]];
constant uint rows_at_once = is_function_constant_defined(rows_constant) ? rows_constant : 2u;

// sums[m * ROWS + r] = this lane's share of the product of x and row m * n_rows + first + r of w,
// in matrix m of MATRICES. A row past n_rows repeats the last one; its sum must not be used.
template <typename Format, uint MATRICES, uint ROWS>
inline void multiply_rows(weight_bytes w, uint n_rows, uint first, device const float *x, uint lane,
                          thread float *sums) {
    const uint step = Format::lane_weights;
    const uint whole = uint(w.k) / step * step;
    ulong row[MATRICES * ROWS];
    OXB_UNROLL
    for (uint r = 0; r < MATRICES * ROWS; r++) {
        row[r] = r / ROWS * ulong(n_rows) + min(first + r % ROWS, n_rows - 1u);
        sums[r] = 0.0f;
    }
    for (uint j = lane * step; j < whole; j += OXB_SIMD_WIDTH * step) {
        float inputs[Format::lane_weights];
        OXB_UNROLL
        for (uint i = 0; i < step; i += 4) {
            // Packed, for a binding's offset is a multiple of 4 bytes only.
            const packed_float4 four = *(device const packed_float4 *)(x + j + i);
            inputs[i] = four[0];
            inputs[i + 1] = four[1];
            inputs[i + 2] = four[2];
            inputs[i + 3] = four[3];
        }
        OXB_UNROLL
        for (uint r = 0; r < MATRICES * ROWS; r++) {
            float values[Format::lane_weights];
            Format::values(w, row[r], j, values);
            float total = 0.0f;
            OXB_UNROLL
            for (uint i = 0; i < step; i++) total = fma(values[i], inputs[i], total);
            sums[r] += total;
        }
    }
    // The remainder is below lane_weights, which is at most a SIMD-group's width.
    const uint j = whole + lane;
    if (j < uint(w.k)) {
        OXB_UNROLL
        for (uint r = 0; r < MATRICES * ROWS; r++)
            sums[r] = fma(Format::weight(w, row[r], j), x[j], sums[r]);
    }
}

// Lane r gets the sum of row r over all lanes, so that the writes are coalesced.
template <uint ROWS>
inline float row_of_lane(thread const float *sums, uint lane) {
    float result = 0.0f;
    OXB_UNROLL
    for (uint r = 0; r < ROWS; r++) {
        const float sum = simd_sum(sums[r]);
        result = lane == r ? sum : result;
    }
    return result;
}

#endif
