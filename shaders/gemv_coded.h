// Kernels of gemv for coded formats, by any form (coded.h).
#ifndef OXB_GEMV_CODED_H
#define OXB_GEMV_CODED_H

#define OXB_GEMV_SETS 4u // of rows, at most

// A threadgroup computes ROWS sets of rows.
template <typename Form, typename Format, bool RESIDUAL, bool NORM, uint ROWS>
inline void gemv_sets(weight_bytes w, device const float *x, device const float *norm,
                      device float *y, constant oxb_gemv_args &args, uint tile, thread_place place,
                      threadgroup coded_memory<Form, OXB_GEMV_SETS> &memory) {
    const uint n = ROWS * Form::rows;
    const uint first = tile * n;
    const float factor = multiply_vector<Format, 1, ROWS, NORM>(w, args.n_rows, first, x, norm,
                                                                args.eps, place, memory);
    const uint n_threads = place.simdgroups * OXB_SIMD_WIDTH;
    for (uint i = index_of(place); i < n; i += n_threads) {
        if (first + i < args.n_rows) {
            const float result = sum_of_splits(memory, i) * factor;
            y[first + i] = RESIDUAL ? y[first + i] + result : result;
        }
    }
}

template <typename Form, typename Format, bool RESIDUAL, bool NORM>
inline void gemv_coded_rows(device const uchar *weight, device const float *x,
                            device const float *norm, device float *y, constant oxb_gemv_args &args,
                            uint tile, thread_place place,
                            threadgroup coded_memory<Form, OXB_GEMV_SETS> &memory) {
    const weight_bytes w = {weight, args.codes_offset, args.k, args.column};
    switch (rows_at_once) {
    case 1:
        gemv_sets<Form, Format, RESIDUAL, NORM, 1>(w, x, norm, y, args, tile, place, memory);
        break;
    case 4:
        gemv_sets<Form, Format, RESIDUAL, NORM, 4>(w, x, norm, y, args, tile, place, memory);
        break;
    default:
        gemv_sets<Form, Format, RESIDUAL, NORM, 2>(w, x, norm, y, args, tile, place, memory);
        break;
    }
}

template <typename Form, typename Format, bool RESIDUAL>
[[kernel]] void gemv_coded(device const uchar *weight [[buffer(0)]],
                           device const float *x [[buffer(1)]], device float *y [[buffer(2)]],
                           constant oxb_gemv_args &args [[buffer(3)]],
                           uint2 tile [[threadgroup_position_in_grid]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]]) {
    threadgroup coded_memory<Form, OXB_GEMV_SETS> memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const ulong vector = tile.y;
    x += vector * args.k;
    gemv_coded_rows<Form, Format, RESIDUAL, false>(weight, x, x, y + vector * args.y_stride, args,
                                                   tile.x, place, memory);
}

template <typename Form, typename Format>
[[kernel]] void gemv_coded_norm(
    device const uchar *weight [[buffer(0)]], device const float *x [[buffer(1)]],
    device const float *norm [[buffer(2)]], device float *y [[buffer(3)]],
    constant oxb_gemv_args &args [[buffer(4)]], uint2 tile [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup coded_memory<Form, OXB_GEMV_SETS> memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const ulong vector = tile.y;
    gemv_coded_rows<Form, Format, false, true>(
        weight, x + vector * args.k, norm, y + vector * args.y_stride, args, tile.x, place, memory);
}

#endif
