/* Weight matrices on a device: layout, upload and the check of a shape against what was uploaded.
 */
#include <stdlib.h>

#include "front.h"

#define MAX_DIMENSION 0x7fffffffull

static oxb_status check_shape(const oxb_file_format_info *info, uint64_t length, uint64_t n_rows,
                              uint64_t k) {
    if (n_rows == 0 || k == 0 || n_rows > MAX_DIMENSION || k > MAX_DIMENSION) {
        return front_fail(OXB_ENCODING_FAILED,
                          "a weight of %llu x %llu: rows and k must lie in 1..%llu",
                          (unsigned long long)n_rows, (unsigned long long)k, MAX_DIMENSION);
    }
    if (k % info->block_weights) {
        return front_fail(OXB_ENCODING_FAILED, "k = %llu is not a multiple of %u, the block of %s",
                          (unsigned long long)k, info->block_weights, info->name);
    }
    uint64_t expected = n_rows * (k / info->block_weights) * info->block_bytes;
    if (expected != length) {
        return front_fail(OXB_ENCODING_FAILED,
                          "a %llu x %llu weight in %s takes %llu bytes, the input has %llu",
                          (unsigned long long)n_rows, (unsigned long long)k, info->name,
                          (unsigned long long)expected, (unsigned long long)length);
    }
    return OXB_OK;
}

/* The size of the matrix in `layout` with the offset of its codes; 0 where the device does not use
 * it. */
static uint64_t size_in(const oxb_device *device, oxb_layout layout, oxb_file_format format,
                        uint64_t length, const oxb_weight *weight, uint64_t *codes_offset) {
    const oxb_driver *driver = device->driver;
    uint64_t size = 0;
    if (layout == OXB_LAYOUT_PLAIN) {
        return oxb_reformat_size(format, length, &size, codes_offset) == OXB_OK ? size : 0;
    }
    if (weight->n_rows == 0) return 0;
    if (layout == OXB_LAYOUT_COLUMNS) {
        int codes = oxb_device_format_of((oxb_device_format)weight->device_format)->coded;
        if (!codes || device->info.simd_width == 1) return 0;
        return oxb_reformat_size(format, length, &size, codes_offset) == OXB_OK ? size : 0;
    }
    if (!driver->weight_size) return 0;
    return driver->weight_size(device->impl, (oxb_device_format)weight->device_format, layout,
                               weight->n_rows, weight->k, codes_offset);
}

/* Lay the blocks out at `to`; 0 where `layout` cannot hold these codes. */
static int lay_out(const oxb_device *device, oxb_layout layout, oxb_file_format format,
                   const void *from, uint64_t length, const oxb_weight *weight, void *to) {
    switch (layout) {
    case OXB_LAYOUT_PLAIN: return oxb_reformat(format, from, length, to) == OXB_OK;
    case OXB_LAYOUT_COLUMNS:
        return gpu_reformat_columns(format, from, weight->n_rows, weight->k, to) == OXB_OK;
    default:
        return device->driver->weight_pack(device->impl, format, layout, from, weight->n_rows,
                                           weight->k, to);
    }
}

/* Upload in one layout. The weight's buffer stays NULL where the device does not use it for this
 * matrix, or it cannot hold these codes. */
static oxb_status upload_in(oxb_device *device, oxb_layout layout, oxb_file_format format,
                            const void *from, uint64_t length, oxb_weight *weight) {
    uint64_t codes_offset = 0,
             size = size_in(device, layout, format, length, weight, &codes_offset);
    if (size == 0) return OXB_OK;
    oxb_buffer *buffer = NULL;
    int unified = device->info.unified_memory != 0;
    oxb_status status =
        oxb_buffer_new(device, size, unified ? OXB_STORAGE_SHARED : OXB_STORAGE_PRIVATE, &buffer);
    if (status != OXB_OK) return status;
    /* Straight into the device's memory where it has an address; else kernels would read the host's
     * over the bus, and the bytes are copied once. */
    void *staged = unified ? NULL : malloc((size_t)size);
    int held = 0;
    if (!unified && !staged) {
        status =
            front_fail(OXB_BUFFER_CREATION_FAILED,
                       "out of memory to lay out a weight of %llu bytes", (unsigned long long)size);
    } else {
        held = lay_out(device, layout, format, from, length, weight,
                       unified ? buffer->contents : staged);
        if (held && !unified) status = oxb_buffer_write(buffer, 0, staged, size);
    }
    free(staged);
    if (!held || status != OXB_OK) {
        oxb_buffer_release(buffer);
        return status;
    }
    weight->buffer = buffer;
    weight->codes_offset = codes_offset;
    weight->layout = layout;
    return OXB_OK;
}

oxb_status oxb_weight_upload(oxb_device *device, oxb_file_format format, const void *from,
                             uint64_t length, uint64_t n_rows, uint64_t k, oxb_weight *weight) {
    uint64_t size, codes_offset;
    oxb_status status = oxb_reformat_size(format, length, &size, &codes_offset);
    if (status != OXB_OK) return status;
    const oxb_file_format_info *info = oxb_file_format_of(format);
    if ((n_rows || k) && (status = check_shape(info, length, n_rows, k)) != OXB_OK) return status;
    oxb_weight made = {
        .n_groups = length / info->block_bytes *
                    (info->block_weights / oxb_device_format_of(info->device_format)->group_size),
        .device_format = info->device_format,
        .n_rows = (uint32_t)n_rows,
        .k = (uint32_t)k};
    /* The best layout that can hold the codes: the plain one can hold all. */
    for (uint32_t layout = OXB_LAYOUT_COUNT; layout-- > 0 && !made.buffer;) {
        if ((status = upload_in(device, (oxb_layout)layout, format, from, length, &made)) != OXB_OK)
            return status;
    }
    *weight = made;
    return OXB_OK;
}

oxb_status oxb_weight_check(const oxb_weight *weight, uint64_t n_rows, uint64_t k,
                            const char *what) {
    const oxb_device_format_info *format =
        oxb_device_format_of((oxb_device_format)weight->device_format);
    if (!format || !weight->buffer)
        return front_fail(OXB_ENCODING_FAILED, "%s: not an uploaded weight", what);
    if (n_rows == 0 || k == 0 || n_rows > MAX_DIMENSION || k > MAX_DIMENSION) {
        return front_fail(OXB_ENCODING_FAILED, "%s: %llu x %llu: rows and k must lie in 1..%llu",
                          what, (unsigned long long)n_rows, (unsigned long long)k, MAX_DIMENSION);
    }
    if (weight->n_rows) {
        if (weight->n_rows == n_rows && weight->k == k) return OXB_OK;
        return front_fail(
            OXB_ENCODING_FAILED, "%s: the weight is %u x %u, the call needs %llu x %llu", what,
            weight->n_rows, weight->k, (unsigned long long)n_rows, (unsigned long long)k);
    }
    if (k % format->group_size) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: k = %llu is not a multiple of %u, the group of %s", what,
                          (unsigned long long)k, format->group_size, format->name);
    }
    if (n_rows * (k / format->group_size) != weight->n_groups) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: %llu x %llu takes %llu groups of %u weights, the weight holds %llu",
                          what, (unsigned long long)n_rows, (unsigned long long)k,
                          (unsigned long long)(n_rows * (k / format->group_size)),
                          format->group_size, (unsigned long long)weight->n_groups);
    }
    return OXB_OK;
}
