// RMSNorm and RoPE of a head of q or k by one SIMD-group.
#ifndef OXB_HEADS_H
#define OXB_HEADS_H

#include "rms.h"

// What is done with a head of q or k.
struct head_form {
    uint head_dim;
    uint rotary_dim;  // elements that are rotated, the first of the head
    uint step, apart; // pair i is elements step * i and step * i + apart
    bool has_norm;
    float eps;
};

template <typename Args>
inline head_form form_of(constant Args &args, uint head_dim) {
    head_form form;
    form.head_dim = head_dim;
    form.rotary_dim = args.rotary_dim;
    form.step = args.interleaved != 0u ? 2u : 1u;
    form.apart = args.interleaved != 0u ? 1u : args.rotary_dim / 2u;
    form.has_norm = args.has_norm != 0u;
    form.eps = args.eps;
    return form;
}

// The squares of the elements that this lane rotates or copies.
inline float squares_of_lane(device const float *head, head_form form, float scale, uint lane) {
    const uint end = form.rotary_dim / 2u * form.step; // past every pair's first element
    const uint first = lane * form.step, step = OXB_SIMD_WIDTH * form.step;
    const float pairs = sum_of_squares(head, end, scale, first, step) +
                        sum_of_squares(head + form.apart, end, scale, first, step);
    return pairs + sum_of_squares(head + form.rotary_dim, form.head_dim - form.rotary_dim, scale,
                                  lane, OXB_SIMD_WIDTH);
}

// RMSNorm of a head where it has one, then RoPE, to elements T in device or threadgroup memory.
// `from` and `to` may be the same: a lane reads only the elements that it writes.
template <typename T, typename To>
inline void norm_and_rotate(device const float *from, device const float *weight,
                            device const float *cosine, To to, head_form form, uint lane) {
    float scale = 1.0f, inverse = 1.0f;
    if (form.has_norm) {
        float total = simd_sum(squares_of_lane(from, form, 1.0f, lane));
        scale = scale_for(total, form.eps);
        if (scale != 1.0f) total = simd_sum(squares_of_lane(from, form, scale, lane));
        inverse = inverse_rms(total, form.head_dim, scale, form.eps);
    }
    const uint pairs = form.rotary_dim / 2u;
    device const float *sine = cosine + pairs;
    for (uint i = lane; i < pairs; i += OXB_SIMD_WIDTH) {
        const uint low = form.step * i, high = low + form.apart;
        const float a = form.has_norm ? from[low] * scale * inverse * weight[low] : from[low];
        const float b = form.has_norm ? from[high] * scale * inverse * weight[high] : from[high];
        to[low] = T(a * cosine[i] - b * sine[i]);
        to[high] = T(b * cosine[i] + a * sine[i]);
    }
    for (uint i = form.rotary_dim + lane; i < form.head_dim; i += OXB_SIMD_WIDTH)
        to[i] = T(form.has_norm ? from[i] * scale * inverse * weight[i] : from[i]);
}

#endif
