// The choice of a token: the logits adjusted block by block, then the draw of each vector.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "order.h"
#include "draw.h"

#define OXB_IDLE 0x80000000u // positions from here on are of idle vectors

// The place of the token that vector v chooses, or OXB_IDLE.
inline uint place_of(uint position, uint batch, uint v) {
    const ulong place = ulong(position) + (batch != 0u ? 0u : v) + 1u;
    return place < OXB_IDLE ? uint(place) : OXB_IDLE;
}

inline float penalised(float w, uint count, oxb_sampling s) {
    w *= w > 0.0f ? s.inverse_repetition : s.repetition;
    w = fma(-float(count), s.frequency, w) - s.presence;
    return isnan(w) ? -INFINITY : w;
}

// A threadgroup per block of logits; y counts vectors. A thread has the same logits throughout.
kernel void sample_blocks(
    device const float *logits [[buffer(0)]], device const oxb_sampling *settings [[buffer(1)]],
    device const oxb_decode_state *states [[buffer(2)]], device const uint *tokens [[buffer(3)]],
    device const oxb_bias *biases [[buffer(4)]], device const uint *masks [[buffer(5)]],
    device float *adjusted [[buffer(6)]], constant oxb_sample_args &args [[buffer(7)]],
    uint2 tile [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup atomic_uint counts[OXB_ARGMAX_BLOCK];
    threadgroup uint keys[OXB_MAX_SIMDGROUPS];
    const uint threads = simdgroups * OXB_SIMD_WIDTH;
    const uint sequence = args.batch != 0u ? tile.y : 0u;
    const oxb_sampling s = settings[sequence];
    const oxb_decode_state state = states[sequence];
    const uint place = place_of(state.position, args.batch, tile.y);
    if (place == OXB_IDLE) return;
    const uint start = tile.x * OXB_ARGMAX_BLOCK, n = min(args.n - start, OXB_ARGMAX_BLOCK);
    device const float *x = logits + ulong(tile.y) * args.n + start;
    device float *w = adjusted + ulong(tile.y) * args.n + start;
    const bool adjusts = choice_adjusts(s, args.n_masks, args.n_biases) != 0;

    device const uint *mask = masks + ulong(s.mask) * ((args.n + 31u) / 32u) + start / 32u;
    const bool masked = s.mask < args.n_masks;
    uint largest = OXB_NO_KEY;
    for (uint q = thread_index; q < (n + 3u) / 4u; q += threads) {
        float4 four = quad_of(x, n, q);
        const uint allowed = masked ? mask[q / 8u] >> q % 8u * 4u : 15u;
        OXB_UNROLL
        for (uint j = 0; j < 4; j++) {
            if (isnan(four[j]) || (allowed >> j & 1u) == 0u) four[j] = -INFINITY;
            if (adjusts && 4u * q + j < n) w[4u * q + j] = four[j];
            largest = min(largest, key_of(four[j]));
        }
    }

    const ulong end = min(ulong(s.first_bias) + s.n_biases, ulong(args.n_biases));
    if (s.window != 0u || s.first_bias < end) {
        // In their order, for a token may have several.
        for (ulong i = s.first_bias; i < end; i++) {
            const uint at = biases[i].token - start;
            if (at >= n || at / 4u % threads != thread_index) continue;
            const float biased = w[at] + biases[i].value;
            w[at] = isnan(biased) ? -INFINITY : biased;
        }
        if (s.window != 0u) {
            for (uint i = thread_index; i < n; i += threads)
                atomic_store_explicit(&counts[i], 0u, memory_order_relaxed);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const uint first = place - min(place, s.window);
            for (uint p = first + thread_index; p < place; p += threads) {
                const ulong from = ulong(state.tokens) + p;
                const uint at = (from < args.max_tokens ? tokens[from] : OXB_NO_INDEX) - start;
                if (at < n) atomic_fetch_add_explicit(&counts[at], 1u, memory_order_relaxed);
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        largest = OXB_NO_KEY;
        for (uint i = 4u * thread_index; i < n; i += i % 4u == 3u ? 4u * threads - 3u : 1u) {
            float logit = w[i];
            if (s.window != 0u) {
                const uint count = atomic_load_explicit(&counts[i], memory_order_relaxed);
                if (count != 0u) w[i] = logit = penalised(logit, count, s);
            }
            largest = min(largest, key_of(logit));
        }
    }

    largest = simd_min(largest);
    if (lane == 0) keys[simdgroup] = largest;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index == 0) {
        for (uint i = 0; i < simdgroups; i++) largest = min(largest, keys[i]);
        device float *maxima = adjusted + ulong(args.n_vectors) * args.n;
        maxima[ulong(tile.y) * args.n_blocks + tile.x] = logit_of(min(largest, OXB_LAST_KEY));
    }
}

// A threadgroup per vector.
[[max_total_threads_per_threadgroup(896)]]
kernel void sample_choose(
    device const float *logits [[buffer(0)]], device const float *adjusted [[buffer(1)]],
    device const oxb_sampling *settings [[buffer(2)]],
    device oxb_decode_state *states [[buffer(3)]], device uint *tokens [[buffer(4)]],
    device oxb_choice *choices [[buffer(5)]], device oxb_scored *best [[buffer(6)]],
    constant oxb_sample_args &args [[buffer(7)]], uint vector [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup draw_memory memory;
    const thread_place at = {lane, simdgroup, simdgroups};
    const uint sequence = args.batch != 0u ? vector : 0u;
    device const oxb_sampling &s = settings[sequence];
    const uint position = states[sequence].position, place = place_of(position, args.batch, vector);
    if (place == OXB_IDLE) return;

    const bool adjusts = choice_adjusts(s, args.n_masks, args.n_biases) != 0;
    device const float *raw = logits + ulong(vector) * args.n;
    logit_row row;
    row.logits = adjusts ? adjusted + ulong(vector) * args.n : raw;
    row.maxima = adjusted + ulong(args.n_vectors) * args.n + ulong(vector) * args.n_blocks;
    row.bounded = true;
    row.n = args.n;
    // A scale that is no positive finite number is none, as on the cpu.
    const bool warm = s.scale > 0.0f && s.scale < INFINITY;
    row.scale = warm ? s.scale : 0.0f;

    // The largest logit, and the first block that has it.
    ulong top = OXB_NO_ORDER;
    for (uint i = thread_index; i < args.n_blocks; i += simdgroups * OXB_SIMD_WIDTH)
        top = min(top, order_of(key_of(row.maxima[i]), i));
    top = threadgroup_first(top, memory.partial[0], at);
    const uint n_quads = (args.n + 3u) / 4u;
    const uint begin = token_in(top) * (OXB_ARGMAX_BLOCK / 4u);
    const uint end = min(begin + OXB_ARGMAX_BLOCK / 4u, n_quads);
    row.largest = logit_of(key_in(top));
    const bool none = key_in(top) == OXB_LAST_KEY;
    const bool greedy = !warm || row.largest == INFINITY;

    float log_sum = 0.0f, raw_largest = row.largest;
    if (args.log_probabilities != 0u || args.n_best != 0u) {
        logit_row from = row;
        from.logits = raw;
        if (adjusts) {
            const ulong first = first_of(from, 0, n_quads, memory.partial[4], at);
            from.largest = raw_largest = logit_of(min(key_in(first), OXB_LAST_KEY));
        }
        log_sum = log_sum_of(from, memory.sums, at);
    }

    const ulong slot = ulong(vector) * args.n_slots + place % args.n_slots;
    ulong limit = order_of(OXB_LAST_KEY, 0) - 1ul; // of the draw
    uint listed = 0;                               // orders in the list, if all up to it are there
    // One loop, so that the code of a selection is there once: the best, top-k, top-p.
    OXB_ROLLED
    for (uint task = args.n_best != 0u ? 0u : 1u; task < 3u; task++) {
        const bool best_ones = task == 0u, weighed = task == 2u;
        const uint target = best_ones ? args.n_best : weighed ? s.top_p : s.top_k;
        if (!best_ones && (none || greedy || target == 0u)) continue;
        logit_row from = row;
        if (best_ones) {
            from.logits = raw;
            from.bounded = !adjusts;
            from.largest = raw_largest;
        }
        ulong last = best_ones ? order_of(OXB_LAST_KEY + 1u, 0) - 1ul : limit;
        if (task == 1u || best_ones) listed = quick_list(from, last, target, memory, at);
        if (listed != 0u)
            last = pick(memory.select, listed, weighed, 0,
                        weighed ? share_of(memory.select.total, target) : min(target, listed), at);
        else
            last = select_order(from, last, weighed, target, listed, memory.select, at);
        if (best_ones) {
            // Fewer than asked for: the search did not reach the number, and listed none.
            if (listed == 0u) listed = list_orders(from, 0, last, memory.select, at);
            rank_best(from, listed, log_sum, best + slot * args.n_best, target, memory.select, at);
            listed = 0;
            threadgroup_barrier(mem_flags::mem_threadgroup); // the list
        } else {
            limit = last;
        }
    }
    uint token = OXB_NO_INDEX;
    if (!none) {
        if (greedy)
            token = token_in(first_of(row, begin, end, memory.partial[1], at));
        else
            token = run_race(row, s, place, limit, listed, begin, end, memory, at);
    }

    device oxb_choice *choice = choices + slot;
    float log_probability = 0.0f;
    if (args.log_probabilities != 0u)
        log_probability = token == OXB_NO_INDEX ? -INFINITY : raw[token] - raw_largest - log_sum;
    threadgroup_barrier(mem_flags::mem_device); // all have read the position
    if (thread_index == 0) {
        choice->token = token;
        choice->position = place;
        choice->log_probability = log_probability;
        choice->pad = 0;
        if (args.advance != 0u) {
            const ulong to = ulong(states[sequence].tokens) + place;
            if (to < args.max_tokens) tokens[to] = token == OXB_NO_INDEX ? 0u : token;
            states[sequence].position = position + 1u;
        }
    }
}
