/* Sixteen lanes in two registers of AVX2. */
#ifndef CPU_SIMD_AVX2_H
#define CPU_SIMD_AVX2_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "subsets.h"

#if defined(SIMD_VNNI)
#define SIMD_TARGET __attribute__((target("avx2,fma,f16c,avxvnni")))
#else
#define SIMD_TARGET __attribute__((target("avx2,fma,f16c")))
#endif
#define SIMD_INLINE         SIMD_TARGET static inline __attribute__((always_inline))
#define SIMD_STRIPS         2u /* strips of a panel that share each table as it is loaded */
#define SIMD_STRIPS_OF_TWO  2u /* the same where two vectors share the codes, and where four do */
#define SIMD_STRIPS_OF_FOUR 1u
#define SIMD_TRITS          0
#define SIMD_ROW            1u /* vectors of a row that attention sums in registers, for 4 heads */
#define SIMD_DELTA          2u /* vectors of a state that the delta rule sums in registers */

typedef struct lanes {
    __m256 low, high;
} lanes;
typedef struct words {
    __m256i low, high;
} words;

SIMD_INLINE lanes lanes_zero(void) { return (lanes){_mm256_setzero_ps(), _mm256_setzero_ps()}; }

SIMD_INLINE lanes lanes_load(const float *from) {
    return (lanes){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}

SIMD_INLINE void lanes_store(float *to, lanes a) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
}

SIMD_INLINE lanes lanes_of(float value) {
    const __m256 v = _mm256_set1_ps(value);
    return (lanes){v, v};
}

SIMD_INLINE lanes lanes_add(lanes a, lanes b) {
    return (lanes){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

SIMD_INLINE lanes lanes_mul(lanes a, lanes b) {
    return (lanes){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}

SIMD_INLINE lanes lanes_div(lanes a, lanes b) {
    return (lanes){_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}

SIMD_INLINE lanes lanes_sub(lanes a, lanes b) {
    return (lanes){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}

/* Lane by lane a where a > b, else b: b where one is NaN. */
SIMD_INLINE lanes lanes_larger(lanes a, lanes b) {
    return (lanes){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}

SIMD_INLINE lanes lanes_smaller(lanes a, lanes b) {
    return (lanes){_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}

SIMD_INLINE __m256 power_of_eight(__m256 n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

/* 2^n for whole n from -126 to 127. */
SIMD_INLINE lanes lanes_power(lanes n) {
    return (lanes){power_of_eight(n.low), power_of_eight(n.high)};
}

/* a * b + c, rounded once. */
SIMD_INLINE lanes lanes_fma(lanes a, lanes b, lanes c) {
    return (lanes){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

SIMD_INLINE lanes lanes_of_halves(const uint16_t *from) {
    const __m128i *half = (const __m128i *)(const void *)from;
    return (lanes){_mm256_cvtph_ps(_mm_loadu_si128(half)),
                   _mm256_cvtph_ps(_mm_loadu_si128(half + 1))};
}

SIMD_INLINE lanes lanes_of_half(uint16_t half) {
    const __m256 eight = _mm256_cvtph_ps(_mm_set1_epi16((short)half));
    return (lanes){eight, eight};
}

SIMD_INLINE __m256 eight_of_bf16(const uint16_t *from) {
    const __m128i half = _mm_loadu_si128((const __m128i *)(const void *)from);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

SIMD_INLINE lanes lanes_of_bf16(const uint16_t *from) {
    return (lanes){eight_of_bf16(from), eight_of_bf16(from + 8)};
}

SIMD_INLINE lanes lanes_of_bytes(const int8_t *from) {
    const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)from);
    return (lanes){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                   _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

SIMD_INLINE __m256 eight_and_bits(__m256 whole, uint32_t bits) {
    const __m256i own = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set =
        _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), own), own);
    return _mm256_add_ps(whole, _mm256_and_ps(_mm256_castsi256_ps(set), _mm256_set1_ps(0.5f)));
}

/* And a half more where the lane's bit is set. */
SIMD_INLINE lanes lanes_of_bytes_and_bits(const int8_t *from, uint32_t bits) {
    const lanes whole = lanes_of_bytes(from);
    return (lanes){eight_and_bits(whole.low, bits), eight_and_bits(whole.high, bits >> 8)};
}

SIMD_INLINE __m256 eight_of_doubles(const double *from) {
    return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(from + 4)),
                           _mm256_cvtpd_ps(_mm256_loadu_pd(from)));
}

SIMD_INLINE lanes lanes_of_doubles(const double *from) {
    return (lanes){eight_of_doubles(from), eight_of_doubles(from + 8)};
}

SIMD_INLINE void lanes_to_halves(uint16_t *to, lanes a) {
    __m128i *half = (__m128i *)(void *)to;
    _mm_storeu_si128(half, _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(half + 1, _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT));
}

SIMD_INLINE float lanes_sum(lanes a) {
    __m256 eight = _mm256_add_ps(a.low, a.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

SIMD_INLINE void four_to_doubles(double *to, __m128 a, int add) {
    __m256d value = _mm256_cvtps_pd(a);
    if (add) value = _mm256_add_pd(value, _mm256_loadu_pd(to));
    _mm256_storeu_pd(to, value);
}

/* to = a, or to += a. */
SIMD_INLINE void lanes_to_doubles(double *to, lanes a, int add) {
    four_to_doubles(to, _mm256_castps256_ps128(a.low), add);
    four_to_doubles(to + 4, _mm256_extractf128_ps(a.low, 1), add);
    four_to_doubles(to + 8, _mm256_castps256_ps128(a.high), add);
    four_to_doubles(to + 12, _mm256_extractf128_ps(a.high, 1), add);
}

SIMD_INLINE words words_load(const uint32_t *from) {
    const __m256i *word = (const __m256i *)(const void *)from;
    return (words){_mm256_loadu_si256(word), _mm256_loadu_si256(word + 1)};
}

SIMD_INLINE words words_shift(words a, int bits) {
    return (words){_mm256_srli_epi32(a.low, bits), _mm256_srli_epi32(a.high, bits)};
}

SIMD_INLINE words words_shift_left(words a, int bits) {
    return (words){_mm256_slli_epi32(a.low, bits), _mm256_slli_epi32(a.high, bits)};
}

SIMD_INLINE words words_of(uint32_t value) {
    const __m256i v = _mm256_set1_epi32((int)value);
    return (words){v, v};
}

SIMD_INLINE void words_store(uint32_t *to, words a) {
    __m256i *word = (__m256i *)(void *)to;
    _mm256_storeu_si256(word, a.low);
    _mm256_storeu_si256(word + 1, a.high);
}

SIMD_INLINE words words_and(words a, words b) {
    return (words){_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}

SIMD_INLINE words words_or(words a, words b) {
    return (words){_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}

SIMD_INLINE words words_xor(words a, words b) {
    return (words){_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)};
}

SIMD_INLINE words words_add(words a, words b) {
    return (words){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}

SIMD_INLINE int words_any(words a) {
    const __m256i both = _mm256_or_si256(a.low, a.high);
    return !_mm256_testz_si256(both, both);
}

/* The same 16 bytes of two rows that are four apart. */
SIMD_INLINE __m256i two_rows(const uint8_t *const *row, uint64_t at) {
    return _mm256_set_m128i(_mm_loadu_si128((const __m128i *)(const void *)(row[4] + at)),
                            _mm_loadu_si128((const __m128i *)(const void *)(row[0] + at)));
}

SIMD_INLINE void words_of_eight_rows(__m256i to[4], const uint8_t *const *row, uint64_t at) {
    const __m256i a = two_rows(row, at), b = two_rows(row + 1, at);
    const __m256i c = two_rows(row + 2, at), d = two_rows(row + 3, at);
    const __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    const __m256i ab_high = _mm256_unpackhi_epi32(a, b), cd_high = _mm256_unpackhi_epi32(c, d);
    to[0] = _mm256_unpacklo_epi64(ab, cd);
    to[1] = _mm256_unpackhi_epi64(ab, cd);
    to[2] = _mm256_unpacklo_epi64(ab_high, cd_high);
    to[3] = _mm256_unpackhi_epi64(ab_high, cd_high);
}

/* Four words of 16 rows, from byte `at` of each: to[w] has word w of every row. */
SIMD_INLINE void words_of_rows(words to[4], const uint8_t *const row[16], uint64_t at) {
    __m256i low[4], high[4];
    words_of_eight_rows(low, row, at);
    words_of_eight_rows(high, row + 8, at);
    for (unsigned w = 0; w < 4; w++) to[w] = (words){low[w], high[w]};
}

typedef struct table16 {
    __m256 low, high;
} table16;

SIMD_INLINE table16 table16_load(const float *from) {
    return (table16){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}

SIMD_INLINE __m256 eight_of_16(table16 table, __m256i index) {
    const __m256 low = _mm256_permutevar8x32_ps(table.low, index);
    const __m256 high = _mm256_permutevar8x32_ps(table.high, index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

/* Of 16 entries, the one that the low 4 bits of each word name. */
SIMD_INLINE lanes table16_look_up(table16 table, words index) {
    return (lanes){eight_of_16(table, index.low), eight_of_16(table, index.high)};
}

/* NaN or infinite where one of them is: the bits of magnitudes are in the order of their values. */
SIMD_INLINE float lanes_largest_magnitude(lanes a) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    const __m256i eight =
        _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(a.low), magnitude),
                         _mm256_and_si256(_mm256_castps_si256(a.high), magnitude));
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1))));
}

/* Whole numbers from -128 to 127. */
SIMD_INLINE void lanes_to_bytes(int8_t *to, lanes a) {
    const __m256i halves =
        _mm256_packs_epi32(_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high));
    const __m256i ordered = _mm256_permute4x64_epi64(halves, 0xd8);
    _mm_storeu_si128((__m128i *)(void *)to, _mm_packs_epi16(_mm256_castsi256_si128(ordered),
                                                            _mm256_extracti128_si256(ordered, 1)));
}

/* Sums of products of four unsigned bytes, up to 3, and four signed ones, of a block. */
#define INT8_STRIPS  1u
#define INT8_VECTORS 4u
#define INT8_SUMS    (INT8_STRIPS * INT8_VECTORS)

typedef struct dots {
    __m256i low, high;
} dots;

#if defined(SIMD_VNNI)
SIMD_INLINE dots dots_add(dots sum, words codes, words x) {
    return (dots){_mm256_dpbusd_avx_epi32(sum.low, codes.low, x.low),
                  _mm256_dpbusd_avx_epi32(sum.high, codes.high, x.low)};
}

SIMD_INLINE dots dots_of(words codes, words x) {
    const dots zero = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    return dots_add(zero, codes, x);
}

SIMD_INLINE lanes lanes_of_dots(dots sum) {
    return (lanes){_mm256_cvtepi32_ps(sum.low), _mm256_cvtepi32_ps(sum.high)};
}
#else
/* Two of 16 bits a lane: up to 4 * 2 * 3 * 127. */
SIMD_INLINE dots dots_of(words codes, words x) {
    return (dots){_mm256_maddubs_epi16(codes.low, x.low), _mm256_maddubs_epi16(codes.high, x.low)};
}

SIMD_INLINE dots dots_add(dots sum, words codes, words x) {
    const dots next = dots_of(codes, x);
    return (dots){_mm256_add_epi16(sum.low, next.low), _mm256_add_epi16(sum.high, next.high)};
}

SIMD_INLINE lanes lanes_of_dots(dots sum) {
    const __m256i one = _mm256_set1_epi16(1);
    return (lanes){_mm256_cvtepi32_ps(_mm256_madd_epi16(sum.low, one)),
                   _mm256_cvtepi32_ps(_mm256_madd_epi16(sum.high, one))};
}
#endif

/* GCC would start every look-up of a word first and keep the results in memory. */
SIMD_INLINE void simd_in_order(lanes *a, words *b) {
#if defined(__GNUC__) && !defined(__clang__)
    __asm__("" : "+x"(a->low), "+x"(a->high), "+x"(b->low), "+x"(b->high));
#else
    (void)a;
    (void)b;
#endif
}

SIMD_INLINE uint32_t bits_of_masks(__m256 low, __m256 high) {
    return (uint32_t)_mm256_movemask_ps(low) | (uint32_t)_mm256_movemask_ps(high) << 8;
}

/* Bit by bit whether a lane of a is at least that of b: not where one is NaN. */
SIMD_INLINE uint32_t lanes_reach(lanes a, lanes b) {
    return bits_of_masks(_mm256_cmp_ps(a.low, b.low, _CMP_GE_OQ),
                         _mm256_cmp_ps(a.high, b.high, _CMP_GE_OQ));
}

/* Bit by bit whether a <= b, both signed. */
SIMD_INLINE uint32_t words_up_to(words a, words b) {
    return 0xffff ^ bits_of_masks(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.low, b.low)),
                                  _mm256_castsi256_ps(_mm256_cmpgt_epi32(a.high, b.high)));
}

SIMD_INLINE __m256 keep_eight(__m256 a, uint32_t bits) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32((int)bits), bit);
    const __m256 mask = _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit));
    return _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), a, mask);
}

/* The lanes whose bits are set, -inf in place of the others. */
SIMD_INLINE lanes lanes_keep(lanes a, uint32_t bits) {
    return (lanes){keep_eight(a.low, bits), keep_eight(a.high, bits >> 8)};
}

SIMD_INLINE float *pack_four(float *to, __m128 a, uint32_t bits) {
    const __m128i places = _mm_loadu_si128((const __m128i *)(const void *)simd_subsets[bits & 15]);
    _mm_storeu_ps(to, _mm_castsi128_ps(_mm_shuffle_epi8(_mm_castps_si128(a), places)));
    return to + __builtin_popcount(bits & 15);
}

/* The lanes whose bits are set, in order, then anything up to 16 lanes. */
SIMD_INLINE void lanes_pack(float *to, lanes a, uint32_t bits) {
    to = pack_four(to, _mm256_castps256_ps128(a.low), bits);
    to = pack_four(to, _mm256_extractf128_ps(a.low, 1), bits >> 4);
    to = pack_four(to, _mm256_castps256_ps128(a.high), bits >> 8);
    pack_four(to, _mm256_extractf128_ps(a.high, 1), bits >> 12);
}

SIMD_INLINE float lanes_largest(lanes a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

SIMD_INLINE void deal_eight(__m256 *a, __m256 *b, __m256 *c, __m256 *d) {
    const __m256d ab = _mm256_castps_pd(_mm256_unpacklo_ps(*a, *b));
    const __m256d cd = _mm256_castps_pd(_mm256_unpacklo_ps(*c, *d));
    const __m256d ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(*a, *b));
    const __m256d cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(*c, *d));
    *a = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
    *b = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
    *c = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high));
    *d = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high));
}

/* Of four vectors of four fours each: lane 4 i + j of the new vector k is lane 4 i + k of the old
 * vector j. */
SIMD_INLINE void lanes_deal(lanes v[4]) {
    deal_eight(&v[0].low, &v[1].low, &v[2].low, &v[3].low);
    deal_eight(&v[0].high, &v[1].high, &v[2].high, &v[3].high);
}

/* Of four vectors of four fours each: four i of the new vector k is four k of the old vector i. */
SIMD_INLINE void lanes_regroup(lanes v[4]) {
    const lanes a = v[0], b = v[1], c = v[2], d = v[3];
    v[0] = (lanes){_mm256_permute2f128_ps(a.low, b.low, 0x20),
                   _mm256_permute2f128_ps(c.low, d.low, 0x20)};
    v[1] = (lanes){_mm256_permute2f128_ps(a.low, b.low, 0x31),
                   _mm256_permute2f128_ps(c.low, d.low, 0x31)};
    v[2] = (lanes){_mm256_permute2f128_ps(a.high, b.high, 0x20),
                   _mm256_permute2f128_ps(c.high, d.high, 0x20)};
    v[3] = (lanes){_mm256_permute2f128_ps(a.high, b.high, 0x31),
                   _mm256_permute2f128_ps(c.high, d.high, 0x31)};
}

/* Whole numbers towards 0, which must fit. */
SIMD_INLINE words words_of_whole(lanes a) {
    return (words){_mm256_cvttps_epi32(a.low), _mm256_cvttps_epi32(a.high)};
}

SIMD_INLINE lanes lanes_of_whole(words a) {
    return (lanes){_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)};
}

SIMD_INLINE words words_of_bits(lanes a) {
    return (words){_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)};
}

SIMD_INLINE words words_sub(words a, words b) {
    return (words){_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}

SIMD_INLINE words words_shift_by(words a, words bits) {
    return (words){_mm256_srlv_epi32(a.low, bits.low), _mm256_srlv_epi32(a.high, bits.high)};
}

SIMD_INLINE words words_shift_left_by(words a, words bits) {
    return (words){_mm256_sllv_epi32(a.low, bits.low), _mm256_sllv_epi32(a.high, bits.high)};
}

SIMD_INLINE void product_of_eight(__m256i a, __m256i b, __m256i *high, __m256i *low) {
    const __m256i even = _mm256_mul_epu32(a, b);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}

/* Both words of a * b. */
SIMD_INLINE void words_product(words a, words b, words *high, words *low) {
    product_of_eight(a.low, b.low, &high->low, &low->low);
    product_of_eight(a.high, b.high, &high->high, &low->high);
}

#endif
