/* How the front records dispatches: shared by the files that check, run and describe them. */
#ifndef FRONT_RECORDING_H
#define FRONT_RECORDING_H

#include "front.h"

typedef struct front_array {
    void *data;
    size_t used;     /* elements */
    size_t capacity; /* elements */
} front_array;

typedef struct front_bound {
    oxb_binding binding; /* the buffer retained */
    front_role role;
} front_bound;

typedef struct front_record {
    oxb_pipeline *pipeline; /* retained */
    size_t first_binding;
    size_t args_offset;
    uint32_t n_bindings;
    uint32_t args_size;
    uint32_t threadgroup_memory; /* dynamic, as the driver gets it */
    oxb_size threadgroups;
    oxb_size threads;
    uint64_t work;
} front_record;

struct oxb_commands {
    atomic_uint refs;
    oxb_device *device;   /* retained */
    front_array records;  /* front_record */
    front_array bindings; /* front_bound */
    front_array args;     /* bytes, each struct at a multiple of 16 */
    oxb_buffer *scratch;  /* owned; NULL until an operation asks */
    oxb_activations activations;
    int deterministic;
    /* Made when the commands are sealed; point into the arrays above. */
    oxb_driver_dispatch *list;
    oxb_driver_binding *driver_bindings;
    void *replay; /* the driver's */
    atomic_uint in_flight;
};

/* check.c: hold a dispatch against the arguments of its pipeline and the limits of its device. On
 * success `threadgroup_memory` is what the driver gets. */
oxb_status front_check_dispatch(const oxb_device *device, const oxb_pipeline *pipeline,
                                const front_dispatch *dispatch, uint32_t *threadgroup_memory);

/* What the kernel does to a binding, by the driver's list or else by the op's role. */
oxb_access front_access(const oxb_pipeline_info *info, const front_role *role, uint32_t index);

/* describe.c: lines on stderr, where front_tracing. `number` counts the device's submissions. */
void front_trace_submit(const oxb_commands *commands, uint64_t number);
void front_trace_refused(const oxb_device *device, uint64_t number);
/* `seconds` passed on the host since the submission. */
void front_trace_done(const oxb_device *device, uint64_t number, oxb_status status,
                      const char *message, double seconds, oxb_times times);

#endif
