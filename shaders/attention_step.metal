// Attention of one token of a sequence, alone or in a batch, over a cache of halves, on matrix
// units and as exact as float.
//
// Rows 0 to 7 of a product are up to eight queries, heads of one key-value head, and rows 8 to 15
// what their rounding to halves left, times 2^11; so it is with weights. Keys and values are halves
// as they are. Each SIMD-group takes every so manyth block of its split and asks for the keys and
// the values of its first one together, as soon as it knows the position.
//
// Where the token's heads are not made yet, every threadgroup makes its own queries, and the one
// whose split has the token's position makes its key and value too, stores them for later tokens,
// and takes them from threadgroup memory where it asked for their block before.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "matrix.h"
#include "matrix_memory.h"
#include "cache.h"
#include "heads.h"
#include "half_shift.h"
#include "attention_operands.h"
#include "attention_matrix.h"
#include "instantiate.h"

// Splits of the positions that fill the device: a power of two.
constant uint most_splits_constant [[function_constant(2)]];
constant uint most_splits =
    is_function_constant_defined(most_splits_constant) ? most_splits_constant : 16u;

#define OXB_STEP_QUERIES    8u   // of a threadgroup
#define OXB_STEP_SIMDGROUPS 8u   // at most
#define OXB_STEP_ALONE      256u // positions that are not split: as in shim/gpu/geometry.c
#define OXB_STEP_GRAIN      128u // a split is a multiple of it
#define OXB_STEP_AT_ONCE    4u   // queries whose sums are in memory
#define OXB_STEP_PAD        4u   // floats between two of them: no bank conflicts
#define OXB_STEP_REST       2048.0f
// What the largest weight is as a half: 22 bits are left of one that is e^-20 of it, as where one
// position has nearly all the weight and nearly no value.
#define OXB_STEP_WEIGHT 32768.0f

struct step_memory {
    uint4 words[8 * OXB_SIMD_WIDTH]; // of the queries, [step][lane]: what multiply_keys() takes
    uint4 key[16], value[16];        // of the token, in halves, where they are made here
    float queries[OXB_STEP_QUERIES][128]; // the same
    float units[OXB_STEP_QUERIES];        // factors of their scores
    float sums[OXB_STEP_SIMDGROUPS][OXB_STEP_AT_ONCE * (128u + OXB_STEP_PAD)]; // weight * value
    float largests[OXB_STEP_SIMDGROUPS][OXB_STEP_QUERIES];
    float totals[OXB_STEP_SIMDGROUPS][OXB_STEP_QUERIES];
};

// Where element `i` of a query's sums is: the lanes of a row write side by side.
inline uint step_sum_at(uint i) {
    return (matrix_run_of(i) * 8u + i % 8u) * 4u + matrix_run_quad(i);
}

// What a value is rounded to as a half, and what that leaves.
inline half rest_of(float value, half near) { return half((value - float(near)) * OXB_STEP_REST); }

// What a token's heads are made of, where that is done here.
struct new_heads {
    device const float *q_norm, *k_norm, *rope;
    device half *k, *v; // of the key-value head, in page 0
    head_form form;
};

// Make the key and the value of a token, each by a SIMD-group, the last ones, which have the fewest
// queries. They are stored from element `at` on where they have a place.
template <uint N>
inline void make_key_and_value(new_heads made, device const float *key, device const float *value,
                               device const float *cosine, bool has_place, ulong at,
                               thread_place place, threadgroup step_memory &memory) {
    for (uint part = place.simdgroups - 1u - place.simdgroup; part < 2u; part += place.simdgroups) {
        threadgroup half *own = (threadgroup half *)(part == 0u ? memory.key : memory.value);
        if (part == 0u) {
            norm_and_rotate<half>(key, made.k_norm, cosine, own, made.form, place.lane);
            simdgroup_barrier(mem_flags::mem_threadgroup);
        } else {
            for (uint i = place.lane; i < N; i += OXB_SIMD_WIDTH) own[i] = half(value[i]);
        }
        device half *to = (part == 0u ? made.k : made.v) + at;
        if (!has_place) continue;
        for (uint i = place.lane; i < N; i += OXB_SIMD_WIDTH) to[i] = own[i];
    }
}

// A query as the words of its row. A lane has the elements of one quad in one step.
template <uint N, typename From>
inline void prepare_query(From from, uint q, bool there, float scale, uint lane,
                          threadgroup step_memory &memory) {
    const uint step = lane / 4u % (N / 16u), quad = lane % 4u;
    float own[4];
    uint most = 0u;
    OXB_UNROLL
    for (uint i = 0; i < 4u; i++) {
        own[i] = there ? from[matrix_along_element(step, quad, i)] : 0.0f;
        most = max(most, as_type<uint>(own[i]) & 0x7fffffffu);
    }
    const int shift = halves_shift(simd_max(most));
    half near[4], rest[4];
    OXB_UNROLL
    for (uint i = 0; i < 4u; i++) {
        const float value = own[i] * power_of_two(shift);
        near[i] = half(value);
        rest[i] = rest_of(value, near[i]);
    }
    // In heads of 64 two lanes write the same.
    if (lane / 4u == step) {
        memory.words[step * OXB_SIMD_WIDTH + matrix_lane(q, quad)] =
            uint4(matrix_join(near[0], near[1]), matrix_join(rest[0], rest[1]),
                  matrix_join(near[2], near[3]), matrix_join(rest[2], rest[3]));
    }
    if (lane == 0u) memory.units[q] = power_of_two(-shift) * scale;
}

// Positions of a split where `seen` are: of nothing else that is known when a step is recorded, so
// that the order of the additions is that of the positions.
inline uint step_split(uint seen) {
    const uint grains = (seen + most_splits * OXB_STEP_GRAIN - 1u) / (most_splits * OXB_STEP_GRAIN);
    return seen <= OXB_STEP_ALONE ? OXB_STEP_ALONE : grains * OXB_STEP_GRAIN;
}

// MAKES: the token's heads are made of `made`.
template <uint N, bool MAKES>
inline void attend_step(attention_operands<half> in, new_heads made,
                        constant oxb_attention_args &args, uint3 tile, thread_place place,
                        threadgroup step_memory &memory) {
    const uint token = args.first_token + tile.y, first_head = tile.x * args.heads;
    const uint lane = place.lane, query = matrix_row(lane), quad = matrix_quad(lane);
    const uint n_threads = place.simdgroups * OXB_SIMD_WIDTH;
    device const float *queries =
        in.qkv +
        (ulong(token) * (args.n_heads + 2u * args.n_kv_heads) + first_head) * args.head_dim;
    const ulong row = ulong(token) * args.n_heads + first_head; // of the output

    const sequence_place sequence = place_of(in.state, args.batch, token);
    const bool has_place = sequence.position < args.cache.max_seq;
    const uint seen = has_place ? uint(sequence.position) + 1u : 1u;
    const uint blocks = (seen + OXB_MATRIX_BLOCK - 1u) / OXB_MATRIX_BLOCK;
    const uint split_blocks = step_split(seen) / OXB_MATRIX_BLOCK;
    const uint begin = tile.z * split_blocks;
    const uint end = tile.z + 1u == args.n_splits ? blocks : min(begin + split_blocks, blocks);
    if (tile.z != 0u && begin >= blocks) {
        for (uint q = index_of(place); q < args.heads; q += n_threads)
            mark_empty_split(in.out, args, row + q, tile.z);
        return;
    }

    uint4 keys[N / 16u], values[N / 16u];
    const uint first = begin + place.simdgroup, nearest = min(first, end - 1u);
    block_place at = place_of_block<N>(args.cache, in.pages, sequence.pages, nearest, seen);
    const bool own_block = MAKES && nearest + 1u == blocks; // it has the token's own position
    const uint stored = at.count - (own_block ? 1u : 0u);
    if (loads_ahead != 0u && (!MAKES || stored != 0u)) {
        load_keys<N>(in.k + at.at, stored, lane, keys);
        load_values<N>(in.v + at.at, stored, lane, values);
        matrix_fence();
    }
    device const float *cosine =
        MAKES ? made.rope + ulong(seen - 1u) * made.form.rotary_dim : made.rope;
    if (MAKES && end == blocks) {
        const block_place last =
            place_of_block<N>(args.cache, in.pages, sequence.pages, blocks - 1u, seen);
        device const float *key = queries + (args.n_heads - first_head + tile.x) * N;
        make_key_and_value<N>(made, key, key + args.n_kv_heads * N, cosine, has_place && !last.lost,
                              last.at + ulong(last.count - 1u) * N, place, memory);
    }
    for (uint q = place.simdgroup; q < OXB_STEP_QUERIES; q += place.simdgroups) {
        const bool there = q < args.heads;
        device const float *from = queries + (there ? q : 0u) * N;
        if (MAKES) {
            threadgroup float *own = memory.queries[q];
            if (there) norm_and_rotate<float>(from, made.q_norm, cosine, own, made.form, lane);
            simdgroup_barrier(mem_flags::mem_threadgroup);
            prepare_query<N>(own, q, there, args.scale, lane, memory);
        } else {
            prepare_query<N>(from, q, there, args.scale, lane, memory);
        }
    }
    threadgroup_barrier(MAKES ? mem_flags::mem_threadgroup | mem_flags::mem_device
                              : mem_flags::mem_threadgroup);
    if (loads_ahead != 0u && own_block) {
        complete_keys<N>(memory.key, stored, lane, keys);
        complete_values<N>(memory.value, stored, lane, values);
    }

    const float unit = memory.units[query];
    float largest = -INFINITY, total = 0.0f;
    float sums[N / 8u][2];
    OXB_UNROLL
    for (uint e = 0; e < N / 8u; e++) sums[e][0] = sums[e][1] = 0.0f;
    for (uint block = first; block < end; block += place.simdgroups) {
        const block_place own = at;
        const uint next = block + place.simdgroups;
        const bool more = next < end;
        if (loads_ahead == 0u) load_keys<N>(in.k + own.at, own.count, lane, keys);
        uint4 words[N / 16u];
        OXB_UNROLL
        for (uint s = 0; s < N / 16u; s++) words[s] = memory.words[s * OXB_SIMD_WIDTH + lane];
        float scores[2][4];
        multiply_keys<N>(words, keys, scores);
        if (more) at = place_of_block<N>(args.cache, in.pages, sequence.pages, next, seen);
        if (more && loads_ahead != 0u) load_keys<N>(in.k + at.at, at.count, lane, keys);
        const uint start = block * OXB_MATRIX_BLOCK;
        float weights[4], most = largest;
        OXB_UNROLL
        for (uint i = 0; i < 4u; i++) {
            const uint e = i / 2u, c = i % 2u;
            const float score = fma(scores[e][2u + c], 1.0f / OXB_STEP_REST, scores[e][c]) *
                                (own.lost ? NAN : unit);
            weights[i] = start + 8u * e + 2u * quad + c < seen ? score : -INFINITY;
            most = max(most, weights[i]);
        }
        most = matrix_row_max(most);
        const float fade = precise::exp(largest - base_of(most));
        largest = most;
        total *= fade;
        half near[4], rest[4];
        OXB_UNROLL
        for (uint i = 0; i < 4u; i++) {
            weights[i] = precise::exp(weights[i] - base_of(largest));
            total += weights[i];
            const float large = weights[i] * OXB_STEP_WEIGHT;
            near[i] = half(large);
            rest[i] = rest_of(large, near[i]);
        }
        if (loads_ahead == 0u) load_values<N>(in.v + own.at, own.count, lane, values);
        const uint rows[4] = {matrix_join(near[0], near[1]), matrix_join(rest[0], rest[1]),
                              matrix_join(near[2], near[3]), matrix_join(rest[2], rest[3])};
        OXB_UNROLL
        for (uint e = 0; e < N / 8u; e++) {
            uint low, high;
            matrix_across(values, e, low, high);
            matrix_sums part; // apart from the other blocks, which keeps the rounding small
            matrix_clear(part);
            matrix_add(part, rows, low, high);
            OXB_UNROLL
            for (uint c = 0; c < 2u; c++)
                sums[e][c] =
                    fma(sums[e][c], fade,
                        fma(matrix_sum(part, 2u + c), 1.0f / OXB_STEP_REST, matrix_sum(part, c)) *
                            (1.0f / OXB_STEP_WEIGHT));
        }
        if (more && loads_ahead != 0u) load_values<N>(in.v + at.at, at.count, lane, values);
    }

    total = matrix_row_sum(total);
    float zero = 0.0f * total;
    OXB_UNROLL
    for (uint e = 0; e < N / 8u; e++) zero += 0.0f * (sums[e][0] + sums[e][1]);
    const bool odd = matrix_row_sum(zero) != 0.0f; // a sum is not finite

    const uint stride = N + OXB_STEP_PAD;
    for (uint pass = 0; pass < args.heads; pass += OXB_STEP_AT_ONCE) {
        if (pass != 0u) threadgroup_barrier(mem_flags::mem_threadgroup);
        const uint n_queries = min(args.heads - pass, OXB_STEP_AT_ONCE);
        threadgroup float *own = memory.sums[place.simdgroup];
        const bool mine = query - pass < n_queries && !odd;
        if (mine) {
            threadgroup float *to = own + (query - pass) * stride + quad;
            OXB_UNROLL
            for (uint run = 0; run < N / 32u; run++) {
                OXB_UNROLL
                for (uint j = 0; j < 8u; j++)
                    to[(run * 8u + j) * 4u] =
                        sums[matrix_run_eight(run, j)][matrix_run_sum(run, j)];
            }
            if (quad == 0u) {
                memory.largests[place.simdgroup][query] = largest;
                memory.totals[place.simdgroup][query] = total;
            }
        }
        if (simd_any(odd)) {
            OXB_ROLLED
            for (uint q = 0; q < n_queries; q++) {
                if (simd_shuffle(odd ? 1u : 0u, ushort(matrix_lane(pass + q, 0u))) == 0u) continue;
                defined_attention<N> found;
                if (MAKES)
                    found =
                        attend_by_definition<N>(in, args, sequence.pages, memory.queries[pass + q],
                                                seen, first, end, place.simdgroups, lane);
                else
                    found =
                        attend_by_definition<N>(in, args, sequence.pages, queries + (pass + q) * N,
                                                seen, first, end, place.simdgroups, lane);
                OXB_UNROLL
                for (uint i = 0; i < N / OXB_SIMD_WIDTH; i++)
                    own[q * stride + step_sum_at(lane + OXB_SIMD_WIDTH * i)] = found.sums[i];
                if (lane == 0u) {
                    memory.largests[place.simdgroup][pass + q] = found.largest;
                    memory.totals[place.simdgroup][pass + q] = found.total;
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // A SIMD-group for 32 elements of a query, of which each lane adds up one.
        const uint each = N / OXB_SIMD_WIDTH;
        for (uint part = place.simdgroup; part < n_queries * each; part += place.simdgroups) {
            const uint q = part / each, i = part % each * OXB_SIMD_WIDTH + lane;
            const uint of = min(lane, place.simdgroups - 1u);
            const bool counts = lane < place.simdgroups;
            const float its_largest = counts ? memory.largests[of][pass + q] : -INFINITY;
            const float all_largest = simd_max(its_largest);
            const float its_fade = precise::exp(its_largest - base_of(all_largest));
            const float all = simd_sum(counts ? memory.totals[of][pass + q] * its_fade : 0.0f);
            float sum = 0.0f;
            for (uint s = 0; s < place.simdgroups; s++)
                sum = fma(memory.sums[s][q * stride + step_sum_at(i)],
                          simd_shuffle(its_fade, ushort(s)), sum);
            const ulong to_row = row + pass + q;
            device float *to =
                in.out +
                (args.n_splits == 1u ? to_row * N : (to_row * args.n_splits + tile.z) * (N + 2u));
            // NaN for a token without a place in the cache: a wrong result must show.
            to[i] = !has_place ? NAN : args.n_splits == 1u ? sum / all : sum;
            if (args.n_splits != 1u && i == 0u) {
                to[N] = all_largest;
                to[N + 1u] = all;
            }
        }
    }
}

// A threadgroup per tile: along x query heads of one key-value head, along y tokens, along z splits
// of the positions. Caches start at multiples of 16 bytes.
kernel void attention_f16_step(
    device const float *qkv [[buffer(0)]], device const half *k_cache [[buffer(1)]],
    device const half *v_cache [[buffer(2)]], device const oxb_decode_state *state [[buffer(3)]],
    device const uint *pages [[buffer(4)]], device float *out [[buffer(5)]],
    constant oxb_attention_args &args [[buffer(6)]], uint3 tile [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup step_memory memory;
    const ulong first = head_of_tile(args, tile.x);
    const thread_place place = {lane, simdgroup, simdgroups};
    const attention_operands<half> in = {qkv, k_cache + first, v_cache + first, state, pages, out};
    const new_heads none = {nullptr, nullptr, nullptr, nullptr, nullptr, head_form()};
    if (head_dim_of_kernel == 64u)
        attend_step<64, false>(in, none, args, tile, place, memory);
    else
        attend_step<128, false>(in, none, args, tile, place, memory);
}

// qkv_to_cache and attention in one: a tile has all query heads of a key-value head.
kernel void qkv_attention_f16_step(
    device const float *qkv [[buffer(0)]], device const float *q_norm [[buffer(1)]],
    device const float *k_norm [[buffer(2)]], device const float *rope [[buffer(3)]],
    device half *k_cache [[buffer(4)]], device half *v_cache [[buffer(5)]],
    device const oxb_decode_state *state [[buffer(6)]], device const uint *pages [[buffer(7)]],
    device float *out [[buffer(8)]], constant oxb_qkv_attention_args &args [[buffer(9)]],
    uint3 tile [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup step_memory memory;
    constant oxb_attention_args &attention = args.attention;
    const ulong first = head_of_tile(attention, tile.x);
    const thread_place place = {lane, simdgroup, simdgroups};
    const attention_operands<half> in = {qkv, k_cache + first, v_cache + first, state, pages, out};
    const new_heads made = {q_norm,          k_norm,          rope,
                            k_cache + first, v_cache + first, form_of(args, attention.head_dim)};
    if (head_dim_of_kernel == 64u)
        attend_step<64, true>(in, made, attention, tile, place, memory);
    else
        attend_step<128, true>(in, made, attention, tile, place, memory);
}
