/* The geometries: one of the cpu driver, one of the kernels in shaders/. */
#include "geometry.h"

#include "cpu/oxb_cpu.h"

#define ALL UINT32_MAX

/* A threadgroup runs as one thread. */
static const oxb_geometry cpu = {.tiles = {
    [OXB_OP_GEMV] = {{OXB_CPU_ROWS, ALL}, 1, 0, {{0}}},
    [OXB_OP_SWIGLU] = {{OXB_CPU_ROWS, ALL}, 1, 0, {{0}}},
    [OXB_OP_EMBED] = {{ALL, ALL}, 1, 0, {{0}}},
    [OXB_OP_RMSNORM] = {{1, ALL}, 1, 0, {{0}}},
    [OXB_OP_ADD] = {{OXB_CPU_ELEMENTS, ALL}, 1, 0, {{0}}},
    [OXB_OP_QK_NORM_ROPE] = {{1, ALL}, 1, 0, {{0}}},
    [OXB_OP_KV_STORE] = {{1, ALL}, 1, 0, {{0}}},
    [OXB_OP_ATTENTION] = {{1, ALL}, 1, 0, {{0}}},
    [OXB_OP_ADVANCE] = {{1, ALL}, 1, 0, {{0}}},
}};

#define SIMD 32u
#define ROWS_CONSTANT(rows) 1, {{0, OXB_CONSTANT_U32, {.u32 = (rows)}}} /* shaders/rows.h */

/* At most 256 threads, which every pipeline takes. A SIMD-group computes several rows of a matrix and
 * one head of qk_norm_rope; embed and residual_add have some elements for each thread. */
#define GEMV_ROWS 4u
#define GEMV_SIMDGROUPS 4u
#define SWIGLU_ROWS 2u
#define SWIGLU_SIMDGROUPS 4u
#define HEAD_SIMDGROUPS 4u

static const oxb_geometry simd32 = {.tiles = {
    [OXB_OP_GEMV] = {{GEMV_ROWS * GEMV_SIMDGROUPS, ALL}, SIMD * GEMV_SIMDGROUPS, ROWS_CONSTANT(GEMV_ROWS)},
    [OXB_OP_SWIGLU] = {{SWIGLU_ROWS * SWIGLU_SIMDGROUPS, ALL}, SIMD * SWIGLU_SIMDGROUPS,
                       ROWS_CONSTANT(SWIGLU_ROWS)},
    [OXB_OP_EMBED] = {{1024, ALL}, 256, 0, {{0}}},
    [OXB_OP_RMSNORM] = {{1, ALL}, 256, 0, {{0}}},
    [OXB_OP_ADD] = {{4096, ALL}, 256, 0, {{0}}},
    [OXB_OP_QK_NORM_ROPE] = {{HEAD_SIMDGROUPS, ALL}, SIMD * HEAD_SIMDGROUPS, 0, {{0}}},
    [OXB_OP_KV_STORE] = {{1, ALL}, 128, 0, {{0}}},
    [OXB_OP_ATTENTION] = {{1, 1}, 256, 0, {{0}}},
    [OXB_OP_ADVANCE] = {{1, ALL}, 256, 0, {{0}}},
}};

const oxb_geometry *oxb_geometry_of(const oxb_device_info *device) {
    return device->simd_width == 1 ? &cpu : &simd32;
}
