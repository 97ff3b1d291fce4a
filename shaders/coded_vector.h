// A coded matrix times x, or times the RMSNorm of x, by any form (coded.h).
#ifndef OXB_CODED_VECTOR_H
#define OXB_CODED_VECTOR_H

// multiply_codes for x, or where NORM for its RMSNorm; returns the factor that the sums still lack.
// With a norm, the product and the squares of x are summed in one pass, and the factor is
// 1 / rms. Where the squares leave float's range (rms.h), a second pass multiplies by the
// normalised vector itself.
template <typename Format, uint MATRICES, uint ROWS, bool NORM, typename Form, uint SETS>
inline float multiply_vector(weight_bytes w, uint n_rows, uint first, device const float *x,
                             device const float *weight, float eps, thread_place place,
                             threadgroup coded_memory<Form, SETS> &memory) {
    coded_input input = {x, weight, 1.0f, 1.0f};
    multiply_codes<Format, MATRICES, ROWS, NORM>(w, n_rows, first, input, place, memory);
    if (!NORM) return 1.0f;
    float total = 0.0f;
    OXB_UNROLL
    for (uint split = 0; split < OXB_SPLITS; split++) total += memory.squares[split];
    const uint k = uint(w.k);
    input.scale = scale_for(total, eps);
    if (input.scale == 1.0f) return inverse_rms(total, k, 1.0f, eps);
    const uint n_threads = place.simdgroups * OXB_SIMD_WIDTH;
    total = threadgroup_sum(sum_of_squares(x, k, input.scale, index_of(place), n_threads),
                            memory.partial, place);
    input.inverse = inverse_rms(total, k, input.scale, eps);
    multiply_codes<Format, MATRICES, ROWS, NORM>(w, n_rows, first, input, place, memory);
    return 1.0f;
}

#endif
