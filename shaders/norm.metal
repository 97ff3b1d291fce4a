// RMSNorm, residual addition, biases and copies.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "rms.h"

// A threadgroup per vector. x and y may be the same: a thread reads the elements that it writes.
kernel void rmsnorm(device const float *x [[buffer(0)]], device const float *weight [[buffer(1)]],
                    device float *y [[buffer(2)]], constant oxb_rmsnorm_args &args [[buffer(3)]],
                    uint vector [[threadgroup_position_in_grid]],
                    uint thread_index [[thread_index_in_threadgroup]],
                    uint n_threads [[threads_per_threadgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]],
                    uint simdgroups [[simdgroups_per_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float partial[2][OXB_MAX_SIMDGROUPS];
    const thread_place place = {lane, simdgroup, simdgroups};
    device const float *from = x + ulong(vector) * args.n;
    device float *to = y + ulong(vector) * args.n;
    float total = threadgroup_sum(sum_of_squares(from, args.n, 1.0f, thread_index, n_threads),
                                  partial[0], place);
    const float scale = scale_for(total, args.eps);
    if (scale != 1.0f)
        total = threadgroup_sum(sum_of_squares(from, args.n, scale, thread_index, n_threads),
                                partial[1], place);
    const float inverse = inverse_rms(total, args.n, scale, args.eps);
    for (uint i = thread_index; i < args.n; i += n_threads)
        to[i] = from[i] * scale * inverse * weight[i];
}

// Any grid: the threads stride over the elements.
kernel void residual_add(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                         constant oxb_add_args &args [[buffer(2)]],
                         uint tile [[threadgroup_position_in_grid]],
                         uint tiles [[threadgroups_per_grid]],
                         uint thread_index [[thread_index_in_threadgroup]],
                         uint n_threads [[threads_per_threadgroup]]) {
    for (ulong i = ulong(tile) * n_threads + thread_index; i < args.n;
         i += ulong(tiles) * n_threads)
        y[i] += x[i];
}

// Any grid: x strides over the elements, y over the vectors.
kernel void bias_add(device const float *bias [[buffer(0)]], device float *y [[buffer(1)]],
                     constant oxb_bias_args &args [[buffer(2)]],
                     uint2 at [[thread_position_in_grid]], uint2 size [[threads_per_grid]]) {
    for (uint v = at.y; v < args.n_vectors; v += size.y) {
        device float *to = y + v * args.y_stride;
        for (uint i = at.x; i < args.n; i += size.x) to[i] += bias[i];
    }
}

#define OXB_COPY_WORDS 8u // that a thread asks for at once, for none waits for another

// Any grid: the threads stride over the words, whose bits are kept.
kernel void copy(device const uint *x [[buffer(0)]], device uint *y [[buffer(1)]],
                 constant oxb_copy_args &args [[buffer(2)]],
                 uint tile [[threadgroup_position_in_grid]], uint tiles [[threadgroups_per_grid]],
                 uint thread_index [[thread_index_in_threadgroup]],
                 uint n_threads [[threads_per_threadgroup]]) {
    const ulong step = ulong(n_threads) * OXB_COPY_WORDS;
    for (ulong first = tile * step + thread_index; first < args.n; first += tiles * step) {
        uint words[OXB_COPY_WORDS];
        OXB_UNROLL
        for (uint i = 0; i < OXB_COPY_WORDS; i++)
            words[i] = x[min(first + i * n_threads, args.n - 1u)];
        OXB_UNROLL
        for (uint i = 0; i < OXB_COPY_WORDS; i++) {
            const ulong at = first + i * n_threads;
            if (at < args.n) y[at] = words[i];
        }
    }
}
