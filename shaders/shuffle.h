// Tables in registers (tables.h): a register of a SIMD-group holds the tables of two nibbles, and a
// shuffle is a look-up, so that no threadgroup memory and no barrier is needed. Table i of a word
// is that of its nibble i in lanes 0..15, and that of nibble i + 4 in lanes 16..31. The sums have
// the same bits as those of lookup.h.
#ifndef OXB_SHUFFLE_H
#define OXB_SHUFFLE_H

#define OXB_TABLES (OXB_NIBBLES / 2u)

struct shuffle_memory {};

struct shuffle_tables {
    float entries[OXB_TABLES]; // 4 of each word
};

struct shuffle_form {
    enum { rows = 32 };
    typedef shuffle_memory memory;
    typedef shuffle_tables tables;
};

inline shuffle_tables tables_of(threadgroup shuffle_memory &, thread_place) { return {}; }

inline void fill_tables(code_1bit, thread const float *values, uint lane,
                        thread shuffle_tables &tables) {
    const uint e = lane % OXB_ENTRIES, first = lane / OXB_ENTRIES * OXB_ENTRIES;
    // The sum of two activations in an even lane, and their difference in the odd one behind it.
    const float sign = code_1bit::level(~lane, 0);
    const uint low = first + ((e ^ e >> 1u) & 1u), high = first + 2u + ((e ^ e >> 1u) >> 2u & 1u);
    const float s0 = code_1bit::level(e, 0), s2 = code_1bit::level(e, 2);
    OXB_UNROLL
    for (uint word = 0; word < 4u; word++) {
        const float pair = fma(sign, values[word], simd_shuffle_xor(values[word], 1));
        OXB_UNROLL
        for (uint i = 0; i < 4u; i++)
            tables.entries[4u * word + i] = fma(s2, simd_shuffle(pair, ushort(high + 4u * i)),
                                                s0 * simd_shuffle(pair, ushort(low + 4u * i)));
    }
}

inline void fill_tables(code_2bit, thread const float *values, uint lane,
                        thread shuffle_tables &tables) {
    const uint e = lane % OXB_ENTRIES, first = lane / OXB_ENTRIES * 8u;
    const float low = code_2bit::level(e, 0), high = code_2bit::level(e, 1);
    OXB_UNROLL
    for (uint word = 0; word < 4u; word++) {
        const float half_word = values[word / 2u];
        OXB_UNROLL
        for (uint i = 0; i < 4u; i++) {
            const uint from = first + word % 2u * 16u + 2u * i;
            tables.entries[4u * word + i] = fma(high, simd_shuffle(half_word, ushort(from + 1u)),
                                                low * simd_shuffle(half_word, ushort(from)));
        }
    }
}

inline float look_up(uint4 codes, thread const shuffle_tables &tables) {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    OXB_UNROLL
    for (uint word = 0; word < 4u; word++) {
        OXB_UNROLL
        for (uint i = 0; i < 4u; i++) {
            // Two lanes, in the halves of a word: of nibbles i and i + 4.
            const ushort2 lanes =
                as_type<ushort2>((codes[word] >> 4u * i & 0x000f000fu) | 0x00100000u);
            const float entries = tables.entries[4u * word + i];
            sums[i] += simd_shuffle(entries, lanes.x);
            sums[i] += simd_shuffle(entries, lanes.y);
        }
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

#endif
