/* Matrices in panels: their size, their rows by the definition, and how they are packed. */
#include <stdatomic.h>
#include <string.h>

#include "half.h"
#include "panels.h"

#define LANES       CPU_LANES
#define LINE        64u
#define MAX_GROUPS  8u  /* scale groups of a row that are reformatted together */
#define GROUP_BYTES 32u /* of plain codes, the most */

cpu_packing cpu_panel_packing(uint32_t format, uint32_t layout) {
    if (layout == CPU_LAYOUT_TRITS)
        return format == OXB_DEVICE_FORMAT_Q2_G128 ? CPU_TRITS : CPU_PACKING_COUNT;
    if (layout == CPU_LAYOUT_DIGITS)
        return format == OXB_DEVICE_FORMAT_T1_G128 ? CPU_DIGITS : CPU_PACKING_COUNT;
    if (layout != CPU_LAYOUT_PANELS) return CPU_PACKING_COUNT;
    switch (format) {
    case OXB_DEVICE_FORMAT_Q1_G128: return CPU_BITS;
    case OXB_DEVICE_FORMAT_Q2_G128:
    case OXB_DEVICE_FORMAT_Q2_G64: return CPU_PAIRS;
    default: return CPU_PACKING_COUNT;
    }
}

uint64_t cpu_panel_bytes(cpu_packing packing, uint64_t group_size, uint64_t n_rows, uint64_t k,
                         uint64_t *codes_offset) {
    const uint64_t rows = cpu_panel_rows_of(packing);
    const uint64_t strip_rows =
        cpu_mul(n_rows / rows + (n_rows % rows != 0), rows * (k / group_size));
    *codes_offset = cpu_mul(strip_rows, cpu_panel_scales(packing) / LANES * sizeof(uint16_t));
    return cpu_add(*codes_offset,
                   cpu_mul(strip_rows, cpu_panel_words(packing, group_size) * sizeof(uint32_t)));
}

cpu_panels cpu_panels_at(const void *weight, uint64_t codes_offset, uint32_t format,
                         uint32_t layout, uint64_t k) {
    const cpu_packing packing = cpu_panel_packing(format, layout);
    const uint32_t group_size = cpu_group(format);
    return (cpu_panels){.scales = weight,
                        .codes = (const void *)((const char *)weight + codes_offset),
                        .n_groups = k / group_size,
                        .words = cpu_panel_words(packing, group_size),
                        .n_scales = cpu_panel_scales(packing),
                        .group_size = group_size,
                        .packing = packing};
}

/* The code of weight i of a row of a strip, whose words are LANES apart. 1-bit codes as 0 and 2. */
static int code_at(cpu_packing packing, const uint32_t *words, unsigned i) {
    static const int power_of_three[3] = {1, 3, 9};
    if (packing == CPU_BITS)
        return 2 * (int)(words[i / 32 * LANES] >> (8 * (i % 4) + i % 32 / 4) & 1);
    if (packing == CPU_PAIRS)
        return (int)(words[i / 16 * LANES] >> (8 * (i % 4) + 2 * (i % 16 / 4)) & 3);
    if (i >= 126) return (int)(words[(i - 126) * LANES] >> 29 & 3);
    const uint32_t word = words[i / 18 * LANES];
    const unsigned at = 5 * (i % 18 / 3);
    const int size = (int)(word >> at & 15), negative = (int)(word >> (at + 31) % 32 & 1);
    return ((negative ? -size : size) + 13) / power_of_three[i % 3] %
           3; /* w0 + 1 + 3 (w1 + 1) + 9 (w2 + 1) */
}

/* The weights of two bytes of digits, the first `n` of each. */
static void unit_weights(uint32_t unit, unsigned first_byte, unsigned n, float scale,
                         float *weights) {
    for (unsigned i = 0; i < 2 * n; i++) {
        unit = (unit & 0xffff) * 3;
        weights[cpu_digit_weight(first_byte + i / n, i % n)] =
            (float)((int)(unit >> 16) - 1) * scale;
    }
}

void cpu_panel_weights(const cpu_panels *p, uint64_t row, uint64_t group, float *weights) {
    const uint64_t strip = cpu_strip_at(p, row / LANES, group);
    const uint16_t *scales = p->scales + strip * p->n_scales + row % LANES;
    const float scale = cpu_float_of_half(scales[0]);
    const uint32_t *words = p->codes + strip * p->words * LANES + row % LANES;
    if (p->packing == CPU_DIGITS) {
        for (unsigned b = 0; b < 4 * CPU_DIGIT_WORDS; b += 2)
            unit_weights(words[b / 4 * LANES] >> 8 * (b % 4), b, 5, scale, weights);
        unit_weights(scales[LANES], 4 * CPU_DIGIT_WORDS, 4, scale, weights);
        return;
    }
    for (unsigned i = 0; i < p->group_size; i++)
        weights[i] = (float)(code_at(p->packing, words, i) - 1) * scale;
}

typedef struct pack_job {
    const cpu_isa *isa;
    const oxb_host *host;
    oxb_file_format format;
    cpu_packing packing;
    const uint8_t *blocks;
    uint64_t n_rows;
    uint64_t k;
    void *to;
    atomic_int *failed;
} pack_job;

/* Plain codes of some scale groups, of formats whose blocks hold them in another order. */
typedef struct plain_rows {
    uint8_t scales[LANES][MAX_GROUPS * 2];
    uint8_t codes[LANES][MAX_GROUPS * GROUP_BYTES];
} plain_rows;

/* The rows of scale groups [group, group + n) of a strip. */
static void find_rows(const pack_job *job, uint64_t strip, uint64_t group, uint64_t n,
                      plain_rows *plain, cpu_pack_rows *r) {
    static const uint8_t zeros[MAX_GROUPS * (GROUP_BYTES + 2)];
    const oxb_file_format_info *info = job->host->file_format(job->format);
    const int ordered = job->format != OXB_FILE_FORMAT_TQ2_0;
    const uint64_t row_bytes = job->k / info->block_weights * info->block_bytes;
    const uint64_t groups = info->block_weights / r->group_size; /* of a block */
    r->code_stride = ordered ? info->block_bytes : GROUP_BYTES;
    r->scale_stride = ordered ? info->block_bytes : 2;
    for (uint64_t lane = 0; lane < LANES; lane++) {
        const uint64_t row = strip * LANES + lane;
        const uint8_t *block = job->blocks + row * row_bytes + group / groups * info->block_bytes;
        /* The next scale groups: the processor's own prefetcher does not follow so many rows. */
        const uint64_t bytes = n / groups * info->block_bytes;
        for (uint64_t i = bytes; row < job->n_rows && i < 2 * bytes + LINE; i += LINE)
            __builtin_prefetch(block + i);
        if (row >= job->n_rows) {
            r->codes[lane] = r->scales[lane] = zeros;
        } else if (ordered) {
            r->codes[lane] = block + (info->scale_offset == 0 ? 2 : 0);
            r->scales[lane] = block + info->scale_offset;
        } else {
            job->host->reformat_blocks(job->format, block, n / groups, plain->scales[lane],
                                       plain->codes[lane]);
            r->codes[lane] = plain->codes[lane];
            r->scales[lane] = plain->scales[lane];
        }
    }
}

/* The unit whose first ten digits are those of bytes a and b: the fraction, rounded up. */
static uint32_t unit_of(uint32_t a, uint32_t b) {
    const uint32_t digits = (a * 243 >> 8) * 243 + (b * 243 >> 8);
    return (digits * 65536 + 59048) / 59049;
}

/* Bytes of four digits each, as a unit of eight. */
static uint32_t last_unit_of(uint32_t a, uint32_t b) {
    const uint32_t digits = (a * 81 >> 8) * 81 + (b * 81 >> 8);
    return (digits * 65536 + 6560) / 6561;
}

/* A strip's rows of n blocks of PTQ1_0; rows past the last are units and scales of 0. */
static void pack_digits(const pack_job *job, uint64_t strip, uint64_t group, uint64_t n,
                        uint16_t *scales, uint32_t *codes) {
    const oxb_file_format_info *info = job->host->file_format(OXB_FILE_FORMAT_PTQ1_0);
    const uint64_t row_bytes = job->k / info->block_weights * info->block_bytes;
    const uint64_t strips = cpu_panel_strips(CPU_DIGITS);
    for (uint64_t lane = 0; lane < LANES; lane++) {
        const uint64_t row = strip * LANES + lane;
        const uint8_t *block = job->blocks + row * row_bytes + group * info->block_bytes;
        uint16_t *to_scales = scales + lane;
        uint32_t *to = codes + lane;
        for (uint64_t g = 0; g < n; g++, block += info->block_bytes) {
            const int is_there = row < job->n_rows;
            for (unsigned w = 0; w < CPU_DIGIT_WORDS; w++) {
                const uint8_t *b = block + 4 * w;
                to[w * LANES] = is_there ? unit_of(b[0], b[1]) | unit_of(b[2], b[3]) << 16 : 0;
            }
            to_scales[0] = to_scales[LANES] = 0;
            if (is_there) {
                memcpy(to_scales, block + info->scale_offset, sizeof *to_scales);
                to_scales[LANES] = (uint16_t)last_unit_of(block[24], block[25]);
            }
            to_scales += strips * cpu_panel_scales(CPU_DIGITS);
            to += strips * CPU_DIGIT_WORDS * LANES;
        }
    }
}

static void pack_panels(const cpu_call *call, uint64_t first, uint64_t last) {
    const pack_job *job = call->args;
    const uint32_t group_size = cpu_group(job->host->file_format(job->format)->device_format);
    const uint64_t n_groups = job->k / group_size;
    const uint64_t words = cpu_panel_words(job->packing, group_size);
    const uint64_t strips = cpu_panel_strips(job->packing);
    const cpu_panels p = {.n_groups = n_groups, .packing = job->packing};
    cpu_pack_rows r = {.group_size = group_size,
                       .packing = job->packing,
                       .no_three = job->format == OXB_FILE_FORMAT_TQ2_0_G128};
    uint64_t codes_offset;
    plain_rows plain;
    (void)cpu_panel_bytes(job->packing, group_size, job->n_rows, job->k, &codes_offset);
    for (uint64_t strip = first * strips; strip < last * strips; strip++)
        for (uint64_t group = 0; group < n_groups; group += MAX_GROUPS) {
            const uint64_t at = cpu_strip_at(&p, strip, group);
            r.n_groups = n_groups - group < MAX_GROUPS ? n_groups - group : MAX_GROUPS;
            r.to_scales = (uint16_t *)job->to + at * cpu_panel_scales(job->packing);
            r.to_codes = (uint32_t *)(void *)((char *)job->to + codes_offset) + at * words * LANES;
            if (job->packing == CPU_DIGITS) {
                pack_digits(job, strip, group, r.n_groups, r.to_scales, r.to_codes);
                continue;
            }
            find_rows(job, strip, group, r.n_groups, &plain, &r);
            if (atomic_load_explicit(job->failed, memory_order_relaxed)) return;
            if (!job->isa->f32->pack(&r))
                atomic_store_explicit(job->failed, 1, memory_order_relaxed);
        }
}

int cpu_pack(const cpu_isa *isa, const oxb_host *host, oxb_file_format format, uint32_t layout,
             const void *from, uint64_t n_rows, uint64_t k, void *to, uint32_t threads) {
    static const cpu_kernel kernel = {.name = "pack", .run = pack_panels, .grain = 1};
    atomic_int failed = 0;
    const cpu_packing packing = cpu_panel_packing(host->file_format(format)->device_format, layout);
    const uint64_t rows = cpu_panel_rows_of(packing);
    const pack_job job = {isa, host, format, packing, from, n_rows, k, to, &failed};
    const cpu_step step = {.call = {.kernel = &kernel, .args = &job},
                           .groups = (n_rows + rows - 1) / rows,
                           .worth = n_rows * k / 8 / CPU_SHARE};
    cpu_pool_run(&step, 1, threads);
    return !failed;
}
