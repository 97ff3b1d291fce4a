/* How a test steers and reads the simulated Metal. Exported by the driver library beside
 * oxb_driver_entry; a test reaches it with ctypes. */
#ifndef METAL_SIM_H
#define METAL_SIM_H

#include <stdint.h>

#define METAL_SIM_API __attribute__((visibility("default")))

enum metal_sim_failure {
    METAL_SIM_NO_REASON,  /* nil, or a failed command buffer, without an NSError */
    METAL_SIM_WITH_ERROR, /* and with one */
    METAL_SIM_RAISE       /* the call raises an NSException */
};

/* Devices: as it starts there is one, of SIMD width 32. */
METAL_SIM_API void metal_sim_set_devices(uint32_t count);
METAL_SIM_API void metal_sim_set_simd_width(uint32_t device, uint32_t width);
METAL_SIM_API void metal_sim_set_max_buffer_length(uint64_t length);
/* Which device MTLCreateSystemDefaultDevice gives; none where it is past the count. */
METAL_SIM_API void metal_sim_set_default_device(uint32_t device);
/* What pipelines report as maxTotalThreadsPerThreadgroup; 0, as at the start, for 1024, 448 and 256
 * in turn from kernel to kernel, and another of them each time a queue is made. A kernel that
 * declares max_total_threads_per_threadgroup has what it declares. */
METAL_SIM_API void metal_sim_set_max_threads(uint32_t threads);
/* The name of every device. */
METAL_SIM_API void metal_sim_set_name(const char *name);

/* The major version of macOS: 26, as at the start, or 12, which has neither math modes nor
 * residency sets. */
METAL_SIM_API void metal_sim_set_macos(uint32_t major);

/* recommendedMaxWorkingSetSize; 0, as at the start, for twice the maximal length of a buffer. */
METAL_SIM_API void metal_sim_set_working_set(uint64_t bytes);
/* Whether devices are Apple's own GPUs, as at the start, or those of an Intel Mac, which have no
 * residency sets: to ask them for one ends the process. */
METAL_SIM_API void metal_sim_set_apples(int enabled);
/* How long requestResidency takes. Called while the process exits, it ends it. */
METAL_SIM_API void metal_sim_set_request_time(uint32_t microseconds);
/* Whether a dispatch may use only what a residency set of its queue holds, wrapped memory apart. */
METAL_SIM_API void metal_sim_require_residency(int enabled);

/* What real devices and their drivers get wrong: faults.m. */

/* Lines that the compiler puts behind `#include <metal_stdlib>` of every program, "" for none: a
 * macro there makes a function of the standard library compute something else, or be missing. */
METAL_SIM_API void metal_sim_set_prelude(const char *lines);
/* Refuse pipelines of kernels whose names begin so, as Metal does where a device lacks what they
 * use; "" for none. */
METAL_SIM_API void metal_sim_refuse_kernels(const char *prefix);
/* What pipelines of kernels whose names begin so report as threadExecutionWidth; 0 for the
 * device's. */
METAL_SIM_API void metal_sim_set_kernel_width(const char *prefix, uint32_t width);
/* How long newLibraryWithSource takes at least. */
METAL_SIM_API void metal_sim_set_compile_seconds(double seconds);
/* A virtual machine's device, which belongs to no family. */
METAL_SIM_API void metal_sim_set_virtual(int is_virtual);
METAL_SIM_API void metal_sim_set_max_threadgroup_memory(uint32_t bytes);

enum metal_sim_wrap {
    METAL_SIM_WRAPS,       /* the device works on the host's memory */
    METAL_SIM_WRAPS_EMPTY, /* the buffer has length 0 */
    METAL_SIM_WRAPS_OTHER, /* its contents are at another address */
    METAL_SIM_WRAPS_COPY   /* the device works on a copy, and contents is the host's memory */
};
/* What newBufferWithBytesNoCopy gives. */
METAL_SIM_API void metal_sim_set_wrap(int wrap);
/* Of what multiples newBufferWithBytesNoCopy takes address and length; 0, as at the start, for the
 * pages of this system. */
METAL_SIM_API void metal_sim_set_page_size(uint64_t bytes);

/* Let `call`, a selector up to its first colon, go well `skip` times and then fail `times` times.
 * "execute" is the running of a committed command buffer. */
METAL_SIM_API void metal_sim_fail(const char *call, uint32_t skip, uint32_t times, int how);
/* How many more failures are waiting for their call. */
METAL_SIM_API uint32_t metal_sim_pending_failures(void);

/* Hold the device before the next command buffer but `skip`; after the release that work runs, and
 * so writes late. */
METAL_SIM_API void metal_sim_hang(uint32_t skip);
METAL_SIM_API void metal_sim_release_hang(void);

/* The device's clock. A command buffer takes the time that it really takes, until a cost is set:
 * then it takes the threads of each grid times the seconds of a thread of that kernel, by its exact
 * name, or of any other where `kernel` is NULL; and `seconds` for each byte that is copied or
 * filled. */
METAL_SIM_API void metal_sim_set_cost(const char *kernel, double seconds);
METAL_SIM_API void metal_sim_set_blit_cost(double seconds);
/* End a command buffer that takes more simulated seconds, with an error of MTLCommandBufferError:
 * 1 for what impairs the display, 2 for a timeout. After any error of this kind the queue ends all
 * else without running it, with code 4, also what was committed before. 0: no budget. */
METAL_SIM_API void metal_sim_set_budget(double seconds, int code);
/* End the command buffer after the next `skip` so, at a dispatch of it, or else at its last. */
METAL_SIM_API void metal_sim_end(uint32_t skip, int code, uint32_t dispatch);
/* A code for metal_sim_end() of what MTLCommandBufferError has no value for: "victim of GPU
 * error/recovery", which has code 1. */
#define METAL_SIM_VICTIM 105
/* Whether command buffers that failed have GPU times, as at the start. */
METAL_SIM_API void metal_sim_set_failed_times(int enabled);
/* Dispatches are checked and take their time, but do nothing. */
METAL_SIM_API void metal_sim_set_dry(int enabled);

/* Run the completion handlers of a command buffer that much after its work: also while the process
 * exits. 0, as at the start, for at once. A handler that ends its thread, as an interpreter that
 * exits does to threads that ask for it, aborts the process. */
METAL_SIM_API void metal_sim_late(uint32_t milliseconds);

/* Set everything above back, and forget the records. */
METAL_SIM_API void metal_sim_reset(void);

struct metal_sim_record {
    double seconds; /* by the device's clock */
    uint32_t dispatches;
    int32_t code; /* of MTLCommandBufferError; 0: completed; -1: an injected failure */
};

/* The first `room` command buffers that finished since the start, a reset or metal_sim_forget_
 * records, in that order; returns how many did. Both wait as metal_sim_live does. */
METAL_SIM_API uint64_t metal_sim_records(struct metal_sim_record *records, uint64_t room);
METAL_SIM_API void metal_sim_forget_records(void);

/* Objects alive by the name of their protocol or class, such as "MTLBuffer"; NULL for all. For
 * "MTLDevice" it counts references. Waits until the device has nothing to do, or hangs. */
METAL_SIM_API int64_t metal_sim_live(const char *name);
/* Objects made so far, or calls: of "specialisation" (a function with constant values), "residency
 * commit", and a residency set's "addAllocation", "requestResidency" and so on. */
METAL_SIM_API uint64_t metal_sim_made(const char *name);
/* "MTLBuffer 3, MTLLibrary 1" of what is alive, into text[0..size). */
METAL_SIM_API void metal_sim_live_text(char *text, uint64_t size);

#endif
