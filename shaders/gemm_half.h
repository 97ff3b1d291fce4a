// Products of a coded matrix and vectors given as single halves, on matrix units: for prompts.
//
// A SIMD-group computes 16 TILES rows by 8 EIGHTS vectors over all of k. A weight, level times
// scale, is an exact half, so the sums of a row stay in the matrix units from the first block to
// the last, and infinite and NaN scales need no care. The vectors pass through threadgroup memory
// 64 elements at a time, two stages in turn: the next stage is on its way from device memory while
// the SIMD-groups multiply by this one.
#ifndef OXB_GEMM_HALF_H
#define OXB_GEMM_HALF_H

// 100 TILES + 10 EIGHTS + ROWS selects a template instance. ROWS SIMD-groups lie beside each other
// over the rows of a threadgroup, the others over its vectors.
constant uint half_shape_constant [[function_constant(0)]];
constant uint half_shape =
    is_function_constant_defined(half_shape_constant) ? half_shape_constant : 442u;

#define OXB_HALF_STAGE   64u // elements: two tiles of two steps
#define OXB_HALF_VECTORS 64u // of a threadgroup, at most

struct half_memory {
    // [stage][eight of vectors][two steps][lane]
    uint4 vectors[2u * OXB_HALF_VECTORS / 8u * 2u * 32u];
};

// Where the words and scales of a matrix lie. From row to row 32 bits suffice, and for the vectors
// in units of 16 bytes: the op layer takes other kernels for more.
struct half_matrix {
    device const uchar *codes;
    device const uchar *scales;
    ulong load, group;          // bytes from load to load of a row, from scale to scale
    uint row_codes, row_scales; // from row to row
};

template <typename Format>
inline half_matrix half_matrix_of(weight_bytes w) {
    const uint loads = uint(w.k / Format::weights_per_load);
    const bool columns = w.column != 0u;
    half_matrix m;
    m.codes = w.bytes + w.codes_offset;
    m.scales = w.bytes;
    const uint load_bytes = Format::load_bytes, scale_bytes = Format::scale_bytes;
    m.load = columns ? ulong(w.column) * load_bytes : load_bytes;
    m.group = columns ? ulong(w.column) * scale_bytes : scale_bytes;
    m.row_codes = columns ? load_bytes : loads * load_bytes;
    m.row_scales = columns ? scale_bytes : loads / uint(Format::loads_per_group) * scale_bytes;
    return m;
}

// What a threadgroup multiplies by.
struct half_input {
    device const uint4 *vectors;
    device const float *units;
    uint n_vectors, n_rows;
    uint first, first_eight; // of the threadgroup
};

// sums[t][e]: of rows 16 t on of the SIMD-group and the vectors of its eight e.
template <typename Format, typename Rows, uint TILES, uint EIGHTS, uint ROWS>
inline void multiply_half(weight_bytes w, half_input input, thread_place place,
                          threadgroup half_memory &memory,
                          thread matrix_sums (&sums)[TILES][EIGHTS]) {
    const typename Format::code kind = {};
    const uint copies = 2u * EIGHTS / ROWS; // of a stage, by each lane
    const uint parts = uint(Format::weights_per_load) / OXB_HALF_STAGE;
    const uint blocks = uint(w.k / Format::weights_per_load), stages = blocks * parts;
    const uint n_eights = (input.n_vectors + 7u) / 8u;
    const uint stage_size = place.simdgroups / ROWS * EIGHTS * 2u * OXB_SIMD_WIDTH;
    const uint quad = matrix_quad(place.lane);
    const half_matrix m = half_matrix_of<Format>(w);
    uint codes_at[2 * TILES], scales_at[2 * TILES]; // of every 8th row
    OXB_UNROLL
    for (uint r = 0; r < 2 * TILES; r++) {
        const uint of_matrix = 2u * TILES / Rows::matrices;
        const uint row = min(input.first + place.simdgroup % ROWS * (8u * of_matrix) +
                                 8u * (r % of_matrix) + matrix_row(place.lane),
                             input.n_rows - 1u) +
                         r / of_matrix * input.n_rows;
        codes_at[r] = row * m.row_codes;
        scales_at[r] = row * m.row_scales;
    }
    OXB_UNROLL
    for (uint t = 0; t < TILES; t++) {
        OXB_UNROLL
        for (uint e = 0; e < EIGHTS; e++) matrix_clear(sums[t][e]);
    }
    uint from[copies];
    uint4 coming[copies];
    OXB_UNROLL
    for (uint c = 0; c < copies; c++) {
        const uint at = place.simdgroup + c * place.simdgroups;
        const uint eight = min(input.first_eight + at / 2u, n_eights - 1u);
        from[c] = uint(half_tile(eight, uint(w.k))) + at % 2u * OXB_SIMD_WIDTH + place.lane;
        coming[c] = input.vectors[from[c]];
    }
    typedef typename Format::packing packing;
    typename packing::packed_word next_words[2 * TILES];
    half next_scales[2 * TILES];
    OXB_UNROLL
    for (uint r = 0; r < 2 * TILES; r++) {
        next_words[r] = packing::ask_word(m.codes + codes_at[r], m.scales + scales_at[r], quad);
        next_scales[r] = *(device const half *)(m.scales + scales_at[r]);
    }
    const auto held = matrix_hold_weights(kind, input.n_rows >> 31u);
    for (uint block = 0; block < blocks; block++) {
        uint words[2 * TILES], factors[2 * TILES];
        const uint next = min(block + 1u, blocks - 1u); // the last one is read again, and not used
        device const uchar *next_codes = m.codes + next * m.load;
        device const uchar *next_group = m.scales + next / uint(Format::loads_per_group) * m.group;
        OXB_UNROLL
        for (uint r = 0; r < 2 * TILES; r++) {
            words[r] = packing::word_of(next_words[r], block % uint(Format::loads_per_group), quad);
            factors[r] = matrix_factor(kind, packing::scale_of(next_words[r], next_scales[r]));
            next_words[r] =
                packing::ask_word(next_codes + codes_at[r], next_group + scales_at[r], quad);
            next_scales[r] = *(device const half *)(next_group + scales_at[r]);
        }
        OXB_UNROLL
        for (uint part = 0; part < parts; part++) {
            const uint stage = block * parts + part;
            threadgroup uint4 *vectors = memory.vectors + stage % 2u * stage_size + place.lane;
            OXB_UNROLL
            for (uint c = 0; c < copies; c++)
                vectors[(place.simdgroup + c * place.simdgroups) * OXB_SIMD_WIDTH] = coming[c];
            // Who is past it has read the stage before the last, whose place the next one takes.
            threadgroup_barrier(mem_flags::mem_threadgroup);
            device const uint4 *next_vectors =
                input.vectors + min(stage + 1u, stages - 1u) * (2u * OXB_SIMD_WIDTH);
            OXB_UNROLL
            for (uint c = 0; c < copies; c++) coming[c] = next_vectors[from[c]];
            vectors += place.simdgroup / ROWS * (EIGHTS * 2u * OXB_SIMD_WIDTH);
            OXB_UNROLL
            for (uint pair = 0; pair < 2u; pair++) {
                uint4 tiles[EIGHTS];
                OXB_UNROLL
                for (uint e = 0; e < EIGHTS; e++)
                    tiles[e] = vectors[(2u * e + pair) * OXB_SIMD_WIDTH];
                OXB_UNROLL
                for (uint half_step = 0; half_step < 2u; half_step++) {
                    const uint step = 4u * part + 2u * pair + half_step;
                    OXB_UNROLL
                    for (uint t = 0; t < TILES; t++) {
                        uint rows[4];
                        OXB_UNROLL
                        for (uint i = 0; i < 4u; i++)
                            rows[i] =
                                matrix_weights(kind, words[2u * t + i % 2u], 2u * step + i / 2u,
                                               factors[2u * t + i % 2u], held);
                        OXB_UNROLL
                        for (uint e = 0; e < EIGHTS; e++)
                            matrix_add(sums[t][e], rows, tiles[e][2u * half_step],
                                       tiles[e][2u * half_step + 1u]);
                    }
                }
            }
        }
    }
}

// The same sum of one row and vector by definition, for one in which twice a scale is no half.
template <typename Format>
inline float half_by_definition(weight_bytes w, ulong row, half_input input, uint vector) {
    const uint size = Format::weights_per_load, k = uint(w.k);
    device const uint4 *tiles = input.vectors + half_tile(vector / 8u, k);
    float sum = 0.0f;
    for (uint at = 0; at < k; at++) {
        const uint step = at / 16u, quad = at / 4u % 4u, i = at % 4u;
        device const half *x = (device const half *)(tiles + step / 2u * OXB_SIMD_WIDTH) +
                               matrix_half(vector % 8u, quad, i) + step % 2u * 4u;
        const ulong j =
            ulong(at / size) * size + halves_element(step % (size / 16u), quad, i, size);
        sum = fma(Format::weight(w, row, j), float(*x), sum);
    }
    return sum;
}

// y = W x or y += W x.
template <bool RESIDUAL>
struct half_plain {
    typedef plain_rows rows;
    static void write(device float *y, float sum, float) { *y = RESIDUAL ? *y + sum : sum; }
};

struct half_swiglu {
    typedef gate_up_rows rows;
    static void write(device float *y, float gate, float up) { *y = silu(gate) * up; }
};

template <typename Format, typename Output, uint TILES, uint EIGHTS, uint ROWS>
inline void half_output(weight_bytes w, device const uchar *halves, device float *y,
                        constant oxb_gemm_args &args, uint2 tile, thread_place place,
                        threadgroup half_memory &memory) {
    const uint matrices = uint(Output::rows::matrices);
    const uint rows_of_simdgroup = 16u * TILES / matrices;
    const uint n_eights = (args.n_vectors + 7u) / 8u;
    const half_input input = {(device const uint4 *)halves,
                              half_units(halves, n_eights, args.k),
                              args.n_vectors,
                              args.n_rows,
                              tile.x * ROWS * rows_of_simdgroup,
                              tile.y * (place.simdgroups / ROWS) * EIGHTS};
    matrix_sums sums[TILES][EIGHTS];
    multiply_half<Format, typename Output::rows, TILES, EIGHTS, ROWS>(w, input, place, memory,
                                                                      sums);
    const uint first =
        input.first + place.simdgroup % ROWS * rows_of_simdgroup + matrix_row(place.lane);
    const uint first_vector =
        8u * (input.first_eight + place.simdgroup / ROWS * EIGHTS) + 2u * matrix_quad(place.lane);
    OXB_UNROLL
    for (uint t = 0; t < TILES / matrices; t++) {
        uint odd = 0; // bit 4 e + i: a sum is no number where twice a scale may have been none
        OXB_UNROLL
        for (uint at = 0; at < 4u * EIGHTS; at++) {
            const uint i = at % 4u, row = first + 16u * t + i / 2u * 8u;
            const uint vector = first_vector + at / 4u * 8u + i % 2u;
            if (row >= args.n_rows || vector >= args.n_vectors) continue;
            const float sum = matrix_sum(sums[t][at / 4u], i);
            const float up = matrix_sum(sums[t + TILES - TILES / matrices][at / 4u], i);
            if (Format::code::bits == 2u && !(isfinite(sum) && isfinite(up))) {
                odd |= 1u << at;
                continue;
            }
            const float unit = input.units[vector];
            Output::write(y + ulong(vector) * args.y_stride + row, sum * unit, up * unit);
        }
        for (; odd != 0; odd &= odd - 1u) {
            const uint at = ctz(odd), i = at % 4u, row = first + 16u * t + i / 2u * 8u;
            const uint vector = first_vector + at / 4u * 8u + i % 2u;
            const float unit = input.units[vector];
            const float sum = half_by_definition<Format>(w, row, input, vector);
            const float up =
                matrices == 1u
                    ? 0.0f
                    : half_by_definition<Format>(w, ulong(args.n_rows) + row, input, vector);
            Output::write(y + ulong(vector) * args.y_stride + row, sum * unit, up * unit);
        }
    }
}

#endif
