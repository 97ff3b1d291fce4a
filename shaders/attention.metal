// Attention of the tokens in flight over the key and value caches.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "attention.h"
#include "instantiate.h"

// A threadgroup per tile: along x query heads, along y tokens, along z splits of the positions. T
// is an element of the caches. head_dim is even; Two is packed because a head may start at any
// element.
template <typename T, typename Two, typename Four>
[[kernel]] void
attention(device const float *qkv [[buffer(0)]], device const T *k_cache [[buffer(1)]],
          device const T *v_cache [[buffer(2)]], device const oxb_decode_state *state [[buffer(3)]],
          device float *out [[buffer(4)]], constant oxb_attention_args &args [[buffer(5)]],
          uint3 tile [[threadgroup_position_in_grid]],
          uint simdgroup [[simdgroup_index_in_threadgroup]],
          uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup attention_memory memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const ulong first =
        ulong(args.layer_offset) + ulong(tile.x * args.heads / (args.n_heads / args.n_kv_heads)) *
                                       args.max_seq * args.head_dim;
    device const T *k = k_cache + first;
    device const T *v = v_cache + first;
    const uint position = state->position;
    typedef attention_form<T, Four, float4, 4, false> wide;
    typedef attention_form<T, Four, float4, 4, true> wide_long;
    typedef attention_form<T, Two, float2, 2, false> narrow;
    typedef attention_form<T, Two, float2, 2, true> narrow_long;
    if (attention_long != 0u) {
        if (attention_width == 4u)
            attend<wide_long, 1>(qkv, k, v, position, out, args, tile, place, memory);
        else
            attend<narrow_long, 1>(qkv, k, v, position, out, args, tile, place, memory);
    } else if (attention_width == 4u) {
        switch (attention_queries) {
        case 4: attend<wide, 4>(qkv, k, v, position, out, args, tile, place, memory); break;
        case 2: attend<wide, 2>(qkv, k, v, position, out, args, tile, place, memory); break;
        default: attend<wide, 1>(qkv, k, v, position, out, args, tile, place, memory); break;
        }
    } else {
        switch (attention_queries) {
        case 4: attend<narrow, 4>(qkv, k, v, position, out, args, tile, place, memory); break;
        case 2: attend<narrow, 2>(qkv, k, v, position, out, args, tile, place, memory); break;
        default: attend<narrow, 1>(qkv, k, v, position, out, args, tile, place, memory); break;
        }
    }
}

OXB_KERNEL("attention_f16", attention<half, packed_half2, half4>)
OXB_KERNEL("attention_f32", attention<float, packed_float2, float4>)

// A threadgroup per head of a token. The sums of each split are relative to its largest score.
kernel void attention_combine(device const float *splits [[buffer(0)]],
                              device float *out [[buffer(1)]],
                              constant oxb_combine_args &args [[buffer(2)]],
                              uint row [[threadgroup_position_in_grid]],
                              uint thread_index [[thread_index_in_threadgroup]],
                              uint n_threads [[threads_per_threadgroup]]) {
    const uint n = args.head_dim;
    const uint stride = n + 2u;
    device const float *from = splits + ulong(row) * args.n_splits * stride;
    float largest = -INFINITY;
    for (uint s = 0; s < args.n_splits; s++) largest = max(largest, from[s * stride + n]);
    for (uint i = thread_index; i < n; i += n_threads) {
        float sum = 0.0f, total = 0.0f;
        for (uint s = 0; s < args.n_splits; s++) {
            device const float *split = from + s * stride;
            const float fade = precise::exp(split[n] - base_of(largest));
            sum = fma(split[i], fade, sum);
            total = fma(split[n + 1u], fade, total);
        }
        out[ulong(row) * n + i] = sum / total;
    }
}
