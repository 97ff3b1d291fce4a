/* The layout of codes by columns. */
#include <stdlib.h>
#include <string.h>

#include "variants.h"

/* Of codes that a lane reads at once. */
#define LOAD_WEIGHTS(info) (128u / (info)->bits)
/* Written together: runs of 512 bytes, whose source stays in the cache. */
#define STRIP_ROWS 32u

const oxb_host *gpu_host;

void gpu_use(const oxb_host *services) { gpu_host = services; }

static uint64_t scale_bytes(const oxb_device_format_info *info, uint64_t n_rows, uint64_t k) {
    return n_rows * (k / info->group_size) * info->scale_bytes;
}

uint32_t gpu_weight_layouts(void *device, oxb_device_format format, uint64_t n_rows, uint64_t k,
                            oxb_weight_layout layouts[OXB_MAX_LAYOUTS]) {
    (void)device;
    const oxb_device_format_info *info = gpu_host->device_format(format);
    if (!info->coded) return 0;
    const uint64_t codes_offset = (scale_bytes(info, n_rows, k) + 15) / 16 * 16;
    layouts[0] = (oxb_weight_layout){.id = GPU_LAYOUT_COLUMNS,
                                     .size = codes_offset +
                                             n_rows * (k / info->group_size) * info->code_bytes,
                                     .codes_offset = codes_offset};
    return 1;
}

/* Put `n` rows of `columns` elements each in the places of rows first, first + 1, ... of n_rows. */
static void spread(const uint8_t *from, uint64_t n, uint64_t columns, size_t size, uint64_t first,
                   uint64_t n_rows, uint8_t *to) {
    for (uint64_t c = 0; c < columns; c++) {
        uint8_t *at = to + (c * n_rows + first) * size;
        for (uint64_t r = 0; r < n; r++)
            memcpy(at + r * size, from + (r * columns + c) * size, size);
    }
}

oxb_status gpu_weight_pack(void *device, uint32_t layout, oxb_file_format format, const void *from,
                           uint64_t n_rows, uint64_t k, void *to, int *fits) {
    (void)device;
    (void)layout; /* there is one */
    const oxb_file_format_info *info = gpu_host->file_format(format);
    const oxb_device_format_info *codes_of = gpu_host->device_format(info->device_format);
    const uint64_t blocks = k / info->block_weights, scale_groups = k / codes_of->group_size,
                   loads = k / LOAD_WEIGHTS(codes_of),
                   row_bytes = scale_groups * codes_of->code_bytes;
    const uint64_t used = scale_bytes(codes_of, n_rows, k), codes_offset = (used + 15) / 16 * 16;
    const size_t of_scale = codes_of->scale_bytes, of_load = (size_t)(row_bytes / loads);
    uint8_t *scales = malloc(STRIP_ROWS * (scale_groups * of_scale + row_bytes));
    if (!scales) {
        return gpu_host->fail(OXB_BUFFER_CREATION_FAILED,
                              "out of memory to pack rows of %llu weights", (unsigned long long)k);
    }
    uint8_t *codes = scales + STRIP_ROWS * scale_groups * of_scale;
    for (uint64_t row = 0; row < n_rows; row += STRIP_ROWS) {
        const uint64_t n = n_rows - row < STRIP_ROWS ? n_rows - row : STRIP_ROWS;
        gpu_host->reformat_blocks(format, (const uint8_t *)from + row * blocks * info->block_bytes,
                                  n * blocks, scales, codes);
        spread(scales, n, scale_groups, of_scale, row, n_rows, to);
        spread(codes, n, loads, of_load, row, n_rows, (uint8_t *)to + codes_offset);
    }
    memset((uint8_t *)to + used, 0, codes_offset - used);
    free(scales);
    *fits = 1;
    return OXB_OK;
}
