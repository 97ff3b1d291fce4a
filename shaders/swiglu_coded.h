// Kernels of the fused gate-up-SwiGLU for coded formats, by any form (coded.h).
#ifndef OXB_SWIGLU_CODED_H
#define OXB_SWIGLU_CODED_H

#define OXB_SWIGLU_SETS 8u // of rows of both matrices, at most

// A threadgroup computes ROWS sets of rows of the output.
template <typename Form, typename Format, bool NORM, uint ROWS>
inline void swiglu_sets(weight_bytes w, device const float *x, device const float *norm,
                        device float *s, constant oxb_gemv_args &args, uint tile,
                        thread_place place,
                        threadgroup coded_memory<Form, OXB_SWIGLU_SETS> &memory) {
    const uint n = ROWS * Form::rows;
    const uint first = tile * n;
    const float factor = multiply_vector<Format, 2, ROWS, NORM>(w, args.n_rows, first, x, norm,
                                                                args.eps, place, memory);
    const uint n_threads = place.simdgroups * OXB_SIMD_WIDTH;
    for (uint i = index_of(place); i < n; i += n_threads) {
        if (first + i < args.n_rows)
            s[first + i] =
                silu(sum_of_splits(memory, i) * factor) * (sum_of_splits(memory, n + i) * factor);
    }
}

template <typename Form, typename Format, bool NORM>
inline void swiglu_coded_rows(device const uchar *weight, device const float *x,
                              device const float *norm, device float *s,
                              constant oxb_gemv_args &args, uint tile, thread_place place,
                              threadgroup coded_memory<Form, OXB_SWIGLU_SETS> &memory) {
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    switch (rows_at_once) {
    case 1: swiglu_sets<Form, Format, NORM, 1>(w, x, norm, s, args, tile, place, memory); break;
    case 4: swiglu_sets<Form, Format, NORM, 4>(w, x, norm, s, args, tile, place, memory); break;
    default: swiglu_sets<Form, Format, NORM, 2>(w, x, norm, s, args, tile, place, memory); break;
    }
}

template <typename Form, typename Format>
[[kernel]] void fused_gate_up_swiglu_coded(
    device const uchar *weight [[buffer(0)]], device const float *x [[buffer(1)]],
    device float *s [[buffer(2)]], constant oxb_gemv_args &args [[buffer(3)]],
    uint2 tile [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup coded_memory<Form, OXB_SWIGLU_SETS> memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const ulong vector = tile.y;
    x += vector * args.k;
    swiglu_coded_rows<Form, Format, false>(weight, x, x, s + vector * args.y_stride, args, tile.x,
                                           place, memory);
}

template <typename Form, typename Format>
[[kernel]] void fused_gate_up_swiglu_coded_norm(
    device const uchar *weight [[buffer(0)]], device const float *x [[buffer(1)]],
    device const float *norm [[buffer(2)]], device float *s [[buffer(3)]],
    constant oxb_gemv_args &args [[buffer(4)]], uint2 tile [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup coded_memory<Form, OXB_SWIGLU_SETS> memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const ulong vector = tile.y;
    swiglu_coded_rows<Form, Format, true>(weight, x + vector * args.k, norm,
                                          s + vector * args.y_stride, args, tile.x, place, memory);
}

#endif
