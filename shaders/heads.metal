// The heads of the tokens in flight: norm and rotation of queries and keys, and the store into the
// caches.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "rms.h"
#include "instantiate.h"

// RMSNorm of a head, then RoPE on halves: element i and i + n / 2 turn together. In place is fine:
// a lane adds the squares of the pairs that it turns, so that nobody reads what it writes.
template <typename T>
inline void norm_and_turn(device const float *from, device const float *weight,
                          device const float *cosine, device T *to, uint n, float eps, uint lane) {
    const uint half_n = n / 2u;
    device const float *high = from + half_n;
    device const float *sine = cosine + half_n;
    float total = simd_sum(sum_of_squares(from, half_n, 1.0f, lane, OXB_SIMD_WIDTH) +
                           sum_of_squares(high, half_n, 1.0f, lane, OXB_SIMD_WIDTH));
    const float scale = scale_for(total, eps);
    if (scale != 1.0f)
        total = simd_sum(sum_of_squares(from, half_n, scale, lane, OXB_SIMD_WIDTH) +
                         sum_of_squares(high, half_n, scale, lane, OXB_SIMD_WIDTH));
    const float inverse = inverse_rms(total, n, scale, eps);
    for (uint i = lane; i < half_n; i += OXB_SIMD_WIDTH) {
        const float a = from[i] * scale * inverse * weight[i];
        const float b = high[i] * scale * inverse * weight[i + half_n];
        to[i] = T(a * cosine[i] - b * sine[i]);
        to[i + half_n] = T(b * cosine[i] + a * sine[i]);
    }
}

// A SIMD-group per head of q and k; y counts tokens.
kernel void qk_norm_rope(device float *qkv [[buffer(0)]], device const float *q_norm [[buffer(1)]],
                         device const float *k_norm [[buffer(2)]],
                         device const float *rope [[buffer(3)]],
                         device const oxb_decode_state *state [[buffer(4)]],
                         constant oxb_qk_norm_rope_args &args [[buffer(5)]],
                         uint2 group [[threadgroup_position_in_grid]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]]) {
    const uint head = group.x * simdgroups + simdgroup;
    const ulong position = ulong(state->position) + group.y;
    if (head >= args.n_heads + args.n_kv_heads || position >= args.max_seq) return;
    device float *at =
        qkv + (ulong(group.y) * (args.n_heads + 2u * args.n_kv_heads) + head) * args.head_dim;
    norm_and_turn(at, head < args.n_heads ? q_norm : k_norm, rope + position * args.head_dim, at,
                  args.head_dim, args.eps, lane);
}

template <typename T>
inline void store_head(device const float *from, device T *to, uint n, uint first, uint step) {
    for (uint i = first; i < n; i += step) to[i] = T(from[i]);
}

// A threadgroup per key-value head and token. T is an element of the caches.
template <typename T>
[[kernel]] void kv_store(device const float *qkv [[buffer(0)]], device T *k_cache [[buffer(1)]],
                         device T *v_cache [[buffer(2)]],
                         device const oxb_decode_state *state [[buffer(3)]],
                         constant oxb_kv_store_args &args [[buffer(4)]],
                         uint2 group [[threadgroup_position_in_grid]],
                         uint2 thread_index [[thread_position_in_threadgroup]],
                         uint2 n_threads [[threads_per_threadgroup]]) {
    const ulong position = ulong(state->position) + group.y;
    if (position >= args.max_seq) return;
    const ulong n = args.head_dim;
    device const float *k =
        qkv + (ulong(group.y) * (args.n_heads + 2u * args.n_kv_heads) + args.n_heads + group.x) * n;
    const ulong at = args.layer_offset + (ulong(group.x) * args.max_seq + position) * n;
    store_head(k, k_cache + at, args.head_dim, thread_index.x, n_threads.x);
    store_head(k + args.n_kv_heads * n, v_cache + at, args.head_dim, thread_index.x, n_threads.x);
}

OXB_KERNEL("kv_store_f16", kv_store<half>)
OXB_KERNEL("kv_store_f32", kv_store<float>)

// Both at once: a SIMD-group per head of q, k and v; y counts tokens. Queries stay where they are,
// keys and values go to the caches only.
template <typename T>
[[kernel]] void qkv_to_cache(
    device float *qkv [[buffer(0)]], device const float *q_norm [[buffer(1)]],
    device const float *k_norm [[buffer(2)]], device const float *rope [[buffer(3)]],
    device T *k_cache [[buffer(4)]], device T *v_cache [[buffer(5)]],
    device const oxb_decode_state *state [[buffer(6)]],
    constant oxb_qkv_to_cache_args &args [[buffer(7)]],
    uint2 group [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    const uint head = group.x * simdgroups + simdgroup;
    const uint n_heads = args.n_heads + 2u * args.n_kv_heads;
    const ulong position = ulong(state->position) + group.y;
    if (head >= n_heads || position >= args.max_seq) return;
    const ulong n = args.head_dim;
    device float *from = qkv + (ulong(group.y) * n_heads + head) * n;
    device const float *cosine = rope + position * n;
    const uint kv_head = (head - args.n_heads) % args.n_kv_heads; // of a key or value
    const ulong at = args.layer_offset + (ulong(kv_head) * args.max_seq + position) * n;
    if (head < args.n_heads)
        norm_and_turn(from, q_norm, cosine, from, args.head_dim, args.eps, lane);
    else if (head < args.n_heads + args.n_kv_heads)
        norm_and_turn(from, k_norm, cosine, k_cache + at, args.head_dim, args.eps, lane);
    else
        store_head(from, v_cache + at, args.head_dim, lane, OXB_SIMD_WIDTH);
}

OXB_KERNEL("qkv_to_cache_f16", qkv_to_cache<half>)
OXB_KERNEL("qkv_to_cache_f32", qkv_to_cache<float>)
