/* The driver "metal": devices, submission, captures. */
#import <CoreGraphics/CoreGraphics.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/builtin_drivers.h"
#include "base/clock.h"
#include "gpu/gpu.h"
#include "gpu/msl_sources.h"
#include "metal.h"

#define MAX_THREADGROUP_MEMORY ((uint64_t)32 << 10)
#define PROBE_SECONDS          30.0

const oxb_host *metal_host;

/* Where CoreGraphics is not linked MTLCreateSystemDefaultDevice gives nil, and a linker may drop a
 * framework of which nothing is used. */
__attribute__((used)) static CGDirectDisplayID (*const keep_core_graphics)(void) = CGMainDisplayID;

/* The UTF-8 bytes of `text`, for a message; valid until the pool is drained. */
const char *metal_utf8(NSString *text) {
    const char *bytes = [text UTF8String]; /* +0 */
    return bytes != NULL ? bytes : "no text";
}

NSString *metal_why(NSError *error) {
    NSString *text = [error localizedDescription]; /* +0 */
    return text != nil ? text : @"Metal gave no reason";
}

NSString *metal_string(const char *bytes) {
    NSString *text = [NSString stringWithUTF8String:bytes]; /* +0 */
    return text != nil ? text : @"(not UTF-8)";
}

oxb_status metal_guarded(oxb_status code, oxb_status (^body)(void)) {
    oxb_status status;
    @autoreleasepool {
        @try {
            status = body();
        } @catch (NSException *exception) {
            status = metal_fail(code, "Metal raised %s: %s", metal_utf8([exception name]),
                                metal_utf8([exception reason]));
        }
    }
    return status;
}

void metal_object_free(void *device, void *object) {
    (void)device;
    metal_guarded(OXB_EXECUTION_FAILED, ^oxb_status {
        [(id)object release];
        return OXB_OK;
    });
}

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

/* Devices */

/* +1: every device, the system default first. */
static NSArray *copy_devices(void) {
    NSMutableArray *devices = [[NSMutableArray alloc] init]; /* +1, the result */
    id<MTLDevice> first =
        MTLCreateSystemDefaultDevice(); /* +1; nil also without a display session */
    NSArray *all = MTLCopyAllDevices(); /* +1 */
    if (first != nil) [devices addObject:first];
    for (id<MTLDevice> device in all) {
        if (first == nil || [device registryID] != [first registryID]) [devices addObject:device];
    }
    [all release];
    [first release];
    return devices;
}

static oxb_status device_count(uint32_t *count) {
    return metal_guarded(OXB_DEVICE_NOT_FOUND, ^oxb_status {
        NSArray *devices = [copy_devices() autorelease];
        *count = (uint32_t)[devices count];
        return OXB_OK;
    });
}

/* Opening */

static const char probe_source[] = "#include <metal_stdlib>\n"
                                   "using namespace metal;\n"
                                   "kernel void oxb_probe(device uint *sums [[buffer(0)]], uint "
                                   "lane [[thread_index_in_simdgroup]])\n"
                                   "{\n"
                                   "    uint sum = simd_sum(lane + 1u);\n"
                                   "    sums[lane] = sum;\n"
                                   "}\n";

/* Run `pipeline`, the probe; nil, or what is wrong, +0. */
static NSString *run_probe(metal_device *self, metal_pipeline *pipeline) {
    id<MTLBuffer> sums =
        [[self->device newBufferWithLength:METAL_SIMD_WIDTH * sizeof(uint32_t)
                                   options:MTLResourceStorageModeShared] autorelease];
    id<MTLCommandBuffer> commands = sums != nil ? [self->queue commandBuffer] : nil; /* +0 */
    id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];         /* +0 */
    if (encoder == nil) return @"Metal gave no buffer or encoder";
    [encoder setComputePipelineState:pipeline->state];
    [encoder setBuffer:sums offset:0 atIndex:0];
    [encoder dispatchThreadgroups:MTLSizeMake(1, 1, 1)
            threadsPerThreadgroup:MTLSizeMake(METAL_SIMD_WIDTH, 1, 1)];
    [encoder endEncoding];
    NSString *reason = metal_run(commands, PROBE_SECONDS);
    const uint32_t *values = [sums contents],
                   expected = METAL_SIMD_WIDTH * (METAL_SIMD_WIDTH + 1) / 2;
    for (uint32_t i = 0; reason == nil && i < METAL_SIMD_WIDTH; i++) {
        if (values[i] != expected)
            reason = metal_text("simd_sum gave %u in lane %u, not %u", values[i], i, expected);
    }
    return reason;
}

/* Compile and run a small kernel. Virtual machines under-report the GPU family, so a device is
 * admitted by running the kernel and not by its family. nil, or why it is refused, +0. */
static NSString *probe(metal_device *self) {
    NSString *reason = nil, *name = @"oxb_probe";
    id<MTLLibrary> library =
        [metal_compile(self->device, metal_string(probe_source), &reason) autorelease];
    id<MTLFunction> function =
        library != nil ? metal_new_function(library, name, NULL, 0, &reason) : nil; /* +1 */
    [function autorelease];
    oxb_pipeline_info info;
    metal_pipeline *pipeline =
        function != nil ? metal_make_pipeline(self->device, function, name, &info, &reason) : NULL;
    if (pipeline == NULL) return metal_text("it cannot compile a kernel: %@", reason);
    if (info.simd_width != METAL_SIMD_WIDTH)
        reason = metal_text(
            "its SIMD-groups have %u threads and the kernels need %u; use the cpu device",
            info.simd_width, METAL_SIMD_WIDTH);
    @try {
        if (reason == nil) reason = run_probe(self, pipeline);
    } @finally {
        metal_pipeline_free(self, pipeline);
    }
    return reason;
}

/* Nothing is in flight and every child is freed. */
static void device_close(void *device) {
    metal_device *self = device;
    metal_guarded(OXB_EXECUTION_FAILED, ^oxb_status {
        for (unsigned i = 0; i < gpu_msl_family_count; i++) [self->families[i].library release];
        [self->precompiled release];
        [self->queue release];
        [self->device release];
        return OXB_OK;
    });
    pthread_mutex_destroy(&self->library_lock);
    pthread_cond_destroy(&self->library_change);
    pthread_mutex_destroy(&self->blit_lock);
    free(self);
}

static oxb_status open_device(uint32_t index, metal_device *self) {
    NSArray *devices = [copy_devices() autorelease];
    if (index >= [devices count])
        return metal_fail(OXB_DEVICE_NOT_FOUND, "no device \"metal:%u\": %lu present", index,
                          (unsigned long)[devices count]);
    self->device = [[devices objectAtIndex:index] retain]; /* +1 */
    self->queue = [self->device newCommandQueue];          /* +1 */
    const char *name = metal_utf8([self->device name]);
    if (self->queue == nil)
        return metal_fail(OXB_DEVICE_NOT_FOUND, "device \"metal:%u\" (%s) gave no command queue",
                          index, name);
    [self->queue setLabel:@"oxibonsai"];
    NSUInteger memory = [self->device maxThreadgroupMemoryLength];
    self->max_threadgroup_memory =
        memory < MAX_THREADGROUP_MEMORY ? memory : MAX_THREADGROUP_MEMORY;
    NSString *reason = probe(self);
    if (reason != nil)
        return metal_fail(OXB_DEVICE_NOT_FOUND, "device \"metal:%u\" (%s) is not usable: %s", index,
                          name, metal_utf8(reason));
    self->precompiled = metal_new_precompiled(self->device); /* +1 */
    return OXB_OK;
}

static oxb_status device_open(uint32_t index, const oxb_device_options *options, void **device) {
    (void)options;
    metal_device *self = calloc(1, sizeof *self + gpu_msl_family_count * sizeof *self->families);
    if (self == NULL)
        return metal_fail(OXB_DEVICE_NOT_FOUND, "out of memory opening device \"metal:%u\"", index);
    self->index = index;
    pthread_mutex_init(&self->library_lock, NULL);
    pthread_cond_init(&self->library_change, NULL);
    pthread_mutex_init(&self->blit_lock, NULL);
    oxb_status status = metal_guarded(OXB_DEVICE_NOT_FOUND, ^oxb_status {
        return open_device(index, self);
    });
    if (status == OXB_OK)
        *device = self;
    else
        device_close(self);
    return status;
}

static void device_info(void *device, oxb_device_info *info) {
    metal_device *self = device;
    *info = (oxb_device_info){.driver = "metal",
                              .variant = "msl2.4",
                              .index = self->index,
                              .simd_width = METAL_SIMD_WIDTH};
    metal_guarded(OXB_DEVICE_NOT_FOUND, ^oxb_status {
        snprintf(info->name, sizeof info->name, "%s", metal_utf8([self->device name]));
        MTLSize most = [self->device maxThreadsPerThreadgroup];
        info->unified_memory = [self->device hasUnifiedMemory] ? 1 : 0;
        info->max_buffer_length = [self->device maxBufferLength];
        info->max_threadgroup_memory = self->max_threadgroup_memory;
        info->recommended_working_set = [self->device recommendedMaxWorkingSetSize];
        info->max_threads =
            (oxb_size){(uint32_t)most.width, (uint32_t)most.height, (uint32_t)most.depth};
        return OXB_OK;
    });
}

/* Submission */

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

static oxb_status submit(void *device, const oxb_driver_dispatch *list, uint32_t n, void **replay,
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

/* Captures for Xcode */

static oxb_status capture_start(void *device, const char *path) {
    metal_device *self = device;
    return metal_guarded(OXB_ENCODING_FAILED, ^oxb_status {
        MTLCaptureManager *manager = [MTLCaptureManager sharedCaptureManager]; /* +0 */
        if (![manager supportsDestination:MTLCaptureDestinationGPUTraceDocument])
            return metal_fail(OXB_ENCODING_FAILED,
                              "Metal does not write %s: start the process with "
                              "METAL_CAPTURE_ENABLED=1 in its environment",
                              path);
        MTLCaptureDescriptor *descriptor = [[[MTLCaptureDescriptor alloc] init] autorelease];
        [descriptor setCaptureObject:self->device];
        [descriptor setDestination:MTLCaptureDestinationGPUTraceDocument];
        [descriptor setOutputURL:[NSURL fileURLWithPath:metal_string(path)]];
        NSError *error = nil;
        if (![manager startCaptureWithDescriptor:descriptor error:&error])
            return metal_fail(OXB_ENCODING_FAILED,
                              "cannot capture to %s (METAL_CAPTURE_ENABLED=1 is needed): %s", path,
                              metal_utf8(metal_why(error)));
        return OXB_OK;
    });
}

static oxb_status capture_stop(void *device) {
    (void)device;
    return metal_guarded(OXB_ENCODING_FAILED, ^oxb_status {
        MTLCaptureManager *manager = [MTLCaptureManager sharedCaptureManager]; /* +0 */
        if (![manager isCapturing]) return metal_fail(OXB_ENCODING_FAILED, "no capture is running");
        [manager stopCapture];
        return OXB_OK;
    });
}

static const oxb_driver driver = {
    .abi_version = OXB_ABI_VERSION,
    .struct_size = sizeof(oxb_driver),
    .name = "metal",
    .device_count = device_count,
    .device_open = device_open,
    .device_close = device_close,
    .device_info = device_info,
    .abilities = gpu_abilities,
    .tile = gpu_tile,
    .weight_layouts = gpu_weight_layouts,
    .weight_pack = gpu_weight_pack,
    .buffer_new = metal_buffer_new,
    .buffer_wrap = metal_buffer_wrap,
    .buffer_free = metal_object_free,
    .buffer_read = metal_buffer_read,
    .buffer_write = metal_buffer_write,
    .buffer_fill = metal_buffer_fill,
    .library_new = metal_library_new,
    .library_free = metal_object_free,
    .pipeline_new = metal_pipeline_new,
    .pipeline_free = metal_pipeline_free,
    .submit = submit,
    .capture_start = capture_start,
    .capture_stop = capture_stop,
};

const oxb_driver *metal_driver(const oxb_host *services) {
    metal_host = services;
    gpu_use(services);
    return &driver;
}

#ifdef OXB_DRIVER_LIBRARY
__attribute__((visibility("default"))) const oxb_driver *oxb_driver_entry(const oxb_host *services);

const oxb_driver *oxb_driver_entry(const oxb_host *services) { return metal_driver(services); }
#endif
