/* What the operations of the op layer share: checks of their operands, and the record of a
 * dispatch. */
#ifndef OPS_RECORD_H
#define OPS_RECORD_H

#include "front/front.h"

#define OPS_MAX_COUNT 0x7fffffffu

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

/* The state of a decode step, as an operand. */
ops_operand ops_state_operand(oxb_binding state, int written);
/* Those of n sequences. */
ops_operand ops_states_operand(oxb_binding states, uint64_t n, int written);

/* Record `kernel` over the extent of an op, in the tiles that the driver has for it. */
oxb_status ops_record(oxb_commands *commands, oxb_op op, const oxb_op_shape *shape,
                      const char *kernel, const ops_operand *operands, uint32_t n, const void *args,
                      uint32_t args_size);

/* The tile, for an op whose arguments name parts of it; ops_record_tiles() records that op. */
oxb_status ops_tile(const oxb_commands *commands, oxb_op op, const oxb_op_shape *shape,
                    oxb_tile *tile);
oxb_status ops_record_tiles(oxb_commands *commands, const oxb_tile *tile, const uint64_t extent[3],
                            const char *kernel, const ops_operand *operands, uint32_t n,
                            const void *args, uint32_t args_size);

#endif
