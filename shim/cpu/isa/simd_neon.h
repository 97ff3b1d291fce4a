/* Sixteen lanes in four registers of NEON. */
#ifndef CPU_SIMD_NEON_H
#define CPU_SIMD_NEON_H

#include <arm_neon.h>
#include <math.h>
#include <stdint.h>

#include "subsets.h"

#if !defined(SIMD_DOTPROD)
#define SIMD_TARGET
#elif defined(__clang__)
#define SIMD_TARGET __attribute__((target("dotprod")))
#else
#define SIMD_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define SIMD_INLINE         SIMD_TARGET static inline __attribute__((always_inline))
#define SIMD_STRIPS         1u /* strips of a panel that share each table as it is loaded */
#define SIMD_STRIPS_OF_TWO  1u /* the same where two vectors share the codes, and where four do */
#define SIMD_STRIPS_OF_FOUR 1u
#define SIMD_TRITS          0
#define SIMD_ROW            1u /* vectors of a row that attention sums in registers, for 4 heads */
#define SIMD_DELTA          2u /* vectors of a state that the delta rule sums in registers */

typedef struct lanes {
    float32x4_t v[4];
} lanes;
typedef struct words {
    uint32x4_t v[4];
} words;

#define EACH(type, expression)                                   \
    type result;                                                 \
    for (unsigned i = 0; i < 4; i++) result.v[i] = (expression); \
    return result

SIMD_INLINE lanes lanes_of(float value) { EACH(lanes, vdupq_n_f32(value)); }

SIMD_INLINE lanes lanes_zero(void) { return lanes_of(0); }

SIMD_INLINE lanes lanes_load(const float *from) { EACH(lanes, vld1q_f32(from + 4 * i)); }

SIMD_INLINE void lanes_store(float *to, lanes a) {
    for (unsigned i = 0; i < 4; i++) vst1q_f32(to + 4 * i, a.v[i]);
}

SIMD_INLINE lanes lanes_add(lanes a, lanes b) { EACH(lanes, vaddq_f32(a.v[i], b.v[i])); }

SIMD_INLINE lanes lanes_sub(lanes a, lanes b) { EACH(lanes, vsubq_f32(a.v[i], b.v[i])); }

SIMD_INLINE lanes lanes_mul(lanes a, lanes b) { EACH(lanes, vmulq_f32(a.v[i], b.v[i])); }

SIMD_INLINE lanes lanes_div(lanes a, lanes b) { EACH(lanes, vdivq_f32(a.v[i], b.v[i])); }

/* a * b + c, rounded once. */
SIMD_INLINE lanes lanes_fma(lanes a, lanes b, lanes c) {
    EACH(lanes, vfmaq_f32(c.v[i], a.v[i], b.v[i]));
}

/* Lane by lane a where a > b, else b: b where one is NaN. */
SIMD_INLINE lanes lanes_larger(lanes a, lanes b) {
    EACH(lanes, vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]));
}

SIMD_INLINE lanes lanes_smaller(lanes a, lanes b) {
    EACH(lanes, vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]));
}

/* 2^n for whole n from -126 to 127. */
SIMD_INLINE lanes lanes_power(lanes n) {
    EACH(lanes, vreinterpretq_f32_s32(
                    vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v[i]), vdupq_n_s32(127)), 23)));
}

SIMD_INLINE lanes lanes_of_halves(const uint16_t *from) {
    EACH(lanes, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i))));
}

SIMD_INLINE lanes lanes_of_half(uint16_t half) {
    const float32x4_t four = vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half)));
    EACH(lanes, four);
}

SIMD_INLINE void lanes_to_halves(uint16_t *to, lanes a) {
    for (unsigned i = 0; i < 4; i++)
        vst1_u16(to + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}

SIMD_INLINE lanes lanes_of_bf16(const uint16_t *from) {
    EACH(lanes, vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from + 4 * i), 16)));
}

SIMD_INLINE lanes lanes_of_bytes(const int8_t *from) {
    const int8x16_t bytes = vld1q_s8(from);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return (lanes){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
                    vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                    vcvtq_f32_s32(vmovl_high_s16(high))}};
}

/* And a half more where the lane's bit is set. */
SIMD_INLINE lanes lanes_of_bytes_and_bits(const int8_t *from, uint32_t bits) {
    static const uint32_t own[4] = {1, 2, 4, 8};
    const uint32x4_t half = vreinterpretq_u32_f32(vdupq_n_f32(0.5f));
    const lanes whole = lanes_of_bytes(from);
    EACH(lanes,
         vaddq_f32(whole.v[i], vreinterpretq_f32_u32(vandq_u32(
                                   half, vtstq_u32(vdupq_n_u32(bits >> 4 * i), vld1q_u32(own))))));
}

SIMD_INLINE lanes lanes_of_doubles(const double *from) {
    EACH(lanes,
         vcvt_high_f32_f64(vcvt_f32_f64(vld1q_f64(from + 4 * i)), vld1q_f64(from + 4 * i + 2)));
}

SIMD_INLINE float lanes_sum(lanes a) {
    const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

SIMD_INLINE void two_to_doubles(double *to, float64x2_t value, int add) {
    vst1q_f64(to, add ? vaddq_f64(value, vld1q_f64(to)) : value);
}

/* to = a, or to += a. */
SIMD_INLINE void lanes_to_doubles(double *to, lanes a, int add) {
    for (unsigned i = 0; i < 4; i++) {
        two_to_doubles(to + 4 * i, vcvt_f64_f32(vget_low_f32(a.v[i])), add);
        two_to_doubles(to + 4 * i + 2, vcvt_high_f64_f32(a.v[i]), add);
    }
}

SIMD_INLINE words words_load(const uint32_t *from) { EACH(words, vld1q_u32(from + 4 * i)); }

SIMD_INLINE words words_shift(words a, int bits) {
    EACH(words, vshlq_u32(a.v[i], vdupq_n_s32(-bits)));
}

SIMD_INLINE words words_shift_left(words a, int bits) {
    EACH(words, vshlq_u32(a.v[i], vdupq_n_s32(bits)));
}

SIMD_INLINE words words_of(uint32_t value) { EACH(words, vdupq_n_u32(value)); }

SIMD_INLINE void words_store(uint32_t *to, words a) {
    for (unsigned i = 0; i < 4; i++) vst1q_u32(to + 4 * i, a.v[i]);
}

SIMD_INLINE words words_and(words a, words b) { EACH(words, vandq_u32(a.v[i], b.v[i])); }

SIMD_INLINE words words_or(words a, words b) { EACH(words, vorrq_u32(a.v[i], b.v[i])); }

SIMD_INLINE words words_xor(words a, words b) { EACH(words, veorq_u32(a.v[i], b.v[i])); }

SIMD_INLINE words words_add(words a, words b) { EACH(words, vaddq_u32(a.v[i], b.v[i])); }

SIMD_INLINE int words_any(words a) {
    return vmaxvq_u32(vorrq_u32(vorrq_u32(a.v[0], a.v[1]), vorrq_u32(a.v[2], a.v[3]))) != 0;
}

/* Four words of 16 rows, from byte `at` of each: to[w] has word w of every row. */
SIMD_INLINE void words_of_rows(words to[4], const uint8_t *const row[16], uint64_t at) {
    for (unsigned i = 0; i < 4; i++) {
        uint32x4_t r[4];
        for (unsigned j = 0; j < 4; j++) r[j] = vreinterpretq_u32_u8(vld1q_u8(row[4 * i + j] + at));
        const uint32x4x2_t ab = vtrnq_u32(r[0], r[1]), cd = vtrnq_u32(r[2], r[3]);
        to[0].v[i] = vcombine_u32(vget_low_u32(ab.val[0]), vget_low_u32(cd.val[0]));
        to[1].v[i] = vcombine_u32(vget_low_u32(ab.val[1]), vget_low_u32(cd.val[1]));
        to[2].v[i] = vcombine_u32(vget_high_u32(ab.val[0]), vget_high_u32(cd.val[0]));
        to[3].v[i] = vcombine_u32(vget_high_u32(ab.val[1]), vget_high_u32(cd.val[1]));
    }
}

typedef struct table16 {
    uint8x16x4_t bytes;
} table16;

SIMD_INLINE table16 table16_load(const float *from) {
    return (table16){vld1q_u8_x4((const uint8_t *)(const void *)from)};
}

/* The four bytes of an entry are looked up one by one: 4 times the index, and 0 to 3. */
SIMD_INLINE float32x4_t four_of_16(table16 table, uint32x4_t index) {
    const uint32x4_t low = vandq_u32(index, vdupq_n_u32(15));
    const uint32x4_t bytes = vmlaq_u32(vdupq_n_u32(0x03020100), low, vdupq_n_u32(0x04040404));
    return vreinterpretq_f32_u8(vqtbl4q_u8(table.bytes, vreinterpretq_u8_u32(bytes)));
}

/* Of 16 entries, the one that the low 4 bits of each word name. */
SIMD_INLINE lanes table16_look_up(table16 table, words index) {
    EACH(lanes, four_of_16(table, index.v[i]));
}

/* NaN or infinite where one of them is: the bits of magnitudes are in the order of their values. */
SIMD_INLINE float lanes_largest_magnitude(lanes a) {
    uint32x4_t most = vdupq_n_u32(0);
    for (unsigned i = 0; i < 4; i++)
        most = vmaxq_u32(most, vreinterpretq_u32_f32(vabsq_f32(a.v[i])));
    return vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(vmaxvq_u32(most))), 0);
}

/* Whole numbers from -128 to 127. */
SIMD_INLINE void lanes_to_bytes(int8_t *to, lanes a) {
    const int16x8_t low = vqmovn_high_s32(vqmovn_s32(vcvtq_s32_f32(a.v[0])), vcvtq_s32_f32(a.v[1]));
    const int16x8_t high =
        vqmovn_high_s32(vqmovn_s32(vcvtq_s32_f32(a.v[2])), vcvtq_s32_f32(a.v[3]));
    vst1q_s8(to, vqmovn_high_s16(vqmovn_s16(low), high));
}

/* Sums of products of four bytes, codes up to 3 and activations, of a block. */
#define INT8_STRIPS 1u
#if defined(SIMD_DOTPROD)
#define INT8_VECTORS 4u
typedef struct dots {
    int32x4_t v[4];
} dots;

SIMD_INLINE dots dots_add(dots sum, words codes, words x) {
    EACH(dots, vdotq_s32(sum.v[i], vreinterpretq_s8_u32(codes.v[i]), vreinterpretq_s8_u32(x.v[0])));
}

SIMD_INLINE dots dots_of(words codes, words x) {
    const dots zero = {{vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}};
    return dots_add(zero, codes, x);
}

SIMD_INLINE lanes lanes_of_dots(dots sum) { EACH(lanes, vcvtq_f32_s32(sum.v[i])); }
#else
#define INT8_VECTORS 2u
typedef struct dots {
    int16x8_t low[4], high[4]; /* four of 16 bits a lane: up to 4 * 3 * 127 */
} dots;

SIMD_INLINE dots dots_of(words codes, words x) {
    dots result;
    const int8x16_t four = vreinterpretq_s8_u32(x.v[0]);
    for (unsigned i = 0; i < 4; i++) {
        const int8x16_t code = vreinterpretq_s8_u32(codes.v[i]);
        result.low[i] = vmull_s8(vget_low_s8(code), vget_low_s8(four));
        result.high[i] = vmull_high_s8(code, four);
    }
    return result;
}

SIMD_INLINE dots dots_add(dots sum, words codes, words x) {
    const int8x16_t four = vreinterpretq_s8_u32(x.v[0]);
    for (unsigned i = 0; i < 4; i++) {
        const int8x16_t code = vreinterpretq_s8_u32(codes.v[i]);
        sum.low[i] = vmlal_s8(sum.low[i], vget_low_s8(code), vget_low_s8(four));
        sum.high[i] = vmlal_high_s8(sum.high[i], code, four);
    }
    return sum;
}

SIMD_INLINE lanes lanes_of_dots(dots sum) {
    EACH(lanes, vcvtq_f32_s32(vpaddq_s32(vpaddlq_s16(sum.low[i]), vpaddlq_s16(sum.high[i]))));
}
#endif
#define INT8_SUMS (INT8_STRIPS * INT8_VECTORS)

SIMD_INLINE void simd_in_order(lanes *a, words *b) {
    (void)a;
    (void)b;
}

/* A bit for each lane of all ones. */
SIMD_INLINE uint32_t bits_of_masks(words masks) {
    const uint8x16_t weight = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint16x8_t low = vcombine_u16(vmovn_u32(masks.v[0]), vmovn_u32(masks.v[1]));
    const uint16x8_t high = vcombine_u16(vmovn_u32(masks.v[2]), vmovn_u32(masks.v[3]));
    const uint8x16_t bits = vandq_u8(vcombine_u8(vmovn_u16(low), vmovn_u16(high)), weight);
    return vaddv_u8(vget_low_u8(bits)) | (uint32_t)vaddv_u8(vget_high_u8(bits)) << 8;
}

SIMD_INLINE words masks_reach(lanes a, lanes b) { EACH(words, vcgeq_f32(a.v[i], b.v[i])); }

SIMD_INLINE words masks_up_to(words a, words b) {
    EACH(words, vcleq_s32(vreinterpretq_s32_u32(a.v[i]), vreinterpretq_s32_u32(b.v[i])));
}

/* Bit by bit whether a lane of a is at least that of b: not where one is NaN. */
SIMD_INLINE uint32_t lanes_reach(lanes a, lanes b) {
    const words masks = masks_reach(a, b);
    return words_any(masks) ? bits_of_masks(masks) : 0;
}

/* Bit by bit whether a <= b, both signed. */
SIMD_INLINE uint32_t words_up_to(words a, words b) {
    const words masks = masks_up_to(a, b);
    return words_any(masks) ? bits_of_masks(masks) : 0;
}

SIMD_INLINE float32x4_t keep_four(float32x4_t a, uint32_t bits) {
    const uint32x4_t bit = {1, 2, 4, 8};
    return vbslq_f32(vtstq_u32(vdupq_n_u32(bits), bit), a, vdupq_n_f32(-INFINITY));
}

/* The lanes whose bits are set, -inf in place of the others. */
SIMD_INLINE lanes lanes_keep(lanes a, uint32_t bits) {
    EACH(lanes, keep_four(a.v[i], bits >> 4 * i));
}

/* The lanes whose bits are set, in order, then anything up to 16 lanes. */
SIMD_INLINE void lanes_pack(float *to, lanes a, uint32_t bits) {
    for (unsigned i = 0; i < 4; i++, bits >>= 4) {
        const uint8x16_t bytes = vreinterpretq_u8_f32(a.v[i]);
        const uint8x16_t places = vld1q_u8(simd_subsets[bits & 15]);
        vst1q_f32(to, vreinterpretq_f32_u8(vqtbl1q_u8(bytes, places)));
        to += __builtin_popcount(bits & 15);
    }
}

SIMD_INLINE float lanes_largest(lanes a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3])));
}

/* Of four vectors of four fours each: lane 4 i + j of the new vector k is lane 4 i + k of the old
 * vector j. */
SIMD_INLINE void lanes_deal(lanes v[4]) {
    for (unsigned i = 0; i < 4; i++) {
        const float32x4x2_t ab = vtrnq_f32(v[0].v[i], v[1].v[i]);
        const float32x4x2_t cd = vtrnq_f32(v[2].v[i], v[3].v[i]);
        v[0].v[i] = vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0]));
        v[1].v[i] = vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1]));
        v[2].v[i] = vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0]));
        v[3].v[i] = vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1]));
    }
}

/* Of four vectors of four fours each: four i of the new vector k is four k of the old vector i. */
SIMD_INLINE void lanes_regroup(lanes v[4]) {
    for (unsigned i = 0; i < 4; i++)
        for (unsigned k = i + 1; k < 4; k++) {
            const float32x4_t four = v[i].v[k];
            v[i].v[k] = v[k].v[i];
            v[k].v[i] = four;
        }
}

/* Whole numbers towards 0, which must fit. */
SIMD_INLINE words words_of_whole(lanes a) {
    EACH(words, vreinterpretq_u32_s32(vcvtq_s32_f32(a.v[i])));
}

SIMD_INLINE lanes lanes_of_whole(words a) {
    EACH(lanes, vcvtq_f32_s32(vreinterpretq_s32_u32(a.v[i])));
}

SIMD_INLINE words words_of_bits(lanes a) { EACH(words, vreinterpretq_u32_f32(a.v[i])); }

SIMD_INLINE words words_sub(words a, words b) { EACH(words, vsubq_u32(a.v[i], b.v[i])); }

SIMD_INLINE words words_shift_by(words a, words bits) {
    EACH(words, vshlq_u32(a.v[i], vnegq_s32(vreinterpretq_s32_u32(bits.v[i]))));
}

SIMD_INLINE words words_shift_left_by(words a, words bits) {
    EACH(words, vshlq_u32(a.v[i], vreinterpretq_s32_u32(bits.v[i])));
}

/* Both words of a * b. */
SIMD_INLINE void words_product(words a, words b, words *high, words *low) {
    for (unsigned i = 0; i < 4; i++) {
        const uint64x2_t first = vmull_u32(vget_low_u32(a.v[i]), vget_low_u32(b.v[i]));
        const uint64x2_t second = vmull_high_u32(a.v[i], b.v[i]);
        low->v[i] = vuzp1q_u32(vreinterpretq_u32_u64(first), vreinterpretq_u32_u64(second));
        high->v[i] = vuzp2q_u32(vreinterpretq_u32_u64(first), vreinterpretq_u32_u64(second));
    }
}

#undef EACH
#endif
