/* Sixteen lanes in one register of AVX-512. */
#ifndef CPU_SIMD_AVX512_H
#define CPU_SIMD_AVX512_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#if defined(SIMD_VNNI)
#define SIMD_TARGET \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#else
#define SIMD_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#endif
#define SIMD_INLINE         SIMD_TARGET static inline __attribute__((always_inline))
#define SIMD_STRIPS         4u /* strips of a panel that share each table as it is loaded */
#define SIMD_STRIPS_OF_TWO  4u /* the same where two vectors share the codes, and where four do */
#define SIMD_STRIPS_OF_FOUR 4u
#define SIMD_TRITS          1
#define SIMD_ROW            4u /* vectors of a row that attention sums in registers, for 4 heads */
#define SIMD_DELTA          8u /* vectors of a state that the delta rule sums in registers */

typedef __m512 lanes;
typedef __m512i words;

SIMD_INLINE lanes lanes_zero(void) { return _mm512_setzero_ps(); }

SIMD_INLINE lanes lanes_load(const float *from) { return _mm512_loadu_ps(from); }

SIMD_INLINE void lanes_store(float *to, lanes a) { _mm512_storeu_ps(to, a); }

SIMD_INLINE lanes lanes_of(float value) { return _mm512_set1_ps(value); }

SIMD_INLINE lanes lanes_add(lanes a, lanes b) { return _mm512_add_ps(a, b); }

SIMD_INLINE lanes lanes_mul(lanes a, lanes b) { return _mm512_mul_ps(a, b); }

SIMD_INLINE lanes lanes_div(lanes a, lanes b) { return _mm512_div_ps(a, b); }

SIMD_INLINE lanes lanes_sub(lanes a, lanes b) { return _mm512_sub_ps(a, b); }

/* Lane by lane a where a > b, else b: b where one is NaN. */
SIMD_INLINE lanes lanes_larger(lanes a, lanes b) { return _mm512_max_ps(a, b); }

SIMD_INLINE lanes lanes_smaller(lanes a, lanes b) { return _mm512_min_ps(a, b); }

/* 2^n for whole n from -126 to 127. */
SIMD_INLINE lanes lanes_power(lanes n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}

/* a * b + c, rounded once. */
SIMD_INLINE lanes lanes_fma(lanes a, lanes b, lanes c) { return _mm512_fmadd_ps(a, b, c); }

SIMD_INLINE lanes lanes_of_halves(const uint16_t *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

SIMD_INLINE lanes lanes_of_half(uint16_t half) {
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)half));
}

SIMD_INLINE lanes lanes_of_bf16(const uint16_t *from) {
    const __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

SIMD_INLINE lanes lanes_of_bytes(const int8_t *from) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)from)));
}

/* And a half more where the lane's bit is set. */
SIMD_INLINE lanes lanes_of_bytes_and_bits(const int8_t *from, uint32_t bits) {
    const __m512 whole = lanes_of_bytes(from);
    return _mm512_mask_add_ps(whole, (__mmask16)bits, whole, _mm512_set1_ps(0.5f));
}

SIMD_INLINE lanes lanes_of_doubles(const double *from) {
    const __m256 low = _mm512_cvtpd_ps(_mm512_loadu_pd(from));
    const __m256 high = _mm512_cvtpd_ps(_mm512_loadu_pd(from + 8));
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

SIMD_INLINE void lanes_to_halves(uint16_t *to, lanes a) {
    _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

SIMD_INLINE float lanes_sum(lanes a) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* to = a, or to += a. */
SIMD_INLINE void lanes_to_doubles(double *to, lanes a, int add) {
    __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
    __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
    if (add) {
        low = _mm512_add_pd(low, _mm512_loadu_pd(to));
        high = _mm512_add_pd(high, _mm512_loadu_pd(to + 8));
    }
    _mm512_storeu_pd(to, low);
    _mm512_storeu_pd(to + 8, high);
}

SIMD_INLINE words words_load(const uint32_t *from) { return _mm512_loadu_si512(from); }

SIMD_INLINE words words_shift(words a, unsigned bits) { return _mm512_srli_epi32(a, bits); }

SIMD_INLINE words words_shift_left(words a, unsigned bits) { return _mm512_slli_epi32(a, bits); }

SIMD_INLINE words words_of(uint32_t value) { return _mm512_set1_epi32((int)value); }

SIMD_INLINE void words_store(uint32_t *to, words a) { _mm512_storeu_si512(to, a); }

SIMD_INLINE words words_and(words a, words b) { return _mm512_and_si512(a, b); }

SIMD_INLINE words words_or(words a, words b) { return _mm512_or_si512(a, b); }

SIMD_INLINE words words_xor(words a, words b) { return _mm512_xor_si512(a, b); }

SIMD_INLINE words words_add(words a, words b) { return _mm512_add_epi32(a, b); }

SIMD_INLINE int words_any(words a) { return _mm512_test_epi32_mask(a, a) != 0; }

/* The same 16 bytes of four rows that are four apart. */
SIMD_INLINE __m512i four_rows(const uint8_t *const *row, uint64_t at) {
    __m512i all =
        _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)(row[0] + at)));
    all = _mm512_inserti32x4(all, _mm_loadu_si128((const __m128i *)(const void *)(row[4] + at)), 1);
    all = _mm512_inserti32x4(all, _mm_loadu_si128((const __m128i *)(const void *)(row[8] + at)), 2);
    return _mm512_inserti32x4(all, _mm_loadu_si128((const __m128i *)(const void *)(row[12] + at)),
                              3);
}

/* Four words of 16 rows, from byte `at` of each: to[w] has word w of every row. */
SIMD_INLINE void words_of_rows(words to[4], const uint8_t *const row[16], uint64_t at) {
    const __m512i a = four_rows(row, at), b = four_rows(row + 1, at);
    const __m512i c = four_rows(row + 2, at), d = four_rows(row + 3, at);
    const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    const __m512i ab_high = _mm512_unpackhi_epi32(a, b), cd_high = _mm512_unpackhi_epi32(c, d);
    to[0] = _mm512_unpacklo_epi64(ab, cd);
    to[1] = _mm512_unpackhi_epi64(ab, cd);
    to[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
    to[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
}

typedef struct table16 {
    __m512 entry;
} table16;

SIMD_INLINE table16 table16_load(const float *from) { return (table16){_mm512_loadu_ps(from)}; }

/* Of 16 entries, the one that the low 4 bits of each word name. */
SIMD_INLINE lanes table16_look_up(table16 table, words index) {
    return _mm512_permutexvar_ps(index, table.entry);
}

/* -1 where the top bit is set, else 1. */
SIMD_INLINE lanes lanes_of_signs(words a) {
    const __m512i one = _mm512_castps_si512(_mm512_set1_ps(1));
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(one, a, _mm512_set1_epi32(INT32_MIN), 0xf8));
}

/* The next field of trits comes down, and its sign to the top. */
SIMD_INLINE words words_next_trits(words a) { return _mm512_ror_epi32(a, 5); }

/* Lane by lane a where the top bit of `by` is set, else b. */
SIMD_INLINE words words_select(words by, words a, words b) {
    return _mm512_mask_mov_epi32(b, _mm512_movepi32_mask(by), a);
}

SIMD_INLINE words words_of_lanes(lanes a) { return _mm512_castps_si512(a); }

/* NaN or infinite where one of them is: the bits of magnitudes are in the order of their values. */
SIMD_INLINE float lanes_largest_magnitude(lanes a) {
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff));
    const __m256i eight =
        _mm256_max_epi32(_mm512_castsi512_si256(bits), _mm512_extracti64x4_epi64(bits, 1));
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1))));
}

/* Whole numbers from -128 to 127. */
SIMD_INLINE void lanes_to_bytes(int8_t *to, lanes a) {
    _mm_storeu_si128((__m128i *)(void *)to, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}

/* Sums of products of four unsigned bytes, up to 3, and four signed ones, of a block. */
#define INT8_STRIPS 2u
#if defined(SIMD_VNNI)
#define INT8_VECTORS 6u
typedef __m512i dots;

SIMD_INLINE dots dots_of(words codes, words x) {
    return _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, x);
}

SIMD_INLINE dots dots_add(dots sum, words codes, words x) {
    return _mm512_dpbusd_epi32(sum, codes, x);
}

SIMD_INLINE lanes lanes_of_dots(dots sum) { return _mm512_cvtepi32_ps(sum); }
#else
#define INT8_VECTORS 4u
typedef __m512i dots; /* two of 16 bits a lane: up to 4 * 2 * 3 * 127 */

SIMD_INLINE dots dots_of(words codes, words x) { return _mm512_maddubs_epi16(codes, x); }

SIMD_INLINE dots dots_add(dots sum, words codes, words x) {
    return _mm512_add_epi16(sum, _mm512_maddubs_epi16(codes, x));
}

SIMD_INLINE lanes lanes_of_dots(dots sum) {
    return _mm512_cvtepi32_ps(_mm512_madd_epi16(sum, _mm512_set1_epi16(1)));
}
#endif
#define INT8_SUMS (INT8_STRIPS * INT8_VECTORS)

/* GCC would start every look-up of a word first and keep the results in memory. */
SIMD_INLINE void simd_in_order(lanes *a, words *b) {
#if defined(__GNUC__) && !defined(__clang__)
    __asm__("" : "+v"(*a), "+v"(*b));
#else
    (void)a;
    (void)b;
#endif
}

/* Bit by bit whether a lane of a is at least that of b: not where one is NaN. */
SIMD_INLINE uint32_t lanes_reach(lanes a, lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }

/* Bit by bit whether a <= b, both signed. */
SIMD_INLINE uint32_t words_up_to(words a, words b) { return _mm512_cmple_epi32_mask(a, b); }

/* The lanes whose bits are set, -inf in place of the others. */
SIMD_INLINE lanes lanes_keep(lanes a, uint32_t bits) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), (__mmask16)bits, a);
}

/* The lanes whose bits are set, in order, then anything up to 16 lanes. */
SIMD_INLINE void lanes_pack(float *to, lanes a, uint32_t bits) {
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps((__mmask16)bits, a));
}

SIMD_INLINE float lanes_largest(lanes a) { return _mm512_reduce_max_ps(a); }

/* Of four vectors of four fours each: lane 4 i + j of the new vector k is lane 4 i + k of the old
 * vector j. */
SIMD_INLINE void lanes_deal(lanes v[4]) {
    const __m512i a = _mm512_castps_si512(_mm512_unpacklo_ps(v[0], v[1]));
    const __m512i b = _mm512_castps_si512(_mm512_unpacklo_ps(v[2], v[3]));
    const __m512i c = _mm512_castps_si512(_mm512_unpackhi_ps(v[0], v[1]));
    const __m512i d = _mm512_castps_si512(_mm512_unpackhi_ps(v[2], v[3]));
    v[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi64(a, b));
    v[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi64(a, b));
    v[2] = _mm512_castsi512_ps(_mm512_unpacklo_epi64(c, d));
    v[3] = _mm512_castsi512_ps(_mm512_unpackhi_epi64(c, d));
}

/* Of four vectors of four fours each: four i of the new vector k is four k of the old vector i. */
SIMD_INLINE void lanes_regroup(lanes v[4]) {
    const __m512 a = _mm512_shuffle_f32x4(v[0], v[1], 0x44);
    const __m512 b = _mm512_shuffle_f32x4(v[0], v[1], 0xee);
    const __m512 c = _mm512_shuffle_f32x4(v[2], v[3], 0x44);
    const __m512 d = _mm512_shuffle_f32x4(v[2], v[3], 0xee);
    v[0] = _mm512_shuffle_f32x4(a, c, 0x88);
    v[1] = _mm512_shuffle_f32x4(a, c, 0xdd);
    v[2] = _mm512_shuffle_f32x4(b, d, 0x88);
    v[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
}

/* Whole numbers towards 0, which must fit. */
SIMD_INLINE words words_of_whole(lanes a) { return _mm512_cvttps_epi32(a); }

SIMD_INLINE lanes lanes_of_whole(words a) { return _mm512_cvtepi32_ps(a); }

SIMD_INLINE words words_of_bits(lanes a) { return _mm512_castps_si512(a); }

SIMD_INLINE words words_sub(words a, words b) { return _mm512_sub_epi32(a, b); }

SIMD_INLINE words words_shift_by(words a, words bits) { return _mm512_srlv_epi32(a, bits); }

SIMD_INLINE words words_shift_left_by(words a, words bits) { return _mm512_sllv_epi32(a, bits); }

/* Both words of a * b. */
SIMD_INLINE void words_product(words a, words b, words *high, words *low) {
    const __m512i even = _mm512_mul_epu32(a, b);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    *high = _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_CDAB);
    *low = _mm512_mask_shuffle_epi32(even, 0xaaaa, odd, _MM_PERM_CDAB);
}

#endif
