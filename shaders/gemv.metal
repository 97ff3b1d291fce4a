// y = W x and y += W x, one instance per format.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "rows.h"
#include "instantiate.h"

template <typename Format, bool RESIDUAL, uint ROWS>
inline void gemv_rows(weight_bytes w, device const float* x, device float* y, uint n_rows, uint group,
                      thread_place place)
{
    const uint first = (group * place.simdgroups + place.simdgroup) * ROWS;
    float sums[ROWS];
    multiply_rows<Format, 1, ROWS>(w, n_rows, first, x, place.lane, sums);
    const float result = row_of_lane<ROWS>(sums, place.lane);
    if (place.lane < ROWS && first + place.lane < n_rows)
        y[first + place.lane] = RESIDUAL ? y[first + place.lane] + result : result;
}

template <typename Format, bool RESIDUAL>
[[kernel]] void gemv(device const uchar* weight [[buffer(0)]],
                     device const float* x [[buffer(1)]],
                     device float* y [[buffer(2)]],
                     constant oxb_gemv_args& args [[buffer(3)]],
                     uint group [[threadgroup_position_in_grid]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]],
                     uint simdgroups [[simdgroups_per_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]])
{
    const weight_bytes w = {weight, args.codes_offset, args.k};
    const thread_place place = {lane, simdgroup, simdgroups};
    switch (rows_per_simdgroup) {
    case 1: gemv_rows<Format, RESIDUAL, 1>(w, x, y, args.n_rows, group, place); break;
    case 4: gemv_rows<Format, RESIDUAL, 4>(w, x, y, args.n_rows, group, place); break;
    case 8: gemv_rows<Format, RESIDUAL, 8>(w, x, y, args.n_rows, group, place); break;
    default: gemv_rows<Format, RESIDUAL, 2>(w, x, y, args.n_rows, group, place); break;
    }
}

OXB_KERNEL("gemv_q1_g128", gemv<q1_g128, false>)
OXB_KERNEL("gemv_q2_g128", gemv<q2_g128, false>)
OXB_KERNEL("gemv_q2_g64", gemv<q2_g64, false>)
OXB_KERNEL("gemv_f32", gemv<f32, false>)
OXB_KERNEL("gemv_f16", gemv<f16, false>)
OXB_KERNEL("gemv_bf16", gemv<bf16, false>)
OXB_KERNEL("gemv_q8_0", gemv<q8_0, false>)

OXB_KERNEL("gemv_q1_g128_residual", gemv<q1_g128, true>)
OXB_KERNEL("gemv_q2_g128_residual", gemv<q2_g128, true>)
OXB_KERNEL("gemv_q2_g64_residual", gemv<q2_g64, true>)
OXB_KERNEL("gemv_f32_residual", gemv<f32, true>)
OXB_KERNEL("gemv_f16_residual", gemv<f16, true>)
OXB_KERNEL("gemv_bf16_residual", gemv<bf16, true>)
OXB_KERNEL("gemv_q8_0_residual", gemv<q8_0, true>)
