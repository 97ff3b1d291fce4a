// Products of a coded matrix and vectors given as halves, on matrix units.
//
// A SIMD-group computes 16 TILES rows by 8 EIGHTS vectors over some of the blocks of k. The levels
// of codes are exact halves. For each block the sums of both halves of the activations are found by
// themselves, multiplied by the block's unit and the group's scale, and added in float: rounding of
// the matrix units does not grow with k. The SIMD-groups of a threadgroup that share rows add up
// their parts of k in a fixed order.
#ifndef OXB_GEMM_HALVES_H
#define OXB_GEMM_HALVES_H

// 10 TILES + EIGHTS selects a template instance, as in rows.h; SIMD-groups beside each other over
// the rows of a threadgroup, the others share k.
constant uint shape_constant [[function_constant(0)]];
constant uint rows_constant [[function_constant(1)]];
constant uint shape_of_simdgroup =
    is_function_constant_defined(shape_constant) ? shape_constant : 21u;
constant uint rows_of_simdgroups = is_function_constant_defined(rows_constant) ? rows_constant : 1u;

// Floats from vector to vector: four vectors of a SIMD-group's sums lie in different banks.
#define OXB_HALVES_PAD        4u
#define OXB_HALVES_SIMDGROUPS 8u // of a threadgroup, at most
#define OXB_HALVES_FLOATS \
    (8u * OXB_HALVES_SIMDGROUPS * (16u * 4u + OXB_HALVES_PAD)) // of 4 tiles of rows

struct halves_memory {
    float sums[OXB_HALVES_FLOATS];   // [part of k][8 vectors][rows + pad]
    uint odd[OXB_HALVES_SIMDGROUPS]; // 1: a scale is infinite or NaN
};

// The blocks of k that a SIMD-group takes: first, first + step, first + 2 step ...
struct halves_part {
    uint first, step;
};

// sums[t][e][i] = the part's share of rows 16 t + matrix_row(lane) + 8 (i / 2) and vectors
// 8 (eight + e) + 2 quad + i % 2. Returns whether a scale that the lane met is infinite or NaN: the
// sums of its row are wrong then.
template <typename Format, typename Rows, uint TILES, uint EIGHTS>
inline bool multiply_halves(weight_bytes w, uint n_rows, uint first, uint place,
                            device const uchar *halves, uint n_vectors, uint eight,
                            halves_part part, uint lane, thread float (&sums)[TILES][EIGHTS][4]) {
    const typename Format::code kind = {};
    const uint steps = uint(Format::weights_per_load) / 16u;
    const uint ahead = 4u; // steps from the load of a tile to its use
    const uint blocks = uint(w.k / Format::weights_per_load);
    const uint n_eights = (n_vectors + 7u) / 8u;
    const uint quad = matrix_quad(lane);
    const uint rows_of_matrix = 16u * TILES / Rows::matrices;
    uint row[2 * TILES / Rows::matrices]; // every 8, of the first matrix
    OXB_UNROLL
    for (uint r = 0; r < 2 * TILES / Rows::matrices; r++)
        row[r] = min(first + place * rows_of_matrix + 8u * r + matrix_row(lane), n_rows - 1u);
    OXB_UNROLL
    for (uint t = 0; t < TILES; t++) {
        OXB_UNROLL
        for (uint e = 0; e < EIGHTS; e++) {
            OXB_UNROLL
            for (uint i = 0; i < 4u; i++) sums[t][e][i] = 0.0f;
        }
    }
    // A part without blocks reads the last one ahead, and does not use it.
    const uint begin = min(part.first, blocks - 1u);
    // Behind the last eight the second one of a SIMD-group is the last again.
    const uint second = EIGHTS == 2u && eight + 1u < n_eights ? blocks : 0u; // blocks apart
    const ulong first_block = ulong(eight) * blocks + begin;
    device const uint4 *tiles =
        (device const uint4 *)halves + first_block * steps * OXB_SIMD_WIDTH + lane;
    device const float *units = (device const float *)((device const uint4 *)halves +
                                                       halves_tile(n_eights, blocks, 0, steps)) +
                                first_block * 8u + 2u * quad;
    const ulong tiles_apart = ulong(second) * steps * OXB_SIMD_WIDTH, units_apart = second * 8ul;
    typename Format::packing::packed_word next_words[2 * TILES];
    uint4 ring[4][EIGHTS];
    OXB_UNROLL
    for (uint r = 0; r < 2 * TILES; r++)
        next_words[r] = Format::ask_word(w, row_of<Rows, TILES>(row, r, n_rows), begin, quad);
    OXB_UNROLL
    for (uint s = 0; s < ahead; s++) {
        OXB_UNROLL
        for (uint e = 0; e < EIGHTS; e++) ring[s][e] = tiles[e * tiles_apart + s * OXB_SIMD_WIDTH];
    }
    bool odd = false;
    const matrix_held held = matrix_hold(kind);
    for (uint block = part.first; block < blocks; block += part.step) {
        // After the last block this reads it again, and the result is not used.
        const uint next = block + part.step < blocks ? block + part.step : block;
        uint words[2 * TILES];
        half scales[2 * TILES];
        OXB_UNROLL
        for (uint r = 0; r < 2 * TILES; r++) {
            words[r] = Format::packing::word_of(next_words[r],
                                                block % uint(Format::loads_per_group), quad);
            const ulong at = row_of<Rows, TILES>(row, r, n_rows);
            scales[r] = Format::load_scale(w, at, block); // needed after the steps
            next_words[r] = Format::ask_word(w, at, next, quad);
        }
        float2 unit[EIGHTS];
        OXB_UNROLL
        for (uint e = 0; e < EIGHTS; e++)
            unit[e] = *(device const float2 *)(units + e * units_apart);
        units += part.step * 8u;
        device const uint4 *next_tiles = tiles + ulong(next - block) * (steps * OXB_SIMD_WIDTH);
        matrix_sums near[TILES][EIGHTS], rest[TILES][EIGHTS];
        OXB_UNROLL
        for (uint t = 0; t < TILES; t++) {
            OXB_UNROLL
            for (uint e = 0; e < EIGHTS; e++) {
                matrix_clear(near[t][e]);
                matrix_clear(rest[t][e]);
            }
        }
        OXB_UNROLL
        for (uint s = 0; s < steps; s++) {
            if (TILES * EIGHTS == 8u) matrix_fence(); // no registers for the loads of all steps
            uint4 vectors[EIGHTS];
            OXB_UNROLL
            for (uint e = 0; e < EIGHTS; e++) {
                vectors[e] = ring[s % ahead][e];
                ring[s % ahead][e] =
                    s + ahead < steps
                        ? tiles[e * tiles_apart + (s + ahead) * OXB_SIMD_WIDTH]
                        : next_tiles[e * tiles_apart + (s + ahead - steps) * OXB_SIMD_WIDTH];
            }
            OXB_UNROLL
            for (uint t = 0; t < TILES; t++) {
                uint rows[4];
                OXB_UNROLL
                for (uint i = 0; i < 4u; i++)
                    rows[i] = matrix_pair(kind, words[2u * t + i % 2u], 2u * s + i / 2u, held);
                OXB_UNROLL
                for (uint e = 0; e < EIGHTS; e++) {
                    matrix_add(near[t][e], rows, vectors[e][0], vectors[e][1]);
                    matrix_add(rest[t][e], rows, vectors[e][2], vectors[e][3]);
                }
            }
        }
        tiles = next_tiles;
        OXB_UNROLL
        for (uint r = 0; r < 2 * TILES; r++)
            odd = odd || (as_type<ushort>(scales[r]) & 0x7c00) == 0x7c00;
        OXB_UNROLL
        for (uint t = 0; t < TILES; t++) {
            OXB_UNROLL
            for (uint e = 0; e < EIGHTS; e++) {
                OXB_UNROLL
                for (uint i = 0; i < 4u; i++) {
                    const float sum = fma(matrix_sum(rest[t][e], i), 1.0f / OXB_HALVES_REST,
                                          matrix_sum(near[t][e], i));
                    sums[t][e][i] =
                        fma(float(scales[2u * t + i / 2u]), sum * unit[e][i % 2u], sums[t][e][i]);
                }
            }
        }
    }
    return odd;
}

// Put the sums of an eight of vectors where the threadgroup adds them up.
template <uint TILES, uint EIGHTS>
inline void keep_sums(thread const float (&sums)[TILES][EIGHTS][4], uint e, uint groups,
                      thread_place place, threadgroup halves_memory &memory) {
    const uint rows = groups * 16u * TILES, stride = rows + OXB_HALVES_PAD;
    threadgroup float *to = memory.sums + place.simdgroup / groups * 8u * stride +
                            place.simdgroup % groups * 16u * TILES + matrix_row(place.lane) +
                            2u * matrix_quad(place.lane) * stride;
    OXB_UNROLL
    for (uint t = 0; t < TILES; t++) {
        OXB_UNROLL
        for (uint i = 0; i < 4u; i++) to[16u * t + i / 2u * 8u + i % 2u * stride] = sums[t][e][i];
    }
}

// What the output needs beside the sums.
struct halves_input {
    device const uchar *halves;
    uint n_vectors, n_rows;
    uint split, splits; // of k over the grid
    uint parts;         // of a split, in memory
    bool odd;           // a scale is infinite or NaN
};

// The sum of level * scale * activation over the blocks of a split, by definition: for a row with a
// scale that is infinite or NaN, where the scale times the sum of the others would differ.
template <typename Format>
inline float sum_by_definition(weight_bytes w, ulong row, halves_input input, uint vector) {
    const uint size = Format::weights_per_load, steps = halves_steps(size);
    const uint blocks = uint(w.k / size), n_eights = (input.n_vectors + 7u) / 8u;
    device const uint4 *tiles = (device const uint4 *)input.halves;
    device const float *units =
        (device const float *)(tiles + halves_tile(n_eights, blocks, 0, steps));
    float sum = 0.0f;
    for (uint block = 0; block < blocks; block++) {
        if (block / input.parts % input.splits != input.split) continue;
        const float unit = units[(ulong(vector / 8u) * blocks + block) * 8u + vector % 8u];
        device const uint4 *tile = tiles + halves_tile(vector / 8u, blocks, block, steps);
        for (uint at = 0; at < size; at++) {
            const uint step = at / 16u, quad = at / 4u % 4u, i = at % 4u;
            device const half *near = (device const half *)(tile + step * OXB_SIMD_WIDTH) +
                                      matrix_half(vector % 8u, quad, i);
            const float x = fma(float(near[4]), 1.0f / OXB_HALVES_REST, float(near[0])) * unit;
            const ulong j = ulong(block) * size + halves_element(step, quad, i, size);
            sum = fma(Format::weight(w, row, j), x, sum);
        }
    }
    return sum;
}

template <typename Format>
inline bool odd_row(weight_bytes w, ulong row) {
    bool odd = false;
    for (uint load = 0; load < uint(w.k / Format::weights_per_load); load++)
        odd = odd || (as_type<ushort>(Format::load_scale(w, row, load)) & 0x7c00) == 0x7c00;
    return odd;
}

// Row `row` of the matrix, which is row i of the threadgroup's, times a vector.
template <typename Format>
inline float sum_of_parts(weight_bytes w, ulong row, halves_input input, uint vector, uint i,
                          uint stride, threadgroup const halves_memory &memory) {
    if (input.odd && odd_row<Format>(w, row))
        return sum_by_definition<Format>(w, row, input, vector);
    float sum = 0.0f;
    for (uint part = 0; part < input.parts; part++)
        sum += memory.sums[(part * 8u + vector % 8u) * stride + i];
    return sum;
}

// y = W x or y += W x; a split of k has its own [vector][row].
template <bool RESIDUAL>
struct halves_plain {
    typedef plain_rows rows;
    template <typename Format, uint TILES>
    static void write(weight_bytes w, halves_input input, uint first, uint first_vector, uint n,
                      device float *y, ulong y_stride, uint thread_index, uint n_threads,
                      threadgroup const halves_memory &memory) {
        for (uint at = thread_index; at < 8u * n; at += n_threads) {
            const uint i = at % n, row = first + i, vector = first_vector + at / n;
            if (row >= input.n_rows || vector >= input.n_vectors) continue;
            const float sum =
                sum_of_parts<Format>(w, row, input, vector, i, n + OXB_HALVES_PAD, memory);
            device float *to = y + (ulong(input.split) * input.n_vectors + vector) * y_stride + row;
            *to = RESIDUAL ? *to + sum : sum;
        }
    }
};

struct halves_swiglu {
    typedef gate_up_rows rows;
    template <typename Format, uint TILES>
    static void write(weight_bytes w, halves_input input, uint first, uint first_vector, uint n,
                      device float *s, ulong s_stride, uint thread_index, uint n_threads,
                      threadgroup const halves_memory &memory) {
        const uint half_rows = 8u * TILES;
        for (uint at = thread_index; at < 4u * n; at += n_threads) {
            const uint i = at % (n / 2u), row = first + i, vector = first_vector + at / (n / 2u);
            if (row >= input.n_rows || vector >= input.n_vectors) continue;
            const uint gate = i / half_rows * 2u * half_rows + i % half_rows;
            const float g =
                sum_of_parts<Format>(w, row, input, vector, gate, n + OXB_HALVES_PAD, memory);
            const float u = sum_of_parts<Format>(w, ulong(input.n_rows) + row, input, vector,
                                                 gate + half_rows, n + OXB_HALVES_PAD, memory);
            s[ulong(vector) * s_stride + row] = silu(g) * u;
        }
    }
};

#endif
