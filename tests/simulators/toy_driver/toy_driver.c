/* A device driver for tests that brings its own geometry: tiles of odd sizes, a layout of weights
 * and a fused norm that no other driver has.
 *
 * It runs four kernels on the host, threadgroup by threadgroup: each computes its tile and nothing
 * else, so that a grid cut by another driver's tiles leaves rows out or writes past the end. It
 * counts no devices until toy_present is set, and keeps a log of what ran.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "oxb_args.h"
#include "oxb_driver.h"

#define EXPORT __attribute__((visibility("default")))

#define LAYOUT_BOTTOM_UP 77u /* Q1_G128: the plain layout with the last row first */
#define SUFFIX           "_bottom_up"
#define GROUP            128u
#define GEMV_ROWS        5u /* of the variant "fives" */
#define ADD_ELEMENTS     13u
#define THREADS          3u
#define MAX_LOG          64u

/* Gaps in the table that a build of the driver can have: -DTOY_GAP=... */
enum gap {
    NONE,
    NO_TILE_FUNCTION,
    NO_PACK,
    NO_INT8_BYTES,
    NO_ROW,
    ZERO_SIZE,
    ZERO_THREADS,
    NO_SUFFIX,
    NO_SPLITS,
    UNEVEN_HEADS,
    PLAIN_LAYOUT,
    NO_VARIANT_NAME,
    MANY_VARIANTS,
    LOST_VARIANT
};
#ifndef TOY_GAP
#define TOY_GAP NONE
#endif

EXPORT int toy_present; /* devices counted */
EXPORT int toy_log_length;
EXPORT double toy_seconds[8];  /* of a dispatch, by the rows of its tile */
EXPORT int toy_wrong_rows;     /* a tile of so many gives wrong results */
EXPORT uint64_t toy_deaf_rows, /* a matrix of so many takes the default whatever is asked for */
    toy_most_bytes;            /* of a buffer; 0: any number */

static const oxb_host *host;

static struct entry {
    char kernel[OXB_NAME_BYTES];
    uint32_t grid[3], threads, rows;
} entries[MAX_LOG];

/* What ran as dispatch `i`: the kernel, its grid and threadgroup, and its function constant. */
EXPORT const char *toy_kernel(int i) { return entries[i].kernel; }
EXPORT uint32_t toy_grid(int i, int axis) { return entries[i].grid[axis]; }
EXPORT uint32_t toy_threads(int i) { return entries[i].threads; }
EXPORT uint32_t toy_rows(int i) { return entries[i].rows; }

static oxb_status device_count(uint32_t *count) {
    *count = (uint32_t)toy_present;
    return OXB_OK;
}

static oxb_status device_open(uint32_t index, const oxb_device_options *options, void **device) {
    (void)index;
    (void)options;
    *device = malloc(1);
    return OXB_OK;
}

static void device_close(void *device) { free(device); }

static void device_info(void *device, oxb_device_info *info) {
    (void)device;
    *info = (oxb_device_info){.name = "Toy",
                              .driver = "toy",
                              .variant = "host",
                              .simd_width = 1,
                              .unified_memory = 1,
                              .max_buffer_length = (uint64_t)1 << 32,
                              .max_threadgroup_memory = 32768,
                              .recommended_working_set = (uint64_t)1 << 32};
}

static void abilities(void *device, oxb_abilities *found) {
    (void)device;
    *found = (oxb_abilities){.fused_norm = 1u << OXB_DEVICE_FORMAT_Q1_G128,
                             .int8_products = TOY_GAP == NO_INT8_BYTES};
}

/* Two variants of GEMV, of which one takes no matrix of less rows than a tile of it. */
static const char FIVES[] = "fives", THREES[] = "threes";

static int takes_threes(const oxb_op_shape *shape) { return shape->n_rows >= 3; }

static uint32_t variants(void *device, oxb_op op, const oxb_op_shape *shape,
                         const char *names[OXB_MAX_VARIANTS]) {
    (void)device;
    if (op != OXB_OP_GEMV) return 0;
    if (TOY_GAP == MANY_VARIANTS) return OXB_MAX_VARIANTS + 1;
    names[0] = TOY_GAP == NO_VARIANT_NAME ? "" : FIVES;
    if (takes_threes(shape)) names[1] = THREES;
    return 1 + (uint32_t)takes_threes(shape);
}

static oxb_status tile(void *device, oxb_op op, const oxb_op_shape *shape, oxb_tile *found) {
    (void)device;
    if (TOY_GAP == NO_ROW && op == OXB_OP_EMBED) return OXB_OK;
    *found = (oxb_tile){.size = {7, 1, OXB_TILE_ALL}, .threads = THREADS, .suffix = ""};
    switch (op) {
    case OXB_OP_GEMV:
        found->variant = THREES;
        if (TOY_GAP == LOST_VARIANT || shape->n_rows == toy_deaf_rows || !takes_threes(shape) ||
            !shape->variant || strcmp(shape->variant, THREES) != 0)
            found->variant = FIVES;
        found->size[0] = found->variant == FIVES ? GEMV_ROWS : 3;
        found->n_constants = 1;
        found->constants[0] = (oxb_constant){3, OXB_CONSTANT_U32, {.u32 = found->size[0]}};
        break;
    case OXB_OP_ADD: found->size[0] = TOY_GAP == ZERO_SIZE ? 0 : ADD_ELEMENTS; break;
    case OXB_OP_ATTENTION:
        found->size[0] = TOY_GAP == UNEVEN_HEADS ? 3 : 1;
        found->size[2] = 1;
        found->splits = TOY_GAP != NO_SPLITS;
        break;
    default: break;
    }
    if (shape->layout == LAYOUT_BOTTOM_UP) {
        found->suffix = TOY_GAP == NO_SUFFIX ? NULL : SUFFIX;
        if (TOY_GAP == ZERO_THREADS) found->threads = 0;
    }
    return OXB_OK;
}

static uint64_t plain_codes_offset(uint64_t n_rows, uint64_t k) {
    return (n_rows * (k / GROUP) * 2 + 15) / 16 * 16;
}

static uint32_t weight_layouts(void *device, oxb_device_format format, uint64_t n_rows, uint64_t k,
                               oxb_weight_layout layouts[OXB_MAX_LAYOUTS]) {
    (void)device;
    if (format != OXB_DEVICE_FORMAT_Q1_G128) return 0;
    layouts[0].id = TOY_GAP == PLAIN_LAYOUT ? OXB_LAYOUT_PLAIN : LAYOUT_BOTTOM_UP;
    layouts[0].codes_offset = plain_codes_offset(n_rows, k);
    layouts[0].size = layouts[0].codes_offset + n_rows * k / 8;
    return 1;
}

static oxb_status weight_pack(void *device, uint32_t layout, oxb_file_format format,
                              const void *from, uint64_t n_rows, uint64_t k, void *to, int *fits) {
    (void)device;
    const oxb_file_format_info *info = host->file_format(format);
    const uint64_t blocks = k / info->block_weights;
    if (layout != LAYOUT_BOTTOM_UP)
        return host->fail(OXB_BUFFER_CREATION_FAILED, "the toy has no layout %u", layout);
    for (uint64_t row = 0; row < n_rows; row++) {
        const uint64_t place = n_rows - 1 - row;
        host->reformat_blocks(format, (const uint8_t *)from + row * blocks * info->block_bytes,
                              blocks, (uint8_t *)to + place * (k / GROUP) * 2,
                              (uint8_t *)to + plain_codes_offset(n_rows, k) + place * k / 8);
    }
    *fits = 1;
    return OXB_OK;
}

static oxb_status buffer_new(void *device, uint64_t length, oxb_storage storage, void **buffer,
                             void **contents) {
    (void)device;
    if (toy_most_bytes && length > toy_most_bytes)
        return host->fail(OXB_BUFFER_CREATION_FAILED, "the toy is full");
    *buffer = calloc(1, length);
    if (storage == OXB_STORAGE_SHARED) *contents = *buffer;
    return OXB_OK;
}

static oxb_status buffer_wrap(void *device, void *address, uint64_t length, void **buffer) {
    (void)device;
    (void)address;
    (void)buffer;
    return host->fail(OXB_BUFFER_CREATION_FAILED, "the toy wraps nothing, not even %llu bytes",
                      (unsigned long long)length);
}

static void buffer_free(void *device, void *buffer) {
    (void)device;
    free(buffer);
}

static oxb_status buffer_read(void *device, void *buffer, uint64_t offset, void *to,
                              uint64_t length) {
    (void)device;
    memcpy(to, (char *)buffer + offset, length);
    return OXB_OK;
}

static oxb_status buffer_write(void *device, void *buffer, uint64_t offset, const void *from,
                               uint64_t length) {
    (void)device;
    memcpy((char *)buffer + offset, from, length);
    return OXB_OK;
}

static oxb_status buffer_fill(void *device, void *buffer, uint64_t offset, uint64_t length,
                              uint8_t value) {
    (void)device;
    memset((char *)buffer + offset, value, length);
    return OXB_OK;
}

static oxb_status library_new(void *device, const char *source, size_t length, void **library) {
    (void)device;
    (void)source;
    (void)length;
    (void)library;
    return host->fail(OXB_COMPILATION_FAILED, "the toy compiles nothing");
}

static void library_free(void *device, void *library) {
    (void)device;
    (void)library;
}

/* Kernels: threadgroup `group` along x, bindings and arguments as oxb_args.h has them. */

typedef struct toy_pipeline {
    char name[OXB_NAME_BYTES];
    uint32_t rows; /* function constant 3 */
    void (*run)(const struct toy_pipeline *p, const oxb_driver_dispatch *d, uint32_t group);
} toy_pipeline;

static void *at(const oxb_driver_dispatch *d, uint32_t binding) {
    return (char *)d->bindings[binding].buffer + d->bindings[binding].offset;
}

static void add(const toy_pipeline *p, const oxb_driver_dispatch *d, uint32_t group) {
    const struct oxb_add_args *a = d->args;
    const float *x = at(d, 0);
    float *y = at(d, 1);
    (void)p;
    for (uint64_t i = (uint64_t)group * ADD_ELEMENTS; i < (group + 1ull) * ADD_ELEMENTS; i++)
        if (i < a->n) y[i] += x[i];
}

static float scale_at(const uint8_t *scale) {
    const unsigned half = scale[0] | (unsigned)scale[1] << 8, exponent = half >> 10 & 31;
    const float value = exponent ? ldexpf((float)(1024 + (half & 1023)), (int)exponent - 25)
                                 : ldexpf((float)(half & 1023), -24);
    return half >> 15 ? -value : value;
}

static void gemv(const toy_pipeline *p, const oxb_driver_dispatch *d, uint32_t group) {
    const struct oxb_gemv_args *a = d->args;
    const uint8_t *weight = at(d, 0);
    const float *x = at(d, 1), *norm = d->n_bindings == 4 ? at(d, 2) : NULL;
    float *y = at(d, d->n_bindings - 1);
    const int bottom_up = strstr(p->name, SUFFIX) != NULL;
    double inverse = 1;
    if (norm) {
        double sum = 0;
        for (uint32_t i = 0; i < a->k; i++) sum += (double)x[i] * x[i];
        inverse = 1 / sqrt(sum / a->k + (double)a->eps);
    }
    for (uint32_t row = group * p->rows; row < (group + 1) * p->rows && row < a->n_rows; row++) {
        const uint64_t place = bottom_up ? a->n_rows - 1 - row : row;
        const uint8_t *scales = weight + place * (a->k / GROUP) * 2;
        const uint8_t *codes = weight + a->codes_offset + place * a->k / 8;
        double sum = 0;
        for (uint32_t i = 0; i < a->k; i++) {
            const float w = scale_at(scales + i / GROUP * 2) * (codes[i / 8] >> i % 8 & 1 ? 1 : -1);
            sum += (double)w * x[i] * (norm ? inverse * (double)norm[i] : 1);
        }
        if (p->rows == (uint32_t)toy_wrong_rows) sum *= 2;
        y[row] = (float)(strstr(p->name, "_residual") ? y[row] + sum : sum);
    }
}

static oxb_status pipeline_new(void *device, void *library, const char *function,
                               const oxb_constant *constants, uint32_t n_constants, void **pipeline,
                               oxb_pipeline_info *info) {
    (void)device;
    (void)library;
    static const struct {
        const char *name;
        void (*run)(const toy_pipeline *, const oxb_driver_dispatch *, uint32_t);
    } kernels[] = {{"residual_add", add},
                   {"gemv_q1_g128", gemv},
                   {"gemv_q1_g128" SUFFIX, gemv},
                   {"gemv_q1_g128_residual" SUFFIX, gemv},
                   {"gemv_q1_g128_norm" SUFFIX, gemv}};
    for (unsigned i = 0; i < sizeof kernels / sizeof kernels[0]; i++) {
        if (strcmp(kernels[i].name, function) != 0) continue;
        toy_pipeline *made = calloc(1, sizeof *made);
        strcpy(made->name, function);
        made->run = kernels[i].run;
        for (uint32_t c = 0; c < n_constants; c++)
            if (constants[c].index == 3) made->rows = constants[c].value.u32;
        *pipeline = made;
        *info = (oxb_pipeline_info){.max_threads = THREADS, .simd_width = 1};
        return OXB_OK;
    }
    return host->fail(OXB_COMPILATION_FAILED, "the toy has no kernel %s", function);
}

static void pipeline_free(void *device, void *pipeline) {
    (void)device;
    free(pipeline);
}

static oxb_status submit(void *device, const oxb_driver_dispatch *list, uint32_t n, void **replay,
                         oxb_driver_done done, void *context) {
    (void)device;
    (void)replay;
    double seconds = 0;
    for (uint32_t i = 0; i < n; i++) {
        const oxb_driver_dispatch *d = list + i;
        const toy_pipeline *p = d->pipeline;
        seconds += toy_seconds[p->rows % 8];
        if (toy_log_length < (int)MAX_LOG) {
            struct entry *e = &entries[toy_log_length++];
            *e = (struct entry){.grid = {d->threadgroups.x, d->threadgroups.y, d->threadgroups.z},
                                .threads = d->threads.x,
                                .rows = p->rows};
            strcpy(e->kernel, p->name);
        }
        for (uint32_t group = 0; group < d->threadgroups.x; group++) p->run(p, d, group);
    }
    done(context, OXB_OK, NULL, (oxb_times){0, seconds});
    return OXB_OK;
}

static void replay_free(void *device, void *replay) {
    (void)device;
    (void)replay;
}

EXPORT const oxb_driver *oxb_driver_entry(const oxb_host *services);

const oxb_driver *oxb_driver_entry(const oxb_host *services) {
    static const oxb_driver driver = {
        .abi_version = OXB_ABI_VERSION,
        .struct_size = sizeof(oxb_driver),
        .name = "toy",
        .device_count = device_count,
        .device_open = device_open,
        .device_close = device_close,
        .device_info = device_info,
        .abilities = abilities,
        .tile = TOY_GAP == NO_TILE_FUNCTION ? NULL : tile,
        .variants = variants,
        .weight_layouts = weight_layouts,
        .weight_pack = TOY_GAP == NO_PACK ? NULL : weight_pack,
        .buffer_new = buffer_new,
        .buffer_wrap = buffer_wrap,
        .buffer_free = buffer_free,
        .buffer_read = buffer_read,
        .buffer_write = buffer_write,
        .buffer_fill = buffer_fill,
        .library_new = library_new,
        .library_free = library_free,
        .pipeline_new = pipeline_new,
        .pipeline_free = pipeline_free,
        .submit = submit,
        .replay_free = replay_free,
    };
    host = services;
    return &driver;
}
