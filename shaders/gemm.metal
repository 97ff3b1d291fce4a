// Y = X W^T, Y += X W^T and the fused gate-up-SwiGLU of several vectors, one instance per format.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "silu.h"
#include "gemm.h"
#include "instantiate.h"

template <typename Format, bool RESIDUAL, uint EIGHTS>
inline void gemm_rows(weight_bytes w, device const float *x, device float *y,
                      constant oxb_gemm_args &args, uint2 tile, uint thread_index,
                      thread_place place, threadgroup float *memory) {
    const uint2 first = uint2(tile.x * OXB_GEMM_ROWS, tile.y * 8u * EIGHTS);
    gemm_tile<Format, plain_rows, EIGHTS>(w, x, args.n_vectors, args.n_rows, first, thread_index,
                                          place, memory);
    const uint row = first.x + thread_index % OXB_GEMM_ROWS;
    OXB_UNROLL
    for (uint i = 0; i < 4 * EIGHTS; i++) {
        const uint vector = first.y + thread_index / OXB_GEMM_ROWS + 2u * i;
        if (row < args.n_rows && vector < args.n_vectors) {
            device float *to = y + vector * args.y_stride + row;
            const float sum = memory[thread_index + OXB_GEMM_THREADS * i];
            *to = RESIDUAL ? *to + sum : sum;
        }
    }
}

template <typename Format, bool RESIDUAL>
[[kernel]] void
gemm(device const uchar *weight [[buffer(0)]], device const float *x [[buffer(1)]],
     device float *y [[buffer(2)]], constant oxb_gemm_args &args [[buffer(3)]],
     uint2 tile [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
     uint simdgroup [[simdgroup_index_in_threadgroup]],
     uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float memory[OXB_GEMM_MEMORY];
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    const thread_place place = {lane, simdgroup, simdgroups};
    switch (eights_of_tile) {
    case 4: gemm_rows<Format, RESIDUAL, 4>(w, x, y, args, tile, thread_index, place, memory); break;
    case 2: gemm_rows<Format, RESIDUAL, 2>(w, x, y, args, tile, thread_index, place, memory); break;
    default:
        gemm_rows<Format, RESIDUAL, 1>(w, x, y, args, tile, thread_index, place, memory);
        break;
    }
}

OXB_KERNEL("gemm_q1_g128", gemm<q1_g128, false>)
OXB_KERNEL("gemm_q2_g128", gemm<q2_g128, false>)
OXB_KERNEL("gemm_q2_g64", gemm<q2_g64, false>)
OXB_KERNEL("gemm_t1_g128", gemm<t1_g128, false>)
OXB_KERNEL("gemm_f32", gemm<f32, false>)
OXB_KERNEL("gemm_f16", gemm<f16, false>)
OXB_KERNEL("gemm_bf16", gemm<bf16, false>)
OXB_KERNEL("gemm_q8_0", gemm<q8_0, false>)

OXB_KERNEL("gemm_q1_g128_residual", gemm<q1_g128, true>)
OXB_KERNEL("gemm_q2_g128_residual", gemm<q2_g128, true>)
OXB_KERNEL("gemm_q2_g64_residual", gemm<q2_g64, true>)
OXB_KERNEL("gemm_t1_g128_residual", gemm<t1_g128, true>)
OXB_KERNEL("gemm_f32_residual", gemm<f32, true>)
OXB_KERNEL("gemm_f16_residual", gemm<f16, true>)
OXB_KERNEL("gemm_bf16_residual", gemm<bf16, true>)
OXB_KERNEL("gemm_q8_0_residual", gemm<q8_0, true>)

template <typename Format, uint EIGHTS>
inline void swiglu_tile(weight_bytes w, device const float *x, device float *s,
                        constant oxb_gemm_args &args, uint2 tile, uint thread_index,
                        thread_place place, threadgroup float *memory) {
    const uint2 first = uint2(tile.x * OXB_GEMM_ROWS / 2u, tile.y * 8u * EIGHTS);
    gemm_tile<Format, gate_up_rows, EIGHTS>(w, x, args.n_vectors, args.n_rows, first, thread_index,
                                            place, memory);
    const uint row = thread_index % 32u;
    OXB_UNROLL
    for (uint i = 0; i < 2 * EIGHTS; i++) {
        const uint v = thread_index / 32u + 4u * i;
        threadgroup const float *gate = memory + v * OXB_GEMM_ROWS + row;
        if (first.x + row < args.n_rows && first.y + v < args.n_vectors)
            s[(first.y + v) * args.y_stride + first.x + row] = silu(gate[0]) * gate[32];
    }
}

template <typename Format>
[[kernel]] void fused_gate_up_swiglu_gemm(
    device const uchar *weight [[buffer(0)]], device const float *x [[buffer(1)]],
    device float *s [[buffer(2)]], constant oxb_gemm_args &args [[buffer(3)]],
    uint2 tile [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float memory[OXB_GEMM_MEMORY];
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    const thread_place place = {lane, simdgroup, simdgroups};
    switch (eights_of_tile) {
    case 4: swiglu_tile<Format, 4>(w, x, s, args, tile, thread_index, place, memory); break;
    case 2: swiglu_tile<Format, 2>(w, x, s, args, tile, thread_index, place, memory); break;
    default: swiglu_tile<Format, 1>(w, x, s, args, tile, thread_index, place, memory); break;
    }
}

OXB_KERNEL("fused_gate_up_swiglu_gemm_q1_g128", fused_gate_up_swiglu_gemm<q1_g128>)
OXB_KERNEL("fused_gate_up_swiglu_gemm_q2_g128", fused_gate_up_swiglu_gemm<q2_g128>)
OXB_KERNEL("fused_gate_up_swiglu_gemm_q2_g64", fused_gate_up_swiglu_gemm<q2_g64>)
OXB_KERNEL("fused_gate_up_swiglu_gemm_t1_g128", fused_gate_up_swiglu_gemm<t1_g128>)
OXB_KERNEL("fused_gate_up_swiglu_gemm_f32", fused_gate_up_swiglu_gemm<f32>)
OXB_KERNEL("fused_gate_up_swiglu_gemm_f16", fused_gate_up_swiglu_gemm<f16>)
OXB_KERNEL("fused_gate_up_swiglu_gemm_bf16", fused_gate_up_swiglu_gemm<bf16>)
OXB_KERNEL("fused_gate_up_swiglu_gemm_q8_0", fused_gate_up_swiglu_gemm<q8_0>)
