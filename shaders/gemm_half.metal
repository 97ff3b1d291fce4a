// Y = X W^T, Y += X W^T and the fused gate-up-SwiGLU of many vectors on matrix units, for coded
// formats. The vectors come as single halves (halves.h).
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "silu.h"
#include "matrix.h"
#include "matrix_rows.h"
#include "halves.h"
#include "gemm_half.h"
#include "instantiate.h"

template <typename Format, typename Output>
[[kernel]] void
gemm_half(device const uchar *weight [[buffer(0)]], device const uchar *halves [[buffer(1)]],
          device float *y [[buffer(2)]], constant oxb_gemm_args &args [[buffer(3)]],
          uint2 tile [[threadgroup_position_in_grid]],
          uint simdgroup [[simdgroup_index_in_threadgroup]],
          uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup half_memory memory;
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    const thread_place place = {lane, simdgroup, simdgroups};
    switch (half_shape) {
    case 444: half_output<Format, Output, 4, 4, 4>(w, halves, y, args, tile, place, memory); break;
    case 242: half_output<Format, Output, 2, 4, 2>(w, halves, y, args, tile, place, memory); break;
    default: half_output<Format, Output, 4, 4, 2>(w, halves, y, args, tile, place, memory); break;
    }
}

OXB_KERNEL("gemm_q1_g128_half", gemm_half<q1_g128, half_plain<false>>)
OXB_KERNEL("gemm_q2_g128_half", gemm_half<q2_g128, half_plain<false>>)
OXB_KERNEL("gemm_q2_g64_half", gemm_half<q2_g64, half_plain<false>>)
OXB_KERNEL("gemm_t1_g128_half", gemm_half<t1_g128, half_plain<false>>)

OXB_KERNEL("gemm_q1_g128_residual_half", gemm_half<q1_g128, half_plain<true>>)
OXB_KERNEL("gemm_q2_g128_residual_half", gemm_half<q2_g128, half_plain<true>>)
OXB_KERNEL("gemm_q2_g64_residual_half", gemm_half<q2_g64, half_plain<true>>)
OXB_KERNEL("gemm_t1_g128_residual_half", gemm_half<t1_g128, half_plain<true>>)

OXB_KERNEL("fused_gate_up_swiglu_gemm_q1_g128_half", gemm_half<q1_g128, half_swiglu>)
OXB_KERNEL("fused_gate_up_swiglu_gemm_q2_g128_half", gemm_half<q2_g128, half_swiglu>)
OXB_KERNEL("fused_gate_up_swiglu_gemm_q2_g64_half", gemm_half<q2_g64, half_swiglu>)
OXB_KERNEL("fused_gate_up_swiglu_gemm_t1_g128_half", gemm_half<t1_g128, half_swiglu>)
