// Which rows of a matrix the tiles of a SIMD-group hold, for products on matrix units. A row past
// the end repeats the last one; its sums must not be used.
#ifndef OXB_MATRIX_ROWS_H
#define OXB_MATRIX_ROWS_H

struct plain_rows {
    enum { matrices = 1 };
};

struct gate_up_rows { // half of the tiles of the gate, then the same rows of up
    enum { matrices = 2 };
};

// Row r of a lane, of which it has every 8th: two of each tile of 16. `row` holds those of the
// first matrix.
template <typename Rows, uint TILES>
inline ulong row_of(thread const uint *row, uint r, uint n_rows) {
    const uint half_rows = Rows::matrices == 1 ? 2u * TILES : TILES;
    return r < half_rows ? ulong(row[r]) : ulong(row[r - half_rows]) + n_rows;
}

#endif
