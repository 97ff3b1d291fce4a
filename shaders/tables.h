// The loop over k of the forms that look codes up in tables: lookup.h and shuffle.h.
//
// A 16-byte load of codes is 32 nibbles. For each nibble, a table holds the 16 sums of activations
// that it can stand for, so that 4 weights of 1 bit, or 2 of 2 bits, cost one look-up and one
// addition. Each lane computes rows of its own. A SIMD-group builds the tables of a load once for
// all rows of the threadgroup; the SIMD-groups share the splits of k among them.
//
// Such a form has a type `tables` as well, and functions
//
//   tables_of(own, place)                    the tables of a SIMD-group, empty
//   fill_tables(code, values, lane, tables)  values[i]: activation 32 i + lane of a load
//   look_up(codes, tables)                   the sum of level * activation over a load
#ifndef OXB_TABLES_H
#define OXB_TABLES_H

#define OXB_NIBBLES 32u // of a load
#define OXB_ENTRIES 16u // of a nibble's table

// What a lane reads from device memory for a load, one load ahead of its use.
template <typename Format, uint N>
struct table_load {
    typename Format::packing::packed_load codes[N];
    half scales[N];
    // This lane's elements of x and of the norm's weight.
    float x[Format::weights_per_load / OXB_SIMD_WIDTH];
    float weight[Format::weights_per_load / OXB_SIMD_WIDTH];
};

template <typename Format, uint N, bool NORM>
inline table_load<Format, N> fetch(weight_bytes w, thread const uint *row, coded_input input,
                                   uint load, uint lane) {
    table_load<Format, N> now;
    OXB_UNROLL
    for (uint r = 0; r < N; r++) {
        now.codes[r] = Format::ask_load(w, row[r], load);
        now.scales[r] = Format::load_scale(w, row[r], load);
    }
    OXB_UNROLL
    for (uint i = 0; i < Format::weights_per_load / OXB_SIMD_WIDTH; i++) {
        const uint j = load * Format::weights_per_load + i * OXB_SIMD_WIDTH + lane;
        now.x[i] = input.x[j];
        now.weight[i] = NORM ? input.weight[j] : 1.0f;
    }
    return now;
}

template <typename Format, bool NORM>
inline float add_load_by_definition(uint4 codes, float scale, coded_input input, uint load) {
    float sum = 0.0f;
    OXB_ROLLED
    for (uint word = 0; word < 4u; word++) {
        const uint j = load * Format::weights_per_load + word * Format::lane_weights;
        sum = add_by_definition<Format, NORM>(codes.x, scale, input, j, sum);
        // An index that is no constant would take the codes out of registers.
        codes = uint4(codes.y, codes.z, codes.w, 0u);
    }
    return sum;
}

template <typename Format, uint MATRICES, uint ROWS, bool NORM, typename Form, uint SETS>
inline void multiply_codes(weight_bytes w, uint n_rows, uint first, coded_input input,
                           thread_place place, threadgroup coded_memory<Form, SETS> &memory) {
    const typename Format::code kind = {};
    const uint loads = uint(w.k) / Format::weights_per_load;
    typename Form::tables tables = tables_of(memory.own, place);
    uint row[MATRICES * ROWS];
    rows_of_lane<MATRICES, ROWS, Form::rows>(first + place.lane, n_rows, row);
    for (uint split = place.simdgroup; split < OXB_SPLITS; split += place.simdgroups) {
        float sums[MATRICES * ROWS];
        float squares = 0.0f;
        OXB_UNROLL
        for (uint r = 0; r < MATRICES * ROWS; r++) sums[r] = 0.0f;
        table_load<Format, MATRICES * ROWS> next =
            fetch<Format, MATRICES * ROWS, NORM>(w, row, input, min(split, loads - 1u), place.lane);
        for (uint load = split; load < loads; load += OXB_SPLITS) {
            const table_load<Format, MATRICES * ROWS> now = next;
            // After the last load this reads it again, and the result is not used.
            next = fetch<Format, MATRICES * ROWS, NORM>(
                w, row, input, min(load + OXB_SPLITS, loads - 1u), place.lane);
            float values[Format::weights_per_load / OXB_SIMD_WIDTH];
            OXB_UNROLL
            for (uint i = 0; i < Format::weights_per_load / OXB_SIMD_WIDTH; i++) {
                if (NORM) squares = fma(now.x[i], now.x[i], squares);
                values[i] = normalised<NORM>(input, now.x[i], now.weight[i]);
            }
            fill_tables(kind, values, place.lane, tables);
            OXB_UNROLL
            for (uint r = 0; r < MATRICES * ROWS; r++) {
                const float scale = float(now.scales[r]);
                // Every lane looks up, whatever its scale: the lanes may hold the tables.
                const uint4 codes = Format::packing::codes_of(now.codes[r]);
                const float sum = look_up(codes, tables);
                sums[r] += is_finite(now.scales[r])
                               ? scale * sum
                               : add_load_by_definition<Format, NORM>(codes, scale, input, load);
            }
        }
        OXB_UNROLL
        for (uint r = 0; r < MATRICES * ROWS; r++)
            memory.sums[split][r * Form::rows + place.lane] = sums[r];
        if (NORM) {
            squares = simd_sum(squares);
            if (place.lane == 0) memory.squares[split] = squares;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

#endif
