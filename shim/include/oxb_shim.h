/* The C ABI of oxibonsai: devices, buffers, pipelines, recorded commands, weights and ops.
 *
 * Handles are opaque and reference counted: a child keeps its device alive, recorded commands keep
 * their buffers and pipelines alive, and a submission keeps everything alive until the device has
 * finished with it, so handles may be released in any order. Every function that can fail returns
 * oxb_status and leaves its out-parameters untouched on failure; oxb_last_error() then holds a
 * message of the calling thread. No function aborts, throws or prints; only with
 * OXIBONSAI_TRACE=1 in the environment do submissions print what they run to stderr.
 *
 * Thread safety: devices, buffers, libraries, pipelines, weights and submissions may be used from
 * any number of threads; one oxb_commands belongs to one thread at a time. Any call may block on a
 * lock or on the device: a caller that holds a lock of its own (the GIL) releases it first.
 */
#ifndef OXB_SHIM_H
#define OXB_SHIM_H

#include <stddef.h>
#include <stdint.h>

#include "oxb_formats.h"

#ifdef __cplusplus
extern "C" {
#endif

#define OXB_ABI_VERSION    6u
#define OXB_MAX_BINDINGS   31u   /* Metal's buffer indices 0..30 */
#define OXB_MAX_ARGS_BYTES 4096u /* Metal's limit for inline constants */
#define OXB_MAX_IN_FLIGHT  16u   /* a Metal queue blocks at 64 */
#define OXB_MAX_CONSTANTS  16u
#define OXB_MAX_ARGUMENTS  (OXB_MAX_BINDINGS + 1u) /* threadgroup(0) beside the bindings */
#define OXB_NAME_BYTES     64u
#define OXB_MAX_VARIANTS   32u /* of the kernels of one op */

typedef enum oxb_status {
    OXB_OK = 0,
    OXB_DEVICE_NOT_FOUND = 1,
    OXB_COMPILATION_FAILED = 2, /* the message holds the compiler's log */
    OXB_BUFFER_CREATION_FAILED = 3,
    OXB_ENCODING_FAILED = 4,
    OXB_EXECUTION_FAILED = 5
} oxb_status;

typedef enum oxb_storage { OXB_STORAGE_SHARED = 0, OXB_STORAGE_PRIVATE = 1 } oxb_storage;

typedef struct oxb_device oxb_device;
typedef struct oxb_buffer oxb_buffer;
typedef struct oxb_library oxb_library;
typedef struct oxb_pipeline oxb_pipeline;
typedef struct oxb_commands oxb_commands;
typedef struct oxb_submission oxb_submission;
typedef struct oxb_driver oxb_driver; /* oxb_driver.h */

typedef struct oxb_device_options {
    uint32_t threads;    /* cpu: worker threads, the caller's included; 0 for the default */
    const char *variant; /* of the kernels, one of oxb_device_variant(); NULL for the best */
} oxb_device_options;

typedef struct oxb_size {
    uint32_t x, y, z;
} oxb_size;

typedef struct oxb_device_info {
    char name[128];
    char driver[16];
    char variant[32]; /* the kernels in use, such as "portable" */
    uint32_t index;
    uint32_t simd_width;
    uint32_t unified_memory;
    uint32_t threads; /* cpu only; 0 elsewhere */
    uint64_t max_buffer_length;
    uint64_t max_threadgroup_memory;
    uint64_t recommended_working_set;
    uint64_t page_size;        /* bytes; wrapped memory is mapped by the page. 0: the system's */
    oxb_size max_threads;      /* of a threadgroup in each direction; 0: the pipeline's limit */
    oxb_size max_threadgroups; /* of a grid in each direction; 0: as many as 32 bits count */
    char compiler[64]; /* of kernels at run time, with versions; "": the system's, or none */
} oxb_device_info;

/* A live view of what a device holds. */
typedef struct oxb_device_stats {
    uint64_t buffers;         /* live buffers */
    uint64_t allocated_bytes; /* of the buffers the device allocated, wrapped memory apart */
    uint64_t in_flight;       /* submissions not yet finished */
    uint64_t submissions;     /* since the device was opened */
    double work_per_second;   /* multiply-adds, as measured so far; 0 where they were not */
} oxb_device_stats;

typedef enum oxb_constant_type {
    OXB_CONSTANT_BOOL = 0,
    OXB_CONSTANT_U32 = 1,
    OXB_CONSTANT_I32 = 2,
    OXB_CONSTANT_F32 = 3
} oxb_constant_type;

typedef union oxb_constant_value {
    uint32_t u32;
    int32_t i32;
    float f32;
} oxb_constant_value;

typedef struct oxb_constant {
    uint32_t index;
    uint32_t type; /* oxb_constant_type */
    oxb_constant_value value;
} oxb_constant;

typedef enum oxb_argument_kind {
    OXB_ARGUMENT_BUFFER = 0,     /* a buffer; the argument struct too where it is only read */
    OXB_ARGUMENT_STRUCT = 1,     /* the argument struct, and no buffer in its place */
    OXB_ARGUMENT_THREADGROUP = 2 /* dynamic threadgroup memory */
} oxb_argument_kind;

typedef enum oxb_access {
    OXB_ACCESS_UNKNOWN = 0,
    OXB_ACCESS_READ = 1,
    OXB_ACCESS_WRITE = 2 /* it may read as well */
} oxb_access;

/* What a kernel takes at one index. */
typedef struct oxb_argument {
    uint32_t kind;      /* oxb_argument_kind */
    uint32_t index;     /* of the binding; the argument struct follows the last buffer */
    uint32_t size;      /* bytes: of OXB_ARGUMENT_STRUCT exactly, of OXB_ARGUMENT_BUFFER at least */
    uint32_t alignment; /* of a buffer's offset, bytes; 0 where the driver does not know */
    uint32_t access;    /* oxb_access */
    uint32_t optional;  /* the kernel does not use it: it may be left unbound */
} oxb_argument;

typedef struct oxb_pipeline_info {
    uint32_t max_threads; /* largest threadgroup this pipeline runs with */
    uint32_t simd_width;
    uint64_t static_threadgroup_memory; /* bytes */
    uint32_t n_arguments;               /* 0 where the driver does not know what the kernel takes */
    uint32_t pad;
    oxb_argument arguments[OXB_MAX_ARGUMENTS];
} oxb_pipeline_info;

typedef struct oxb_binding {
    oxb_buffer *buffer;
    uint64_t offset; /* bytes */
} oxb_binding;

typedef struct oxb_times {
    double start; /* seconds on the device's clock */
    double end;
} oxb_times;

/* The layout of a weight's buffer that every device has: all scales, all codes, in row order. Other
 * numbers are the driver's own. */
#define OXB_LAYOUT_PLAIN 0u

/* A weight matrix on a device. `buffer` is owned by whoever uploaded it (one reference).
 * n_rows and k are 0 where the shape is not known (plain SoA). */
typedef struct oxb_weight {
    oxb_buffer *buffer;
    uint64_t codes_offset;  /* bytes from the buffer's start; the scales lie before it */
    uint64_t n_groups;      /* scales held */
    uint32_t device_format; /* oxb_device_format */
    uint32_t n_rows;
    uint32_t k;
    uint32_t layout; /* OXB_LAYOUT_PLAIN or one of the driver's */
} oxb_weight;

/* Vectors of a matrix product: as they are; or rounded to 8 bits in blocks of 16 that share a
 * scale, or to halves, where the driver has such products for the matrix and that many vectors. */
typedef enum oxb_activations {
    OXB_ACTIVATIONS_FLOAT32 = 0,
    OXB_ACTIVATIONS_INT8 = 1,
    OXB_ACTIVATIONS_HALF = 2
} oxb_activations;

/* The most that `n_rows`, `k` and `n_vectors` of an oxb_product may be. */
#define OXB_MAX_PRODUCT_COUNT 0x80000000u

/* The products whose kernel can be chosen: those by one matrix for a number of vectors. A choice
 * holds for every number that rounds up to the same power of two. */
typedef struct oxb_product {
    const char *op; /* "gemv", "swiglu", "gemm", "swiglu_gemm", "gemm_halves" or "gemm_half" */
    uint32_t device_format; /* oxb_device_format */
    uint32_t pad;
    uint64_t n_rows; /* of the matrix: gate and up together */
    uint64_t k;
    uint64_t n_vectors;
} oxb_product;

/* The RMSNorm of what a product takes in: x / sqrt(mean(x^2) + eps) * weight. */
typedef struct oxb_norm {
    oxb_binding weight; /* float32 [k] */
    float eps;
    uint32_t pad;
} oxb_norm;

/* Which elements of a head RoPE rotates together: i and i + rotary_dim / 2, or 2 i and 2 i + 1. */
typedef enum oxb_rope_style { OXB_ROPE_NEOX = 0, OXB_ROPE_INTERLEAVED = 1 } oxb_rope_style;

/* The second half of a transformer layer, for n_vectors rows. */
typedef struct oxb_feed_forward {
    const oxb_weight *attn_proj; /* [hidden_size, attn_size] */
    const oxb_weight *gate_up;   /* [2 intermediate_size, hidden_size]: gate rows, then up rows */
    const oxb_weight *down;      /* [hidden_size, intermediate_size] */
    oxb_binding attn;            /* float32 [n_vectors, attn_size] */
    oxb_binding hidden;          /* float32 [n_vectors, hidden_size], read and written */
    oxb_binding activated;       /* float32 [n_vectors, intermediate_size], overwritten */
    oxb_norm norm;
    oxb_binding normed; /* float32 [n_vectors, hidden_size]: where the norm of hidden goes; its
                           buffer is NULL where nobody reads that */
    uint64_t attn_size;
    uint64_t hidden_size;
    uint64_t intermediate_size;
    uint64_t n_vectors;
} oxb_feed_forward;

/* Elements of the caches of keys and values. OXB_KV_Q8 has 9 bits for each element of a head but
 * the last 16, which have 8, and a unit for each key or value: a bfloat16, max|x| / 255 rounded up,
 * in the place of the last 16 bits. Keys are held after a Walsh-Hadamard transform. */
typedef enum oxb_kv_format { OXB_KV_F32 = 0, OXB_KV_F16 = 1, OXB_KV_Q8 = 2 } oxb_kv_format;

/* The heads of the tokens in flight, and the caches. A cache is [page][layer][key-value head], each
 * of page_size positions by head_dim elements. A head of OXB_KV_Q8 has 8 bits of each element
 * there, and behind them [page_size][head_dim / 16] words of 16 bits: the low bits of a position's
 * elements, and the unit last (struct oxb_cache in oxb_args.h).
 * Element state.pages + p / page_size of `pages` is the page of position p of a sequence. */
typedef struct oxb_attention_shape {
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t max_seq; /* positions of a sequence */
    uint32_t layer;
    uint32_t kv_format; /* oxb_kv_format */
    uint32_t n_tokens;  /* in flight */
    uint32_t batch; /* 0: at the state's position and after it; 1: each of a sequence of its own,
                       at the position of its own state */
    uint32_t max_length; /* the most positions that attention will meet, for the cut of the work; 0:
                            max_seq */
    uint32_t
        rotary_dim; /* elements of a head that RoPE rotates, the first ones; even; 0: head_dim */
    uint32_t rope_style; /* oxb_rope_style */
    uint32_t page_size;  /* positions, a multiple of 64; 0: one page of max_seq, no table */
    uint32_t n_layers;   /* of a page; without pages of no concern, like the next */
    uint32_t n_pages;    /* of a cache */
    oxb_binding pages;   /* uint32, the tables of all sequences */
} oxb_attention_shape;

/* What chooses the next token of each row of logits. */
typedef struct oxb_sample {
    oxb_binding logits;   /* float32 [n_vectors, n] */
    oxb_binding settings; /* struct oxb_sampling [batch ? n_vectors : 1] */
    oxb_binding state;    /* struct oxb_decode_state [batch ? n_vectors : 1] */
    oxb_binding tokens;   /* uint32 [max_tokens] */
    oxb_binding biases;   /* struct oxb_bias [n_biases]; no buffer: none */
    oxb_binding masks;    /* uint32 [n_masks][(n + 31) / 32]; no buffer: none */
    oxb_binding choices;  /* struct oxb_choice [n_vectors][n_slots], at slot position % n_slots */
    oxb_binding best;     /* struct oxb_scored [n_vectors][n_slots][n_best] */
    uint64_t n, n_vectors, max_tokens, n_biases, n_masks;
    uint32_t n_slots, n_best, batch, log_probabilities, advance;
} oxb_sample;

/* Every function of the ABI, once: X(return type, name, parameters). The list makes the prototypes
 * below and the table that foreign code receives through a capsule. */
#define OXB_FUNCTIONS(X)                                                                           \
    /* The message of the last failure in this thread, UTF-8, never NULL. */                       \
    X(const char *, last_error, (void))                                                            \
    /* Drivers, in the order in which the default device is looked for. */                         \
    X(uint32_t, driver_count, (void))                                                              \
    X(const char *, driver_name, (uint32_t index))                                                 \
    /* Load a driver from a shared library that exports oxb_driver_entry; it goes first in the     \
     * list, before a driver of the same name. The library is never unloaded. */                   \
    X(oxb_status, driver_load, (const char *path))                                                 \
    X(oxb_status, device_count, (const char *driver, uint32_t *count))                             \
    /* driver NULL: the first device that opens, from `index` on, of the first driver that has     \
     * one. options may be NULL. */                                                                \
    X(oxb_status, device_open,                                                                     \
      (const char *driver, uint32_t index, const oxb_device_options *options,                      \
       oxb_device **device))                                                                       \
    X(void, device_retain, (oxb_device * device))                                                  \
    X(void, device_release, (oxb_device * device))                                                 \
    X(void, device_get_info, (oxb_device * device, oxb_device_info * info))                        \
    X(void, device_get_stats, (oxb_device * device, oxb_device_stats * stats))                     \
                                                                                                   \
    X(oxb_status, buffer_new,                                                                      \
      (oxb_device * device, uint64_t length, oxb_storage storage, oxb_buffer **buffer))            \
    /* Wrap host memory without a copy; its address is a multiple of 16. A device maps the whole   \
     * pages that hold it. release(context) is called once, from any thread, when the device has   \
     * let go of the memory. */                                                                    \
    X(oxb_status, buffer_wrap,                                                                     \
      (oxb_device * device, void *host, uint64_t length, int read_only, void (*release)(void *),   \
       void *context, oxb_buffer **buffer))                                                        \
    X(void, buffer_retain, (oxb_buffer * buffer))                                                  \
    X(void, buffer_release, (oxb_buffer * buffer))                                                 \
    /* NULL for private storage. */                                                                \
    X(void *, buffer_contents, (oxb_buffer * buffer))                                              \
    X(uint64_t, buffer_length, (oxb_buffer * buffer))                                              \
    X(oxb_status, buffer_read, (oxb_buffer * buffer, uint64_t offset, void *to, uint64_t length))  \
    X(oxb_status, buffer_write,                                                                    \
      (oxb_buffer * buffer, uint64_t offset, const void *from, uint64_t length))                   \
    X(oxb_status, buffer_fill,                                                                     \
      (oxb_buffer * buffer, uint64_t offset, uint64_t length, uint8_t value))                      \
    X(uint64_t, page_size, (void))                                                                 \
                                                                                                   \
    X(oxb_status, library_new,                                                                     \
      (oxb_device * device, const char *source, size_t length, oxb_library **library))             \
    X(void, library_retain, (oxb_library * library))                                               \
    X(void, library_release, (oxb_library * library))                                              \
    /* library NULL: the kernels that ship. */                                                     \
    X(oxb_status, pipeline_new,                                                                    \
      (oxb_device * device, oxb_library * library, const char *function,                           \
       const oxb_constant *constants, uint32_t n_constants, oxb_pipeline **pipeline))              \
    X(void, pipeline_get_info, (oxb_pipeline * pipeline, oxb_pipeline_info * info))                \
    X(void, pipeline_release, (oxb_pipeline * pipeline))                                           \
                                                                                                   \
    /* Recording. A dispatch is checked here, once, against the arguments of its pipeline and the  \
     * limits of its device. Once submitted, commands are sealed: they can be submitted again and, \
     * when nothing of them is in flight, reset. */                                                \
    X(oxb_status, commands_new, (oxb_device * device, oxb_commands * *commands))                   \
    X(void, commands_release, (oxb_commands * commands))                                           \
    X(oxb_status, commands_reset, (oxb_commands * commands))                                       \
    X(uint32_t, commands_length, (oxb_commands * commands))                                        \
    X(oxb_status, commands_dispatch,                                                               \
      (oxb_commands * commands, oxb_pipeline * pipeline, const oxb_binding *bindings,              \
       uint32_t n_bindings, const void *args, uint64_t args_size, oxb_size threadgroups,           \
       oxb_size threads, uint32_t threadgroup_memory))                                             \
    X(oxb_status, commands_submit, (oxb_commands * commands, oxb_submission * *submission))        \
    /* timeout in seconds; infinite where negative. A timeout is OXB_EXECUTION_FAILED and the      \
     * submission stays alive until the device has finished. */                                    \
    X(oxb_status, submission_wait, (oxb_submission * submission, double timeout))                  \
    X(int, submission_done, (oxb_submission * submission))                                         \
    X(oxb_status, submission_times, (oxb_submission * submission, oxb_times * times))              \
    /* An error that nobody waited for is raised by the next submit on the device. */              \
    X(void, submission_release, (oxb_submission * submission))                                     \
                                                                                                   \
    /* Reformat `length` bytes of blocks to what kernels see: at `to`, half scales, at             \
     * `to + codes_offset`, codes. `to` holds oxb_reformat_size() bytes and does not overlap. */   \
    X(oxb_status, reformat_size,                                                                   \
      (oxb_file_format format, uint64_t length, uint64_t *size, uint64_t *codes_offset))           \
    X(oxb_status, reformat, (oxb_file_format format, const void *from, uint64_t length, void *to)) \
    /* n_rows and k both 0: plain SoA, checked when it is encoded. */                              \
    X(oxb_status, weight_upload,                                                                   \
      (oxb_device * device, oxb_file_format format, const void *from, uint64_t length,             \
       uint64_t n_rows, uint64_t k, oxb_weight *weight))                                           \
    /* The status of using `weight` as an n_rows x k matrix; `what` names it in the message. */    \
    X(oxb_status, weight_check,                                                                    \
      (const oxb_weight *weight, uint64_t n_rows, uint64_t k, const char *what))                   \
                                                                                                   \
    /* The op layer: each records one operation, after checking every shape against its buffers.   \
     * Matrix products take n_vectors rows of x, k apart, to rows of y, y_stride elements apart    \
     * (0: as long as they are); norm may be NULL. */                                              \
    X(oxb_status, op_gemv,                                                                         \
      (oxb_commands * commands, const oxb_weight *weight, uint64_t n_rows, uint64_t k,             \
       const oxb_norm *norm, oxb_binding x, oxb_binding y, uint64_t n_vectors, uint64_t y_stride,  \
       int residual))                                                                              \
    X(oxb_status, op_gate_up_swiglu,                                                               \
      (oxb_commands * commands, const oxb_weight *weight, uint64_t n_rows, uint64_t k,             \
       const oxb_norm *norm, oxb_binding x, oxb_binding s, uint64_t n_vectors))                    \
    X(oxb_status, op_rmsnorm,                                                                      \
      (oxb_commands * commands, oxb_binding x, oxb_binding weight, oxb_binding y, uint64_t n,      \
       uint64_t n_vectors, float eps))                                                             \
    X(oxb_status, op_add, (oxb_commands * commands, oxb_binding x, oxb_binding y, uint64_t n))     \
    X(oxb_status, op_embed,                                                                        \
      (oxb_commands * commands, const oxb_weight *weight, uint64_t n_rows, uint64_t k,             \
       oxb_binding tokens, oxb_binding state, oxb_binding y, uint64_t n_tokens, int batch))        \
    /* q_norm and k_norm: float32 [head_dim], or both without a buffer, for heads without a norm.  \
     * rope: float32 [max_seq][2][rotary_dim / 2], cosines then sines. */                          \
    X(oxb_status, op_qk_norm_rope,                                                                 \
      (oxb_commands * commands, oxb_binding qkv, oxb_binding q_norm, oxb_binding k_norm,           \
       oxb_binding rope, oxb_binding state, const oxb_attention_shape *shape, float eps))          \
    X(oxb_status, op_kv_store,                                                                     \
      (oxb_commands * commands, oxb_binding qkv, oxb_binding k_cache, oxb_binding v_cache,         \
       oxb_binding state, const oxb_attention_shape *shape))                                       \
    X(oxb_status, op_attention,                                                                    \
      (oxb_commands * commands, oxb_binding qkv, oxb_binding k_cache, oxb_binding v_cache,         \
       oxb_binding state, oxb_binding out, const oxb_attention_shape *shape, float scale))         \
    X(oxb_status, op_advance,                                                                      \
      (oxb_commands * commands, oxb_binding logits, oxb_binding tokens, oxb_binding state,         \
       uint64_t n, uint64_t max_tokens, uint64_t n_tokens, int greedy))                            \
    /* qk_norm_rope and kv_store in one; what is left of k in qkv is not defined. */               \
    X(oxb_status, op_qkv_to_cache,                                                                 \
      (oxb_commands * commands, oxb_binding qkv, oxb_binding q_norm, oxb_binding k_norm,           \
       oxb_binding rope, oxb_binding k_cache, oxb_binding v_cache, oxb_binding state,              \
       const oxb_attention_shape *shape, float eps))                                               \
    X(oxb_status, op_argmax,                                                                       \
      (oxb_commands * commands, oxb_binding logits, oxb_binding out, uint64_t n,                   \
       uint64_t n_vectors))                                                                        \
                                                                                                   \
    /* Write what the device does from here on to a file for the maker's tools (Metal: a .gputrace \
     * for Xcode); a device without such tools is OXB_ENCODING_FAILED. */                          \
    X(oxb_status, capture_start, (oxb_device * device, const char *path))                          \
    X(oxb_status, capture_stop, (oxb_device * device))                                             \
                                                                                                   \
    /* The variants of its kernels that a driver can run here, the best first; NULL past the last. \
     */                                                                                            \
    X(const char *, device_variant, (const char *driver, uint32_t index))                          \
                                                                                                   \
    /* What matrix products that are recorded from here on make of their vectors, where the device \
     * is faster by it. OXB_ENCODING_FAILED where it has no such kernels. */                       \
    X(oxb_status, commands_activations, (oxb_commands * commands, oxb_activations activations))    \
                                                                                                   \
    /* Describe recorded dispatch `index`: a line of kernel, function constants and grid, then     \
     * indented lines: threadgroup memory and arguments, and each binding. Writes up to `size`     \
     * bytes with the NUL, as snprintf does; `length` is that of the whole text. */                \
    X(oxb_status, commands_describe,                                                               \
      (oxb_commands * commands, uint32_t index, char *text, uint64_t size, uint64_t *length))      \
                                                                                                   \
    /* y += bias, float32 [n], in each of n_vectors rows that are y_stride elements apart (0: n).  \
     */                                                                                            \
    X(oxb_status, op_add_bias,                                                                     \
      (oxb_commands * commands, oxb_binding bias, oxb_binding y, uint64_t n, uint64_t n_vectors,   \
       uint64_t y_stride))                                                                         \
                                                                                                   \
    /* hidden += attn_proj attn; activated = silu(gate n) * (up n) with n the norm of hidden;      \
     * hidden += down activated. Where one of them fails, none is recorded. */                     \
    X(oxb_status, op_feed_forward, (oxb_commands * commands, const oxb_feed_forward *f))           \
    X(oxb_status, op_sample, (oxb_commands * commands, const oxb_sample *sample))                  \
                                                                                                   \
    /* Whether matrix products that are recorded from here on give each vector the bits that it    \
     * has alone, from float32 activations. OXB_ENCODING_FAILED where the device cannot. */        \
    X(oxb_status, commands_deterministic, (oxb_commands * commands, int deterministic))            \
                                                                                                   \
    /* The variants of the kernel of a product, the driver's default first; `n` is 0 where the     \
     * device has one form. The names live as long as the driver. */                               \
    X(oxb_status, device_kernel_variants,                                                          \
      (oxb_device * device, const oxb_product *product, const char *names[OXB_MAX_VARIANTS],       \
       uint32_t *n))                                                                               \
    /* Take the variant of that name for the product in what is recorded from here on, or the      \
     * driver's default again where `name` is NULL. Deterministic recordings take the default. */  \
    X(oxb_status, device_choose_variant,                                                           \
      (oxb_device * device, const oxb_product *product, const char *name))                         \
    /* Product `index` of those for which a variant was chosen or, on a device with several,       \
     * recorded; 0 past the last. `chosen` and `used`, when it was last recorded, may be NULL.     \
     * `n_vectors` is the most that a choice holds for. */                                         \
    X(int, device_product,                                                                         \
      (oxb_device * device, uint32_t index, oxb_product *product, const char **chosen,             \
       const char **used))                                                                         \
                                                                                                   \
    /* qkv_to_cache and attention in one; what is left in qkv is not defined. */                   \
    X(oxb_status, op_qkv_attention,                                                                \
      (oxb_commands * commands, oxb_binding qkv, oxb_binding q_norm, oxb_binding k_norm,           \
       oxb_binding rope, oxb_binding k_cache, oxb_binding v_cache, oxb_binding state,              \
       oxb_binding out, const oxb_attention_shape *shape, float eps, float scale))

#define X(type, name, parameters) type oxb_##name parameters;
OXB_FUNCTIONS(X)
#undef X

/* The table in the capsule "oxibonsai.metal._core._C_API". New functions are appended. */
typedef struct oxb_api {
    uint32_t abi_version;
    uint32_t struct_size;
#define X(type, name, parameters) type(*name) parameters;
    OXB_FUNCTIONS(X)
#undef X
} oxb_api;

#define OXB_API_CAPSULE "oxibonsai.metal._core._C_API"

const oxb_api *oxb_api_table(void);

/* Wait until every submission of the process that is in flight now has ended, on any device, for at
 * most `timeout` seconds; those submitted meanwhile are not waited for. Whether all have ended. For
 * the exit of a process: one thread calls it at a time. */
int oxb_wait_all(double timeout);

#ifdef __cplusplus
}
#endif

#endif
