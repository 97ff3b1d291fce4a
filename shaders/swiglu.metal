// s = silu(G x) * (U x), or the same of rmsnorm(x), for each vector of the grid's y. The weight has
// the rows of G, then those of U.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "rms.h"
#include "rows.h"
#include "lookup.h"
#include "silu.h"
#include "instantiate.h"

template <typename Format, bool NORM, uint ROWS>
inline void swiglu_lookup(weight_bytes w, device const float *x, device const float *norm,
                          device float *s, constant oxb_gemv_args &args, uint tile,
                          thread_place place, threadgroup lookup_memory &memory) {
    const uint n = ROWS * OXB_SIMD_WIDTH; // rows of the output
    const uint first = tile * n;
    const float factor = multiply_vector<Format, 2, ROWS, NORM>(w, args.n_rows, first, x, norm,
                                                                args.eps, place, memory);
    const uint n_threads = place.simdgroups * OXB_SIMD_WIDTH;
    for (uint i = place.simdgroup * OXB_SIMD_WIDTH + place.lane; i < n; i += n_threads) {
        if (first + i < args.n_rows)
            s[first + i] =
                silu(sum_of_splits(memory, i) * factor) * (sum_of_splits(memory, n + i) * factor);
    }
}

template <typename Format, bool NORM>
inline void swiglu_coded_rows(device const uchar *weight, device const float *x,
                              device const float *norm, device float *s,
                              constant oxb_gemv_args &args, uint tile, thread_place place,
                              threadgroup lookup_memory &memory) {
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    switch (rows_at_once) {
    case 1: swiglu_lookup<Format, NORM, 1>(w, x, norm, s, args, tile, place, memory); break;
    default: swiglu_lookup<Format, NORM, 2>(w, x, norm, s, args, tile, place, memory); break;
    }
}

template <typename Format>
[[kernel]] void fused_gate_up_swiglu_coded(
    device const uchar *weight [[buffer(0)]], device const float *x [[buffer(1)]],
    device float *s [[buffer(2)]], constant oxb_gemv_args &args [[buffer(3)]],
    uint2 tile [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup lookup_memory memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const ulong vector = tile.y;
    x += vector * args.k;
    swiglu_coded_rows<Format, false>(weight, x, x, s + vector * args.y_stride, args, tile.x, place,
                                     memory);
}

OXB_KERNEL("fused_gate_up_swiglu_q1_g128", fused_gate_up_swiglu_coded<q1_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g128", fused_gate_up_swiglu_coded<q2_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g64", fused_gate_up_swiglu_coded<q2_g64>)

template <typename Format>
[[kernel]] void fused_gate_up_swiglu_coded_norm(
    device const uchar *weight [[buffer(0)]], device const float *x [[buffer(1)]],
    device const float *norm [[buffer(2)]], device float *s [[buffer(3)]],
    constant oxb_gemv_args &args [[buffer(4)]], uint2 tile [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup lookup_memory memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const ulong vector = tile.y;
    swiglu_coded_rows<Format, true>(weight, x + vector * args.k, norm, s + vector * args.y_stride,
                                    args, tile.x, place, memory);
}

OXB_KERNEL("fused_gate_up_swiglu_q1_g128_norm", fused_gate_up_swiglu_coded_norm<q1_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g128_norm", fused_gate_up_swiglu_coded_norm<q2_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g64_norm", fused_gate_up_swiglu_coded_norm<q2_g64>)

template <typename Format, uint ROWS>
inline void swiglu_dense_rows(weight_bytes w, device const float *x, device float *s, uint n_rows,
                              uint tile, thread_place place) {
    const uint first = (tile * place.simdgroups + place.simdgroup) * ROWS;
    float sums[2 * ROWS];
    multiply_rows<Format, 2, ROWS>(w, n_rows, first, x, place.lane, sums);
    const float gate = row_of_lane<ROWS>(sums, place.lane);
    const float up = row_of_lane<ROWS>(sums + ROWS, place.lane);
    if (place.lane < ROWS && first + place.lane < n_rows) s[first + place.lane] = silu(gate) * up;
}

template <typename Format>
[[kernel]] void fused_gate_up_swiglu_dense(
    device const uchar *weight [[buffer(0)]], device const float *x [[buffer(1)]],
    device float *s [[buffer(2)]], constant oxb_gemv_args &args [[buffer(3)]],
    uint2 tile [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    const thread_place place = {lane, simdgroup, simdgroups};
    const ulong vector = tile.y;
    x += vector * args.k;
    s += vector * args.y_stride;
    switch (rows_at_once) {
    case 1: swiglu_dense_rows<Format, 1>(w, x, s, args.n_rows, tile.x, place); break;
    default: swiglu_dense_rows<Format, 2>(w, x, s, args.n_rows, tile.x, place); break;
    }
}

OXB_KERNEL("fused_gate_up_swiglu_f32", fused_gate_up_swiglu_dense<f32>)
OXB_KERNEL("fused_gate_up_swiglu_f16", fused_gate_up_swiglu_dense<f16>)
OXB_KERNEL("fused_gate_up_swiglu_bf16", fused_gate_up_swiglu_dense<bf16>)
OXB_KERNEL("fused_gate_up_swiglu_q8_0", fused_gate_up_swiglu_dense<q8_0>)
