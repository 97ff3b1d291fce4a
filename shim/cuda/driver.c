/* The driver "cuda": devices. */
#ifdef OXB_HAVE_CUDA

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/builtin_drivers.h"
#include "base/clock.h"
#include "cuda_driver.h"
#include "gpu/gpu.h"

/* Compute capability 7.0: the kernels' shuffles need independent thread scheduling. */
#define MIN_ARCH     70
#define INT8_ARCH    80   /* from here on int8 matrix products of 16 x 8 x 32 */
#define SPIN_SECONDS 2e-4 /* longer than a copy of some kilobytes, shorter than a decode step */

static oxb_status device_count(uint32_t *count) {
    int gpus = 0;
    oxb_status status = cuda_load(&gpus);
    if (status == OXB_OK) *count = (uint32_t)gpus;
    return status;
}

oxb_status cuda_enter(cuda_device *self, oxb_status code) {
    char text[CUDA_TEXT_BYTES];
    cuda_result result = cuda.CtxPushCurrent(self->context);
    return result == CUDA_OK ? OXB_OK
                             : cuda_fail(code, "%s", cuda_text(text, "cuCtxPushCurrent", result));
}

void cuda_leave(void) {
    cuda_context context;
    (void)cuda.CtxPopCurrent(&context);
}

cuda_result cuda_wait_event(cuda_event event, double seconds) {
    double begin = clock_now();
    for (;;) {
        cuda_result result = cuda.EventQuery(event);
        if (result != CUDA_NOT_READY) return result;
        double waited = clock_now() - begin;
        if (waited > seconds) return CUDA_NOT_READY;
        if (waited > SPIN_SECONDS) {
            struct timespec pause = {0, 50000};
            nanosleep(&pause, NULL);
        }
    }
}

/* Free what the device holds, also where opening it failed half way. */
void cuda_device_free(cuda_device *self) {
    if (self->context) {
        if (cuda.CtxPushCurrent(self->context) == CUDA_OK) {
            cuda_stages_free(self);
            while (self->idle) {
                cuda_flight *flight = self->idle;
                self->idle = flight->next;
                (void)cuda.EventDestroy(flight->begin);
                (void)cuda.EventDestroy(flight->end);
                free(flight);
            }
            if (self->stream) (void)cuda.StreamDestroy(self->stream);
            cuda_leave();
        }
        (void)cuda.DevicePrimaryCtxRelease(self->gpu);
    }
    pthread_mutex_destroy(&self->copy_lock);
    pthread_mutex_destroy(&self->registry_lock);
    pthread_mutex_destroy(&self->flight_lock);
    pthread_cond_destroy(&self->flight_change);
    free(self);
}

/* Nothing is in flight and every child is freed. */
static void device_close(void *device) { cuda_waiter_stop(device); }

static cuda_result read_properties(cuda_device *self, const char **call) {
    int value = 0, major = 0, minor = 0;
    size_t memory = 0;
    *call = "cuDeviceGet";
    cuda_result result = cuda.DeviceGet(&self->gpu, (int)self->index);
    if (result != CUDA_OK) return result;
    *call = "cuDeviceGetName";
    if ((result = cuda.DeviceGetName(self->name, (int)sizeof self->name, self->gpu)) != CUDA_OK)
        return result;
    *call = "cuDeviceTotalMem";
    if ((result = cuda.DeviceTotalMem(&memory, self->gpu)) != CUDA_OK) return result;
    self->memory = memory;
    *call = "cuDeviceGetAttribute";
    for (int i = CUDA_MAX_THREADS_PER_BLOCK; i <= CUDA_MAX_SHARED_MEMORY; i++) {
        if ((result = cuda.DeviceGetAttribute(&self->limits[i], i, self->gpu)) != CUDA_OK)
            return result;
    }
    if ((result = cuda.DeviceGetAttribute(&major, CUDA_MAJOR, self->gpu)) != CUDA_OK) return result;
    if ((result = cuda.DeviceGetAttribute(&minor, CUDA_MINOR, self->gpu)) != CUDA_OK) return result;
    self->arch = 10 * major + minor;
    if ((result = cuda.DeviceGetAttribute(&value, CUDA_INTEGRATED, self->gpu)) != CUDA_OK)
        return result;
    self->integrated = value != 0;
    if ((result = cuda.DeviceGetAttribute(&value, CUDA_MULTIPROCESSORS, self->gpu)) != CUDA_OK)
        return result;
    self->traits = (gpu_traits){.has = GPU_NVIDIA | (self->arch >= INT8_ARCH ? GPU_INT8 : 0),
                                .cores = (uint32_t)value};
    if ((result = cuda.DeviceGetAttribute(&value, CUDA_USES_HOST_POINTER, self->gpu)) != CUDA_OK)
        return result;
    self->uses_host_pointer = value != 0;
    return CUDA_OK;
}

static oxb_status open_device(cuda_device *self) {
    char text[CUDA_TEXT_BYTES];
    const char *call;
    cuda_result result = read_properties(self, &call);
    if (result != CUDA_OK) {
        return cuda_fail(OXB_DEVICE_NOT_FOUND, "device \"cuda:%u\": %s", self->index,
                         cuda_text(text, call, result));
    }
    if (self->arch < MIN_ARCH) {
        return cuda_fail(OXB_DEVICE_NOT_FOUND,
                         "device \"cuda:%u\" (%s) has compute capability %d.%d, and the kernels "
                         "need %d.%d; use the cpu device",
                         self->index, self->name, self->arch / 10, self->arch % 10, MIN_ARCH / 10,
                         MIN_ARCH % 10);
    }
    oxb_status status = cuda_load_nvrtc();
    if (status != OXB_OK) return status;
    /* The primary context, which other CUDA libraries in the process share. */
    result = cuda.DevicePrimaryCtxRetain(&self->context, self->gpu);
    if (result != CUDA_OK) {
        self->context = NULL;
        return cuda_fail(OXB_DEVICE_NOT_FOUND, "device \"cuda:%u\" (%s): %s", self->index,
                         self->name, cuda_text(text, "cuDevicePrimaryCtxRetain", result));
    }
    status = cuda_enter(self, OXB_DEVICE_NOT_FOUND);
    if (status != OXB_OK) return status;
    result = cuda.StreamCreate(&self->stream, CUDA_STREAM_NON_BLOCKING);
    cuda_leave();
    if (result != CUDA_OK) {
        return cuda_fail(OXB_DEVICE_NOT_FOUND, "device \"cuda:%u\" (%s): %s", self->index,
                         self->name, cuda_text(text, "cuStreamCreate", result));
    }
    return cuda_waiter_start(self);
}

static oxb_status device_open(uint32_t index, const oxb_device_options *options, void **device) {
    (void)options;
    int gpus = 0;
    oxb_status status = cuda_load(&gpus);
    if (status != OXB_OK) return status;
    cuda_device *self = calloc(1, sizeof *self);
    if (!self)
        return cuda_fail(OXB_DEVICE_NOT_FOUND, "out of memory opening device \"cuda:%u\"", index);
    self->index = index;
    atomic_init(&self->serial_graphs, false);
    pthread_mutex_init(&self->copy_lock, NULL);
    pthread_mutex_init(&self->registry_lock, NULL);
    pthread_mutex_init(&self->flight_lock, NULL);
    pthread_cond_init(&self->flight_change, NULL);
    status = open_device(self);
    if (status != OXB_OK) {
        cuda_device_free(self);
        return status;
    }
    *device = self;
    return OXB_OK;
}

/* Three limits that follow each other. */
static oxb_size size_of(const int *limits) {
    return (oxb_size){(uint32_t)limits[0], (uint32_t)limits[1], (uint32_t)limits[2]};
}

static void device_info(void *device, oxb_device_info *info) {
    cuda_device *self = device;
    *info =
        (oxb_device_info){.driver = "cuda",
                          .index = self->index,
                          .simd_width = GPU_SIMD_WIDTH,
                          .unified_memory = self->integrated,
                          .max_buffer_length = self->memory,
                          .max_threadgroup_memory = (uint64_t)self->limits[CUDA_MAX_SHARED_MEMORY],
                          .recommended_working_set = self->memory,
                          .max_threads = size_of(self->limits + CUDA_MAX_BLOCK_X),
                          .max_threadgroups = size_of(self->limits + CUDA_MAX_GRID_X)};
    snprintf(info->name, sizeof info->name, "%s", self->name);
    snprintf(info->variant, sizeof info->variant, "sm_%d", self->arch);
    snprintf(info->compiler, sizeof info->compiler, "CUDA %d.%d, NVRTC %d.%d", cuda.version / 1000,
             cuda.version % 1000 / 10, cuda_nvrtc.major, cuda_nvrtc.minor);
}

static const oxb_driver driver = {
    .abi_version = OXB_ABI_VERSION,
    .struct_size = sizeof(oxb_driver),
    .name = "cuda",
    .device_count = device_count,
    .device_open = device_open,
    .device_close = device_close,
    .device_info = device_info,
    .abilities = gpu_abilities,
    .tile = gpu_tile,
    .variants = gpu_variants,
    .weight_layouts = gpu_weight_layouts,
    .weight_pack = gpu_weight_pack,
    .buffer_new = cuda_buffer_new,
    .buffer_wrap = cuda_buffer_wrap,
    .buffer_free = cuda_buffer_free,
    .buffer_read = cuda_buffer_read,
    .buffer_write = cuda_buffer_write,
    .buffer_fill = cuda_buffer_fill,
    .library_new = cuda_library_new,
    .library_free = cuda_library_free,
    .pipeline_new = cuda_pipeline_new,
    .pipeline_free = cuda_pipeline_free,
    .submit = cuda_submit,
    .replay_free = cuda_replay_free,
};

const oxb_driver *cuda_driver(const oxb_host *services) {
    cuda_host = services;
    gpu_use(services);
    return &driver;
}

#else
typedef int oxb_no_cuda; /* ISO C wants a declaration */
#endif
