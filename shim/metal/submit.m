/* Command buffers of the driver "metal": submission, and waiting inside the driver. */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "metal.h"

/* Waiting inside the driver, for the probe and for blits; the front waits for submissions. */

typedef struct outcome {
    pthread_mutex_t lock;
    pthread_cond_t finished;
    /* Guarded by lock. */
    bool left; /* waiter or handler has released it: after a timeout the handler still runs */
    bool done;
    bool ok;
    char text[512];
} outcome;

/* Called with the lock held; unlocks it. */
static void leave_outcome(outcome *o) {
    bool last = o->left;
    o->left = true;
    pthread_mutex_unlock(&o->lock);
    if (!last) return;
    pthread_mutex_destroy(&o->lock);
    pthread_cond_destroy(&o->finished);
    free(o);
}

/* nil where a finished command buffer completed, else the reason, +0. */
NSString *metal_failure(id<MTLCommandBuffer> commands) {
    MTLCommandBufferStatus status = [commands status];
    NSError *error = [commands error]; /* +0 */
    if (status == MTLCommandBufferStatusCompleted && error == nil) return nil;
    if (error == nil)
        return metal_text("the command buffer ended with status %lu and no reason",
                          (unsigned long)status);
    return metal_text("%@ (%@ %ld)", metal_why(error), [error domain], (long)[error code]);
}

/* Commit and wait until completion; nil, or the reason, +0. */
NSString *metal_run(id<MTLCommandBuffer> commands, double seconds) {
    outcome *o = calloc(1, sizeof *o);
    if (o == NULL) return @"out of memory";
    pthread_mutex_init(&o->lock, NULL);
    clock_cond_init(&o->finished);
    [commands addCompletedHandler:^(id<MTLCommandBuffer> finished) {
        @autoreleasepool {
            NSString *reason = metal_failure(finished);
            pthread_mutex_lock(&o->lock);
            o->ok = reason == nil;
            snprintf(o->text, sizeof o->text, "%s", reason != nil ? metal_utf8(reason) : "");
            o->done = true;
            pthread_cond_signal(&o->finished);
            leave_outcome(o);
        }
    }];
    [commands commit];
    double deadline = clock_now() + seconds;
    pthread_mutex_lock(&o->lock);
    while (!o->done && clock_cond_wait_until(&o->finished, &o->lock, deadline)) {
    }
    NSString *reason = nil;
    if (!o->done)
        reason = metal_text("the device did not finish within %g s", seconds);
    else if (!o->ok)
        reason = metal_string(o->text);
    leave_outcome(o);
    return reason;
}

/* `memory` is the current length of threadgroup(0), which an encoder keeps between dispatches. */
static void encode_dispatch(id<MTLComputeCommandEncoder> encoder, const oxb_driver_dispatch *d,
                            uint32_t *memory) {
    const metal_pipeline *p = d->pipeline;
    [encoder setComputePipelineState:p->state];
    for (uint32_t i = 0; i < d->n_bindings; i++)
        [encoder setBuffer:(id<MTLBuffer>)d->bindings[i].buffer
                    offset:d->bindings[i].offset
                   atIndex:i];
    if (d->args_size != 0) [encoder setBytes:d->args length:d->args_size atIndex:d->n_bindings];
    if (d->threadgroup_memory != *memory)
        [encoder setThreadgroupMemoryLength:d->threadgroup_memory atIndex:0];
    *memory = d->threadgroup_memory;
    [encoder
         dispatchThreadgroups:MTLSizeMake(d->threadgroups.x, d->threadgroups.y, d->threadgroups.z)
        threadsPerThreadgroup:MTLSizeMake(d->threads.x, d->threads.y, d->threads.z)];
}

oxb_status metal_submit(void *device, const oxb_driver_dispatch *list, uint32_t n, void **replay,
                        oxb_driver_done done, void *context) {
    metal_device *self = device;
    (void)replay; /* nothing to keep */
    return metal_guarded(OXB_ENCODING_FAILED, ^oxb_status {
        id<MTLCommandBuffer> commands =
            [self->queue commandBuffer]; /* +0: Metal keeps it once committed */
        if (commands == nil)
            return metal_fail(OXB_ENCODING_FAILED, "Metal gave no command buffer for %u dispatches",
                              n);
        /* Serial: each dispatch sees what the earlier ones wrote. */
        id<MTLComputeCommandEncoder> encoder =
            [commands computeCommandEncoderWithDispatchType:MTLDispatchTypeSerial]; /* +0 */
        if (encoder == nil)
            return metal_fail(OXB_ENCODING_FAILED, "Metal gave no encoder for %u dispatches", n);
        [commands setLabel:@"oxibonsai"];
        BOOL grouped = [[MTLCaptureManager sharedCaptureManager] isCapturing];
        uint32_t memory = 0;
        @try {
            for (uint32_t i = 0; i < n; i++) {
                if (grouped)
                    [encoder pushDebugGroup:((const metal_pipeline *)list[i].pipeline)->name];
                encode_dispatch(encoder, list + i, &memory);
                if (grouped) [encoder popDebugGroup];
            }
        } @finally {
            [encoder endEncoding]; /* Metal requires it of every encoder, also after an exception */
        }
        [commands addCompletedHandler:^(id<MTLCommandBuffer> finished) {
            @autoreleasepool {
                NSString *reason = metal_failure(finished);
                oxb_times times = {[finished GPUStartTime], [finished GPUEndTime]};
                done(context, reason == nil ? OXB_OK : OXB_EXECUTION_FAILED,
                     reason == nil ? NULL : metal_utf8(reason), times);
            }
        }];
        [commands commit];
        return OXB_OK;
    });
}
