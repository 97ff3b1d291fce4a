// s = silu(G x) * (U x), or the same of rmsnorm(x), for each vector of the grid's y. The weight has
// the rows of G, then those of U.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "rms.h"
#include "rows.h"
#include "coded.h"
#include "tables.h"
#include "lookup.h"
#include "coded_vector.h"
#include "silu.h"
#include "swiglu_coded.h"
#include "instantiate.h"

OXB_KERNEL("fused_gate_up_swiglu_q1_g128", fused_gate_up_swiglu_coded<lookup_form, q1_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g128", fused_gate_up_swiglu_coded<lookup_form, q2_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g64", fused_gate_up_swiglu_coded<lookup_form, q2_g64>)
OXB_KERNEL("fused_gate_up_swiglu_t1_g128", fused_gate_up_swiglu_coded<lookup_form, t1_g128>)

OXB_KERNEL("fused_gate_up_swiglu_q1_g128_norm",
           fused_gate_up_swiglu_coded_norm<lookup_form, q1_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g128_norm",
           fused_gate_up_swiglu_coded_norm<lookup_form, q2_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g64_norm", fused_gate_up_swiglu_coded_norm<lookup_form, q2_g64>)
OXB_KERNEL("fused_gate_up_swiglu_t1_g128_norm",
           fused_gate_up_swiglu_coded_norm<lookup_form, t1_g128>)

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
