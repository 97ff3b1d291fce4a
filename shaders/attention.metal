// The key and value caches, and attention of one token over them.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "instantiate.h"

// T is an element of the caches, Pair two of them: head_dim is even, and packed because nothing else is
// known of where a head starts.

// A threadgroup per key-value head.
template <typename T>
[[kernel]] void kv_store(device const float* qkv [[buffer(0)]],
                         device T* k_cache [[buffer(1)]],
                         device T* v_cache [[buffer(2)]],
                         device const oxb_decode_state* state [[buffer(3)]],
                         constant oxb_kv_store_args& args [[buffer(4)]],
                         uint head [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]],
                         uint n_threads [[threads_per_threadgroup]])
{
    const uint position = state->position;
    if (position >= args.max_seq)
        return;
    const ulong n = args.head_dim;
    device const float* k = qkv + (args.n_heads + head) * n;
    device const float* v = k + args.n_kv_heads * n;
    const ulong at = args.layer_offset + (ulong(head) * args.max_seq + position) * n;
    for (uint i = thread_index; i < args.head_dim; i += n_threads) {
        k_cache[at + i] = T(k[i]);
        v_cache[at + i] = T(v[i]);
    }
}

OXB_KERNEL("kv_store_f16", kv_store<half>)
OXB_KERNEL("kv_store_f32", kv_store<float>)

// The SIMD-groups of a threadgroup share the positions of one query head, each in blocks of 32, and
// put their parts together at the end. Nothing here grows with the length of the sequence.
#define OXB_BLOCK OXB_SIMD_WIDTH
#define OXB_ATTENTION_SIMDGROUPS 8u

template <typename T, typename Pair>
inline float score(device const float* q, device const T* k, uint n)
{
    float even = 0.0f, odd = 0.0f;
    for (uint i = 0; i < n; i += 2) {
        const Pair pair = *(device const Pair*)(k + i);
        even = fma(q[i], float(pair[0]), even);
        odd = fma(q[i + 1], float(pair[1]), odd);
    }
    return even + odd;
}

// Scores that are all -inf so far weigh 0, not NaN: a later one may be finite.
inline float base_of(float largest) { return largest == -INFINITY ? 0.0f : largest; }

// A threadgroup per query head: x counts key-value heads, y the query heads of each.
template <typename T, typename Pair>
[[kernel]] void attention_decode(device const float* qkv [[buffer(0)]],
                                 device const T* k_cache [[buffer(1)]],
                                 device const T* v_cache [[buffer(2)]],
                                 device const oxb_decode_state* state [[buffer(3)]],
                                 device float* out [[buffer(4)]],
                                 constant oxb_attention_args& args [[buffer(5)]],
                                 uint2 group [[threadgroup_position_in_grid]],
                                 uint2 groups [[threadgroups_per_grid]],
                                 uint thread_index [[thread_index_in_threadgroup]],
                                 uint simdgroup [[simdgroup_index_in_threadgroup]],
                                 uint simdgroups [[simdgroups_per_threadgroup]],
                                 uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float sums[OXB_ATTENTION_SIMDGROUPS][OXB_MAX_HEAD_DIM]; // of weight * value
    threadgroup float weights[OXB_ATTENTION_SIMDGROUPS][OXB_BLOCK];
    threadgroup float largests[OXB_ATTENTION_SIMDGROUPS];
    threadgroup float totals[OXB_ATTENTION_SIMDGROUPS];
    const uint n = args.head_dim;
    const uint n_threads = simdgroups * OXB_SIMD_WIDTH;
    const ulong head = ulong(group.x) * groups.y + group.y;
    device float* to = out + head * n;
    if (state->position >= args.max_seq) {
        for (uint i = thread_index; i < n; i += n_threads)
            to[i] = NAN; // a wrong result must show
        return;
    }
    const uint positions = state->position + 1u;
    device const float* q = qkv + head * n;
    const ulong base = args.layer_offset + ulong(group.x) * args.max_seq * n;

    float largest = -INFINITY, total = 0.0f;
    for (uint i = 2u * lane; i < n; i += 2u * OXB_SIMD_WIDTH) {
        sums[simdgroup][i] = 0.0f;
        sums[simdgroup][i + 1u] = 0.0f;
    }
    for (uint start = simdgroup * OXB_BLOCK; start < positions; start += simdgroups * OXB_BLOCK) {
        const uint count = min(positions - start, OXB_BLOCK);
        // A lane scores a position,
        float own = -INFINITY;
        if (lane < count)
            own = score<T, Pair>(q, k_cache + base + ulong(start + lane) * n, n) * args.scale;
        const float before = largest;
        largest = max(before, simd_max(own));
        const float weight = precise::exp(own - base_of(largest));
        const float fade = precise::exp(before - base_of(largest));
        total = total * fade + simd_sum(weight);
        weights[simdgroup][lane] = weight;
        simdgroup_barrier(mem_flags::mem_threadgroup);
        // then it sums pairs of elements over the block's positions.
        for (uint i = 2u * lane; i < n; i += 2u * OXB_SIMD_WIDTH) {
            device const T* v = v_cache + base + ulong(start) * n + i;
            float even = 0.0f, odd = 0.0f;
            for (uint p = 0; p < count; p++) {
                const Pair pair = *(device const Pair*)(v + ulong(p) * n);
                even = fma(weights[simdgroup][p], float(pair[0]), even);
                odd = fma(weights[simdgroup][p], float(pair[1]), odd);
            }
            sums[simdgroup][i] = sums[simdgroup][i] * fade + even;
            sums[simdgroup][i + 1u] = sums[simdgroup][i + 1u] * fade + odd;
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (lane == 0) {
        largests[simdgroup] = largest;
        totals[simdgroup] = total;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    largest = -INFINITY;
    for (uint s = 0; s < simdgroups; s++)
        largest = max(largest, largests[s]);
    for (uint i = thread_index; i < n; i += n_threads) {
        float sum = 0.0f;
        total = 0.0f;
        for (uint s = 0; s < simdgroups; s++) {
            const float fade = precise::exp(largests[s] - base_of(largest));
            sum = fma(sums[s][i], fade, sum);
            total = fma(totals[s], fade, total);
        }
        to[i] = sum / total;
    }
}

OXB_KERNEL("attention_decode_f16", attention_decode<half, packed_half2>)
OXB_KERNEL("attention_decode_f32", attention_decode<float, packed_float2>)
