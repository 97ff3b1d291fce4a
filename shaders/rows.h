// Rows of a weight matrix times a vector, for weights that carry their own value: what gemv and
// swiglu share.
#ifndef OXB_ROWS_H
#define OXB_ROWS_H

// Rows of the output per SIMD-group, and for codes per lane: 1, 2 or 4. More rows share each load
// of the activations; fewer fill a chip with smaller matrices. The constant chooses among template
// instances, because a loop that it bounds might not be unrolled, and arrays of sums would leave
// the registers.
constant uint rows_constant [[function_constant(0)]];
constant uint rows_at_once = is_function_constant_defined(rows_constant) ? rows_constant : 2u;

// sums[p * ROWS + r] = this lane's share of row (p * n_rows + first + r) of w times x. A row past
// n_rows repeats the last one: its sum is not to be used.
template <typename Format, uint PARTS, uint ROWS>
inline void multiply_rows(weight_bytes w, uint n_rows, uint first, device const float *x, uint lane,
                          thread float *sums) {
    const uint step = Format::lane_weights;
    const uint whole = uint(w.k) / step * step;
    ulong row[PARTS * ROWS];
    OXB_UNROLL
    for (uint r = 0; r < PARTS * ROWS; r++) {
        row[r] = r / ROWS * ulong(n_rows) + min(first + r % ROWS, n_rows - 1u);
        sums[r] = 0.0f;
    }
    for (uint j = lane * step; j < whole; j += OXB_SIMD_WIDTH * step) {
        float part[Format::lane_weights];
        OXB_UNROLL
        for (uint i = 0; i < step; i += 4) {
            // Packed: a binding starts at a multiple of 4 bytes.
            const packed_float4 four = *(device const packed_float4 *)(x + j + i);
            part[i] = four[0];
            part[i + 1] = four[1];
            part[i + 2] = four[2];
            part[i + 3] = four[3];
        }
        OXB_UNROLL
        for (uint r = 0; r < PARTS * ROWS; r++) {
            float values[Format::lane_weights];
            Format::values(w, row[r], j, values);
            float total = 0.0f;
            OXB_UNROLL
            for (uint i = 0; i < step; i++) total = fma(values[i], part[i], total);
            sums[r] += total;
        }
    }
    // What is left is shorter than a lane's share, and that is at most as long as a SIMD-group.
    const uint j = whole + lane;
    if (j < uint(w.k)) {
        OXB_UNROLL
        for (uint r = 0; r < PARTS * ROWS; r++)
            sums[r] = fma(Format::weight(w, row[r], j), x[j], sums[r]);
    }
}

// Lane r gets the whole sum of row r, so that the rows are written side by side.
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
