// Products of a coded matrix and a vector by look-up: what gemv and swiglu share for 1-bit and
// 2-bit codes.
//
// A 16-byte load of codes is 32 nibbles. For each nibble, a table holds the 16 sums of activations
// that it can stand for, so that 4 weights of 1 bit, or 2 of 2 bits, cost one look-up and one
// addition. The 16 floats of a table lie in 16 different banks of threadgroup memory, so lanes that
// look up different entries have no bank conflict. Each lane computes rows of its own. A SIMD-group
// builds the tables of a load once for all rows of the threadgroup; the SIMD-groups share the
// splits of k among them.
#ifndef OXB_LOOKUP_H
#define OXB_LOOKUP_H

#define OXB_NIBBLES     32u // of a load
#define OXB_ENTRIES     16u // of a nibble's table
#define OXB_LOOKUP_ROWS 4u  // of a lane, at most
// Split s takes loads s, s + 8, s + 16 ... of a row. Their number does not depend on that of the
// SIMD-groups, so that the order of additions, and with it the result, does not either.
#define OXB_LOOKUP_SPLITS 8u

struct lookup_memory {
    float tables[OXB_LOOKUP_SPLITS][OXB_NIBBLES * OXB_ENTRIES]; // of each SIMD-group
    float4 activations[OXB_LOOKUP_SPLITS][128 / 4];             // of the current load
    float sums[OXB_LOOKUP_SPLITS][OXB_LOOKUP_ROWS * OXB_SIMD_WIDTH];
    float squares[OXB_LOOKUP_SPLITS]; // sums over the activations of each split
    float partial[OXB_MAX_SIMDGROUPS];
};

// What the matrix is multiplied by: x, or x * scale * inverse * weight where there is a norm.
struct lookup_input {
    device const float *x;
    device const float *weight;
    float scale, inverse;
};

// Fill the tables: a lane computes one entry of several tables. Activations are multiplied by
// levels, not selected by codes, so that 0 times infinity is NaN.
inline void fill_tables(code_1bit, threadgroup const float4 *x, threadgroup float *tables,
                        uint lane) {
    // An entry and its complement differ in sign only: a lane computes both, in an order without
    // bank conflicts.
    const uint e = lane % 8u, flip = lane / 16u * 15u;
    const float turn = flip != 0u ? -1.0f : 1.0f;
    const float s0 = code_1bit::level(e, 0) * turn, s1 = code_1bit::level(e, 1) * turn;
    const float s2 = code_1bit::level(e, 2) * turn, s3 = -turn; // e is below 8
    OXB_UNROLL
    for (uint i = 0; i < OXB_NIBBLES; i += 4u) {
        const uint nibble = i + lane / 8u;
        const float4 four = x[nibble];
        const float sum = fma(s3, four[3], fma(s2, four[2], fma(s1, four[1], s0 * four[0])));
        tables[nibble * OXB_ENTRIES + (e ^ flip)] = sum;
        tables[nibble * OXB_ENTRIES + (e ^ flip ^ 15u)] = -sum;
    }
}

inline void fill_tables(code_2bit, threadgroup const float4 *x, threadgroup float *tables,
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

// The sum of level * activation over a load.
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

// The sum of level * scale * activation over a load, for a scale that is infinite or NaN: the
// scale times the sum of the others would differ.
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

// What a lane reads from device memory for a load, one load ahead of its use.
template <typename Format, uint N>
struct lookup_load {
    uint4 codes[N];
    half scales[N];
    // This lane's elements of x and of the norm's weight.
    float x[Format::weights_per_load / OXB_SIMD_WIDTH];
    float weight[Format::weights_per_load / OXB_SIMD_WIDTH];
};

template <typename Format, uint N, bool NORM>
inline lookup_load<Format, N> fetch(weight_bytes w, thread const ulong *row, lookup_input input,
                                    uint load, uint lane) {
    lookup_load<Format, N> now;
    OXB_UNROLL
    for (uint r = 0; r < N; r++) {
        now.codes[r] = Format::load_codes(w, row[r], load);
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

// memory.sums[split][r * 32 + lane] = the split's share of the product of x and row
// m * n_rows + first + lane + 32 q of w, for r = m * ROWS + q, in matrix m of MATRICES. A row past
// n_rows repeats the last one; its sum must not be used. With a norm, also memory.squares.
template <typename Format, uint MATRICES, uint ROWS, bool NORM>
inline void multiply_codes(weight_bytes w, uint n_rows, uint first, lookup_input input,
                           thread_place place, threadgroup lookup_memory &memory) {
    const typename Format::code kind = {};
    const uint loads = uint(w.k / Format::weights_per_load);
    threadgroup float *tables = memory.tables[place.simdgroup];
    threadgroup float4 *fours = memory.activations[place.simdgroup];
    threadgroup float *activations = (threadgroup float *)fours;
    ulong row[MATRICES * ROWS];
    OXB_UNROLL
    for (uint r = 0; r < MATRICES * ROWS; r++)
        row[r] = r / ROWS * ulong(n_rows) +
                 min(first + place.lane + r % ROWS * OXB_SIMD_WIDTH, n_rows - 1u);
    for (uint split = place.simdgroup; split < OXB_LOOKUP_SPLITS; split += place.simdgroups) {
        float sums[MATRICES * ROWS];
        float squares = 0.0f;
        OXB_UNROLL
        for (uint r = 0; r < MATRICES * ROWS; r++) sums[r] = 0.0f;
        lookup_load<Format, MATRICES * ROWS> next =
            fetch<Format, MATRICES * ROWS, NORM>(w, row, input, min(split, loads - 1u), place.lane);
        for (uint load = split; load < loads; load += OXB_LOOKUP_SPLITS) {
            const lookup_load<Format, MATRICES * ROWS> now = next;
            // After the last load this reads it again, and the result is not used.
            next = fetch<Format, MATRICES * ROWS, NORM>(
                w, row, input, min(load + OXB_LOOKUP_SPLITS, loads - 1u), place.lane);
            OXB_UNROLL
            for (uint i = 0; i < Format::weights_per_load / OXB_SIMD_WIDTH; i++) {
                const float value = now.x[i];
                if (NORM) squares = fma(value, value, squares);
                activations[i * OXB_SIMD_WIDTH + place.lane] =
                    NORM ? value * input.scale * input.inverse * now.weight[i] : value;
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
            fill_tables(kind, fours, tables, place.lane);
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
            memory.sums[split][r * OXB_SIMD_WIDTH + place.lane] = sums[r];
        if (NORM) {
            squares = simd_sum(squares);
            if (place.lane == 0) memory.squares[split] = squares;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// multiply_codes for x, or where NORM for its RMSNorm; returns the factor that the sums still lack.
// With a norm, the product and the squares of x are summed in one pass, and the factor is
// 1 / rms. Where the squares leave float's range (rms.h), a second pass multiplies by the
// normalised vector itself.
template <typename Format, uint MATRICES, uint ROWS, bool NORM>
inline float multiply_vector(weight_bytes w, uint n_rows, uint first, device const float *x,
                             device const float *weight, float eps, thread_place place,
                             threadgroup lookup_memory &memory) {
    lookup_input input = {x, weight, 1.0f, 1.0f};
    multiply_codes<Format, MATRICES, ROWS, NORM>(w, n_rows, first, input, place, memory);
    if (!NORM) return 1.0f;
    float total = 0.0f;
    OXB_UNROLL
    for (uint split = 0; split < OXB_LOOKUP_SPLITS; split++) total += memory.squares[split];
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

inline float sum_of_splits(threadgroup const lookup_memory &memory, uint i) {
    float sum = 0.0f;
    OXB_UNROLL
    for (uint split = 0; split < OXB_LOOKUP_SPLITS; split++) sum += memory.sums[split][i];
    return sum;
}

#endif
