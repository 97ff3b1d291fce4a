/* Rows of a matrix in panels times vectors: a variant's kernels over the panels, some scale groups
 * at a time. */
#include <math.h>

#include "cpu/panels.h"

/* Scale groups whose tables are built at once; a multiple of what is added in float32. */
static uint64_t groups_of_tables(const cpu_panels *p, uint32_t n_vectors) {
    static const uint64_t weights[CPU_PACKING_COUNT] = {24576, 12288, 16384, 8192};
    const uint64_t each = weights[p->packing] / n_vectors;
    return each / CPU_FLUSH * CPU_FLUSH / p->group_size;
}

/* A row with an infinite or NaN scale or result: scale * sum(x) is not the sum of (code * scale) *
 * x. */
static double row_by_definition(const cpu_panels *p, const float *x, uint64_t row) {
    float weights[128];
    double sum = 0;
    for (uint64_t group = 0; group < p->n_groups; group++, x += p->group_size) {
        cpu_panel_weights(p, row, group, weights);
        for (uint32_t i = 0; i < p->group_size; i++) sum += (double)weights[i] * x[i];
    }
    return sum;
}

/* Eight at a time, since one after another would cost as much as a small product. */
static int all_finite(const double *x, uint64_t n) {
    double zero[8] = {0};
    uint64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (unsigned j = 0; j < 8; j++) zero[j] += x[i + j] * 0.0;
    for (; i < n; i++) zero[0] += x[i] * 0.0;
    return ((zero[0] + zero[1]) + (zero[2] + zero[3])) +
               ((zero[4] + zero[5]) + (zero[6] + zero[7])) ==
           0;
}

static int has_nan(const float *x, uint64_t k) {
    for (uint64_t i = 0; i < k; i++)
        if (isnan(x[i])) return 1;
    return 0;
}

void cpu_repair_rows(const cpu_panels *p, const cpu_matrix *m, uint64_t first, uint64_t n,
                     double *out, uint64_t stride) {
    for (uint64_t v = 0; v < m->n_vectors; v++, out += stride) {
        if (all_finite(out, n)) continue;
        const float *x = m->x + v * m->k;
        const int nan = has_nan(x, m->k); /* as every row is then: no need to go through them */
        for (uint64_t i = 0; i < n; i++)
            if (!isfinite(out[i])) out[i] = nan ? (double)NAN : row_by_definition(p, x, first + i);
    }
}

/* Strips [first, last) over some scale groups, to out[v * stride ...]. */
static void add_strips(const cpu_packing_kernels *kernels, const cpu_panels *p, uint64_t group,
                       uint64_t n_groups, uint64_t first, uint64_t last, uint32_t n_vectors,
                       const float *tables, double *out, uint64_t stride) {
    const uint64_t strips_of_panel = cpu_panel_strips(p->packing);
    const int streams = cpu_streams();
    for (uint64_t strip = first, n; strip < last; strip += n) {
        const uint64_t rest = strips_of_panel - strip % strips_of_panel;
        n = last - strip < rest ? last - strip : rest;
        const uint64_t at = cpu_strip_at(p, strip, group);
        const cpu_strips strips = {.scales = p->scales + at * p->n_scales,
                                   .codes = p->codes + at * p->words * CPU_LANES,
                                   .n_groups = n_groups,
                                   .group_size = p->group_size,
                                   .n_strips = (uint32_t)n,
                                   .n_vectors = n_vectors,
                                   .stride = stride,
                                   .add = group > 0,
                                   .streams = streams};
        kernels->rows(&strips, tables, out + (strip - first) * CPU_LANES);
    }
}

cpu_sums cpu_panel_rows(const cpu_call *call, const cpu_matrix *m, const uint64_t *first,
                        uint32_t n_parts, uint64_t n, int again, double *out, float *tables) {
    const cpu_panels p =
        cpu_panels_at(m->weight, m->codes_offset, m->format, call->kernel->layout, m->k);
    const cpu_packing_kernels *kernels = &call->isa->f32->packing[p.packing];
    const uint64_t step = groups_of_tables(&p, m->n_vectors);
    const uint64_t part_stride = n + 2 * CPU_LANES;
    cpu_sums sums = {.stride = n_parts * part_stride};
    for (uint64_t group = 0; group < p.n_groups; group += step) {
        const uint64_t count = p.n_groups - group < step ? p.n_groups - group : step;
        for (uint32_t v = 0; v < m->n_vectors && (p.n_groups > step || !again); v++)
            kernels->tables(tables, m->x + v * m->k + group * p.group_size, count, p.group_size, v,
                            m->n_vectors);
        for (uint32_t part = 0; part < n_parts; part++)
            add_strips(kernels, &p, group, count, first[part] / CPU_LANES,
                       (first[part] + n - 1) / CPU_LANES + 1, m->n_vectors, tables,
                       out + part * part_stride, sums.stride);
    }
    for (uint32_t part = 0; part < n_parts; part++) {
        double *of_part = out + part * part_stride + first[part] % CPU_LANES;
        cpu_repair_rows(&p, m, first[part], n, of_part, sums.stride);
        sums.part[part] = of_part;
    }
    return sums;
}
