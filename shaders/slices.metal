// gemv and swiglu (gemv.metal, swiglu.metal) on int8 matrix units. n_rows is a multiple of 16, a
// threadgroup's rows are no more than there are, and the weight lies in columns.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "rms.h"
#include "matrix.h"
#include "early.h"
#include "slices.h"
#include "silu.h"
#include "instantiate.h"

// Tiles of 16 rows of a threadgroup, for each matrix: selects a template instance, as in rows.h. A
// threadgroup has 8 or 16 SIMD-groups.
constant uint tiles_constant [[function_constant(0)]];
constant uint tiles_at_once = is_function_constant_defined(tiles_constant) ? tiles_constant : 2u;

template <typename Format, bool RESIDUAL, bool NORM, uint TILES>
inline void gemv_tiles(weight_bytes w, device const float *x, device const float *norm,
                       device float *y, constant oxb_gemv_args &args, uint tile, thread_place place,
                       threadgroup slices_memory<typename Format::code> &memory) {
    const uint n = 16u * TILES, begin = tile * n; // fewer than threads
    // The last threadgroup computes rows of the one before it again, and leaves them alone.
    const slices_rows rows = {args.n_rows, min(begin, args.n_rows - n)};
    const uint i = min(index_of(place), n - 1u), row = rows.first + i;
    slices_input input = {x, norm, 1.0f, 1.0f};
    const bool has_row = index_of(place) < n && row >= begin;
    float before = 0.0f; // what a residual adds to
    const float factor = multiply_by_slices<Format, 1, TILES, NORM>(
        w, rows, input, args.eps, RESIDUAL && has_row ? y + row : nullptr, before, place, memory);
    const bool has_rows = place.simdgroup * OXB_SIMD_WIDTH < n;
    if (!has_rows) return;
    const float result = row_of_slices<Format, NORM>(w, row, i, n, input, factor, place, memory);
    if (has_row) y[row] = RESIDUAL ? before + result : result;
}

template <typename Format, bool RESIDUAL, bool NORM>
inline void gemv_any_tiles(device const uchar *weight, device const float *x,
                           device const float *norm, device float *y, constant oxb_gemv_args &args,
                           uint tile, thread_place place,
                           threadgroup slices_memory<typename Format::code> &memory) {
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    switch (tiles_at_once) {
    case 1: gemv_tiles<Format, RESIDUAL, NORM, 1>(w, x, norm, y, args, tile, place, memory); break;
    case 3: gemv_tiles<Format, RESIDUAL, NORM, 3>(w, x, norm, y, args, tile, place, memory); break;
    case 4: gemv_tiles<Format, RESIDUAL, NORM, 4>(w, x, norm, y, args, tile, place, memory); break;
    case 6: gemv_tiles<Format, RESIDUAL, NORM, 6>(w, x, norm, y, args, tile, place, memory); break;
    default: gemv_tiles<Format, RESIDUAL, NORM, 2>(w, x, norm, y, args, tile, place, memory); break;
    }
}

template <typename Format, bool RESIDUAL>
[[kernel]] void gemv_slices(device const uchar *weight [[buffer(0)]],
                            device const float *x [[buffer(1)]], device float *y [[buffer(2)]],
                            constant oxb_gemv_args &args [[buffer(3)]],
                            uint2 tile [[threadgroup_position_in_grid]],
                            uint simdgroup [[simdgroup_index_in_threadgroup]],
                            uint simdgroups [[simdgroups_per_threadgroup]],
                            uint lane [[thread_index_in_simdgroup]]) {
    threadgroup slices_memory<typename Format::code> memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const ulong vector = tile.y;
    x += vector * args.k;
    gemv_any_tiles<Format, RESIDUAL, false>(weight, x, x, y + vector * args.y_stride, args, tile.x,
                                            place, memory);
}

OXB_KERNEL("gemv_q1_g128_slices", gemv_slices<q1_g128, false>)
OXB_KERNEL("gemv_q2_g128_slices", gemv_slices<q2_g128, false>)
OXB_KERNEL("gemv_q2_g64_slices", gemv_slices<q2_g64, false>)
OXB_KERNEL("gemv_t1_g128_slices", gemv_slices<t1_g128, false>)

OXB_KERNEL("gemv_q1_g128_residual_slices", gemv_slices<q1_g128, true>)
OXB_KERNEL("gemv_q2_g128_residual_slices", gemv_slices<q2_g128, true>)
OXB_KERNEL("gemv_q2_g64_residual_slices", gemv_slices<q2_g64, true>)
OXB_KERNEL("gemv_t1_g128_residual_slices", gemv_slices<t1_g128, true>)

template <typename Format>
[[kernel]] void gemv_slices_norm(
    device const uchar *weight [[buffer(0)]], device const float *x [[buffer(1)]],
    device const float *norm [[buffer(2)]], device float *y [[buffer(3)]],
    constant oxb_gemv_args &args [[buffer(4)]], uint2 tile [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup slices_memory<typename Format::code> memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const ulong vector = tile.y;
    gemv_any_tiles<Format, false, true>(weight, x + vector * args.k, norm,
                                        y + vector * args.y_stride, args, tile.x, place, memory);
}

OXB_KERNEL("gemv_q1_g128_norm_slices", gemv_slices_norm<q1_g128>)
OXB_KERNEL("gemv_q2_g128_norm_slices", gemv_slices_norm<q2_g128>)
OXB_KERNEL("gemv_q2_g64_norm_slices", gemv_slices_norm<q2_g64>)
OXB_KERNEL("gemv_t1_g128_norm_slices", gemv_slices_norm<t1_g128>)

template <typename Format, bool NORM, uint TILES>
inline void swiglu_tiles(weight_bytes w, device const float *x, device const float *norm,
                         device float *s, constant oxb_gemv_args &args, uint tile,
                         thread_place place,
                         threadgroup slices_memory<typename Format::code> &memory) {
    const uint n = 16u * TILES, begin = tile * n; // rows of the output
    const slices_rows rows = {args.n_rows, min(begin, args.n_rows - n)};
    slices_input input = {x, norm, 1.0f, 1.0f};
    float nothing = 0.0f;
    const float factor = multiply_by_slices<Format, 2, TILES, NORM>(
        w, rows, input, args.eps, nullptr, nothing, place, memory);
    for (uint base = place.simdgroup * OXB_SIMD_WIDTH; base < n;
         base += place.simdgroups * OXB_SIMD_WIDTH) {
        const uint i = min(base + place.lane, n - 1u), row = rows.first + i;
        const float gate =
            row_of_slices<Format, NORM>(w, row, i, 2u * n, input, factor, place, memory);
        const float up = row_of_slices<Format, NORM>(w, ulong(args.n_rows) + row, n + i, 2u * n,
                                                     input, factor, place, memory);
        if (base + place.lane < n && row >= begin) s[row] = silu(gate) * up;
    }
}

template <typename Format, bool NORM>
inline void swiglu_any_tiles(device const uchar *weight, device const float *x,
                             device const float *norm, device float *s,
                             constant oxb_gemv_args &args, uint tile, thread_place place,
                             threadgroup slices_memory<typename Format::code> &memory) {
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    switch (tiles_at_once) {
    case 1: swiglu_tiles<Format, NORM, 1>(w, x, norm, s, args, tile, place, memory); break;
    case 3: swiglu_tiles<Format, NORM, 3>(w, x, norm, s, args, tile, place, memory); break;
    default: swiglu_tiles<Format, NORM, 2>(w, x, norm, s, args, tile, place, memory); break;
    }
}

template <typename Format>
[[kernel]] void fused_gate_up_swiglu_slices(
    device const uchar *weight [[buffer(0)]], device const float *x [[buffer(1)]],
    device float *s [[buffer(2)]], constant oxb_gemv_args &args [[buffer(3)]],
    uint2 tile [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup slices_memory<typename Format::code> memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const ulong vector = tile.y;
    x += vector * args.k;
    swiglu_any_tiles<Format, false>(weight, x, x, s + vector * args.y_stride, args, tile.x, place,
                                    memory);
}

OXB_KERNEL("fused_gate_up_swiglu_q1_g128_slices", fused_gate_up_swiglu_slices<q1_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g128_slices", fused_gate_up_swiglu_slices<q2_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g64_slices", fused_gate_up_swiglu_slices<q2_g64>)
OXB_KERNEL("fused_gate_up_swiglu_t1_g128_slices", fused_gate_up_swiglu_slices<t1_g128>)

template <typename Format>
[[kernel]] void fused_gate_up_swiglu_slices_norm(
    device const uchar *weight [[buffer(0)]], device const float *x [[buffer(1)]],
    device const float *norm [[buffer(2)]], device float *s [[buffer(3)]],
    constant oxb_gemv_args &args [[buffer(4)]], uint2 tile [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup slices_memory<typename Format::code> memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const ulong vector = tile.y;
    swiglu_any_tiles<Format, true>(weight, x + vector * args.k, norm, s + vector * args.y_stride,
                                   args, tile.x, place, memory);
}

OXB_KERNEL("fused_gate_up_swiglu_q1_g128_norm_slices", fused_gate_up_swiglu_slices_norm<q1_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g128_norm_slices", fused_gate_up_swiglu_slices_norm<q2_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g64_norm_slices", fused_gate_up_swiglu_slices_norm<q2_g64>)
OXB_KERNEL("fused_gate_up_swiglu_t1_g128_norm_slices", fused_gate_up_swiglu_slices_norm<t1_g128>)
