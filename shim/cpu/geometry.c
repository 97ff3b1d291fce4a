/* Tiles and abilities of the cpu driver: what one threadgroup, which one thread runs, computes. */
#include "cpu.h"
#include "panels.h"

#define ALL OXB_TILE_ALL
#define LEAST_VECTORS \
    8u /* from which int8 is faster: expanding the codes to bytes costs its time */

/* The steps of the cpu cost too little to fuse them: it has no QKV_TO_CACHE. */
static const uint32_t sizes[OXB_OP_COUNT][3] = {
    [OXB_OP_GEMV] = {CPU_ROWS, ALL, ALL},
    [OXB_OP_SWIGLU] = {CPU_ROWS, ALL, ALL},
    [OXB_OP_GEMM] = {CPU_ROWS, CPU_BATCH, ALL},
    [OXB_OP_SWIGLU_GEMM] = {CPU_ROWS, CPU_BATCH, ALL},
    [OXB_OP_GEMM_INT8] = {CPU_ROWS, ALL, ALL},
    [OXB_OP_QUANTIZE] = {1, ALL, ALL},
    [OXB_OP_EMBED] = {ALL, 1, ALL},
    [OXB_OP_RMSNORM] = {1, ALL, ALL},
    [OXB_OP_ADD] = {CPU_ELEMENTS, ALL, ALL},
    [OXB_OP_BIAS] = {CPU_ELEMENTS, 1, ALL},
    [OXB_OP_QK_NORM_ROPE] = {1, 1, ALL},
    [OXB_OP_KV_STORE] = {1, 1, ALL},
    [OXB_OP_ATTENTION] = {1, CPU_TOKENS, 1}, /* the heads that share a key-value head */
    [OXB_OP_COMBINE] = {1, ALL, ALL},
    [OXB_OP_ARGMAX_BLOCKS] = {OXB_ARGMAX_BLOCK, 1, ALL},
    [OXB_OP_ARGMAX] = {1, ALL, ALL},
    [OXB_OP_ADVANCE] = {1, ALL, ALL},
    [OXB_OP_SAMPLE_BLOCKS] = {OXB_ARGMAX_BLOCK, 1, ALL},
    [OXB_OP_SAMPLE_CHOOSE] = {1, ALL, ALL},
    [OXB_OP_CONV] = {CPU_CHANNELS, 1, ALL},
    [OXB_OP_DELTA] = {ALL, 1, 1},
    [OXB_OP_GATE] = {1, 1, ALL},
    [OXB_OP_HADAMARD] = {1, 1, ALL},
    [OXB_OP_COPY] = {CPU_ELEMENTS, ALL, ALL},
};

void cpu_abilities(const cpu_isa *isa, oxb_abilities *abilities) {
    *abilities = (oxb_abilities){.int8_products = isa->int8 != NULL, .same_bits = 1};
}

static const char *suffix_of(oxb_op op, uint32_t layout) {
    if (op == OXB_OP_QUANTIZE) return ""; /* the vectors have no layout */
    switch (layout) {
    case CPU_LAYOUT_PANELS: return "_panels";
    case CPU_LAYOUT_TRITS: return "_trits";
    case CPU_LAYOUT_DIGITS: return "_digits";
    default: return "";
    }
}

void cpu_tile(oxb_op op, const oxb_op_shape *shape, oxb_tile *tile) {
    tile->threads = 1;
    for (unsigned i = 0; i < 3; i++) tile->size[i] = sizes[op][i];
    tile->suffix = suffix_of(op, shape->layout);
    if (op != OXB_OP_ATTENTION) return;
    const oxb_attention_shape *s = shape->attention;
    const uint32_t length = s->max_length ? s->max_length : s->max_seq;
    tile->size[0] = s->n_heads / s->n_kv_heads;
    /* The tokens of a prompt are work for every core as they are. */
    tile->splits =
        s->n_tokens == 1 || s->batch ? length / CPU_SPLIT + (length % CPU_SPLIT != 0) : 1;
}

uint64_t cpu_int8_vector_bytes(const cpu_isa *isa, uint32_t format, uint32_t layout, uint64_t k,
                               uint64_t n_vectors) {
    if (isa->int8 == NULL || n_vectors < LEAST_VECTORS ||
        cpu_panel_packing(format, layout) == CPU_PACKING_COUNT)
        return 0;
    return cpu_int8_bytes(k, cpu_group(format));
}
