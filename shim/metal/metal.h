/* Shared by the files of the driver "metal": Apple's Metal through Objective-C, with manual retain
 * and release. driver.m has the table and the devices, probe.m what a device must do to be
 * admitted, queue.m command buffers and their failures, submit.m submissions, pace.m how long they
 * take, kernels.m libraries and pipelines, buffers.m memory, residency.m what keeps it there,
 * capture.m captures.
 *
 * They build against Apple's frameworks, and on other systems against GNUstep and the simulated
 * Metal of tests/simulators/metal_sim, so they keep to what both compile: no literals or subscripts
 * of Objective-C objects, no modules, and nothing newer than macOS 12 but what is looked up at run
 * time.
 *
 * A comment where a reference is made says who owns it: +1 is ours to release, +0 lives until the
 * autorelease pool is drained. Every entry point runs through metal_guarded(), which holds the pool
 * and turns an Objective-C exception into a status.
 *
 * Locks: library_lock is never held while compiling. blit_lock is held while the device works, so
 * that one blit of ours is in flight at a time. submit_lock is held while a list is encoded and
 * waits for a place in the queue, so that no other list gets between the command buffers of one.
 * Completion handlers take none of the three, and no two of them are held at once. The locks of a
 * queue, a job and of the pace are leaves: Metal is not called with one held. Those of residency.m
 * are taken last, also where a completion handler frees a buffer.
 */
#ifndef METAL_DRIVER_H
#define METAL_DRIVER_H

#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>

#include "gpu/gpu.h"

#if defined(__has_feature)
#if __has_feature(objc_arc)
#error "the driver is written for manual retain and release: compile it with -fno-objc-arc"
#endif
#endif

#define METAL_SIMD_WIDTH 32u

#ifndef METAL_PROBE_SECONDS
#define METAL_PROBE_SECONDS 30.0 /* for what is tried while a device is opened */
#endif

#ifdef OXB_DRIVER_LIBRARY
#define METAL_EXPORT __attribute__((visibility("default")))
#else
#define METAL_EXPORT
#endif

typedef struct metal_family {
    id<MTLLibrary> library; /* +1; nil until it is needed */
    bool compiling;
} metal_family;

typedef struct metal_queue metal_queue;
typedef struct metal_residency metal_residency;

/* What was measured of all pipelines; see pace.m. */
typedef struct metal_pace {
    pthread_mutex_t lock;
    /* Guarded by lock, as are `pace`, `share` and `measured` of the pipelines. */
    double work, seconds; /* of dispatches of many vectors, sums that fade */
} metal_pace;

typedef struct metal_device {
    gpu_traits traits;          /* first: shim/gpu finds it there */
    id<MTLDevice> device;       /* +1 */
    metal_queue *queue;         /* owned */
    metal_residency *residency; /* owned; NULL where there are no residency sets */
    id<MTLLibrary> metallib;    /* +1; nil unless OXIBONSAI_METALLIB asks for one */
    uint32_t index;
    uint64_t max_threadgroup_memory;
    pthread_mutex_t library_lock;
    pthread_cond_t library_change;
    pthread_mutex_t blit_lock;
    pthread_mutex_t submit_lock;
    metal_pace pace;
    bool debug;              /* OXIBONSAI_METAL_DEBUG */
    NSString *unmapped;      /* +1; why no memory can be wrapped, or nil */
    metal_family families[]; /* as gpu_msl_families; guarded by library_lock */
} metal_device;

typedef struct metal_pipeline {
    id<MTLComputePipelineState> state; /* +1 */
    NSString *name;                    /* +1 */
    double pace;                       /* seconds of a multiply-add; 0: none measured */
    double share;                      /* scratch of metal_pace_learn() */
    double measured;                   /* seconds that it took of what was measured */
} metal_pipeline;

/* driver.m */

extern const oxb_host *metal_host;
/* The most multiply-adds of one dispatch. */
extern uint64_t metal_dispatch_work;
/* Keep a message for the caller's thread and give `status` back: metal_fail(status, format, ...).
 */
#define metal_fail metal_host->fail

/* Texts for messages: UTF-8 bytes that are valid until the pool ends, and +0 strings, never nil. */
#define metal_text(...) [NSString stringWithFormat:@__VA_ARGS__]
const char *metal_utf8(NSString *text);
NSString *metal_string(const char *bytes);
NSString *metal_why(NSError *error);

/* Run `body` inside an autorelease pool; an exception becomes the status `code`. */
oxb_status metal_guarded(oxb_status code, oxb_status (^body)(void));
/* Release a handle that is an Objective-C object, such as a library. */
void metal_object_free(void *device, void *object);

/* probe.m */

/* Compile and run what the kernels are built on; nil, or why the device is refused, +0. A device
 * is admitted by what it does and never by its family, which virtual machines under-report. Threads
 * that open one device at once share a probe. */
NSString *metal_probe(metal_device *self);

/* queue.m */

/* Owned by the caller, or NULL where Metal gives no queue; may raise. */
metal_queue *metal_queue_new(id<MTLDevice> device, metal_residency *residency);
/* What is in flight keeps it alive. */
void metal_queue_release(metal_queue *queue);
/* A command buffer, +0, with what `encode` puts into it, or nil with the reason, +0: that of
 * `encode`, or of Metal. Waits while the queue is full, and after an error until nothing is in
 * flight and there is a fresh queue; for ever where `seconds` is negative. Never raises. What it
 * gives has a place in the queue and must be committed. `kept`: the caller keeps all objects that
 * `encode` uses until the command buffer has ended, so that Metal need not retain each. */
id<MTLCommandBuffer> metal_encode(metal_device *self, NSString *label, double seconds, bool kept,
                                  NSString * (^encode)(id<MTLCommandBuffer>), NSString **reason);
/* nil, or the reason, +0, and then `finished` is not called. Else it is called once, in a pool of a
 * thread of Metal's, with nil or why the command buffer failed. Never raises. */
NSString *metal_commit(metal_device *self, id<MTLCommandBuffer> commands,
                       void (^finished)(id<MTLCommandBuffer>, NSString *));
/* nil where a finished command buffer completed, else the reason with what to do, +0. */
NSString *metal_failure(id<MTLCommandBuffer> commands);

/* How a command buffer ended, for what is done about it. */
typedef enum metal_end {
    METAL_COMPLETED,
    METAL_TOO_LONG, /* macOS ended it for the time that it took */
    METAL_IGNORED,  /* it was not run because of an earlier error of the device */
    METAL_FAILED,   /* otherwise */
    METAL_NO_END    /* it was not committed, or is still running */
} metal_end;

/* An error that Metal gives may be another program's, and pass. */
#define METAL_ANY_ERROR (1u << METAL_TOO_LONG | 1u << METAL_IGNORED | 1u << METAL_FAILED)

/* Of a finished command buffer. */
metal_end metal_end_of(id<MTLCommandBuffer> commands);
/* Encode, commit and wait until completion; nil, or the reason, +0. What ends in one of `again`, a
 * bit for each, is encoded and run a second time. */
NSString *metal_run(metal_device *self, NSString *label, double seconds, unsigned again,
                    NSString * (^encode)(id<MTLCommandBuffer>));

/* submit.m */

oxb_status metal_submit(void *device, const oxb_driver_dispatch *list, uint32_t n, void **replay,
                        oxb_driver_done done, void *context);

/* pace.m */

/* How many of the n dispatches go into one command buffer, 1 at the least; `whole` at the start of
 * a list, which stays whole up to twice the time of a part. */
uint32_t metal_pace_cut(metal_pace *pace, const oxb_driver_dispatch *list, uint32_t n, bool whole);
/* Take in how long a command buffer of n dispatches took until it ended; 0: not known. */
void metal_pace_learn(metal_pace *pace, const oxb_driver_dispatch *list, uint32_t n, double seconds,
                      metal_end end);
double metal_work_rate(void *device);

/* kernels.m */

/* +1, or nil with the reason, +0. Never raises. */
id<MTLLibrary> metal_compile(id<MTLDevice> device, NSString *source, NSString **reason);
/* +1, or nil with the reason, +0. */
id<MTLFunction> metal_new_function(id<MTLLibrary> library, NSString *name,
                                   const oxb_constant *constants, uint32_t n, NSString **reason);
/* Load the metallib that the environment asks for, where it does. */
oxb_status metal_load_metallib(metal_device *self);
/* Owned by the caller, or NULL with the reason, +0. */
metal_pipeline *metal_make_pipeline(id<MTLDevice> device, id<MTLFunction> function, NSString *name,
                                    oxb_pipeline_info *info, NSString **reason);

oxb_status metal_library_new(void *device, const char *source, size_t length, void **library);
oxb_status metal_pipeline_new(void *device, void *library, const char *function,
                              const oxb_constant *constants, uint32_t n_constants, void **pipeline,
                              oxb_pipeline_info *info);
void metal_pipeline_free(void *device, void *pipeline);

/* buffers.m */

/* While the device is opened: nil, or why it cannot work on wrapped host memory, +0. */
NSString *metal_try_mapping(metal_device *self);
oxb_status metal_buffer_new(void *device, uint64_t length, oxb_storage storage, void **buffer,
                            void **contents);
void metal_buffer_free(void *device, void *buffer);
oxb_status metal_buffer_wrap(void *device, void *memory, uint64_t length, void **buffer);
oxb_status metal_buffer_read(void *device, void *buffer, uint64_t offset, void *to,
                             uint64_t length);
oxb_status metal_buffer_write(void *device, void *buffer, uint64_t offset, const void *from,
                              uint64_t length);
oxb_status metal_buffer_fill(void *device, void *buffer, uint64_t offset, uint64_t length,
                             uint8_t value);

/* residency.m; none of these raises or waits for another thread's call, and all take NULL. */

/* Owned, or NULL where the system or the device has no residency sets. */
metal_residency *metal_residency_new(id<MTLDevice> device);
void metal_residency_free(metal_residency *residency);
/* Make the set that of a queue. */
void metal_residency_attach(metal_residency *residency, id<MTLCommandQueue> queue);
void metal_residency_add(metal_residency *residency, id<MTLBuffer> buffer);
void metal_residency_remove(metal_residency *residency, id<MTLBuffer> buffer);
/* Before a submission. */
void metal_residency_use(metal_residency *residency);

/* capture.m */

oxb_status metal_capture_start(void *device, const char *path);
oxb_status metal_capture_stop(void *device);

#endif
