/* Buffers: device memory and wrapped host memory. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "front.h"

/* Bytes: kernels load up to 16 at once. */
#define WRAP_ALIGNMENT 16u

uint64_t oxb_page_size(void) {
    long size = sysconf(_SC_PAGESIZE);
    return size > 0 ? (uint64_t)size : 4096;
}

static oxb_status new_handle(oxb_device *device, uint64_t length, oxb_buffer **out) {
    if (length == 0) {
        return front_fail(OXB_BUFFER_CREATION_FAILED,
                          "cannot make a buffer of 0 bytes: at least 1 is needed");
    }
    if (length > device->info.max_buffer_length) {
        return front_fail(OXB_BUFFER_CREATION_FAILED,
                          "cannot make a buffer of %llu bytes: the limit of device %s is %llu",
                          (unsigned long long)length, device->info.name,
                          (unsigned long long)device->info.max_buffer_length);
    }
    oxb_buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer) return front_fail(OXB_BUFFER_CREATION_FAILED, "out of memory for a buffer handle");
    atomic_init(&buffer->refs, 1);
    buffer->device = device;
    buffer->length = length;
    *out = buffer;
    return OXB_OK;
}

oxb_status oxb_buffer_new(oxb_device *device, uint64_t length, oxb_storage storage,
                          oxb_buffer **out) {
    oxb_buffer *buffer = NULL;
    oxb_status status = new_handle(device, length, &buffer);
    if (status != OXB_OK) return status;
    buffer->storage = storage;
    status =
        device->driver->buffer_new(device->impl, length, storage, &buffer->impl, &buffer->contents);
    if (status != OXB_OK) {
        free(buffer);
        return status;
    }
    oxb_device_retain(device);
    atomic_fetch_add(&device->buffers, 1);
    atomic_fetch_add(&device->allocated_bytes, length);
    *out = buffer;
    return OXB_OK;
}

oxb_status oxb_buffer_wrap(oxb_device *device, void *memory, uint64_t length, int read_only,
                           void (*release)(void *), void *context, oxb_buffer **out) {
    if ((uintptr_t)memory % WRAP_ALIGNMENT) {
        return front_fail(OXB_BUFFER_CREATION_FAILED,
                          "cannot wrap %llu bytes at %p without a copy: the address must be a "
                          "multiple of %u; copy the "
                          "data instead",
                          (unsigned long long)length, memory, WRAP_ALIGNMENT);
    }
    /* Devices map whole pages: the driver wraps the pages that hold the memory. */
    uint64_t page = device->info.page_size ? device->info.page_size : oxb_page_size();
    uint64_t base = (uintptr_t)memory % page;
    oxb_buffer *buffer = NULL;
    oxb_status status = new_handle(device, length, &buffer);
    if (status != OXB_OK) return status;
    status = device->driver->buffer_wrap(device->impl, (char *)memory - base,
                                         (base + length + page - 1) / page * page, &buffer->impl);
    if (status != OXB_OK) {
        free(buffer);
        return status;
    }
    buffer->storage = OXB_STORAGE_SHARED;
    buffer->contents = memory;
    buffer->base = base;
    buffer->wrapped = 1;
    buffer->read_only = read_only;
    buffer->release = release;
    buffer->release_context = context;
    oxb_device_retain(device);
    atomic_fetch_add(&device->buffers, 1);
    *out = buffer;
    return OXB_OK;
}

void oxb_buffer_retain(oxb_buffer *buffer) {
    atomic_fetch_add_explicit(&buffer->refs, 1, memory_order_relaxed);
}

void oxb_buffer_release(oxb_buffer *buffer) {
    if (!buffer || atomic_fetch_sub_explicit(&buffer->refs, 1, memory_order_acq_rel) != 1) return;
    oxb_device *device = buffer->device;
    device->driver->buffer_free(device->impl, buffer->impl);
    atomic_fetch_sub(&device->buffers, 1);
    if (!buffer->wrapped) atomic_fetch_sub(&device->allocated_bytes, buffer->length);
    if (buffer->release) buffer->release(buffer->release_context);
    free(buffer);
    oxb_device_release(device);
}

void *oxb_buffer_contents(oxb_buffer *buffer) { return buffer->contents; }

uint64_t oxb_buffer_length(oxb_buffer *buffer) { return buffer->length; }

static oxb_status check_range(const oxb_buffer *buffer, const char *what, uint64_t offset,
                              uint64_t length) {
    if (offset <= buffer->length && length <= buffer->length - offset) return OXB_OK;
    return front_fail(
        OXB_ENCODING_FAILED, "cannot %s %llu bytes at offset %llu of a buffer of %llu bytes", what,
        (unsigned long long)length, (unsigned long long)offset, (unsigned long long)buffer->length);
}

oxb_status oxb_buffer_read(oxb_buffer *buffer, uint64_t offset, void *to, uint64_t length) {
    oxb_status status = check_range(buffer, "read", offset, length);
    if (status != OXB_OK || length == 0) return status;
    if (buffer->contents) {
        memmove(to, (const char *)buffer->contents + offset, length);
        return OXB_OK;
    }
    return buffer->device->driver->buffer_read(buffer->device->impl, buffer->impl, offset, to,
                                               length);
}

oxb_status oxb_buffer_write(oxb_buffer *buffer, uint64_t offset, const void *from,
                            uint64_t length) {
    oxb_status status = check_range(buffer, "write", offset, length);
    if (status != OXB_OK || length == 0) return status;
    if (buffer->read_only)
        return front_fail(OXB_ENCODING_FAILED, "cannot write a buffer over read-only memory");
    if (buffer->contents) {
        memmove((char *)buffer->contents + offset, from, length);
        return OXB_OK;
    }
    return buffer->device->driver->buffer_write(buffer->device->impl, buffer->impl, offset, from,
                                                length);
}

oxb_status oxb_buffer_fill(oxb_buffer *buffer, uint64_t offset, uint64_t length, uint8_t value) {
    oxb_status status = check_range(buffer, "fill", offset, length);
    if (status != OXB_OK || length == 0) return status;
    if (buffer->read_only)
        return front_fail(OXB_ENCODING_FAILED, "cannot fill a buffer over read-only memory");
    if (buffer->contents) {
        memset((char *)buffer->contents + offset, value, length);
        return OXB_OK;
    }
    return buffer->device->driver->buffer_fill(buffer->device->impl, buffer->impl, offset, length,
                                               value);
}
