// y = W x, y += W x and y = W rmsnorm(x), one instance per format: codes by look-up, other weights
// by multiplication.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "rms.h"
#include "rows.h"
#include "lookup.h"
#include "instantiate.h"

// A lane has some rows: the threadgroup as many as that for 32 lanes.
template <typename Format, bool RESIDUAL, bool NORM, uint ROWS>
inline void gemv_lookup(weight_bytes w, device const float *x, device const float *norm,
                        device float *y, constant oxb_gemv_args &args, uint group,
                        thread_place place, threadgroup lookup_memory &memory) {
    const uint first = group * ROWS * OXB_SIMD_WIDTH;
    const float factor = multiply_vector<Format, 1, ROWS, NORM>(w, args.n_rows, first, x, norm,
                                                                args.eps, place, memory);
    const uint n_threads = place.simdgroups * OXB_SIMD_WIDTH;
    for (uint i = place.simdgroup * OXB_SIMD_WIDTH + place.lane; i < ROWS * OXB_SIMD_WIDTH;
         i += n_threads) {
        if (first + i < args.n_rows) {
            const float result = sum_of_parts(memory, i) * factor;
            y[first + i] = RESIDUAL ? y[first + i] + result : result;
        }
    }
}

template <typename Format, bool RESIDUAL, bool NORM>
inline void gemv_codes_rows(device const uchar *weight, device const float *x,
                            device const float *norm, device float *y, constant oxb_gemv_args &args,
                            uint group, thread_place place, threadgroup lookup_memory &memory) {
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    switch (rows_at_once) {
    case 1:
        gemv_lookup<Format, RESIDUAL, NORM, 1>(w, x, norm, y, args, group, place, memory);
        break;
    case 4:
        gemv_lookup<Format, RESIDUAL, NORM, 4>(w, x, norm, y, args, group, place, memory);
        break;
    default:
        gemv_lookup<Format, RESIDUAL, NORM, 2>(w, x, norm, y, args, group, place, memory);
        break;
    }
}

template <typename Format, bool RESIDUAL>
[[kernel]] void gemv_codes(device const uchar *weight [[buffer(0)]],
                           device const float *x [[buffer(1)]], device float *y [[buffer(2)]],
                           constant oxb_gemv_args &args [[buffer(3)]],
                           uint group [[threadgroup_position_in_grid]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]]) {
    threadgroup lookup_memory memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    gemv_codes_rows<Format, RESIDUAL, false>(weight, x, x, y, args, group, place, memory);
}

OXB_KERNEL("gemv_q1_g128", gemv_codes<q1_g128, false>)
OXB_KERNEL("gemv_q2_g128", gemv_codes<q2_g128, false>)
OXB_KERNEL("gemv_q2_g64", gemv_codes<q2_g64, false>)

OXB_KERNEL("gemv_q1_g128_residual", gemv_codes<q1_g128, true>)
OXB_KERNEL("gemv_q2_g128_residual", gemv_codes<q2_g128, true>)
OXB_KERNEL("gemv_q2_g64_residual", gemv_codes<q2_g64, true>)

template <typename Format>
[[kernel]] void gemv_codes_norm(
    device const uchar *weight [[buffer(0)]], device const float *x [[buffer(1)]],
    device const float *norm [[buffer(2)]], device float *y [[buffer(3)]],
    constant oxb_gemv_args &args [[buffer(4)]], uint group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup lookup_memory memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    gemv_codes_rows<Format, false, true>(weight, x, norm, y, args, group, place, memory);
}

OXB_KERNEL("gemv_q1_g128_norm", gemv_codes_norm<q1_g128>)
OXB_KERNEL("gemv_q2_g128_norm", gemv_codes_norm<q2_g128>)
OXB_KERNEL("gemv_q2_g64_norm", gemv_codes_norm<q2_g64>)

// A SIMD-group has some rows.
template <typename Format, bool RESIDUAL, uint ROWS>
inline void gemv_rows(weight_bytes w, device const float *x, device float *y, uint n_rows,
                      uint group, thread_place place) {
    const uint first = (group * place.simdgroups + place.simdgroup) * ROWS;
    float sums[ROWS];
    multiply_rows<Format, 1, ROWS>(w, n_rows, first, x, place.lane, sums);
    const float result = row_of_lane<ROWS>(sums, place.lane);
    if (place.lane < ROWS && first + place.lane < n_rows)
        y[first + place.lane] = RESIDUAL ? y[first + place.lane] + result : result;
}

template <typename Format, bool RESIDUAL>
[[kernel]] void gemv_elements(device const uchar *weight [[buffer(0)]],
                              device const float *x [[buffer(1)]], device float *y [[buffer(2)]],
                              constant oxb_gemv_args &args [[buffer(3)]],
                              uint group [[threadgroup_position_in_grid]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]],
                              uint simdgroups [[simdgroups_per_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]]) {
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    const thread_place place = {lane, simdgroup, simdgroups};
    switch (rows_at_once) {
    case 1: gemv_rows<Format, RESIDUAL, 1>(w, x, y, args.n_rows, group, place); break;
    case 4: gemv_rows<Format, RESIDUAL, 4>(w, x, y, args.n_rows, group, place); break;
    default: gemv_rows<Format, RESIDUAL, 2>(w, x, y, args.n_rows, group, place); break;
    }
}

OXB_KERNEL("gemv_f32", gemv_elements<f32, false>)
OXB_KERNEL("gemv_f16", gemv_elements<f16, false>)
OXB_KERNEL("gemv_bf16", gemv_elements<bf16, false>)
OXB_KERNEL("gemv_q8_0", gemv_elements<q8_0, false>)

OXB_KERNEL("gemv_f32_residual", gemv_elements<f32, true>)
OXB_KERNEL("gemv_f16_residual", gemv_elements<f16, true>)
OXB_KERNEL("gemv_bf16_residual", gemv_elements<bf16, true>)
OXB_KERNEL("gemv_q8_0_residual", gemv_elements<q8_0, true>)
