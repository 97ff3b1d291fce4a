/* How each operation is cut into threadgroups on a device: the op layer's only knowledge of a device. */
#ifndef OXB_GEOMETRY_H
#define OXB_GEOMETRY_H

#include "oxb_shim.h"

/* The operations, each with the unit that its grid counts. */
typedef enum oxb_op {
    OXB_OP_GEMV,         /* row of the output */
    OXB_OP_SWIGLU,       /* row of the output */
    OXB_OP_EMBED,        /* element of the row */
    OXB_OP_RMSNORM,      /* vector */
    OXB_OP_ADD,          /* element */
    OXB_OP_QK_NORM_ROPE, /* query or key head */
    OXB_OP_KV_STORE,     /* key-value head */
    OXB_OP_ATTENTION,    /* key-value head, and along y query head of each */
    OXB_OP_ADVANCE,      /* token */
    OXB_OP_COUNT
} oxb_op;

#define OXB_TILE_CONSTANTS 1u

typedef struct oxb_tile {
    uint32_t units[2]; /* per threadgroup, along x and y; UINT32_MAX: all of them */
    uint32_t threads;  /* of a threadgroup */
    uint32_t n_constants;
    oxb_constant constants[OXB_TILE_CONSTANTS]; /* function constants of the operation's kernels */
} oxb_tile;

typedef struct oxb_geometry {
    oxb_tile tiles[OXB_OP_COUNT];
} oxb_geometry;

const oxb_geometry *oxb_geometry_of(const oxb_device_info *device);

#endif
