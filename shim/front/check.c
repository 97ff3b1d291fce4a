/* The one check of a dispatch: what is bound against what the kernel takes, and the sizes against
 * the limits of pipeline and device. Drivers run what passed it and check nothing again. */
#include <stdio.h>
#include <string.h>

#include "recording.h"

#define TEXT_BYTES  128
#define MEMORY_STEP 16u /* of dynamic threadgroup memory: Metal's rule, kept on every device */

static const oxb_argument *argument_at(const oxb_pipeline_info *info, uint32_t index) {
    for (uint32_t i = 0; i < info->n_arguments; i++) {
        const oxb_argument *a = info->arguments + i;
        if (a->kind != OXB_ARGUMENT_THREADGROUP && a->index == index) return a;
    }
    return NULL;
}

static int takes_threadgroup_memory(const oxb_pipeline_info *info) {
    for (uint32_t i = 0; i < info->n_arguments; i++) {
        if (info->arguments[i].kind == OXB_ARGUMENT_THREADGROUP) return 1;
    }
    return 0;
}

oxb_access front_access(const oxb_pipeline_info *info, const front_role *role, uint32_t index) {
    const oxb_argument *argument = argument_at(info, index);
    if (argument && argument->access != OXB_ACCESS_UNKNOWN) return (oxb_access)argument->access;
    if (role->name) return role->written ? OXB_ACCESS_WRITE : OXB_ACCESS_READ;
    return OXB_ACCESS_UNKNOWN;
}

static front_role role_of(const front_dispatch *d, uint32_t index) {
    return d->roles ? d->roles[index] : (front_role){NULL, 0};
}

/* A binding for a message: its index, and its role where an op gave it one. */
static const char *binding_text(const front_dispatch *d, uint32_t index, char text[TEXT_BYTES]) {
    front_role role = role_of(d, index);
    if (role.name)
        snprintf(text, TEXT_BYTES, "binding %u (%s)", index, role.name);
    else
        snprintf(text, TEXT_BYTES, "binding %u", index);
    return text;
}

/* What the kernel takes beside what is given, for a message. */
static const char *counts_text(const oxb_pipeline_info *info, const front_dispatch *d,
                               char text[TEXT_BYTES]) {
    uint32_t buffers = 0;
    const oxb_argument *args = NULL;
    for (uint32_t i = 0; i < info->n_arguments; i++) {
        const oxb_argument *a = info->arguments + i;
        buffers += a->kind == OXB_ARGUMENT_BUFFER;
        if (a->kind == OXB_ARGUMENT_STRUCT) args = a;
    }
    unsigned long long size = d->args_size;
    if (args)
        snprintf(text, TEXT_BYTES, "it takes %u buffers and %u bytes of arguments, not %u and %llu",
                 buffers, args->size, d->n_bindings, size);
    else
        snprintf(text, TEXT_BYTES, "it takes %u buffers, the argument struct among them, not %u%s",
                 buffers, d->n_bindings, size ? " and a struct" : "");
    return text;
}

static oxb_status check_counts(const char *name, const front_dispatch *d) {
    if ((uint64_t)d->n_bindings + (d->args_size > 0) > OXB_MAX_BINDINGS) {
        return front_fail(OXB_ENCODING_FAILED, "%s: %u buffers%s: at most %u bindings are allowed",
                          name, d->n_bindings, d->args_size ? " and an argument struct" : "",
                          OXB_MAX_BINDINGS);
    }
    if (d->args_size > OXB_MAX_ARGS_BYTES) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: an argument struct of %llu bytes: at most %u are allowed", name,
                          (unsigned long long)d->args_size, OXB_MAX_ARGS_BYTES);
    }
    if (d->args_size && !d->args) {
        return front_fail(OXB_ENCODING_FAILED, "%s: an argument struct of %llu bytes at NULL", name,
                          (unsigned long long)d->args_size);
    }
    if (d->n_bindings && !d->bindings)
        return front_fail(OXB_ENCODING_FAILED, "%s: %u bindings at NULL", name, d->n_bindings);
    return OXB_OK;
}

/* What holds for a buffer whatever the kernel does with it. */
static oxb_status check_buffer(const oxb_device *device, const oxb_pipeline *pipeline,
                               const front_dispatch *d, uint32_t i) {
    const char *name = pipeline->name;
    const oxb_buffer *buffer = d->bindings[i].buffer;
    char text[TEXT_BYTES];
    if (!buffer) {
        return front_fail(OXB_ENCODING_FAILED, "%s: %s has no buffer", name,
                          binding_text(d, i, text));
    }
    if (buffer->device != device) {
        return front_fail(OXB_ENCODING_FAILED, "%s: the buffer of %s belongs to another device",
                          name, binding_text(d, i, text));
    }
    front_role role = role_of(d, i);
    if (buffer->read_only && front_access(&pipeline->info, &role, i) == OXB_ACCESS_WRITE) {
        return front_fail(OXB_ENCODING_FAILED, "%s writes %s, a buffer over read-only memory", name,
                          binding_text(d, i, text));
    }
    if (d->bindings[i].offset >= buffer->length) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: %s starts at byte %llu of a buffer of %llu bytes", name,
                          binding_text(d, i, text), (unsigned long long)d->bindings[i].offset,
                          (unsigned long long)buffer->length);
    }
    return OXB_OK;
}

/* One argument against what is bound to its index: a buffer, the argument struct or nothing. */
static oxb_status check_argument(const oxb_pipeline *pipeline, const front_dispatch *d,
                                 const oxb_argument *a) {
    const char *name = pipeline->name, *driver = pipeline->device->driver->name;
    char counts[TEXT_BYTES];
    uint64_t bound = 0, place = 0;
    int is_struct = 0;
    if (a->index < d->n_bindings) {
        const oxb_binding *b = d->bindings + a->index;
        bound = b->buffer->length - b->offset;
        place = b->buffer->base + b->offset;
        if (a->kind == OXB_ARGUMENT_STRUCT) {
            return front_fail(OXB_ENCODING_FAILED,
                              "%s: its buffer(%u), the constant reference at the last index, is "
                              "given by value on %s: pass an argument struct for it, or declare it "
                              "as a pointer (%s)",
                              name, a->index, driver, counts_text(&pipeline->info, d, counts));
        }
    } else if (a->index == d->n_bindings && d->args_size) {
        bound = d->args_size;
        is_struct = 1;
        if (a->access == OXB_ACCESS_WRITE) {
            return front_fail(OXB_ENCODING_FAILED,
                              "%s: it writes buffer(%u), which is bound to an argument struct (%s)",
                              name, a->index, counts_text(&pipeline->info, d, counts));
        }
    }
    if (bound == 0) {
        return a->optional ? OXB_OK
                           : front_fail(OXB_ENCODING_FAILED, "%s: its buffer(%u) is not bound (%s)",
                                        name, a->index, counts_text(&pipeline->info, d, counts));
    }
    if (bound < a->size) {
        return front_fail(
            OXB_ENCODING_FAILED, "%s: buffer(%u) has %llu bytes bound and needs %u%s%s%s", name,
            a->index, (unsigned long long)bound, a->size, is_struct ? " (" : "",
            is_struct ? counts_text(&pipeline->info, d, counts) : "", is_struct ? ")" : "");
    }
    if (a->kind == OXB_ARGUMENT_STRUCT && bound > a->size) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: buffer(%u) has %llu bytes bound and takes %u exactly (%s)", name,
                          a->index, (unsigned long long)bound, a->size,
                          counts_text(&pipeline->info, d, counts));
    }
    if (!is_struct && a->alignment && place % a->alignment) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: buffer(%u) starts at byte %llu%s, which is not a multiple of %u",
                          name, a->index, (unsigned long long)place,
                          place == d->bindings[a->index].offset ? "" : " of its first page",
                          a->alignment);
    }
    return OXB_OK;
}

/* The driver's own arithmetic: the bytes that the argument struct asks of each buffer. */
static oxb_status check_bytes(const oxb_device *device, const oxb_pipeline *pipeline,
                              const front_dispatch *d) {
    _Alignas(16) unsigned char aligned[OXB_MAX_ARGS_BYTES];
    if (!device->driver->binding_bytes) return OXB_OK;
    if (d->args_size) memcpy(aligned, d->args, (size_t)d->args_size);
    const void *args = d->args_size ? aligned : NULL;
    for (uint32_t i = 0; i < d->n_bindings; i++) {
        uint64_t need = device->driver->binding_bytes(device->impl, pipeline->impl, args, i);
        uint64_t has = d->bindings[i].buffer->length - d->bindings[i].offset;
        if (need == OXB_BAD_ARGS) {
            return front_fail(
                OXB_ENCODING_FAILED,
                "the arguments of the %s kernel '%s' describe no matrix or shape that it can run",
                device->driver->name, pipeline->name);
        }
        if (need > has) {
            char text[TEXT_BYTES];
            return front_fail(OXB_ENCODING_FAILED,
                              "%s: %s needs %llu bytes, and there are %llu from offset %llu",
                              pipeline->name, binding_text(d, i, text), (unsigned long long)need,
                              (unsigned long long)has, (unsigned long long)d->bindings[i].offset);
        }
    }
    return OXB_OK;
}

static oxb_status check_arguments(const oxb_device *device, const oxb_pipeline *pipeline,
                                  const front_dispatch *d) {
    const oxb_pipeline_info *info = &pipeline->info;
    if (!info->n_arguments) return OXB_OK; /* the driver does not know */
    for (uint32_t i = 0; i < info->n_arguments; i++) {
        const oxb_argument *a = info->arguments + i;
        if (a->kind == OXB_ARGUMENT_THREADGROUP) continue;
        oxb_status status = check_argument(pipeline, d, a);
        if (status != OXB_OK) return status;
    }
    for (uint32_t i = 0; i < d->n_bindings + (d->args_size > 0); i++) {
        char counts[TEXT_BYTES];
        if (argument_at(info, i)) continue;
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: it has no buffer(%u), to which %s is bound: leave that out (%s)",
                          pipeline->name, i, i < d->n_bindings ? "a buffer" : "the argument struct",
                          counts_text(info, d, counts));
    }
    return check_bytes(device, pipeline, d);
}

static int within(oxb_size size, oxb_size limit) {
    return (!limit.x || size.x <= limit.x) && (!limit.y || size.y <= limit.y) &&
           (!limit.z || size.z <= limit.z);
}

static oxb_status check_sizes(const oxb_device *device, const oxb_pipeline *pipeline,
                              const front_dispatch *d) {
    const char *name = pipeline->name;
    const oxb_size groups = d->threadgroups, threads = d->threads;
    if (!groups.x || !groups.y || !groups.z || !threads.x || !threads.y || !threads.z) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: empty grid: %u x %u x %u threadgroups of %u x %u x %u threads", name,
                          groups.x, groups.y, groups.z, threads.x, threads.y, threads.z);
    }
    /* Widths of up to 2^32 each: compared by division, for the product can wrap. */
    uint64_t limit = pipeline->info.max_threads;
    if (threads.x > limit || threads.y > limit / threads.x ||
        threads.z > limit / threads.x / threads.y) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: a threadgroup of %u x %u x %u threads: at most %u are allowed", name,
                          threads.x, threads.y, threads.z, pipeline->info.max_threads);
    }
    oxb_size most = device->info.max_threads;
    if (!within(threads, most)) {
        return front_fail(
            OXB_ENCODING_FAILED,
            "%s: a threadgroup of %u x %u x %u threads, at most %u x %u x %u are allowed", name,
            threads.x, threads.y, threads.z, most.x, most.y, most.z);
    }
    most = device->info.max_threadgroups;
    if (!within(groups, most)) {
        return front_fail(
            OXB_ENCODING_FAILED,
            "%s: a grid of %u x %u x %u threadgroups, at most %u x %u x %u are allowed", name,
            groups.x, groups.y, groups.z, most.x, most.y, most.z);
    }
    return OXB_OK;
}

static oxb_status check_threadgroup_memory(const oxb_device *device, const oxb_pipeline *pipeline,
                                           const front_dispatch *d, uint32_t *dynamic) {
    const char *name = pipeline->name;
    const oxb_pipeline_info *info = &pipeline->info;
    const uint64_t asked = d->threadgroup_memory;
    const uint64_t rounded = (asked + MEMORY_STEP - 1) / MEMORY_STEP * MEMORY_STEP;
    const uint64_t limit = device->info.max_threadgroup_memory;
    if (rounded + info->static_threadgroup_memory > limit) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: %llu bytes of threadgroup memory: at most %llu are allowed, dynamic "
                          "memory in steps of %u",
                          name, (unsigned long long)(asked + info->static_threadgroup_memory),
                          (unsigned long long)limit, MEMORY_STEP);
    }
    if (info->n_arguments) {
        const int takes = takes_threadgroup_memory(info);
        if (takes && !asked)
            return front_fail(OXB_ENCODING_FAILED, "%s: its threadgroup(0) has no length", name);
        if (!takes && asked) {
            return front_fail(OXB_ENCODING_FAILED,
                              "%s: threadgroup_memory is %llu bytes, and the kernel takes no "
                              "threadgroup(0): leave it 0",
                              name, (unsigned long long)asked);
        }
    }
    *dynamic = (uint32_t)rounded;
    return OXB_OK;
}

oxb_status front_check_dispatch(const oxb_device *device, const oxb_pipeline *pipeline,
                                const front_dispatch *dispatch, uint32_t *threadgroup_memory) {
    if (pipeline->device != device) {
        return front_fail(OXB_ENCODING_FAILED, "%s: the pipeline belongs to another device",
                          pipeline->name);
    }
    oxb_status status = check_counts(pipeline->name, dispatch);
    for (uint32_t i = 0; status == OXB_OK && i < dispatch->n_bindings; i++)
        status = check_buffer(device, pipeline, dispatch, i);
    if (status == OXB_OK) status = check_sizes(device, pipeline, dispatch);
    if (status == OXB_OK)
        status = check_threadgroup_memory(device, pipeline, dispatch, threadgroup_memory);
    if (status == OXB_OK) status = check_arguments(device, pipeline, dispatch);
    return status;
}
