/* Memory of the driver "metal": buffers, and copies of private ones through the device. */
#include <stdlib.h>
#include <string.h>

#include <mach/vm_page_size.h>

#include "metal.h"

#define STAGING_BYTES ((uint64_t)16 << 20)
#define FILL_BYTES    ((uint64_t)1 << 30) /* a blit of 4 GiB or more is cut short without a word */
#define PATTERN       0xa7
#define WORD          4u /* ranges of a blit on macOS are multiples of this */
#ifndef METAL_BLIT_SECONDS
#define METAL_BLIT_SECONDS 120.0 /* up to 16 submissions may be ahead of a blit */
#endif

/* Copies of private buffers, through the device */

/* Run `body` with blit_lock held, so that the device has one blit of ours at a time. */
static oxb_status blitting(metal_device *self, oxb_status (^body)(void)) {
    pthread_mutex_lock(&self->blit_lock);
    oxb_status status = metal_guarded(OXB_EXECUTION_FAILED, body); /* never raises */
    pthread_mutex_unlock(&self->blit_lock);
    return status;
}

/* nil, or the reason, +0. */
static NSString *run_blit(metal_device *self, double seconds, unsigned again,
                          void (^encode)(id<MTLBlitCommandEncoder>)) {
    return metal_run(self, @"oxibonsai copy", seconds, again,
                     ^NSString *(id<MTLCommandBuffer> commands) {
                         id<MTLBlitCommandEncoder> encoder = [commands blitCommandEncoder]; /* +0 */
                         if (encoder == nil) return @"Metal gave no encoder for a copy";
                         [encoder setLabel:@"copy"];
                         @try {
                             encode(encoder);
                         } @finally {
                             [encoder endEncoding]; /* Metal requires it of every encoder */
                         }
                         return nil;
                     });
}

/* What is ignored because of an error of other work runs again: a copy or fill that has not run
 * leaves what it copies or fills as it was. nil, or the reason, +0. */
static NSString *blit(metal_device *self, void (^encode)(id<MTLBlitCommandEncoder>)) {
    return run_blit(self, METAL_BLIT_SECONDS, 1u << METAL_IGNORED, encode);
}

static oxb_status blit_failed(NSString *reason, const char *what, uint64_t offset,
                              uint64_t length) {
    return metal_fail(OXB_EXECUTION_FAILED,
                      "cannot %s %" PRIu64 " bytes at offset %" PRIu64 " of a private buffer: %s",
                      what, length, offset, metal_utf8(reason));
}

/* Copy between host memory and a private buffer in pieces, each a window of whole words; `from` or
 * `to` is NULL. A word that is written in part is read first. */
static oxb_status copy_words(metal_device *self, id<MTLBuffer> buffer, uint64_t offset,
                             const char *from, char *to, uint64_t length) {
    const char *what = from != NULL ? "write" : "read";
    uint64_t room = length + 2 * WORD < STAGING_BYTES ? length + 2 * WORD : STAGING_BYTES;
    id<MTLBuffer> staging =
        [[self->device newBufferWithLength:room options:MTLResourceStorageModeShared] autorelease];
    if (staging == nil)
        return blit_failed(@"Metal gave no memory to copy through", what, offset, length);
    for (uint64_t done = 0; done < length;) {
        uint64_t start = offset + done, lead = start % WORD, window = start - lead;
        uint64_t n = length - done < room - 2 * WORD ? length - done : room - 2 * WORD;
        uint64_t size = (lead + n + WORD - 1) / WORD * WORD;
        NSString *reason = nil;
        if (to != NULL || lead != 0 || size != n)
            reason = blit(self, ^(id<MTLBlitCommandEncoder> encoder) {
                [encoder copyFromBuffer:buffer
                           sourceOffset:window
                               toBuffer:staging
                      destinationOffset:0
                                   size:size];
            });
        if (reason == nil && to != NULL)
            memcpy(to + done, (const char *)[staging contents] + lead, n);
        if (reason == nil && from != NULL) {
            memcpy((char *)[staging contents] + lead, from + done, n);
            reason = blit(self, ^(id<MTLBlitCommandEncoder> encoder) {
                [encoder copyFromBuffer:staging
                           sourceOffset:0
                               toBuffer:buffer
                      destinationOffset:window
                                   size:size];
            });
        }
        if (reason != nil) return blit_failed(reason, what, offset, length);
        done += n;
    }
    return OXB_OK;
}

static oxb_status fill_words(metal_device *self, id<MTLBuffer> buffer, uint64_t offset,
                             uint64_t length, uint8_t value) {
    char bytes[2 * WORD];
    memset(bytes, value, sizeof bytes);
    uint64_t lead = (WORD - offset % WORD) % WORD;
    if (length <= lead + WORD) return copy_words(self, buffer, offset, bytes, NULL, length);
    uint64_t rest = (length - lead) % WORD, middle = length - lead - rest;
    oxb_status status = lead ? copy_words(self, buffer, offset, bytes, NULL, lead) : OXB_OK;
    if (status == OXB_OK && rest)
        status = copy_words(self, buffer, offset + lead + middle, bytes, NULL, rest);
    if (status != OXB_OK) return status;
    for (uint64_t done = 0; done < middle; done += FILL_BYTES) {
        uint64_t n = middle - done < FILL_BYTES ? middle - done : FILL_BYTES;
        NSString *reason = blit(self, ^(id<MTLBlitCommandEncoder> encoder) {
            [encoder fillBuffer:buffer range:NSMakeRange(offset + lead + done, n) value:value];
        });
        if (reason != nil) return blit_failed(reason, "fill", offset, length);
    }
    return OXB_OK;
}

oxb_status metal_buffer_read(void *device, void *buffer, uint64_t offset, void *to,
                             uint64_t length) {
    return blitting(device, ^oxb_status {
        return copy_words(device, (id<MTLBuffer>)buffer, offset, NULL, to, length);
    });
}

oxb_status metal_buffer_write(void *device, void *buffer, uint64_t offset, const void *from,
                              uint64_t length) {
    return blitting(device, ^oxb_status {
        return copy_words(device, (id<MTLBuffer>)buffer, offset, from, NULL, length);
    });
}

oxb_status metal_buffer_fill(void *device, void *buffer, uint64_t offset, uint64_t length,
                             uint8_t value) {
    return blitting(device, ^oxb_status {
        return fill_words(device, (id<MTLBuffer>)buffer, offset, length, value);
    });
}

/* Buffers */

oxb_status metal_buffer_new(void *device, uint64_t length, oxb_storage storage, void **buffer,
                            void **contents) {
    metal_device *self = device;
    bool shared = storage == OXB_STORAGE_SHARED;
    uint64_t size = (length + WORD - 1) / WORD * WORD; /* so that blits reach the last byte */
    __block id<MTLBuffer> made = nil;
    oxb_status status = metal_guarded(OXB_BUFFER_CREATION_FAILED, ^oxb_status {
        made = [self->device
            newBufferWithLength:size
                        options:shared ? MTLResourceStorageModeShared
                                       : MTLResourceStorageModePrivate]; /* +1, the handle's */
        if (made == nil)
            return metal_fail(OXB_BUFFER_CREATION_FAILED,
                              "no memory for a buffer of %" PRIu64 " bytes: device %s has %" PRIu64
                              " bytes allocated, and %" PRIu64 " is the most it recommends",
                              length, metal_utf8([self->device name]),
                              (uint64_t)[self->device currentAllocatedSize],
                              [self->device recommendedMaxWorkingSetSize]);
        if (shared) memset([made contents], 0, size);
        return OXB_OK;
    });
    if (status == OXB_OK && !shared) status = metal_buffer_fill(self, (void *)made, 0, size, 0);
    if (status != OXB_OK) {
        metal_object_free(self, (void *)made);
        return status;
    }
    metal_residency_add(self->residency, made);
    *contents = shared ? [made contents] : NULL;
    *buffer = (void *)made;
    return OXB_OK;
}

void metal_buffer_free(void *device, void *buffer) {
    metal_device *self = device;
    metal_residency_remove(self->residency, (id<MTLBuffer>)buffer);
    metal_object_free(self, buffer);
}

/* Wrapped host memory */

/* Hosted virtual machines have given buffers of length 0, and buffers over a copy. nil with a
 * buffer, +1, or the reason, +0. */
static NSString *wrap_pages(metal_device *self, void *memory, uint64_t length,
                            id<MTLBuffer> *buffer) {
    id<MTLBuffer> made = [self->device newBufferWithBytesNoCopy:memory
                                                         length:length
                                                        options:MTLResourceStorageModeShared
                                                    deallocator:nil]; /* +1 */
    NSString *reason = nil;
    if (made == nil)
        reason = @"Metal gave no buffer";
    else if ([made length] != length)
        reason = metal_text("Metal gave a buffer of %lu bytes", (unsigned long)[made length]);
    else if ([made contents] != memory)
        reason = @"Metal gave a buffer over memory at another address";
    if (reason == nil)
        *buffer = made;
    else
        [made release];
    return reason;
}

/* Let the device read what the host writes into a wrapped page, and write to it: it may have been
 * given a copy, while the buffer's contents are the host's. nil, or why memory is not to be
 * wrapped, +0. *busy: the device may still write to the page. */
static NSString *try_page(metal_device *self, unsigned char *bytes, NSUInteger page, bool *busy) {
    const NSUInteger half = page / 2;
    id<MTLBuffer> wrapped = nil;
    id<MTLBuffer> seen =
        [[self->device newBufferWithLength:half options:MTLResourceStorageModeShared] autorelease];
    NSString *reason =
        seen != nil ? wrap_pages(self, bytes, page, &wrapped) : @"Metal gave no buffer";
    if (reason != nil) return reason;
    [wrapped autorelease];
    for (NSUInteger i = 0; i < half; i++) bytes[i] = (unsigned char)(i * 7 + 1);
    *busy = true;
    reason =
        run_blit(self, METAL_PROBE_SECONDS, METAL_ANY_ERROR, ^(id<MTLBlitCommandEncoder> encoder) {
            [encoder copyFromBuffer:wrapped
                       sourceOffset:0
                           toBuffer:seen
                  destinationOffset:0
                               size:half];
            [encoder fillBuffer:wrapped range:NSMakeRange(half, half) value:PATTERN];
        });
    if (reason != nil) return reason;
    *busy = false;
    bool shared = memcmp([seen contents], bytes, half) == 0;
    for (NSUInteger i = half; i < page; i++) shared &= bytes[i] == PATTERN;
    return shared ? nil : @"it does not share memory with the host";
}

NSString *metal_try_mapping(metal_device *self) {
    const NSUInteger page = (NSUInteger)vm_page_size;
    NSString *reason = nil;
    bool busy = false;
    void *memory = NULL;
    if (posix_memalign(&memory, page, page) != 0) return @"out of memory";
    memset(memory, 0, page);
    @autoreleasepool { /* the buffer goes before its memory */
        @try {
            reason = [try_page(self, memory, page, &busy) retain];
        } @catch (NSException *exception) {
            reason =
                [metal_text("Metal raised %@: %@", [exception name], [exception reason]) retain];
        }
    }
    if (!busy) free(memory);
    return [reason autorelease];
}

oxb_status metal_buffer_wrap(void *device, void *memory, uint64_t length, void **buffer) {
    metal_device *self = device;
    return metal_guarded(OXB_BUFFER_CREATION_FAILED, ^oxb_status {
        id<MTLBuffer> made = nil;
        NSString *reason = self->unmapped;
        if (reason == nil) reason = wrap_pages(self, memory, length, &made);
        if (reason != nil)
            return metal_fail(OXB_BUFFER_CREATION_FAILED,
                              "device %s cannot map the %" PRIu64
                              " bytes at %p without a copy: %s; copy the data instead (copy=True)",
                              metal_utf8([self->device name]), length, memory, metal_utf8(reason));
        *buffer = (void *)made; /* +1, the handle's */
        return OXB_OK;
    });
}
