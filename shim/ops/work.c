/* The work of an operation, and its cut. */
#include "work.h"

static uint64_t saturated(uint64_t a, uint64_t b) {
    return b && a > UINT64_MAX / b ? UINT64_MAX : a * b;
}

/* Multiply-adds that take as long as the load of a byte from a cache: an M1 has 0.65e12 a second in
 * its products, and loads of keys and values that it serves at 130e9 bytes a second. */
#define BYTE_WORK 5u

/* Of a multiply-add with elements of a cache that `tile` loads once for all of its queries. */
static uint64_t attention_weight(const oxb_attention_shape *a, const oxb_tile *tile) {
    const uint64_t bytes = a->kv_format == OXB_KV_F32 ? 4 : a->kv_format == OXB_KV_F16 ? 2 : 1;
    const uint64_t queries = saturated(tile->size[0], tile->size[1]);
    return 1 + (BYTE_WORK * bytes - 1) / queries + 1;
}

uint64_t ops_work(oxb_op op, const oxb_op_shape *shape, const oxb_tile *tile) {
    const oxb_attention_shape *a = shape->attention;
    const uint64_t plane = saturated(shape->extent[0], shape->extent[1]);
    switch (op) {
    case OXB_OP_GEMV:
    case OXB_OP_SWIGLU:
    case OXB_OP_GEMM:
    case OXB_OP_SWIGLU_GEMM:
    case OXB_OP_GEMM_INT8:
    case OXB_OP_GEMM_HALVES:
    case OXB_OP_GEMM_HALF: return saturated(saturated(shape->n_rows, shape->k), shape->extent[1]);
    case OXB_OP_ATTENTION:
        /* A key and a value of each position. */
        return saturated(saturated(plane, a->max_length ? a->max_length : a->max_seq),
                         2 * a->head_dim * attention_weight(a, tile));
    default:
        return saturated(saturated(plane, shape->extent[2]), shape->elements ? shape->elements : 1);
    }
}

uint64_t ops_piece(uint64_t unit, uint64_t bound, uint64_t extent, uint64_t grain) {
    if (bound == 0 || saturated(unit, extent) <= bound || grain >= extent) return extent;
    const uint64_t grains = (extent - 1) / grain + 1;
    const uint64_t grain_work = saturated(unit, grain);
    const uint64_t most = grain_work < bound ? bound / grain_work : 1; /* of a piece */
    const uint64_t pieces = (grains - 1) / most + 1;
    return ((grains - 1) / pieces + 1) * grain;
}
