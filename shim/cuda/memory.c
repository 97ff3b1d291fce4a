/* Memory of the driver "cuda". Private storage is the device's own. Shared storage is pinned memory
 * of the host that the device reaches over the bus: for small things that both sides touch. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_driver.h"

#define PAGE_BYTES  4096u /* the smallest there are */
#define STAGE_BYTES ((uint64_t)4 << 20)
#ifndef CUDA_COPY_SECONDS
#define CUDA_COPY_SECONDS 120.0 /* up to 16 submissions may be ahead of a copy */
#endif

static oxb_status no_memory(cuda_device *self, uint64_t length, const char *call,
                            cuda_result result) {
    char text[CUDA_TEXT_BYTES];
    size_t available = 0, total = 0;
    (void)cuda.MemGetInfo(&available, &total);
    return cuda_fail(OXB_BUFFER_CREATION_FAILED,
                     "cannot make a buffer of %" PRIu64
                     " bytes: device %s has %zu of its %zu bytes free (%s)",
                     length, self->name, available, total, cuda_text(text, call, result));
}

/* Zeroed, so that a buffer never shows what the device held before. */
static oxb_status make_private(cuda_device *self, uint64_t length, cuda_buffer *buffer) {
    cuda_result result = cuda.MemAlloc(&buffer->address, (size_t)length);
    if (result != CUDA_OK) return no_memory(self, length, "cuMemAlloc", result);
    result = cuda.MemsetD8Async(buffer->address, 0, (size_t)length, self->stream);
    if (result == CUDA_OK) return OXB_OK; /* later work sees it: there is one stream */
    (void)cuda.MemFree(buffer->address);
    return no_memory(self, length, "cuMemsetD8Async", result);
}

static oxb_status make_shared(cuda_device *self, uint64_t length, cuda_buffer *buffer) {
    cuda_result result =
        cuda.MemHostAlloc(&buffer->host, (size_t)length, CUDA_HOST_PORTABLE | CUDA_HOST_MAPPED);
    if (result != CUDA_OK) return no_memory(self, length, "cuMemHostAlloc", result);
    result = cuda.MemHostGetDevicePointer(&buffer->address, buffer->host, 0);
    if (result != CUDA_OK) {
        (void)cuda.MemFreeHost(buffer->host);
        return no_memory(self, length, "cuMemHostGetDevicePointer", result);
    }
    memset(buffer->host, 0, (size_t)length);
    return OXB_OK;
}

oxb_status cuda_buffer_new(void *device, uint64_t length, oxb_storage storage, void **buffer,
                           void **contents) {
    cuda_device *self = device;
    cuda_buffer *made = calloc(1, sizeof *made);
    if (!made) return cuda_fail(OXB_BUFFER_CREATION_FAILED, "out of memory for a buffer handle");
    oxb_status status = cuda_enter(self, OXB_BUFFER_CREATION_FAILED);
    if (status == OXB_OK) {
        status = storage == OXB_STORAGE_SHARED ? make_shared(self, length, made)
                                               : make_private(self, length, made);
        cuda_leave();
    }
    if (status != OXB_OK) {
        free(made);
        return status;
    }
    *buffer = made;
    *contents = made->host;
    return OXB_OK;
}

/* Wrapped memory. Pages are registered once however many buffers wrap them, since CUDA refuses to
 * register a page twice: a buffer holds the registrations that its pages lie in. registry_lock
 * guards the list and is held while CUDA registers. */

static void drop_registrations(cuda_device *self, cuda_buffer *buffer) {
    for (uint32_t i = 0; i < buffer->n_registrations; i++) {
        cuda_registration *r = buffer->registrations[i];
        if (--r->refs) continue;
        cuda_registration **place = &self->registrations;
        while (*place != r) place = &(*place)->next;
        *place = r->next;
        (void)cuda.MemHostUnregister(r->start);
        free(r);
    }
    free(buffer->registrations);
    buffer->registrations = NULL;
    buffer->n_registrations = 0;
}

/* The registration that holds `at`, or NULL and where the next one begins. */
static cuda_registration *registration_at(const cuda_device *self, const char *at,
                                          const char **next) {
    for (cuda_registration *r = self->registrations; r; r = r->next) {
        if (r->start <= at && at < r->start + r->length) return r;
        if (r->start > at && r->start < *next) *next = r->start;
    }
    return NULL;
}

static cuda_result register_pages(cuda_device *self, char *start, uint64_t length,
                                  cuda_registration **out) {
    cuda_registration *made = calloc(1, sizeof *made);
    if (!made) return CUDA_NO_MEMORY;
    unsigned flags = CUDA_HOST_PORTABLE | CUDA_HOST_MAPPED;
    cuda_result result = cuda.MemHostRegister(start, (size_t)length, flags);
    /* Memory that the process may only read, such as a mapped file. */
    if (result != CUDA_OK && result != CUDA_HOST_MEMORY_REGISTERED && result != CUDA_NO_MEMORY)
        result = cuda.MemHostRegister(start, (size_t)length, flags | CUDA_HOST_READ_ONLY);
    if (result != CUDA_OK) {
        free(made);
        return result;
    }
    *made = (cuda_registration){.next = self->registrations, .start = start, .length = length};
    self->registrations = made;
    *out = made;
    return CUDA_OK;
}

/* Whether all of the memory is pinned already, as a shared buffer's is: the device has an address
 * for it. */
static bool is_pinned(char *start, uint64_t length, cuda_address *address) {
    for (uint64_t at = 0; at < length; at += PAGE_BYTES) {
        cuda_address found = 0;
        if (cuda.MemHostGetDevicePointer(&found, start + at, 0) != CUDA_OK) return false;
        if (at == 0) *address = found;
        if (found != *address + at) return false;
    }
    return true;
}

static cuda_result hold_pages(cuda_device *self, char *start, uint64_t length,
                              cuda_buffer *buffer) {
    for (char *at = start, *end = start + length; at < end;) {
        const char *next = end;
        cuda_registration *r = registration_at(self, at, &next);
        if (!r) {
            cuda_result result = register_pages(self, at, (uint64_t)(next - at), &r);
            if (result != CUDA_OK && buffer->n_registrations == 0 &&
                is_pinned(start, length, &buffer->address)) {
                buffer->borrowed = true;
                return CUDA_OK;
            }
            if (result != CUDA_OK) return result;
        }
        cuda_registration **grown = realloc(buffer->registrations, (buffer->n_registrations + 1) *
                                                                       sizeof(cuda_registration *));
        r->refs++;
        if (!grown) {
            if (r->refs == 1) { /* made just now: nothing else frees it */
                self->registrations = r->next;
                (void)cuda.MemHostUnregister(r->start);
                free(r);
            } else {
                r->refs--;
            }
            return CUDA_NO_MEMORY;
        }
        buffer->registrations = grown;
        buffer->registrations[buffer->n_registrations++] = r;
        at = r->start + r->length;
    }
    /* Several registrations lie side by side for the device only where it has the host's addresses.
     */
    if (buffer->n_registrations > 1 && !self->uses_host_pointer) return CUDA_HOST_MEMORY_REGISTERED;
    return cuda.MemHostGetDevicePointer(&buffer->address, start, 0);
}

oxb_status cuda_buffer_wrap(void *device, void *host, uint64_t length, void **buffer) {
    cuda_device *self = device;
    cuda_buffer *made = calloc(1, sizeof *made);
    if (!made) return cuda_fail(OXB_BUFFER_CREATION_FAILED, "out of memory for a buffer handle");
    oxb_status status = cuda_enter(self, OXB_BUFFER_CREATION_FAILED);
    if (status != OXB_OK) {
        free(made);
        return status;
    }
    pthread_mutex_lock(&self->registry_lock);
    cuda_result result = hold_pages(self, host, length, made);
    if (result != CUDA_OK) drop_registrations(self, made);
    pthread_mutex_unlock(&self->registry_lock);
    cuda_leave();
    if (result != CUDA_OK) {
        char text[CUDA_TEXT_BYTES];
        free(made);
        return cuda_fail(OXB_BUFFER_CREATION_FAILED,
                         "device %s cannot map the %" PRIu64
                         " bytes at %p without a copy: %s; copy the data instead",
                         self->name, length, host, cuda_text(text, "cuMemHostRegister", result));
    }
    *buffer = made;
    return OXB_OK;
}

void cuda_buffer_free(void *device, void *buffer) {
    cuda_device *self = device;
    cuda_buffer *b = buffer;
    /* In a lost context all of this fails, and the memory goes with the context. */
    bool entered = cuda.CtxPushCurrent(self->context) == CUDA_OK;
    if (b->n_registrations) {
        pthread_mutex_lock(&self->registry_lock);
        drop_registrations(self, b);
        pthread_mutex_unlock(&self->registry_lock);
    } else if (b->host) {
        (void)cuda.MemFreeHost(b->host);
    } else if (!b->borrowed) {
        (void)cuda.MemFree(b->address);
    }
    if (entered) cuda_leave();
    free(b);
}

/* Copies go through two pinned stages in turn: the host fills one while the other is on the bus,
 * and a copy that completes after a timeout writes into a stage and not into the caller's memory.
 */

void cuda_stages_free(cuda_device *self) {
    for (unsigned i = 0; i < CUDA_STAGES; i++) {
        if (self->stages[i]) (void)cuda.MemFreeHost(self->stages[i]);
        if (self->staged[i]) (void)cuda.EventDestroy(self->staged[i]);
        self->stages[i] = NULL;
        self->staged[i] = NULL;
    }
}

static cuda_result make_stages(cuda_device *self, const char **call) {
    for (unsigned i = 0; i < CUDA_STAGES; i++) {
        cuda_result result = CUDA_OK;
        void *made = self->stages[i];
        *call = "cuMemHostAlloc";
        if (!made) result = cuda.MemHostAlloc(&made, (size_t)STAGE_BYTES, CUDA_HOST_PORTABLE);
        if (result != CUDA_OK) return result;
        self->stages[i] = made;
        *call = "cuEventCreate";
        if (!self->staged[i]) result = cuda.EventCreate(&self->staged[i], CUDA_EVENT_NO_TIMES);
        if (result != CUDA_OK) return result;
    }
    return CUDA_OK;
}

static oxb_status copy_failed(cuda_device *self, const char *what, uint64_t length,
                              const char *call, cuda_result result) {
    char text[CUDA_TEXT_BYTES];
    if (result == CUDA_NOT_READY) {
        /* The device may still write to the stages: never reuse or free them. */
        for (unsigned i = 0; i < CUDA_STAGES; i++) self->stages[i] = NULL;
        return cuda_fail(OXB_EXECUTION_FAILED,
                         "cannot %s %" PRIu64
                         " bytes of a private buffer: the device did not finish within %g s",
                         what, length, CUDA_COPY_SECONDS);
    }
    return cuda_fail(OXB_EXECUTION_FAILED, "cannot %s %" PRIu64 " bytes of a private buffer: %s",
                     what, length, cuda_text(text, call, result));
}

/* One of `from` and `to` is on the host. With copy_lock held. */
static cuda_result copy_staged(cuda_device *self, cuda_address address, const char *from, char *to,
                               uint64_t length, const char **call) {
    cuda_result result = make_stages(self, call);
    uint64_t pieces = (length + STAGE_BYTES - 1) / STAGE_BYTES;
    /* Piece p starts in round p; it is completed when its stage is needed again, or at the end. */
    for (uint64_t p = 0; p < pieces + CUDA_STAGES && result == CUDA_OK; p++) {
        unsigned stage = (unsigned)(p % CUDA_STAGES);
        if (p >= CUDA_STAGES && p - CUDA_STAGES < pieces) {
            uint64_t at = (p - CUDA_STAGES) * STAGE_BYTES,
                     n = length - at < STAGE_BYTES ? length - at : STAGE_BYTES;
            *call = "cuEventQuery";
            result = cuda_wait_event(self->staged[stage], CUDA_COPY_SECONDS);
            if (result != CUDA_OK) break;
            if (to) memcpy(to + at, self->stages[stage], (size_t)n);
        }
        if (p >= pieces) continue;
        uint64_t at = p * STAGE_BYTES, n = length - at < STAGE_BYTES ? length - at : STAGE_BYTES;
        if (from) {
            memcpy(self->stages[stage], from + at, (size_t)n);
            *call = "cuMemcpyHtoDAsync";
            result =
                cuda.MemcpyHtoDAsync(address + at, self->stages[stage], (size_t)n, self->stream);
        } else {
            *call = "cuMemcpyDtoHAsync";
            result =
                cuda.MemcpyDtoHAsync(self->stages[stage], address + at, (size_t)n, self->stream);
        }
        if (result != CUDA_OK) break;
        *call = "cuEventRecord";
        result = cuda.EventRecord(self->staged[stage], self->stream);
    }
    return result;
}

static oxb_status copy(cuda_device *self, cuda_address address, const char *from, char *to,
                       uint64_t length) {
    const char *call = "";
    pthread_mutex_lock(&self->copy_lock);
    cuda_result result = copy_staged(self, address, from, to, length, &call);
    oxb_status status = result == CUDA_OK
                            ? OXB_OK
                            : copy_failed(self, from ? "write" : "read", length, call, result);
    pthread_mutex_unlock(&self->copy_lock);
    return status;
}

oxb_status cuda_copy_in(cuda_device *self, cuda_address to, const void *from, uint64_t length) {
    return copy(self, to, from, NULL, length);
}

oxb_status cuda_copy_out(cuda_device *self, void *to, cuda_address from, uint64_t length) {
    return copy(self, from, NULL, to, length);
}

oxb_status cuda_buffer_read(void *device, void *buffer, uint64_t offset, void *to,
                            uint64_t length) {
    cuda_device *self = device;
    oxb_status status = cuda_enter(self, OXB_EXECUTION_FAILED);
    if (status != OXB_OK) return status;
    status = cuda_copy_out(self, to, ((cuda_buffer *)buffer)->address + offset, length);
    cuda_leave();
    return status;
}

oxb_status cuda_buffer_write(void *device, void *buffer, uint64_t offset, const void *from,
                             uint64_t length) {
    cuda_device *self = device;
    oxb_status status = cuda_enter(self, OXB_EXECUTION_FAILED);
    if (status != OXB_OK) return status;
    status = cuda_copy_in(self, ((cuda_buffer *)buffer)->address + offset, from, length);
    cuda_leave();
    return status;
}

oxb_status cuda_buffer_fill(void *device, void *buffer, uint64_t offset, uint64_t length,
                            uint8_t value) {
    cuda_device *self = device;
    oxb_status status = cuda_enter(self, OXB_EXECUTION_FAILED);
    if (status != OXB_OK) return status;
    const char *call = "cuMemsetD8Async";
    pthread_mutex_lock(&self->copy_lock);
    cuda_result result = cuda.MemsetD8Async(((cuda_buffer *)buffer)->address + offset, value,
                                            (size_t)length, self->stream);
    if (result == CUDA_OK) result = make_stages(self, &call);
    if (result == CUDA_OK) {
        call = "cuEventRecord";
        result = cuda.EventRecord(self->staged[0], self->stream);
    }
    if (result == CUDA_OK) {
        call = "cuEventQuery";
        result = cuda_wait_event(self->staged[0], CUDA_COPY_SECONDS);
    }
    if (result != CUDA_OK) status = copy_failed(self, "fill", length, call, result);
    pthread_mutex_unlock(&self->copy_lock);
    cuda_leave();
    return status;
}
