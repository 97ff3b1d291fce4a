// Y = X W^T, Y += X W^T and the fused gate-up-SwiGLU of several vectors on matrix units, for coded
// formats. The vectors come as halves (halves.h).
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "silu.h"
#include "matrix.h"
#include "matrix_rows.h"
#include "halves.h"
#include "gemm_halves.h"
#include "instantiate.h"

template <typename Format, typename Output, uint TILES, uint EIGHTS>
inline void halves_output(weight_bytes w, device const uchar *halves, device float *y,
                          constant oxb_gemm_args &args, uint3 tile, uint splits, uint thread_index,
                          thread_place place, threadgroup halves_memory &memory) {
    const uint groups = rows_of_simdgroups, rows = groups * 16u * TILES;
    const uint first = tile.x * groups * (Output::rows::matrices == 2u ? 8u : 16u) * TILES;
    const uint parts = place.simdgroups / groups;
    const halves_part part = {tile.z * parts + place.simdgroup / groups, parts * splits};
    const uint eight = tile.y * EIGHTS;
    float sums[TILES][EIGHTS][4];
    const bool odd = multiply_halves<Format, typename Output::rows, TILES, EIGHTS>(
        w, args.n_rows, first, place.simdgroup % groups, halves, args.n_vectors, eight, part,
        place.lane, sums);
    const bool any = simd_any(odd);
    if (place.lane == 0) memory.odd[place.simdgroup] = any ? 1u : 0u;
    OXB_UNROLL
    for (uint e = 0; e < EIGHTS; e++) {
        if (e != 0) threadgroup_barrier(mem_flags::mem_threadgroup);
        keep_sums<TILES, EIGHTS>(sums, e, groups, place, memory);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        uint odd_simdgroups = 0;
        for (uint i = 0; i < place.simdgroups; i++) odd_simdgroups |= memory.odd[i];
        const halves_input input = {halves, args.n_vectors, args.n_rows,         tile.z,
                                    splits, parts,          odd_simdgroups != 0u};
        Output::template write<Format, TILES>(w, input, first, 8u * (eight + e), rows, y,
                                              args.y_stride, thread_index,
                                              place.simdgroups * OXB_SIMD_WIDTH, memory);
    }
}

template <typename Format, typename Output>
[[kernel]] void
gemm_halves(device const uchar *weight [[buffer(0)]], device const uchar *halves [[buffer(1)]],
            device float *y [[buffer(2)]], constant oxb_gemm_args &args [[buffer(3)]],
            uint3 tile [[threadgroup_position_in_grid]], uint3 tiles [[threadgroups_per_grid]],
            uint thread_index [[thread_index_in_threadgroup]],
            uint simdgroup [[simdgroup_index_in_threadgroup]],
            uint simdgroups [[simdgroups_per_threadgroup]],
            uint lane [[thread_index_in_simdgroup]]) {
    // Where a code has two bits, four tiles of two eights would leave the registers: no tile has
    // them.
    const uint most_tiles = Format::code::bits == 1 ? 4u : 2u;
    threadgroup halves_memory memory;
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    const thread_place place = {lane, simdgroup, simdgroups};
    switch (shape_of_simdgroup) {
    case 42:
        halves_output<Format, Output, most_tiles, 2>(w, halves, y, args, tile, tiles.z,
                                                     thread_index, place, memory);
        break;
    case 22:
        halves_output<Format, Output, 2, 2>(w, halves, y, args, tile, tiles.z, thread_index, place,
                                            memory);
        break;
    case 41:
        halves_output<Format, Output, 4, 1>(w, halves, y, args, tile, tiles.z, thread_index, place,
                                            memory);
        break;
    default:
        halves_output<Format, Output, 2, 1>(w, halves, y, args, tile, tiles.z, thread_index, place,
                                            memory);
        break;
    }
}

OXB_KERNEL("gemm_q1_g128_halves", gemm_halves<q1_g128, halves_plain<false>>)
OXB_KERNEL("gemm_q2_g128_halves", gemm_halves<q2_g128, halves_plain<false>>)
OXB_KERNEL("gemm_q2_g64_halves", gemm_halves<q2_g64, halves_plain<false>>)
OXB_KERNEL("gemm_t1_g128_halves", gemm_halves<t1_g128, halves_plain<false>>)

OXB_KERNEL("gemm_q1_g128_residual_halves", gemm_halves<q1_g128, halves_plain<true>>)
OXB_KERNEL("gemm_q2_g128_residual_halves", gemm_halves<q2_g128, halves_plain<true>>)
OXB_KERNEL("gemm_q2_g64_residual_halves", gemm_halves<q2_g64, halves_plain<true>>)
OXB_KERNEL("gemm_t1_g128_residual_halves", gemm_halves<t1_g128, halves_plain<true>>)

OXB_KERNEL("fused_gate_up_swiglu_gemm_q1_g128_halves", gemm_halves<q1_g128, halves_swiglu>)
OXB_KERNEL("fused_gate_up_swiglu_gemm_q2_g128_halves", gemm_halves<q2_g128, halves_swiglu>)
OXB_KERNEL("fused_gate_up_swiglu_gemm_q2_g64_halves", gemm_halves<q2_g64, halves_swiglu>)
OXB_KERNEL("fused_gate_up_swiglu_gemm_t1_g128_halves", gemm_halves<t1_g128, halves_swiglu>)
