/* Rows of a matrix in panels times a vector: a variant's kernels over the panels and parts of k. */
#include <math.h>

#include "panels.h"

/* Groups whose tables are made at once; a multiple of what is added in float32. */
static uint64_t groups_of_tables(oxb_cpu_code code, uint32_t group)
{
    static const uint64_t weights[OXB_CPU_CODE_COUNT] = {16384, 8192, 6144};
    return weights[code] / group;
}

/* A row with an infinite or NaN scale or result: scale * sum(x) is not the sum of (code * scale) * x. */
static double row_by_definition(const oxb_cpu_panels *p, const float *x, uint64_t row)
{
    float weights[128];
    double sum = 0;
    for (uint64_t group = 0; group < p->n_groups; group++, x += p->group) {
        oxb_cpu_panel_weights(p, row, group, weights);
        for (uint32_t i = 0; i < p->group; i++)
            sum += (double)weights[i] * x[i];
    }
    return sum;
}

static void add_tiles(const oxb_cpu_code_kernels *kernels, const oxb_cpu_panels *p, uint64_t group,
                      uint64_t n_groups, uint64_t first, uint64_t last, const float *tables, double *out)
{
    for (uint64_t tile = first; tile < last;) {
        const uint64_t tiles_of_panel = oxb_cpu_panel_tiles(p->code);
        const uint64_t rest = tiles_of_panel - tile % tiles_of_panel;
        const uint64_t n = last - tile < rest ? last - tile : rest;
        const uint64_t at = oxb_cpu_tile_at(p, tile, group);
        const oxb_cpu_tiles tiles = {.scales = p->scales + at * OXB_CPU_LANES,
                                     .codes = p->codes + at * p->words * OXB_CPU_LANES,
                                     .n_groups = n_groups,
                                     .group = p->group,
                                     .n_tiles = (uint32_t)n,
                                     .add = group > 0};
        kernels->rows(&tiles, tables, out + (tile - first) * OXB_CPU_LANES);
        tile += n;
    }
}

void oxb_cpu_panel_rows(const oxb_cpu_call *call, const oxb_cpu_matrix *m, const uint64_t *first,
                        uint32_t n_parts, uint64_t n, int again, double *out, float *tables,
                        const double **sums)
{
    const oxb_cpu_panels p =
        oxb_cpu_panels_at(m->weight, m->codes_offset, m->format, call->kernel->layout, m->k);
    const oxb_cpu_code_kernels *kernels = &call->isa->code[p.code];
    const uint64_t step = groups_of_tables(p.code, p.group);
    const uint64_t stride = n + 2 * OXB_CPU_LANES; /* of the parts in `out` */
    for (uint64_t group = 0; group < p.n_groups; group += step) {
        const uint64_t count = p.n_groups - group < step ? p.n_groups - group : step;
        if (p.n_groups > step || !again)
            kernels->tables(tables, m->x + group * p.group, count, p.group);
        for (uint32_t part = 0; part < n_parts; part++)
            add_tiles(kernels, &p, group, count, first[part] / OXB_CPU_LANES,
                      (first[part] + n - 1) / OXB_CPU_LANES + 1, tables, out + part * stride);
    }
    for (uint32_t part = 0; part < n_parts; part++) {
        double *of_part = out + part * stride + first[part] % OXB_CPU_LANES;
        for (uint64_t i = 0; i < n; i++)
            if (!isfinite(of_part[i]))
                of_part[i] = row_by_definition(&p, m->x, first[part] + i);
        sums[part] = of_part;
    }
}
