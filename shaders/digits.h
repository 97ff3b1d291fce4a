// Base-3 digits, five to a byte, of four bytes at once (t1_g128 of oxb_formats.h). The first m
// digits of byte v are, as a number, 3^m v / 256 rounded down: two bytes of a word fit a
// multiplication, and digit m is what the first m + 1 digits are more than three times the first m.
#ifndef OXB_DIGITS_H
#define OXB_DIGITS_H

struct four_digits {
    uint even, odd; // bytes 0 and 2, bytes 1 and 3, 16 bits each
};

// Bytes 1 and 3 of a and of b in turn. NVIDIA's GPUs permute bytes in one instruction.
inline uint upper_bytes(uint a, uint b) {
#if defined(MSL_CUDA_H)
    return __byte_perm(a, b, 0x7351u);
#else
    return (a >> 8u & 0x00ff00ffu) | (b & 0xff00ff00u);
#endif
}

inline four_digits four_digits_of(uint bytes) {
    return {bytes & 0x00ff00ffu, bytes >> 8u & 0x00ff00ffu};
}

// Of each byte the first digits as a number, in its place; `power` is 3^m for m of them, 243 at
// most.
inline uint first_digits(four_digits of, uint power) {
    return upper_bytes(of.even * power, of.odd * power);
}

struct five_codes {
    uint four; // of each byte the first four digits as codes of 2 bits, the first one lowest
    uint last; // of each byte the fifth digit
};

// No step leaves a byte: sums of bytes that end in 0 to 255 may pass through any numbers.
inline five_codes five_codes_of(uint bytes) {
    const four_digits of = four_digits_of(bytes);
    const uint one = first_digits(of, 3u), two = first_digits(of, 9u);
    const uint three = first_digits(of, 27u), four = first_digits(of, 81u);
    return {four * 64u - three * 176u - two * 44u - one * 11u, first_digits(of, 243u) - four * 3u};
}

// Four codes of 2 bits, one in each byte.
inline uint codes_in_bytes(uint codes) {
    return (codes & 3u) | (codes & 12u) << 6u | (codes & 48u) << 12u | (codes & 192u) << 18u;
}

// Byte q of a, b, c and d as word q.
inline uint4 words_of_bytes(uint a, uint b, uint c, uint d) {
#if defined(MSL_CUDA_H)
    const uint low_ab = __byte_perm(a, b, 0x5140u), high_ab = __byte_perm(a, b, 0x7362u);
    const uint low_cd = __byte_perm(c, d, 0x5140u), high_cd = __byte_perm(c, d, 0x7362u);
    return uint4(__byte_perm(low_ab, low_cd, 0x5410u), __byte_perm(low_ab, low_cd, 0x7632u),
                 __byte_perm(high_ab, high_cd, 0x5410u), __byte_perm(high_ab, high_cd, 0x7632u));
#else
    const uint even_ab = (a & 0x00ff00ffu) | (b & 0x00ff00ffu) << 8u;
    const uint odd_ab = upper_bytes(a, b);
    const uint even_cd = (c & 0x00ff00ffu) | (d & 0x00ff00ffu) << 8u;
    const uint odd_cd = upper_bytes(c, d);
    return uint4((even_ab & 0xffffu) | even_cd << 16u, (odd_ab & 0xffffu) | odd_cd << 16u,
                 even_ab >> 16u | (even_cd & 0xffff0000u), odd_ab >> 16u | (odd_cd & 0xffff0000u));
#endif
}

#endif
