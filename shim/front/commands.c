/* Recorded command sequences and their submissions. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "recording.h"

struct oxb_submission {
    atomic_uint refs;       /* one of the caller, one of the device until it is done */
    oxb_device *device;     /* retained */
    oxb_commands *commands; /* retained until the device is done */
    uint64_t number;        /* of the device's submissions; where front_tracing */
    double begun;           /* clock_now(); where front_tracing */
    unsigned generation;    /* of front_flight_begin() */
    pthread_mutex_t lock;
    pthread_cond_t finished;
    /* Guarded by lock. */
    int done;
    int reported;
    oxb_status status;
    char *message;
    oxb_times times;
};

/* NULL where n is 0 or memory is out. */
static void *array_add(front_array *array, size_t n, size_t size) {
    if (n == 0) return NULL;
    if (n > array->capacity - array->used) {
        size_t capacity = array->capacity ? array->capacity : 64;
        while (capacity - array->used < n) capacity *= 2;
        void *data = realloc(array->data, capacity * size);
        if (!data) return NULL;
        array->data = data;
        array->capacity = capacity;
    }
    void *place = (char *)array->data + array->used * size;
    array->used += n;
    return place;
}

oxb_status oxb_commands_new(oxb_device *device, oxb_commands **out) {
    oxb_commands *commands = calloc(1, sizeof *commands);
    if (!commands) return front_fail(OXB_ENCODING_FAILED, "out of memory for commands");
    atomic_init(&commands->refs, 1);
    commands->device = device;
    oxb_device_retain(device);
    *out = commands;
    return OXB_OK;
}

void front_commands_cut(oxb_commands *commands, uint32_t n) {
    front_record *records = commands->records.data;
    front_bound *bindings = commands->bindings.data;
    if (n >= commands->records.used) return;
    for (size_t i = n; i < commands->records.used; i++) oxb_pipeline_release(records[i].pipeline);
    for (size_t i = records[n].first_binding; i < commands->bindings.used; i++)
        oxb_buffer_release(bindings[i].binding.buffer);
    commands->bindings.used = records[n].first_binding;
    commands->args.used = records[n].args_offset;
    commands->records.used = n;
}

static void drop_records(oxb_commands *commands) {
    const oxb_driver *driver = commands->device->driver;
    if (commands->replay && driver->replay_free)
        driver->replay_free(commands->device->impl, commands->replay);
    commands->replay = NULL;
    free(commands->list);
    free(commands->driver_bindings);
    commands->list = NULL;
    commands->driver_bindings = NULL;
    front_commands_cut(commands, 0);
    oxb_buffer_release(commands->scratch);
    commands->scratch = NULL;
}

void oxb_commands_release(oxb_commands *commands) {
    if (!commands || atomic_fetch_sub_explicit(&commands->refs, 1, memory_order_acq_rel) != 1)
        return;
    drop_records(commands);
    free(commands->records.data);
    free(commands->bindings.data);
    free(commands->args.data);
    oxb_device_release(commands->device);
    free(commands);
}

oxb_status oxb_commands_reset(oxb_commands *commands) {
    unsigned in_flight = atomic_load_explicit(&commands->in_flight, memory_order_acquire);
    if (in_flight) {
        return front_fail(
            OXB_ENCODING_FAILED,
            "cannot reset commands with %u submissions in flight: wait for them first", in_flight);
    }
    drop_records(commands);
    return OXB_OK;
}

oxb_device *front_commands_device(const oxb_commands *commands) { return commands->device; }

oxb_status oxb_commands_activations(oxb_commands *commands, oxb_activations activations) {
    const oxb_device *device = commands->device;
    const char *name, *other; /* other: which device takes them */
    int taken = 1;
    switch (activations) {
    case OXB_ACTIVATIONS_FLOAT32: name = "float32", other = "any device"; break;
    case OXB_ACTIVATIONS_INT8:
        name = "int8", other = "the cpu device with vector instructions";
        taken = device->abilities.int8_products != 0;
        break;
    case OXB_ACTIVATIONS_HALF:
        name = "half", other = "a GPU";
        taken = device->abilities.rounded_products != 0;
        break;
    default:
        return front_fail(OXB_ENCODING_FAILED,
                          "activations is %d: OXB_ACTIVATIONS_FLOAT32, OXB_ACTIVATIONS_INT8 or "
                          "OXB_ACTIVATIONS_HALF",
                          (int)activations);
    }
    if (!taken) {
        return front_fail(OXB_ENCODING_FAILED,
                          "the %s kernels of the %s device do not take %s activations: leave "
                          "them float32, or take %s",
                          device->info.variant[0] ? device->info.variant : "built-in",
                          device->driver->name, name, other);
    }
    commands->activations = activations;
    return OXB_OK;
}

int front_commands_in_half(const oxb_commands *commands) {
    return commands->activations == OXB_ACTIVATIONS_HALF && !commands->deterministic;
}

int front_commands_in_int8(const oxb_commands *commands) {
    return commands->activations == OXB_ACTIVATIONS_INT8 && !commands->deterministic;
}

oxb_status oxb_commands_deterministic(oxb_commands *commands, int deterministic) {
    const oxb_device *device = commands->device;
    if (deterministic && !device->abilities.same_bits && !device->abilities.gemv_vectors) {
        return front_fail(OXB_ENCODING_FAILED,
                          "the kernels of the %s device give a vector other bits alone than among "
                          "others: leave deterministic out, or take another device",
                          device->driver->name);
    }
    commands->deterministic = deterministic != 0;
    return OXB_OK;
}

int front_commands_deterministic(const oxb_commands *commands) { return commands->deterministic; }

oxb_status front_commands_scratch(oxb_commands *commands, uint64_t length, oxb_buffer **buffer) {
    if (!commands->scratch || commands->scratch->length < length) {
        oxb_buffer *larger = NULL;
        oxb_status status = oxb_buffer_new(commands->device, length, OXB_STORAGE_PRIVATE, &larger);
        if (status != OXB_OK) return status;
        /* What was recorded with the smaller one keeps it alive. */
        oxb_buffer_release(commands->scratch);
        commands->scratch = larger;
    }
    *buffer = commands->scratch;
    return OXB_OK;
}

uint32_t oxb_commands_length(oxb_commands *commands) { return (uint32_t)commands->records.used; }

int front_commands_writes(const oxb_commands *commands, const oxb_buffer *buffer) {
    const front_record *records = commands->records.data;
    const front_bound *bindings = commands->bindings.data;
    for (size_t r = 0; r < commands->records.used; r++) {
        for (uint32_t i = 0; i < records[r].n_bindings; i++) {
            const front_bound *bound = bindings + records[r].first_binding + i;
            if (bound->binding.buffer == buffer &&
                front_access(&records[r].pipeline->info, &bound->role, i) != OXB_ACCESS_READ)
                return 1;
        }
    }
    return 0;
}

oxb_status front_record_dispatch(oxb_commands *commands, oxb_pipeline *pipeline,
                                 const front_dispatch *d) {
    if (commands->list) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: these commands were submitted and are sealed: reset them first",
                          pipeline->name);
    }
    uint32_t threadgroup_memory;
    oxb_status status = front_check_dispatch(commands->device, pipeline, d, &threadgroup_memory);
    if (status != OXB_OK) return status;
    front_record record = {.pipeline = pipeline,
                           .first_binding = commands->bindings.used,
                           .args_offset = commands->args.used,
                           .n_bindings = d->n_bindings,
                           .args_size = (uint32_t)d->args_size,
                           .threadgroup_memory = threadgroup_memory,
                           .threadgroups = d->threadgroups,
                           .threads = d->threads,
                           .work = d->work};
    size_t padded = ((size_t)d->args_size + 15) & ~(size_t)15;
    front_bound *kept = array_add(&commands->bindings, d->n_bindings, sizeof *kept);
    char *bytes = array_add(&commands->args, padded, 1);
    front_record *place = array_add(&commands->records, 1, sizeof *place);
    if ((d->n_bindings && !kept) || (padded && !bytes) || !place) {
        commands->bindings.used = record.first_binding;
        commands->args.used = record.args_offset;
        if (place) commands->records.used--;
        return front_fail(OXB_ENCODING_FAILED, "%s: out of memory recording dispatch %zu",
                          pipeline->name, commands->records.used);
    }
    for (uint32_t i = 0; i < d->n_bindings; i++) {
        kept[i] = (front_bound){d->bindings[i], d->roles ? d->roles[i] : (front_role){NULL, 0}};
        oxb_buffer_retain(d->bindings[i].buffer);
    }
    if (d->args_size) memcpy(bytes, d->args, (size_t)d->args_size);
    front_pipeline_retain(pipeline);
    *place = record;
    return OXB_OK;
}

oxb_status oxb_commands_dispatch(oxb_commands *commands, oxb_pipeline *pipeline,
                                 const oxb_binding *bindings, uint32_t n_bindings, const void *args,
                                 uint64_t args_size, oxb_size threadgroups, oxb_size threads,
                                 uint32_t threadgroup_memory) {
    const front_dispatch dispatch = {.bindings = bindings,
                                     .args = args,
                                     .args_size = args_size,
                                     .n_bindings = n_bindings,
                                     .threadgroup_memory = threadgroup_memory,
                                     .threadgroups = threadgroups,
                                     .threads = threads};
    return front_record_dispatch(commands, pipeline, &dispatch);
}

static oxb_status seal(oxb_commands *commands) {
    const front_record *records = commands->records.data;
    const front_bound *bindings = commands->bindings.data;
    size_t n = commands->records.used;
    if (n == 0)
        return front_fail(OXB_ENCODING_FAILED,
                          "cannot submit empty commands: record a dispatch first");
    commands->list = calloc(n, sizeof *commands->list);
    commands->driver_bindings =
        calloc(commands->bindings.used + 1, sizeof *commands->driver_bindings);
    if (!commands->list || !commands->driver_bindings) {
        free(commands->list);
        free(commands->driver_bindings);
        commands->list = NULL;
        commands->driver_bindings = NULL;
        return front_fail(OXB_ENCODING_FAILED, "out of memory for a list of %zu dispatches", n);
    }
    for (size_t i = 0; i < commands->bindings.used; i++) {
        const oxb_buffer *buffer = bindings[i].binding.buffer;
        commands->driver_bindings[i] = (oxb_driver_binding){
            .buffer = buffer->impl,
            .contents = buffer->contents ? (char *)buffer->contents - buffer->base : NULL,
            .offset = buffer->base + bindings[i].binding.offset,
            .length = buffer->base + buffer->length};
    }
    for (size_t i = 0; i < n; i++) {
        const front_record *r = records + i;
        commands->list[i] = (oxb_driver_dispatch){
            .pipeline = r->pipeline->impl,
            .bindings = commands->driver_bindings + r->first_binding,
            .args = r->args_size ? (const char *)commands->args.data + r->args_offset : NULL,
            .n_bindings = r->n_bindings,
            .args_size = r->args_size,
            .threadgroups = r->threadgroups,
            .threads = r->threads,
            .threadgroup_memory = r->threadgroup_memory,
            .work = r->work};
    }
    return OXB_OK;
}

/* Wait for a place among the submissions in flight, and raise an error nobody waited for. */
static oxb_status enter_flight(oxb_device *device) {
    pthread_mutex_lock(&device->flight_lock);
    while (device->in_flight >= OXB_MAX_IN_FLIGHT) {
        pthread_cond_wait(&device->flight_change, &device->flight_lock);
    }
    char *unraised = device->unraised;
    device->unraised = NULL;
    if (!unraised) device->in_flight++;
    pthread_mutex_unlock(&device->flight_lock);
    if (!unraised) return OXB_OK;
    oxb_status status =
        front_fail(OXB_EXECUTION_FAILED, "an earlier submission failed: %s", unraised);
    free(unraised);
    return status;
}

static void leave_flight(oxb_device *device) {
    pthread_mutex_lock(&device->flight_lock);
    device->in_flight--;
    pthread_cond_signal(&device->flight_change);
    pthread_mutex_unlock(&device->flight_lock);
}

static void release_submission(oxb_submission *submission) {
    if (atomic_fetch_sub_explicit(&submission->refs, 1, memory_order_acq_rel) != 1) return;
    if (submission->status != OXB_OK && !submission->reported) {
        pthread_mutex_lock(&submission->device->flight_lock);
        if (!submission->device->unraised) {
            submission->device->unraised = submission->message;
            submission->message = NULL;
        }
        pthread_mutex_unlock(&submission->device->flight_lock);
    }
    free(submission->message);
    pthread_mutex_destroy(&submission->lock);
    pthread_cond_destroy(&submission->finished);
    oxb_commands_release(submission->commands);
    oxb_device_release(submission->device);
    free(submission);
}

static void submission_done(void *context, oxb_status status, const char *text, oxb_times times) {
    oxb_submission *submission = context;
    oxb_commands *commands = submission->commands;
    const unsigned generation = submission->generation;
    if (front_tracing)
        front_trace_done(submission->device, submission->number, status, text,
                         clock_now() - submission->begun, times);
    leave_flight(submission->device);
    atomic_fetch_sub_explicit(&commands->in_flight, 1, memory_order_release);
    /* Released before a waiter wakes, so that a caller who has released everything else finds the
     * memory freed. */
    submission->commands = NULL;
    oxb_commands_release(commands);
    pthread_mutex_lock(&submission->lock);
    submission->done = 1;
    submission->status = status;
    submission->times = times;
    if (status != OXB_OK) submission->message = strdup(text ? text : "the device gave no reason");
    pthread_cond_broadcast(&submission->finished);
    pthread_mutex_unlock(&submission->lock);
    release_submission(submission);
    front_flight_end(generation);
}

oxb_status oxb_commands_submit(oxb_commands *commands, oxb_submission **out) {
    oxb_device *device = commands->device;
    oxb_status status = commands->list ? OXB_OK : seal(commands);
    if (status != OXB_OK) return status;
    oxb_submission *submission = calloc(1, sizeof *submission);
    if (!submission) return front_fail(OXB_ENCODING_FAILED, "out of memory for a submission");
    status = enter_flight(device);
    if (status != OXB_OK) {
        free(submission);
        return status;
    }
    const unsigned generation = front_flight_begin();
    atomic_init(&submission->refs, 2);
    submission->generation = generation;
    submission->device = device;
    oxb_device_retain(device);
    submission->commands = commands;
    atomic_fetch_add_explicit(&commands->refs, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&commands->in_flight, 1, memory_order_relaxed);
    pthread_mutex_init(&submission->lock, NULL);
    clock_cond_init(&submission->finished);
    if (front_tracing) {
        submission->number = atomic_load(&device->submissions) + 1;
        front_trace_submit(commands, submission->number);
        submission->begun = clock_now();
    }
    status = device->driver->submit(device->impl, commands->list, (uint32_t)commands->records.used,
                                    &commands->replay, submission_done, submission);
    if (status != OXB_OK) {
        if (front_tracing) front_trace_refused(device, submission->number);
        leave_flight(device);
        atomic_fetch_sub_explicit(&commands->in_flight, 1, memory_order_relaxed);
        atomic_fetch_sub_explicit(&submission->refs, 1, memory_order_relaxed);
        release_submission(submission);
        front_flight_end(generation);
        return status;
    }
    atomic_fetch_add(&device->submissions, 1);
    *out = submission;
    return OXB_OK;
}

oxb_status oxb_submission_wait(oxb_submission *submission, double timeout) {
    double deadline = timeout < 0 ? -1 : clock_now() + timeout;
    pthread_mutex_lock(&submission->lock);
    while (!submission->done) {
        if (timeout < 0) {
            pthread_cond_wait(&submission->finished, &submission->lock);
        } else if (!clock_cond_wait_until(&submission->finished, &submission->lock, deadline)) {
            break;
        }
    }
    oxb_status status;
    if (!submission->done) {
        status = front_fail(
            OXB_EXECUTION_FAILED,
            "the device did not finish within %g s: its buffers stay alive until it does", timeout);
    } else if (submission->status != OXB_OK) {
        submission->reported = 1;
        status = front_fail(submission->status, "%s",
                            submission->message ? submission->message : "out of memory");
    } else {
        status = OXB_OK;
    }
    pthread_mutex_unlock(&submission->lock);
    return status;
}

int oxb_submission_done(oxb_submission *submission) {
    pthread_mutex_lock(&submission->lock);
    int done = submission->done;
    pthread_mutex_unlock(&submission->lock);
    return done;
}

oxb_status oxb_submission_times(oxb_submission *submission, oxb_times *times) {
    pthread_mutex_lock(&submission->lock);
    int done = submission->done;
    if (done) *times = submission->times;
    pthread_mutex_unlock(&submission->lock);
    return done ? OXB_OK
                : front_fail(OXB_EXECUTION_FAILED,
                             "no times yet: the device has not finished, wait first");
}

void oxb_submission_release(oxb_submission *submission) {
    if (submission) release_submission(submission);
}
