/* The table of kernels in shaders/. Several rows for one op and format are variants, all of them
 * exact to the op's bounds. */
#ifndef GPU_VARIANTS_H
#define GPU_VARIANTS_H

#include "gpu.h"

/* What a variant is to a shape. */
typedef enum gpu_fitness {
    GPU_REFUSED, /* it cannot compute it */
    GPU_TAKEN,   /* by name only */
    GPU_FAVOURED
} gpu_fitness;

/* A kernel: what it computes, for which device formats, in which tile. The default of a device is
 * the first row that it prefers and that favours the shape; every row that takes the shape can be
 * asked for by name. */
typedef struct gpu_variant {
    oxb_op op;
    uint32_t formats; /* bit f: device format f */
    const char *name; /* unique among the rows of an op and a format; "" where there is one */
    uint32_t prefer;  /* traits of which the device has one; 0: never the default */
    uint32_t needs;   /* traits that the device must have, all of them */
    oxb_tile tile;
    /* Sets what depends on the shape; NULL: every shape is favoured, nothing depends on it. */
    gpu_fitness (*fit)(const gpu_traits *traits, const oxb_op_shape *shape, oxb_tile *tile);
} gpu_variant;

extern const oxb_host *gpu_host; /* of gpu_use */

extern const gpu_variant gpu_table[];
extern const unsigned gpu_table_rows;

#endif
