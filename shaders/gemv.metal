// y = W x, y += W x and y = W rmsnorm(x) for each vector of the grid's y, one instance per format:
// coded formats by look-up, dense formats by multiplication.
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
#include "gemv_coded.h"
#include "instantiate.h"

OXB_KERNEL("gemv_q1_g128", gemv_coded<lookup_form, q1_g128, false>)
OXB_KERNEL("gemv_q2_g128", gemv_coded<lookup_form, q2_g128, false>)
OXB_KERNEL("gemv_q2_g64", gemv_coded<lookup_form, q2_g64, false>)
OXB_KERNEL("gemv_t1_g128", gemv_coded<lookup_form, t1_g128, false>)

OXB_KERNEL("gemv_q1_g128_residual", gemv_coded<lookup_form, q1_g128, true>)
OXB_KERNEL("gemv_q2_g128_residual", gemv_coded<lookup_form, q2_g128, true>)
OXB_KERNEL("gemv_q2_g64_residual", gemv_coded<lookup_form, q2_g64, true>)
OXB_KERNEL("gemv_t1_g128_residual", gemv_coded<lookup_form, t1_g128, true>)

OXB_KERNEL("gemv_q1_g128_norm", gemv_coded_norm<lookup_form, q1_g128>)
OXB_KERNEL("gemv_q2_g128_norm", gemv_coded_norm<lookup_form, q2_g128>)
OXB_KERNEL("gemv_q2_g64_norm", gemv_coded_norm<lookup_form, q2_g64>)
OXB_KERNEL("gemv_t1_g128_norm", gemv_coded_norm<lookup_form, t1_g128>)

// Each SIMD-group computes ROWS rows.
template <typename Format, bool RESIDUAL, uint ROWS>
inline void gemv_dense_rows(weight_bytes w, device const float *x, device float *y, uint n_rows,
                            uint tile, thread_place place) {
    const uint first = (tile * place.simdgroups + place.simdgroup) * ROWS;
    float sums[ROWS];
    multiply_rows<Format, 1, ROWS>(w, n_rows, first, x, place.lane, sums);
    const float result = row_of_lane<ROWS>(sums, place.lane);
    if (place.lane < ROWS && first + place.lane < n_rows)
        y[first + place.lane] = RESIDUAL ? y[first + place.lane] + result : result;
}

template <typename Format, bool RESIDUAL>
[[kernel]] void gemv_dense(device const uchar *weight [[buffer(0)]],
                           device const float *x [[buffer(1)]], device float *y [[buffer(2)]],
                           constant oxb_gemv_args &args [[buffer(3)]],
                           uint2 tile [[threadgroup_position_in_grid]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]]) {
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    const thread_place place = {lane, simdgroup, simdgroups};
    const ulong vector = tile.y;
    x += vector * args.k;
    y += vector * args.y_stride;
    switch (rows_at_once) {
    case 1: gemv_dense_rows<Format, RESIDUAL, 1>(w, x, y, args.n_rows, tile.x, place); break;
    case 4: gemv_dense_rows<Format, RESIDUAL, 4>(w, x, y, args.n_rows, tile.x, place); break;
    default: gemv_dense_rows<Format, RESIDUAL, 2>(w, x, y, args.n_rows, tile.x, place); break;
    }
}

OXB_KERNEL("gemv_f32", gemv_dense<f32, false>)
OXB_KERNEL("gemv_f16", gemv_dense<f16, false>)
OXB_KERNEL("gemv_bf16", gemv_dense<bf16, false>)
OXB_KERNEL("gemv_q8_0", gemv_dense<q8_0, false>)

OXB_KERNEL("gemv_f32_residual", gemv_dense<f32, true>)
OXB_KERNEL("gemv_f16_residual", gemv_dense<f16, true>)
OXB_KERNEL("gemv_bf16_residual", gemv_dense<bf16, true>)
OXB_KERNEL("gemv_q8_0_residual", gemv_dense<q8_0, true>)
