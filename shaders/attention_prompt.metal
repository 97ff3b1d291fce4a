// Attention of the tokens of a prompt over a cache of halves, on matrix units.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "matrix.h"
#include "matrix_memory.h"
#include "cache.h"
#include "half_shift.h"
#include "attention_operands.h"
#include "attention_matrix.h"
#include "instantiate.h"

#define OXB_LOG2_E 1.44269504f
#define OXB_LOWEST -3.402823466e38f
// A weight is 2^15 for the largest score so far: a half keeps 11 bits down to 2^-29 of that, e^-20.
// From scores of 2^24 on, where this is rounded to 2^16 and overflows, the definition is taken.
#define OXB_WEIGHT_EXPONENT 15.0f

// A query: row matrix_row(lane) of the SIMD-group's, or the one 8 below.
struct prompt_query {
    ulong row; // of the output, and of the queries among all heads of a token
    device const float *from;
    uint seen; // positions; 0 where it has no place in the cache
    bool there;
};

inline prompt_query prompt_query_of(attention_operands<half> in, constant oxb_attention_args &args,
                                    uint3 tile, ulong position, uint i) {
    const uint later = i / args.heads, token = args.first_token + tile.y * args.tokens + later;
    const uint head = tile.x * args.heads + i % args.heads;
    prompt_query query;
    query.there = later < args.tokens && token < args.n_tokens;
    query.seen =
        query.there && position + later < args.cache.max_seq ? uint(position) + later + 1u : 0u;
    query.row = ulong(token) * args.n_heads + head;
    query.from =
        in.qkv +
        (ulong(min(token, args.n_tokens - 1u)) * (args.n_heads + 2u * args.n_kv_heads) + head) *
            args.head_dim;
    return query;
}

// The words of two queries for the products, and the factors that make their scores exponents of 2.
template <uint N>
inline void load_queries(thread const prompt_query (&queries)[2], float scale, uint quad,
                         thread uint4 (&words)[N / 16u], thread float (&units)[2]) {
    OXB_UNROLL
    for (uint h = 0; h < 2u; h++) {
        float own[N / 4u];
        uint most = 0u;
        OXB_UNROLL
        for (uint i = 0; i < N / 4u; i++) {
            own[i] = queries[h].from[matrix_along_element(i / 4u, quad, i % 4u)];
            most = max(most, as_type<uint>(own[i]) & 0x7fffffffu);
        }
        most = max(most, simd_shuffle_xor(most, ushort(OXB_QUAD_LOW)));
        most = max(most, simd_shuffle_xor(most, ushort(OXB_QUAD_HIGH)));
        const int shift = halves_shift(most);
        const float factor = power_of_two(shift);
        OXB_UNROLL
        for (uint i = 0; i < N / 4u; i += 2u)
            words[i / 4u][i / 2u % 2u * 2u + h] =
                matrix_join(half(own[i] * factor), half(own[i + 1u] * factor));
        units[h] = power_of_two(-shift) * (scale * OXB_LOG2_E);
    }
}

// 16 queries of a SIMD-group, of the threadgroup's heads times tokens: heads first.
template <uint N>
inline void attend_prompt(attention_operands<half> in, constant oxb_attention_args &args,
                          uint3 tile, thread_place place) {
    const uint quad = matrix_quad(place.lane);
    const sequence_place sequence = place_of(in.state, 0u, args.first_token + tile.y * args.tokens);
    prompt_query queries[2];
    OXB_UNROLL
    for (uint h = 0; h < 2u; h++)
        queries[h] = prompt_query_of(in, args, tile, sequence.position,
                                     16u * place.simdgroup + 8u * h + matrix_row(place.lane));
    const uint longest = simd_max(max(queries[0].seen, queries[1].seen));
    const uint fewest = simd_min(min(queries[0].seen, queries[1].seen));
    const uint blocks = (longest + OXB_MATRIX_BLOCK - 1u) / OXB_MATRIX_BLOCK;

    uint4 words[N / 16u], keys[N / 16u], values[N / 16u];
    float units[2];
    block_place at = place_of_block<N>(args.cache, in.pages, sequence.pages, 0u, max(longest, 1u));
    if (loads_ahead != 0u) load_keys<N>(in.k + at.at, at.count, place.lane, keys);
    load_queries<N>(queries, args.scale, quad, words, units);
    float largest[2] = {OXB_LOWEST, OXB_LOWEST}, total[2] = {0.0f, 0.0f};
    matrix_sums sums[N / 8u];
    OXB_UNROLL
    for (uint e = 0; e < N / 8u; e++) matrix_clear(sums[e]);
    for (uint block = 0; block < blocks; block++) {
        if (loads_ahead != 0u) {
            load_values<N>(in.v + at.at, at.count, place.lane, values);
            matrix_fence(); // they are asked for before the products of the keys
        } else {
            load_keys<N>(in.k + at.at, at.count, place.lane, keys);
        }
        float scores[2][4];
        multiply_keys<N>(words, keys, scores);
        const block_place own = at;
        // After the last block this reads it again, and does not use it.
        at = place_of_block<N>(args.cache, in.pages, sequence.pages, min(block + 1u, blocks - 1u),
                               longest);
        if (loads_ahead != 0u) load_keys<N>(in.k + at.at, at.count, place.lane, keys);

        const uint start = block * OXB_MATRIX_BLOCK;
        const bool all_seen = start + OXB_MATRIX_BLOCK <= fewest;
        float fades[2];
        OXB_UNROLL
        for (uint h = 0; h < 2u; h++) {
            const float unit = own.lost ? NAN : units[h];
            float most = largest[h];
            OXB_UNROLL
            for (uint i = 0; i < 4u; i++) {
                thread float &score = scores[i / 2u][2u * h + i % 2u];
                score *= unit;
                if (!all_seen)
                    score = start + i / 2u * 8u + 2u * quad + i % 2u < queries[h].seen ? score
                                                                                       : -INFINITY;
                most = max(most, score);
            }
            most = matrix_row_max(most);
            fades[h] = precise::exp2(largest[h] - most);
            largest[h] = most;
            const float base = most - OXB_WEIGHT_EXPONENT;
            total[h] *= fades[h];
            OXB_UNROLL
            for (uint i = 0; i < 4u; i++) {
                thread float &score = scores[i / 2u][2u * h + i % 2u];
                score = precise::exp2(score - base);
                total[h] += score;
            }
        }
        // The largest score seldom changes after the first blocks.
        if (simd_any(fades[0] != 1.0f || fades[1] != 1.0f)) {
            OXB_UNROLL
            for (uint e = 0; e < N / 8u; e++) matrix_scale(sums[e], fades[0], fades[1]);
        }
        if (loads_ahead == 0u) load_values<N>(in.v + own.at, own.count, place.lane, values);
        uint rows[4];
        OXB_UNROLL
        for (uint i = 0; i < 4u; i++)
            rows[i] = matrix_join(half(scores[i / 2u][i % 2u * 2u]),
                                  half(scores[i / 2u][i % 2u * 2u + 1u]));
        OXB_UNROLL
        for (uint e = 0; e < N / 8u; e++) {
            uint first, second;
            matrix_across(values, e, first, second);
            matrix_add(sums[e], rows, first, second);
        }
    }

    uint odd = 0u; // bit h: of the lane's row h a sum is not finite
    OXB_UNROLL
    for (uint h = 0; h < 2u; h++) {
        total[h] = matrix_row_sum(total[h]);
        const float inverse = 1.0f / total[h];
        float zero = 0.0f * inverse;
        OXB_UNROLL
        for (uint e = 0; e < N / 8u; e++)
            zero += 0.0f * (matrix_sum(sums[e], 2u * h) + matrix_sum(sums[e], 2u * h + 1u));
        const bool finite = matrix_row_sum(zero) == 0.0f, lost = queries[h].seen == 0u;
        odd |= finite || lost ? 0u : 1u << h;
        device float *to = in.out + queries[h].row * N;
        if (queries[h].there && (finite || lost)) {
            OXB_UNROLL
            for (uint run = 0; run < N / 32u; run++) {
                float own[8];
                OXB_UNROLL
                for (uint j = 0; j < 8u; j++) {
                    const float sum =
                        matrix_sum(sums[matrix_run_eight(run, j)], 2u * h + matrix_run_sum(run, j));
                    own[j] = lost ? NAN : sum * inverse;
                }
                device float4 *from = (device float4 *)(to + matrix_run_start(run, quad));
                from[0] = float4(own[0], own[1], own[2], own[3]);
                from[1] = float4(own[4], own[5], own[6], own[7]);
            }
        }
    }
    if (!simd_any(odd != 0u)) return;
    OXB_ROLLED
    for (uint r = 0; r < 16u; r++) {
        if ((simd_shuffle(odd, ushort(matrix_lane(r % 8u, 0u))) >> (r / 8u) & 1u) == 0u) continue;
        const prompt_query query =
            prompt_query_of(in, args, tile, sequence.position, 16u * place.simdgroup + r);
        const defined_attention<N> found = attend_by_definition<N>(
            in, args, sequence.pages, query.from, query.seen, 0u,
            (query.seen + OXB_MATRIX_BLOCK - 1u) / OXB_MATRIX_BLOCK, 1u, place.lane);
        device float *to = in.out + query.row * N + place.lane;
        OXB_UNROLL
        for (uint i = 0; i < N / OXB_SIMD_WIDTH; i++)
            to[OXB_SIMD_WIDTH * i] = found.sums[i] / found.total;
    }
}

// A threadgroup per tile: along x query heads of one key-value head, along y tokens. Caches and
// output start at multiples of 16 bytes.
kernel void attention_f16_prompt(
    device const float *qkv [[buffer(0)]], device const half *k_cache [[buffer(1)]],
    device const half *v_cache [[buffer(2)]], device const oxb_decode_state *state [[buffer(3)]],
    device const uint *pages [[buffer(4)]], device float *out [[buffer(5)]],
    constant oxb_attention_args &args [[buffer(6)]],
    uint3 place_in_grid [[threadgroup_position_in_grid]], uint3 tiles [[threadgroups_per_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    // Later tokens attend to more: they start first, so that no long tile is left alone at the end.
    const uint3 tile = uint3(place_in_grid.x, tiles.y - 1u - place_in_grid.y, 0u);
    const ulong first = head_of_tile(args, tile.x);
    const thread_place place = {lane, simdgroup, simdgroups};
    const attention_operands<half> in = {qkv, k_cache + first, v_cache + first, state, pages, out};
    if (head_dim_of_kernel == 64u)
        attend_prompt<64>(in, args, tile, place);
    else
        attend_prompt<128>(in, args, tile, place);
}
