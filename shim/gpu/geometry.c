/* The kernels in shaders/ and their tiles. */
#include "oxb_args.h"
#include "variants.h"

#define ALL  OXB_TILE_ALL
#define SIMD GPU_SIMD_WIDTH

#define CONSTANT(at, value)                      \
    {                                            \
        at, OXB_CONSTANT_U32, { .u32 = (value) } \
    }
#define BOX(x, y, z, n_threads)  .size = {x, y, z}, .threads = (n_threads)
#define SIZE(x, y, z, n_threads) BOX(x, y, z, n_threads), .suffix = ""
#define ROWS_CONSTANT(rows)      .n_constants = 1, .constants = {CONSTANT(0, rows)} /* rows.h */

/* At most 256 threads, which every pipeline takes; sample_choose declares that it has more, for one
 * threadgroup reads a whole vocabulary. A SIMD-group computes several rows of a matrix,
 * or one head of qk_norm_rope; embed and residual_add give each thread several elements. */
#define GEMV_ROWS            4u
#define GEMV_SIMDGROUPS      4u
#define SWIGLU_ROWS          2u
#define SWIGLU_SIMDGROUPS    4u
#define GEMV_VECTORS         4u   /* more are faster on matrix units */
#define CODED_SIMDGROUPS     8u   /* shaders/coded.h: one for each split of k */
#define CODED_THREADGROUPS   256u /* fill NVIDIA's largest: from there on, more rows to a lane */
#define CORE_THREADGROUPS    4u   /* fill one of Apple's cores */
#define SLICES_ROWS          16u  /* of a tile: shaders/slices.h */
#define SLICES_SIMDGROUPS    8u   /* or twice as many */
#define GEMM_ROWS            64u  /* shaders/gemm.h; half of them gate's and half up's in swiglu */
#define GEMM_SIMDGROUPS      4u
#define HALVES_SIMDGROUPS    8u   /* shaders/gemm_halves.h */
#define HALVES_THREADGROUPS  120u /* fill the largest GPUs: these are larger than others */
#define HALF_VECTORS         3u   /* the fewest that are faster on matrix units */
#define HALF_CORES           132u /* of the largest GPUs, where they are not known */
#define HALF_TILE_VECTORS    64u  /* of a threadgroup: shaders/gemm_half.h */
#define HALF_FEWEST_ROWS     64u
#define HALF_MANY_VECTORS    512u
#define HALF_ROUNDS          5u
#define ROUNDED_VECTORS      64u /* the fewest that fill its tiles */
#define HEAD_SIMDGROUPS      4u
#define CONV_THREADS         64u
#define CONV_TOKENS          16u /* of a thread: shaders/recurrent.metal */
#define DELTA_COLUMNS        8u  /* of a SIMD-group: the same */
#define DELTA_SIMDGROUPS     4u
#define HADAMARD_THREADS     256u /* for a block, or for several small ones */
#define KV_SIMDGROUPS        2u   /* keys and values */
#define ATTENTION_SIMDGROUPS 4u
#define ATTENTION_SPLIT      128u /* positions of a split, at the least: shaders/attention.h */
#define ATTENTION_SPLITS     64u  /* the most, enough for any length */
#define ATTENTION_QUERIES    4u   /* of a threadgroup: shaders/attention.h */
#define STEP_QUERIES         8u   /* the same and its SIMD-groups: shaders/attention_step.metal */
#define STEP_SIMDGROUPS      8u
#define STEP_ALONE           256u /* positions that are not split */
#define STEP_GRAIN           128u /* positions that a split is a multiple of */
#define PROMPT_QUERIES       64u  /* the same: shaders/attention_prompt.metal */
#define PROMPT_SIMDGROUPS    4u
#define PROMPT_TOKENS        16u   /* of a SIMD-group; fewer are taken one by one */
#define CHOOSE_THREADS       896u  /* with 1024, registers spill */
#define NORM_THREADS         1024u /* of halve_norm: its vectors are few, and wait for memory */

#define BIT(format) (1u << OXB_DEVICE_FORMAT_##format)
#define CODED       (BIT(Q1_G128) | BIT(Q2_G128) | BIT(Q2_G64) | BIT(T1_G128))
#define ANY         UINT32_MAX

_Static_assert(OXB_DEVICE_FORMAT_COUNT <= 32, "a mask has a bit for every device format");

/* A lane's rows share what a SIMD-group prepares for all of them, so that more of them cost less;
 * fewer make threadgroups enough to fill the chip. */
static gpu_fitness fit_coded(const gpu_traits *traits, const oxb_op_shape *shape, oxb_tile *tile) {
    const uint64_t fill =
        traits->has & GPU_APPLE ? CORE_THREADGROUPS * traits->cores : CODED_THREADGROUPS;
    return tile->constants[0].value.u32 > 1 && shape->extent[0] / tile->size[0] < fill
               ? GPU_TAKEN
               : GPU_FAVOURED;
}

/* Whole tiles of 16 rows in columns. What counts is how long a SIMD-group takes, for its blocks of
 * k come one after the other: twice as many SIMD-groups, which leave a core room for one
 * threadgroup, and the fewest tiles with which every core has no more than that. */
static gpu_fitness fit_slices(const gpu_traits *traits, const oxb_op_shape *shape, oxb_tile *tile) {
    const uint64_t rows = shape->extent[0], size = tile->size[0];
    if (shape->layout != GPU_LAYOUT_COLUMNS || rows % SLICES_ROWS != 0 || rows < size)
        return GPU_REFUSED;
    const int alone = tile->threads > SIMD * SLICES_SIMDGROUPS;
    return alone && (rows + size - 1) / size > traits->cores ? GPU_TAKEN : GPU_FAVOURED;
}

/* Matrices of 8 vectors that share the weights of a threadgroup: no more than there are. */
static gpu_fitness fit_gemm(const gpu_traits *traits, const oxb_op_shape *shape, oxb_tile *tile) {
    (void)traits;
    return tile->size[1] > 8 && shape->extent[1] <= tile->size[1] / 2 ? GPU_TAKEN : GPU_FAVOURED;
}

/* Tiles of 16 rows and eights of vectors of a SIMD-group, as many as the registers hold, and
 * SIMD-groups over the rows: the more rows a threadgroup has, the less often the vectors are read,
 * as long as there are threadgroups enough to fill the chip. The other SIMD-groups share k. */
static gpu_fitness fit_halves(const gpu_traits *traits, const oxb_op_shape *shape, oxb_tile *tile) {
    (void)traits;
    const uint64_t eights = (shape->extent[1] + 7) / 8;
    const uint32_t wide = eights > 1 ? 2 : 1;
    const uint64_t columns = (eights + wide - 1) / wide;
    const uint32_t few = wide == 2 && shape->format != OXB_DEVICE_FORMAT_Q1_G128;
    uint32_t tiles = few ? 2 : 4, rows = few ? 8 : 4; /* SIMD-groups */
    while (rows > 1 && shape->n_rows * columns / (16 * tiles * rows) < 2 * HALVES_THREADGROUPS)
        rows /= 2;
    if (shape->n_rows * columns / (16 * tiles) < HALVES_THREADGROUPS) tiles = 2;
    tile->size[0] = (uint32_t)(16 * tiles * rows / (shape->n_rows / shape->extent[0]));
    tile->size[1] = 8 * wide;
    tile->constants[0].value.u32 = 10 * tiles + wide;
    tile->constants[1].value.u32 = rows;
    return GPU_FAVOURED;
}

/* The more rows a threadgroup has, the less often the vectors are read; the fewer, the shorter is
 * the last round of threadgroups, which many rounds or many vectors make up for. As measured on an
 * H200. */
static gpu_fitness fit_half(const gpu_traits *traits, const oxb_op_shape *shape, oxb_tile *tile) {
    const uint32_t rows = tile->size[0], cores = traits->cores ? traits->cores : HALF_CORES;
    const uint64_t n_vectors = shape->extent[1];
    const uint64_t threadgroups = (shape->n_rows + rows - 1) / rows *
                                  ((n_vectors + HALF_TILE_VECTORS - 1) / HALF_TILE_VECTORS);
    tile->size[0] = (uint32_t)(rows / (shape->n_rows / shape->extent[0]));
    if (rows == HALF_FEWEST_ROWS || n_vectors >= HALF_MANY_VECTORS) return GPU_FAVOURED;
    return threadgroups >= HALF_ROUNDS * cores ? GPU_FAVOURED : GPU_TAKEN;
}

static gpu_fitness fit_attention(const gpu_traits *traits, const oxb_op_shape *shape,
                                 oxb_tile *tile) {
    (void)traits;
    const oxb_attention_shape *s = shape->attention;
    const uint32_t length = s->max_length ? s->max_length : s->max_seq;
    const uint32_t ratio = s->n_heads / s->n_kv_heads;
    /* By itself, with the splits that it would have alone. */
    const int single = s->n_tokens == 1 || s->batch || shape->same_bits;
    /* A prompt has threadgroups enough as it is. */
    const uint32_t splits = single ? length / ATTENTION_SPLIT + (length % ATTENTION_SPLIT != 0) : 1;
    tile->splits = splits < ATTENTION_SPLITS ? splits : ATTENTION_SPLITS;
    /* The queries that share each load of the caches: heads first, then tokens of the sequence. A
     * long head leaves registers for one or two only. */
    uint32_t queries = s->head_dim > 256 ? 1 : s->head_dim > 128 ? 2 : ATTENTION_QUERIES;
    while (queries > (uint64_t)s->n_tokens * ratio) queries /= 2;
    uint32_t heads = queries;
    while (ratio % heads) heads /= 2;
    if (single) queries = heads;
    tile->size[0] = heads;
    tile->size[1] = queries / heads;
    tile->constants[0].value.u32 = queries;
    tile->constants[1].value.u32 = s->head_dim > 256 ? 1 : s->head_dim > 128 ? 2 : 0;
    if (s->kv_format == OXB_KV_Q8) { /* four elements at once, and 16 bytes of low bits */
        tile->constants[2].value.u32 = shape->alignment % 16 == 0 && s->head_dim == 128 ? 16 : 4;
        return GPU_FAVOURED;
    }
    const uint64_t four = s->kv_format == OXB_KV_F16 ? 8 : 16; /* bytes of four elements */
    const int wide = shape->alignment % four == 0 && s->head_dim % 4 == 0;
    tile->constants[2].value.u32 = wide ? 4 : 2;
    return GPU_FAVOURED;
}

/* What both kernels on matrix units want. */
static int takes_matrices(const oxb_op_shape *shape) {
    const oxb_attention_shape *s = shape->attention;
    return s->kv_format == OXB_KV_F16 && (s->head_dim == 64 || s->head_dim == 128) &&
           shape->alignment % 16 == 0;
}

/* An Apple GPU has 128 registers for a thread, which are too few for loads ahead. */
static void set_matrices(const gpu_traits *traits, const oxb_attention_shape *s, oxb_tile *tile) {
    tile->constants[0].value.u32 = s->head_dim;
    tile->constants[1].value.u32 = (traits->has & GPU_APPLE) == 0;
}

/* The most heads of a key-value head, `most` or fewer, that divide their number evenly. */
static uint32_t heads_of(const oxb_attention_shape *s, uint32_t most) {
    const uint32_t ratio = s->n_heads / s->n_kv_heads;
    uint32_t heads = ratio < most ? ratio : most;
    while (ratio % heads) heads--;
    return heads;
}

static gpu_fitness fit_prompt(const gpu_traits *traits, const oxb_op_shape *shape, oxb_tile *tile) {
    const oxb_attention_shape *s = shape->attention;
    if (!takes_matrices(shape) || shape->out_alignment % 16 != 0 || !shape->halves)
        return GPU_REFUSED;
    tile->size[0] = heads_of(s, PROMPT_QUERIES / PROMPT_TOKENS);
    tile->size[1] = PROMPT_QUERIES / tile->size[0];
    tile->splits = 1;
    set_matrices(traits, s, tile);
    return GPU_FAVOURED;
}

/* Every token by itself, with its own splits: as many as fill the device with those of one token,
 * whatever is in flight beside it, for bits must not depend on that. */
static gpu_fitness fit_step(const gpu_traits *traits, const oxb_op_shape *shape, oxb_tile *tile) {
    const oxb_attention_shape *s = shape->attention;
    if (!takes_matrices(shape)) return GPU_REFUSED;
    const uint32_t length = s->max_length ? s->max_length : s->max_seq;
    tile->size[0] = heads_of(s, STEP_QUERIES);
    const uint64_t tiles = s->n_heads / tile->size[0];
    uint32_t most = 8;
    while (most < ATTENTION_SPLITS && 2 * most * tiles <= traits->cores) most *= 2;
    const uint32_t splits = length <= STEP_ALONE ? 1 : (length - 1) / STEP_GRAIN + 1;
    tile->splits = splits < most ? splits : most;
    set_matrices(traits, s, tile);
    tile->constants[2].value.u32 = most;
    /* One threadgroup stores a key, and reads it: the others of its head have other splits. */
    const int single = s->n_tokens == 1 || s->batch;
    tile->makes = shape->makes && single && tile->size[0] == s->n_heads / s->n_kv_heads;
    const int alone = s->batch || shape->same_bits || s->n_tokens < PROMPT_TOKENS;
    return alone ? GPU_FAVOURED : GPU_TAKEN;
}

static gpu_fitness fit_delta(const gpu_traits *traits, const oxb_op_shape *shape, oxb_tile *tile) {
    (void)traits;
    tile->constants[0].value.u32 = (uint32_t)shape->k;
    return GPU_FAVOURED;
}

static gpu_fitness fit_hadamard(const gpu_traits *traits, const oxb_op_shape *shape,
                                oxb_tile *tile) {
    (void)traits;
    const uint64_t block = shape->elements ? shape->elements : 1;
    if (block < HADAMARD_THREADS) tile->size[0] = (uint32_t)(HADAMARD_THREADS / block);
    return GPU_FAVOURED;
}

/* Rows of the table, for the traits that prefer them. */
#define EVERY (GPU_APPLE | GPU_NVIDIA)
/* A form of shaders/coded.h; `set` is what its lanes compute at once. */
#define CODED_FORM(op, prefer, form, tail, set, rows)                                           \
    {op,                                                                                        \
     CODED,                                                                                     \
     form "-" #rows,                                                                            \
     prefer,                                                                                    \
     0,                                                                                         \
     {BOX(set * rows, 1, ALL, SIMD * CODED_SIMDGROUPS), .suffix = (tail), ROWS_CONSTANT(rows)}, \
     fit_coded}
#define LOOKUP(op, prefer, rows)  CODED_FORM(op, prefer, "lookup", "", SIMD, rows)
#define SHUFFLE(op, prefer, rows) CODED_FORM(op, prefer, "shuffle", "_shuffle", SIMD, rows)
#define SELECT(op, rows)          CODED_FORM(op, 0, "select", "_select", SIMD / 4, rows)
#define SLICES(op, prefer, tiles, simdgroups, needs) \
    {op,                                             \
     CODED,                                          \
     "slices-" #tiles "x" #simdgroups,               \
     prefer,                                         \
     needs,                                          \
     {.size = {SLICES_ROWS * tiles, 1, ALL},         \
      .threads = SIMD * simdgroups,                  \
      .suffix = "_slices",                           \
      ROWS_CONSTANT(tiles)},                         \
     fit_slices}
#define DENSE(op, prefer, rows, simdgroups)                                     \
    {op,                                                                        \
     ANY & ~CODED,                                                              \
     "rows-" #rows,                                                             \
     prefer,                                                                    \
     0,                                                                         \
     {SIZE(rows * simdgroups, 1, ALL, SIMD * simdgroups), ROWS_CONSTANT(rows)}, \
     NULL}
#define GEMM(op, rows, eights)                                                                   \
    {op,      ANY, "eights-" #eights,                                                            \
     EVERY,   0,   {SIZE(rows, 8 * eights, ALL, SIMD * GEMM_SIMDGROUPS), ROWS_CONSTANT(eights)}, \
     fit_gemm}
#define HALF(prefer, rows, shape, simdgroups)                                  \
    {OXB_OP_GEMM_HALF,                                                         \
     CODED,                                                                    \
     "half-" #rows,                                                            \
     prefer,                                                                   \
     0,                                                                        \
     {SIZE(rows, HALF_TILE_VECTORS, ALL, SIMD * simdgroups), .n_constants = 1, \
      .constants = {CONSTANT(0, shape)}},                                      \
     fit_half}
#define ONE(op, ...) {op, ANY, "", EVERY, 0, {__VA_ARGS__}, NULL}

const gpu_variant gpu_table[] = {
    SLICES(OXB_OP_GEMV, GPU_INT8, 2, 16, GPU_NVIDIA), /* shaders/slices.h */
    SLICES(OXB_OP_GEMV, GPU_INT8, 3, 16, GPU_NVIDIA),
    SLICES(OXB_OP_GEMV, GPU_INT8, 4, 16, GPU_NVIDIA),
    SLICES(OXB_OP_GEMV, GPU_INT8, 6, 16, GPU_NVIDIA),
    SLICES(OXB_OP_GEMV, GPU_INT8, 6, 8, GPU_NVIDIA),
    SLICES(OXB_OP_GEMV, GPU_INT8, 1, 16, GPU_NVIDIA), /* of 16 rows */
    SLICES(OXB_OP_GEMV, 0, 4, 8, GPU_NVIDIA),
    SLICES(OXB_OP_GEMV, 0, 3, 8, GPU_NVIDIA),
    SLICES(OXB_OP_GEMV, 0, 2, 8, 0), /* elsewhere one, for tests */
    SLICES(OXB_OP_GEMV, 0, 1, 8, GPU_NVIDIA),
    LOOKUP(OXB_OP_GEMV, GPU_NVIDIA, 4),
    LOOKUP(OXB_OP_GEMV, GPU_NVIDIA, 2),
    LOOKUP(OXB_OP_GEMV, GPU_NVIDIA, 1),
    SHUFFLE(OXB_OP_GEMV, GPU_APPLE, 4),
    SHUFFLE(OXB_OP_GEMV, GPU_APPLE, 2),
    SHUFFLE(OXB_OP_GEMV, GPU_APPLE, 1),
    SELECT(OXB_OP_GEMV, 4),
    SELECT(OXB_OP_GEMV, 2),
    SELECT(OXB_OP_GEMV, 1),
    DENSE(OXB_OP_GEMV, EVERY, 4, GEMV_SIMDGROUPS), /* shaders/rows.h */
    DENSE(OXB_OP_GEMV, 0, 2, GEMV_SIMDGROUPS),
    DENSE(OXB_OP_GEMV, 0, 1, GEMV_SIMDGROUPS),
    SLICES(OXB_OP_SWIGLU, GPU_INT8, 1, 16, GPU_NVIDIA), /* of gate and of up */
    SLICES(OXB_OP_SWIGLU, GPU_INT8, 2, 16, GPU_NVIDIA),
    SLICES(OXB_OP_SWIGLU, GPU_INT8, 3, 16, GPU_NVIDIA),
    SLICES(OXB_OP_SWIGLU, GPU_INT8, 3, 8, GPU_NVIDIA),
    SLICES(OXB_OP_SWIGLU, 0, 2, 8, 0),
    SLICES(OXB_OP_SWIGLU, 0, 1, 8, GPU_NVIDIA),
    LOOKUP(OXB_OP_SWIGLU, 0, 4), /* of gate and of up */
    LOOKUP(OXB_OP_SWIGLU, GPU_NVIDIA, 2),
    LOOKUP(OXB_OP_SWIGLU, GPU_NVIDIA, 1),
    SHUFFLE(OXB_OP_SWIGLU, 0, 4),
    SHUFFLE(OXB_OP_SWIGLU, GPU_APPLE, 2),
    SHUFFLE(OXB_OP_SWIGLU, GPU_APPLE, 1),
    SELECT(OXB_OP_SWIGLU, 4),
    SELECT(OXB_OP_SWIGLU, 2),
    SELECT(OXB_OP_SWIGLU, 1),
    DENSE(OXB_OP_SWIGLU, EVERY, 2, SWIGLU_SIMDGROUPS),
    DENSE(OXB_OP_SWIGLU, 0, 1, SWIGLU_SIMDGROUPS),
    GEMM(OXB_OP_GEMM, GEMM_ROWS, 4),
    GEMM(OXB_OP_GEMM, GEMM_ROWS, 2),
    GEMM(OXB_OP_GEMM, GEMM_ROWS, 1),
    GEMM(OXB_OP_SWIGLU_GEMM, GEMM_ROWS / 2, 4),
    GEMM(OXB_OP_SWIGLU_GEMM, GEMM_ROWS / 2, 2),
    GEMM(OXB_OP_SWIGLU_GEMM, GEMM_ROWS / 2, 1),
    {OXB_OP_GEMM_HALVES,
     CODED,
     "halves",
     EVERY,
     0,
     {SIZE(32, 8, 1, SIMD *HALVES_SIMDGROUPS), .n_constants = 2,
      .constants = {CONSTANT(0, 21), CONSTANT(1, 1)}},
     fit_halves},
    HALF(0, 256, 444, 8), /* shaders/gemm_half.h */
    HALF(GPU_NVIDIA, 128, 442, 4),
    HALF(EVERY, 64, 242, 4),
    {OXB_OP_ATTENTION,
     ANY,
     "prompt",
     EVERY,
     0,
     {.size = {1, 1, 1},
      .threads = SIMD * PROMPT_SIMDGROUPS,
      .suffix = "_prompt",
      .n_constants = 2,
      .constants = {CONSTANT(0, 128), CONSTANT(1, 1)}},
     fit_prompt},
    {OXB_OP_ATTENTION,
     ANY,
     "step",
     EVERY,
     0,
     {.size = {1, 1, 1},
      .threads = SIMD * STEP_SIMDGROUPS,
      .suffix = "_step",
      .n_constants = 3,
      .constants = {CONSTANT(0, 128), CONSTANT(1, 1), CONSTANT(2, 16)}},
     fit_step},
    {OXB_OP_ATTENTION,
     ANY,
     "lanes",
     EVERY,
     0,
     {SIZE(1, 1, 1, SIMD *ATTENTION_SIMDGROUPS), .n_constants = 3,
      .constants = {CONSTANT(0, 1), CONSTANT(2, 0), CONSTANT(1, 2)}},
     fit_attention},
    ONE(OXB_OP_EMBED, SIZE(1024, 1, ALL, 256)),
    ONE(OXB_OP_RMSNORM, SIZE(1, ALL, ALL, 256)),
    ONE(OXB_OP_ADD, SIZE(4096, ALL, ALL, 256)),
    ONE(OXB_OP_BIAS, SIZE(1024, 1, ALL, 256)),
    ONE(OXB_OP_QK_NORM_ROPE, SIZE(HEAD_SIMDGROUPS, 1, ALL, SIMD *HEAD_SIMDGROUPS)),
    ONE(OXB_OP_KV_STORE, SIZE(1, 1, ALL, SIMD *KV_SIMDGROUPS)),
    ONE(OXB_OP_QKV_TO_CACHE, SIZE(HEAD_SIMDGROUPS, 1, ALL, SIMD *HEAD_SIMDGROUPS)),
    ONE(OXB_OP_COMBINE, SIZE(1, ALL, ALL, 128)),
    ONE(OXB_OP_ARGMAX_BLOCKS, SIZE(OXB_ARGMAX_BLOCK, 1, ALL, 256)),
    ONE(OXB_OP_ARGMAX, SIZE(1, ALL, ALL, SIMD)),
    ONE(OXB_OP_ADVANCE, SIZE(1, ALL, ALL, SIMD)),
    ONE(OXB_OP_SAMPLE_BLOCKS, SIZE(OXB_ARGMAX_BLOCK, 1, ALL, 256)),
    ONE(OXB_OP_SAMPLE_CHOOSE, SIZE(1, ALL, ALL, CHOOSE_THREADS)),
    ONE(OXB_OP_HALVE, SIZE(1024, 1, ALL, 256)),
    ONE(OXB_OP_HALVE_NORM, SIZE(1, ALL, ALL, NORM_THREADS)),
    ONE(OXB_OP_ROUND_HALF, SIZE(1, ALL, ALL, 256)),
    ONE(OXB_OP_CONV, SIZE(CONV_THREADS, 1, CONV_TOKENS, CONV_THREADS)),
    {OXB_OP_DELTA,
     ANY,
     "",
     EVERY,
     0,
     {SIZE(DELTA_COLUMNS * DELTA_SIMDGROUPS, 1, 1, SIMD *DELTA_SIMDGROUPS), .n_constants = 1,
      .constants = {CONSTANT(0, 128)}},
     fit_delta},
    ONE(OXB_OP_GATE, SIZE(HEAD_SIMDGROUPS, 1, ALL, SIMD *HEAD_SIMDGROUPS)),
    {OXB_OP_HADAMARD, ANY, "", EVERY, 0, {SIZE(1, 1, ALL, HADAMARD_THREADS)}, fit_hadamard},
    ONE(OXB_OP_COPY, SIZE(4096, ALL, ALL, 256)),
};
const unsigned gpu_table_rows = sizeof gpu_table / sizeof gpu_table[0];

void gpu_abilities(void *device, oxb_abilities *abilities) {
    (void)device;
    *abilities = (oxb_abilities){.fused_norm = CODED,
                                 .fused_cache_store = 1,
                                 .gemv_vectors = GEMV_VECTORS,
                                 .half_products = CODED,
                                 .half_vectors = HALF_VECTORS,
                                 .rounded_products = CODED,
                                 .rounded_vectors = ROUNDED_VECTORS};
}
