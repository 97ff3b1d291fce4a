// Where a token enters and leaves: its embedding row, and the choice of the next one.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "instantiate.h"

// Any grid: each thread takes every n-th weight of the row.
template <typename Format>
[[kernel]] void embed(device const uchar* weight [[buffer(0)]],
                      device const uint* tokens [[buffer(1)]],
                      device const oxb_decode_state* state [[buffer(2)]],
                      device float* y [[buffer(3)]],
                      constant oxb_embed_args& args [[buffer(4)]],
                      uint thread_index [[thread_position_in_grid]],
                      uint n_threads [[threads_per_grid]])
{
    const weight_bytes w = {weight, args.codes_offset, args.k};
    const uint position = state->position;
    const uint token = position < args.max_tokens ? tokens[position] : args.n_rows;
    for (uint i = thread_index; i < args.k; i += n_threads)
        y[i] = token < args.n_rows ? Format::weight(w, token, i) : NAN; // a wrong result must show
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
    threadgroup float values[OXB_MAX_SIMDGROUPS];
    threadgroup uint indices[OXB_MAX_SIMDGROUPS];
    best_logit best = {-INFINITY, OXB_NO_INDEX};
    if (args.greedy != 0u) {
        for (uint i = thread_index; i < args.n; i += n_threads) {
            const float value = logits[i];
            // Each thread meets its indices in rising order; the first -inf must take the place of
            // no index at all.
            if (value > best.value || (value == best.value && i < best.index)) {
                best.value = value;
                best.index = i;
            }
        }
        best = simd_best(best);
        if (lane == 0) {
            values[simdgroup] = best.value;
            indices[simdgroup] = best.index;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        best.value = lane < simdgroups ? values[lane] : -INFINITY;
        best.index = lane < simdgroups ? indices[lane] : OXB_NO_INDEX;
        best = simd_best(best);
    }
    if (thread_index == 0) {
        const uint position = state->position + 1u;
        state->position = position;
        if (args.greedy != 0u && position < args.max_tokens)
            tokens[position] = best.index == OXB_NO_INDEX ? 0u : best.index; // all NaN
    }
}
