/* Shared by the files of the driver "cuda": NVIDIA GPUs through the driver API and NVRTC.
 *
 * Both are loaded when a device is looked for, by dlopen, and declared here as far as they are
 * used, so that the package builds without CUDA and imports without a GPU. api.c has the loading
 * and the texts of errors, driver.c devices, memory.c buffers, module.c libraries and pipelines,
 * compile.c and cache.c what makes machine code of a source, submit.c submissions.
 *
 * Locks: each is a leaf, except that copy_lock is held while the device copies.
 */
#ifndef CUDA_DRIVER_H
#define CUDA_DRIVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/gpu.h"

#if defined(__GNUC__) || defined(__clang__)
#define CUDA_PRINTF(string, first) __attribute__((format(printf, string, first)))
#else
#define CUDA_PRINTF(string, first)
#endif

/* The driver API. */

typedef int cuda_result; /* CUresult */
typedef int cuda_gpu;    /* CUdevice */
typedef unsigned long long cuda_address;
typedef struct CUctx_st *cuda_context;
typedef struct CUstream_st *cuda_stream;
typedef struct CUevent_st *cuda_event;
typedef struct CUmod_st *cuda_module;
typedef struct CUfunc_st *cuda_function;
typedef struct CUgraph_st *cuda_graph;
typedef struct CUgraphExec_st *cuda_graph_exec;
typedef struct CUgraphNode_st *cuda_graph_node;

enum {
    CUDA_OK = 0,
    CUDA_NO_MEMORY = 2,
    CUDA_NO_DEVICE = 100,
    CUDA_HOST_MEMORY_REGISTERED = 712,
    CUDA_NOT_READY = 600
};
enum { /* CUdevice_attribute */
       CUDA_MAX_THREADS_PER_BLOCK = 1,
       CUDA_MAX_BLOCK_X = 2,
       CUDA_MAX_BLOCK_Y = 3,
       CUDA_MAX_BLOCK_Z = 4,
       CUDA_MAX_GRID_X = 5,
       CUDA_MAX_GRID_Y = 6,
       CUDA_MAX_GRID_Z = 7,
       CUDA_MAX_SHARED_MEMORY = 8,
       CUDA_WARP_SIZE = 10,
       CUDA_MULTIPROCESSORS = 16,
       CUDA_INTEGRATED = 18,
       CUDA_MAJOR = 75,
       CUDA_MINOR = 76,
       CUDA_USES_HOST_POINTER = 91
};
enum { CUDA_FUNCTION_MAX_THREADS = 0, CUDA_FUNCTION_SHARED_BYTES = 1 }; /* CUfunction_attribute */
enum { CUDA_HOST_PORTABLE = 1, CUDA_HOST_MAPPED = 2, CUDA_HOST_READ_ONLY = 8 };
enum { CUDA_STREAM_NON_BLOCKING = 1 };
enum { CUDA_EVENT_BLOCKING_SYNC = 1, CUDA_EVENT_NO_TIMES = 2 };

typedef struct cuda_kernel_node { /* CUDA_KERNEL_NODE_PARAMS_v1 */
    cuda_function function;
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    void **parameters;
    void **extra;
} cuda_kernel_node;

/* X(name without cu, symbol, parameters) */
#define CUDA_FUNCTIONS(X)                                                                          \
    X(Init, "cuInit", (unsigned))                                                                  \
    X(DriverGetVersion, "cuDriverGetVersion", (int *))                                             \
    X(GetErrorName, "cuGetErrorName", (cuda_result, const char **))                                \
    X(GetErrorString, "cuGetErrorString", (cuda_result, const char **))                            \
    X(DeviceGetCount, "cuDeviceGetCount", (int *))                                                 \
    X(DeviceGet, "cuDeviceGet", (cuda_gpu *, int))                                                 \
    X(DeviceGetName, "cuDeviceGetName", (char *, int, cuda_gpu))                                   \
    X(DeviceTotalMem, "cuDeviceTotalMem_v2", (size_t *, cuda_gpu))                                 \
    X(DeviceGetAttribute, "cuDeviceGetAttribute", (int *, int, cuda_gpu))                          \
    X(DevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", (cuda_context *, cuda_gpu))              \
    X(DevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2", (cuda_gpu))                         \
    X(CtxPushCurrent, "cuCtxPushCurrent_v2", (cuda_context))                                       \
    X(CtxPopCurrent, "cuCtxPopCurrent_v2", (cuda_context *))                                       \
    X(MemGetInfo, "cuMemGetInfo_v2", (size_t *, size_t *))                                         \
    X(MemAlloc, "cuMemAlloc_v2", (cuda_address *, size_t))                                         \
    X(MemFree, "cuMemFree_v2", (cuda_address))                                                     \
    X(MemHostAlloc, "cuMemHostAlloc", (void **, size_t, unsigned))                                 \
    X(MemFreeHost, "cuMemFreeHost", (void *))                                                      \
    X(MemHostGetDevicePointer, "cuMemHostGetDevicePointer_v2", (cuda_address *, void *, unsigned)) \
    X(MemHostRegister, "cuMemHostRegister_v2", (void *, size_t, unsigned))                         \
    X(MemHostUnregister, "cuMemHostUnregister", (void *))                                          \
    X(MemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2", (cuda_address, const void *, size_t, cuda_stream))  \
    X(MemcpyDtoHAsync, "cuMemcpyDtoHAsync_v2", (void *, cuda_address, size_t, cuda_stream))        \
    X(MemsetD8Async, "cuMemsetD8Async", (cuda_address, unsigned char, size_t, cuda_stream))        \
    X(StreamCreate, "cuStreamCreate", (cuda_stream *, unsigned))                                   \
    X(StreamSynchronize, "cuStreamSynchronize", (cuda_stream))                                     \
    X(StreamDestroy, "cuStreamDestroy_v2", (cuda_stream))                                          \
    X(EventCreate, "cuEventCreate", (cuda_event *, unsigned))                                      \
    X(EventRecord, "cuEventRecord", (cuda_event, cuda_stream))                                     \
    X(EventQuery, "cuEventQuery", (cuda_event))                                                    \
    X(EventSynchronize, "cuEventSynchronize", (cuda_event))                                        \
    X(EventElapsedTime, "cuEventElapsedTime", (float *, cuda_event, cuda_event))                   \
    X(EventDestroy, "cuEventDestroy_v2", (cuda_event))                                             \
    X(ModuleLoadData, "cuModuleLoadData", (cuda_module *, const void *))                           \
    X(ModuleUnload, "cuModuleUnload", (cuda_module))                                               \
    X(ModuleGetFunction, "cuModuleGetFunction", (cuda_function *, cuda_module, const char *))      \
    X(ModuleGetGlobal, "cuModuleGetGlobal_v2",                                                     \
      (cuda_address *, size_t *, cuda_module, const char *))                                       \
    X(FuncGetAttribute, "cuFuncGetAttribute", (int *, int, cuda_function))                         \
    X(LaunchKernel, "cuLaunchKernel",                                                              \
      (cuda_function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,        \
       cuda_stream, void **, void **))                                                             \
    X(GraphCreate, "cuGraphCreate", (cuda_graph *, unsigned))                                      \
    X(GraphAddKernelNode, "cuGraphAddKernelNode",                                                  \
      (cuda_graph_node *, cuda_graph, const cuda_graph_node *, size_t, const cuda_kernel_node *))  \
    X(GraphInstantiate, "cuGraphInstantiateWithFlags",                                             \
      (cuda_graph_exec *, cuda_graph, unsigned long long))                                         \
    X(GraphLaunch, "cuGraphLaunch", (cuda_graph_exec, cuda_stream))                                \
    X(GraphExecDestroy, "cuGraphExecDestroy", (cuda_graph_exec))                                   \
    X(GraphDestroy, "cuGraphDestroy", (cuda_graph))

/* An edge of a graph by which a kernel starts when all threadgroups of the one before have ended or
 * let it start, and waits by itself until what they wrote is seen. */
typedef struct cuda_edge { /* CUgraphEdgeData */
    unsigned char from_port, to_port, type, reserved[5];
} cuda_edge;
#define CUDA_EARLY_START ((cuda_edge){.from_port = 1, .type = 1}) /* programmatic */

/* What drivers before CUDA 12.3 lack: NULL there. */
#define CUDA_NEWER_FUNCTIONS(X)                          \
    X(GraphAddDependencies, "cuGraphAddDependencies_v2", \
      (cuda_graph, const cuda_graph_node *, const cuda_graph_node *, const cuda_edge *, size_t))

struct cuda_api {
#define X(name, symbol, parameters) cuda_result(*name) parameters;
    CUDA_FUNCTIONS(X)
    CUDA_NEWER_FUNCTIONS(X)
#undef X
    int version; /* 1000 major + 10 minor */
};

/* NVRTC. */

typedef struct _nvrtcProgram *nvrtc_program;

#define NVRTC_FUNCTIONS(X)                                                    \
    X(int, Version, (int *, int *))                                           \
    X(int, GetNumSupportedArchs, (int *))                                     \
    X(int, GetSupportedArchs, (int *))                                        \
    X(int, CreateProgram,                                                     \
      (nvrtc_program *, const char *, const char *, int, const char *const *, \
       const char *const *))                                                  \
    X(int, CompileProgram, (nvrtc_program, int, const char *const *))         \
    X(int, GetProgramLogSize, (nvrtc_program, size_t *))                      \
    X(int, GetProgramLog, (nvrtc_program, char *))                            \
    X(int, GetCUBINSize, (nvrtc_program, size_t *))                           \
    X(int, GetCUBIN, (nvrtc_program, char *))                                 \
    X(int, GetPTXSize, (nvrtc_program, size_t *))                             \
    X(int, GetPTX, (nvrtc_program, char *))                                   \
    X(int, DestroyProgram, (nvrtc_program *))                                 \
    X(const char *, GetErrorString, (int))

struct nvrtc_api {
#define X(type, name, parameters) type(*name) parameters;
    NVRTC_FUNCTIONS(X)
#undef X
    int major, minor;
};

extern struct cuda_api cuda;
extern struct nvrtc_api cuda_nvrtc;
extern const oxb_host *cuda_host;
/* What is compiled ahead of each source of gpu/msl_sources.h, which are in CUDA C++ in this build.
 */
extern const char cuda_prelude[];

#define cuda_fail(...) (cuda_host->fail(__VA_ARGS__))

/* Load libcuda and count the GPUs; a text says what is missing. */
oxb_status cuda_load(int *gpus);
/* Load an NVRTC that this driver can run the code of; a text says what is missing. */
oxb_status cuda_load_nvrtc(void);

#define CUDA_TEXT_BYTES 512
/* What `call` gave: its name, the error's name and text, and what to do where the context is lost.
 */
const char *cuda_text(char text[CUDA_TEXT_BYTES], const char *call, cuda_result result);

/* Devices. */

typedef struct cuda_registration { /* host memory that the device reaches */
    struct cuda_registration *next;
    char *start;
    uint64_t length;
    unsigned refs;
} cuda_registration;

typedef struct cuda_flight { /* a submission until it is done */
    struct cuda_flight *next;
    cuda_event begin, end;
    oxb_driver_done done;
    void *context;
} cuda_flight;

#define CUDA_STAGES 2u

typedef struct cuda_device {
    gpu_traits traits; /* first: shim/gpu finds it there */
    cuda_gpu gpu;
    cuda_context context;
    cuda_stream stream; /* all work, in order */
    uint32_t index;
    int arch; /* 10 major + minor */
    char name[128];
    uint64_t memory;
    int limits[CUDA_MAX_SHARED_MEMORY + 1]; /* by attribute, those up to that one */
    bool integrated;
    bool uses_host_pointer;
    atomic_bool serial_graphs; /* no early starts: the driver refused a graph with them */

    pthread_mutex_t copy_lock;
    char *stages[CUDA_STAGES]; /* pinned, made on first use */
    cuda_event staged[CUDA_STAGES];

    pthread_mutex_t registry_lock;
    cuda_registration *registrations;

    pthread_mutex_t flight_lock;
    pthread_cond_t flight_change;
    cuda_flight *first, *last; /* in flight, in the stream's order */
    cuda_flight *idle;
    bool closing;
    bool waiting; /* the waiter runs */
    pthread_t waiter;
} cuda_device;

/* Make the device's context the thread's, and give the thread its own back. */
oxb_status cuda_enter(cuda_device *self, oxb_status code);
void cuda_leave(void);
/* Whether an event comes within `seconds`; the stream's error where it ends with one. */
cuda_result cuda_wait_event(cuda_event event, double seconds);
void cuda_device_free(cuda_device *self);

/* Memory. */

typedef struct cuda_buffer {
    cuda_address address;
    void *host;                        /* memory of ours with an address on both sides */
    cuda_registration **registrations; /* wrapped memory */
    uint32_t n_registrations;
    bool borrowed; /* memory that somebody else has pinned */
} cuda_buffer;

oxb_status cuda_buffer_new(void *device, uint64_t length, oxb_storage storage, void **buffer,
                           void **contents);
oxb_status cuda_buffer_wrap(void *device, void *host, uint64_t length, void **buffer);
void cuda_buffer_free(void *device, void *buffer);
oxb_status cuda_buffer_read(void *device, void *buffer, uint64_t offset, void *to, uint64_t length);
oxb_status cuda_buffer_write(void *device, void *buffer, uint64_t offset, const void *from,
                             uint64_t length);
oxb_status cuda_buffer_fill(void *device, void *buffer, uint64_t offset, uint64_t length,
                            uint8_t value);
void cuda_stages_free(cuda_device *self);
/* With the context entered. */
oxb_status cuda_copy_in(cuda_device *self, cuda_address to, const void *from, uint64_t length);
oxb_status cuda_copy_out(cuda_device *self, void *to, cuda_address from, uint64_t length);

/* Machine code. */

typedef struct cuda_code {
    char *bytes;
    size_t length;
} cuda_code;

/* Compile for the device, or find it compiled in the user's cache. `options` are this source's own.
 */
oxb_status cuda_compile(const cuda_device *self, const char *name, const char *source,
                        size_t length, const char *const *options, uint32_t n_options,
                        cuda_code *code);

#define CUDA_DIGEST_BYTES 32
typedef struct cuda_hash {
    uint32_t state[8];
    uint64_t length; /* bytes */
    unsigned char block[64];
} cuda_hash;
void cuda_hash_begin(cuda_hash *hash);
void cuda_hash_add(cuda_hash *hash, const void *bytes, size_t length);
void cuda_hash_end(cuda_hash *hash, unsigned char digest[CUDA_DIGEST_BYTES]);

/* The user's cache of code by the digest of all that it depends on; whatever fails there is a miss.
 */
bool cuda_cache_get(const unsigned char key[CUDA_DIGEST_BYTES], cuda_code *code);
void cuda_cache_put(const unsigned char key[CUDA_DIGEST_BYTES], const cuda_code *code);

/* Libraries and pipelines. */

/* A parameter of an entry: the address of a binding, or the argument struct by value. */
typedef struct cuda_parameter {
    bool by_value;
    uint32_t index; /* of the binding */
} cuda_parameter;

typedef struct cuda_pipeline {
    cuda_module module;
    cuda_function function;
    char name[OXB_NAME_BYTES];
    uint32_t n_parameters; /* in the entry's order; threadgroup(0) is none of them */
    cuda_parameter parameters[OXB_MAX_BINDINGS];
} cuda_pipeline;

oxb_status cuda_library_new(void *device, const char *source, size_t length, void **library);
void cuda_library_free(void *device, void *library);
oxb_status cuda_pipeline_new(void *device, void *library, const char *function,
                             const oxb_constant *constants, uint32_t n_constants, void **pipeline,
                             oxb_pipeline_info *info);
void cuda_pipeline_free(void *device, void *pipeline);

/* Submission. */

oxb_status cuda_submit(void *device, const oxb_driver_dispatch *list, uint32_t n, void **replay,
                       oxb_driver_done done, void *context);
void cuda_replay_free(void *device, void *replay);
/* Start and end the thread that reports the ends of submissions. */
oxb_status cuda_waiter_start(cuda_device *self);
void cuda_waiter_stop(cuda_device *self);

#endif
