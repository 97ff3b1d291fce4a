/* What a driver implements: a versioned table of functions behind the C ABI of oxb_shim.h.
 *
 * The front owns the handles, reference counts, argument checks and waiting; a driver owns the
 * device, and all that is particular to it: the tiles of its kernels, its layouts of weights and
 * its abilities. It may be called from many threads at once, and sees only arguments that the front
 * has checked. Work submitted to one device runs in the order of submission.
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
    uint32_t pad;
    uint64_t work; /* multiply-adds, roughly; 0 where they are not known: for a user's own kernel */
} oxb_driver_dispatch;

/* What binding_bytes gives for an argument struct that describes nothing the kernel can run. */
#define OXB_BAD_ARGS UINT64_MAX

/* Reports the end of a submission, exactly once, from any thread; message may be NULL when ok.
 * The driver must not touch the dispatch list afterwards. */
typedef void (*oxb_driver_done)(void *context, oxb_status status, const char *message,
                                oxb_times times);

/* Splits n blocks of a coded file format: a half scale for each scale group, and the codes, both in
 * the order of the device format. */
typedef void oxb_reformat_blocks_fn(oxb_file_format format, const uint8_t *from, uint64_t n,
                                    uint8_t *scales, uint8_t *codes);

/* Services that the front gives to every driver; one loaded from a library links nothing else. */
typedef struct oxb_host {
    uint32_t abi_version;
    uint32_t struct_size;
    /* Keep a printf-formatted message for this thread's oxb_last_error and return `status`. */
    oxb_status (*fail)(oxb_status status, const char *format, ...);
    /* The tables of formats; NULL for a value outside them. */
    const oxb_file_format_info *(*file_format)(oxb_file_format format);
    const oxb_device_format_info *(*device_format)(oxb_device_format format);
    oxb_reformat_blocks_fn *reformat_blocks;
} oxb_host;

/* The operations of the op layer: X(id, name). The comment says what the extent counts along x, y
 * and z: the elements that tiles are cut from. */
#define OXB_OPS(X)                                                                        \
    X(GEMV, "gemv")                   /* row of the output; vector */                     \
    X(SWIGLU, "swiglu")               /* row of the output; vector */                     \
    X(GEMM, "gemm")                   /* row of the output; vector */                     \
    X(SWIGLU_GEMM, "swiglu_gemm")     /* row of the output; vector */                     \
    X(GEMM_INT8, "gemm_int8")         /* the same: GEMM or SWIGLU_GEMM of int8 vectors */ \
    X(QUANTIZE, "quantize")           /* vector */                                        \
    X(EMBED, "embed")                 /* element of the row; token */                     \
    X(RMSNORM, "rmsnorm")             /* vector */                                        \
    X(ADD, "add")                     /* element */                                       \
    X(BIAS, "bias")                   /* element of the bias; vector */                   \
    X(QK_NORM_ROPE, "qk_norm_rope")   /* query or key head; token */                      \
    X(KV_STORE, "kv_store")           /* key-value head; token */                         \
    X(QKV_TO_CACHE, "qkv_to_cache")   /* query, key or value head; token */               \
    X(ATTENTION, "attention")         /* query head; token; split of the positions */     \
    X(COMBINE, "combine")             /* head of a token */                               \
    X(ARGMAX_BLOCKS, "argmax_blocks") /* logit; vector */                                 \
    X(ARGMAX, "argmax")               /* vector */                                        \
    X(ADVANCE, "advance")             /* submission */                                    \
    X(SAMPLE_BLOCKS, "sample_blocks") /* logit; vector */                                 \
    X(SAMPLE_CHOOSE, "sample_choose") /* vector */                                        \
    X(HALVE, "halve")                 /* element; vector, of whole eights */              \
    X(HALVE_NORM, "halve_norm")       /* vector, of whole eights */                       \
    X(GEMM_HALVES, "gemm_halves")     /* GEMM or SWIGLU_GEMM of vectors from HALVE */     \
    X(ROUND_HALF, "round_half")       /* vector, of whole eights */                       \
    X(GEMM_HALF, "gemm_half")         /* the same of vectors from ROUND_HALF */           \
    X(CONV, "conv")                   /* channel; sequence; token of it */                \
    X(DELTA, "delta")                 /* column of a value head; value head; sequence */  \
    X(GATE, "gate")                   /* head; token */                                   \
    X(HADAMARD, "hadamard")           /* block of a vector; vector */                     \
    X(COPY, "copy")                   /* word */

typedef enum oxb_op {
#define X(id, name) OXB_OP_##id,
    OXB_OPS(X)
#undef X
        OXB_OP_COUNT
} oxb_op;

/* What a tile depends on. Fields that an op has no use for are 0. */
typedef struct oxb_op_shape {
    uint64_t extent[3]; /* 1 along what the op does not count; along z of ATTENTION too */
    /* The matrix; for QUANTIZE that which the vectors will be multiplied by. Of DELTA a head's
     * state, k its keys' elements. */
    oxb_device_format format;
    uint32_t layout; /* OXB_LAYOUT_PLAIN or one of the driver's */
    uint64_t n_rows; /* twice the extent for SWIGLU */
    uint64_t k;
    uint64_t elements; /* that one of the extent stands for, where it counts vectors, heads or rows;
                          0: 1 */
    /* ATTENTION only. */
    const oxb_attention_shape *attention;
    uint64_t alignment;     /* bytes; that of the start of the caches in device memory */
    uint64_t out_alignment; /* of the output's */
    uint32_t halves;        /* 1: queries and weights may be rounded to half */
    uint32_t same_bits;     /* 1: a token of several has the bits that it has alone */
    uint32_t makes;         /* 1: queries, keys and values are to be made, where the kernel can */
    uint32_t pad;
    const char *variant; /* one of variants(); NULL, and a name that does not take the shape: the
                            driver's default */
} oxb_op_shape;

#define OXB_TILE_ALL       UINT32_MAX /* a size: the whole extent */
#define OXB_TILE_CONSTANTS 3u

/* The part of an op's output that one threadgroup computes, and what the kernel is told of it. */
typedef struct oxb_tile {
    uint32_t size[3];    /* of the extent, along x, y and z. ATTENTION: query heads that share a
                            key-value head and divide their number evenly; tokens; 1 */
    uint32_t threads;    /* of a threadgroup */
    const char *suffix;  /* of the kernel's name, for a layout or a variant; "" for none; static */
    const char *variant; /* its name among variants(); "" or NULL where there is one form; static */
    uint32_t column;     /* `column` of the argument struct, for ops on a matrix */
    uint32_t splits;     /* ATTENTION: of the positions, 1 to OXB_MAX_SPLITS; the extent along z */
    uint32_t makes;      /* ATTENTION of a shape with `makes`. 1: qkv_attention_* does what
                            QKV_TO_CACHE does too, and size[0] is all heads of a key-value head */
    uint32_t n_constants;
    oxb_constant constants[OXB_TILE_CONSTANTS]; /* function constants of the kernel */
} oxb_tile;

/* What a device can do beyond the ops that every driver has. */
typedef struct oxb_abilities {
    /* Bit f: GEMV and SWIGLU kernels of device format f normalise their input themselves; their
     * names have "_norm" in them. */
    uint32_t fused_norm;
    /* 1: has QKV_TO_CACHE; else QK_NORM_ROPE and KV_STORE run in turn. */
    uint32_t fused_cache_store;
    /* 1: has QUANTIZE and GEMM_INT8, for matrices for which int8_vector_bytes() is not 0. */
    uint32_t int8_products;
    /* The most vectors for which GEMV and SWIGLU are preferred to GEMM and SWIGLU_GEMM. From 1 on
     * they take any number, and give each vector the bits that it has alone; 0: one vector only. */
    uint32_t gemv_vectors;
    /* 1: a vector of GEMM has the bits that GEMV gives it, whatever the other vectors. */
    uint32_t same_bits;
    /* Bit f: has HALVE and HALVE_NORM, and GEMM_HALVES for matrices of device format f. */
    uint32_t half_products;
    /* The fewest vectors for which GEMM_HALVES is preferred to GEMV and GEMM; 2 or more. */
    uint32_t half_vectors;
    /* Bit f: has ROUND_HALF, and GEMM_HALF for matrices of device format f: for recordings in half.
     */
    uint32_t rounded_products;
    /* The fewest vectors for which GEMM_HALF is preferred to the exact forms, and tokens for which
     * ATTENTION may round; 2 or more. */
    uint32_t rounded_vectors;
    uint32_t pad;
    /* The most multiply-adds that one dispatch should take: the op layer cuts larger products and
     * attention along their vectors or tokens, and delta rules along their heads, in whole tiles,
     * which changes no bit of a result. Other ops do little more than read their operands: no
     * memory holds those of a large one. 0: no bound. */
    uint64_t dispatch_work;
} oxb_abilities;

#define OXB_MAX_LAYOUTS 4u

/* A layout of weights of the driver's own, for one matrix. */
typedef struct oxb_weight_layout {
    uint32_t id; /* the driver's number for it, not OXB_LAYOUT_PLAIN */
    uint32_t pad;
    uint64_t size; /* bytes */
    uint64_t codes_offset;
} oxb_weight_layout;

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
     * `args` has the size of the list and is aligned to 16 bytes; it is NULL where a buffer is
     * bound in its place. The function is NULL where the driver cannot tell. */
    uint64_t (*binding_bytes)(void *device, void *pipeline, const void *args, uint32_t index);

    /* Run the list in order; every dispatch sees what the earlier ones wrote. `replay` keeps what
     * the driver wants to remember of this list, which stays as it is, between submissions (a CUDA
     * graph); NULL at first. Where this fails, `done` is not called. */
    oxb_status (*submit)(void *device, const oxb_driver_dispatch *list, uint32_t n, void **replay,
                         oxb_driver_done done, void *context);
    void (*replay_free)(void *device, void *replay); /* called only where `replay` was set */
    /* Multiply-adds a second that finished submissions took, as far as their dispatches have their
     * `work`; 0 before the first. NULL where the driver does not measure. Called from any thread.
     */
    double (*work_rate)(void *device);

    void (*abilities)(void *device, oxb_abilities *abilities);
    /* The tile of `op` for a shape; *tile is zeroed. Never called for an op that the abilities
     * leave out. When a device is opened, the front asks for every tile and refuses a device with a
     * size or a number of threads of 0. */
    oxb_status (*tile)(void *device, oxb_op op, const oxb_op_shape *shape, oxb_tile *tile);
    /* The names of the variants of `op` that take a shape, whose own `variant` is NULL: those
     * among which the caller may choose, the default first. 0 where there is one form. The names
     * are static. NULL where every op has one form. */
    uint32_t (*variants)(void *device, oxb_op op, const oxb_op_shape *shape,
                         const char *names[OXB_MAX_VARIANTS]);
    /* Bytes of a vector as int8 for a matrix; 0 where `n_vectors` of them stay float32, because the
     * device has no int8 kernel for the matrix or is not faster by it. NULL without the ability. */
    uint64_t (*int8_vector_bytes)(void *device, oxb_device_format format, uint32_t layout,
                                  uint64_t k, uint64_t n_vectors);

    /* Both NULL where the device has no layout beside the plain one, which the front packs. Those
     * for an n_rows x k matrix, the best first; returns how many. */
    uint32_t (*weight_layouts)(void *device, oxb_device_format format, uint64_t n_rows, uint64_t k,
                               oxb_weight_layout layouts[OXB_MAX_LAYOUTS]);
    /* Pack blocks into a buffer of the layout's size. *fits: 0 where it cannot hold these codes. */
    oxb_status (*weight_pack)(void *device, uint32_t layout, oxb_file_format format,
                              const void *from, uint64_t n_rows, uint64_t k, void *to, int *fits);

    /* Sets of kernels that device_open takes, such as one for each instruction set, the best first;
     * NULL past the last. NULL where there is one set. */
    const char *(*variant)(uint32_t index);

    /* Write what the device does to a file for the maker's tools. Both NULL where there are none.
     */
    oxb_status (*capture_start)(void *device, const char *path);
    oxb_status (*capture_stop)(void *device);
};

/* What a driver library exports: its table, or NULL with the reason kept through host->fail. */
typedef const oxb_driver *(*oxb_driver_entry_fn)(const oxb_host *host);
#define OXB_DRIVER_ENTRY "oxb_driver_entry"

#endif
