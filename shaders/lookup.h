// Tables in threadgroup memory (tables.h). The 16 floats of a table lie in 16 different banks, so
// that lanes that look up different entries have no bank conflict.
#ifndef OXB_LOOKUP_H
#define OXB_LOOKUP_H

struct lookup_memory {
    float tables[OXB_SPLITS][OXB_NIBBLES * OXB_ENTRIES]; // of each SIMD-group
    float4 activations[OXB_SPLITS][128 / 4];             // of the current load
};

struct lookup_tables {
    threadgroup float *entries;
    threadgroup float4 *activations;
};

struct lookup_form {
    enum { rows = 32 };
    typedef lookup_memory memory;
    typedef lookup_tables tables;
};

inline lookup_tables tables_of(threadgroup lookup_memory &own, thread_place place) {
    return {own.tables[place.simdgroup], own.activations[place.simdgroup]};
}

// Make the lanes' activations known to all.
template <uint N>
inline void share(thread const float *values, uint lane, lookup_tables tables) {
    OXB_UNROLL
    for (uint i = 0; i < N; i++)
        ((threadgroup float *)tables.activations)[i * OXB_SIMD_WIDTH + lane] = values[i];
    // The tables of the load before have been read, too.
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// A lane computes one entry of several tables. Activations are multiplied by levels, not selected
// by codes, so that 0 times infinity is NaN.
inline void fill_tables(code_1bit, thread const float *values, uint lane, lookup_tables tables) {
    share<4>(values, lane, tables);
    // An entry and its complement differ in sign only: a lane computes both, in an order without
    // bank conflicts.
    const uint e = lane % 8u, flip = lane / 16u * 15u;
    const float turn = flip != 0u ? -1.0f : 1.0f;
    const float s0 = code_1bit::level(e, 0) * turn, s2 = code_1bit::level(e, 2) * turn;
    // Of the second of two to the first.
    const float low_sign = code_1bit::level(e ^ e >> 1u ^ 1u, 0);
    const float high_sign = code_1bit::level(e >> 2u ^ e >> 3u ^ 1u, 0);
    OXB_UNROLL
    for (uint i = 0; i < OXB_NIBBLES; i += 4u) {
        const uint nibble = i + lane / 8u;
        const float4 four = tables.activations[nibble];
        const float low = fma(low_sign, four[1], four[0]), high = fma(high_sign, four[3], four[2]);
        const float sum = fma(s2, high, s0 * low);
        tables.entries[nibble * OXB_ENTRIES + (e ^ flip)] = sum;
        tables.entries[nibble * OXB_ENTRIES + (e ^ flip ^ 15u)] = -sum;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

inline void fill_tables(code_2bit, thread const float *values, uint lane, lookup_tables tables) {
    share<2>(values, lane, tables);
    const uint e = lane % OXB_ENTRIES;
    const float low = code_2bit::level(e, 0), high = code_2bit::level(e, 1);
    OXB_UNROLL
    for (uint i = 0; i < OXB_NIBBLES; i += 2u) {
        const uint nibble = i + lane / OXB_ENTRIES;
        const float2 two = ((threadgroup const float2 *)tables.activations)[nibble];
        tables.entries[nibble * OXB_ENTRIES + e] = fma(high, two[1], low * two[0]);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

inline float look_up(uint4 codes, thread const lookup_tables &tables) {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    OXB_UNROLL
    for (uint word = 0; word < 4u; word++) {
        OXB_UNROLL
        for (uint n = 0; n < 8u; n++)
            sums[n % 4u] +=
                tables.entries[(8u * word + n) * OXB_ENTRIES + (codes[word] >> 4u * n & 15u)];
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

#endif
