/* Submissions of the driver "metal": a list goes as one command buffer, or as several of bounded
 * time (pace.m). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "metal.h"

/* A submitted list. */
typedef struct job {
    const oxb_driver_dispatch *list; /* there until `done` is called */
    oxb_driver_done done;
    void *context;
    pthread_mutex_t lock;
    /* Guarded by lock. */
    uint32_t left;     /* command buffers in flight, and one for metal_submit() itself */
    oxb_status status; /* with its text that of the first error */
    char text[1024];
    oxb_times times; /* begin of the first command buffer, end of the last */
} job;

static void fail_job(job *j, oxb_status status, NSString *reason) {
    pthread_mutex_lock(&j->lock);
    if (j->status == OXB_OK) {
        j->status = status;
        snprintf(j->text, sizeof j->text, "%s", metal_utf8(reason));
    }
    pthread_mutex_unlock(&j->lock);
}

static bool has_failed(job *j) {
    pthread_mutex_lock(&j->lock);
    bool failed = j->status != OXB_OK;
    pthread_mutex_unlock(&j->lock);
    return failed;
}

static void free_job(job *j) {
    pthread_mutex_destroy(&j->lock);
    free(j);
}

/* Nothing of the device may be used afterwards by a completion handler: it may be closed. */
static void leave_job(job *j) {
    pthread_mutex_lock(&j->lock);
    bool last = --j->left == 0;
    pthread_mutex_unlock(&j->lock);
    if (!last) return;
    j->done(j->context, j->status, j->status == OXB_OK ? NULL : j->text, j->times);
    free_job(j);
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

/* nil, or the reason, +0; may raise. Under debug each dispatch has an encoder with its kernel's
 * name, for an error names encoders. */
static NSString *encode_part(id<MTLCommandBuffer> commands, const oxb_driver_dispatch *list,
                             uint32_t n, bool debug) {
    BOOL grouped = [[MTLCaptureManager sharedCaptureManager] isCapturing];
    uint32_t of_encoder = debug ? 1 : n;
    for (uint32_t first = 0; first < n; first += of_encoder) {
        /* Serial: each dispatch sees what the earlier ones wrote. */
        id<MTLComputeCommandEncoder> encoder =
            [commands computeCommandEncoderWithDispatchType:MTLDispatchTypeSerial]; /* +0 */
        if (encoder == nil) return @"Metal gave no encoder";
        uint32_t memory = 0;
        @try {
            if (debug) [encoder setLabel:((const metal_pipeline *)list[first].pipeline)->name];
            for (uint32_t i = first; i < first + of_encoder; i++) {
                if (grouped)
                    [encoder pushDebugGroup:((const metal_pipeline *)list[i].pipeline)->name];
                encode_dispatch(encoder, list + i, &memory);
                if (grouped) [encoder popDebugGroup];
            }
        } @finally {
            [encoder endEncoding]; /* Metal requires it of every encoder, also after an exception */
        }
    }
    return nil;
}

static void part_finished(metal_device *self, job *j, uint32_t first, uint32_t n,
                          id<MTLCommandBuffer> commands, NSString *failure) {
    oxb_times times = {[commands GPUStartTime], [commands GPUEndTime]};
    metal_pace_learn(&self->pace, j->list + first, n, times.end - times.start,
                     metal_end_of(commands));
    if (failure != nil) fail_job(j, OXB_EXECUTION_FAILED, failure);
    pthread_mutex_lock(&j->lock);
    if (j->times.start <= 0 || (times.start > 0 && times.start < j->times.start))
        j->times.start = times.start;
    j->times.end = fmax(j->times.end, times.end);
    pthread_mutex_unlock(&j->lock);
    leave_job(j);
}

/* Encode and commit n dispatches; nil, or the reason, +0. */
static NSString *commit_part(metal_device *self, job *j, uint32_t first, uint32_t n) {
    NSString *reason = nil;
    id<MTLCommandBuffer> commands = metal_encode(
        self, @"oxibonsai", -1, true, /* the front keeps what is in the list until `done` */
        ^NSString *(id<MTLCommandBuffer> made) {
            /* Known by now, for what fails is waited for before a queue takes more. */
            if (has_failed(j)) return @"an earlier part of the list failed";
            return encode_part(made, j->list + first, n, self->debug);
        },
        &reason);
    if (commands == nil) return reason;
    pthread_mutex_lock(&j->lock);
    j->left++;
    pthread_mutex_unlock(&j->lock);
    reason = metal_commit(self, commands, ^(id<MTLCommandBuffer> finished, NSString *failure) {
        part_finished(self, j, first, n, finished, failure);
    });
    if (reason != nil) { /* it never runs, and metal_submit() still has its share of the job */
        pthread_mutex_lock(&j->lock);
        j->left--;
        pthread_mutex_unlock(&j->lock);
    }
    return reason;
}

oxb_status metal_submit(void *device, const oxb_driver_dispatch *list, uint32_t n, void **replay,
                        oxb_driver_done done, void *context) {
    metal_device *self = device;
    (void)replay; /* nothing to keep */
    job *j = calloc(1, sizeof *j);
    if (j == NULL) return metal_fail(OXB_ENCODING_FAILED, "out of memory for %u dispatches", n);
    *j = (job){.list = list, .done = done, .context = context, .left = 1};
    pthread_mutex_init(&j->lock, NULL);
    metal_residency_use(self->residency);
    uint32_t committed = 0;
    oxb_status status = OXB_OK;
    pthread_mutex_lock(&self->submit_lock);
    while (committed < n && status == OXB_OK) {
        uint32_t size =
            metal_pace_cut(&self->pace, list + committed, n - committed, committed == 0);
        /* A pool for each: command buffers that have finished are not kept for the rest. */
        status = metal_guarded(OXB_ENCODING_FAILED, ^oxb_status {
            NSString *reason = commit_part(self, j, committed, size);
            if (reason == nil) return OXB_OK;
            reason = metal_text("cannot encode dispatches %u to %u of %u: %@", committed,
                                committed + size - 1, n, reason);
            fail_job(j, OXB_ENCODING_FAILED, reason);
            return metal_fail(OXB_ENCODING_FAILED, "%s", metal_utf8(reason));
        });
        if (status == OXB_OK) committed += size;
    }
    pthread_mutex_unlock(&self->submit_lock);
    if (committed == 0) {
        free_job(j);
        return status;
    }
    /* What was committed runs, so that an error behind it comes through `done`. */
    leave_job(j);
    return OXB_OK;
}
