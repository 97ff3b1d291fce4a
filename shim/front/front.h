/* Shared by the files of the front; not part of the ABI. */
#ifndef FRONT_H
#define FRONT_H

#include <pthread.h>
#include <stdatomic.h>

#include "oxb_args.h"
#include "oxb_driver.h"

#if defined(__GNUC__) || defined(__clang__)
#define FRONT_PRINTF(string, first) __attribute__((format(printf, string, first)))
#else
#define FRONT_PRINTF(string, first)
#endif

/* Keep the message for oxb_last_error and return `status`. */
oxb_status front_fail(oxb_status status, const char *format, ...) FRONT_PRINTF(2, 3);

/* registry.c: drivers in the order in which the default device is looked for. */

/* NULL past the last. */
const oxb_driver *front_driver_at(uint32_t index);
/* NULL where there is none; of several with a name, the one loaded last. */
const oxb_driver *front_driver_named(const char *name);
/* OXB_DEVICE_NOT_FOUND with the names that there are. */
oxb_status front_no_driver(const char *name);

/* drivers.c */

/* OXB_DEVICE_NOT_FOUND with the name of what a driver's table lacks. */
oxb_status front_check_driver(const oxb_driver *driver);
/* The same for an open device: that it has a tile for every op that its abilities name, and a
 * layout for what it packs. */
oxb_status front_check_device(const oxb_device *device);
/* The driver's tile, checked: no field of it is 0 that is divided by. */
oxb_status front_tile(const oxb_device *device, oxb_op op, const oxb_op_shape *shape,
                      oxb_tile *tile);
/* The driver's variants for a shape, checked. */
oxb_status front_variants(const oxb_device *device, oxb_op op, const oxb_op_shape *shape,
                          const char *names[OXB_MAX_VARIANTS], uint32_t *n);
const char *front_op_name(oxb_op op);
/* The driver's own layouts for a matrix, checked. */
oxb_status front_weight_layouts(const oxb_device *device, oxb_device_format format, uint64_t n_rows,
                                uint64_t k, oxb_weight_layout layouts[OXB_MAX_LAYOUTS],
                                uint32_t *n);

/* choices.c: the variant that was chosen for the product, or NULL. */
const char *front_chosen_variant(oxb_device *device, oxb_op op, const oxb_op_shape *shape);
/* Note what it is recorded with, which is no product where `name` is "". */
void front_variant_used(oxb_device *device, oxb_op op, const oxb_op_shape *shape, const char *name);
void front_choices_free(oxb_device *device);

struct front_pipeline_entry;
struct front_choice;

/* Lock order: a device's `cache_lock` and `flight_lock` are leaves: nothing is called with one
 * held. */
struct oxb_device {
    atomic_uint refs;
    const oxb_driver *driver;
    void *impl;
    oxb_device_info info;
    oxb_abilities abilities;
    atomic_ullong buffers;
    atomic_ullong allocated_bytes;
    atomic_ullong submissions;
    pthread_mutex_t cache_lock;
    struct front_pipeline_entry *pipelines; /* owned by the device, guarded by cache_lock */
    struct front_choice *choices;           /* owned, guarded by cache_lock */
    uint32_t n_choices;                     /* guarded by cache_lock */
    pthread_mutex_t flight_lock;
    pthread_cond_t flight_change;
    uint32_t in_flight; /* guarded by flight_lock */
    char *unraised;     /* first error nobody waited for; guarded by flight_lock */
};

/* flights.c: every submission is counted from before the driver has it until nothing is left to do
 * for it; what `begin` gave goes to `end`. */
unsigned front_flight_begin(void);
void front_flight_end(unsigned generation);

struct oxb_buffer {
    atomic_uint refs;
    oxb_device *device; /* retained */
    void *impl;
    void *contents;
    uint64_t length;
    oxb_storage storage;
    uint64_t base; /* offset of the buffer's first byte in the driver's, which starts at a page */
    int wrapped;
    int read_only;
    void (*release)(void *);
    void *release_context;
};

struct oxb_library {
    atomic_uint refs;
    oxb_device *device; /* retained */
    void *impl;
};

struct oxb_pipeline {
    atomic_uint refs;
    oxb_device *device; /* retained, unless the device's own cache holds the pipeline */
    int cached;
    void *impl;
    oxb_pipeline_info info;
    char name[OXB_NAME_BYTES];
    uint32_t n_constants;
    oxb_constant constants[OXB_MAX_CONSTANTS];
};

/* What a binding is to the op that records it, for messages and descriptions: a literal, or NULL
 * where it is not known. */
typedef struct front_role {
    const char *name;
    int written;
} front_role;

typedef struct front_dispatch {
    const oxb_binding *bindings;
    const front_role *roles; /* of the bindings; NULL where they are not known */
    const void *args;
    uint64_t args_size; /* bytes */
    uint32_t n_bindings;
    uint32_t threadgroup_memory; /* dynamic, bytes */
    oxb_size threadgroups;
    oxb_size threads;
    uint64_t work; /* as in oxb_driver_dispatch */
} front_dispatch;

/* Check a dispatch and record it; nothing is recorded where the check fails. */
oxb_status front_record_dispatch(oxb_commands *commands, oxb_pipeline *pipeline,
                                 const front_dispatch *dispatch);

/* OXIBONSAI_TRACE, read once, before the first device is opened. */
extern int front_tracing;
void front_read_trace(void);
oxb_status front_check_trace(void);

/* The device's pipeline for one of the kernels that ship, made on first use. Not retained: it lives
 * as long as the device. */
oxb_status front_shipped_pipeline(oxb_device *device, const char *function,
                                  const oxb_constant *constants, uint32_t n_constants,
                                  oxb_pipeline **pipeline);
void front_shipped_pipelines_free(oxb_device *device);
oxb_device *front_commands_device(const oxb_commands *commands);
/* A buffer of the recording for what one of its operations hands to the next, not retained. The
 * next call may give the same one again: dispatches run in order. */
oxb_status front_commands_scratch(oxb_commands *commands, uint64_t length, oxb_buffer **buffer);
int front_commands_in_int8(const oxb_commands *commands);
int front_commands_in_half(const oxb_commands *commands);
int front_commands_deterministic(const oxb_commands *commands);
/* Whether a recorded dispatch writes to the buffer, as far as that is known. */
int front_commands_writes(const oxb_commands *commands, const oxb_buffer *buffer);
/* Forget what was recorded after the first `n` dispatches: for an operation of several that failed.
 */
void front_commands_cut(oxb_commands *commands, uint32_t n);
void front_pipeline_retain(oxb_pipeline *pipeline);

#endif
