/* Libraries, pipelines and the device's own cache of the pipelines of the kernels that ship. */
#include <stdlib.h>
#include <string.h>

#include "front.h"

#define MAX_CONSTANT_INDEX 65535u /* Metal's */

oxb_status oxb_library_new(oxb_device *device, const char *source, size_t length,
                           oxb_library **out) {
    oxb_library *library = calloc(1, sizeof *library);
    if (!library) return front_fail(OXB_COMPILATION_FAILED, "out of memory for a library handle");
    oxb_status status = device->driver->library_new(device->impl, source, length, &library->impl);
    if (status != OXB_OK) {
        free(library);
        return status;
    }
    atomic_init(&library->refs, 1);
    library->device = device;
    oxb_device_retain(device);
    *out = library;
    return OXB_OK;
}

void oxb_library_retain(oxb_library *library) {
    atomic_fetch_add_explicit(&library->refs, 1, memory_order_relaxed);
}

void oxb_library_release(oxb_library *library) {
    if (!library || atomic_fetch_sub_explicit(&library->refs, 1, memory_order_acq_rel) != 1) return;
    library->device->driver->library_free(library->device->impl, library->impl);
    oxb_device_release(library->device);
    free(library);
}

static oxb_status check_constants(const char *function, const oxb_constant *constants, uint32_t n) {
    if (n > OXB_MAX_CONSTANTS) {
        return front_fail(OXB_COMPILATION_FAILED,
                          "%s: %u function constants, at most %u are allowed", function, n,
                          OXB_MAX_CONSTANTS);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (constants[i].type > OXB_CONSTANT_F32) {
            return front_fail(OXB_COMPILATION_FAILED,
                              "%s: function constant %u is of type %u: an oxb_constant_type is "
                              "0 to %u",
                              function, constants[i].index, constants[i].type, OXB_CONSTANT_F32);
        }
        if (constants[i].index > MAX_CONSTANT_INDEX) {
            return front_fail(OXB_COMPILATION_FAILED,
                              "%s: function constant %u: indices are 0 to %u", function,
                              constants[i].index, MAX_CONSTANT_INDEX);
        }
        for (uint32_t j = 0; j < i; j++) {
            if (constants[j].index != constants[i].index) continue;
            return front_fail(OXB_COMPILATION_FAILED, "%s: function constant %u is given twice",
                              function, constants[i].index);
        }
    }
    return OXB_OK;
}

/* What the driver says of the pipeline: dispatches are checked by it. */
static oxb_status check_info(const oxb_device *device, const char *function,
                             const oxb_pipeline_info *info) {
    const char *driver = device->driver->name;
    if (info->n_arguments > OXB_MAX_ARGUMENTS) {
        return front_fail(OXB_COMPILATION_FAILED,
                          "%s: the driver \"%s\" lists %u arguments, at most %u are allowed",
                          function, driver, info->n_arguments, OXB_MAX_ARGUMENTS);
    }
    for (uint32_t i = 0; i < info->n_arguments; i++) {
        const oxb_argument *a = info->arguments + i;
        if (a->kind <= OXB_ARGUMENT_THREADGROUP && a->access <= OXB_ACCESS_WRITE &&
            a->index < OXB_MAX_BINDINGS)
            continue;
        return front_fail(OXB_COMPILATION_FAILED,
                          "%s: row %u of the driver \"%s\"'s list of arguments has kind %u, index "
                          "%u and access %u: the driver must be corrected",
                          function, i, driver, a->kind, a->index, a->access);
    }
    if (info->max_threads == 0) {
        return front_fail(OXB_COMPILATION_FAILED,
                          "%s: the driver \"%s\" gives the pipeline no threads: the driver must be "
                          "corrected",
                          function, driver);
    }
    return OXB_OK;
}

oxb_status oxb_pipeline_new(oxb_device *device, oxb_library *library, const char *function,
                            const oxb_constant *constants, uint32_t n_constants,
                            oxb_pipeline **out) {
    size_t length = strlen(function);
    if (length == 0 || length >= OXB_NAME_BYTES) {
        return front_fail(OXB_COMPILATION_FAILED,
                          "a function name of %zu bytes: 1 to %u are allowed", length,
                          OXB_NAME_BYTES - 1);
    }
    oxb_status status = check_constants(function, constants, n_constants);
    if (status != OXB_OK) return status;
    if (library && library->device != device) {
        return front_fail(OXB_COMPILATION_FAILED, "%s: the library belongs to another device",
                          function);
    }
    oxb_pipeline *pipeline = calloc(1, sizeof *pipeline);
    if (!pipeline) return front_fail(OXB_COMPILATION_FAILED, "out of memory for a pipeline handle");
    status = device->driver->pipeline_new(device->impl, library ? library->impl : NULL, function,
                                          constants, n_constants, &pipeline->impl, &pipeline->info);
    if (status != OXB_OK) {
        free(pipeline);
        return status;
    }
    status = check_info(device, function, &pipeline->info);
    if (status != OXB_OK) {
        device->driver->pipeline_free(device->impl, pipeline->impl);
        free(pipeline);
        return status;
    }
    atomic_init(&pipeline->refs, 1);
    memcpy(pipeline->name, function, length);
    pipeline->n_constants = n_constants;
    if (n_constants) memcpy(pipeline->constants, constants, n_constants * sizeof *constants);
    pipeline->device = device;
    oxb_device_retain(device);
    *out = pipeline;
    return OXB_OK;
}

void oxb_pipeline_get_info(oxb_pipeline *pipeline, oxb_pipeline_info *info) {
    *info = pipeline->info;
}

void front_pipeline_retain(oxb_pipeline *pipeline) {
    atomic_fetch_add_explicit(&pipeline->refs, 1, memory_order_relaxed);
}

void oxb_pipeline_release(oxb_pipeline *pipeline) {
    if (!pipeline || atomic_fetch_sub_explicit(&pipeline->refs, 1, memory_order_acq_rel) != 1)
        return;
    oxb_device *device = pipeline->device;
    int cached = pipeline->cached;
    device->driver->pipeline_free(device->impl, pipeline->impl);
    free(pipeline);
    if (!cached) oxb_device_release(device);
}

/* A linked list, newest first: a device has some tens of shipped pipelines, and looks one up only
 * when it records. */
struct front_pipeline_entry {
    struct front_pipeline_entry *next;
    oxb_pipeline *pipeline;
};

static oxb_pipeline *find(const oxb_device *device, const char *function,
                          const oxb_constant *constants, uint32_t n) {
    for (const struct front_pipeline_entry *e = device->pipelines; e; e = e->next) {
        const oxb_pipeline *p = e->pipeline;
        if (p->n_constants == n && strcmp(p->name, function) == 0 &&
            (n == 0 || memcmp(p->constants, constants, n * sizeof *constants) == 0)) {
            return e->pipeline;
        }
    }
    return NULL;
}

oxb_status front_shipped_pipeline(oxb_device *device, const char *function,
                                  const oxb_constant *constants, uint32_t n_constants,
                                  oxb_pipeline **out) {
    pthread_mutex_lock(&device->cache_lock);
    oxb_pipeline *found = find(device, function, constants, n_constants);
    pthread_mutex_unlock(&device->cache_lock);
    if (found) {
        *out = found;
        return OXB_OK;
    }
    /* Compiled outside the lock: where two threads compile one pipeline, the second's is dropped.
     */
    oxb_pipeline *made = NULL;
    oxb_status status = oxb_pipeline_new(device, NULL, function, constants, n_constants, &made);
    if (status != OXB_OK) return status;
    struct front_pipeline_entry *entry = calloc(1, sizeof *entry);
    if (!entry) {
        oxb_pipeline_release(made);
        return front_fail(OXB_COMPILATION_FAILED, "out of memory for the pipeline cache");
    }
    pthread_mutex_lock(&device->cache_lock);
    found = find(device, function, constants, n_constants);
    if (!found) {
        /* The cache is the device's own: a reference back would keep the device alive for ever. */
        made->cached = 1;
        entry->pipeline = made;
        entry->next = device->pipelines;
        device->pipelines = entry;
    }
    pthread_mutex_unlock(&device->cache_lock);
    if (found) {
        free(entry);
        oxb_pipeline_release(made);
        *out = found;
    } else {
        oxb_device_release(device);
        *out = made;
    }
    return OXB_OK;
}

void front_shipped_pipelines_free(oxb_device *device) {
    while (device->pipelines) {
        struct front_pipeline_entry *entry = device->pipelines;
        device->pipelines = entry->next;
        oxb_pipeline_release(entry->pipeline);
        free(entry);
    }
}
