/* The cpu driver: what its files share.
 *
 * One thread runs a threadgroup. A kernel computes every element in an order that does not depend
 * on how the threadgroups are spread over threads, so results have the same bits for any number of
 * them.
 */
#ifndef CPU_H
#define CPU_H

#include <stddef.h>
#include <stdint.h>

#include "cpu/isa/isa.h"
#include "oxb_args.h"
#include "oxb_driver.h"

#define CPU_ROWS                16u   /* rows of the output in a tile of a matrix kernel */
#define CPU_ELEMENTS            4096u /* elements in a tile of residual_add and of copies */
#define CPU_CHANNELS            256u  /* in a tile of the convolution */
#define CPU_TOKENS              8u    /* tokens in a tile of attention */
#define CPU_SPLIT               512u  /* positions of a split of attention */
#define CPU_MAX_HEAD_DIM        OXB_MAX_HEAD_DIM
#define CPU_MAX_THREADS         1024u
#define CPU_MAX_KERNEL_BINDINGS 7u
#define CPU_BATCH               32u     /* vectors in a tile of a batched product; in int8 all */
#define CPU_TABLES              393216u /* bytes of tables: they stay in the second-level cache */
#define CPU_SCRATCH             (CPU_TABLES + 69632u) /* bytes per thread, aligned to 64 */
#define CPU_SHARE               32768u /* bytes to work on that are worth a thread of their own */
#define CPU_BAD_ARGS            OXB_BAD_ARGS

/* The layouts of weights beside the plain one: panels.h. */
enum { CPU_LAYOUT_PANELS = 1, CPU_LAYOUT_TRITS = 2, CPU_LAYOUT_DIGITS = 3 };

/* Clang contracts a * b + c by default and gcc does not under -std=c11: both round twice here. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

typedef struct cpu_span {
    void *address;
    uint64_t length; /* bytes from the address to the buffer's end */
} cpu_span;

struct cpu_kernel;

typedef struct cpu_call {
    const struct cpu_kernel *kernel;
    cpu_span bindings[CPU_MAX_KERNEL_BINDINGS];
    const void *args;
    const cpu_isa *isa;
    void *scratch; /* CPU_SCRATCH bytes of the running thread */
    int again;     /* the scratch is as this thread left it in this very dispatch */
} cpu_call;

/* Run threadgroups [first, last). Those past the end of the output do nothing. */
typedef void cpu_run_fn(const cpu_call *call, uint64_t first, uint64_t last);
/* The bytes that `binding` must hold, or CPU_BAD_ARGS. What depends on device memory, such as
 * the position in the decode state, is checked by the kernel when it runs. */
typedef uint64_t cpu_need_fn(const struct cpu_kernel *kernel, const void *args, uint32_t binding);

typedef struct cpu_kernel {
    const char *name;
    cpu_run_fn *run;
    cpu_need_fn *need;
    uint32_t n_bindings;
    uint32_t written; /* bit i: binding i is written */
    uint32_t args_size;
    uint32_t grain; /* the fewest threadgroups worth a thread of their own */
    uint32_t
        format; /* oxb_device_format of the matrix kernels; oxb_kv_format of the cache kernels */
    uint32_t layout; /* of the matrix */
    int int8;        /* whether the vectors are int8 */
} cpu_kernel;

/* One dispatch, ready to run. */
typedef struct cpu_step {
    cpu_call call;
    uint64_t groups; /* threadgroups */
    uint64_t worth;  /* the most threads that the step is worth */
} cpu_step;

/* Run the steps in order on up to `threads` threads, the caller's included; returns when all is
 * done. */
void cpu_pool_run(const cpu_step *steps, uint32_t n, uint32_t threads);

/* geometry.c */
void cpu_abilities(const cpu_isa *isa, oxb_abilities *abilities);
void cpu_tile(oxb_op op, const oxb_op_shape *shape, oxb_tile *tile);
/* 0 where a matrix is multiplied by so many vectors in float32. */
uint64_t cpu_int8_vector_bytes(const cpu_isa *isa, uint32_t format, uint32_t layout, uint64_t k,
                               uint64_t n_vectors);

/* machine.c */
uint32_t cpu_count(void); /* CPUs this process may use; performance cores on macOS */
uint64_t cpu_memory(void);
void cpu_brand(char *name, size_t size);

/* a * b, or UINT64_MAX where that does not fit. */
static inline uint64_t cpu_mul(uint64_t a, uint64_t b) {
    return b != 0 && a > UINT64_MAX / b ? UINT64_MAX : a * b;
}

static inline uint64_t cpu_add(uint64_t a, uint64_t b) {
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

/* Bytes of one scale group's codes, the scale included only where it is stored among them (q8_0).
 */
static inline uint64_t cpu_group_bytes(uint32_t format) {
    static const uint8_t bytes[OXB_DEVICE_FORMAT_COUNT] = {
#define X(id, name, bits, group_size, coded, scale_bytes, code_bytes) code_bytes,
        OXB_DEVICE_FORMATS(X)
#undef X
    };
    return bytes[format];
}

static inline uint32_t cpu_group(uint32_t format) {
    static const uint8_t group[OXB_DEVICE_FORMAT_COUNT] = {
#define X(id, name, bits, group_size, coded, scale_bytes, code_bytes) group_size,
        OXB_DEVICE_FORMATS(X)
#undef X
    };
    return group[format];
}

/* Bytes of one scale group before the codes; 0 where no scales lie apart. */
static inline uint64_t cpu_scale_bytes(uint32_t format) {
    static const uint8_t bytes[OXB_DEVICE_FORMAT_COUNT] = {
#define X(id, name, bits, group_size, coded, scale_bytes, code_bytes) scale_bytes,
        OXB_DEVICE_FORMATS(X)
#undef X
    };
    return bytes[format];
}

/* Whether the scales lie apart, before the codes. */
static inline int cpu_has_scales(uint32_t format) { return cpu_scale_bytes(format) != 0; }

/* Bytes of the buffer of a kernel's n_rows x k matrix. */
uint64_t cpu_weight_bytes(const cpu_kernel *kernel, uint64_t codes_offset, uint64_t n_rows,
                          uint64_t k);

/* What is multiplied: rows of W by vectors that are k apart. */
typedef struct cpu_matrix {
    const uint8_t *weight;
    uint64_t codes_offset;
    uint64_t k;
    const float *x;
    const char *quantized; /* the same vectors as int8, cpu_int8_bytes() apart; else NULL */
    uint32_t n_vectors;
    uint32_t format;
} cpu_matrix;

#define CPU_TABLE_ROWS 2048u /* rows that share one set of tables, the most */

/* One vector, n rows of each part, n_parts * n <= CPU_TABLE_ROWS: sums[p * n + i] is row (first[p]
 * + i).
 */
void cpu_codes_rows(const cpu_matrix *m, const uint64_t *first, uint32_t n_parts, uint64_t n,
                    double *sums, void *scratch);
/* The same of t1_g128. */
void cpu_digits_rows(const cpu_matrix *m, const uint64_t *first, uint32_t n_parts, uint64_t n,
                     double *sums, void *scratch);
/* Code i, 0 to 2, of a scale group of t1_g128: `scale` and `codes` are those of the group. */
static inline unsigned cpu_digit_of(const uint8_t *scale, const uint8_t *codes, unsigned i) {
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    const unsigned load = i / 64, run = i % 64 / 16, at = i % 16;
    if (at == 15) return scale[2 + load] >> 2 * run & 3u;
    const unsigned b = at < 12 ? at / 4 : at - 12, digit = at < 12 ? at % 4 : 4;
    return (codes[12 * load + 4 * b + run] * power[digit] & 0xffu) * 3u >> 8;
}
/* Weights [first, first + n) of a row; for Q8_0 both are multiples of 32. */
void cpu_dense_weights(uint32_t format, const uint8_t *row, uint64_t first, uint64_t n, float *w);

cpu_run_fn cpu_gemv, cpu_gemv_residual, cpu_swiglu, cpu_gemm, cpu_gemm_residual, cpu_swiglu_gemm,
    cpu_quantize, cpu_embed, cpu_rmsnorm, cpu_residual_add, cpu_bias_add, cpu_qk_norm_rope,
    cpu_kv_store, cpu_attention, cpu_combine, cpu_argmax_blocks, cpu_argmax, cpu_advance,
    cpu_sample_blocks, cpu_sample_choose, cpu_conv, cpu_delta_rule, cpu_gate, cpu_hadamard_rotate,
    cpu_copy;
cpu_need_fn cpu_gemv_need, cpu_swiglu_need, cpu_gemm_need, cpu_swiglu_gemm_need, cpu_quantize_need,
    cpu_embed_need, cpu_rmsnorm_need, cpu_residual_add_need, cpu_bias_add_need,
    cpu_qk_norm_rope_need, cpu_kv_store_need, cpu_attention_need, cpu_combine_need,
    cpu_argmax_blocks_need, cpu_argmax_need, cpu_advance_need, cpu_sample_blocks_need,
    cpu_sample_choose_need, cpu_conv_need, cpu_delta_rule_need, cpu_gate_need, cpu_hadamard_need,
    cpu_copy_need;

/* NULL for a name that does not ship. */
const cpu_kernel *cpu_find(const char *name);

#endif
