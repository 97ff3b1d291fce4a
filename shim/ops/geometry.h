/* How each operation is cut into threadgroups on a device: the op layer's only knowledge of a
 * device. */
#ifndef OPS_GEOMETRY_H
#define OPS_GEOMETRY_H

#include "oxb_shim.h"

/* The operations, each with the units that its grid counts along x, y and z. */
typedef enum oxb_op {
    OXB_OP_GEMV,         /* row of the output */
    OXB_OP_SWIGLU,       /* row of the output */
    OXB_OP_GEMM,         /* row of the output; vector */
    OXB_OP_SWIGLU_GEMM,  /* row of the output; vector */
    OXB_OP_GEMM_INT8,    /* row of the output; vector: either of these, of quantised vectors */
    OXB_OP_QUANTIZE,     /* vector */
    OXB_OP_EMBED,        /* element of the row; token */
    OXB_OP_RMSNORM,      /* vector */
    OXB_OP_ADD,          /* element */
    OXB_OP_BIAS,         /* element of the bias; vector */
    OXB_OP_QK_NORM_ROPE, /* query or key head; token */
    OXB_OP_KV_STORE,     /* key-value head; token */
    OXB_OP_QKV_TO_CACHE, /* query, key or value head; token */
    OXB_OP_ATTENTION,    /* `heads` query heads; token; part of the positions */
    OXB_OP_COMBINE,      /* head of a token */
    OXB_OP_ARGMAX_PARTS, /* logit; vector */
    OXB_OP_ARGMAX,       /* vector */
    OXB_OP_ADVANCE,      /* submission */
    OXB_OP_COUNT
} oxb_op;

#define OXB_TILE_CONSTANTS 3u

typedef struct oxb_tile {
    uint32_t units[3]; /* per threadgroup, along x, y and z; UINT32_MAX: all of them */
    uint32_t threads;  /* of a threadgroup */
    uint32_t n_constants;
    oxb_constant constants[OXB_TILE_CONSTANTS]; /* function constants of the operation's kernels */
} oxb_tile;

oxb_tile ops_tile_of(const oxb_device_info *device, oxb_op op);

/* The tile of a matrix product of one vector: weights in `kernel`, n_rows of output. */
oxb_tile ops_gemv_tile(const oxb_device_info *device, oxb_op op, oxb_device_format kernel,
                       uint64_t n_rows);

/* Whether the kernels of one vector take the norm of their input in as well. */
int ops_norm_is_fused(const oxb_device_info *device, oxb_device_format kernel);

/* Whether there are kernels that take their vectors as int8, and the fewest for which they are the
 * faster ones: the codes are brought to bytes first. */
int ops_has_int8(const oxb_device_info *device);
#define OPS_LEAST_INT8_VECTORS 8u
/* The bytes of such a vector for a matrix of k columns with a scale for each `group`. */
uint64_t ops_int8_bytes(uint64_t k, uint32_t group);

/* The tile of a matrix product for `n_vectors` vectors. */
oxb_tile ops_gemm_tile(const oxb_device_info *device, oxb_op op, uint64_t n_vectors);

/* The tile of attention, and the cut that its arguments name. */
typedef struct ops_attention_cut {
    oxb_tile tile;
    uint32_t heads;  /* query heads of a unit, all of one key-value head */
    uint32_t splits; /* parts of the positions */
} ops_attention_cut;

/* `place` is a multiple of the bytes at which every head of the caches starts. */
ops_attention_cut ops_cut_attention(const oxb_device_info *device, const oxb_attention_shape *shape,
                                    uint64_t place);

#endif
