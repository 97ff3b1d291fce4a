// Attention of the tokens in flight over the key and value caches.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "attention.h"
#include "instantiate.h"

// The kernel for the tile: the constants choose an instance.
template <typename Short, typename Middle, typename Long>
inline void attend_tile(attention_operands<typename Short::T> in, constant oxb_attention_args &args,
                        uint3 tile, thread_place place, threadgroup attention_memory &memory) {
    const ulong first = head_of_tile(args, tile.x);
    in.k += first;
    in.v += first;
    if (attention_long == 1u) {
        attend<Long, 1>(in, args, tile, place, memory);
    } else if (attention_long == 2u) {
        switch (attention_queries) {
        case 2: attend<Middle, 2>(in, args, tile, place, memory); break;
        default: attend<Middle, 1>(in, args, tile, place, memory); break;
        }
    } else {
        switch (attention_queries) {
        case 4: attend<Short, 4>(in, args, tile, place, memory); break;
        case 2: attend<Short, 2>(in, args, tile, place, memory); break;
        default: attend<Short, 1>(in, args, tile, place, memory); break;
        }
    }
}

// A threadgroup per tile: along x query heads, along y tokens, along z splits of the positions. T
// is an element of the caches. head_dim is even; Two is packed because a head may start at any
// element.
template <typename T, typename Two, typename Four>
[[kernel]] void
attention(device const float *qkv [[buffer(0)]], device const T *k_cache [[buffer(1)]],
          device const T *v_cache [[buffer(2)]], device const oxb_decode_state *state [[buffer(3)]],
          device const uint *pages [[buffer(4)]], device float *out [[buffer(5)]],
          constant oxb_attention_args &args [[buffer(6)]],
          uint3 tile [[threadgroup_position_in_grid]],
          uint simdgroup [[simdgroup_index_in_threadgroup]],
          uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup attention_memory memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const attention_operands<T> in = {qkv, k_cache, v_cache, state, pages, out};
    typedef attention_form<T, Four, float4, 4, 128> wide;
    typedef attention_form<T, Four, float4, 4, 256> wide_middle;
    typedef attention_form<T, Four, float4, 4, 512> wide_long;
    typedef attention_form<T, Two, float2, 2, 128> narrow;
    typedef attention_form<T, Two, float2, 2, 256> narrow_middle;
    typedef attention_form<T, Two, float2, 2, 512> narrow_long;
    if (attention_width == 4u)
        attend_tile<wide, wide_middle, wide_long>(in, args, tile, place, memory);
    else
        attend_tile<narrow, narrow_middle, narrow_long>(in, args, tile, place, memory);
}

OXB_KERNEL("attention_f16", attention<half, packed_half2, half4>)
OXB_KERNEL("attention_f32", attention<float, packed_float2, float4>)

// The same over caches of 8 bits, with a head_dim that is a multiple of 32. The bound leaves a
// thread 144 registers on an NVIDIA GPU: with 512 threads, and so 128, some compilers spill.
[[max_total_threads_per_threadgroup(448)]]
kernel void attention_q8(
    device const float *qkv [[buffer(0)]], device const char *k_cache [[buffer(1)]],
    device const char *v_cache [[buffer(2)]], device const oxb_decode_state *state [[buffer(3)]],
    device const uint *pages [[buffer(4)]], device float *out [[buffer(5)]],
    constant oxb_attention_args &args [[buffer(6)]], uint3 tile [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup attention_memory memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const attention_operands<char> in = {qkv, k_cache, v_cache, state, pages, out};
    typedef attention_form<char, char4, float4, 4, 128, true> wide;
    typedef attention_form<char, char4, float4, 4, 128, true, 128> wide_128;
    typedef attention_form<char, char4, float4, 4, 256, true> wide_middle;
    typedef attention_form<char, char4, float4, 4, 512, true> wide_long;
    if (attention_width == 16u)
        attend_tile<wide_128, wide_middle, wide_long>(in, args, tile, place, memory);
    else
        attend_tile<wide, wide_middle, wide_long>(in, args, tile, place, memory);
}

// A threadgroup per head of a token. The sums of each split are relative to its largest score; the
// empty ones come last.
kernel void attention_combine(device const float *splits [[buffer(0)]],
                              device float *out [[buffer(1)]],
                              constant oxb_combine_args &args [[buffer(2)]],
                              uint row [[threadgroup_position_in_grid]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]],
                              uint simdgroups [[simdgroups_per_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]]) {
    const uint n = args.head_dim;
    const uint stride = n + 2u;
    device const float *from = splits + ulong(row) * args.n_splits * stride;
    float largest = -INFINITY;
    uint used = 0;
    for (uint s = lane; s < args.n_splits; s += OXB_SIMD_WIDTH) {
        largest = max(largest, from[s * stride + n]);
        used += from[s * stride + n + 1u] == OXB_EMPTY_SPLIT ? 0u : 1u;
    }
    largest = base_of(simd_max(largest));
    used = simd_sum(used);
    for (uint start = simdgroup * OXB_SIMD_WIDTH; start < n; start += simdgroups * OXB_SIMD_WIDTH) {
        const uint own_i = start + lane, i = min(own_i, n - 1u);
        float sum = -0.0f, total = -0.0f; // to which the first split adds without a change
        for (uint first = 0; first < used; first += OXB_SIMD_WIDTH) {
            // Each lane knows one split, and has its own element of all of them in flight at once.
            device const float *own = from + min(first + lane, used - 1u) * stride;
            const float own_fade = precise::exp(own[n] - largest), own_total = own[n + 1u];
            float values[OXB_SIMD_WIDTH];
            OXB_UNROLL
            for (uint j = 0; j < OXB_SIMD_WIDTH; j++)
                values[j] = from[min(first + j, used - 1u) * stride + i];
            OXB_UNROLL
            for (uint j = 0; j < OXB_SIMD_WIDTH; j++) {
                const float fade = simd_shuffle(own_fade, ushort(j));
                const float weight = simd_shuffle(own_total, ushort(j));
                if (first + j < used) {
                    sum = fma(values[j], fade, sum);
                    total = fma(weight, fade, total);
                }
            }
        }
        if (own_i < n) out[ulong(row) * n + own_i] = sum / total;
    }
}
