// Attention on matrix units: blocks of 16 positions of a cache of halves, by 16 rows of queries.
//
// A SIMD-group loads keys and values from the cache into registers as they lie (matrix_memory.h).
// The scores of a block are laid out over the lanes as the next product wants its rows, so weights
// never leave a lane. A product takes every column of a block for every row: positions that a query
// does not see have weight 0, but 0 times infinity is NaN. So whoever uses this computes a query
// whose result is not finite again, with attend_by_definition().
#ifndef OXB_ATTENTION_MATRIX_H
#define OXB_ATTENTION_MATRIX_H

#define OXB_MATRIX_BLOCK 16u // positions; no block crosses two pages

// Elements of a head: 64 or 128.
constant uint head_dim_constant [[function_constant(0)]];
constant uint head_dim_of_kernel =
    is_function_constant_defined(head_dim_constant) ? head_dim_constant : 128u;
// Whether keys and values are asked for ahead of their use: where there are registers for both.
constant uint ahead_constant [[function_constant(1)]];
constant uint loads_ahead = is_function_constant_defined(ahead_constant) ? ahead_constant : 1u;

// Where a block is read.
struct block_place {
    ulong at;   // elements from the head's first in page 0
    uint count; // of its positions
    bool lost;  // it has no page: all that attends to it is NaN, and what is read does not matter
};

// `longest`: positions that are seen, or 1 where there are none.
template <uint N>
inline block_place place_of_block(constant oxb_cache &cache, device const uint *tables, uint pages,
                                  uint block, uint longest) {
    const uint start = block * OXB_MATRIX_BLOCK;
    const uint page = page_of(cache, tables, pages, start);
    const uint slot = cache.table_size == 0u ? start : start % cache.page_size;
    block_place place;
    place.at = min(page, cache.n_pages - 1u) * ulong(cache.page_stride) + ulong(slot) * N;
    place.count = min(longest - start, OXB_MATRIX_BLOCK);
    place.lost = page >= cache.n_pages;
    return place;
}

// A lane's part of the keys, or of the values, of a block. Those past the last are the last again.
template <uint N>
inline void load_keys(device const half *from, uint count, uint lane,
                      thread uint4 (&keys)[N / 16u]) {
    OXB_UNROLL
    for (uint i = 0; i < N / 16u; i++) {
        const uint load = i % (N / 32u), eight = i / (N / 32u);
        const uint row = min(8u * eight + matrix_along_row(lane, load), count - 1u);
        keys[i] = *(device const uint4 *)(from + row * N + 8u * matrix_along_unit(lane, load));
    }
}

template <uint N>
inline void load_values(device const half *from, uint count, uint lane,
                        thread uint4 (&values)[N / 16u]) {
    OXB_UNROLL
    for (uint i = 0; i < N / 16u; i++) {
        const uint row = min(matrix_across_row(lane, i), count - 1u);
        values[i] = *(device const uint4 *)(from + row * N + 8u * matrix_across_unit(lane, i));
    }
}

// The rows from `stored` on of what load_keys() and load_values() gave, from one row that is not in
// the cache yet.
template <uint N>
inline void complete_keys(threadgroup const uint4 *from, uint stored, uint lane,
                          thread uint4 (&keys)[N / 16u]) {
    OXB_UNROLL
    for (uint i = 0; i < N / 16u; i++) {
        const uint load = i % (N / 32u), eight = i / (N / 32u);
        if (8u * eight + matrix_along_row(lane, load) >= stored)
            keys[i] = from[matrix_along_unit(lane, load)];
    }
}

template <uint N>
inline void complete_values(threadgroup const uint4 *from, uint stored, uint lane,
                            thread uint4 (&values)[N / 16u]) {
    OXB_UNROLL
    for (uint i = 0; i < N / 16u; i++) {
        if (matrix_across_row(lane, i) >= stored) values[i] = from[matrix_across_unit(lane, i)];
    }
}

// scores[e][i]: sum i of the lane's rows by eight e of the positions. queries[s]: the four words of
// step s. Even and odd steps are added up apart: half as long a chain of products.
template <uint N>
inline void multiply_keys(thread const uint4 (&queries)[N / 16u],
                          thread const uint4 (&keys)[N / 16u], thread float (&scores)[2][4]) {
    matrix_sums sums[2][2];
    OXB_UNROLL
    for (uint i = 0; i < 4u; i++) matrix_clear(sums[i / 2u][i % 2u]);
    OXB_UNROLL
    for (uint s = 0; s < N / 16u; s++) {
        const uint rows[4] = {queries[s][0], queries[s][1], queries[s][2], queries[s][3]};
        OXB_UNROLL
        for (uint e = 0; e < 2u; e++) {
            uint first, second;
            matrix_along(keys + e * (N / 32u), s, first, second);
            matrix_add(sums[e][s % 2u], rows, first, second);
        }
    }
    OXB_UNROLL
    for (uint e = 0; e < 2u; e++) {
        OXB_UNROLL
        for (uint i = 0; i < 4u; i++)
            scores[e][i] = matrix_sum(sums[e][0], i) + matrix_sum(sums[e][1], i);
    }
}

// Online softmax of one query over blocks first, first + step, ... before `end`, position after
// position, in float. A lane has elements lane, lane + 32, ... of the sums.
template <uint N>
struct defined_attention {
    float largest, total;
    float sums[N / OXB_SIMD_WIDTH];
};

template <uint N, typename Query>
inline defined_attention<N>
attend_by_definition(attention_operands<half> in, constant oxb_attention_args &args, uint pages,
                     Query query, uint seen, uint first, uint end, uint step, uint lane) {
    defined_attention<N> found;
    found.largest = -INFINITY;
    found.total = 0.0f;
    OXB_UNROLL
    for (uint i = 0; i < N / OXB_SIMD_WIDTH; i++) found.sums[i] = 0.0f;
    OXB_ROLLED
    for (uint block = first; block < end; block += step) {
        const block_place place = place_of_block<N>(args.cache, in.pages, pages, block, seen);
        OXB_ROLLED
        for (uint p = 0; p < place.count; p++) {
            const ulong at = place.at + ulong(p) * N + lane;
            float score = 0.0f;
            OXB_UNROLL
            for (uint i = 0; i < N; i += OXB_SIMD_WIDTH)
                score = fma(query[lane + i], float(in.k[at + i]), score);
            score = place.lost ? NAN : simd_sum(score) * args.scale;
            const float before = found.largest;
            found.largest = max(before, score);
            const float weight = precise::exp(score - base_of(found.largest));
            const float fade = precise::exp(before - base_of(found.largest));
            found.total = fma(found.total, fade, weight);
            OXB_UNROLL
            for (uint i = 0; i < N / OXB_SIMD_WIDTH; i++)
                found.sums[i] =
                    fma(weight, float(in.v[at + OXB_SIMD_WIDTH * i]), found.sums[i] * fade);
        }
    }
    return found;
}

#endif
