/* What the operations of the op layer share: checks of their operands, and the record of a
 * dispatch. */
#ifndef OPS_RECORD_H
#define OPS_RECORD_H

#include "front/front.h"

#define OPS_MAX_COUNT    0x7fffffffu
#define OPS_MAX_OPERANDS 9u

/* One binding of an op with what the op needs of it. */
typedef struct ops_operand {
    const char *name;
    oxb_binding binding;
    uint64_t bytes;
    int written;
} ops_operand;

oxb_status ops_check_operands(const char *op, const ops_operand *operands, uint32_t n);
/* The device may read `in` after it wrote `out`: no byte of the two may be shared. */
oxb_status ops_check_apart(const char *op, const ops_operand *in, const ops_operand *out);
oxb_status ops_check_count(const char *op, const char *name, uint64_t n, uint64_t limit);
oxb_status ops_check_eps(const char *op, float eps);

/* Rows have n elements and are `given` apart; 0 stands for n. */
oxb_status ops_check_stride(const char *op, const char *name, uint64_t given, uint64_t n,
                            uint64_t *stride);

ops_operand ops_weight_operand(const oxb_weight *weight);
const oxb_device_format_info *ops_format_of(const oxb_weight *weight);
/* The shape of an op on a weight; its extent is still to be set. */
oxb_op_shape ops_matrix_shape(const oxb_weight *weight, uint64_t n_rows, uint64_t k);
/* The state of a decode step, as an operand. */
ops_operand ops_state_operand(oxb_binding state, int written);
/* Those of n sequences. */
ops_operand ops_states_operand(oxb_binding states, uint64_t n, int written);

/* Record `kernel` over the extent of an op, in the tiles that the driver has for it, as one
 * dispatch. */
oxb_status ops_record(oxb_commands *commands, oxb_op op, const oxb_op_shape *shape,
                      const char *kernel, const ops_operand *operands, uint32_t n, void *args,
                      uint32_t args_size);

/* The tile, for an op whose arguments name parts of it; ops_record_tiles() records that op. */
oxb_status ops_tile(const oxb_commands *commands, oxb_op op, const oxb_op_shape *shape,
                    oxb_tile *tile);

/* How an op is recorded as several dispatches that do the same as one: along an axis of its extent,
 * the vectors, tokens or heads, so many elements each. */
typedef struct ops_cut {
    uint32_t axis;
    uint64_t piece;
    uint64_t steps[OPS_MAX_OPERANDS]; /* of the operands: bytes from element to element; 0: every
                                         dispatch has the whole binding */
    /* Members of the arguments, or NULL: the elements of a dispatch, which is given as those of
     * all; and the first one, with the end of the dispatch, where it is not in the bindings. */
    oxb_u32 *count;
    oxb_u32 *first, *end;
} ops_cut;

/* The elements of an axis that one dispatch takes, by the device's bound of its work: whole tiles
 * that are a multiple of `grain`, or all. */
uint64_t ops_piece_of(const oxb_commands *commands, oxb_op op, const oxb_op_shape *shape,
                      const oxb_tile *tile, uint32_t axis, uint32_t grain);

typedef struct ops_recording {
    oxb_op op;
    const oxb_op_shape *shape;
    const oxb_tile *tile;
    const char *kernel;
    const ops_operand *operands;
    uint32_t n_operands;
    uint32_t args_size;
    void *args;
    const ops_cut *cut; /* NULL: one dispatch */
} ops_recording;

oxb_status ops_record_tiles(oxb_commands *commands, const ops_recording *recording);

/* Record a Walsh-Hadamard transform as a part of `op`, which its errors name. */
oxb_status ops_hadamard(oxb_commands *commands, const char *op, const oxb_hadamard *hadamard);

#endif
