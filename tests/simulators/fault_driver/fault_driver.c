/* A device driver for tests that fails on request: it keeps memory and runs no kernel.
 *
 * It counts no devices until fault_present is set, so that loading it changes nothing for other
 * tests. Submissions complete in order; held ones when fault_finish() is called, from the caller's
 * thread.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "oxb_args.h"
#include "oxb_driver.h"

#define EXPORT   __attribute__((visibility("default")))
#define MAX_HELD 64
#define MAX_LOG  64

enum mode { RUN = 0, FAIL = 1, FAIL_SILENTLY = 2, HOLD = 3, REFUSE = 4 };

EXPORT int fault_present;     /* devices counted */
EXPORT int fault_refused;     /* of those, how many are refused, the first ones */
EXPORT int fault_count_fails; /* device_count itself fails */
EXPORT int fault_open_fails;
EXPORT int fault_buffer_fails; /* buffers still to be made before one fails; negative: none does */
EXPORT int fault_compile_fails;
EXPORT int fault_mode; /* of submissions, enum mode */
EXPORT int fault_fill; /* what a run writes into the last buffer of each dispatch, 0: nothing */
EXPORT int fault_buffers_made, fault_buffers_live, fault_devices_live, fault_pipelines_live;
EXPORT int fault_submissions;
EXPORT int fault_reached;    /* calls of submit, whatever came of them */
EXPORT int fault_dispatches; /* in them */
EXPORT int fault_unchecked;  /* of those, the ones that the front should have refused */
EXPORT int fault_wraps_live;
EXPORT double fault_work_rate;       /* what the device says of its rate */
EXPORT uint64_t fault_dispatch_work; /* its bound, read when a device is opened */

static const oxb_host *host;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct held {
    oxb_driver_done done;
    void *context;
    const oxb_driver_dispatch *list;
    uint32_t n;
} held[MAX_HELD];
static int n_held;

/* The first dispatches that reached submit. */
static struct entry {
    uint64_t work, offsets[OXB_MAX_BINDINGS];
    uint32_t grid[3];
} entries[MAX_LOG];

EXPORT uint64_t fault_work_of(int i) { return entries[i].work; }
EXPORT uint64_t fault_offset(int i, int binding) { return entries[i].offsets[binding]; }
EXPORT uint32_t fault_grid(int i, int axis) { return entries[i].grid[axis]; }

typedef struct memory {
    void *address;
    uint64_t length;
    int wrapped;
} memory;

static oxb_status device_count(uint32_t *count) {
    if (fault_count_fails)
        return host->fail(OXB_DEVICE_NOT_FOUND, "the fault driver does not count today");
    *count = (uint32_t)fault_present;
    return OXB_OK;
}

static oxb_status device_open(uint32_t index, const oxb_device_options *options, void **device) {
    (void)options;
    if (fault_open_fails || index < (uint32_t)fault_refused) {
        return host->fail(OXB_DEVICE_NOT_FOUND,
                          "fault device %u has SIMD width 64, the kernels need 32", index);
    }
    uint32_t *made = malloc(sizeof *made);
    *made = index;
    *device = made;
    fault_devices_live++;
    return OXB_OK;
}

static void device_close(void *device) {
    fault_devices_live--;
    free(device);
}

static void device_info(void *device, oxb_device_info *info) {
    memset(info, 0, sizeof *info);
    info->index = *(const uint32_t *)device;
    strcpy(info->name, "Fault");
    strcpy(info->driver, "fault");
    strcpy(info->variant, "none");
    info->simd_width = 32;
    info->unified_memory = 1;
    info->max_buffer_length = (uint64_t)1 << 32;
    info->max_threadgroup_memory = 32768;
    info->recommended_working_set = info->max_buffer_length;
    info->max_threads = (oxb_size){448, 448, 64};
    info->max_threadgroups = (oxb_size){0x7fffffff, 65535, 65535};
}

static void abilities(void *device, oxb_abilities *found) {
    (void)device;
    *found = (oxb_abilities){
        .fused_norm = UINT32_MAX, .fused_cache_store = 1, .dispatch_work = fault_dispatch_work};
}

static oxb_status tile(void *device, oxb_op op, const oxb_op_shape *shape, oxb_tile *found) {
    (void)device;
    (void)op;
    (void)shape;
    *found = (oxb_tile){.size = {1, 1, 1}, .threads = 32, .suffix = "", .splits = 1};
    return OXB_OK;
}

static oxb_status buffer_new(void *device, uint64_t length, oxb_storage storage, void **buffer,
                             void **contents) {
    (void)device;
    if (fault_buffer_fails == 0) {
        return host->fail(OXB_BUFFER_CREATION_FAILED, "the device gave no buffer of %llu bytes",
                          (unsigned long long)length);
    }
    if (fault_buffer_fails > 0) fault_buffer_fails--;
    memory *m = calloc(1, sizeof *m);
    m->address = calloc(1, length);
    m->length = length;
    fault_buffers_made++;
    fault_buffers_live++;
    *buffer = m;
    *contents = storage == OXB_STORAGE_SHARED ? m->address : NULL;
    return OXB_OK;
}

static oxb_status buffer_wrap(void *device, void *address, uint64_t length, void **buffer) {
    (void)device;
    if (fault_buffer_fails == 0)
        return host->fail(OXB_BUFFER_CREATION_FAILED, "the device wraps nothing");
    memory *m = calloc(1, sizeof *m);
    m->address = address;
    m->length = length;
    m->wrapped = 1;
    fault_wraps_live++;
    *buffer = m;
    return OXB_OK;
}

static void buffer_free(void *device, void *buffer) {
    memory *m = buffer;
    (void)device;
    if (m->wrapped) {
        fault_wraps_live--;
    } else {
        fault_buffers_live--;
        memset(m->address, 0xDD, m->length); /* late users show */
        free(m->address);
    }
    free(m);
}

static oxb_status private_fails(void) {
    return host->fail(OXB_EXECUTION_FAILED, "the blit failed");
}

static oxb_status buffer_read(void *device, void *buffer, uint64_t offset, void *to,
                              uint64_t length) {
    (void)device;
    if (fault_mode == FAIL) return private_fails();
    memcpy(to, (char *)((memory *)buffer)->address + offset, length);
    return OXB_OK;
}

static oxb_status buffer_write(void *device, void *buffer, uint64_t offset, const void *from,
                               uint64_t length) {
    (void)device;
    if (fault_mode == FAIL) return private_fails();
    memcpy((char *)((memory *)buffer)->address + offset, from, length);
    return OXB_OK;
}

static oxb_status buffer_fill(void *device, void *buffer, uint64_t offset, uint64_t length,
                              uint8_t value) {
    (void)device;
    if (fault_mode == FAIL) return private_fails();
    memset((char *)((memory *)buffer)->address + offset, value, length);
    return OXB_OK;
}

static oxb_status library_new(void *device, const char *source, size_t length, void **library) {
    (void)device;
    if (fault_compile_fails) {
        return host->fail(OXB_COMPILATION_FAILED, "program_source:1:1: error: %.*s", (int)length,
                          source);
    }
    *library = malloc(1);
    return OXB_OK;
}

static void library_free(void *device, void *library) {
    (void)device;
    free(library);
}

static const oxb_argument read_floats = {OXB_ARGUMENT_BUFFER, 0, 4, 4, OXB_ACCESS_READ, 0};
static const oxb_argument write_floats = {OXB_ARGUMENT_BUFFER, 1, 4, 4, OXB_ACCESS_WRITE, 0};

/* Kernels whose arguments the driver knows; of all others it does not. */
static void list_arguments(const char *function, oxb_pipeline_info *info) {
    oxb_argument *a = info->arguments;
    if (strcmp(function, "residual_add") == 0) {
        a[0] = read_floats;
        a[1] = write_floats;
        a[2] = (oxb_argument){OXB_ARGUMENT_STRUCT, 2, 16, 0, OXB_ACCESS_READ, 0};
        info->n_arguments = 3;
    } else if (strcmp(function, "takes_memory") == 0) {
        a[0] = write_floats;
        a[0].index = 0;
        a[1] = (oxb_argument){.kind = OXB_ARGUMENT_THREADGROUP};
        info->n_arguments = 2;
    } else if (strcmp(function, "takes_31") == 0 || strcmp(function, "takes_30") == 0) {
        uint32_t n = function[strlen(function) - 1] == '1' ? 31 : 30;
        for (uint32_t i = 0; i < n; i++) {
            a[i] = read_floats;
            a[i].index = i;
        }
        a[n] = (oxb_argument){OXB_ARGUMENT_STRUCT, n, 4096, 0, OXB_ACCESS_READ, 0};
        info->n_arguments = n == 31 ? 31 : n + 1;
    } else if (strcmp(function, "takes_any") == 0) {
        a[0] = write_floats;
        a[0].index = 0;
        a[0].access = OXB_ACCESS_UNKNOWN;
        a[1] = read_floats;
        a[1].optional = 1;
        a[1].index = 1;
        info->n_arguments = 2;
    } else if (strcmp(function, "lists_too_many") == 0) {
        info->n_arguments = OXB_MAX_ARGUMENTS + 1;
    }
}

static oxb_status pipeline_new(void *device, void *library, const char *function,
                               const oxb_constant *constants, uint32_t n_constants, void **pipeline,
                               oxb_pipeline_info *info) {
    (void)device;
    (void)library;
    (void)constants;
    (void)n_constants;
    if (fault_compile_fails) return host->fail(OXB_COMPILATION_FAILED, "no function %s", function);
    fault_pipelines_live++;
    oxb_pipeline_info *kept = calloc(1, sizeof *kept);
    kept->max_threads = 448;
    kept->simd_width = 32;
    kept->static_threadgroup_memory = 1024;
    list_arguments(function, kept);
    *pipeline = kept;
    *info = *kept;
    return OXB_OK;
}

static uint64_t binding_bytes(void *device, void *pipeline, const void *args, uint32_t index) {
    const oxb_pipeline_info *info = pipeline;
    (void)device;
    (void)index;
    if (info->n_arguments != 3) return 0;
    uint64_t n = ((const struct oxb_add_args *)args)->n;
    return n == 0 || n > (uint64_t)1 << 40 ? OXB_BAD_ARGS : 4 * n;
}

static void pipeline_free(void *device, void *pipeline) {
    (void)device;
    fault_pipelines_live--;
    free(pipeline);
}

static void run(const oxb_driver_dispatch *list, uint32_t n) {
    for (uint32_t i = 0; fault_fill && i < n; i++) {
        const oxb_driver_binding *b = &list[i].bindings[list[i].n_bindings - 1];
        memset((char *)((memory *)b->buffer)->address + b->offset, fault_fill,
               b->length - b->offset);
    }
}

static const oxb_times times = {.start = 1.5, .end = 2.0};

/* The driver's own look at what reaches it: that it need not look is what it is there to show. */
static int is_right(const oxb_driver_dispatch *d) {
    const oxb_pipeline_info *info = d->pipeline;
    uint64_t threads = (uint64_t)d->threads.x * d->threads.y * d->threads.z;
    int dynamic = 0;
    if (threads == 0 || threads > info->max_threads || d->threads.z > 64) return 0;
    if (!d->threadgroups.x || !d->threadgroups.y || !d->threadgroups.z) return 0;
    if (d->threadgroups.y > 65535 || d->threadgroups.z > 65535) return 0;
    if (d->threadgroup_memory % 16 || d->threadgroup_memory + 1024 > 32768) return 0;
    if (d->n_bindings + (d->args_size > 0) > OXB_MAX_BINDINGS || d->args_size > 4096) return 0;
    if (d->args_size && (!d->args || (uintptr_t)d->args % 16)) return 0;
    for (uint32_t i = 0; i < d->n_bindings; i++) {
        const oxb_driver_binding *b = d->bindings + i;
        if (!b->buffer || b->offset >= b->length || b->length > ((memory *)b->buffer)->length)
            return 0;
    }
    for (uint32_t i = 0; i < info->n_arguments; i++) {
        const oxb_argument *a = info->arguments + i;
        if (a->kind == OXB_ARGUMENT_THREADGROUP) {
            dynamic = 1;
        } else if (a->index < d->n_bindings) {
            const oxb_driver_binding *b = d->bindings + a->index;
            if (a->kind == OXB_ARGUMENT_STRUCT || b->offset % (a->alignment ? a->alignment : 1))
                return 0;
            if (b->length - b->offset < a->size) return 0;
        } else if (a->index == d->n_bindings && d->args_size) {
            if (a->access == OXB_ACCESS_WRITE || d->args_size < a->size) return 0;
        } else if (!a->optional) {
            return 0;
        }
    }
    return !info->n_arguments || dynamic == (d->threadgroup_memory != 0);
}

static void keep(int i, const oxb_driver_dispatch *d) {
    if (i >= MAX_LOG) return;
    struct entry *e = entries + i;
    e->work = d->work;
    e->grid[0] = d->threadgroups.x;
    e->grid[1] = d->threadgroups.y;
    e->grid[2] = d->threadgroups.z;
    for (uint32_t b = 0; b < d->n_bindings; b++) e->offsets[b] = d->bindings[b].offset;
}

static oxb_status submit(void *device, const oxb_driver_dispatch *list, uint32_t n, void **replay,
                         oxb_driver_done done, void *context) {
    (void)device;
    if (!*replay) *replay = malloc(1);
    fault_reached++;
    for (uint32_t i = 0; i < n; i++) {
        keep(fault_dispatches++, list + i);
        fault_unchecked += !is_right(list + i);
    }
    switch (fault_mode) {
    case REFUSE: return host->fail(OXB_EXECUTION_FAILED, "the queue is gone");
    case HOLD:
        pthread_mutex_lock(&lock);
        held[n_held++] = (struct held){done, context, list, n};
        pthread_mutex_unlock(&lock);
        break;
    case FAIL:
    case FAIL_SILENTLY:
        done(context, OXB_EXECUTION_FAILED, fault_mode == FAIL ? "page fault at kernel gemv" : NULL,
             times);
        break;
    default: run(list, n); done(context, OXB_OK, NULL, times);
    }
    fault_submissions++;
    return OXB_OK;
}

/* Complete the oldest `count` held submissions; returns how many there were. */
EXPORT int fault_finish(int count, int fails) {
    int finished = 0;
    for (; finished < count; finished++) {
        pthread_mutex_lock(&lock);
        if (n_held == 0) {
            pthread_mutex_unlock(&lock);
            break;
        }
        struct held first = held[0];
        memmove(held, held + 1, (size_t)--n_held * sizeof held[0]);
        pthread_mutex_unlock(&lock);
        run(first.list, first.n);
        first.done(first.context, fails ? OXB_EXECUTION_FAILED : OXB_OK,
                   fails ? "late page fault" : NULL, times);
    }
    return finished;
}

EXPORT int fault_held(void) { return n_held; }

static double work_rate(void *device) {
    (void)device;
    return fault_work_rate;
}

static void replay_free(void *device, void *replay) {
    (void)device;
    free(replay);
}

EXPORT const oxb_driver *oxb_driver_entry(const oxb_host *services);

const oxb_driver *oxb_driver_entry(const oxb_host *services) {
#ifdef FAULT_REASON
    services->fail(OXB_DEVICE_NOT_FOUND, "the machine has no fault");
    return NULL;
#endif
    static const oxb_driver driver = {
#ifdef FAULT_ABI
        .abi_version = OXB_ABI_VERSION + 1,
#else
        .abi_version = OXB_ABI_VERSION,
#endif
        .struct_size = sizeof(oxb_driver),
        .name = "fault",
        .device_count = device_count,
        .device_open = device_open,
        .device_close = device_close,
        .device_info = device_info,
        .abilities = abilities,
        .tile = tile,
        .buffer_new = buffer_new,
        .buffer_wrap = buffer_wrap,
        .buffer_free = buffer_free,
        .buffer_read = buffer_read,
        .buffer_write = buffer_write,
        .buffer_fill = buffer_fill,
        .library_new = library_new,
        .library_free = library_free,
        .pipeline_new = pipeline_new,
        .pipeline_free = pipeline_free,
        .binding_bytes = binding_bytes,
        .submit = submit,
        .replay_free = replay_free,
        .work_rate = work_rate,
    };
    fault_buffer_fails = -1;
    host = services;
    return &driver;
}
