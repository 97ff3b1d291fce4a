/* The kernels that multiply a weight matrix by a vector, for every format. */
#include "oxb_cpu.h"
#include "panels.h"

/* Before the tables in the scratch. A part of a matrix in panels may start and end inside a tile. */
#define SUMS_BYTES ((OXB_CPU_TILE + 2 * 2 * OXB_CPU_LANES) * sizeof(double))

_Static_assert(SUMS_BYTES + OXB_CPU_TABLES <= OXB_CPU_SCRATCH, "sums and tables must fit the scratch");
_Static_assert(SUMS_BYTES % 64 == 0, "tables start on a cache line");

uint64_t oxb_cpu_weight_bytes(const oxb_cpu_kernel *kernel, uint64_t codes_offset, uint64_t n_rows,
                              uint64_t k)
{
    const uint32_t format = kernel->format;
    const uint64_t group = oxb_cpu_group(format);
    if (n_rows == 0 || k == 0 || k % group != 0)
        return OXB_CPU_BAD_ARGS;
    if (kernel->layout != OXB_LAYOUT_PLAIN) {
        uint64_t expected;
        const oxb_cpu_code code = oxb_cpu_panel_code(format, kernel->layout);
        const uint64_t bytes = oxb_cpu_panel_bytes(code, group, n_rows, k, &expected);
        return codes_offset == expected ? bytes : OXB_CPU_BAD_ARGS;
    }
    const uint64_t groups = oxb_cpu_mul(n_rows, k / group);
    if (oxb_cpu_has_scales(format) && oxb_cpu_mul(groups, 2) > codes_offset)
        return OXB_CPU_BAD_ARGS;
    return oxb_cpu_add(codes_offset, oxb_cpu_mul(groups, oxb_cpu_group_bytes(format)));
}

uint64_t oxb_cpu_gemv_need(const oxb_cpu_kernel *kernel, const void *args, uint32_t binding)
{
    const struct oxb_gemv_args *a = args;
    switch (binding) {
    case 0:
        return oxb_cpu_weight_bytes(kernel, a->codes_offset, a->n_rows, a->k);
    case 1:
        return (uint64_t)a->k * 4;
    default:
        return (uint64_t)a->n_rows * 4;
    }
}

uint64_t oxb_cpu_swiglu_need(const oxb_cpu_kernel *kernel, const void *args, uint32_t binding)
{
    const struct oxb_gemv_args *a = args;
    if (binding == 0)
        return oxb_cpu_weight_bytes(kernel, a->codes_offset, 2 * (uint64_t)a->n_rows, a->k);
    return (uint64_t)(binding == 1 ? a->k : a->n_rows) * 4;
}

/* The rows of one or two parts of a matrix, n of each: sums[p][i] is row (first[p] + i) times x. `again`:
 * the scratch has seen the same x in the last call. */
static void rows_of_parts(const oxb_cpu_call *call, const oxb_cpu_matrix *m, const uint64_t *first,
                          uint32_t n_parts, uint64_t n, int again, const double **sums)
{
    double *out = call->scratch;
    void *tables = (char *)call->scratch + SUMS_BYTES;
    if (call->kernel->layout != OXB_LAYOUT_PLAIN) {
        oxb_cpu_panel_rows(call, m, first, n_parts, n, again, out, tables, sums);
        return;
    }
    for (uint32_t part = 0; part < n_parts; part++)
        sums[part] = out + part * n;
    if (oxb_cpu_has_scales(m->format)) {
        oxb_cpu_codes_rows(m, first, n_parts, n, out, tables);
        return;
    }
    const uint64_t stride = m->k / oxb_cpu_group(m->format) * oxb_cpu_group_bytes(m->format);
    for (uint32_t part = 0; part < n_parts; part++)
        call->isa->dense(m->format, m->weight + m->codes_offset + first[part] * stride, stride, n, m->x, m->k,
                         out + part * n);
}

/* Bounds of the rows in groups [first, last), a tile at a time: the rows from `row`, 0 at the end. */
static uint64_t tile_rows(uint64_t row, uint64_t last_group, uint64_t n_rows, uint64_t tile)
{
    const uint64_t end = last_group < n_rows / OXB_CPU_ROWS + 1 ? last_group * OXB_CPU_ROWS : n_rows;
    const uint64_t last = end < n_rows ? end : n_rows;
    const uint64_t rest = row < last ? last - row : 0;
    return rest < tile ? rest : tile;
}

uint64_t oxb_cpu_gemm_need(const oxb_cpu_kernel *kernel, const void *args, uint32_t binding)
{
    const struct oxb_gemm_args *a = args;
    if (a->n_vectors == 0 || a->y_stride < a->n_rows)
        return OXB_CPU_BAD_ARGS;
    switch (binding) {
    case 0:
        return oxb_cpu_weight_bytes(kernel, a->codes_offset, a->n_rows, a->k);
    case 1:
        return oxb_cpu_mul((uint64_t)a->n_vectors * 4, a->k);
    default:
        return oxb_cpu_mul(oxb_cpu_add(oxb_cpu_mul(a->n_vectors - 1, a->y_stride), a->n_rows), 4);
    }
}

uint64_t oxb_cpu_swiglu_gemm_need(const oxb_cpu_kernel *kernel, const void *args, uint32_t binding)
{
    const struct oxb_gemm_args *a = args;
    if (binding == 0)
        return oxb_cpu_weight_bytes(kernel, a->codes_offset, 2 * (uint64_t)a->n_rows, a->k);
    return oxb_cpu_gemm_need(kernel, args, binding);
}

typedef enum epilogue { STORE, ADD, SWIGLU } epilogue;

/* The output of one vector for the rows of groups [first, last). */
static inline void product(const oxb_cpu_call *call, const oxb_cpu_matrix *m, float *y, uint64_t n_rows,
                           uint64_t first, uint64_t last, epilogue then, int again)
{
    const uint64_t tile = then == SWIGLU ? OXB_CPU_TILE / 2 : OXB_CPU_TILE;
    const double *sums[2];
    if (first > n_rows / OXB_CPU_ROWS)
        return;
    uint64_t n;
    for (uint64_t row = first * OXB_CPU_ROWS; (n = tile_rows(row, last, n_rows, tile)) != 0; row += n) {
        const uint64_t parts[2] = {row, n_rows + row};
        rows_of_parts(call, m, parts, then == SWIGLU ? 2 : 1, n, again, sums);
        again = 1;
        if (then == SWIGLU)
            call->isa->swiglu(sums[0], sums[1], y + row, n);
        else
            for (uint64_t i = 0; i < n; i++)
                y[row + i] = (float)(then == ADD ? (double)y[row + i] + sums[0][i] : sums[0][i]);
    }
}

static inline void vector_product(const oxb_cpu_call *call, uint64_t first, uint64_t last, epilogue then)
{
    const struct oxb_gemv_args *a = call->args;
    const oxb_cpu_matrix m = {.weight = call->bindings[0].address,
                              .codes_offset = a->codes_offset,
                              .k = a->k,
                              .x = call->bindings[1].address,
                              .format = call->kernel->format};
    product(call, &m, call->bindings[2].address, a->n_rows, first, last, then, call->again);
}

/* Vector by vector: what a table costs is the activations' and not the weights'. */
static inline void matrix_product(const oxb_cpu_call *call, uint64_t first, uint64_t last, epilogue then)
{
    const struct oxb_gemm_args *a = call->args;
    for (uint64_t v = 0; v < a->n_vectors; v++) {
        const oxb_cpu_matrix m = {.weight = call->bindings[0].address,
                                  .codes_offset = a->codes_offset,
                                  .k = a->k,
                                  .x = (const float *)call->bindings[1].address + v * a->k,
                                  .format = call->kernel->format};
        product(call, &m, (float *)call->bindings[2].address + v * a->y_stride, a->n_rows, first, last, then,
                0);
    }
}

void oxb_cpu_gemv(const oxb_cpu_call *call, uint64_t first, uint64_t last)
{
    vector_product(call, first, last, STORE);
}

void oxb_cpu_gemv_residual(const oxb_cpu_call *call, uint64_t first, uint64_t last)
{
    vector_product(call, first, last, ADD);
}

void oxb_cpu_swiglu(const oxb_cpu_call *call, uint64_t first, uint64_t last)
{
    vector_product(call, first, last, SWIGLU);
}

void oxb_cpu_gemm(const oxb_cpu_call *call, uint64_t first, uint64_t last)
{
    matrix_product(call, first, last, STORE);
}

void oxb_cpu_gemm_residual(const oxb_cpu_call *call, uint64_t first, uint64_t last)
{
    matrix_product(call, first, last, ADD);
}

void oxb_cpu_swiglu_gemm(const oxb_cpu_call *call, uint64_t first, uint64_t last)
{
    matrix_product(call, first, last, SWIGLU);
}
