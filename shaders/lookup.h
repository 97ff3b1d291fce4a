// Rows of codes times a vector by tables of sums: what gemv and swiglu share for 1-bit and 2-bit
// codes.
//
// A unit of codes is 32 nibbles. For each of them a table holds the 16 sums of activations that it
// can stand for, so that 4 weights of 1 bit, or 2 of 2 bits, cost one look-up and one addition. The
// 16 floats of a table lie in 16 banks of threadgroup memory: the lanes, each with a row of its
// own, do not wait for each other. A SIMD-group makes the tables of a unit for all its rows, and
// goes through one part of the units.
#ifndef OXB_LOOKUP_H
#define OXB_LOOKUP_H

#define OXB_NIBBLES 32u // of a unit
#define OXB_ENTRIES 16u // of a nibble's table
#define OXB_PARTS \
    8u // of the units, whatever the number of SIMD-groups: it must not show in the result
#define OXB_LOOKUP_ROWS 4u // of a lane, at the most

struct lookup_memory {
    float tables[OXB_PARTS][OXB_NIBBLES * OXB_ENTRIES]; // of each SIMD-group
    float activations[OXB_PARTS][128];                  // the unit's
    float sums[OXB_PARTS][OXB_LOOKUP_ROWS * OXB_SIMD_WIDTH];
    float squares[OXB_PARTS]; // of the activations of each part
    float partial[OXB_MAX_SIMDGROUPS];
};

// What the matrix is multiplied with: x, or x * scale * inverse * weight where there is a norm.
struct lookup_input {
    device const float *x;
    device const float *weight;
    float scale, inverse;
};

// Fill the tables, a lane an entry. The code types differ in what a nibble means; products with
// levels, so that 0 times an infinite activation is NaN.
inline void fill_tables(code_1bit, threadgroup const float *x, threadgroup float *tables,
                        uint lane) {
    // An entry and its complement differ in sign only: a lane makes both, in an order that keeps
    // the lanes' banks apart.
    const uint e = lane % 8u, flip = lane / 16u * 15u;
    const float turn = flip != 0u ? -1.0f : 1.0f;
    const float s0 = code_1bit::level(e, 0) * turn, s1 = code_1bit::level(e, 1) * turn;
    const float s2 = code_1bit::level(e, 2) * turn, s3 = -turn; // e is below 8
    OXB_UNROLL
    for (uint i = 0; i < OXB_NIBBLES; i += 4u) {
        const uint nibble = i + lane / 8u;
        const float4 four = ((threadgroup const float4 *)x)[nibble];
        const float sum = fma(s3, four[3], fma(s2, four[2], fma(s1, four[1], s0 * four[0])));
        tables[nibble * OXB_ENTRIES + (e ^ flip)] = sum;
        tables[nibble * OXB_ENTRIES + (e ^ flip ^ 15u)] = -sum;
    }
}

inline void fill_tables(code_2bit, threadgroup const float *x, threadgroup float *tables,
                        uint lane) {
    const uint e = lane % OXB_ENTRIES;
    const float low = code_2bit::level(e, 0), high = code_2bit::level(e, 1);
    OXB_UNROLL
    for (uint i = 0; i < OXB_NIBBLES; i += 2u) {
        const uint nibble = i + lane / OXB_ENTRIES;
        const float2 two = ((threadgroup const float2 *)x)[nibble];
        tables[nibble * OXB_ENTRIES + e] = fma(high, two[1], low * two[0]);
    }
}

// The sum that a unit's codes stand for, before the scale.
inline float look_up(uint4 codes, threadgroup const float *tables) {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    OXB_UNROLL
    for (uint word = 0; word < 4u; word++) {
        OXB_UNROLL
        for (uint n = 0; n < 8u; n++)
            sums[n % 4u] += tables[(8u * word + n) * OXB_ENTRIES + (codes[word] >> 4u * n & 15u)];
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The same with a scale that is infinite or NaN: scale * sum is not the sum of (level * scale) * x
// there.
template <typename Format>
inline float add_by_definition(uint4 codes, float scale, threadgroup const float *x) {
    float sum = 0.0f;
    for (uint word = 0; word < 4u; word++) {
        for (uint i = 0; i < Format::lane_weights; i++)
            sum = fma(Format::code::level(codes[word], i) * scale,
                      x[word * Format::lane_weights + i], sum);
    }
    return sum;
}

// What a SIMD-group needs of a unit from device memory: it is asked for one unit ahead.
template <typename Format, uint N>
struct lookup_unit {
    uint4 codes[N];
    half scales[N];
    // Of this lane: of x, and of the norm's weight.
    float x[Format::unit_weights / OXB_SIMD_WIDTH];
    float weight[Format::unit_weights / OXB_SIMD_WIDTH];
};

template <typename Format, uint N, bool NORM>
inline lookup_unit<Format, N> load_unit(weight_bytes w, thread const ulong *row, lookup_input input,
                                        uint unit, uint lane) {
    lookup_unit<Format, N> u;
    OXB_UNROLL
    for (uint r = 0; r < N; r++) {
        u.codes[r] = Format::unit_codes(w, row[r], unit);
        u.scales[r] = Format::unit_scale(w, row[r], unit);
    }
    OXB_UNROLL
    for (uint i = 0; i < Format::unit_weights / OXB_SIMD_WIDTH; i++) {
        const uint j = unit * Format::unit_weights + i * OXB_SIMD_WIDTH + lane;
        u.x[i] = input.x[j];
        u.weight[i] = NORM ? input.weight[j] : 1.0f;
    }
    return u;
}

// memory.sums[part][r * 32 + lane] = a part of row (p * n_rows + first + lane + 32 q) of w times x,
// for r = p * ROWS + q. A row past n_rows repeats the last one: its sum is not to be used. With a
// norm also memory.squares.
template <typename Format, uint MATRICES, uint ROWS, bool NORM>
inline void multiply_codes(weight_bytes w, uint n_rows, uint first, lookup_input input,
                           thread_place place, threadgroup lookup_memory &memory) {
    const typename Format::code kind = {};
    const uint units = uint(w.k / Format::unit_weights);
    threadgroup float *tables = memory.tables[place.simdgroup];
    threadgroup float *activations = memory.activations[place.simdgroup];
    ulong row[MATRICES * ROWS];
    OXB_UNROLL
    for (uint r = 0; r < MATRICES * ROWS; r++)
        row[r] = r / ROWS * ulong(n_rows) +
                 min(first + place.lane + r % ROWS * OXB_SIMD_WIDTH, n_rows - 1u);
    for (uint part = place.simdgroup; part < OXB_PARTS; part += place.simdgroups) {
        float sums[MATRICES * ROWS];
        float squares = 0.0f;
        OXB_UNROLL
        for (uint r = 0; r < MATRICES * ROWS; r++) sums[r] = 0.0f;
        lookup_unit<Format, MATRICES * ROWS> next = load_unit<Format, MATRICES * ROWS, NORM>(
            w, row, input, min(part, units - 1u), place.lane);
        for (uint unit = part; unit < units; unit += OXB_PARTS) {
            const lookup_unit<Format, MATRICES * ROWS> now = next;
            // Past the last unit the last one again, for nothing.
            next = load_unit<Format, MATRICES * ROWS, NORM>(
                w, row, input, min(unit + OXB_PARTS, units - 1u), place.lane);
            OXB_UNROLL
            for (uint i = 0; i < Format::unit_weights / OXB_SIMD_WIDTH; i++) {
                const float value = now.x[i];
                if (NORM) squares = fma(value, value, squares);
                activations[i * OXB_SIMD_WIDTH + place.lane] =
                    NORM ? value * input.scale * input.inverse * now.weight[i] : value;
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
            fill_tables(kind, activations, tables, place.lane);
            simdgroup_barrier(mem_flags::mem_threadgroup);
            OXB_UNROLL
            for (uint r = 0; r < MATRICES * ROWS; r++) {
                const float scale = float(now.scales[r]);
                const bool finite = (as_type<ushort>(now.scales[r]) & 0x7c00) != 0x7c00;
                sums[r] += finite ? scale * look_up(now.codes[r], tables)
                                  : add_by_definition<Format>(now.codes[r], scale, activations);
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
        OXB_UNROLL
        for (uint r = 0; r < MATRICES * ROWS; r++)
            memory.sums[part][r * OXB_SIMD_WIDTH + place.lane] = sums[r];
        if (NORM) {
            squares = simd_sum(squares);
            if (place.lane == 0) memory.squares[part] = squares;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// The same for the vector x, or for its RMSNorm where NORM: returns what the sums have to be
// multiplied with. The squares are added on the way, and the norm is a factor of the result; where
// it is not to be had that way (see rms.h), all is done again with the vector as the norm leaves
// it.
template <typename Format, uint MATRICES, uint ROWS, bool NORM>
inline float multiply_vector(weight_bytes w, uint n_rows, uint first, device const float *x,
                             device const float *weight, float eps, thread_place place,
                             threadgroup lookup_memory &memory) {
    lookup_input input = {x, weight, 1.0f, 1.0f};
    multiply_codes<Format, MATRICES, ROWS, NORM>(w, n_rows, first, input, place, memory);
    if (!NORM) return 1.0f;
    float total = 0.0f;
    OXB_UNROLL
    for (uint part = 0; part < OXB_PARTS; part++) total += memory.squares[part];
    const uint k = uint(w.k);
    input.scale = scale_for(total, eps);
    if (input.scale == 1.0f) return inverse_rms(total, k, 1.0f, eps);
    const uint n_threads = place.simdgroups * OXB_SIMD_WIDTH;
    const uint thread_index = place.simdgroup * OXB_SIMD_WIDTH + place.lane;
    total = threadgroup_sum(sum_of_squares(x, k, input.scale, thread_index, n_threads),
                            memory.partial, place);
    input.inverse = inverse_rms(total, k, input.scale, eps);
    multiply_codes<Format, MATRICES, ROWS, NORM>(w, n_rows, first, input, place, memory);
    return 1.0f;
}

inline float sum_of_parts(threadgroup const lookup_memory &memory, uint i) {
    float sum = 0.0f;
    OXB_UNROLL
    for (uint part = 0; part < OXB_PARTS; part++) sum += memory.sums[part][i];
    return sum;
}

#endif
