// A tile of a matrix product on SIMD-group matrices: 64 rows of W by 8, 16 or 32 vectors.
//
// Four SIMD-groups compute 16 rows each. Weights and activations are staged in threadgroup memory
// in steps of 32 along k, weights as half where each level * scale is one, else as float, in which
// it is exact. The matrices accumulate at most 128 products; these sums are added up in registers,
// so that rounding does not grow with k. A product involves its own row and vector only, so that
// infinities and NaN stay in their element.
#ifndef OXB_GEMM_H
#define OXB_GEMM_H

#define OXB_GEMM_ROWS    64u
#define OXB_GEMM_THREADS 128u
#define OXB_GEMM_STEP    32u
#define OXB_GEMM_FLUSH   4u // steps between additions to the sums
// Elements from vector to vector in threadgroup memory: lanes 0..15 of a matrix, of two elements
// each, lie in 32 banks.
#define OXB_GEMM_STRIDE 40u
#define OXB_GEMM_MEMORY ((OXB_GEMM_ROWS + 32u) * OXB_GEMM_STRIDE)

// Eights of vectors in a tile: 1, 2 or 4. The constant selects a template instance, as in rows.h.
constant uint eights_constant [[function_constant(0)]];
constant uint eights_of_tile = is_function_constant_defined(eights_constant) ? eights_constant : 1u;

// Which rows of the matrix are rows 0..63 of a tile. A row past the end repeats the last one; its
// sums must not be used.
struct plain_rows {
    enum { outputs = 64 };
    static ulong row(uint i, uint first, uint n_rows) { return min(first + i, n_rows - 1u); }
};

struct gate_up_rows { // 32 of the gate, then the same 32 of up
    enum { outputs = 32 };
    static ulong row(uint i, uint first, uint n_rows) {
        return (i < 32u ? 0ul : ulong(n_rows)) + min(first + i % 32u, n_rows - 1u);
    }
};

// From row to row. A matrix of weights is read along its columns, with rows 0, 2, 4 and 6 at once:
// an odd multiple of 4 floats, or of 8 halves, puts them into different banks, and neighbouring
// threads' stores as well.
template <typename Element>
struct weight_stride {};

template <>
struct weight_stride<float> {
    enum { elements = 36 };
};

template <>
struct weight_stride<half> {
    enum { elements = 40 };
};

// Neighbouring threads have neighbouring weights of a row.
template <typename Format, typename Rows>
inline void load_weights(weight_bytes w, uint n_rows, uint first, uint start, uint thread_index,
                         threadgroup typename Format::exact *to) {
    typedef typename Format::exact element;
    const uint run = Format::tile_weights;
    const uint runs = OXB_GEMM_STEP / run; // of a row
    OXB_UNROLL
    for (uint i = 0; i < OXB_GEMM_ROWS * runs / OXB_GEMM_THREADS; i++) {
        const uint at = i * OXB_GEMM_THREADS + thread_index;
        const ulong row = Rows::row(at / runs, first, n_rows);
        const uint j = start + at % runs * run;
        threadgroup element *here =
            to + at / runs * weight_stride<element>::elements + at % runs * run;
        if (j + run <= uint(w.k)) {
            float values[Format::tile_weights];
            Format::tile_values(w, row, j, values);
            OXB_UNROLL
            for (uint e = 0; e < run; e++) here[e] = element(values[e]);
        } else {
            for (uint e = 0; e < run; e++)
                here[e] = j + e < uint(w.k) ? element(Format::weight(w, row, j + e)) : element(0);
        }
    }
}

// memory[v * 64 + r]: of row r and vector v of the tile, in all threads.
template <typename Format, typename Rows, uint EIGHTS>
inline void gemm_tile(weight_bytes w, device const float *x, uint n_vectors, uint n_rows,
                      uint2 first, uint thread_index, thread_place place,
                      threadgroup float *memory) {
    typedef typename Format::exact element;
    const uint stride = weight_stride<element>::elements;
    threadgroup float *vectors = memory;
    threadgroup element *weights = (threadgroup element *)(memory + 32u * OXB_GEMM_STRIDE);
    const uint k = uint(w.k);
    const uint steps = (k + OXB_GEMM_STEP - 1u) / OXB_GEMM_STEP;
    simdgroup_float8x8 sums[EIGHTS][2], products[EIGHTS][2];
    OXB_UNROLL
    for (uint v = 0; v < EIGHTS; v++) {
        sums[v][0] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        sums[v][1] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
    for (uint step = 0; step < steps; step++) {
        const uint start = step * OXB_GEMM_STEP;
        threadgroup_barrier(mem_flags::mem_threadgroup); // all reads of the step before are done
        load_weights<Format, Rows>(w, n_rows, first.x, start, thread_index, weights);
        OXB_UNROLL
        for (uint i = 0; i < 2 * EIGHTS; i++) {
            const uint e = thread_index + OXB_GEMM_THREADS * i;
            const uint vector = first.y + e / OXB_GEMM_STEP, j = start + e % OXB_GEMM_STEP;
            vectors[e / OXB_GEMM_STEP * OXB_GEMM_STRIDE + e % OXB_GEMM_STEP] =
                vector < n_vectors && j < k ? x[ulong(vector) * k + j] : 0.0f;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (step % OXB_GEMM_FLUSH == 0u) {
            OXB_UNROLL
            for (uint v = 0; v < EIGHTS; v++) {
                products[v][0] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
                products[v][1] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
            }
        }
        OXB_UNROLL
        for (uint e = 0; e < OXB_GEMM_STEP; e += 8u) {
            simdgroup_matrix<element, 8, 8> rows[2];
            OXB_UNROLL
            for (uint r = 0; r < 2u; r++)
                simdgroup_load(rows[r], weights + (16u * place.simdgroup + 8u * r) * stride + e,
                               stride, ulong2(0ul, 0ul), true);
            OXB_UNROLL
            for (uint v = 0; v < EIGHTS; v++) {
                simdgroup_float8x8 vector;
                simdgroup_load(vector, vectors + 8u * v * OXB_GEMM_STRIDE + e, OXB_GEMM_STRIDE);
                simdgroup_multiply_accumulate(products[v][0], vector, rows[0], products[v][0]);
                simdgroup_multiply_accumulate(products[v][1], vector, rows[1], products[v][1]);
            }
        }
        if (step % OXB_GEMM_FLUSH == OXB_GEMM_FLUSH - 1u || step + 1u == steps) {
            OXB_UNROLL
            for (uint i = 0; i < 4u * EIGHTS; i++) // of a lane, wherever they are in the matrices
                sums[i / 4u][i / 2u % 2u].thread_elements()[i % 2u] +=
                    products[i / 4u][i / 2u % 2u].thread_elements()[i % 2u];
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    OXB_UNROLL
    for (uint v = 0; v < EIGHTS; v++) {
        threadgroup float *to = memory + 8u * v * OXB_GEMM_ROWS + 16u * place.simdgroup;
        simdgroup_store(sums[v][0], to, OXB_GEMM_ROWS);
        simdgroup_store(sums[v][1], to + 8u, OXB_GEMM_ROWS);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

#endif
