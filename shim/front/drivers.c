/* What the front asks a driver about ops and layouts, and the check of its answers: a gap in a
 * driver's tables is an error with its name, before anything divides by it. */
#include <string.h>

#include "front.h"

const char *front_op_name(oxb_op op) {
    static const char *const names[] = {
#define X(id, name) name,
        OXB_OPS(X)
#undef X
    };
    return names[op];
}

oxb_status front_check_driver(const oxb_driver *driver) {
#define REQUIRED(X)  \
    X(device_count)  \
    X(device_open)   \
    X(device_close)  \
    X(device_info)   \
    X(abilities)     \
    X(tile)          \
    X(buffer_new)    \
    X(buffer_wrap)   \
    X(buffer_free)   \
    X(buffer_read)   \
    X(buffer_write)  \
    X(buffer_fill)   \
    X(library_new)   \
    X(library_free)  \
    X(pipeline_new)  \
    X(pipeline_free) \
    X(submit)
    const char *missing = NULL;
    if (!driver->name || !driver->name[0])
        return front_fail(OXB_DEVICE_NOT_FOUND, "a driver's table has no name");
#define X(function) \
    if (!driver->function) missing = #function;
    REQUIRED(X)
#undef X
    /* Functions that are of use in pairs only. */
    if (!driver->weight_layouts != !driver->weight_pack)
        missing = driver->weight_pack ? "weight_layouts" : "weight_pack";
    if (!driver->capture_start != !driver->capture_stop)
        missing = driver->capture_stop ? "capture_start" : "capture_stop";
    if (!missing) return OXB_OK;
    return front_fail(OXB_DEVICE_NOT_FOUND,
                      "driver \"%s\": its table has no function %s: the driver must be corrected",
                      driver->name, missing);
}

oxb_status front_tile(const oxb_device *device, oxb_op op, const oxb_op_shape *shape,
                      oxb_tile *tile) {
    const char *driver = device->driver->name, *name = front_op_name(op);
    memset(tile, 0, sizeof *tile);
    oxb_status status = device->driver->tile(device->impl, op, shape, tile);
    if (status != OXB_OK) return status;
    if (!tile->size[0] || !tile->size[1] || !tile->size[2] || !tile->threads) {
        return front_fail(OXB_ENCODING_FAILED,
                          "driver \"%s\": its tile of %s is %u x %u x %u for %u threads, and none "
                          "may be 0: the driver must be corrected",
                          driver, name, tile->size[0], tile->size[1], tile->size[2], tile->threads);
    }
    if (!tile->suffix || tile->n_constants > OXB_TILE_CONSTANTS) {
        return front_fail(OXB_ENCODING_FAILED,
                          "driver \"%s\": its tile of %s has %s: the driver must be corrected",
                          driver, name,
                          tile->suffix ? "more function constants than fit" : "no suffix");
    }
    if (!tile->variant) tile->variant = "";
    if (op != OXB_OP_ATTENTION) return OXB_OK;
    const uint32_t ratio = shape->attention->n_heads / shape->attention->n_kv_heads;
    if (tile->splits == 0 || tile->splits > OXB_MAX_SPLITS || ratio % tile->size[0] ||
        tile->size[1] == OXB_TILE_ALL || tile->size[2] != 1) {
        return front_fail(OXB_ENCODING_FAILED,
                          "driver \"%s\": its tile of %s has %u splits and is %u query heads x %u "
                          "tokens x %u: 1 to %d splits, heads that divide %u, a number of tokens "
                          "and 1 are needed: the driver must be corrected",
                          driver, name, tile->splits, tile->size[0], tile->size[1], tile->size[2],
                          OXB_MAX_SPLITS, ratio);
    }
    return OXB_OK;
}

oxb_status front_variants(const oxb_device *device, oxb_op op, const oxb_op_shape *shape,
                          const char *names[OXB_MAX_VARIANTS], uint32_t *n) {
    const oxb_driver *driver = device->driver;
    *n = 0;
    if (!driver->variants) return OXB_OK;
    memset(names, 0, OXB_MAX_VARIANTS * sizeof *names);
    const uint32_t found = driver->variants(device->impl, op, shape, names);
    int good = found <= OXB_MAX_VARIANTS;
    for (uint32_t i = 0; good && i < found; i++) good = names[i] && names[i][0];
    if (!good) {
        return front_fail(OXB_ENCODING_FAILED,
                          "driver \"%s\": its variants of %s are wrong: at most %u, each with a "
                          "name, are allowed: the driver must be corrected",
                          driver->name, front_op_name(op), OXB_MAX_VARIANTS);
    }
    *n = found;
    return OXB_OK;
}

oxb_status front_weight_layouts(const oxb_device *device, oxb_device_format format, uint64_t n_rows,
                                uint64_t k, oxb_weight_layout layouts[OXB_MAX_LAYOUTS],
                                uint32_t *n) {
    const oxb_driver *driver = device->driver;
    *n = 0;
    if (!driver->weight_layouts) return OXB_OK;
    memset(layouts, 0, OXB_MAX_LAYOUTS * sizeof *layouts);
    const uint32_t found = driver->weight_layouts(device->impl, format, n_rows, k, layouts);
    int good = found <= OXB_MAX_LAYOUTS;
    for (uint32_t i = 0; good && i < found; i++)
        good = layouts[i].id != OXB_LAYOUT_PLAIN && layouts[i].size > layouts[i].codes_offset;
    if (!good) {
        return front_fail(OXB_ENCODING_FAILED,
                          "driver \"%s\": its layouts of %s are wrong: at most %u, with numbers "
                          "other than %u and codes inside their size, are allowed: the driver must "
                          "be corrected",
                          driver->name, oxb_device_format_of(format)->name, OXB_MAX_LAYOUTS,
                          OXB_LAYOUT_PLAIN);
    }
    *n = found;
    return OXB_OK;
}

/* A matrix and vectors that every driver takes. */
#define PROBE_ROWS    256u
#define PROBE_K       512u
#define PROBE_VECTORS 64u

/* The ops on a matrix, by the vectors that they are of, and the other ops. */
typedef enum { FLOAT_VECTORS, INT8_VECTORS, HALVES_VECTORS, HALF_VECTORS } vectors;
static const struct {
    oxb_op op;
    vectors of;
    uint64_t x, y; /* extent */
} matrix_ops[] = {{OXB_OP_GEMV, FLOAT_VECTORS, PROBE_ROWS, 1},
                  {OXB_OP_SWIGLU, FLOAT_VECTORS, PROBE_ROWS / 2, 1},
                  {OXB_OP_GEMM, FLOAT_VECTORS, PROBE_ROWS, PROBE_VECTORS},
                  {OXB_OP_SWIGLU_GEMM, FLOAT_VECTORS, PROBE_ROWS / 2, PROBE_VECTORS},
                  {OXB_OP_EMBED, FLOAT_VECTORS, PROBE_K, PROBE_VECTORS},
                  {OXB_OP_GEMM_INT8, INT8_VECTORS, PROBE_ROWS, PROBE_VECTORS},
                  {OXB_OP_QUANTIZE, INT8_VECTORS, PROBE_VECTORS, 1},
                  {OXB_OP_GEMM_HALVES, HALVES_VECTORS, PROBE_ROWS, PROBE_VECTORS},
                  {OXB_OP_HALVE, HALVES_VECTORS, PROBE_K, PROBE_VECTORS},
                  {OXB_OP_HALVE_NORM, HALVES_VECTORS, PROBE_VECTORS, 1},
                  {OXB_OP_GEMM_HALF, HALF_VECTORS, PROBE_ROWS, PROBE_VECTORS},
                  {OXB_OP_ROUND_HALF, HALF_VECTORS, PROBE_VECTORS, 1}};
static const oxb_op other_ops[] = {OXB_OP_RMSNORM,       OXB_OP_ADD,      OXB_OP_BIAS,
                                   OXB_OP_QK_NORM_ROPE,  OXB_OP_KV_STORE, OXB_OP_QKV_TO_CACHE,
                                   OXB_OP_ATTENTION,     OXB_OP_COMBINE,  OXB_OP_ARGMAX_BLOCKS,
                                   OXB_OP_ARGMAX,        OXB_OP_ADVANCE,  OXB_OP_SAMPLE_BLOCKS,
                                   OXB_OP_SAMPLE_CHOOSE, OXB_OP_CONV,     OXB_OP_DELTA,
                                   OXB_OP_GATE,          OXB_OP_HADAMARD, OXB_OP_COPY};
#define COUNT(array) (sizeof(array) / sizeof(array)[0])
_Static_assert(COUNT(matrix_ops) + COUNT(other_ops) == OXB_OP_COUNT, "every op is asked for");

/* Every variant has a tile of its own. */
static oxb_status check_variant_tiles(const oxb_device *device, oxb_op op, oxb_op_shape shape) {
    const char *names[OXB_MAX_VARIANTS];
    uint32_t n = 0;
    oxb_status status = front_variants(device, op, &shape, names, &n);
    for (uint32_t i = 0; i < n && status == OXB_OK; i++) {
        oxb_tile tile;
        shape.variant = names[i];
        status = front_tile(device, op, &shape, &tile);
        if (status == OXB_OK && strcmp(tile.variant, names[i]) != 0) {
            status = front_fail(OXB_ENCODING_FAILED,
                                "driver \"%s\": its tile of %s as \"%s\" is that of \"%s\": the "
                                "driver must be corrected",
                                device->driver->name, front_op_name(op), names[i], tile.variant);
        }
    }
    return status;
}

static oxb_status check_matrix_tiles(const oxb_device *device, oxb_op_shape shape) {
    const int int8 = device->abilities.int8_products &&
                     device->driver->int8_vector_bytes(device->impl, shape.format, shape.layout,
                                                       shape.k, PROBE_VECTORS) != 0;
    const int halves = device->abilities.half_products >> shape.format & 1;
    const int half = device->abilities.rounded_products >> shape.format & 1;
    oxb_status status = OXB_OK;
    for (size_t i = 0; i < COUNT(matrix_ops) && status == OXB_OK; i++) {
        oxb_tile tile;
        if (matrix_ops[i].of == INT8_VECTORS && !int8) continue;
        if (matrix_ops[i].of == HALVES_VECTORS && !halves) continue;
        if (matrix_ops[i].of == HALF_VECTORS && !half) continue;
        shape.extent[0] = matrix_ops[i].x;
        shape.extent[1] = matrix_ops[i].y;
        status = front_tile(device, matrix_ops[i].op, &shape, &tile);
        if (status == OXB_OK) status = check_variant_tiles(device, matrix_ops[i].op, shape);
    }
    return status;
}

static oxb_status check_matrices(const oxb_device *device) {
    oxb_status status = OXB_OK;
    for (uint32_t format = 0; format < OXB_DEVICE_FORMAT_COUNT; format++) {
        oxb_op_shape shape = {.extent = {PROBE_ROWS, 1, 1},
                              .format = (oxb_device_format)format,
                              .n_rows = PROBE_ROWS,
                              .k = PROBE_K};
        oxb_weight_layout layouts[OXB_MAX_LAYOUTS];
        uint32_t n;
        status = front_weight_layouts(device, shape.format, shape.n_rows, shape.k, layouts, &n);
        if (status == OXB_OK) status = check_matrix_tiles(device, shape);
        for (uint32_t i = 0; status == OXB_OK && i < n; i++) {
            shape.layout = layouts[i].id;
            status = check_matrix_tiles(device, shape);
        }
        if (status != OXB_OK) return status;
    }
    return status;
}

oxb_status front_check_device(const oxb_device *device) {
    static const oxb_attention_shape heads = {.n_heads = 8,
                                              .n_kv_heads = 2,
                                              .head_dim = 64,
                                              .max_seq = 1024,
                                              .kv_format = OXB_KV_F16,
                                              .n_tokens = 1};
    const oxb_op_shape shape = {
        .extent = {heads.n_heads, 1, 1}, .attention = &heads, .alignment = 16, .out_alignment = 16};
    if (device->abilities.int8_products && !device->driver->int8_vector_bytes) {
        return front_fail(OXB_DEVICE_NOT_FOUND,
                          "driver \"%s\" has int8 products, and its table has no function "
                          "int8_vector_bytes: the driver must be corrected",
                          device->driver->name);
    }
    oxb_status status = check_matrices(device);
    for (size_t i = 0; i < COUNT(other_ops) && status == OXB_OK; i++) {
        oxb_tile tile;
        if (other_ops[i] == OXB_OP_QKV_TO_CACHE && !device->abilities.fused_cache_store) continue;
        status = front_tile(device, other_ops[i], &shape, &tile);
    }
    return status == OXB_OK ? OXB_OK : OXB_DEVICE_NOT_FOUND; /* the message says more */
}
