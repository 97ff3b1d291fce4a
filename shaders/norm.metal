// RMSNorm, residual addition, and the norm and rotation of query and key heads.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"

// Squares of float leave its range long before the numbers do. They are added as they are first, and
// once more after scaling by a power of two where the sum came out too large, or too small to be seen
// beside eps.
#define OXB_SHRINK 8.271806125530277e-25f  // 2^-80
#define OXB_GROW 1.2089258196146292e24f    // 2^80
#define OXB_SMALL_SUM 8.077935669463161e-28f // 2^-90
#define OXB_SMALL_EPS 8.673617379884035e-19f // 2^-60

inline float sum_of_squares(device const float* x, uint n, float scale, uint first, uint step)
{
    float total = 0.0f;
    for (uint i = first; i < n; i += step) {
        const float value = x[i] * scale;
        total = fma(value, value, total);
    }
    return total;
}

inline float scale_for(float total, float eps)
{
    if (isinf(total))
        return OXB_SHRINK;
    return total < OXB_SMALL_SUM && eps < OXB_SMALL_EPS ? OXB_GROW : 1.0f;
}

// 1 / sqrt(mean(x^2) + eps), over `scale`.
inline float inverse_rms(float total, uint n, float scale, float eps)
{
    return 1.0f / precise::sqrt(total / float(n) + eps * scale * scale);
}

// A threadgroup per vector. In place is fine: a thread reads and writes the same elements.
kernel void rmsnorm(device const float* x [[buffer(0)]],
                    device const float* weight [[buffer(1)]],
                    device float* y [[buffer(2)]],
                    constant oxb_rmsnorm_args& args [[buffer(3)]],
                    uint vector [[threadgroup_position_in_grid]],
                    uint thread_index [[thread_index_in_threadgroup]],
                    uint n_threads [[threads_per_threadgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]],
                    uint simdgroups [[simdgroups_per_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float partial[2][OXB_MAX_SIMDGROUPS];
    const thread_place place = {lane, simdgroup, simdgroups};
    device const float* from = x + ulong(vector) * args.n;
    device float* to = y + ulong(vector) * args.n;
    float total = threadgroup_sum(sum_of_squares(from, args.n, 1.0f, thread_index, n_threads), partial[0], place);
    const float scale = scale_for(total, args.eps);
    if (scale != 1.0f)
        total = threadgroup_sum(sum_of_squares(from, args.n, scale, thread_index, n_threads), partial[1], place);
    const float inverse = inverse_rms(total, args.n, scale, args.eps);
    for (uint i = thread_index; i < args.n; i += n_threads)
        to[i] = from[i] * scale * inverse * weight[i];
}

// Any grid: each thread takes every n-th element.
kernel void residual_add(device const float* x [[buffer(0)]],
                         device float* y [[buffer(1)]],
                         constant oxb_add_args& args [[buffer(2)]],
                         uint group [[threadgroup_position_in_grid]],
                         uint groups [[threadgroups_per_grid]],
                         uint thread_index [[thread_index_in_threadgroup]],
                         uint n_threads [[threads_per_threadgroup]])
{
    for (ulong i = ulong(group) * n_threads + thread_index; i < args.n; i += ulong(groups) * n_threads)
        y[i] += x[i];
}

// A SIMD-group per head; y counts tokens. In place: a lane reads and writes the same elements.
kernel void qk_norm_rope(device float* qkv [[buffer(0)]],
                         device const float* q_norm [[buffer(1)]],
                         device const float* k_norm [[buffer(2)]],
                         device const float* rope [[buffer(3)]],
                         device const oxb_decode_state* state [[buffer(4)]],
                         constant oxb_qk_norm_rope_args& args [[buffer(5)]],
                         uint2 group [[threadgroup_position_in_grid]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]])
{
    const uint head = group.x * simdgroups + simdgroup;
    const ulong position = ulong(state->position) + group.y;
    if (head >= args.n_heads + args.n_kv_heads || position >= args.max_seq)
        return;
    const uint n = args.head_dim / 2;
    device float* low =
        qkv + (ulong(group.y) * (args.n_heads + 2u * args.n_kv_heads) + head) * args.head_dim;
    device float* high = low + n;
    device const float* weight = head < args.n_heads ? q_norm : k_norm;
    device const float* cosine = rope + position * args.head_dim;
    device const float* sine = cosine + n;
    // A lane adds the squares of the pairs that it rotates, so that nobody reads what it writes.
    float total = simd_sum(sum_of_squares(low, n, 1.0f, lane, OXB_SIMD_WIDTH) +
                           sum_of_squares(high, n, 1.0f, lane, OXB_SIMD_WIDTH));
    const float scale = scale_for(total, args.eps);
    if (scale != 1.0f)
        total = simd_sum(sum_of_squares(low, n, scale, lane, OXB_SIMD_WIDTH) +
                         sum_of_squares(high, n, scale, lane, OXB_SIMD_WIDTH));
    const float inverse = inverse_rms(total, args.head_dim, scale, args.eps);
    for (uint i = lane; i < n; i += OXB_SIMD_WIDTH) {
        const float a = low[i] * scale * inverse * weight[i];
        const float b = high[i] * scale * inverse * weight[i + n];
        low[i] = a * cosine[i] - b * sine[i];
        high[i] = b * cosine[i] + a * sine[i];
    }
}
