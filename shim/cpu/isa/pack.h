/* Packing a strip: what each variant compiles for its registers. Included after its simd_*.h.
 *
 * 16 bytes of 16 rows are turned into four vectors of words; then the bits of each word are put
 * where panels.h says.
 */
#ifndef CPU_PACK_H
#define CPU_PACK_H

#include <stdint.h>
#include <string.h>

#include "cpu/panels.h"

/* Exchange the bits at the places of `mask` with those `shift` places up. */
SIMD_INLINE words swap_bits(words a, uint32_t mask, unsigned shift) {
    const words both = words_and(words_xor(a, words_shift(a, shift)), words_of(mask));
    return words_xor(a, words_xor(both, words_shift_left(both, shift)));
}

/* Weight 4 l + b from bit 4 l + b to bit 8 b + l: the digits of its place turn by two. */
SIMD_INLINE words spread_bits(words a) {
    a = swap_bits(a, 0x0000cccc, 14);
    a = swap_bits(a, 0x00aa00aa, 7);
    a = swap_bits(a, 0x0c0c0c0c, 2);
    return swap_bits(a, 0x22222222, 1);
}

/* The same for 2 bits: from bit 2 (4 l + b) to bit 8 b + 2 l. */
SIMD_INLINE words spread_pairs(words a) {
    a = swap_bits(a, 0x0000f0f0, 12);
    return swap_bits(a, 0x00cc00cc, 6);
}

/* In each code the bit pattern 01 where it is 3, else 00. */
SIMD_INLINE words threes(words a) {
    return words_and(words_and(a, words_shift(a, 1)), words_of(0x55555555));
}

#if SIMD_TRITS
#define PLAIN_WORDS 8u /* of 128 codes of 2 bits */

/* Bits [at, at + 32) of every row; zeros past the end. */
SIMD_INLINE words bits_at(const words *plain, unsigned at) {
    const unsigned word = at / 32, shift = at % 32;
    if (shift == 0) return plain[word];
    const words low = words_shift(plain[word], shift);
    return word + 1 < PLAIN_WORDS ? words_or(low, words_shift_left(plain[word + 1], 32 - shift))
                                  : low;
}

/* c0 + 3 c1 + 9 c2 of the fields of 6 bits that `mask` selects the first code of. */
SIMD_INLINE words sums_of_three(words a, uint32_t mask) {
    const words c1 = words_and(words_shift(a, 2), words_of(mask));
    const words c2 = words_and(words_shift(a, 4), words_of(mask));
    const words low =
        words_add(words_and(a, words_of(mask)), words_add(c1, words_shift_left(c1, 1)));
    return words_add(low, words_add(c2, words_shift_left(c2, 3)));
}

/* Fields of 6 bits, c0 + 3 c1 + 9 c2 each, to |n| in 4 bits and whether n is negative in the fifth:
 * n is 13 less. */
SIMD_INLINE words signed_fields(words sums, uint32_t ones) {
    const words more = words_add(sums, words_of(19 * ones)); /* 32 + n */
    const words negative =
        words_and(words_xor(words_shift(more, 5), words_of(ones)), words_of(ones));
    const words two = words_or(negative, words_shift_left(negative, 1));
    const words four = words_or(two, words_shift_left(two, 2));
    const words size = words_add(words_and(words_xor(more, four), words_of(15 * ones)), negative);
    return words_or(size, words_shift_left(negative, 4));
}

/* Six fields of three codes each: five at once, then closed up from 6 bits to 5, and the last. */
SIMD_INLINE words trits_at(const words *plain, unsigned at) {
    const uint32_t ones = 1u | 1u << 6 | 1u << 12 | 1u << 18 | 1u << 24, signs = 0x21084210u;
    const words five = signed_fields(sums_of_three(bits_at(plain, at), 3 * ones), ones);
    words fields =
        words_shift_left(signed_fields(sums_of_three(bits_at(plain, at + 30), 3), 1), 25);
#pragma GCC unroll 5
    for (unsigned f = 0; f < 5; f++)
        fields = words_or(fields, words_and(words_shift(five, f), words_of(31u << 5 * f)));
    /* A sign goes below its field. */
    const words below = words_or(words_shift(words_and(fields, words_of(signs & ~16u)), 5),
                                 words_shift_left(words_and(fields, words_of(16)), 27));
    return words_or(words_and(fields, words_of(0x1fffffffu & ~signs)), below);
}

/* 128 codes to words of trits; returns whether none was 3. */
SIMD_INLINE int pack_trits(uint32_t *to, const words *plain) {
    words three = words_of(0);
    for (unsigned i = 0; i < PLAIN_WORDS; i++) three = words_or(three, threes(plain[i]));
#pragma GCC unroll 7
    for (unsigned word = 0; word < CPU_TRIT_WORDS; word++) {
        words fields = trits_at(plain, 36 * word);
        if (word < 2)
            fields = words_or(
                fields,
                words_shift_left(words_and(bits_at(plain, 252 + 2 * word), words_of(3)), 29));
        words_store(to + word * CPU_LANES, fields);
    }
    return !words_any(three);
}
#endif

SIMD_INLINE int pack_groups(const cpu_pack_rows *r, cpu_packing packing, unsigned bytes) {
    const uint64_t n_words = cpu_panel_words(packing, packing == CPU_BITS ? 8 * bytes : 4 * bytes);
    const uint64_t strips = cpu_panel_strips(packing);
    uint16_t *scales = r->to_scales;
    uint32_t *codes = r->to_codes;
    for (uint64_t g = 0; g < r->n_groups; g++) {
        words plain[8];
        for (unsigned lane = 0; lane < CPU_LANES; lane++)
            memcpy(scales + lane, r->scales[lane] + g * r->scale_stride, sizeof *scales);
        const uint8_t *row[CPU_LANES];
        for (unsigned lane = 0; lane < CPU_LANES; lane++)
            row[lane] = r->codes[lane] + g * r->code_stride;
        for (unsigned at = 0; at < bytes; at += 16) words_of_rows(plain + at / 4, row, at);
        if (r->no_three)
            for (unsigned i = 0; i < bytes / 4; i++)
                plain[i] = words_xor(plain[i], words_shift_left(threes(plain[i]), 1));
#if SIMD_TRITS
        if (packing == CPU_TRITS && !pack_trits(codes, plain)) return 0;
#endif
        if (packing != CPU_TRITS)
            for (unsigned i = 0; i < bytes / 4; i++)
                words_store(codes + i * CPU_LANES,
                            packing == CPU_BITS ? spread_bits(plain[i]) : spread_pairs(plain[i]));
        scales += strips * CPU_LANES;
        codes += strips * n_words * CPU_LANES;
    }
    return 1;
}

SIMD_TARGET static int pack_strip(const cpu_pack_rows *r) {
    switch (r->packing) {
    case CPU_BITS: return pack_groups(r, CPU_BITS, 16);
    case CPU_PAIRS:
        return r->group_size == 64 ? pack_groups(r, CPU_PAIRS, 16) : pack_groups(r, CPU_PAIRS, 32);
    default: return pack_groups(r, CPU_TRITS, 32);
    }
}

#define PACK_KERNELS .pack = pack_strip

#endif
