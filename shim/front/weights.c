/* Weight matrices on a device: layout, upload and the check of a shape against what was uploaded.
 */
#include <stdlib.h>

#include "formats/formats.h"
#include "front.h"

#define MAX_DIMENSION 0x7fffffffull

/* The reference's name for a reformat, which its users look for in the message. */
static const char *label(oxb_file_format format) {
    switch (format) {
    case OXB_FILE_FORMAT_Q1_0: return "Q1";
    case OXB_FILE_FORMAT_TQ2_0_G128: return "TQ2";
    default: return oxb_file_format_of(format)->name;
    }
}

oxb_status oxb_reformat_size(oxb_file_format format, uint64_t length, uint64_t *size,
                             uint64_t *codes_offset) {
    const oxb_file_format_info *info = oxb_file_format_of(format);
    if (!info)
        return front_fail(OXB_ENCODING_FAILED, "no weight format with number %d", (int)format);
    if (length == 0) {
        return front_fail(
            OXB_ENCODING_FAILED,
            "%s SoA reformat failed: input length 0: at least one block of %u bytes is needed",
            label(format), info->block_bytes);
    }
    if (length % info->block_bytes) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s SoA reformat failed: input length %llu is not a multiple of %u",
                          label(format), (unsigned long long)length, info->block_bytes);
    }
    *size = formats_plain_size(format, length, codes_offset);
    return OXB_OK;
}

oxb_status oxb_reformat(oxb_file_format format, const void *from, uint64_t length, void *to) {
    uint64_t size, codes_offset;
    oxb_status status = oxb_reformat_size(format, length, &size, &codes_offset);
    if (status == OXB_OK) formats_pack_plain(format, from, length, to);
    return status;
}

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

/* Blocks that are uploaded. */
typedef struct upload {
    oxb_file_format format;
    const void *from;
    uint64_t length;
} upload;

/* The layouts for a matrix, the best first; the plain one, which holds every code, is the last. */
static oxb_status list_layouts(const oxb_device *device, const upload *u, const oxb_weight *weight,
                               oxb_weight_layout layouts[OXB_MAX_LAYOUTS + 1], uint32_t *n) {
    *n = 0;
    if (weight->n_rows) {
        oxb_status status = front_weight_layouts(device, (oxb_device_format)weight->device_format,
                                                 weight->n_rows, weight->k, layouts, n);
        if (status != OXB_OK) return status;
    }
    oxb_weight_layout *plain = layouts + (*n)++;
    *plain = (oxb_weight_layout){.id = OXB_LAYOUT_PLAIN};
    plain->size = formats_plain_size(u->format, u->length, &plain->codes_offset);
    return OXB_OK;
}

static oxb_status pack(const oxb_device *device, uint32_t layout, const upload *u,
                       const oxb_weight *weight, void *to, int *fits) {
    if (layout != OXB_LAYOUT_PLAIN) {
        return device->driver->weight_pack(device->impl, layout, u->format, u->from, weight->n_rows,
                                           weight->k, to, fits);
    }
    formats_pack_plain(u->format, u->from, u->length, to);
    *fits = 1;
    return OXB_OK;
}

/* Upload in one layout. The weight's buffer stays NULL where the layout cannot hold these codes. */
static oxb_status upload_in(oxb_device *device, const oxb_weight_layout *layout, const upload *u,
                            oxb_weight *weight) {
    oxb_buffer *buffer = NULL;
    int unified = device->info.unified_memory != 0;
    oxb_status status = oxb_buffer_new(device, layout->size,
                                       unified ? OXB_STORAGE_SHARED : OXB_STORAGE_PRIVATE, &buffer);
    if (status != OXB_OK) return status;
    /* Straight into the device's memory where it has an address; else kernels would read the host's
     * over the bus, and the bytes are copied once. */
    void *staged = unified ? NULL : malloc((size_t)layout->size);
    int fits = 0;
    if (!unified && !staged) {
        status =
            front_fail(OXB_BUFFER_CREATION_FAILED, "out of memory to pack a weight of %llu bytes",
                       (unsigned long long)layout->size);
    } else {
        status = pack(device, layout->id, u, weight, unified ? buffer->contents : staged, &fits);
        if (status == OXB_OK && fits && !unified)
            status = oxb_buffer_write(buffer, 0, staged, layout->size);
    }
    free(staged);
    if (!fits || status != OXB_OK) {
        oxb_buffer_release(buffer);
        return status;
    }
    weight->buffer = buffer;
    weight->codes_offset = layout->codes_offset;
    weight->layout = layout->id;
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
    const upload u = {format, from, length};
    oxb_weight_layout layouts[OXB_MAX_LAYOUTS + 1];
    uint32_t n;
    if ((status = list_layouts(device, &u, &made, layouts, &n)) != OXB_OK) return status;
    for (uint32_t i = 0; i < n && !made.buffer; i++) {
        if ((status = upload_in(device, layouts + i, &u, &made)) != OXB_OK) return status;
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
                          "%s: %llu x %llu takes %llu scale groups of %u weights, the weight holds "
                          "%llu",
                          what, (unsigned long long)n_rows, (unsigned long long)k,
                          (unsigned long long)(n_rows * (k / format->group_size)),
                          format->group_size, (unsigned long long)weight->n_groups);
    }
    return OXB_OK;
}
