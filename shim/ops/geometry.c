/* The geometries: one of the cpu driver, one of the kernels in shaders/. */
#include "geometry.h"

#include <string.h>

#include "cpu/cpu.h"
#include "oxb_args.h"

#define ALL UINT32_MAX
#define NO_CONSTANTS \
    0, {{0}}

/* A threadgroup runs as one thread. */
static const oxb_tile cpu[OXB_OP_COUNT] = {
    [OXB_OP_GEMV] = {{CPU_ROWS, ALL, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_SWIGLU] = {{CPU_ROWS, ALL, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_GEMM] = {{CPU_ROWS, CPU_BATCH, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_SWIGLU_GEMM] = {{CPU_ROWS, CPU_BATCH, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_GEMM_INT8] = {{CPU_ROWS, ALL, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_QUANTIZE] = {{1, ALL, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_EMBED] = {{ALL, 1, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_RMSNORM] = {{1, ALL, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_ADD] = {{CPU_ELEMENTS, ALL, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_QK_NORM_ROPE] = {{1, 1, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_KV_STORE] = {{1, 1, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_ATTENTION] = {{1, CPU_TOKENS, 1}, 1, NO_CONSTANTS},
    [OXB_OP_COMBINE] = {{1, ALL, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_ARGMAX_PARTS] = {{OXB_ARGMAX_PART, 1, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_ARGMAX] = {{1, ALL, ALL}, 1, NO_CONSTANTS},
    [OXB_OP_ADVANCE] = {{1, ALL, ALL}, 1, NO_CONSTANTS},
};
#define CPU_SPLIT 512u /* positions, at the least, of one part of attention */

#define SIMD 32u
#define CONSTANT(at, value)                      \
    {                                            \
        at, OXB_CONSTANT_U32, { .u32 = (value) } \
    }
#define ROWS_CONSTANT(rows) \
    1, { CONSTANT(0, rows) } /* shaders/rows.h */

/* At most 256 threads, which every pipeline takes. A SIMD-group computes several rows of a matrix
 * and one head of qk_norm_rope; embed and residual_add have some elements for each thread. */
#define GEMV_ROWS            4u
#define GEMV_SIMDGROUPS      4u
#define SWIGLU_ROWS          2u
#define SWIGLU_SIMDGROUPS    4u
#define LOOKUP_SIMDGROUPS    8u  /* shaders/lookup.h */
#define LOOKUP_THREADGROUPS  256 /* that there should be before a lane gets more rows */
#define GEMM_ROWS            64u /* shaders/gemm.h; of gate and of up half as many each */
#define GEMM_SIMDGROUPS      4u
#define HEAD_SIMDGROUPS      4u
#define ATTENTION_SIMDGROUPS 4u
#define ATTENTION_SPLIT      128u /* positions, at the least, of one part */
#define ATTENTION_QUERIES    4u   /* of a threadgroup: shaders/attention.h */

static const oxb_tile simd32[OXB_OP_COUNT] = {
    [OXB_OP_GEMV] = {{GEMV_ROWS * GEMV_SIMDGROUPS, ALL, ALL},
                     SIMD *GEMV_SIMDGROUPS,
                     ROWS_CONSTANT(GEMV_ROWS)},
    [OXB_OP_SWIGLU] = {{SWIGLU_ROWS * SWIGLU_SIMDGROUPS, ALL, ALL},
                       SIMD *SWIGLU_SIMDGROUPS,
                       ROWS_CONSTANT(SWIGLU_ROWS)},
    [OXB_OP_GEMM] = {{GEMM_ROWS, 8, ALL}, SIMD *GEMM_SIMDGROUPS, NO_CONSTANTS},
    [OXB_OP_SWIGLU_GEMM] = {{GEMM_ROWS / 2, 8, ALL}, SIMD *GEMM_SIMDGROUPS, NO_CONSTANTS},
    [OXB_OP_EMBED] = {{1024, 1, ALL}, 256, NO_CONSTANTS},
    [OXB_OP_RMSNORM] = {{1, ALL, ALL}, 256, NO_CONSTANTS},
    [OXB_OP_ADD] = {{4096, ALL, ALL}, 256, NO_CONSTANTS},
    [OXB_OP_QK_NORM_ROPE] = {{HEAD_SIMDGROUPS, 1, ALL}, SIMD *HEAD_SIMDGROUPS, NO_CONSTANTS},
    [OXB_OP_KV_STORE] = {{1, 1, ALL}, 128, NO_CONSTANTS},
    [OXB_OP_QKV_TO_CACHE] = {{HEAD_SIMDGROUPS, 1, ALL}, SIMD *HEAD_SIMDGROUPS, NO_CONSTANTS},
    [OXB_OP_ATTENTION] = {{1, 1, 1}, SIMD *ATTENTION_SIMDGROUPS, NO_CONSTANTS},
    [OXB_OP_COMBINE] = {{1, ALL, ALL}, 128, NO_CONSTANTS},
    [OXB_OP_ARGMAX_PARTS] = {{OXB_ARGMAX_PART, 1, ALL}, 256, NO_CONSTANTS},
    [OXB_OP_ARGMAX] = {{1, ALL, ALL}, SIMD, NO_CONSTANTS},
    [OXB_OP_ADVANCE] = {{1, ALL, ALL}, SIMD, NO_CONSTANTS},
};

static int is_cpu(const oxb_device_info *device) { return device->simd_width == 1; }

oxb_tile ops_tile_of(const oxb_device_info *device, oxb_op op) {
    return is_cpu(device) ? cpu[op] : simd32[op];
}

/* Codes are multiplied by look-up: shaders/lookup.h. */
static int looks_up(const oxb_device_info *device, oxb_device_format kernel) {
    return !is_cpu(device) && oxb_device_format_of(kernel)->coded;
}

int ops_norm_is_fused(const oxb_device_info *device, oxb_device_format kernel) {
    return looks_up(device, kernel);
}

/* The portable kernels read matrices in the plain layout. */
int ops_has_int8(const oxb_device_info *device) {
    return is_cpu(device) && strcmp(device->variant, "portable") != 0;
}

uint64_t ops_int8_bytes(uint64_t k, uint32_t group) { return cpu_int8_bytes(k, group); }

oxb_tile ops_gemv_tile(const oxb_device_info *device, oxb_op op, oxb_device_format kernel,
                       uint64_t n_rows) {
    oxb_tile tile = ops_tile_of(device, op);
    if (!looks_up(device, kernel)) return tile;
    /* Every lane has rows of its own. More of them share the tables, fewer fill the chip. */
    uint32_t most = op == OXB_OP_SWIGLU ? 2 : 4, rows = 1;
    while (rows < most && n_rows / (SIMD * 2 * rows) >= LOOKUP_THREADGROUPS) rows *= 2;
    tile.units[0] = SIMD * rows;
    tile.threads = SIMD * LOOKUP_SIMDGROUPS;
    tile.constants[0] = (oxb_constant)CONSTANT(0, rows);
    return tile;
}

oxb_tile ops_gemm_tile(const oxb_device_info *device, oxb_op op, uint64_t n_vectors) {
    oxb_tile tile = ops_tile_of(device, op);
    if (is_cpu(device)) return tile;
    /* Matrices of 8 vectors that share the weights of a threadgroup: no more than there are. */
    uint32_t eights = n_vectors > 16 ? 4 : n_vectors > 8 ? 2 : 1;
    tile.units[1] = 8 * eights;
    tile.n_constants = 1;
    tile.constants[0] = (oxb_constant)CONSTANT(0, eights);
    return tile;
}

ops_attention_cut ops_cut_attention(const oxb_device_info *device, const oxb_attention_shape *shape,
                                    uint64_t place) {
    ops_attention_cut cut = {.tile = ops_tile_of(device, OXB_OP_ATTENTION)};
    uint32_t length = shape->max_length ? shape->max_length : shape->max_seq;
    uint32_t group = shape->n_heads / shape->n_kv_heads;
    /* A batch has work for every core as it is. */
    uint32_t split = is_cpu(device) ? CPU_SPLIT : ATTENTION_SPLIT;
    uint32_t splits = shape->n_tokens == 1 ? length / split + (length % split != 0) : 1;
    cut.splits = splits < OXB_MAX_SPLITS ? splits : OXB_MAX_SPLITS;
    cut.heads = group;
    if (is_cpu(device)) return cut;
    /* The queries that share each load of the caches: heads first, then tokens. A long head leaves
     * room for one only. */
    uint32_t queries = shape->head_dim > 128 ? 1 : ATTENTION_QUERIES;
    while (queries > shape->n_tokens * group) queries /= 2;
    cut.heads = queries;
    while (group % cut.heads) cut.heads /= 2;
    cut.tile.units[1] = queries / cut.heads;
    uint64_t four = shape->kv_f16 ? 8 : 16; /* bytes of four elements */
    cut.tile.n_constants = 3;
    cut.tile.constants[0] = (oxb_constant)CONSTANT(0, queries);
    cut.tile.constants[1] =
        (oxb_constant)CONSTANT(1, place % four == 0 && shape->head_dim % 4 == 0 ? 4 : 2);
    cut.tile.constants[2] = (oxb_constant)CONSTANT(2, shape->head_dim > 128);
    return cut;
}
