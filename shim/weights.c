/* Weight matrices on a device: layout, upload and the check of a shape against what was uploaded. */
#include <stdlib.h>

#include "oxb_internal.h"

#define MAX_DIMENSION 0x7fffffffull

static oxb_status check_shape(const oxb_format_info *info, uint64_t length, uint64_t n_rows, uint64_t k) {
    if (n_rows == 0 || k == 0 || n_rows > MAX_DIMENSION || k > MAX_DIMENSION) {
        return oxb_fail(OXB_ENCODING_FAILED, "a weight of %llu x %llu: rows and k must lie in 1..%llu",
                        (unsigned long long)n_rows, (unsigned long long)k, MAX_DIMENSION);
    }
    if (k % info->block_weights) {
        return oxb_fail(OXB_ENCODING_FAILED, "k = %llu is not a multiple of %u, the block of %s", (unsigned long long)k,
                        info->block_weights, info->name);
    }
    uint64_t expected = n_rows * (k / info->block_weights) * info->block_bytes;
    if (expected != length) {
        return oxb_fail(OXB_ENCODING_FAILED, "a %llu x %llu weight in %s takes %llu bytes, the input has %llu",
                        (unsigned long long)n_rows, (unsigned long long)k, info->name,
                        (unsigned long long)expected, (unsigned long long)length);
    }
    return OXB_OK;
}

oxb_status oxb_weight_upload(oxb_device *device, oxb_file_format format, const void *from, uint64_t length,
                             uint64_t n_rows, uint64_t k, oxb_weight *weight) {
    uint64_t size, codes_offset;
    oxb_status status = oxb_reformat_size(format, length, &size, &codes_offset);
    if (status != OXB_OK) return status;
    const oxb_format_info *info = oxb_format(format);
    if ((n_rows || k) && (status = check_shape(info, length, n_rows, k)) != OXB_OK) return status;
    oxb_buffer *buffer = NULL;
    int unified = device->info.unified_memory != 0;
    status = oxb_buffer_new(device, size, unified ? OXB_STORAGE_SHARED : OXB_STORAGE_PRIVATE, &buffer);
    if (status != OXB_OK) return status;
    /* Straight into the device's memory where it has an address; else kernels would read the host's over
     * the bus, and the reformatted bytes are copied once. */
    void *scratch = unified ? NULL : malloc((size_t)size);
    if (!unified && !scratch) {
        status = oxb_fail(OXB_BUFFER_CREATION_FAILED, "out of memory to reformat a weight of %llu bytes",
                          (unsigned long long)size);
    } else {
        status = oxb_reformat(format, from, length, unified ? buffer->contents : scratch);
        if (status == OXB_OK && !unified) status = oxb_buffer_write(buffer, 0, scratch, size);
    }
    free(scratch);
    if (status != OXB_OK) {
        oxb_buffer_release(buffer);
        return status;
    }
    *weight = (oxb_weight){.buffer = buffer,
                           .codes_offset = codes_offset,
                           .n_groups = length / info->block_bytes *
                                       (info->block_weights / oxb_kernel(info->kernel)->group),
                           .kernel = info->kernel,
                           .n_rows = (uint32_t)n_rows,
                           .k = (uint32_t)k};
    return OXB_OK;
}

oxb_status oxb_weight_check(const oxb_weight *weight, uint64_t n_rows, uint64_t k, const char *what) {
    const oxb_kernel_format_info *kernel = oxb_kernel((oxb_kernel_format)weight->kernel);
    if (!kernel || !weight->buffer) return oxb_fail(OXB_ENCODING_FAILED, "%s: not an uploaded weight", what);
    if (n_rows == 0 || k == 0 || n_rows > MAX_DIMENSION || k > MAX_DIMENSION) {
        return oxb_fail(OXB_ENCODING_FAILED, "%s: %llu x %llu: rows and k must lie in 1..%llu", what,
                        (unsigned long long)n_rows, (unsigned long long)k, MAX_DIMENSION);
    }
    if (weight->n_rows) {
        if (weight->n_rows == n_rows && weight->k == k) return OXB_OK;
        return oxb_fail(OXB_ENCODING_FAILED, "%s: the weight is %u x %u, the call needs %llu x %llu", what,
                        weight->n_rows, weight->k, (unsigned long long)n_rows, (unsigned long long)k);
    }
    if (k % kernel->group) {
        return oxb_fail(OXB_ENCODING_FAILED, "%s: k = %llu is not a multiple of %u, the group of %s", what,
                        (unsigned long long)k, kernel->group, kernel->name);
    }
    if (n_rows * (k / kernel->group) != weight->n_groups) {
        return oxb_fail(OXB_ENCODING_FAILED,
                        "%s: %llu x %llu takes %llu groups of %u weights, the weight holds %llu", what,
                        (unsigned long long)n_rows, (unsigned long long)k,
                        (unsigned long long)(n_rows * (k / kernel->group)), kernel->group,
                        (unsigned long long)weight->n_groups);
    }
    return OXB_OK;
}
