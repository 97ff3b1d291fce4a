// Attention of some queries over one key-value head: what decode, prefill and every shape share.
//
// The queries of a threadgroup - heads that share a key-value head, and neighbouring tokens - share each
// load of the caches. Its SIMD-groups share the positions, in blocks of 32, and put their parts together
// at the end. Nothing here grows with the length of the sequence.
#ifndef OXB_ATTENTION_H
#define OXB_ATTENTION_H

// Queries of a threadgroup: 1, 2 or 4; and pairs of elements of a head for each lane: 1 up to a head_dim of
// 64, 2 up to 128, 8 above, with one query. They choose among template instances: see rows.h.
constant uint queries_constant [[function_constant(0)]];
constant uint attention_queries = is_function_constant_defined(queries_constant) ? queries_constant : 1u;
constant uint slices_constant [[function_constant(1)]];
constant uint attention_slices = is_function_constant_defined(slices_constant) ? slices_constant : 8u;

#define OXB_BLOCK OXB_SIMD_WIDTH
#define OXB_ATTENTION_SIMDGROUPS 4u // the most of a threadgroup
#define OXB_ATTENTION_QUERIES 4u
#define OXB_QUERY_ELEMENTS 512u // of all queries: 4 of 128, or 1 of OXB_MAX_HEAD_DIM
#define OXB_TEAM 8u             // lanes that score a position together

struct attention_memory {
    float queries[OXB_QUERY_ELEMENTS];
    float sums[OXB_ATTENTION_SIMDGROUPS][OXB_QUERY_ELEMENTS]; // of weight * value
    float weights[OXB_ATTENTION_SIMDGROUPS][OXB_ATTENTION_QUERIES * OXB_BLOCK];
    float largests[OXB_ATTENTION_SIMDGROUPS][OXB_ATTENTION_QUERIES];
    float totals[OXB_ATTENTION_SIMDGROUPS][OXB_ATTENTION_QUERIES];
};

// Scores that are all -inf so far weigh 0, not NaN: a later one may be finite.
inline float base_of(float largest) { return largest == -INFINITY ? 0.0f : largest; }

// weights[q * OXB_BLOCK + p] = the score of query q at position p of the block, for `count` of them.
template <typename T, typename Pair, uint QUERIES>
inline void score_block(device const T* k, uint n, uint count, float scale, uint lane,
                        threadgroup const float* queries, threadgroup float* weights)
{
    const uint team = lane / OXB_TEAM, member = lane % OXB_TEAM;
    const uint teams = OXB_SIMD_WIDTH / OXB_TEAM;
    for (uint p = team; p < OXB_BLOCK; p += teams) {
        float sums[QUERIES];
        OXB_UNROLL
        for (uint q = 0; q < QUERIES; q++)
            sums[q] = 0.0f;
        if (p < count) {
            for (uint i = 2u * member; i < n; i += 2u * OXB_TEAM) {
                const Pair pair = *(device const Pair*)(k + ulong(p) * n + i);
                OXB_UNROLL
                for (uint q = 0; q < QUERIES; q++) {
                    sums[q] = fma(queries[q * n + i], float(pair[0]), sums[q]);
                    sums[q] = fma(queries[q * n + i + 1u], float(pair[1]), sums[q]);
                }
            }
        }
        OXB_UNROLL
        for (uint q = 0; q < QUERIES; q++) {
            float sum = sums[q];
            sum += simd_shuffle_xor(sum, ushort(4));
            sum += simd_shuffle_xor(sum, ushort(2));
            sum += simd_shuffle_xor(sum, ushort(1));
            if (member == 0)
                weights[q * OXB_BLOCK + p] = sum * scale;
        }
    }
}

// sums += weight * value over positions [from, to) of the block, query q only where they are before
// counts[q]: what comes later must not reach it, not even 0 times infinity.
template <typename T, typename Pair, uint QUERIES, uint SLICES, bool MASKED>
inline void add_values(device const T* v, uint n, uint from, uint to, thread const uint* counts, uint lane,
                       threadgroup const float* weights, thread float* sums)
{
    for (uint p = from; p < to; p++) {
        OXB_UNROLL
        for (uint s = 0; s < SLICES; s++) {
            const uint i = 2u * (lane + s * OXB_SIMD_WIDTH);
            if (i < n) {
                const Pair pair = *(device const Pair*)(v + ulong(p) * n + i);
                OXB_UNROLL
                for (uint q = 0; q < QUERIES; q++) {
                    if (!MASKED || p < counts[q]) {
                        thread float* sum = sums + 2u * (q * SLICES + s);
                        const float weight = weights[q * OXB_BLOCK + p];
                        sum[0] = fma(weight, float(pair[0]), sum[0]);
                        sum[1] = fma(weight, float(pair[1]), sum[1]);
                    }
                }
            }
        }
    }
}

template <typename T, typename Pair, uint QUERIES, uint SLICES>
inline void attend(device const float* qkv, device const T* k_cache, device const T* v_cache, uint position,
                   device float* out, constant oxb_attention_args& args, uint3 group, thread_place place,
                   threadgroup attention_memory& memory)
{
    const uint n = args.head_dim;
    const uint thread_index = place.simdgroup * OXB_SIMD_WIDTH + place.lane;
    const uint n_threads = place.simdgroups * OXB_SIMD_WIDTH;
    const uint first_head = group.x * args.heads, first_token = group.y * args.tokens;
    const ulong token_stride = ulong(args.n_heads + 2u * args.n_kv_heads) * n;

    // Query q is head first_head + q % heads of token first_token + q / heads; it sees `seen` positions,
    // none where there is no such token, or no room for it in the cache.
    uint seen[QUERIES];
    uint longest = 0;
    OXB_UNROLL
    for (uint q = 0; q < QUERIES; q++) {
        const uint token = first_token + q / args.heads;
        const bool there = token < args.n_tokens && ulong(position) + token < args.max_seq;
        seen[q] = there ? position + token + 1u : 0u;
        longest = max(longest, seen[q]);
        device const float* from =
            qkv + min(token, args.n_tokens - 1u) * token_stride + ulong(first_head + q % args.heads) * n;
        for (uint i = thread_index; i < n; i += n_threads)
            memory.queries[q * n + i] = from[i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    // This part of the positions, in whole blocks.
    const uint blocks = (longest + OXB_BLOCK - 1u) / OXB_BLOCK;
    const uint blocks_of_part = (blocks + args.n_splits - 1u) / args.n_splits;
    const uint begin = group.z * blocks_of_part;
    const uint end = min(begin + blocks_of_part, blocks);

    float largest[QUERIES], total[QUERIES];
    float sums[2 * QUERIES * SLICES];
    OXB_UNROLL
    for (uint q = 0; q < QUERIES; q++) {
        largest[q] = -INFINITY;
        total[q] = 0.0f;
    }
    OXB_UNROLL
    for (uint i = 0; i < 2 * QUERIES * SLICES; i++)
        sums[i] = 0.0f;
    threadgroup float* weights = memory.weights[place.simdgroup];
    for (uint block = begin + place.simdgroup; block < end; block += place.simdgroups) {
        const uint start = block * OXB_BLOCK;
        const uint count = min(longest - start, OXB_BLOCK);
        score_block<T, Pair, QUERIES>(k_cache + ulong(start) * n, n, count, args.scale, place.lane,
                                      memory.queries, weights);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        uint counts[QUERIES];
        uint common = count;
        float fade[QUERIES];
        OXB_UNROLL
        for (uint q = 0; q < QUERIES; q++) {
            counts[q] = seen[q] > start ? min(seen[q] - start, OXB_BLOCK) : 0u;
            common = min(common, counts[q]);
            const float own = place.lane < counts[q] ? weights[q * OXB_BLOCK + place.lane] : -INFINITY;
            const float before = largest[q];
            largest[q] = max(before, simd_max(own));
            const float weight = precise::exp(own - base_of(largest[q]));
            fade[q] = precise::exp(before - base_of(largest[q]));
            total[q] = total[q] * fade[q] + simd_sum(weight);
            weights[q * OXB_BLOCK + place.lane] = weight; // a lane's own element
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        float part[2 * QUERIES * SLICES]; // of this block: two levels keep the rounding small
        OXB_UNROLL
        for (uint i = 0; i < 2 * QUERIES * SLICES; i++)
            part[i] = 0.0f;
        device const T* v = v_cache + ulong(start) * n;
        add_values<T, Pair, QUERIES, SLICES, false>(v, n, 0, common, counts, place.lane, weights, part);
        add_values<T, Pair, QUERIES, SLICES, true>(v, n, common, count, counts, place.lane, weights, part);
        OXB_UNROLL
        for (uint i = 0; i < 2 * QUERIES * SLICES; i++)
            sums[i] = fma(sums[i], fade[i / (2 * SLICES)], part[i]);
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }

    OXB_UNROLL
    for (uint q = 0; q < QUERIES; q++) {
        OXB_UNROLL
        for (uint s = 0; s < SLICES; s++) {
            const uint i = 2u * (place.lane + s * OXB_SIMD_WIDTH);
            if (i < n) {
                memory.sums[place.simdgroup][q * n + i] = sums[2 * (q * SLICES + s)];
                memory.sums[place.simdgroup][q * n + i + 1u] = sums[2 * (q * SLICES + s) + 1];
            }
        }
        if (place.lane == 0) {
            memory.largests[place.simdgroup][q] = largest[q];
            memory.totals[place.simdgroup][q] = total[q];
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    OXB_UNROLL
    for (uint q = 0; q < QUERIES; q++) {
        const uint token = first_token + q / args.heads;
        if (token >= args.n_tokens)
            continue;
        float most = -INFINITY, all = 0.0f;
        for (uint s = 0; s < place.simdgroups; s++)
            most = max(most, memory.largests[s][q]);
        for (uint s = 0; s < place.simdgroups; s++)
            all = fma(memory.totals[s][q], precise::exp(memory.largests[s][q] - base_of(most)), all);
        const ulong row = ulong(token) * args.n_heads + first_head + q % args.heads;
        device float* to = out + (args.n_splits == 1u ? row * n : (row * args.n_splits + group.z) * (n + 2u));
        for (uint i = thread_index; i < n; i += n_threads) {
            float sum = 0.0f;
            for (uint s = 0; s < place.simdgroups; s++)
                sum = fma(memory.sums[s][q * n + i], precise::exp(memory.largests[s][q] - base_of(most)), sum);
            // Without a place in the cache: a wrong result must show.
            to[i] = seen[q] == 0u ? NAN : args.n_splits == 1u ? sum / all : sum;
        }
        if (args.n_splits != 1u && thread_index == 0) {
            to[n] = most;
            to[n + 1u] = all;
        }
    }
}

#endif
