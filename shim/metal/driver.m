/* The driver "metal": its table, devices and texts. */
#import <CoreGraphics/CoreGraphics.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mach/vm_page_size.h>

#include "base/builtin_drivers.h"
#include "gpu/gpu.h"
#include "gpu/msl_sources.h"
#include "metal.h"

#define MAX_THREADGROUP_MEMORY ((uint64_t)32 << 10)

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

/* Nothing is in flight and every child is freed. */
static void device_close(void *device) {
    metal_device *self = device;
    metal_guarded(OXB_EXECUTION_FAILED, ^oxb_status {
        for (unsigned i = 0; i < gpu_msl_family_count; i++) [self->families[i].library release];
        [self->metallib release];
        [self->unmapped release];
        metal_residency_free(self->residency);
        metal_queue_release(self->queue);
        [self->device release];
        return OXB_OK;
    });
    pthread_mutex_destroy(&self->library_lock);
    pthread_cond_destroy(&self->library_change);
    pthread_mutex_destroy(&self->blit_lock);
    pthread_mutex_destroy(&self->submit_lock);
    pthread_mutex_destroy(&self->pace.lock);
    free(self);
}

/* Read OXIBONSAI_METAL_DEBUG. A value that it does not have is not of a missing device, which the
 * default device passes over. */
static oxb_status read_debug(bool *debug) {
    const char *value = getenv("OXIBONSAI_METAL_DEBUG");
    *debug = value != NULL && strcmp(value, "1") == 0;
    if (*debug || value == NULL || value[0] == '\0' || strcmp(value, "0") == 0) return OXB_OK;
    return metal_fail(OXB_ENCODING_FAILED,
                      "the environment variable OXIBONSAI_METAL_DEBUG is '%.64s': set 1 to have "
                      "failed command buffers name their kernels, 0 for speed, or unset it",
                      value);
}

/* The cores of a GPU, by its name: Metal does not tell. Tiles depend on it by powers of two only,
 * so that the most of each kind will do, from the M1 to the M5. */
static uint32_t cores_of(NSString *name) {
    if ([name hasSuffix:@"Ultra"]) return 80;
    if ([name hasSuffix:@"Max"]) return 40;
    if ([name hasSuffix:@"Pro"]) return 20;
    return 10;
}

static oxb_status open_device(uint32_t index, metal_device *self) {
    oxb_status status = read_debug(&self->debug);
    if (status != OXB_OK) return status;
    NSArray *devices = [copy_devices() autorelease];
    if (index >= [devices count])
        return metal_fail(OXB_DEVICE_NOT_FOUND, "no device \"metal:%u\": %lu present", index,
                          (unsigned long)[devices count]);
    self->device = [[devices objectAtIndex:index] retain]; /* +1 */
    self->residency = metal_residency_new(self->device);
    self->queue = metal_queue_new(self->device, self->residency);
    const char *name = metal_utf8([self->device name]);
    self->traits = (gpu_traits){.has = GPU_APPLE, .cores = cores_of([self->device name])};
    if (self->queue == NULL)
        return metal_fail(OXB_DEVICE_NOT_FOUND, "device \"metal:%u\" (%s) gave no command queue",
                          index, name);
    NSUInteger memory = [self->device maxThreadgroupMemoryLength];
    self->max_threadgroup_memory =
        memory < MAX_THREADGROUP_MEMORY ? memory : MAX_THREADGROUP_MEMORY;
    NSString *reason = metal_probe(self);
    if (reason != nil)
        return metal_fail(OXB_DEVICE_NOT_FOUND, "device \"metal:%u\" (%s) is not usable: %s", index,
                          name, metal_utf8(reason));
    self->unmapped = [metal_try_mapping(self) retain]; /* +1 */
    return metal_load_metallib(self);
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
    pthread_mutex_init(&self->submit_lock, NULL);
    pthread_mutex_init(&self->pace.lock, NULL);
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
                              .simd_width = METAL_SIMD_WIDTH,
                              .page_size = vm_page_size};
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

/* 50 ms of an M1 at half of its peak. macOS ends command buffers that keep the display waiting, and
 * a dispatch is the least that one holds. Tests of a driver library set it before a device is
 * opened.
 */
METAL_EXPORT uint64_t metal_dispatch_work = UINT64_C(35000000000);

static void abilities(void *device, oxb_abilities *found) {
    gpu_abilities(device, found);
    found->dispatch_work = metal_dispatch_work;
}

static const oxb_driver driver = {
    .abi_version = OXB_ABI_VERSION,
    .struct_size = sizeof(oxb_driver),
    .name = "metal",
    .device_count = device_count,
    .device_open = device_open,
    .device_close = device_close,
    .device_info = device_info,
    .abilities = abilities,
    .tile = gpu_tile,
    .variants = gpu_variants,
    .weight_layouts = gpu_weight_layouts,
    .weight_pack = gpu_weight_pack,
    .buffer_new = metal_buffer_new,
    .buffer_wrap = metal_buffer_wrap,
    .buffer_free = metal_buffer_free,
    .buffer_read = metal_buffer_read,
    .buffer_write = metal_buffer_write,
    .buffer_fill = metal_buffer_fill,
    .library_new = metal_library_new,
    .library_free = metal_object_free,
    .pipeline_new = metal_pipeline_new,
    .pipeline_free = metal_pipeline_free,
    .submit = metal_submit,
    .work_rate = metal_work_rate,
    .capture_start = metal_capture_start,
    .capture_stop = metal_capture_stop,
};

const oxb_driver *metal_driver(const oxb_host *services) {
    metal_host = services;
    gpu_use(services);
    return &driver;
}

#ifdef OXB_DRIVER_LIBRARY
METAL_EXPORT const oxb_driver *oxb_driver_entry(const oxb_host *services);

const oxb_driver *oxb_driver_entry(const oxb_host *services) { return metal_driver(services); }
#endif
