/* Which row of the table a device runs. */
#include <string.h>

#include "variants.h"

/* Whether the matrix has more loads of codes than the kernels number (shaders/formats.h):
 * 64 GiB of codes and more. */
static int too_large(const oxb_op_shape *shape) {
    const oxb_device_format_info *info = gpu_host->device_format(shape->format);
    return info->coded && shape->n_rows * shape->k / (128 / info->bits) > UINT32_MAX;
}

/* What a row is to a shape on a device; gives its tile where it takes it. */
static gpu_fitness fitness(const gpu_variant *v, const gpu_traits *traits, oxb_op op,
                           const oxb_op_shape *shape, oxb_tile *tile) {
    if (v->op != op || !(v->formats >> shape->format & 1) || v->needs & ~traits->has ||
        too_large(shape))
        return GPU_REFUSED;
    *tile = v->tile;
    return v->fit ? v->fit(traits, shape, tile) : GPU_FAVOURED;
}

/* The default, with its tile. */
static const gpu_variant *favoured(const gpu_traits *traits, oxb_op op, const oxb_op_shape *shape,
                                   oxb_tile *tile) {
    for (unsigned i = 0; i < gpu_table_rows; i++) {
        const gpu_variant *v = gpu_table + i;
        if (v->prefer & traits->has && fitness(v, traits, op, shape, tile) == GPU_FAVOURED)
            return v;
    }
    return NULL;
}

static const gpu_variant *named(const gpu_traits *traits, oxb_op op, const oxb_op_shape *shape,
                                oxb_tile *tile) {
    for (unsigned i = 0; i < gpu_table_rows; i++) {
        const gpu_variant *v = gpu_table + i;
        if (strcmp(v->name, shape->variant) == 0 &&
            fitness(v, traits, op, shape, tile) != GPU_REFUSED)
            return v;
    }
    return NULL;
}

oxb_status gpu_tile(void *device, oxb_op op, const oxb_op_shape *shape, oxb_tile *tile) {
    oxb_tile found;
    const gpu_variant *v = shape->variant ? named(device, op, shape, &found) : NULL;
    if (!v) v = favoured(device, op, shape, &found);
    if (!v && too_large(shape))
        return gpu_host->fail(OXB_ENCODING_FAILED,
                              "%llu x %llu weights: kernels of a GPU take codes of less than 64 "
                              "GiB; divide the matrix, or use Device(\"cpu\")",
                              (unsigned long long)shape->n_rows, (unsigned long long)shape->k);
    if (!v) return OXB_OK; /* the tile stays zeros, which the front refuses by name */
    *tile = found;
    tile->variant = v->name;
    if (shape->layout == GPU_LAYOUT_COLUMNS) tile->column = (uint32_t)shape->n_rows;
    return OXB_OK;
}

uint32_t gpu_variants(void *device, oxb_op op, const oxb_op_shape *shape,
                      const char *names[OXB_MAX_VARIANTS]) {
    oxb_tile unused;
    const gpu_variant *first = favoured(device, op, shape, &unused);
    uint32_t n = 0;
    if (!first || !first->name[0]) return 0;
    names[n++] = first->name;
    for (unsigned i = 0; i < gpu_table_rows && n < OXB_MAX_VARIANTS; i++) {
        const gpu_variant *v = gpu_table + i;
        if (v != first && fitness(v, device, op, shape, &unused) != GPU_REFUSED)
            names[n++] = v->name;
    }
    return n;
}
