// The two ends of a model: the embedding of a token, and the choice of the next one.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "cache.h"
#include "formats.h"
#include "instantiate.h"

// x strides over the weights of the row; y counts tokens.
template <typename Format>
[[kernel]] void embed(device const uchar *weight [[buffer(0)]],
                      device const uint *tokens [[buffer(1)]],
                      device const oxb_decode_state *state [[buffer(2)]],
                      device float *y [[buffer(3)]], constant oxb_embed_args &args [[buffer(4)]],
                      uint2 at [[thread_position_in_grid]], uint2 size [[threads_per_grid]]) {
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    const sequence_place place = place_of(state, args.batch, at.y);
    const ulong index = place.tokens + place.position;
    const uint token = index < args.max_tokens ? tokens[index] : args.n_rows;
    device float *to = y + ulong(at.y) * args.k;
    for (uint i = at.x; i < args.k; i += size.x)
        to[i] = token < args.n_rows ? Format::weight(w, token, i) : NAN; // a wrong result must show
}

OXB_KERNEL("embed_q1_g128", embed<q1_g128>)
OXB_KERNEL("embed_q2_g128", embed<q2_g128>)
OXB_KERNEL("embed_q2_g64", embed<q2_g64>)
OXB_KERNEL("embed_t1_g128", embed<t1_g128>)
OXB_KERNEL("embed_f32", embed<f32>)
OXB_KERNEL("embed_f16", embed<f16>)
OXB_KERNEL("embed_bf16", embed<bf16>)
OXB_KERNEL("embed_q8_0", embed<q8_0>)

// The larger of two logits, the lower index of equal ones. NaN never wins: it compares false.
inline oxb_best better(oxb_best a, oxb_best b) {
    const bool second = b.value > a.value || (b.value == a.value && b.index < a.index);
    oxb_best best;
    best.value = second ? b.value : a.value;
    best.index = second ? b.index : a.index;
    return best;
}

inline oxb_best no_best() {
    oxb_best best;
    best.value = -INFINITY;
    best.index = OXB_NO_INDEX;
    return best;
}

inline oxb_best simd_best(oxb_best best) {
    oxb_best all;
    all.value = simd_max(best.value);
    all.index = simd_min(best.value == all.value ? best.index : OXB_NO_INDEX);
    return all;
}

// A threadgroup per block of logits; y counts vectors.
kernel void argmax_blocks(device const float *logits [[buffer(0)]],
                          device oxb_best *best [[buffer(1)]],
                          constant oxb_argmax_blocks_args &args [[buffer(2)]],
                          uint2 tile [[threadgroup_position_in_grid]],
                          uint thread_index [[thread_index_in_threadgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]],
                          uint simdgroups [[simdgroups_per_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]]) {
    threadgroup oxb_best memory[OXB_MAX_SIMDGROUPS];
    device const float *row = logits + ulong(tile.y) * args.n;
    const uint first = tile.x * OXB_ARGMAX_BLOCK;
    const uint end = min(first + OXB_ARGMAX_BLOCK, args.n);
    oxb_best own = no_best();
    for (uint i = first + thread_index; i < end; i += simdgroups * OXB_SIMD_WIDTH) {
        oxb_best next;
        next.value = row[i];
        next.index = i;
        own = better(own, next);
    }
    own = simd_best(own);
    if (lane == 0) memory[simdgroup] = own;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index == 0) {
        for (uint s = 0; s < simdgroups; s++) own = better(own, memory[s]);
        best[ulong(tile.y) * args.n_blocks + tile.x] = own;
    }
}

// The index of the best of n, in every lane of a SIMD-group; 0 where all logits are NaN.
inline uint best_index(device const oxb_best *best, uint n, uint lane) {
    oxb_best own = no_best();
    for (uint i = lane; i < n; i += OXB_SIMD_WIDTH) own = better(own, best[i]);
    own = simd_best(own);
    return own.index == OXB_NO_INDEX ? 0u : own.index;
}

// A SIMD-group per vector.
kernel void argmax(device const oxb_best *best [[buffer(0)]], device uint *out [[buffer(1)]],
                   constant oxb_argmax_args &args [[buffer(2)]],
                   uint vector [[threadgroup_position_in_grid]],
                   uint lane [[thread_index_in_simdgroup]]) {
    const uint index = best_index(best + ulong(vector) * args.n_blocks, args.n_blocks, lane);
    if (lane == 0) out[vector] = index;
}

// One SIMD-group.
kernel void advance(device const oxb_best *best [[buffer(0)]], device uint *tokens [[buffer(1)]],
                    device oxb_decode_state *state [[buffer(2)]],
                    constant oxb_advance_args &args [[buffer(3)]],
                    uint lane [[thread_index_in_simdgroup]]) {
    const uint index = best_index(best, args.n_blocks, lane);
    if (lane == 0) {
        const uint position = state->position + args.n_tokens;
        state->position = position;
        if (args.n_blocks != 0u && position < args.max_tokens) tokens[position] = index;
    }
}
