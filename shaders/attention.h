// Attention of some queries over one key-value head, for decode and prefill and for every shape.
//
// The queries of a threadgroup - heads of one key-value head, and neighbouring tokens - share each
// load of the caches. Its SIMD-groups take turns at blocks of 32 positions and add up their sums at
// the end (online softmax). Memory does not grow with the length of the sequence. No block crosses
// two pages.
#ifndef OXB_ATTENTION_H
#define OXB_ATTENTION_H

#include "simd.h"
#include "cache.h"
#include "attention_operands.h"
#include "q8.h"

// Queries of a threadgroup: 1, 2 or 4; 1 or 2 for a head above 128, 1 above 256. The constants
// select template instances, as in rows.h.
constant uint queries_constant [[function_constant(0)]];
constant uint attention_queries =
    is_function_constant_defined(queries_constant) ? queries_constant : 1u;
// Elements of a head that a lane reads at once: 4 where head_dim and the addresses of the caches
// are multiples of 4 elements, else 2. Of q8 it is always 4: there 16 says that head_dim is 128 and
// that the addresses are multiples of 16, so that the low bits of a position are one load.
constant uint width_constant [[function_constant(1)]];
constant uint attention_width = is_function_constant_defined(width_constant) ? width_constant : 2u;
// 0: head_dim is at most 128; 2: at most 256; 1: any.
constant uint long_constant [[function_constant(2)]];
constant uint attention_long = is_function_constant_defined(long_constant) ? long_constant : 1u;

#define OXB_BLOCK                OXB_SIMD_WIDTH
#define OXB_ATTENTION_SIMDGROUPS 4u // of a threadgroup, at most
#define OXB_ATTENTION_QUERIES    4u
#define OXB_QUERY_ELEMENTS       512u // of all queries: 4 of 128, 2 of 256, 1 of any
#define OXB_TEAM                 8u   // lanes that score a position together
#define OXB_TEAMS                (OXB_SIMD_WIDTH / OXB_TEAM)
#define OXB_SPLITS               64u // that are enough for any position
#define OXB_SPLIT_BLOCKS         4u  // of a split, at the least: as in shim/gpu/geometry.c

struct attention_memory {
    float4 queries[OXB_QUERY_ELEMENTS / 4];                   // as floats, [query][head_dim]
    float sums[OXB_ATTENTION_SIMDGROUPS][OXB_QUERY_ELEMENTS]; // of weight * value
    float weights[OXB_ATTENTION_SIMDGROUPS][OXB_ATTENTION_QUERIES * OXB_BLOCK];
    float largests[OXB_ATTENTION_SIMDGROUPS][OXB_ATTENTION_QUERIES];
    float totals[OXB_ATTENTION_SIMDGROUPS][OXB_ATTENTION_QUERIES];
};

// How a head is read. Cache and Query are vectors of WIDTH elements of the caches (of T) and of a
// query; SLICES of them for each lane cover a head of MOST elements. To hide latency, a team loads
// the keys of ROUNDS positions, and a SIMD-group the values of VALUES positions, before it uses
// them. HAS_UNITS: whether the elements are those of q8, with words behind them. HEAD_DIM: 0 where
// the compiler does not know it.
template <typename Element, typename Vector, typename QueryVector, uint W, uint MOST,
          bool UNITS = false, uint KNOWN = 0>
struct attention_form {
    typedef Element T;
    typedef Vector Cache;
    typedef QueryVector Query;
    enum { WIDTH = W };
    enum { HAS_UNITS = UNITS };
    enum { HEAD_DIM = KNOWN };
    enum { SLICES = MOST / (32 * W) };
    enum { ROUNDS = 512 / MOST };
    enum { VALUES = 1024 / MOST };
};

// What a lane needs of the low bits of q8, for vectors of four elements from i on.
struct low_bits {
    uint word;  // of a position's words of 32 bits
    uint shift; // of the four bits in it
    uint mask;  // 0 for the last 16 elements, whose bits are the unit instead
};

inline low_bits low_bits_of(uint n, uint i) {
    low_bits low;
    low.word = min(i, n - 1u) / OXB_WORD_ELEMENTS;
    low.shift = i % OXB_WORD_ELEMENTS;
    low.mask = i + 16u < n ? 15u : 0u;
    return low;
}

// The words of position p, of which each lane of a team needs one for each of its STEPS vectors.
template <typename Form, uint STEPS>
inline void load_words(device const uint *words, uint p, uint n, thread uint *to) {
    if (!Form::HAS_UNITS) {
        OXB_UNROLL
        for (uint s = 0; s < STEPS; s++) to[s] = 0u;
        return;
    }
    if (Form::HEAD_DIM == 128) {
        const uint4 all = ((device const uint4 *)words)[p];
        OXB_UNROLL
        for (uint s = 0; s < STEPS; s++) to[s] = all[s % 4u];
        return;
    }
    const uint each = n / OXB_WORD_ELEMENTS;
    OXB_UNROLL
    for (uint s = 0; s < STEPS; s++) to[s] = words[p * each + min(s, each - 1u)];
}

// Elements as floats, of q8 in units of two steps.
template <typename Form, bool UNITS>
struct elements_of {
    static typename Form::Query get(typename Form::Cache from, uint, low_bits) {
        typename Form::Query to;
        OXB_UNROLL
        for (uint e = 0; e < Form::WIDTH; e++) to[e] = float(from[e]);
        return to;
    }
};
template <typename Form>
struct elements_of<Form, true> {
    static float4 get(char4 from, uint word, low_bits low) {
        return q8_elements(from, word >> low.shift & low.mask);
    }
};

// weights[q * OXB_BLOCK + p] = the score of query q at position p of the block, for p < count; what
// comes after must not be used.
template <typename Form, uint QUERIES>
inline void score_block(device const typename Form::T *k, device const uint *words, uint n,
                        uint count, float scale, uint lane, threadgroup const float *queries,
                        threadgroup float *weights) {
    const uint steps = OXB_TEAMS * Form::SLICES; // loads of a lane for a position
    const uint team = lane / OXB_TEAM, member = lane % OXB_TEAM;
    for (uint start = 0; start < count; start += OXB_TEAMS * Form::ROUNDS) {
        typename Form::Cache keys[Form::ROUNDS][OXB_TEAMS * Form::SLICES];
        uint bits[Form::ROUNDS][OXB_TEAMS * Form::SLICES]; // as words
        float sums[Form::ROUNDS][QUERIES];
        OXB_UNROLL
        for (uint r = 0; r < Form::ROUNDS; r++) {
            const uint p = min(start + r * OXB_TEAMS + team, count - 1u);
            OXB_UNROLL
            for (uint s = 0; s < steps; s++) {
                const uint i = min(Form::WIDTH * (member + s * OXB_TEAM), n - Form::WIDTH);
                keys[r][s] = *(device const typename Form::Cache *)(k + ulong(p) * n + i);
            }
            load_words<Form, OXB_TEAMS * Form::SLICES>(words, p, n, bits[r]);
            OXB_UNROLL
            for (uint q = 0; q < QUERIES; q++) sums[r][q] = 0.0f;
        }
        OXB_UNROLL
        for (uint s = 0; s < steps; s++) {
            const uint i = Form::WIDTH * (member + s * OXB_TEAM);
            if (i < n) {
                typename Form::Query own[Form::ROUNDS];
                OXB_UNROLL
                for (uint r = 0; r < Form::ROUNDS; r++)
                    own[r] = elements_of < Form,
                    Form::HAS_UNITS != 0 > ::get(keys[r][s], bits[r][s], low_bits_of(n, i));
                OXB_UNROLL
                for (uint q = 0; q < QUERIES; q++) {
                    const typename Form::Query query =
                        *(threadgroup const typename Form::Query *)(queries + q * n + i);
                    OXB_UNROLL
                    for (uint r = 0; r < Form::ROUNDS; r++) {
                        OXB_UNROLL
                        for (uint e = 0; e < Form::WIDTH; e++)
                            sums[r][q] = fma(query[e], own[r][e], sums[r][q]);
                    }
                }
            }
        }
        OXB_UNROLL
        for (uint r = 0; r < Form::ROUNDS; r++) {
            OXB_UNROLL
            for (uint q = 0; q < QUERIES; q++) {
                float sum = sums[r][q];
                sum += simd_shuffle_xor(sum, ushort(4));
                sum += simd_shuffle_xor(sum, ushort(2));
                sum += simd_shuffle_xor(sum, ushort(1));
                if (member == 0)
                    weights[q * OXB_BLOCK + start + r * OXB_TEAMS + team] = sum * scale;
            }
        }
    }
}

// sums += weight * value over the positions of the block, for query q those below counts[q]. Later
// positions are left out, not weighted by 0: 0 times infinity is NaN.
template <typename Form, uint QUERIES>
inline void add_values(device const typename Form::T *v, device const uint *words, uint n,
                       uint count, thread const uint *counts, uint lane,
                       threadgroup const float *weights, thread float *sums) {
    for (uint start = 0; start < count; start += Form::VALUES) {
        typename Form::Cache values[Form::VALUES][Form::SLICES];
        uint bits[Form::VALUES][Form::SLICES];
        OXB_UNROLL
        for (uint j = 0; j < Form::VALUES; j++) {
            const uint p = min(start + j, count - 1u);
            OXB_UNROLL
            for (uint s = 0; s < Form::SLICES; s++) {
                const uint i = min(Form::WIDTH * (lane + s * OXB_SIMD_WIDTH), n - Form::WIDTH);
                values[j][s] = *(device const typename Form::Cache *)(v + ulong(p) * n + i);
                bits[j][s] = Form::HAS_UNITS
                                 ? words[p * (n / OXB_WORD_ELEMENTS) + low_bits_of(n, i).word]
                                 : 0u;
            }
        }
        OXB_UNROLL
        for (uint j = 0; j < Form::VALUES; j++) {
            typename Form::Query own[Form::SLICES];
            OXB_UNROLL
            for (uint s = 0; s < Form::SLICES; s++)
                own[s] = elements_of < Form,
                Form::HAS_UNITS !=
                    0 > ::get(values[j][s], bits[j][s],
                              low_bits_of(n, Form::WIDTH * (lane + s * OXB_SIMD_WIDTH)));
            OXB_UNROLL
            for (uint q = 0; q < QUERIES; q++) {
                if (start + j < counts[q]) {
                    const float weight = weights[q * OXB_BLOCK + start + j];
                    OXB_UNROLL
                    for (uint s = 0; s < Form::SLICES; s++) {
                        OXB_UNROLL
                        for (uint e = 0; e < Form::WIDTH; e++) {
                            thread float *sum = sums + (q * Form::SLICES + s) * Form::WIDTH + e;
                            *sum = fma(weight, own[s][e], *sum);
                        }
                    }
                }
            }
        }
    }
}

// Blocks of a split of `seen` positions: of nothing else, so that the order of the additions is
// that of the positions, whatever was recorded.
inline uint blocks_of_split(uint seen) {
    uint blocks = OXB_SPLIT_BLOCKS;
    while (blocks * (OXB_SPLITS * OXB_BLOCK) < seen) blocks *= 2u;
    return blocks;
}

template <typename Form, uint QUERIES>
inline void attend(attention_operands<typename Form::T> in, constant oxb_attention_args &args,
                   uint3 tile, thread_place place, threadgroup attention_memory &memory) {
    const uint elements = QUERIES * Form::SLICES * Form::WIDTH; // of a lane
    threadgroup float *queries = (threadgroup float *)memory.queries;
    const uint n = Form::HEAD_DIM != 0 ? uint(Form::HEAD_DIM) : args.head_dim;
    const uint thread_index = place.simdgroup * OXB_SIMD_WIDTH + place.lane;
    const uint n_threads = place.simdgroups * OXB_SIMD_WIDTH;
    const uint first_head = tile.x * args.heads;
    const uint first_token = args.first_token + tile.y * args.tokens;
    const ulong token_stride = ulong(args.n_heads + 2u * args.n_kv_heads) * n;

    // Query q is head first_head + q % heads of token first_token + q / heads. It attends to
    // seen[q] positions: 0 where there is no such token, or no room for it in the cache. Queries
    // are read at once with the state, before it is known whether the split is empty.
    const sequence_place sequence = place_of(in.state, args.batch, first_token);
    uint seen[QUERIES];
    uint longest = 0;
    const uint columns = Form::SLICES * Form::WIDTH;    // of a head, at most
    float turned[QUERIES * Form::SLICES * Form::WIDTH]; // elements of a lane
    OXB_UNROLL
    for (uint q = 0; q < QUERIES; q++) {
        const uint later = q / args.heads;
        const bool there =
            first_token + later < args.n_tokens && sequence.position + later < args.cache.max_seq;
        seen[q] = there ? uint(sequence.position) + later + 1u : 0u;
        longest = max(longest, seen[q]);
        device const float *from = in.qkv +
                                   min(first_token + later, args.n_tokens - 1u) * token_stride +
                                   ulong(first_head + q % args.heads) * n;
        if (Form::HAS_UNITS) { // a lane has a column of 32 elements in turn, to be transformed
            OXB_UNROLL
            for (uint c = 0; c < columns; c++) {
                // Past a SIMD-group's last column this reads the head's last, and it is not used.
                const uint own =
                    min(place.simdgroup + c * place.simdgroups, n / OXB_SIMD_WIDTH - 1u);
                turned[q * columns + c] = from[n / OXB_SIMD_WIDTH * place.lane + own];
            }
        } else {
            for (uint i = thread_index; i < n; i += n_threads) queries[q * n + i] = from[i];
        }
    }

    // The blocks of this split; the last takes all that are left.
    const uint blocks = (longest + OXB_BLOCK - 1u) / OXB_BLOCK;
    const uint split_blocks = blocks_of_split(longest);
    const uint begin = tile.z * split_blocks;
    const uint end = tile.z + 1u == args.n_splits ? blocks : min(begin + split_blocks, blocks);
    if (tile.z != 0u && begin >= blocks) {
        OXB_UNROLL
        for (uint q = 0; q < QUERIES; q++) {
            const uint token = first_token + q / args.heads;
            if (thread_index == 0 && token < args.n_tokens) {
                const ulong row = ulong(token) * args.n_heads + first_head + q % args.heads;
                mark_empty_split(in.out, args, row, tile.z);
            }
        }
        return;
    }

    if (Form::HAS_UNITS) { // as the keys are
        OXB_UNROLL
        for (uint q = 0; q < QUERIES; q++) {
            OXB_UNROLL
            for (uint c = 0; c < columns; c++) {
                const uint own = place.simdgroup + c * place.simdgroups;
                if (own < n / OXB_SIMD_WIDTH)
                    queries[q * n + n / OXB_SIMD_WIDTH * place.lane + own] =
                        hadamard(turned[q * columns + c], place.lane) * (1.0f / 32);
            }
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    float largest[QUERIES], total[QUERIES];
    float sums[QUERIES * Form::SLICES * Form::WIDTH];
    OXB_UNROLL
    for (uint q = 0; q < QUERIES; q++) {
        largest[q] = -INFINITY;
        total[q] = 0.0f;
    }
    OXB_UNROLL
    for (uint i = 0; i < elements; i++) sums[i] = 0.0f;
    threadgroup float *weights = memory.weights[place.simdgroup];
    for (uint block = begin + place.simdgroup; block < end; block += place.simdgroups) {
        const uint start = block * OXB_BLOCK;
        const uint count = min(longest - start, OXB_BLOCK);
        const uint page = page_of(args.cache, in.pages, sequence.pages, start);
        if (page >= args.cache.n_pages) { // no place: all that would attend to it is NaN
            OXB_UNROLL
            for (uint q = 0; q < QUERIES; q++) total[q] = seen[q] > start ? NAN : total[q];
            continue;
        }
        const uint slot = args.cache.table_size == 0u ? start : start % args.cache.page_size;
        const ulong at = page * ulong(args.cache.page_stride);
        float key_unit = 1.0f, value_unit = 1.0f;
        device const uint *key_words = nullptr, *value_words = nullptr;
        if (Form::HAS_UNITS) {
            const ulong words = at + (ulong(args.cache.page_size) + slot / 8u) * n;
            key_words = (device const uint *)(in.k + words);
            value_words = (device const uint *)(in.v + words);
        }
        if (Form::HAS_UNITS && place.lane < count) {
            const uint last = (place.lane + 1u) * (n / 32u) - 1u; // its upper half, twice
            key_unit = 2.0f * as_type<float>(key_words[last] & 0xffff0000u);
            value_unit = 2.0f * as_type<float>(value_words[last] & 0xffff0000u);
        }
        score_block<Form, QUERIES>(in.k + at + ulong(slot) * n, key_words, n, count, args.scale,
                                   place.lane, queries, weights);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        uint counts[QUERIES];
        float fade[QUERIES];
        OXB_UNROLL
        for (uint q = 0; q < QUERIES; q++) {
            counts[q] = seen[q] > start ? min(seen[q] - start, OXB_BLOCK) : 0u;
            const float own =
                place.lane < counts[q] ? weights[q * OXB_BLOCK + place.lane] * key_unit : -INFINITY;
            const float before = largest[q];
            largest[q] = max(before, simd_max(own));
            const float weight = precise::exp(own - base_of(largest[q]));
            fade[q] = precise::exp(before - base_of(largest[q]));
            total[q] = total[q] * fade[q] + simd_sum(weight);
            weights[q * OXB_BLOCK + place.lane] = weight * value_unit; // a lane's own element
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        // Summed apart from the other blocks, which keeps the rounding small.
        float block_sums[QUERIES * Form::SLICES * Form::WIDTH];
        OXB_UNROLL
        for (uint i = 0; i < elements; i++) block_sums[i] = 0.0f;
        add_values<Form, QUERIES>(in.v + at + ulong(slot) * n, value_words, n, count, counts,
                                  place.lane, weights, block_sums);
        OXB_UNROLL
        for (uint i = 0; i < elements; i++)
            sums[i] = fma(sums[i], fade[i / (Form::SLICES * Form::WIDTH)], block_sums[i]);
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }

    OXB_UNROLL
    for (uint q = 0; q < QUERIES; q++) {
        OXB_UNROLL
        for (uint s = 0; s < Form::SLICES; s++) {
            const uint i = Form::WIDTH * (place.lane + s * OXB_SIMD_WIDTH);
            OXB_UNROLL
            for (uint e = 0; e < Form::WIDTH; e++) {
                if (i < n)
                    memory.sums[place.simdgroup][q * n + i + e] =
                        sums[(q * Form::SLICES + s) * Form::WIDTH + e];
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
        if (token >= args.n_tokens) continue;
        float most = -INFINITY, all = 0.0f;
        for (uint s = 0; s < place.simdgroups; s++) most = max(most, memory.largests[s][q]);
        for (uint s = 0; s < place.simdgroups; s++)
            all =
                fma(memory.totals[s][q], precise::exp(memory.largests[s][q] - base_of(most)), all);
        const ulong row = ulong(token) * args.n_heads + first_head + q % args.heads;
        device float *to =
            in.out + (args.n_splits == 1u ? row * n : (row * args.n_splits + tile.z) * (n + 2u));
        for (uint i = thread_index; i < n; i += n_threads) {
            float sum = 0.0f;
            for (uint s = 0; s < place.simdgroups; s++)
                sum = fma(memory.sums[s][q * n + i],
                          precise::exp(memory.largests[s][q] - base_of(most)), sum);
            // NaN for a token without a place in the cache: a wrong result must show.
            to[i] = seen[q] == 0u ? NAN : args.n_splits == 1u ? sum / all : sum;
        }
        if (args.n_splits != 1u && thread_index == 0) {
            to[n] = most;
            to[n + 1u] = all;
        }
    }
}

#endif
