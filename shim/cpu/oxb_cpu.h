/* The cpu driver: what its files share. geometry.c takes the two group sizes from here.
 *
 * A threadgroup runs as one thread. A kernel computes every element in an order that does not depend
 * on how the groups are split, so results have the same bits for any number of threads.
 */
#ifndef OXB_CPU_H
#define OXB_CPU_H

#include <stddef.h>
#include <stdint.h>

#include "../oxb_args.h"
#include "../oxb_driver.h"
#include "isa.h"

#define OXB_CPU_ROWS 16u        /* rows of the output per group of a matrix kernel */
#define OXB_CPU_ELEMENTS 4096u  /* elements per group of residual_add */
#define OXB_CPU_TOKENS 8u       /* tokens per group of attention */
#define OXB_CPU_MAX_HEAD_DIM OXB_MAX_HEAD_DIM
#define OXB_CPU_MAX_THREADS 1024u
#define OXB_CPU_MAX_KERNEL_BINDINGS 5u
#define OXB_CPU_BATCH 32u       /* vectors per group of a product of several; all of them in int8 */
#define OXB_CPU_TABLES 393216u  /* bytes of tables: they stay in the second-level cache */
#define OXB_CPU_SCRATCH (OXB_CPU_TABLES + 69632u) /* bytes per thread, aligned to 64 */
#define OXB_CPU_SHARE 32768u /* bytes to work on that are worth a thread of their own */
#define OXB_CPU_BAD_ARGS UINT64_MAX

/* Clang contracts a * b + c by default and gcc does not under -std=c11: both round twice here. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

typedef struct oxb_cpu_span {
    void *address;
    uint64_t length; /* bytes from the address to the buffer's end */
} oxb_cpu_span;

struct oxb_cpu_kernel;

typedef struct oxb_cpu_call {
    const struct oxb_cpu_kernel *kernel;
    oxb_cpu_span bindings[OXB_CPU_MAX_KERNEL_BINDINGS];
    const void *args;
    const oxb_cpu_isa *isa;
    void *scratch; /* OXB_CPU_SCRATCH bytes of the running thread */
    int again;     /* the scratch is as this thread left it in this very dispatch */
} oxb_cpu_call;

/* Run groups [first, last). Groups past the end of the output are empty. */
typedef void oxb_cpu_run_fn(const oxb_cpu_call *call, uint64_t first, uint64_t last);
/* The bytes that `binding` must hold, or OXB_CPU_BAD_ARGS. What depends on device memory, such as
 * the position in the decode state, is checked by the kernel when it runs. */
typedef uint64_t oxb_cpu_need_fn(const struct oxb_cpu_kernel *kernel, const void *args,
                                 uint32_t binding);

typedef struct oxb_cpu_kernel {
    const char *name;
    oxb_cpu_run_fn *run;
    oxb_cpu_need_fn *need;
    uint32_t n_bindings;
    uint32_t written; /* bit i: binding i is written */
    uint32_t args_size;
    uint32_t grain;  /* the fewest groups worth a thread of their own */
    uint32_t format; /* oxb_kernel_format of the matrix kernels; half_cache of the cache kernels */
    uint32_t layout; /* oxb_layout of the matrix */
    int int8;        /* whether the vectors are int8 */
} oxb_cpu_kernel;

/* One dispatch, ready to run. */
typedef struct oxb_cpu_step {
    oxb_cpu_call call;
    uint64_t groups;
    uint64_t worth; /* the most threads that the step is worth */
} oxb_cpu_step;

/* Run the steps in order on up to `threads` threads, the caller's included; returns when all is done. */
void oxb_cpu_pool_run(const oxb_cpu_step *steps, uint32_t n, uint32_t threads);

/* machine.c */
uint32_t oxb_cpu_count(void); /* CPUs this process may use; performance cores on macOS */
uint64_t oxb_cpu_memory(void);
void oxb_cpu_brand(char *name, size_t size);

/* a * b, or UINT64_MAX where that does not fit. */
static inline uint64_t oxb_cpu_mul(uint64_t a, uint64_t b)
{
    return b != 0 && a > UINT64_MAX / b ? UINT64_MAX : a * b;
}

static inline uint64_t oxb_cpu_add(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

/* Bytes of one group's codes, the scale included only where it is stored among them (q8_0). */
static inline uint64_t oxb_cpu_group_bytes(uint32_t format)
{
    static const uint8_t bytes[OXB_KERNEL_FORMAT_COUNT] = {
#define X(id, name, bits, group) (bits) * (group) / 8 + (OXB_KERNEL_##id == OXB_KERNEL_Q8_0 ? 2 : 0),
        OXB_KERNEL_FORMATS(X)
#undef X
    };
    return bytes[format];
}

static inline uint32_t oxb_cpu_group(uint32_t format)
{
    static const uint8_t group[OXB_KERNEL_FORMAT_COUNT] = {
#define X(id, name, bits, group) group,
        OXB_KERNEL_FORMATS(X)
#undef X
    };
    return group[format];
}

/* Whether the scales lie apart, before the codes. */
static inline int oxb_cpu_has_scales(uint32_t format)
{
    return format == OXB_KERNEL_Q1_G128 || format == OXB_KERNEL_Q2_G128 || format == OXB_KERNEL_Q2_G64;
}

/* Bytes of the buffer of a kernel's n_rows x k matrix. */
uint64_t oxb_cpu_weight_bytes(const oxb_cpu_kernel *kernel, uint64_t codes_offset, uint64_t n_rows,
                              uint64_t k);

/* What is multiplied: rows of W by vectors that are k apart. */
typedef struct oxb_cpu_matrix {
    const uint8_t *weight;
    uint64_t codes_offset;
    uint64_t k;
    const float *x;
    const char *quantized; /* the same vectors as int8, oxb_cpu_int8_bytes() apart; else NULL */
    uint32_t n_vectors;
    uint32_t format;
} oxb_cpu_matrix;

#define OXB_CPU_TILE 2048u /* rows that share one set of tables */

/* One vector, n rows of each part, n_parts * n <= OXB_CPU_TILE: sums[p * n + i] is row (first[p] + i). */
void oxb_cpu_codes_rows(const oxb_cpu_matrix *m, const uint64_t *first, uint32_t n_parts, uint64_t n,
                        double *sums, void *scratch);
/* Weights [first, first + n) of a row; for Q8_0 both are multiples of 32. */
void oxb_cpu_dense_weights(uint32_t format, const uint8_t *row, uint64_t first, uint64_t n, float *w);

oxb_cpu_run_fn oxb_cpu_gemv, oxb_cpu_gemv_residual, oxb_cpu_swiglu, oxb_cpu_gemm, oxb_cpu_gemm_residual,
    oxb_cpu_swiglu_gemm, oxb_cpu_quantize, oxb_cpu_embed, oxb_cpu_rmsnorm, oxb_cpu_residual_add, oxb_cpu_qk_norm_rope,
    oxb_cpu_kv_store, oxb_cpu_attention, oxb_cpu_combine, oxb_cpu_argmax_parts, oxb_cpu_argmax,
    oxb_cpu_advance;
oxb_cpu_need_fn oxb_cpu_gemv_need, oxb_cpu_swiglu_need, oxb_cpu_gemm_need, oxb_cpu_swiglu_gemm_need,
    oxb_cpu_quantize_need, oxb_cpu_embed_need, oxb_cpu_rmsnorm_need, oxb_cpu_residual_add_need, oxb_cpu_qk_norm_rope_need,
    oxb_cpu_kv_store_need, oxb_cpu_attention_need, oxb_cpu_combine_need,
    oxb_cpu_argmax_parts_need, oxb_cpu_argmax_need, oxb_cpu_advance_need;

/* NULL for a name that does not ship. */
const oxb_cpu_kernel *oxb_cpu_find(const char *name);

#endif
