/* Matrices in panels: their size, their rows by the definition, and how they are packed. */
#include <stdatomic.h>
#include <string.h>

#include "../oxb_internal.h"
#include "half.h"
#include "panels.h"

#define LANES OXB_CPU_LANES
#define MAX_GROUPS 8u     /* groups of a row that are reformatted together */
#define PLAIN_WORDS 8u

oxb_cpu_code oxb_cpu_panel_code(uint32_t format, uint32_t layout)
{
    if (layout == OXB_LAYOUT_TRITS)
        return format == OXB_KERNEL_Q2_G128 ? OXB_CPU_TRITS : OXB_CPU_CODE_COUNT;
    if (layout != OXB_LAYOUT_PANELS)
        return OXB_CPU_CODE_COUNT;
    switch (format) {
    case OXB_KERNEL_Q1_G128:
        return OXB_CPU_BITS;
    case OXB_KERNEL_Q2_G128:
    case OXB_KERNEL_Q2_G64:
        return OXB_CPU_PAIRS;
    default:
        return OXB_CPU_CODE_COUNT;
    }
}

uint64_t oxb_cpu_panel_bytes(oxb_cpu_code code, uint64_t group, uint64_t n_rows, uint64_t k,
                             uint64_t *codes_offset)
{
    const uint64_t rows = oxb_cpu_panel_rows_of(code);
    const uint64_t tile_rows = oxb_cpu_mul(n_rows / rows + (n_rows % rows != 0), rows * (k / group));
    *codes_offset = oxb_cpu_mul(tile_rows, sizeof(uint16_t));
    return oxb_cpu_add(*codes_offset,
                       oxb_cpu_mul(tile_rows, oxb_cpu_panel_words(code, group) * sizeof(uint32_t)));
}

oxb_cpu_panels oxb_cpu_panels_at(const void *weight, uint64_t codes_offset, uint32_t format,
                                 uint32_t layout, uint64_t k)
{
    const oxb_cpu_code code = oxb_cpu_panel_code(format, layout);
    const uint32_t group = oxb_cpu_group(format);
    return (oxb_cpu_panels){.scales = weight,
                            .codes = (const void *)((const char *)weight + codes_offset),
                            .n_groups = k / group,
                            .words = oxb_cpu_panel_words(code, group),
                            .group = group,
                            .code = code};
}

/* The code of weight i of a row of a tile, whose words are LANES apart. 1-bit codes as 0 and 2. */
static int code_at(oxb_cpu_code code, const uint32_t *words, unsigned i)
{
    static const unsigned power_of_three[3] = {1, 3, 9};
    if (code == OXB_CPU_BITS)
        return 2 * (int)(words[i / 32 * LANES] >> (8 * (i % 4) + i % 32 / 4) & 1);
    if (code == OXB_CPU_PAIRS)
        return (int)(words[i / 16 * LANES] >> (8 * (i % 4) + 2 * (i % 16 / 4)) & 3);
    if (i >= 126)
        return (int)(words[(i - 126) * LANES] >> 30);
    const unsigned field = words[i / 18 * LANES] >> 5 * (i % 18 / 3) & 31;
    return (int)(field / power_of_three[i % 3] % 3);
}

void oxb_cpu_panel_weights(const oxb_cpu_panels *p, uint64_t row, uint64_t group, float *weights)
{
    const uint64_t tile = oxb_cpu_tile_at(p, row / LANES, group);
    const float scale = oxb_float_of_half(p->scales[tile * LANES + row % LANES]);
    const uint32_t *words = p->codes + tile * p->words * LANES + row % LANES;
    for (unsigned i = 0; i < p->group; i++)
        weights[i] = (float)(code_at(p->code, words, i) - 1) * scale;
}

/* Exchange the bits at the places of `mask` with those `shift` places up, in every lane. */
static inline void swap_bits(uint32_t *word, uint32_t mask, unsigned shift)
{
    for (unsigned lane = 0; lane < LANES; lane++) {
        const uint32_t both = (word[lane] ^ word[lane] >> shift) & mask;
        word[lane] ^= both ^ both << shift;
    }
}

/* Weight 4 l + b from bit 4 l + b to bit 8 b + l: the digits of its place turn by two. */
static inline void spread_bits(uint32_t *word)
{
    swap_bits(word, 0x0000cccc, 14);
    swap_bits(word, 0x00aa00aa, 7);
    swap_bits(word, 0x0c0c0c0c, 2);
    swap_bits(word, 0x22222222, 1);
}

/* The same for 2 bits: from bit 2 (4 l + b) to bit 8 b + 2 l. */
static inline void spread_pairs(uint32_t *word)
{
    swap_bits(word, 0x0000f0f0, 12);
    swap_bits(word, 0x00cc00cc, 6);
}

/* Bits [at, at + 32) of the row in each lane; zeros past the end. */
static inline uint32_t bits_at(const uint32_t *plain, unsigned at, unsigned lane)
{
    const unsigned word = at / 32;
    const uint64_t low = plain[word * LANES + lane];
    const uint64_t high = word + 1 < PLAIN_WORDS ? plain[(word + 1) * LANES + lane] : 0;
    return (uint32_t)((high << 32 | low) >> at % 32);
}

/* 128 codes of 2 bits to 7 words of trits; 0 where a code is 3. */
static int trits_of_pairs(const uint32_t *plain, uint32_t *words)
{
    uint32_t three = 0;
    for (unsigned i = 0; i < PLAIN_WORDS * LANES; i++)
        three |= plain[i] & plain[i] >> 1 & 0x55555555u;
    for (unsigned word = 0; word < OXB_CPU_TRIT_WORDS; word++)
        for (unsigned lane = 0; lane < LANES; lane++) {
            /* Six fields of three codes: five at once, in 6 bits each, and the last. */
            const uint32_t five = bits_at(plain, 36 * word, lane);
            const uint32_t last = bits_at(plain, 36 * word + 30, lane) & 63;
            const uint32_t mask = 3u | 3u << 6 | 3u << 12 | 3u << 18 | 3u << 24;
            const uint32_t sum = (five & mask) + 3 * (five >> 2 & mask) + 9 * (five >> 4 & mask);
            uint32_t fields = 0;
            for (unsigned f = 0; f < 5; f++)
                fields |= sum >> f & 31u << 5 * f;
            words[word * LANES + lane] = fields | ((last & 3) + 3 * (last >> 2 & 3) + 9 * (last >> 4)) << 25;
        }
    for (unsigned i = 0; i < 2; i++)
        for (unsigned lane = 0; lane < LANES; lane++)
            words[i * LANES + lane] |= bits_at(plain, 252 + 2 * i, lane) << 30;
    return three == 0;
}

typedef struct pack_rows {
    uint16_t scales[LANES][MAX_GROUPS];
    uint32_t codes[LANES][MAX_GROUPS * PLAIN_WORDS];
} pack_rows;

/* One group of a tile, from rows of plain codes. */
static int pack_group(const pack_rows *rows, uint64_t group, oxb_cpu_code code, unsigned plain_words,
                      uint16_t *scales, uint32_t *words)
{
    uint32_t turned[PLAIN_WORDS * LANES];
    uint32_t *plain = code == OXB_CPU_TRITS ? turned : words;
    for (unsigned lane = 0; lane < LANES; lane++) {
        scales[lane] = rows->scales[lane][group];
        for (unsigned word = 0; word < plain_words; word++)
            plain[word * LANES + lane] = rows->codes[lane][group * plain_words + word];
    }
    if (code == OXB_CPU_TRITS)
        return trits_of_pairs(plain, words);
    for (unsigned word = 0; word < plain_words; word++) {
        if (code == OXB_CPU_BITS)
            spread_bits(words + word * LANES);
        else
            spread_pairs(words + word * LANES);
    }
    return 1;
}

/* Panels [first, last). Returns 0 where a code does not fit. */
static int pack(oxb_file_format format, oxb_cpu_code code, const uint8_t *blocks, uint64_t n_rows,
                uint64_t k, uint64_t first, uint64_t last, void *to)
{
    const oxb_format_info *info = oxb_format(format);
    const oxb_kernel_format_info *kernel = oxb_kernel(info->kernel);
    const uint64_t n_groups = k / kernel->group;
    const uint64_t row_bytes = k / info->block_weights * info->block_bytes;
    const uint64_t words = oxb_cpu_panel_words(code, kernel->group);
    const unsigned plain_words = kernel->bits * kernel->group / 32;
    uint64_t codes_offset;
    (void)oxb_cpu_panel_bytes(code, kernel->group, n_rows, k, &codes_offset);
    const oxb_cpu_panels p = {.n_groups = n_groups, .code = code};
    const uint64_t tiles = oxb_cpu_panel_tiles(code);
    pack_rows rows;
    for (uint64_t tile = first * tiles; tile < last * tiles; tile++) {
        const uint64_t row = tile * LANES;
        const uint64_t count = row >= n_rows ? 0 : n_rows - row < LANES ? n_rows - row : LANES;
        memset(&rows, 0, sizeof rows);
        for (uint64_t group = 0; group < n_groups; group += MAX_GROUPS) {
            const uint64_t n = n_groups - group < MAX_GROUPS ? n_groups - group : MAX_GROUPS;
            const uint64_t weight = group * kernel->group;
            for (uint64_t lane = 0; lane < count; lane++)
                oxb_reformat_blocks(
                    format, blocks + (row + lane) * row_bytes + weight / info->block_weights * info->block_bytes,
                    n * kernel->group / info->block_weights, (uint8_t *)rows.scales[lane],
                    (uint8_t *)rows.codes[lane]);
            for (uint64_t g = 0; g < n; g++) {
                const uint64_t at = oxb_cpu_tile_at(&p, tile, group + g);
                if (!pack_group(&rows, g, code, plain_words, (uint16_t *)to + at * LANES,
                                (uint32_t *)(void *)((char *)to + codes_offset) + at * words * LANES))
                    return 0;
            }
        }
    }
    return 1;
}

typedef struct pack_job {
    oxb_file_format format;
    oxb_cpu_code code;
    const void *from;
    uint64_t n_rows;
    uint64_t k;
    void *to;
    atomic_int *failed;
} pack_job;

static void pack_panels(const oxb_cpu_call *call, uint64_t first, uint64_t last)
{
    const pack_job *job = call->args;
    if (!atomic_load_explicit(job->failed, memory_order_relaxed) &&
        !pack(job->format, job->code, job->from, job->n_rows, job->k, first, last, job->to))
        atomic_store_explicit(job->failed, 1, memory_order_relaxed);
}

int oxb_cpu_pack(oxb_file_format format, oxb_layout layout, const void *from, uint64_t n_rows, uint64_t k,
                 void *to, uint32_t threads)
{
    static const oxb_cpu_kernel kernel = {.name = "pack", .run = pack_panels, .grain = 1};
    atomic_int failed = 0;
    const oxb_cpu_code code = oxb_cpu_panel_code(oxb_format(format)->kernel, layout);
    const uint64_t rows = oxb_cpu_panel_rows_of(code);
    const pack_job job = {format, code, from, n_rows, k, to, &failed};
    const oxb_cpu_step step = {.call = {.kernel = &kernel, .args = &job},
                               .groups = (n_rows + rows - 1) / rows,
                               .worth = n_rows * k / 8 / OXB_CPU_SHARE};
    oxb_cpu_pool_run(&step, 1, threads);
    return !failed;
}
