/* The layout of codes on GPUs: column by column, so that lanes with neighbouring rows read side by
 * side. */
#include <stdlib.h>
#include <string.h>

#include "front/front.h"

#define UNIT_BYTES 16u
#define TILE_ROWS \
    32u /* runs of 512 bytes are written, and what they come from stays in the cache */

/* Put `n` rows of `columns` elements each in the places of rows first, first + 1, ... of n_rows. */
static void spread(const uint8_t *from, uint64_t n, uint64_t columns, size_t size, uint64_t first,
                   uint64_t n_rows, uint8_t *to) {
    for (uint64_t c = 0; c < columns; c++) {
        uint8_t *at = to + (c * n_rows + first) * size;
        for (uint64_t r = 0; r < n; r++)
            memcpy(at + r * size, from + (r * columns + c) * size, size);
    }
}

oxb_status gpu_reformat_columns(oxb_file_format format, const void *from, uint64_t n_rows,
                                uint64_t k, void *to) {
    const oxb_file_format_info *info = oxb_file_format_of(format);
    const oxb_device_format_info *device = oxb_device_format_of(info->device_format);
    uint64_t blocks = k / info->block_weights, groups = k / device->group_size,
             units = k * device->bits / 8 / UNIT_BYTES;
    uint64_t size = 0, codes_offset = 0;
    oxb_status status =
        oxb_reformat_size(format, n_rows * blocks * info->block_bytes, &size, &codes_offset);
    if (status != OXB_OK) return status;
    uint8_t *scales = malloc(TILE_ROWS * (groups * 2 + units * UNIT_BYTES));
    if (!scales) {
        return front_fail(OXB_BUFFER_CREATION_FAILED,
                          "out of memory to lay out rows of %llu weights", (unsigned long long)k);
    }
    uint8_t *codes = scales + TILE_ROWS * groups * 2;
    for (uint64_t row = 0; row < n_rows; row += TILE_ROWS) {
        uint64_t n = n_rows - row < TILE_ROWS ? n_rows - row : TILE_ROWS;
        formats_reformat_blocks(format, (const uint8_t *)from + row * blocks * info->block_bytes,
                                n * blocks, scales, codes);
        spread(scales, n, groups, 2, row, n_rows, to);
        spread(codes, n, units, UNIT_BYTES, row, n_rows, (uint8_t *)to + codes_offset);
    }
    memset((uint8_t *)to + 2 * n_rows * groups, 0, codes_offset - 2 * n_rows * groups);
    free(scales);
    return OXB_OK;
}
