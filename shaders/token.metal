// Where a token enters and leaves: its embedding row, and the choice of the next one.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "instantiate.h"

// Any number of threads: each takes every n-th weight of the row; y counts tokens.
template <typename Format>
[[kernel]] void embed(device const uchar* weight [[buffer(0)]],
                      device const uint* tokens [[buffer(1)]],
                      device const oxb_decode_state* state [[buffer(2)]],
                      device float* y [[buffer(3)]],
                      constant oxb_embed_args& args [[buffer(4)]],
                      uint2 at [[thread_position_in_grid]],
                      uint2 size [[threads_per_grid]])
{
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    const ulong position = ulong(state->position) + at.y;
    const uint token = position < args.max_tokens ? tokens[position] : args.n_rows;
    device float* to = y + ulong(at.y) * args.k;
    for (uint i = at.x; i < args.k; i += size.x)
        to[i] = token < args.n_rows ? Format::weight(w, token, i) : NAN; // a wrong result must show
}

OXB_KERNEL("embed_q1_g128", embed<q1_g128>)
OXB_KERNEL("embed_q2_g128", embed<q2_g128>)
OXB_KERNEL("embed_q2_g64", embed<q2_g64>)
OXB_KERNEL("embed_f32", embed<f32>)
OXB_KERNEL("embed_f16", embed<f16>)
OXB_KERNEL("embed_bf16", embed<bf16>)
OXB_KERNEL("embed_q8_0", embed<q8_0>)

// The largest of some logits and where it first stands; a NaN is larger than nothing.
struct best_logit {
    float value;
    uint index;
};

#define OXB_NO_INDEX 0xffffffffu

inline best_logit simd_best(best_logit best)
{
    const float value = simd_max(best.value);
    const uint index = simd_min(best.value == value ? best.index : OXB_NO_INDEX);
    const best_logit result = {value, index};
    return result;
}

struct best_memory {
    float values[OXB_MAX_SIMDGROUPS];
    uint indices[OXB_MAX_SIMDGROUPS];
};

// Where the largest of n logits first stands, 0 where all are NaN: for each thread of the threadgroup.
inline uint threadgroup_argmax(device const float* logits, uint n, uint thread_index, uint n_threads,
                               threadgroup best_memory& memory, thread_place place)
{
    best_logit best = {-INFINITY, OXB_NO_INDEX};
    for (uint i = thread_index; i < n; i += n_threads) {
        const float value = logits[i];
        // Each thread meets its indices in rising order; the first -inf must take the place of no
        // index at all.
        if (value > best.value || (value == best.value && i < best.index)) {
            best.value = value;
            best.index = i;
        }
    }
    best = simd_best(best);
    if (place.lane == 0) {
        memory.values[place.simdgroup] = best.value;
        memory.indices[place.simdgroup] = best.index;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    best.value = place.lane < place.simdgroups ? memory.values[place.lane] : -INFINITY;
    best.index = place.lane < place.simdgroups ? memory.indices[place.lane] : OXB_NO_INDEX;
    best = simd_best(best);
    return best.index == OXB_NO_INDEX ? 0u : best.index;
}

// A threadgroup per vector.
kernel void argmax(device const float* logits [[buffer(0)]],
                   device uint* out [[buffer(1)]],
                   constant oxb_argmax_args& args [[buffer(2)]],
                   uint vector [[threadgroup_position_in_grid]],
                   uint thread_index [[thread_index_in_threadgroup]],
                   uint n_threads [[threads_per_threadgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint simdgroups [[simdgroups_per_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]])
{
    threadgroup best_memory memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const uint best =
        threadgroup_argmax(logits + ulong(vector) * args.n, args.n, thread_index, n_threads, memory, place);
    if (thread_index == 0)
        out[vector] = best;
}

// One threadgroup.
kernel void advance(device const float* logits [[buffer(0)]],
                    device uint* tokens [[buffer(1)]],
                    device oxb_decode_state* state [[buffer(2)]],
                    constant oxb_advance_args& args [[buffer(3)]],
                    uint thread_index [[thread_index_in_threadgroup]],
                    uint n_threads [[threads_per_threadgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]],
                    uint simdgroups [[simdgroups_per_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup best_memory memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    uint best = 0;
    if (args.greedy != 0u)
        best = threadgroup_argmax(logits, args.n, thread_index, n_threads, memory, place);
    if (thread_index == 0) {
        const uint position = state->position + args.n_tokens;
        state->position = position;
        if (args.greedy != 0u && position < args.max_tokens)
            tokens[position] = best;
    }
}
