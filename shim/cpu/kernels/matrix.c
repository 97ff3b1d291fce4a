/* The kernels that multiply a weight matrix by vectors, for every format. */
#include "cpu/cpu.h"
#include "cpu/panels.h"

/* A part of a matrix in panels may start and end inside a strip. */
#define SUMS (CPU_MOST_TOGETHER * (CPU_TABLE_ROWS + 2 * 2 * CPU_LANES))

typedef struct matrix_scratch {
    _Alignas(64) uint64_t
        first_vector; /* whose tables these are, from one call of a dispatch to the next */
    _Alignas(64) double sums[SUMS];
    _Alignas(64) unsigned char tables[CPU_TABLES];
} matrix_scratch;

_Static_assert(sizeof(matrix_scratch) <= CPU_SCRATCH, "sums and tables must fit the scratch");
_Static_assert(2 * (CPU_INT8_ROWS + 2 * CPU_LANES) * CPU_INT8_VECTORS <= SUMS,
               "the rows of int8 vectors must fit the sums");

uint64_t cpu_weight_bytes(const cpu_kernel *kernel, uint64_t codes_offset, uint64_t n_rows,
                          uint64_t k) {
    const uint32_t format = kernel->format;
    const uint64_t group = cpu_group(format);
    if (n_rows == 0 || k == 0 || k % group != 0) return CPU_BAD_ARGS;
    if (kernel->layout != OXB_LAYOUT_PLAIN) {
        uint64_t expected;
        const cpu_packing packing = cpu_panel_packing(format, kernel->layout);
        const uint64_t bytes = cpu_panel_bytes(packing, group, n_rows, k, &expected);
        return codes_offset == expected ? bytes : CPU_BAD_ARGS;
    }
    const uint64_t groups = cpu_mul(n_rows, k / group);
    if (cpu_mul(groups, cpu_scale_bytes(format)) > codes_offset) return CPU_BAD_ARGS;
    return cpu_add(codes_offset, cpu_mul(groups, cpu_group_bytes(format)));
}

uint64_t cpu_gemv_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_gemv_args *a = args;
    switch (binding) {
    case 0: return cpu_weight_bytes(kernel, a->codes_offset, a->n_rows, a->k);
    case 1: return (uint64_t)a->k * 4;
    default: return (uint64_t)a->n_rows * 4;
    }
}

uint64_t cpu_swiglu_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_gemv_args *a = args;
    if (binding == 0)
        return cpu_weight_bytes(kernel, a->codes_offset, 2 * (uint64_t)a->n_rows, a->k);
    return (uint64_t)(binding == 1 ? a->k : a->n_rows) * 4;
}

/* The rows of one or two parts of a matrix, n of each, times m's vectors. `again`: the scratch has
 * seen the same vectors in the last call. */
static cpu_sums rows_of_parts(const cpu_call *call, const cpu_matrix *m, const uint64_t *first,
                              uint32_t n_parts, uint64_t n, int again) {
    matrix_scratch *scratch = call->scratch;
    double *out = scratch->sums;
    void *tables = scratch->tables;
    if (m->quantized != NULL) return cpu_int8_rows(call, m, first, n_parts, n, out, tables);
    if (call->kernel->layout != OXB_LAYOUT_PLAIN)
        return cpu_panel_rows(call, m, first, n_parts, n, again, out, tables);
    cpu_sums sums = {{out, out + n}, 0}; /* of one vector */
    if (m->format == OXB_DEVICE_FORMAT_T1_G128) {
        cpu_digits_rows(m, first, n_parts, n, out, tables);
        return sums;
    }
    if (cpu_has_scales(m->format)) {
        cpu_codes_rows(m, first, n_parts, n, out, tables);
        return sums;
    }
    const uint64_t stride = m->k / cpu_group(m->format) * cpu_group_bytes(m->format);
    for (uint32_t part = 0; part < n_parts; part++)
        call->isa->f32->dense(m->format, m->weight + m->codes_offset + first[part] * stride, stride,
                              n, m->x, m->k, out + part * n);
    return sums;
}

/* How many of the rows from `row` on go together, 0 past those of threadgroup `last` - 1. */
static uint64_t rows_together(uint64_t row, uint64_t last, uint64_t n_rows, uint64_t most) {
    const uint64_t covered = last < n_rows / CPU_ROWS + 1 ? last * CPU_ROWS : n_rows;
    const uint64_t end = covered < n_rows ? covered : n_rows;
    const uint64_t rest = row < end ? end - row : 0;
    return rest < most ? rest : most;
}

/* Bindings: weight, x, y; in int8 the quantised x before y. */
uint64_t cpu_gemm_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_gemm_args *a = args;
    if (a->n_vectors == 0 || a->y_stride < a->n_rows) return CPU_BAD_ARGS;
    if (binding == 0) return cpu_weight_bytes(kernel, a->codes_offset, a->n_rows, a->k);
    if (binding == 1) return cpu_mul((uint64_t)a->n_vectors * 4, a->k);
    if (binding + 1 < kernel->n_bindings)
        return cpu_mul(a->n_vectors, cpu_int8_bytes(a->k, cpu_group(kernel->format)));
    return cpu_mul(cpu_add(cpu_mul(a->n_vectors - 1, a->y_stride), a->n_rows), 4);
}

uint64_t cpu_swiglu_gemm_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_gemm_args *a = args;
    if (binding == 0)
        return cpu_weight_bytes(kernel, a->codes_offset, 2 * (uint64_t)a->n_rows, a->k);
    return cpu_gemm_need(kernel, args, binding);
}

typedef enum epilogue { STORE, ADD, SWIGLU } epilogue;

/* The output of some vectors, as many as a kernel takes at once, for the rows of
 * threadgroups [first, last). */
static inline void product(const cpu_call *call, const cpu_matrix *m, float *y, uint64_t y_stride,
                           uint64_t n_rows, uint64_t first, uint64_t last, epilogue then,
                           int again) {
    const uint64_t of_tables = then == SWIGLU ? CPU_TABLE_ROWS / 2 : CPU_TABLE_ROWS;
    const uint64_t most = m->quantized != NULL ? CPU_INT8_ROWS : of_tables;
    if (first > n_rows / CPU_ROWS) return;
    uint64_t n;
    for (uint64_t row = first * CPU_ROWS; (n = rows_together(row, last, n_rows, most)) != 0;
         row += n) {
        const uint64_t parts[2] = {row, n_rows + row};
        const cpu_sums sums = rows_of_parts(call, m, parts, then == SWIGLU ? 2 : 1, n, again);
        again = 1;
        for (uint64_t v = 0; v < m->n_vectors; v++) {
            const double *sum = sums.part[0] + v * sums.stride;
            float *to = y + v * y_stride + row;
            if (then == SWIGLU)
                call->isa->f32->swiglu(sum, sums.part[1] + v * sums.stride, to, n);
            else
                for (uint64_t i = 0; i < n; i++)
                    to[i] = (float)(then == ADD ? (double)to[i] + sum[i] : sum[i]);
        }
    }
}

static inline void vector_product(const cpu_call *call, uint64_t first, uint64_t last,
                                  epilogue then) {
    const struct oxb_gemv_args *a = call->args;
    const cpu_matrix m = {.weight = call->bindings[0].address,
                          .codes_offset = a->codes_offset,
                          .k = a->k,
                          .x = call->bindings[1].address,
                          .n_vectors = 1,
                          .format = call->kernel->format};
    product(call, &m, call->bindings[2].address, 0, a->n_rows, first, last, then, call->again);
}

/* How many of the `left` vectors go together. */
static uint32_t together(const cpu_kernel *kernel, uint64_t left) {
    if (kernel->int8) return left < CPU_INT8_VECTORS ? (uint32_t)left : CPU_INT8_VECTORS;
    if (kernel->layout == OXB_LAYOUT_PLAIN) return 1;
    return left >= CPU_MOST_TOGETHER ? CPU_MOST_TOGETHER : left >= 2 ? 2 : 1;
}

/* Some vectors [from, to) times the rows of threadgroups [first, last). */
static inline void batch_product(const cpu_call *call, uint64_t from, uint64_t to, uint64_t first,
                                 uint64_t last, epilogue then, int again) {
    const struct oxb_gemm_args *a = call->args;
    const cpu_kernel *kernel = call->kernel;
    matrix_scratch *scratch = call->scratch;
    const uint64_t bytes = cpu_int8_bytes(a->k, cpu_group(kernel->format));
    cpu_matrix m = {.weight = call->bindings[0].address,
                    .codes_offset = a->codes_offset,
                    .k = a->k,
                    .format = kernel->format};
    for (uint64_t v = from; v < to; v += m.n_vectors) {
        m.n_vectors = together(kernel, to - v);
        m.x = (const float *)call->bindings[1].address + v * a->k;
        m.quantized = kernel->int8 ? (const char *)call->bindings[2].address + v * bytes : NULL;
        product(call, &m, (float *)call->bindings[kernel->n_bindings - 1].address + v * a->y_stride,
                a->y_stride, a->n_rows, first, last, then, again && scratch->first_vector == v);
        scratch->first_vector = v;
        again = 1;
    }
}

/* Threadgroups count tiles of rows, then tiles of vectors. */
static inline void matrix_product(const cpu_call *call, uint64_t first, uint64_t last,
                                  epilogue then) {
    const struct oxb_gemm_args *a = call->args;
    const uint64_t row_tiles = (a->n_rows + CPU_ROWS - 1) / CPU_ROWS;
    const uint64_t batch = call->kernel->int8 ? a->n_vectors : CPU_BATCH;
    int again = call->again;
    while (first < last && first / row_tiles * batch < a->n_vectors) {
        const uint64_t from = first / row_tiles * batch, row_tile = first % row_tiles;
        const uint64_t n =
            last - first < row_tiles - row_tile ? last - first : row_tiles - row_tile;
        batch_product(call, from, a->n_vectors - from < batch ? a->n_vectors : from + batch,
                      row_tile, row_tile + n, then, again);
        again = 1;
        first += n;
    }
}

void cpu_gemv(const cpu_call *call, uint64_t first, uint64_t last) {
    vector_product(call, first, last, STORE);
}

void cpu_gemv_residual(const cpu_call *call, uint64_t first, uint64_t last) {
    vector_product(call, first, last, ADD);
}

void cpu_swiglu(const cpu_call *call, uint64_t first, uint64_t last) {
    vector_product(call, first, last, SWIGLU);
}

void cpu_gemm(const cpu_call *call, uint64_t first, uint64_t last) {
    matrix_product(call, first, last, STORE);
}

void cpu_gemm_residual(const cpu_call *call, uint64_t first, uint64_t last) {
    matrix_product(call, first, last, ADD);
}

void cpu_swiglu_gemm(const cpu_call *call, uint64_t first, uint64_t last) {
    matrix_product(call, first, last, SWIGLU);
}
