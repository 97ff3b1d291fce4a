/* The table of kernels: names, functions, bindings. */
#include <string.h>

#include "oxb_cpu.h"

#define WRITES(binding) (1u << (binding))

#define MATRIX(id, suffix)                                                                             \
    {"gemv_" suffix, oxb_cpu_gemv, oxb_cpu_gemv_need, 3, WRITES(2), sizeof(struct oxb_gemv_args), 4,   \
     OXB_KERNEL_##id},                                                                                 \
    {"gemv_" suffix "_residual", oxb_cpu_gemv_residual, oxb_cpu_gemv_need, 3, WRITES(2),               \
     sizeof(struct oxb_gemv_args), 4, OXB_KERNEL_##id},                                                \
    {"fused_gate_up_swiglu_" suffix, oxb_cpu_swiglu, oxb_cpu_swiglu_need, 3, WRITES(2),                \
     sizeof(struct oxb_gemv_args), 2, OXB_KERNEL_##id},                                              \
    {"gemm_" suffix, oxb_cpu_gemm, oxb_cpu_gemm_need, 3, WRITES(2), sizeof(struct oxb_gemm_args), 1,   \
     OXB_KERNEL_##id},                                                                                 \
    {"gemm_" suffix "_residual", oxb_cpu_gemm_residual, oxb_cpu_gemm_need, 3, WRITES(2),               \
     sizeof(struct oxb_gemm_args), 1, OXB_KERNEL_##id},                                                \
    {"fused_gate_up_swiglu_gemm_" suffix, oxb_cpu_swiglu_gemm, oxb_cpu_swiglu_gemm_need, 3, WRITES(2), \
     sizeof(struct oxb_gemm_args), 1, OXB_KERNEL_##id},                                                \
    {"embed_" suffix, oxb_cpu_embed, oxb_cpu_embed_need, 4, WRITES(3), sizeof(struct oxb_embed_args), 1, \
     OXB_KERNEL_##id},

#define CACHE(suffix, half_cache)                                                                      \
    {"kv_store_" suffix, oxb_cpu_kv_store, oxb_cpu_kv_store_need, 4, WRITES(1) | WRITES(2),            \
     sizeof(struct oxb_kv_store_args), 8, half_cache},                                                 \
    {"attention_" suffix, oxb_cpu_attention, oxb_cpu_attention_need, 5, WRITES(4),              \
     sizeof(struct oxb_attention_args), 1, half_cache},

static const oxb_cpu_kernel kernels[] = {
#define X(id, name, bits, group) MATRIX(id, name)
    OXB_KERNEL_FORMATS(X)
#undef X
    CACHE("f16", 1)
    CACHE("f32", 0)
    {"rmsnorm", oxb_cpu_rmsnorm, oxb_cpu_rmsnorm_need, 3, WRITES(2), sizeof(struct oxb_rmsnorm_args), 2, 0},
    {"residual_add", oxb_cpu_residual_add, oxb_cpu_residual_add_need, 2, WRITES(1),
     sizeof(struct oxb_add_args), 4, 0},
    {"qk_norm_rope", oxb_cpu_qk_norm_rope, oxb_cpu_qk_norm_rope_need, 5, WRITES(0),
     sizeof(struct oxb_qk_norm_rope_args), 8, 0},
    {"attention_combine", oxb_cpu_combine, oxb_cpu_combine_need, 2, WRITES(1), sizeof(struct oxb_combine_args),
     8, 0},
    {"argmax", oxb_cpu_argmax, oxb_cpu_argmax_need, 2, WRITES(1), sizeof(struct oxb_argmax_args), 1, 0},
    {"advance", oxb_cpu_advance, oxb_cpu_advance_need, 3, WRITES(1) | WRITES(2),
     sizeof(struct oxb_advance_args), 1, 0},
};

const oxb_cpu_kernel *oxb_cpu_find(const char *name)
{
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++)
        if (strcmp(kernels[i].name, name) == 0)
            return &kernels[i];
    return NULL;
}
