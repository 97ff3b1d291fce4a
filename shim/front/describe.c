/* Texts of recordings: oxb_commands_describe, and what OXIBONSAI_TRACE=1 prints. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "recording.h"

#define LINE_BYTES 8192 /* a dispatch with 31 bindings fits */

typedef struct text {
    char *bytes;
    size_t size;   /* of `bytes`; what does not fit is counted only */
    size_t length; /* of the whole text */
} text;

static void put(text *t, const char *format, ...) FRONT_PRINTF(2, 3);

static void put(text *t, const char *format, ...) {
    va_list values;
    va_start(values, format);
    const size_t room = t->length < t->size ? t->size - t->length : 0;
    int n = vsnprintf(room ? t->bytes + t->length : NULL, room, format, values);
    va_end(values);
    t->length += n > 0 ? (size_t)n : 0;
}

static void put_constants(text *t, const oxb_pipeline *pipeline) {
    for (uint32_t i = 0; i < pipeline->n_constants; i++) {
        const oxb_constant *c = pipeline->constants + i;
        put(t, "%s%u: ", i ? ", " : " {", c->index);
        switch (c->type) {
        case OXB_CONSTANT_BOOL: put(t, "%s", c->value.u32 ? "true" : "false"); break;
        case OXB_CONSTANT_I32: put(t, "%d", c->value.i32); break;
        case OXB_CONSTANT_F32: put(t, "%g", (double)c->value.f32); break;
        default: put(t, "%u", c->value.u32);
        }
    }
    if (pipeline->n_constants) put(t, "}");
}

/* Dispatch i of the recording, each binding after `separator`. */
static void put_dispatch(text *t, const oxb_commands *commands, uint32_t i, const char *separator) {
    static const char *const access_names[] = {"?", "r", "rw"};
    const front_record *r = (const front_record *)commands->records.data + i;
    const oxb_pipeline_info *info = &r->pipeline->info;
    put(t, "%s", r->pipeline->name);
    put_constants(t, r->pipeline);
    put(t, ": %u x %u x %u threadgroups of %u x %u x %u threads", r->threadgroups.x,
        r->threadgroups.y, r->threadgroups.z, r->threads.x, r->threads.y, r->threads.z);
    put(t, "%s%llu bytes of threadgroup memory, %u bytes of arguments", separator,
        (unsigned long long)(info->static_threadgroup_memory + r->threadgroup_memory),
        r->args_size);
    for (uint32_t b = 0; b < r->n_bindings; b++) {
        const front_bound *bound =
            (const front_bound *)commands->bindings.data + r->first_binding + b;
        const oxb_buffer *buffer = bound->binding.buffer;
        const uint64_t offset = bound->binding.offset;
        put(t, "%sbuffer(%u)%s%s %s, %llu bytes at %llu of %llu", separator, b,
            bound->role.name ? " " : "", bound->role.name ? bound->role.name : "",
            access_names[front_access(info, &bound->role, b)],
            (unsigned long long)(buffer->length - offset), (unsigned long long)offset,
            (unsigned long long)buffer->length);
    }
}

oxb_status oxb_commands_describe(oxb_commands *commands, uint32_t index, char *bytes, uint64_t size,
                                 uint64_t *length) {
    if (index >= commands->records.used) {
        return front_fail(OXB_ENCODING_FAILED, "no dispatch %u to describe: %zu are recorded",
                          index, commands->records.used);
    }
    text t = {bytes, (size_t)size, 0};
    put_dispatch(&t, commands, index, "\n    ");
    *length = t.length;
    return OXB_OK;
}

/* Tracing */

int front_tracing;
static char trace_setting[65]; /* kept where it is neither on nor off */

void front_read_trace(void) {
    const char *value = getenv("OXIBONSAI_TRACE");
    if (!value || !*value || strcmp(value, "0") == 0) return;
    front_tracing = strcmp(value, "1") == 0;
    if (!front_tracing) snprintf(trace_setting, sizeof trace_setting, "%s", value);
}

oxb_status front_check_trace(void) {
    if (!trace_setting[0]) return OXB_OK;
    return front_fail(OXB_DEVICE_NOT_FOUND,
                      "the environment variable OXIBONSAI_TRACE is '%s': set 1 to print each "
                      "submission, 0 to print none, or unset it",
                      trace_setting);
}

/* One write for a line, so that lines of several threads stay whole. */
static void print_line(const oxb_device *device, uint64_t number, const char *line) {
    fprintf(stderr, "oxibonsai: %s:%u submission %llu, %s\n", device->driver->name,
            device->info.index, (unsigned long long)number, line);
}

void front_trace_submit(const oxb_commands *commands, uint64_t number) {
    char line[LINE_BYTES];
    for (uint32_t i = 0; i < commands->records.used; i++) {
        text t = {line, sizeof line, 0};
        put(&t, "dispatch %u of %zu: ", i, commands->records.used);
        put_dispatch(&t, commands, i, "; ");
        print_line(commands->device, number, line);
    }
}

void front_trace_refused(const oxb_device *device, uint64_t number) {
    char line[LINE_BYTES];
    snprintf(line, sizeof line, "refused: %s", oxb_last_error());
    print_line(device, number, line);
}

void front_trace_done(const oxb_device *device, uint64_t number, oxb_status status,
                      const char *message, double seconds, oxb_times times) {
    char line[LINE_BYTES];
    if (status == OXB_OK)
        snprintf(line, sizeof line, "done: %.3f ms, %.3f ms of them on the device", seconds * 1e3,
                 (times.end - times.start) * 1e3);
    else
        snprintf(line, sizeof line, "failed after %.3f ms: %s", seconds * 1e3,
                 message ? message : "the device gave no reason");
    print_line(device, number, line);
}
