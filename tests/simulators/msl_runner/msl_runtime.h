/* C interface of the MSL runner: executes compiled Metal Shading Language kernels on the CPU.
 *
 * Compile, in a subprocess with the folder tests/ on PYTHONPATH:
 *
 *     python -m msl.compile [--mode check|fast] [--version 2.4] [--kernel NAME ...]
 *                           [--constant INDEX:TYPE=VALUE ...] [--include DIR ...] [--name NAME]
 * SOURCE
 *
 * Exit status 0: standard output holds these lines, each a keyword, one space and a path:
 *
 *     runtime PATH     the shared library with the functions below
 *     library PATH     the compiled kernels, for msl_library_open
 *
 * Exit status 1: the compiler's log, FILE:LINE:COLUMN: error: TEXT, is on standard error.
 * Exit status 2: no compiler, or wrong arguments; the reason is on standard error.
 * Results are cached; the same call again takes a fraction of a second. --kernel keeps only the
 * kernels named (repeatable); without it the library holds all. --name is how errors call the
 * source (default: the file's path). VALUE is true, false or a number as C writes it.
 * `python -m msl.compile --runtime` prints the runtime line alone, without a source.
 *
 * A function constant has the value that --constant gave it, so each set of values is a library of
 * its own. One compiled without values still describes its kernels; running a kernel that needs a
 * constant without a value is an error.
 *
 * All functions may be called from several threads at once.
 */
#ifndef MSL_RUNTIME_H
#define MSL_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MSL_RUNTIME_VERSION 1
#define MSL_MAX_BUFFERS     31 /* [[buffer(0)]] to [[buffer(30)]]; the same for [[threadgroup(n)]] */
#define MSL_SIMD_WIDTH      32
#define MSL_MAX_THREADS     1024 /* in a threadgroup */

typedef struct msl_library msl_library;

enum msl_argument_kind {
    MSL_ARGUMENT_DEVICE,     /* device T* or device T& */
    MSL_ARGUMENT_CONSTANT,   /* constant T* or constant T& */
    MSL_ARGUMENT_THREADGROUP /* threadgroup T* with [[threadgroup(n)]]; needs a length in the launch
                              */
};

struct msl_argument {
    uint32_t kind;
    uint32_t index;        /* n of [[buffer(n)]] or [[threadgroup(n)]] */
    uint32_t writable;     /* 0 for constant T and device const T */
    uint32_t by_reference; /* 1 for T&: at least `size` bytes have to be bound */
    uint64_t size;         /* sizeof(T) */
    uint64_t alignment;    /* alignof(T): what address + offset has to be a multiple of */
    const char *name;
};

/* A function constant that a kernel uses, directly or through what it calls. */
struct msl_constant {
    uint32_t index;
    uint32_t required; /* 0 where the source asks is_function_constant_defined */
    uint32_t defined;  /* 1 where this library was compiled with a value */
    const char *name;
    const char *type; /* as in the source: "bool", "uint", "float", ... */
};

struct msl_kernel {
    const char *name; /* host_name where there is one */
    const struct msl_argument *arguments;
    const struct msl_constant *constants;
    uint32_t n_arguments;
    uint32_t n_constants;
    uint32_t max_threads;              /* max_total_threads_per_threadgroup, 0 where not given */
    uint32_t static_threadgroup_bytes; /* the kernel's own threadgroup variables */
};

/* Open what msl.compile wrote; NULL on failure, with the reason in error[0..error_size). */
msl_library *msl_library_open(const char *path, char *error, size_t error_size);

/* No kernel of the library may be running. */
void msl_library_close(msl_library *library);

/* Kernels live as long as their library. msl_library_kernel is NULL for index >= count. */
uint32_t msl_library_count(const msl_library *library);
const struct msl_kernel *msl_library_kernel(const msl_library *library, uint32_t index);
/* NULL where the library has no kernel of that name. */
const struct msl_kernel *msl_library_find(const msl_library *library, const char *name);

/* Zeroed memory, a multiple of 16 from an inaccessible page on both sides: an access past its end
 * faults in every build and is reported. Any other memory can be bound as well: the check build
 * holds each access to the bound ranges wherever they lie. NULL where there is no memory. */
void *msl_alloc(uint64_t size);
void msl_free(void *memory);

/* One binding. The kernel gets base + offset and may touch [base + offset, base + length). Bytes
 * bound by value (setBytes) are a binding of a 16-byte aligned copy. base NULL: nothing bound. */
struct msl_binding {
    void *base;
    uint64_t length;
    uint64_t offset;
};

enum msl_order {
    MSL_ORDER_FORWARD, /* threads and threadgroups in ascending order */
    MSL_ORDER_REVERSE,
    MSL_ORDER_RANDOM /* by seed, also after every barrier */
};

enum msl_flags {
    /* Finish a SIMD-group function for the lanes that reached it when the others wait elsewhere, as
     * the hardware does, instead of reporting divergence. */
    MSL_ALLOW_PARTIAL_SIMD = 1,
    /* Report a SIMD-group function or barrier as divergent where some lanes have returned. Without
     * it, SIMD functions leave returned lanes out; a threadgroup_barrier is always strict. */
    MSL_FORBID_EXITED_LANES = 2
};

/* Zero everything first: zero is the default of each member. */
struct msl_launch {
    struct msl_binding buffers[MSL_MAX_BUFFERS];
    uint64_t threadgroup_bytes[MSL_MAX_BUFFERS]; /* of each [[threadgroup(n)]] argument */
    uint32_t threadgroups[3];
    uint32_t threads_per_threadgroup[3];
    uint32_t threads_per_grid[3]; /* 0: threadgroups * threads; less: partial groups at the edges */
    uint32_t order;               /* enum msl_order */
    uint32_t seed;
    uint32_t flags;   /* enum msl_flags */
    uint32_t workers; /* host threads; 0: one per processor. A check build uses one. */
    uint32_t max_threadgroup_bytes; /* static and dynamic together; 0: 32768 */
};

/* Run a kernel to its end. 0, or 1 with the first error in error[0..error_size), which is always
 * terminated. After an error the bound memory holds what was written until then. */
int msl_run(const msl_library *library, const struct msl_kernel *kernel,
            const struct msl_launch *launch, char *error, size_t error_size);

/* For sources that mutate.py made: take mutant `number` of every program from now on, or none of
 * them for 0. Unless it is NULL, matter[i] becomes 1 where mutant i would change what runs. */
void msl_take_mutant(uint32_t number, uint8_t *matter);

#ifdef __cplusplus
}
#endif
#endif
