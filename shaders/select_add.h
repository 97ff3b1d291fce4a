// Levels selected by the bits of codes, and multiplied and added: no table, no barrier, and one
// instruction per weight more than a look-up has, but none that a GPU runs at less than its full
// rate. Four lanes share a row: each has one of the four words of a load, and its activations in
// registers.
#ifndef OXB_SELECT_ADD_H
#define OXB_SELECT_ADD_H

#define OXB_ROW_LANES 4u

struct select_memory {};

struct select_form {
    enum { rows = 8 };
    typedef select_memory memory;
};

inline float selected_level(code_1bit, uint codes, uint i) {
    return (codes & 1u << i) != 0u ? 1.0f : -1.0f;
}

// In the significand of 2^23 a code is the integer that it is: no shift but one, no conversion.
inline float selected_level(code_2bit, uint codes, uint i) {
    const uint at = 2u * (i % 8u);
    const uint bits = ((i / 8u != 0u ? codes >> 16u : codes) & 3u << at) | 0x4b000000u;
    const float shrink = as_type<float>((127u - at) << 23u); // 2^-at
    return fma(as_type<float>(bits), shrink, -(float(1u << (23u - at)) + 1.0f));
}

// The codes and scales of a lane for a load, one load ahead of their use.
template <typename Format, uint N>
struct select_load {
    typename Format::packing::packed_word codes[N];
    half scales[N];
};

template <typename Format, uint N>
inline select_load<Format, N> fetch(weight_bytes w, thread const uint *row, uint load, uint quad) {
    select_load<Format, N> now;
    OXB_UNROLL
    for (uint r = 0; r < N; r++) {
        now.codes[r] = Format::ask_word(w, row[r], load, quad);
        now.scales[r] = Format::load_scale(w, row[r], load);
    }
    return now;
}

template <typename Format, bool NORM>
inline void read_values(coded_input input, uint j, thread float *values, thread float &squares) {
    OXB_UNROLL
    for (uint i = 0; i < Format::lane_weights; i += 4u) {
        // Packed, for a binding's offset is a multiple of 4 bytes only.
        const packed_float4 x = *(device const packed_float4 *)(input.x + j + i);
        packed_float4 weight = x;
        if (NORM) weight = *(device const packed_float4 *)(input.weight + j + i);
        OXB_UNROLL
        for (uint e = 0; e < 4u; e++) {
            if (NORM) squares = fma(x[e], x[e], squares);
            values[i + e] = normalised<NORM>(input, x[e], weight[e]);
        }
    }
}

template <typename Format>
inline float add_selected(uint codes, thread const float *values) {
    const typename Format::code kind = {};
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    OXB_UNROLL
    for (uint i = 0; i < Format::lane_weights; i++)
        sums[i % 4u] = fma(selected_level(kind, codes, i), values[i], sums[i % 4u]);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <typename Format, uint MATRICES, uint ROWS, bool NORM, uint SETS>
inline void multiply_codes(weight_bytes w, uint n_rows, uint first, coded_input input,
                           thread_place place,
                           threadgroup coded_memory<select_form, SETS> &memory) {
    const uint loads = uint(w.k) / Format::weights_per_load;
    const uint quad = place.lane % OXB_ROW_LANES, mine = place.lane / OXB_ROW_LANES;
    uint row[MATRICES * ROWS];
    rows_of_lane<MATRICES, ROWS, select_form::rows>(first + mine, n_rows, row);
    for (uint split = place.simdgroup; split < OXB_SPLITS; split += place.simdgroups) {
        float sums[MATRICES * ROWS];
        float squares = 0.0f;
        OXB_UNROLL
        for (uint r = 0; r < MATRICES * ROWS; r++) sums[r] = 0.0f;
        select_load<Format, MATRICES * ROWS> next =
            fetch<Format, MATRICES * ROWS>(w, row, min(split, loads - 1u), quad);
        for (uint load = split; load < loads; load += OXB_SPLITS) {
            const select_load<Format, MATRICES * ROWS> now = next;
            // After the last load this reads it again, and the result is not used.
            next = fetch<Format, MATRICES * ROWS>(w, row, min(load + OXB_SPLITS, loads - 1u), quad);
            const uint j = load * Format::weights_per_load + quad * Format::lane_weights;
            float values[Format::lane_weights];
            read_values<Format, NORM>(input, j, values, squares);
            OXB_UNROLL
            for (uint r = 0; r < MATRICES * ROWS; r++) {
                const float scale = float(now.scales[r]);
                const uint codes = Format::packing::word_of(
                    now.codes[r], load % uint(Format::loads_per_group), quad);
                sums[r] += is_finite(now.scales[r])
                               ? scale * add_selected<Format>(codes, values)
                               : add_by_definition<Format, NORM>(codes, scale, input, j, 0.0f);
            }
        }
        OXB_UNROLL
        for (uint r = 0; r < MATRICES * ROWS; r++) {
            sums[r] += simd_shuffle_xor(sums[r], 1);
            sums[r] += simd_shuffle_xor(sums[r], 2);
            if (quad == 0) memory.sums[split][r * select_form::rows + mine] = sums[r];
        }
        if (NORM) {
            squares += simd_shuffle_xor(squares, 1);
            squares += simd_shuffle_xor(squares, 2); // the same in all eights of rows
            if (place.lane == 0) memory.squares[split] = squares;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

#endif
