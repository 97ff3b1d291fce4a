/* The table of kernels: names, functions, bindings. */
#include <string.h>

#include "cpu/cpu.h"

#define WRITES(binding) (1u << (binding))

/* The op layer puts the name of a layout last. `grain`: a panel's groups. */
#define PRODUCT(name, op, need, args, id, layout, grain) \
    {                                                    \
        name,       cpu_##op,                            \
        cpu_##need, 3,                                   \
        WRITES(2),  sizeof(struct args),                 \
        grain,      OXB_DEVICE_FORMAT_##id,              \
        layout,     0},

#define INT8_PRODUCT(name, op, need, id, layout, grain) \
    {name,       cpu_##op,                              \
     cpu_##need, 4,                                     \
     WRITES(3),  sizeof(struct oxb_gemm_args),          \
     grain,      OXB_DEVICE_FORMAT_##id,                \
     layout,     1},

#define MATRIX(id, name, suffix, layout, grain)                                                   \
    PRODUCT("gemv_" name suffix, gemv, gemv_need, oxb_gemv_args, id, layout, grain)               \
    PRODUCT("gemv_" name "_residual" suffix, gemv_residual, gemv_need, oxb_gemv_args, id, layout, \
            grain)                                                                                \
    PRODUCT("fused_gate_up_swiglu_" name suffix, swiglu, swiglu_need, oxb_gemv_args, id, layout,  \
            grain)                                                                                \
    PRODUCT("gemm_" name suffix, gemm, gemm_need, oxb_gemm_args, id, layout, grain)               \
    PRODUCT("gemm_" name "_residual" suffix, gemm_residual, gemm_need, oxb_gemm_args, id, layout, \
            grain)                                                                                \
    PRODUCT("fused_gate_up_swiglu_gemm_" name suffix, swiglu_gemm, swiglu_gemm_need,              \
            oxb_gemm_args, id, layout, grain){                                                    \
        "embed_" name suffix,          cpu_embed, cpu_embed_need,         4,      WRITES(3),      \
        sizeof(struct oxb_embed_args), 1,         OXB_DEVICE_FORMAT_##id, layout, 0},

/* What matrices that are not in the plain layout have beside these. */
#define PACKED(id, name, suffix, layout, grain)                                                   \
    MATRIX(id, name, suffix, layout, grain)                                                       \
    INT8_PRODUCT("gemm_" name "_int8" suffix, gemm, gemm_need, id, layout, grain)                 \
    INT8_PRODUCT("gemm_" name "_residual_int8" suffix, gemm_residual, gemm_need, id, layout,      \
                 grain)                                                                           \
    INT8_PRODUCT("fused_gate_up_swiglu_gemm_" name "_int8" suffix, swiglu_gemm, swiglu_gemm_need, \
                 id, layout, grain)

#define CACHE(suffix, kv_format)            \
    {"kv_store_" suffix,                    \
     cpu_kv_store,                          \
     cpu_kv_store_need,                     \
     5,                                     \
     WRITES(1) | WRITES(2),                 \
     sizeof(struct oxb_kv_store_args),      \
     8,                                     \
     kv_format,                             \
     0,                                     \
     0},                                    \
        {"attention_" suffix,               \
         cpu_attention,                     \
         cpu_attention_need,                \
         6,                                 \
         WRITES(5),                         \
         sizeof(struct oxb_attention_args), \
         1,                                 \
         kv_format,                         \
         0,                                 \
         0},

static const cpu_kernel kernels[] = {
#define X(id, name, bits, group_size, coded, scale_bytes, code_bytes) \
    MATRIX(id, name, "", OXB_LAYOUT_PLAIN, 4)
    OXB_DEVICE_FORMATS(X)
#undef X
        PACKED(Q1_G128, "q1_g128", "_panels", CPU_LAYOUT_PANELS, 4)
            PACKED(Q2_G128, "q2_g128", "_panels", CPU_LAYOUT_PANELS, 4)
                PACKED(Q2_G64, "q2_g64", "_panels", CPU_LAYOUT_PANELS, 4)
                    PACKED(Q2_G128, "q2_g128", "_trits", CPU_LAYOUT_TRITS, CPU_MAX_PANEL)
                        PACKED(T1_G128, "t1_g128", "_digits", CPU_LAYOUT_DIGITS, CPU_MAX_PANEL)
                            CACHE("f16", OXB_KV_F16) CACHE("f32", OXB_KV_F32)
                                CACHE("q8", OXB_KV_Q8){"rmsnorm", cpu_rmsnorm, cpu_rmsnorm_need, 3,
                                                       WRITES(2), sizeof(struct oxb_rmsnorm_args),
                                                       2, 0, 0, 0},
    {"quantize_int8", cpu_quantize, cpu_quantize_need, 2, WRITES(1),
     sizeof(struct oxb_quantize_args), 1, 0, 0, 1},
    {"residual_add", cpu_residual_add, cpu_residual_add_need, 2, WRITES(1),
     sizeof(struct oxb_add_args), 4, 0, 0, 0},
    {"bias_add", cpu_bias_add, cpu_bias_add_need, 2, WRITES(1), sizeof(struct oxb_bias_args), 4, 0,
     0, 0},
    {"qk_norm_rope", cpu_qk_norm_rope, cpu_qk_norm_rope_need, 5, WRITES(0),
     sizeof(struct oxb_qk_norm_rope_args), 8, 0, 0, 0},
    {"attention_combine", cpu_combine, cpu_combine_need, 2, WRITES(1),
     sizeof(struct oxb_combine_args), 8, 0, 0, 0},
    {"argmax_blocks", cpu_argmax_blocks, cpu_argmax_blocks_need, 2, WRITES(1),
     sizeof(struct oxb_argmax_blocks_args), 1, 0, 0, 0},
    {"argmax", cpu_argmax, cpu_argmax_need, 2, WRITES(1), sizeof(struct oxb_argmax_args), 1, 0, 0,
     0},
    {"advance", cpu_advance, cpu_advance_need, 3, WRITES(1) | WRITES(2),
     sizeof(struct oxb_advance_args), 1, 0, 0, 0},
    {"sample_blocks", cpu_sample_blocks, cpu_sample_blocks_need, 7, WRITES(6),
     sizeof(struct oxb_sample_args), 1, 0, 0, 0},
    {"sample_choose", cpu_sample_choose, cpu_sample_choose_need, 7,
     WRITES(3) | WRITES(4) | WRITES(5) | WRITES(6), sizeof(struct oxb_sample_args), 1, 0, 0, 0},
    {"conv_silu", cpu_conv, cpu_conv_need, 5, WRITES(3) | WRITES(4), sizeof(struct oxb_conv_args),
     1, 0, 0, 0},
    {"delta_rule", cpu_delta_rule, cpu_delta_rule_need, 7, WRITES(5) | WRITES(6),
     sizeof(struct oxb_delta_args), 1, 0, 0, 0},
    {"gate", cpu_gate, cpu_gate_need, 4, WRITES(3), sizeof(struct oxb_gate_args), 8, 0, 0, 0},
    {"hadamard", cpu_hadamard_rotate, cpu_hadamard_need, 4, WRITES(3),
     sizeof(struct oxb_hadamard_args), 1, 0, 0, 0},
    {"copy", cpu_copy, cpu_copy_need, 2, WRITES(1), sizeof(struct oxb_copy_args), 4, 0, 0, 0},
};

const cpu_kernel *cpu_find(const char *name) {
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++)
        if (strcmp(kernels[i].name, name) == 0) return &kernels[i];
    return NULL;
}
