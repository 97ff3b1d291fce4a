/* Tiles of the kernels in shaders/. */
#include "gpu.h"
#include "oxb_args.h"

#define ALL  OXB_TILE_ALL
#define SIMD GPU_SIMD_WIDTH

#define CONSTANT(at, value)                      \
    {                                            \
        at, OXB_CONSTANT_U32, { .u32 = (value) } \
    }
#define SIZE(x, y, z, n_threads) .size = {x, y, z}, .threads = (n_threads), .suffix = ""
#define ROWS_CONSTANT(rows)      .n_constants = 1, .constants = {CONSTANT(0, rows)} /* rows.h */

/* At most 256 threads, which every pipeline takes; sample_choose declares that it has more, for one
 * threadgroup reads a whole vocabulary. A SIMD-group computes several rows of a matrix,
 * or one head of qk_norm_rope; embed and residual_add give each thread several elements. */
#define GEMV_ROWS            4u
#define GEMV_SIMDGROUPS      4u
#define SWIGLU_ROWS          2u
#define SWIGLU_SIMDGROUPS    4u
#define GEMV_VECTORS         4u   /* more are faster on matrix units */
#define LOOKUP_SIMDGROUPS    8u   /* shaders/lookup.h */
#define LOOKUP_THREADGROUPS  256u /* fill the largest GPUs: from there on, more rows to a lane */
#define GEMM_ROWS            64u  /* shaders/gemm.h; half of them gate's and half up's in swiglu */
#define GEMM_SIMDGROUPS      4u
#define HALVES_SIMDGROUPS    8u   /* shaders/gemm_halves.h */
#define HALVES_THREADGROUPS  120u /* fill the largest GPUs: these are larger than others */
#define HALF_VECTORS         3u   /* the fewest that are faster on matrix units */
#define HALF_CORES           132u /* of the largest GPUs: shaders/gemm_half.h */
#define ROUNDED_VECTORS      64u  /* the fewest that fill its tiles */
#define HEAD_SIMDGROUPS      4u
#define KV_SIMDGROUPS        2u /* keys and values */
#define ATTENTION_SIMDGROUPS 4u
#define ATTENTION_SPLIT      128u  /* positions of a split, at the least: shaders/attention.h */
#define ATTENTION_SPLITS     64u   /* the most, enough for any length */
#define ATTENTION_QUERIES    4u    /* of a threadgroup: shaders/attention.h */
#define CHOOSE_THREADS       896u  /* with 1024, registers spill */
#define NORM_THREADS         1024u /* of halve_norm: its vectors are few, and wait for memory */

#define BIT(format) (1u << OXB_DEVICE_FORMAT_##format)
#define CODED       (BIT(Q1_G128) | BIT(Q2_G128) | BIT(Q2_G64))
#define ANY         UINT32_MAX

_Static_assert(OXB_DEVICE_FORMAT_COUNT <= 32, "a mask has a bit for every device format");

/* Every lane computes rows of its own from tables that a SIMD-group shares: more rows to a lane
 * share the tables, fewer make threadgroups enough to fill the chip. */
static void fit_lookup(const oxb_op_shape *shape, oxb_tile *tile, uint32_t most) {
    uint32_t rows = 1;
    while (rows < most && shape->extent[0] / (SIMD * 2 * rows) >= LOOKUP_THREADGROUPS) rows *= 2;
    tile->size[0] = SIMD * rows;
    tile->constants[0].value.u32 = rows;
}

static void fit_gemv(const oxb_op_shape *shape, oxb_tile *tile) { fit_lookup(shape, tile, 4); }

static void fit_swiglu(const oxb_op_shape *shape, oxb_tile *tile) { fit_lookup(shape, tile, 2); }

/* Matrices of 8 vectors that share the weights of a threadgroup: no more than there are. */
static void fit_gemm(const oxb_op_shape *shape, oxb_tile *tile) {
    const uint64_t n_vectors = shape->extent[1];
    const uint32_t eights = n_vectors > 16 ? 4 : n_vectors > 8 ? 2 : 1;
    tile->size[1] = 8 * eights;
    tile->constants[0].value.u32 = eights;
}

/* Tiles of 16 rows and eights of vectors of a SIMD-group, as many as the registers hold, and
 * SIMD-groups over the rows: the more rows a threadgroup has, the less often the vectors are read,
 * as long as there are threadgroups enough to fill the chip. The other SIMD-groups share k. */
static void fit_halves(const oxb_op_shape *shape, oxb_tile *tile) {
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
}

/* The tile whose threadgroups fill the chip in the fewest rounds: a larger one reads vectors less
 * often, and has rows that wait for no other in its last round. */
static void fit_half(const oxb_op_shape *shape, oxb_tile *tile) {
    static const struct {
        uint32_t shape, rows, vectors, simdgroups;
    } tiles[] = {{444, 256, 64, 8}, {442, 128, 64, 4}, {242, 64, 64, 4}};
    const uint64_t matrices = shape->n_rows / shape->extent[0];
    uint64_t least = UINT64_MAX;
    for (unsigned i = 0; i < sizeof tiles / sizeof tiles[0]; i++) {
        const uint64_t across = (shape->n_rows + tiles[i].rows - 1) / tiles[i].rows;
        const uint64_t down = (shape->extent[1] + tiles[i].vectors - 1) / tiles[i].vectors;
        const uint64_t rounds = (across * down + HALF_CORES - 1) / HALF_CORES;
        const uint64_t time = rounds * tiles[i].rows;
        if (time >= least) continue;
        least = time;
        tile->size[0] = (uint32_t)(tiles[i].rows / matrices);
        tile->size[1] = tiles[i].vectors;
        tile->threads = SIMD * tiles[i].simdgroups;
        tile->constants[0].value.u32 = tiles[i].shape;
    }
}

static void fit_attention(const oxb_op_shape *shape, oxb_tile *tile) {
    const oxb_attention_shape *s = shape->attention;
    const uint32_t length = s->max_length ? s->max_length : s->max_seq;
    const uint32_t ratio = s->n_heads / s->n_kv_heads;
    const int single = s->n_tokens == 1 || s->batch; /* tokens of a sequence */
    /* A prompt has threadgroups enough as it is. */
    const uint32_t splits = single ? length / ATTENTION_SPLIT + (length % ATTENTION_SPLIT != 0) : 1;
    tile->splits = splits < ATTENTION_SPLITS ? splits : ATTENTION_SPLITS;
    /* The queries that share each load of the caches: heads first, then tokens of the sequence. A
     * long head leaves registers for one only. */
    uint32_t queries = s->head_dim > 128 ? 1 : ATTENTION_QUERIES;
    while (queries > (uint64_t)s->n_tokens * ratio) queries /= 2;
    uint32_t heads = queries;
    while (ratio % heads) heads /= 2;
    if (single) queries = heads;
    tile->size[0] = heads;
    tile->size[1] = queries / heads;
    tile->constants[0].value.u32 = queries;
    tile->constants[1].value.u32 = s->head_dim > 128;
    if (s->kv_format == OXB_KV_Q8) { /* four elements at once, and 16 bytes of low bits */
        tile->constants[2].value.u32 =
            shape->cache_alignment % 16 == 0 && s->head_dim == 128 ? 16 : 4;
        return;
    }
    const uint64_t four = s->kv_format == OXB_KV_F16 ? 8 : 16; /* bytes of four elements */
    const int wide = shape->cache_alignment % four == 0 && s->head_dim % 4 == 0;
    tile->constants[2].value.u32 = wide ? 4 : 2;
}

/* The kernels: what each computes, for which device formats, in which tile. The first row that
 * takes the format is used. `fit` sets what depends on the shape. */
static const struct variant {
    oxb_op op;
    uint32_t formats; /* bit f: device format f; ANY where there is no matrix */
    oxb_tile tile;
    void (*fit)(const oxb_op_shape *shape, oxb_tile *tile);
} variants[] = {
    {OXB_OP_GEMV,
     CODED, /* look-up: shaders/lookup.h */
     {SIZE(SIMD, 1, ALL, SIMD *LOOKUP_SIMDGROUPS), ROWS_CONSTANT(1)},
     fit_gemv},
    {OXB_OP_GEMV,
     ANY,
     {SIZE(GEMV_ROWS * GEMV_SIMDGROUPS, 1, ALL, SIMD *GEMV_SIMDGROUPS), ROWS_CONSTANT(GEMV_ROWS)},
     NULL},
    {OXB_OP_SWIGLU,
     CODED,
     {SIZE(SIMD, 1, ALL, SIMD *LOOKUP_SIMDGROUPS), ROWS_CONSTANT(1)},
     fit_swiglu},
    {OXB_OP_SWIGLU,
     ANY,
     {SIZE(SWIGLU_ROWS * SWIGLU_SIMDGROUPS, 1, ALL, SIMD *SWIGLU_SIMDGROUPS),
      ROWS_CONSTANT(SWIGLU_ROWS)},
     NULL},
    {OXB_OP_GEMM,
     ANY,
     {SIZE(GEMM_ROWS, 8, ALL, SIMD *GEMM_SIMDGROUPS), ROWS_CONSTANT(1)},
     fit_gemm},
    {OXB_OP_SWIGLU_GEMM,
     ANY,
     {SIZE(GEMM_ROWS / 2, 8, ALL, SIMD *GEMM_SIMDGROUPS), ROWS_CONSTANT(1)},
     fit_gemm},
    {OXB_OP_EMBED, ANY, {SIZE(1024, 1, ALL, 256)}, NULL},
    {OXB_OP_RMSNORM, ANY, {SIZE(1, ALL, ALL, 256)}, NULL},
    {OXB_OP_ADD, ANY, {SIZE(4096, ALL, ALL, 256)}, NULL},
    {OXB_OP_BIAS, ANY, {SIZE(1024, 1, ALL, 256)}, NULL},
    {OXB_OP_QK_NORM_ROPE, ANY, {SIZE(HEAD_SIMDGROUPS, 1, ALL, SIMD *HEAD_SIMDGROUPS)}, NULL},
    {OXB_OP_KV_STORE, ANY, {SIZE(1, 1, ALL, SIMD *KV_SIMDGROUPS)}, NULL},
    {OXB_OP_QKV_TO_CACHE, ANY, {SIZE(HEAD_SIMDGROUPS, 1, ALL, SIMD *HEAD_SIMDGROUPS)}, NULL},
    {OXB_OP_ATTENTION,
     ANY,
     {SIZE(1, 1, 1, SIMD *ATTENTION_SIMDGROUPS), .n_constants = 3,
      .constants = {CONSTANT(0, 1), CONSTANT(2, 0), CONSTANT(1, 2)}},
     fit_attention},
    {OXB_OP_COMBINE, ANY, {SIZE(1, ALL, ALL, 128)}, NULL},
    {OXB_OP_ARGMAX_BLOCKS, ANY, {SIZE(OXB_ARGMAX_BLOCK, 1, ALL, 256)}, NULL},
    {OXB_OP_ARGMAX, ANY, {SIZE(1, ALL, ALL, SIMD)}, NULL},
    {OXB_OP_ADVANCE, ANY, {SIZE(1, ALL, ALL, SIMD)}, NULL},
    {OXB_OP_SAMPLE_BLOCKS, ANY, {SIZE(OXB_ARGMAX_BLOCK, 1, ALL, 256)}, NULL},
    {OXB_OP_SAMPLE_CHOOSE, ANY, {SIZE(1, ALL, ALL, CHOOSE_THREADS)}, NULL},
    {OXB_OP_HALVE, ANY, {SIZE(1024, 1, ALL, 256)}, NULL},
    {OXB_OP_HALVE_NORM, ANY, {SIZE(1, ALL, ALL, NORM_THREADS)}, NULL},
    {OXB_OP_GEMM_HALVES,
     CODED,
     {SIZE(32, 8, 1, SIMD *HALVES_SIMDGROUPS), .n_constants = 2,
      .constants = {CONSTANT(0, 21), CONSTANT(1, 1)}},
     fit_halves},
    {OXB_OP_ROUND_HALF, ANY, {SIZE(1, ALL, ALL, 256)}, NULL},
    {OXB_OP_GEMM_HALF,
     CODED,
     {SIZE(128, 64, ALL, SIMD * 4), .n_constants = 1, .constants = {CONSTANT(0, 442)}},
     fit_half},
};

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

oxb_status gpu_tile(void *device, oxb_op op, const oxb_op_shape *shape, oxb_tile *tile) {
    (void)device;
    for (unsigned i = 0; i < sizeof variants / sizeof variants[0]; i++) {
        const struct variant *v = variants + i;
        if (v->op != op || !(v->formats >> shape->format & 1)) continue;
        *tile = v->tile;
        if (v->fit) v->fit(shape, tile);
        if (shape->layout == GPU_LAYOUT_COLUMNS) tile->column = (uint32_t)shape->n_rows;
        break;
    }
    return OXB_OK; /* without a row the tile is zeros, which the front refuses by name */
}
