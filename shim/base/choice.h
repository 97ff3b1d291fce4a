/* The integer arithmetic of a choice among logits, for C11, MSL and NVRTC: the same bits on every
 * device. Distances are in units of 2^-20 in log2 of the probability. */
#ifndef BASE_CHOICE_H
#define BASE_CHOICE_H

#include "oxb_args.h"

#if defined(__METAL_VERSION__) || defined(__CUDACC_RTC__)
typedef long oxb_i64;
#else
typedef int64_t oxb_i64;
#endif

/* The high word of a * b. */
static inline oxb_u32 choice_high(oxb_u32 a, oxb_u32 b) {
    return (oxb_u32)(((oxb_u64)a * b) >> 32);
}

/* Whether the settings change any logit. Where they do not, the logits are read in place of the
 * adjusted ones. */
static inline int choice_adjusts(struct oxb_sampling s, oxb_u32 n_masks, oxb_u32 n_biases) {
    return s.mask < n_masks || (s.n_biases != 0 && s.first_bias < n_biases) || s.window != 0;
}

/* How far w is below the largest logit m, at most 2^30. */
static inline oxb_u32 choice_distance(oxb_f32 m, oxb_f32 w, oxb_f32 scale) {
    const oxb_f32 u = (m - w) * scale;
    return u < 1073741824.0f ? (oxb_u32)u : 1u << 30;
}

/* 2^31 * 2^(-u / 2^20) within 3; 0 from 32 * 2^20 on. With x the fraction of u / 2^20, 2^-x =
 * 1 - x P(x), the polynomial interpolated at Chebyshev's nodes, all in 2^-32. */
static inline oxb_u32 choice_probability(oxb_u32 u) {
    if (u >= 32u << 20) return 0;
    const oxb_u32 x = u << 12, shift = u >> 20;
    oxb_u32 sum = 639488u - choice_high(48550u, x);
    sum = 5712048u - choice_high(sum, x);
    sum = 41304489u - choice_high(sum, x);
    sum = 238387495u - choice_high(sum, x);
    sum = 1031764939u - choice_high(sum, x);
    sum = 2977044471u - choice_high(sum, x);
    return ((1u << 31) - choice_high(sum, x) / 2 + (1u << shift) / 2) >> shift;
}

/* log2(x / 2^63) + 63 in units of 2^-32, within 2^-28, for x > 0. */
static inline oxb_u64 choice_log2(oxb_u64 x) {
    oxb_u32 exponent = 63;
    for (oxb_u32 step = 32; step > 0; step >>= 1) {
        if (x >> (64 - step) == 0) {
            x <<= step;
            exponent -= step;
        }
    }
    /* log2(m / c) = 2 / ln 2 * atanh((m - c) / (m + c)), c = sqrt(2) * 2^31; the series of atanh
     * by z in units of 2^-32, |z| < 0.172. */
    const oxb_u64 m = x >> 32, c = 3037000500u;
    const int below = m < c;
    const oxb_u64 z = ((below ? c - m : m - c) << 32) / (m + c);
    const oxb_u64 square = z * z >> 32;
    oxb_u64 sum = 0;
    for (oxb_u32 k = 13; k >= 3; k -= 2) sum = (sum + ((oxb_u64)1 << 32) / k) * square >> 32;
    sum = z + (sum * z >> 32);
    sum = (sum * 3098164009u) >> 30; /* 2 / ln 2 in 2^-30 */
    const oxb_u64 middle = ((oxb_u64)exponent << 32) + ((oxb_u64)1 << 31);
    return below ? middle - sum : middle + sum;
}

/* log2(-log2(1 - (r + 1/2) / 2^32)) in units of 2^-20, within 2^-19. */
static inline int choice_gumbel(oxb_u32 r) {
    const oxb_u64 y = 2 * (oxb_u64)r + 1; /* in 2^-33 */
    oxb_u64 negated;                      /* -log2(1 - y) */
    oxb_i64 unit;                         /* log2 of its unit, in 2^-32 */
    if (y < (oxb_u64)1 << 27) {
        /* ln 2 times it: y + y^2 / 2 + y^3 / 3 + y^4 / 4, in 2^-62; y < 2^-6 */
        const oxb_u64 y2 = y * y >> 4; /* 2^-62 */
        const oxb_u64 y3 = (y2 >> 24) * y >> 9;
        const oxb_u64 y4 = (y3 >> 24) * y >> 9;
        negated = (y << 29) + y2 / 2 + y3 / 3 + y4 / 4;
        unit = 2271034279 - ((oxb_i64)62 << 32); /* log2(1 / ln 2) - 62 */
    } else {
        negated = ((oxb_u64)33 << 32) - choice_log2(((oxb_u64)1 << 33) - y);
        unit = -((oxb_i64)32 << 32);
    }
    /* rounded down; a shift of a negative number is not defined */
    return (int)(((oxb_i64)choice_log2(negated) + unit + ((oxb_i64)64 << 32)) >> 12) - (64 << 20);
}

struct choice_words {
    oxb_u32 word[4];
};

/* Philox4x32-10. */
static inline struct choice_words choice_philox(oxb_u32 c0, oxb_u32 c1, oxb_u32 c2, oxb_u32 c3,
                                                oxb_u32 k0, oxb_u32 k1) {
    for (oxb_u32 round = 0; round < 10; round++) {
        const oxb_u32 h0 = choice_high(0xd2511f53u, c0), l0 = 0xd2511f53u * c0;
        const oxb_u32 h1 = choice_high(0xcd9e8d57u, c2), l1 = 0xcd9e8d57u * c2;
        c0 = h1 ^ c1 ^ k0;
        c1 = l1;
        c2 = h0 ^ c3 ^ k1;
        c3 = l0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    struct choice_words words = {{c0, c1, c2, c3}};
    return words;
}

#endif
