/* The products that a device was asked for, and which variant of its kernel each of them takes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "front.h"

#define MAX_PRODUCTS 8192u /* of a device, each of which is compared when one is recorded */
#define MAX_NOTED    (MAX_PRODUCTS / 2) /* from there on recording adds none, only a choice does */

/* `format` is that of the device, `n_vectors` the most of the product's class. The names are the
 * driver's. */
struct front_choice {
    oxb_op op;
    oxb_device_format format;
    uint64_t n_rows, k, n_vectors;
    const char *chosen; /* NULL: the driver's default */
    const char *used;   /* when it was last recorded; NULL: never */
};

/* The products, and how many rows of the matrix make one of the output. The kernels of GEMM_HALVES
 * and GEMM_HALF for gate and up go by the choice for one matrix of as many rows. */
static const struct {
    oxb_op op;
    uint32_t matrices;
} products[] = {{OXB_OP_GEMV, 1},        {OXB_OP_SWIGLU, 2},      {OXB_OP_GEMM, 1},
                {OXB_OP_SWIGLU_GEMM, 2}, {OXB_OP_GEMM_HALVES, 1}, {OXB_OP_GEMM_HALF, 1}};
#define N_PRODUCTS (sizeof products / sizeof products[0])

static int is_product(oxb_op op) {
    for (size_t i = 0; i < N_PRODUCTS; i++)
        if (products[i].op == op) return 1;
    return 0;
}

static uint64_t class_of(uint64_t n_vectors) {
    uint64_t most = 1;
    while (most < n_vectors) most *= 2;
    return most;
}

static struct front_choice key_of(oxb_op op, const oxb_op_shape *shape) {
    return (struct front_choice){.op = op,
                                 .format = shape->format,
                                 .n_rows = shape->n_rows,
                                 .k = shape->k,
                                 .n_vectors = class_of(shape->extent[1])};
}

/* With the device's cache_lock held, as add(). */
static struct front_choice *find(const oxb_device *device, const struct front_choice *key) {
    for (uint32_t i = 0; i < device->n_choices; i++) {
        struct front_choice *c = device->choices + i;
        if (c->op == key->op && c->format == key->format && c->n_rows == key->n_rows &&
            c->k == key->k && c->n_vectors == key->n_vectors)
            return c;
    }
    return NULL;
}

/* A product that was neither recorded nor kept its choice. */
static struct front_choice *find_unused(const oxb_device *device) {
    for (uint32_t i = 0; i < device->n_choices; i++)
        if (!device->choices[i].chosen && !device->choices[i].used) return device->choices + i;
    return NULL;
}

/* NULL: there is no place or no memory for it. */
static struct front_choice *add(oxb_device *device, const struct front_choice *key) {
    if (device->n_choices == MAX_PRODUCTS) {
        struct front_choice *unused = find_unused(device);
        if (unused) *unused = *key;
        return unused;
    }
    struct front_choice *more = realloc(device->choices, (device->n_choices + 1) * sizeof *more);
    if (!more) return NULL;
    device->choices = more;
    more += device->n_choices++;
    *more = *key;
    return more;
}

const char *front_chosen_variant(oxb_device *device, oxb_op op, const oxb_op_shape *shape) {
    if (!is_product(op)) return NULL;
    const struct front_choice key = key_of(op, shape);
    pthread_mutex_lock(&device->cache_lock);
    const struct front_choice *found = find(device, &key);
    const char *name = found ? found->chosen : NULL;
    pthread_mutex_unlock(&device->cache_lock);
    return name;
}

void front_variant_used(oxb_device *device, oxb_op op, const oxb_op_shape *shape,
                        const char *name) {
    if (!is_product(op) || !name[0]) return;
    const struct front_choice key = key_of(op, shape);
    pthread_mutex_lock(&device->cache_lock);
    struct front_choice *noted = find(device, &key);
    if (!noted && device->n_choices < MAX_NOTED) noted = add(device, &key);
    if (noted) noted->used = name; /* without memory it is not noted */
    pthread_mutex_unlock(&device->cache_lock);
}

void front_choices_free(oxb_device *device) { free(device->choices); }

/* `of` are the things of which there are `factor` in a whole one. */
static oxb_status check_count(const oxb_product *product, const char *name, uint64_t n,
                              uint64_t factor, const char *of) {
    const unsigned long long given = n;
    if (!n || n > OXB_MAX_PRODUCT_COUNT) {
        return front_fail(OXB_ENCODING_FAILED, "%s: %s = %llu must lie in 1..%u", product->op, name,
                          given, OXB_MAX_PRODUCT_COUNT);
    }
    if (n % factor == 0) return OXB_OK;
    return front_fail(OXB_ENCODING_FAILED, "%s: %s = %llu must be a multiple of %llu: that many %s",
                      product->op, name, given, (unsigned long long)factor, of);
}

/* The op and the shape of a product, in the layout in which the device likes the matrix best. */
static oxb_status shape_of(const oxb_device *device, const oxb_product *product, oxb_op *op,
                           oxb_op_shape *shape) {
    char known[128] = "";
    uint32_t matrices = 0;
    for (size_t i = 0; i < N_PRODUCTS; i++) {
        const char *name = front_op_name(products[i].op);
        const size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", name);
        if (strcmp(name, product->op) != 0) continue;
        *op = products[i].op;
        matrices = products[i].matrices;
    }
    if (!matrices) {
        return front_fail(OXB_ENCODING_FAILED, "no product \"%.64s\": there are %s", product->op,
                          known);
    }
    const oxb_device_format format = (oxb_device_format)product->device_format;
    const oxb_device_format_info *info = oxb_device_format_of(format);
    if (!info)
        return front_fail(OXB_ENCODING_FAILED, "no device format %u", product->device_format);
    oxb_status status = check_count(product, "n_rows", product->n_rows, matrices, "matrices");
    if (status == OXB_OK)
        status = check_count(product, "k", product->k, info->group_size, "weights in a group");
    if (status == OXB_OK)
        status = check_count(product, "n_vectors", product->n_vectors, 1, "vectors");
    if (status != OXB_OK) return status;
    oxb_weight_layout layouts[OXB_MAX_LAYOUTS];
    uint32_t n = 0;
    status = front_weight_layouts(device, format, product->n_rows, product->k, layouts, &n);
    *shape = (oxb_op_shape){.extent = {product->n_rows / matrices, product->n_vectors, 1},
                            .format = format,
                            .layout = n ? layouts[0].id : OXB_LAYOUT_PLAIN,
                            .n_rows = product->n_rows,
                            .k = product->k};
    return status;
}

/* The halves are asked for only where the device has them. */
static oxb_status variants_of(const oxb_device *device, const oxb_product *product, oxb_op *op,
                              oxb_op_shape *shape, const char *names[OXB_MAX_VARIANTS],
                              uint32_t *n) {
    *n = 0;
    oxb_status status = shape_of(device, product, op, shape);
    if (status != OXB_OK) return status;
    const uint32_t has = *op == OXB_OP_GEMM_HALVES ? device->abilities.half_products
                         : *op == OXB_OP_GEMM_HALF ? device->abilities.rounded_products
                                                   : UINT32_MAX;
    if (!(has >> shape->format & 1)) return OXB_OK;
    return front_variants(device, *op, shape, names, n);
}

oxb_status oxb_device_kernel_variants(oxb_device *device, const oxb_product *product,
                                      const char *names[OXB_MAX_VARIANTS], uint32_t *n) {
    oxb_op op;
    oxb_op_shape shape;
    const char *found[OXB_MAX_VARIANTS];
    uint32_t count;
    oxb_status status = variants_of(device, product, &op, &shape, found, &count);
    if (status != OXB_OK) return status;
    memcpy(names, found, count * sizeof *found);
    *n = count;
    return OXB_OK;
}

static oxb_status no_variant(const oxb_product *product, const char *name,
                             const char *const names[OXB_MAX_VARIANTS], uint32_t n) {
    char known[512] = "";
    for (uint32_t i = 0; i < n; i++) {
        const size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%.32s", used ? ", " : "", names[i]);
    }
    const char *format = oxb_device_format_of((oxb_device_format)product->device_format)->name;
    return front_fail(
        OXB_ENCODING_FAILED, "no variant \"%.64s\" of %s for %llu x %llu %s by %llu vectors: %s%s",
        name, product->op, (unsigned long long)product->n_rows, (unsigned long long)product->k,
        format, (unsigned long long)product->n_vectors,
        n ? "there are " : "the device has one form of it", known);
}

oxb_status oxb_device_choose_variant(oxb_device *device, const oxb_product *product,
                                     const char *name) {
    oxb_op op;
    oxb_op_shape shape;
    const char *names[OXB_MAX_VARIANTS];
    uint32_t n;
    oxb_status status = variants_of(device, product, &op, &shape, names, &n);
    if (status != OXB_OK) return status;
    const char *chosen = NULL; /* the driver's text, which lives as long as it */
    for (uint32_t i = 0; name && i < n; i++)
        if (strcmp(names[i], name) == 0) chosen = names[i];
    if (name && !chosen) return no_variant(product, name, names, n);
    const struct front_choice key = key_of(op, &shape);
    pthread_mutex_lock(&device->cache_lock);
    struct front_choice *found = find(device, &key);
    if (!found && chosen) found = add(device, &key);
    if (found) found->chosen = chosen;
    const uint32_t kept = device->n_choices;
    pthread_mutex_unlock(&device->cache_lock);
    if (found || !chosen) return OXB_OK;
    if (kept < MAX_PRODUCTS)
        return front_fail(OXB_ENCODING_FAILED, "out of memory for the choice of a variant");
    return front_fail(OXB_ENCODING_FAILED,
                      "no place for the choice of a variant: a device keeps %u products",
                      MAX_PRODUCTS);
}

int oxb_device_product(oxb_device *device, uint32_t index, oxb_product *product,
                       const char **chosen, const char **used) {
    pthread_mutex_lock(&device->cache_lock);
    const int found = index < device->n_choices;
    if (found) {
        const struct front_choice *c = device->choices + index;
        *product = (oxb_product){.op = front_op_name(c->op),
                                 .device_format = (uint32_t)c->format,
                                 .n_rows = c->n_rows,
                                 .k = c->k,
                                 .n_vectors = c->n_vectors};
        *chosen = c->chosen;
        *used = c->used;
    }
    pthread_mutex_unlock(&device->cache_lock);
    return found;
}
