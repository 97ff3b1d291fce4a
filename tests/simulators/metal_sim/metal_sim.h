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

/* The major version of macOS: 26, as at the start, or 12, which has neither math modes nor
 * residency sets. */
METAL_SIM_API void metal_sim_set_macos(uint32_t major);

/* Let `call`, a selector up to its first colon, go well `skip` times and then fail `times` times.
 * "execute" is the running of a committed command buffer. */
METAL_SIM_API void metal_sim_fail(const char *call, uint32_t skip, uint32_t times, int how);
/* How many more failures are waiting for their call. */
METAL_SIM_API uint32_t metal_sim_pending_failures(void);

/* Hold the device before the next command buffer but `skip`; after the release that work runs, and
 * so writes late. */
METAL_SIM_API void metal_sim_hang(uint32_t skip);
METAL_SIM_API void metal_sim_release_hang(void);

/* Set everything above back. */
METAL_SIM_API void metal_sim_reset(void);

/* Objects alive by the name of their protocol or class, such as "MTLBuffer"; NULL for all. For
 * "MTLDevice" it counts references. Waits until the device has nothing to do, or hangs. */
METAL_SIM_API int64_t metal_sim_live(const char *name);
/* Objects made so far, or calls of "specialisation" (a function with constant values). */
METAL_SIM_API uint64_t metal_sim_made(const char *name);
/* "MTLBuffer 3, MTLLibrary 1" of what is alive, into text[0..size). */
METAL_SIM_API void metal_sim_live_text(char *text, uint64_t size);

#endif
