/* The reformatter: blocks of a file format (AoS) to the device format in the plain layout (SoA).
 *
 * The destination holds the scale of each scale group, padded to 16 bytes, then the codes of all
 * scale groups, both in row order. Dense formats are copied as they are.
 */
#include <string.h>

#include "formats.h"

#define ALIGN16(n) (((n) + 15u) & ~(uint64_t)15u)

const oxb_file_format_info *oxb_file_format_of(oxb_file_format format) {
    static const oxb_file_format_info table[] = {
#define X(id, name, type, weights, bytes, scale, device_format) \
    {name, type, weights, bytes, scale, OXB_DEVICE_FORMAT_##device_format},
        OXB_FILE_FORMATS(X)
#undef X
    };
    return (unsigned)format < OXB_FILE_FORMAT_COUNT ? &table[format] : NULL;
}

const oxb_device_format_info *oxb_device_format_of(oxb_device_format format) {
    static const oxb_device_format_info table[] = {
#define X(id, name, bits, group_size, coded, scale_bytes, code_bytes) \
    {name, bits, group_size, coded, scale_bytes, code_bytes},
        OXB_DEVICE_FORMATS(X)
#undef X
    };
    return (unsigned)format < OXB_DEVICE_FORMAT_COUNT ? &table[format] : NULL;
}

static int is_dense(const oxb_device_format_info *info) { return !info->coded; }

static uint64_t scale_groups(const oxb_file_format_info *info, uint64_t length) {
    return length / info->block_bytes *
           (info->block_weights / oxb_device_format_of(info->device_format)->group_size);
}

uint64_t formats_plain_size(oxb_file_format format, uint64_t length, uint64_t *codes_offset) {
    const oxb_file_format_info *info = oxb_file_format_of(format);
    const oxb_device_format_info *to = oxb_device_format_of(info->device_format);
    *codes_offset = 0;
    if (is_dense(to)) return length;
    const uint64_t groups = scale_groups(info, length);
    *codes_offset = ALIGN16(groups * to->scale_bytes);
    return *codes_offset + groups * to->code_bytes;
}

/* Code 3 stands for 0 in TQ2_0_g128, but for +2 in the device format: it becomes code 1. */
static void codes_without_three(uint8_t *to, const uint8_t *from, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint8_t both = from[i] & (uint8_t)(from[i] >> 1) & 0x55;
        to[i] = from[i] & (uint8_t)~(both << 1);
    }
}

static void pack_codes(uint8_t *to, const uint8_t *codes, size_t n) {
    for (size_t i = 0; i < n / 4; i++) {
        const uint8_t *c = codes + 4 * i;
        to[i] = (uint8_t)(c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6);
    }
}

/* The five digits of each byte of PTQ1_0, one digit per byte, the most significant one lowest. */
#define DIGIT(b, power, place) ((uint64_t)(((b) * (power) & 0xffu) * 3u >> 8) << 8 * (place))
#define DIGITS(b) \
    (DIGIT(b, 1u, 0) | DIGIT(b, 3u, 1) | DIGIT(b, 9u, 2) | DIGIT(b, 27u, 3) | DIGIT(b, 81u, 4))
#define DIGITS_4(b)  DIGITS(b), DIGITS(b + 1u), DIGITS(b + 2u), DIGITS(b + 3u)
#define DIGITS_16(b) DIGITS_4(b), DIGITS_4(b + 4u), DIGITS_4(b + 8u), DIGITS_4(b + 12u)
#define DIGITS_64(b) DIGITS_16(b), DIGITS_16(b + 16u), DIGITS_16(b + 32u), DIGITS_16(b + 48u)
static const uint64_t digits_of[256] = {DIGITS_64(0u), DIGITS_64(64u), DIGITS_64(128u),
                                        DIGITS_64(192u)};

/* Digit n of byte b is weight bytes * n + b, so digit n of four bytes makes one byte of codes. */
static inline void trits_to_codes(uint8_t *to, const uint8_t *from, size_t bytes) {
    for (size_t b = 0; b < bytes; b += 4) {
        uint64_t codes = digits_of[from[b]] | digits_of[from[b + 1]] << 2 |
                         digits_of[from[b + 2]] << 4 | digits_of[from[b + 3]] << 6;
        for (size_t n = 0; n < 5; n++) to[(bytes * n + b) / 4] = (uint8_t)(codes >> 8 * n);
    }
}

static void ptq1_codes(uint8_t *to, const uint8_t *block) {
    trits_to_codes(to, block, 16);
    trits_to_codes(to + 20, block + 16, 8);
    /* The last two bytes have four digits: weight 2 n + b. */
    uint64_t codes = digits_of[block[24]] | digits_of[block[25]] << 2;
    to[30] = (uint8_t)(codes | codes >> 8 << 4);
    to[31] = (uint8_t)(codes >> 16 | codes >> 24 << 4);
}

/* The byte of five digits: the four codes of byte b, none of which is 3, then f. */
#define FIVE(b, f)                                                                                 \
    ((((b) % 4u * 27u + (b) / 4u % 4u * 9u + (b) / 16u % 4u * 3u + (b) / 64u) * 3u + (f)) * 256u + \
     242u) / 243u &                                                                                \
        0xffu
#define FIVE_4(b, f)  FIVE(b, f), FIVE(b + 1u, f), FIVE(b + 2u, f), FIVE(b + 3u, f)
#define FIVE_16(b, f) FIVE_4(b, f), FIVE_4(b + 4u, f), FIVE_4(b + 8u, f), FIVE_4(b + 12u, f)
#define FIVE_64(b, f) FIVE_16(b, f), FIVE_16(b + 16u, f), FIVE_16(b + 32u, f), FIVE_16(b + 48u, f)
#define FIVE_ALL(f)   FIVE_64(0u, f), FIVE_64(64u, f), FIVE_64(128u, f), FIVE_64(192u, f)
static const uint8_t byte_of_digits[3 * 256] = {FIVE_ALL(0u), FIVE_ALL(1u), FIVE_ALL(2u)};

/* A block of PTQ1_0 to the order of t1_g128, whose load l has the codes of its words 4 l + q. */
static void ptq1_digits(uint8_t *scale, uint8_t *codes, const uint8_t *block) {
    uint8_t plain[32];
    unsigned beside = 0;
    ptq1_codes(plain, block);
    for (unsigned word = 0; word < 8; word++) {
        const uint8_t *run = plain + 4 * word;
        uint8_t *to = codes + word / 4 * 12 + word % 4;
        const unsigned last = run[3];
        to[0] = byte_of_digits[run[0] + (last << 8 & 0x300)];
        to[4] = byte_of_digits[run[1] + (last << 6 & 0x300)];
        to[8] = byte_of_digits[run[2] + (last << 4 & 0x300)];
        beside |= last >> 6 << 2 * word;
    }
    memcpy(scale, block + 26, 2);
    scale[2] = (uint8_t)beside;
    scale[3] = (uint8_t)(beside >> 8);
}

/* Upstream TQ2_0 interleaves: byte m of half h holds weights 128 h + 32 l + m for l = 0..3. */
static void tq2_codes(uint8_t *to, const uint8_t *block) {
    uint8_t codes[256];
    for (unsigned h = 0; h < 2; h++) {
        for (unsigned l = 0; l < 4; l++) {
            for (unsigned m = 0; m < 32; m++)
                codes[128 * h + 32 * l + m] = block[32 * h + m] >> (2 * l) & 3;
        }
    }
    pack_codes(to, codes, 256);
}

/* Blocks whose codes are already in the order of the device format. Constant sizes let the compiler
 * inline the copies. */
static inline void split_blocks(uint8_t *scales, uint8_t *codes, const uint8_t *from, uint64_t n,
                                size_t block_bytes, size_t scale_offset) {
    size_t code_bytes = block_bytes - 2, code_offset = scale_offset ? 0 : 2;
    for (uint64_t i = 0; i < n; i++) {
        memcpy(scales + 2 * i, from + i * block_bytes + scale_offset, 2);
        memcpy(codes + i * code_bytes, from + i * block_bytes + code_offset, code_bytes);
    }
}

void formats_reformat_blocks(oxb_file_format format, const uint8_t *from, uint64_t n,
                             uint8_t *scales, uint8_t *codes) {
    switch (format) {
    case OXB_FILE_FORMAT_Q1_0:
    case OXB_FILE_FORMAT_Q2_0: split_blocks(scales, codes, from, n, 18, 0); break;
    case OXB_FILE_FORMAT_Q2_0_G128:
    case OXB_FILE_FORMAT_PQ2_0: split_blocks(scales, codes, from, n, 34, 0); break;
    case OXB_FILE_FORMAT_TQ2_0_G128:
        for (uint64_t i = 0; i < n; i++) {
            memcpy(scales + 2 * i, from + 34 * i + 32, 2);
            codes_without_three(codes + 32 * i, from + 34 * i, 32);
        }
        break;
    case OXB_FILE_FORMAT_PTQ1_0:
        for (uint64_t i = 0; i < n; i++) ptq1_digits(scales + 4 * i, codes + 24 * i, from + 28 * i);
        break;
    case OXB_FILE_FORMAT_TQ2_0:
        for (uint64_t i = 0; i < n; i++) {
            memcpy(scales + 4 * i, from + 66 * i + 64, 2);
            memcpy(scales + 4 * i + 2, from + 66 * i + 64, 2);
            tq2_codes(codes + 64 * i, from + 66 * i);
        }
        break;
    default: break; /* dense */
    }
}

void formats_pack_plain(oxb_file_format format, const void *from, uint64_t length, void *to) {
    const oxb_file_format_info *info = oxb_file_format_of(format);
    if (is_dense(oxb_device_format_of(info->device_format))) {
        memcpy(to, from, length);
        return;
    }
    uint64_t codes_offset;
    (void)formats_plain_size(format, length, &codes_offset);
    formats_reformat_blocks(format, from, length / info->block_bytes, to,
                            (uint8_t *)to + codes_offset);
    const uint64_t scale_bytes =
        oxb_device_format_of(info->device_format)->scale_bytes * scale_groups(info, length);
    memset((uint8_t *)to + scale_bytes, 0, codes_offset - scale_bytes);
}
