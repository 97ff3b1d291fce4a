// The root mean square of a vector.
#ifndef OXB_RMS_H
#define OXB_RMS_H

// The square of a float can overflow or underflow where the float itself does not. So the squares
// are summed as they are, and where the sum is infinite, or so small that digits may be lost and
// eps does not hide it, once more with the numbers scaled by a power of two. It lifts the mean
// square of the smallest subnormals into the normal range, and eps not out of it. The factor that
// follows is of scaled numbers: x * scale * inverse, from the left, for scale * inverse may
// overflow.
#define OXB_SHRINK    8.271806125530277e-25f // 2^-80
#define OXB_GROW      9.903520314283042e27f  // 2^93
#define OXB_SMALL_SUM 8.077935669463161e-28f // 2^-90
#define OXB_SMALL_EPS 8.673617379884035e-19f // 2^-60

inline float sum_of_squares(device const float *x, uint n, float scale, uint first, uint step) {
    float total = 0.0f;
    for (uint i = first; i < n; i += step) {
        const float value = x[i] * scale;
        total = fma(value, value, total);
    }
    return total;
}

inline float scale_for(float total, float eps) {
    if (isinf(total)) return OXB_SHRINK;
    return total < OXB_SMALL_SUM && eps < OXB_SMALL_EPS ? OXB_GROW : 1.0f;
}

// 1 / sqrt(mean(x^2) + eps), divided by `scale`, for the sum `total` of the scaled squares.
inline float inverse_rms(float total, uint n, float scale, float eps) {
    return 1.0f / precise::sqrt(total / float(n) + eps * scale * scale);
}

#endif
