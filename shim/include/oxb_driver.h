/* What a driver implements: a versioned table of functions behind the C ABI of oxb_shim.h.
 *
 * The front (shim/front) owns the handles, reference counts, argument checks and waiting; a driver
 * owns the device. It may be called from many threads at once, and sees only arguments that the
 * front has checked. Work submitted to one device runs in the order of submission.
 */
#ifndef OXB_DRIVER_H
#define OXB_DRIVER_H

#include "oxb_shim.h"

typedef struct oxb_driver_binding {
    void *buffer;    /* the driver's own buffer */
    void *contents;  /* host address, NULL for private storage */
    uint64_t offset; /* bytes */
    uint64_t length; /* bytes of the whole buffer */
} oxb_driver_binding;

/* One dispatch, which the front has held against the pipeline's arguments and the device's limits.
 */
typedef struct oxb_driver_dispatch {
    void *pipeline;
    const oxb_driver_binding *bindings;
    const void *args; /* bound after the last buffer; aligned to 16 bytes */
    uint32_t n_bindings;
    uint32_t args_size; /* bytes; 0: none */
    oxb_size threadgroups;
    oxb_size threads;
    uint32_t threadgroup_memory; /* dynamic, bytes: a multiple of 16, 0 where the kernel has none */
} oxb_driver_dispatch;

/* What binding_bytes gives for an argument struct that describes nothing the kernel can run. */
#define OXB_BAD_ARGS UINT64_MAX

/* Reports the end of a submission, exactly once, from any thread; message may be NULL when ok.
 * The driver must not touch the dispatch list afterwards. */
typedef void (*oxb_driver_done)(void *context, oxb_status status, const char *message,
                                oxb_times times);

/* Services the front gives to a driver that is loaded from a shared library. */
typedef struct oxb_host {
    uint32_t abi_version;
    uint32_t struct_size;
    /* Keep a printf-formatted message for this thread's oxb_last_error and return `status`. */
    oxb_status (*fail)(oxb_status status, const char *format, ...);
} oxb_host;

struct oxb_driver {
    uint32_t abi_version; /* OXB_ABI_VERSION it was built with */
    uint32_t struct_size;
    const char *name;

    oxb_status (*device_count)(uint32_t *count);
    oxb_status (*device_open)(uint32_t index, const oxb_device_options *options, void **device);
    void (*device_close)(void *device); /* nothing is in flight, every child is freed */
    void (*device_info)(void *device, oxb_device_info *info);

    oxb_status (*buffer_new)(void *device, uint64_t length, oxb_storage storage, void **buffer,
                             void **contents);
    oxb_status (*buffer_wrap)(void *device, void *host, uint64_t length, void **buffer);
    void (*buffer_free)(void *device, void *buffer);
    /* Called for private storage only: shared storage is copied by the front. */
    oxb_status (*buffer_read)(void *device, void *buffer, uint64_t offset, void *to,
                              uint64_t length);
    oxb_status (*buffer_write)(void *device, void *buffer, uint64_t offset, const void *from,
                               uint64_t length);
    oxb_status (*buffer_fill)(void *device, void *buffer, uint64_t offset, uint64_t length,
                              uint8_t value);

    oxb_status (*library_new)(void *device, const char *source, size_t length, void **library);
    void (*library_free)(void *device, void *library);
    /* `info` lists what the kernel takes: every dispatch is checked by it when it is recorded. */
    oxb_status (*pipeline_new)(void *device, void *library, const char *function,
                               const oxb_constant *constants, uint32_t n_constants, void **pipeline,
                               oxb_pipeline_info *info);
    void (*pipeline_free)(void *device, void *pipeline);
    /* The bytes that the buffer at `index` must hold for an argument struct, or OXB_BAD_ARGS.
     * `args` has the size of the list and is aligned to 16 bytes. NULL where the driver cannot
     * tell. */
    uint64_t (*binding_bytes)(void *device, void *pipeline, const void *args, uint32_t index);

    /* Run the list in order; every dispatch sees what the earlier ones wrote. `replay` keeps what
     * the driver wants to remember of this list, which stays as it is, between submissions (a CUDA
     * graph); NULL at first. Where this fails, `done` is not called. */
    oxb_status (*submit)(void *device, const oxb_driver_dispatch *list, uint32_t n, void **replay,
                         oxb_driver_done done, void *context);
    void (*replay_free)(void *device, void *replay); /* called only where `replay` was set */

    /* Layouts of weights beside the plain one, and variants of the kernels. NULL where there is
     * none of a kind. The size in bytes of a matrix in `layout` with the offset of its codes, 0
     * where the device does not use it for that matrix. */
    uint64_t (*weight_size)(void *device, oxb_device_format kernel, oxb_layout layout,
                            uint64_t n_rows, uint64_t k, uint64_t *codes_offset);
    /* Lay out blocks in a buffer of that size; 0 where `layout` cannot hold these codes. */
    int (*weight_pack)(void *device, oxb_file_format format, oxb_layout layout, const void *from,
                       uint64_t n_rows, uint64_t k, void *to);
    const char *(*variant)(uint32_t index);

    /* Write what the device does to a file for the maker's tools. Both NULL where there is no such.
     */
    oxb_status (*capture_start)(void *device, const char *path);
    oxb_status (*capture_stop)(void *device);
};

/* What a driver library exports: its table, or NULL with the reason kept through host->fail. */
typedef const oxb_driver *(*oxb_driver_entry_fn)(const oxb_host *host);
#define OXB_DRIVER_ENTRY "oxb_driver_entry"

#endif
