/* Submissions of the driver "cuda". A list runs as launches the first time and as a graph from then
 * on, all on the device's one stream, between two events. A thread of the device's waits for the
 * second and reports the end. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cuda_driver.h"

#define SPIN_SECONDS 2e-4 /* then the waiter sleeps in libcuda, which wakes it some 30 us late */

typedef struct replay {
    bool placed; /* place_args() was called */
    bool submitted;
    cuda_graph_exec graph; /* NULL until the second submission */
    cuda_address args; /* argument structs that kernels take by a pointer; 0 where there is none */
} replay;

void cuda_replay_free(void *device, void *handle) {
    cuda_device *self = device;
    replay *r = handle;
    if ((r->graph || r->args) && cuda.CtxPushCurrent(self->context) == CUDA_OK) {
        if (r->graph) (void)cuda.GraphExecDestroy(r->graph);
        if (r->args) (void)cuda.MemFree(r->args);
        cuda_leave();
    }
    free(r);
}

static uint64_t padded(uint64_t bytes) { return (bytes + 15) / 16 * 16; }

static bool takes_args_by_pointer(const oxb_driver_dispatch *d) {
    const cuda_pipeline *p = d->pipeline;
    for (uint32_t i = 0; i < p->n_parameters; i++) {
        if (!p->parameters[i].by_value && p->parameters[i].index == d->n_bindings) return true;
    }
    return false;
}

/* Put the argument structs that kernels take by a pointer into the device's memory, once. */
static oxb_status place_args(cuda_device *self, replay *r, const oxb_driver_dispatch *list,
                             uint32_t n) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < n; i++)
        total += takes_args_by_pointer(list + i) ? padded(list[i].args_size) : 0;
    if (total == 0) return OXB_OK;
    char *bytes = calloc(1, (size_t)total), text[CUDA_TEXT_BYTES];
    if (!bytes)
        return cuda_fail(OXB_ENCODING_FAILED, "out of memory for %" PRIu64 " bytes of arguments",
                         total);
    uint64_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!takes_args_by_pointer(list + i)) continue;
        memcpy(bytes + at, list[i].args, list[i].args_size);
        at += padded(list[i].args_size);
    }
    cuda_result result = cuda.MemAlloc(&r->args, (size_t)total);
    oxb_status status;
    if (result != CUDA_OK) {
        r->args = 0;
        status = cuda_fail(OXB_ENCODING_FAILED, "no memory for %" PRIu64 " bytes of arguments: %s",
                           total, cuda_text(text, "cuMemAlloc", result));
    } else {
        status = cuda_copy_in(self, r->args, bytes, total);
        if (status != OXB_OK) { /* the next submission starts afresh */
            (void)cuda.MemFree(r->args);
            r->args = 0;
        }
    }
    free(bytes);
    return status;
}

/* The entry's parameters for one dispatch. cuLaunchKernel and cuGraphAddKernelNode copy what
 * `pointers` point to. */
typedef struct entry_parameters {
    cuda_address addresses[OXB_MAX_BINDINGS + 1];
    void *pointers[OXB_MAX_BINDINGS + 1];
} entry_parameters;

static void fill_parameters(const oxb_driver_dispatch *d, cuda_address args, entry_parameters *to) {
    const cuda_pipeline *p = d->pipeline;
    for (uint32_t i = 0; i < p->n_parameters; i++) {
        const cuda_parameter *a = p->parameters + i;
        if (a->by_value) {
            union {
                const void *from;
                void *to;
            } bytes = {d->args}; /* CUDA reads through it */
            to->pointers[i] = bytes.to;
            continue;
        }
        const oxb_driver_binding *b = d->bindings + a->index;
        to->addresses[i] =
            a->index < d->n_bindings ? ((const cuda_buffer *)b->buffer)->address + b->offset : args;
        to->pointers[i] = &to->addresses[i];
    }
}

/* Entries wait by themselves from compute capability 9.0 on, which every NVRTC that is loaded
 * compiles for (prelude_entry.h). */
static bool starts_early(const cuda_device *self) {
    return self->arch >= 90 && cuda.GraphAddDependencies != NULL &&
           !atomic_load(&self->serial_graphs);
}

/* Launch the list, or put it into `graph` where there is one; `early` lets each kernel start before
 * the one before it has ended. */
static cuda_result run_list(cuda_device *self, const replay *r, const oxb_driver_dispatch *list,
                            uint32_t n, cuda_graph graph, bool early, const char **call) {
    cuda_address args = r->args;
    cuda_graph_node node = NULL;
    for (uint32_t i = 0; i < n; i++) {
        const oxb_driver_dispatch *d = list + i;
        const cuda_pipeline *p = d->pipeline;
        entry_parameters parameters;
        fill_parameters(d, args, &parameters);
        if (takes_args_by_pointer(d)) args += padded(d->args_size);
        oxb_size grid = d->threadgroups, block = d->threads;
        unsigned memory = d->threadgroup_memory;
        cuda_result result;
        if (graph) {
            cuda_kernel_node kernel = {
                p->function,         grid.x, grid.y, grid.z, block.x, block.y, block.z, memory,
                parameters.pointers, NULL};
            cuda_graph_node before =
                node; /* serial: each dispatch sees what the earlier ones wrote */
            *call = "cuGraphAddKernelNode";
            result = cuda.GraphAddKernelNode(&node, graph, before && !early ? &before : NULL,
                                             before && !early, &kernel);
            if (result == CUDA_OK && before && early) {
                const cuda_edge edge = CUDA_EARLY_START;
                *call = "cuGraphAddDependencies";
                result = cuda.GraphAddDependencies(graph, &before, &node, &edge, 1);
            }
        } else {
            *call = "cuLaunchKernel";
            result = cuda.LaunchKernel(p->function, grid.x, grid.y, grid.z, block.x, block.y,
                                       block.z, memory, self->stream, parameters.pointers, NULL);
        }
        if (result != CUDA_OK) return result;
    }
    return CUDA_OK;
}

static cuda_result build_graph(cuda_device *self, replay *r, const oxb_driver_dispatch *list,
                               uint32_t n, bool early, const char **call) {
    cuda_graph graph = NULL;
    *call = "cuGraphCreate";
    cuda_result result = cuda.GraphCreate(&graph, 0);
    if (result != CUDA_OK) return result;
    result = run_list(self, r, list, n, graph, early, call);
    if (result == CUDA_OK) {
        *call = "cuGraphInstantiate";
        result = cuda.GraphInstantiate(&r->graph, graph, 0);
        if (result != CUDA_OK) r->graph = NULL;
    }
    (void)cuda.GraphDestroy(graph);
    return result;
}

static cuda_result make_graph(cuda_device *self, replay *r, const oxb_driver_dispatch *list,
                              uint32_t n, const char **call) {
    const bool early = starts_early(self) && n > 1;
    cuda_result result = build_graph(self, r, list, n, early, call);
    if (result == CUDA_OK || !early) return result;
    /* A driver may have the call and no such edges on this GPU. */
    result = build_graph(self, r, list, n, false, call);
    if (result == CUDA_OK) atomic_store(&self->serial_graphs, true);
    return result;
}

/* Submissions in flight */

static cuda_flight *take_flight(cuda_device *self, cuda_result *result) {
    pthread_mutex_lock(&self->flight_lock);
    cuda_flight *flight = self->idle;
    if (flight) self->idle = flight->next;
    pthread_mutex_unlock(&self->flight_lock);
    *result = CUDA_OK;
    if (flight) return flight;
    flight = calloc(1, sizeof *flight);
    if (!flight) {
        *result = CUDA_NO_MEMORY;
        return NULL;
    }
    *result = cuda.EventCreate(&flight->begin, 0);
    if (*result == CUDA_OK) {
        *result = cuda.EventCreate(&flight->end, CUDA_EVENT_BLOCKING_SYNC);
        if (*result == CUDA_OK) return flight;
        (void)cuda.EventDestroy(flight->begin);
    }
    free(flight);
    return NULL;
}

static void give_flight(cuda_device *self, cuda_flight *flight) {
    pthread_mutex_lock(&self->flight_lock);
    flight->next = self->idle;
    self->idle = flight;
    pthread_mutex_unlock(&self->flight_lock);
}

/* Called with flight_lock held, so that flights are queued in the stream's order. */
static cuda_result fly(cuda_device *self, const replay *r, const oxb_driver_dispatch *list,
                       uint32_t n, cuda_flight *flight, const char **call) {
    *call = "cuEventRecord";
    cuda_result result = cuda.EventRecord(flight->begin, self->stream);
    if (result != CUDA_OK) return result;
    if (r->graph) {
        *call = "cuGraphLaunch";
        result = cuda.GraphLaunch(r->graph, self->stream);
    } else {
        result = run_list(self, r, list, n, NULL, false, call);
    }
    if (result == CUDA_OK) {
        *call = "cuEventRecord";
        result = cuda.EventRecord(flight->end, self->stream);
    }
    if (result != CUDA_OK) {
        (void)cuda.StreamSynchronize(self->stream); /* what was launched still uses the buffers */
        return result;
    }
    flight->next = NULL;
    if (self->last)
        self->last->next = flight;
    else
        self->first = flight;
    self->last = flight;
    pthread_cond_signal(&self->flight_change);
    return CUDA_OK;
}

/* Called with the context entered. */
static oxb_status submit(cuda_device *self, const oxb_driver_dispatch *list, uint32_t n, replay *r,
                         oxb_driver_done done, void *context) {
    char text[CUDA_TEXT_BYTES];
    const char *call = "cuEventCreate";
    cuda_result result = CUDA_OK;
    if (!r->placed) {
        oxb_status status = place_args(self, r, list, n);
        if (status != OXB_OK) return status;
        r->placed = true;
    } else if (r->submitted && !r->graph) {
        result = make_graph(self, r, list, n, &call);
    }
    cuda_flight *flight = result == CUDA_OK ? take_flight(self, &result) : NULL;
    if (flight) {
        flight->done = done;
        flight->context = context;
        pthread_mutex_lock(&self->flight_lock);
        result = fly(self, r, list, n, flight, &call);
        pthread_mutex_unlock(&self->flight_lock);
        if (result != CUDA_OK) give_flight(self, flight);
    }
    if (result != CUDA_OK)
        return cuda_fail(OXB_EXECUTION_FAILED, "cannot run %u dispatches: %s", n,
                         cuda_text(text, call, result));
    r->submitted = true;
    return OXB_OK;
}

oxb_status cuda_submit(void *device, const oxb_driver_dispatch *list, uint32_t n, void **handle,
                       oxb_driver_done done, void *context) {
    cuda_device *self = device;
    if (!*handle) *handle = calloc(1, sizeof(replay));
    if (!*handle)
        return cuda_fail(OXB_ENCODING_FAILED, "out of memory for a list of %u dispatches", n);
    oxb_status status = cuda_enter(self, OXB_EXECUTION_FAILED);
    if (status != OXB_OK) return status;
    status = submit(self, list, n, *handle, done, context);
    cuda_leave();
    return status;
}

/* The waiter */

static cuda_result wait_for(const cuda_flight *flight) {
    double begin = clock_now();
    cuda_result result;
    do result = cuda.EventQuery(flight->end);
    while (result == CUDA_NOT_READY && clock_now() - begin < SPIN_SECONDS);
    return result == CUDA_NOT_READY ? cuda.EventSynchronize(flight->end) : result;
}

/* Report the end of a flight; `done` may close the device. */
static void land(cuda_device *self, cuda_flight *flight) {
    char text[CUDA_TEXT_BYTES];
    float milliseconds = 0;
    const char *call = "cuEventSynchronize";
    cuda_result result = wait_for(flight);
    oxb_times times = {0, clock_now()};
    if (result == CUDA_OK) {
        call = "cuEventElapsedTime";
        result = cuda.EventElapsedTime(&milliseconds, flight->begin, flight->end);
    }
    times.start = times.end - (double)milliseconds * 1e-3;
    oxb_driver_done done = flight->done;
    void *context = flight->context;
    give_flight(self, flight);
    if (result == CUDA_OK)
        done(context, OXB_OK, NULL, times);
    else
        done(context, OXB_EXECUTION_FAILED, cuda_text(text, call, result), times);
}

static void *wait_in_order(void *device) {
    cuda_device *self = device;
    bool entered = cuda.CtxPushCurrent(self->context) == CUDA_OK; /* where not, events fail below */
    pthread_mutex_lock(&self->flight_lock);
    for (;;) {
        while (!self->first && !self->closing)
            pthread_cond_wait(&self->flight_change, &self->flight_lock);
        cuda_flight *flight = self->first;
        if (!flight) break;
        self->first = flight->next;
        if (!self->first) self->last = NULL;
        pthread_mutex_unlock(&self->flight_lock);
        land(self, flight);
        pthread_mutex_lock(&self->flight_lock);
    }
    bool alone = !self->waiting; /* a `done` on this thread closed the device: nobody joins */
    pthread_mutex_unlock(&self->flight_lock);
    if (entered) cuda_leave();
    if (alone) cuda_device_free(self);
    return NULL;
}

oxb_status cuda_waiter_start(cuda_device *self) {
    self->waiting = true;
    int error = pthread_create(&self->waiter, NULL, wait_in_order, self);
    if (error == 0) return OXB_OK;
    return cuda_fail(OXB_DEVICE_NOT_FOUND, "device \"cuda:%u\" (%s): cannot start a thread (%s)",
                     self->index, self->name, strerror(error));
}

void cuda_waiter_stop(cuda_device *self) {
    bool own = pthread_equal(pthread_self(), self->waiter) != 0;
    pthread_t waiter = self->waiter;
    pthread_mutex_lock(&self->flight_lock);
    self->closing = true;
    self->waiting = !own;
    pthread_cond_signal(&self->flight_change);
    pthread_mutex_unlock(&self->flight_lock);
    if (own) {
        pthread_detach(waiter);
        return; /* it frees the device when it is back in its loop */
    }
    pthread_join(waiter, NULL);
    cuda_device_free(self);
}
