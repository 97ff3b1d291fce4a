// s = silu(G x) * (U x), for a matrix of the rows of G, then those of U.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "rows.h"
#include "silu.h"
#include "instantiate.h"

template <typename Format, uint ROWS>
inline void swiglu_rows(weight_bytes w, device const float* x, device float* s, uint n_rows, uint group,
                        thread_place place)
{
    const uint first = (group * place.simdgroups + place.simdgroup) * ROWS;
    float sums[2 * ROWS];
    multiply_rows<Format, 2, ROWS>(w, n_rows, first, x, place.lane, sums);
    const float gate = row_of_lane<ROWS>(sums, place.lane);
    const float up = row_of_lane<ROWS>(sums + ROWS, place.lane);
    if (place.lane < ROWS && first + place.lane < n_rows)
        s[first + place.lane] = silu(gate) * up;
}

template <typename Format>
[[kernel]] void fused_gate_up_swiglu(device const uchar* weight [[buffer(0)]],
                                     device const float* x [[buffer(1)]],
                                     device float* s [[buffer(2)]],
                                     constant oxb_swiglu_args& args [[buffer(3)]],
                                     uint group [[threadgroup_position_in_grid]],
                                     uint simdgroup [[simdgroup_index_in_threadgroup]],
                                     uint simdgroups [[simdgroups_per_threadgroup]],
                                     uint lane [[thread_index_in_simdgroup]])
{
    const weight_bytes w = {weight, args.codes_offset, args.k};
    const thread_place place = {lane, simdgroup, simdgroups};
    switch (rows_per_simdgroup) {
    case 1: swiglu_rows<Format, 1>(w, x, s, args.n_rows, group, place); break;
    case 4: swiglu_rows<Format, 4>(w, x, s, args.n_rows, group, place); break;
    default: swiglu_rows<Format, 2>(w, x, s, args.n_rows, group, place); break;
    }
}

OXB_KERNEL("fused_gate_up_swiglu_q1_g128", fused_gate_up_swiglu<q1_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g128", fused_gate_up_swiglu<q2_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g64", fused_gate_up_swiglu<q2_g64>)
OXB_KERNEL("fused_gate_up_swiglu_f32", fused_gate_up_swiglu<f32>)
OXB_KERNEL("fused_gate_up_swiglu_f16", fused_gate_up_swiglu<f16>)
OXB_KERNEL("fused_gate_up_swiglu_bf16", fused_gate_up_swiglu<bf16>)
OXB_KERNEL("fused_gate_up_swiglu_q8_0", fused_gate_up_swiglu<q8_0>)
