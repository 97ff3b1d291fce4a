/* Vectors as 8-bit integers, and rows of a matrix in panels times them: a variant's kernels over
 * strips. */
#include "cpu/panels.h"

#define LANES  CPU_LANES
#define PIECE  CPU_FLUSH /* weights of a row that are expanded to bytes at once */
#define STRIPS 2u        /* that share a vector as it is loaded */

_Static_assert(STRIPS *LANES *PIECE <= CPU_TABLES, "the bytes of some strips must fit the scratch");
_Static_assert(CPU_INT8_ROWS % (STRIPS * LANES) == 0, "rows come in whole strips");

uint64_t cpu_quantize_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_quantize_args *a = args;
    (void)kernel;
    if (a->group_size == 0 || a->group_size % CPU_INT8_BLOCK != 0 || a->k % a->group_size != 0)
        return CPU_BAD_ARGS;
    return cpu_mul(a->n_vectors,
                   binding == 0 ? (uint64_t)a->k * 4 : cpu_int8_bytes(a->k, a->group_size));
}

/* Threadgroups count vectors. */
void cpu_quantize(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_quantize_args *a = call->args;
    for (uint64_t v = first; v < last && v < a->n_vectors; v++)
        call->isa->int8->quantize(
            (const float *)call->bindings[0].address + v * a->k, a->k, a->group_size,
            (char *)call->bindings[1].address + v * cpu_int8_bytes(a->k, a->group_size));
}

/* Some strips side by side, all of k, to out[v * stride ...]. */
static void multiply_strips(const cpu_int8_kernels *kernels, const cpu_panels *p,
                            const cpu_matrix *m, uint64_t strip, uint32_t n_strips, uint32_t *bytes,
                            double *out, uint64_t stride) {
    const uint64_t step = PIECE / p->group_size;
    const uint64_t strip_words = PIECE / 4 * LANES;
    const char *scales = m->quantized + m->k;
    const char *sums = scales + m->k / CPU_INT8_BLOCK * sizeof(float);
    for (uint64_t group = 0; group < p->n_groups; group += step) {
        const uint64_t count = p->n_groups - group < step ? p->n_groups - group : step;
        const uint64_t at = cpu_strip_at(p, strip, group);
        const uint64_t strips = cpu_panel_strips(p->packing);
        for (uint32_t t = 0; t < n_strips; t++)
            kernels->expand[p->packing](bytes + t * strip_words,
                                        p->codes + (at + t) * p->words * LANES,
                                        p->scales + (at + t) * p->n_scales + LANES, count,
                                        strips * p->words * LANES, p->group_size);
        const cpu_int8_strips job = {.codes = bytes,
                                     .scales = p->scales + at * p->n_scales,
                                     .code_stride = strip_words,
                                     .strip_scales = p->n_scales,
                                     .scale_stride = strips * p->n_scales,
                                     .q = (const int8_t *)m->quantized + group * p->group_size,
                                     .q_scales = (const float *)(const void *)scales +
                                                 group * (p->group_size / CPU_INT8_BLOCK),
                                     .q_sums = (const float *)(const void *)sums + group,
                                     .q_stride = cpu_int8_bytes(m->k, p->group_size),
                                     .n_groups = count,
                                     .group_size = p->group_size,
                                     .n_strips = n_strips,
                                     .n_vectors = m->n_vectors,
                                     .stride = stride,
                                     .add = group > 0};
        kernels->rows(&job, out);
    }
}

cpu_sums cpu_int8_rows(const cpu_call *call, const cpu_matrix *m, const uint64_t *first,
                       uint32_t n_parts, uint64_t n, double *out, uint32_t *bytes) {
    const cpu_panels p =
        cpu_panels_at(m->weight, m->codes_offset, m->format, call->kernel->layout, m->k);
    const uint64_t part_stride = CPU_INT8_ROWS + 2 * LANES;
    cpu_sums sums = {.stride = n_parts * part_stride};
    for (uint32_t part = 0; part < n_parts; part++) {
        const uint64_t first_strip = first[part] / LANES,
                       last_strip = (first[part] + n - 1) / LANES + 1;
        double *of_part = out + part * part_stride;
        for (uint64_t strip = first_strip, some; strip < last_strip; strip += some) {
            /* A pair does not reach over the end of a panel, whose strips are an even number. */
            some = last_strip - strip < STRIPS - strip % STRIPS ? last_strip - strip
                                                                : STRIPS - strip % STRIPS;
            multiply_strips(call->isa->int8, &p, m, strip, (uint32_t)some, bytes,
                            of_part + (strip - first_strip) * LANES, sums.stride);
        }
        of_part += first[part] % LANES;
        cpu_repair_rows(&p, m, first[part], n, of_part, sums.stride);
        sums.part[part] = of_part;
    }
    return sums;
}
