/* Checks of operands, and the record of a dispatch. */
#include "record.h"

#include <math.h>
#include <stdio.h>

#define MAX_OPERANDS 8u

oxb_status ops_check_operands(const char *op, const ops_operand *operands, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        const oxb_buffer *buffer = operands[i].binding.buffer;
        uint64_t offset = operands[i].binding.offset;
        if (!buffer)
            return front_fail(OXB_ENCODING_FAILED, "%s: %s has no buffer", op, operands[i].name);
        uint64_t length = offset < buffer->length ? buffer->length - offset : 0;
        if (length < operands[i].bytes) {
            return front_fail(OXB_ENCODING_FAILED, "%s: %s too short: need %llu bytes, got %llu",
                              op, operands[i].name, (unsigned long long)operands[i].bytes,
                              (unsigned long long)length);
        }
        if (offset % 4) {
            return front_fail(OXB_ENCODING_FAILED,
                              "%s: %s starts at byte %llu: offsets must be multiples of 4", op,
                              operands[i].name, (unsigned long long)offset);
        }
    }
    return OXB_OK;
}

oxb_status ops_check_apart(const char *op, const ops_operand *in, const ops_operand *out) {
    if (in->binding.buffer != out->binding.buffer ||
        in->binding.offset >= out->binding.offset + out->bytes ||
        out->binding.offset >= in->binding.offset + in->bytes) {
        return OXB_OK;
    }
    return front_fail(OXB_ENCODING_FAILED,
                      "%s: %s and %s overlap in one buffer: use two, or ranges apart", op, in->name,
                      out->name);
}

oxb_status ops_check_count(const char *op, const char *name, uint64_t n, uint64_t limit) {
    if (n >= 1 && n <= limit) return OXB_OK;
    return front_fail(OXB_ENCODING_FAILED, "%s: %s = %llu must lie in 1..%llu", op, name,
                      (unsigned long long)n, (unsigned long long)limit);
}

oxb_status ops_check_eps(const char *op, float eps) {
    if (eps >= 0 && !isinf(eps)) return OXB_OK;
    return front_fail(OXB_ENCODING_FAILED, "%s: eps = %g must be finite and not negative", op,
                      (double)eps);
}

ops_operand ops_states_operand(oxb_binding states, uint64_t n, int written) {
    return (ops_operand){"state", states, n * sizeof(struct oxb_decode_state), written};
}

ops_operand ops_state_operand(oxb_binding state, int written) {
    return ops_states_operand(state, 1, written);
}

oxb_status ops_tile(const oxb_commands *commands, oxb_op op, const oxb_op_shape *shape,
                    oxb_tile *tile) {
    return front_tile(front_commands_device(commands), op, shape, tile);
}

oxb_status ops_record(oxb_commands *commands, oxb_op op, const oxb_op_shape *shape,
                      const char *kernel, const ops_operand *operands, uint32_t n, const void *args,
                      uint32_t args_size) {
    oxb_tile tile;
    oxb_status status = ops_tile(commands, op, shape, &tile);
    if (status != OXB_OK) return status;
    return ops_record_tiles(commands, &tile, shape->extent, kernel, operands, n, args, args_size);
}

oxb_status ops_record_tiles(oxb_commands *commands, const oxb_tile *tile, const uint64_t extent[3],
                            const char *kernel, const ops_operand *operands, uint32_t n,
                            const void *args, uint32_t args_size) {
    oxb_device *device = front_commands_device(commands);
    char name[OXB_NAME_BYTES];
    if (snprintf(name, sizeof name, "%s%s", kernel, tile->suffix) >= (int)sizeof name) {
        return front_fail(OXB_COMPILATION_FAILED,
                          "%s%s: a kernel's name has at most %u bytes: the driver's suffix is too "
                          "long",
                          kernel, tile->suffix, OXB_NAME_BYTES - 1);
    }
    uint32_t tiles[3];
    for (unsigned i = 0; i < 3; i++) {
        const uint64_t count = extent[i] / tile->size[i] + (extent[i] % tile->size[i] != 0);
        if (count > UINT32_MAX) {
            return front_fail(OXB_ENCODING_FAILED,
                              "%s: %llu elements in tiles of %u are too many threadgroups: at most "
                              "%u are allowed",
                              name, (unsigned long long)extent[i], tile->size[i], UINT32_MAX);
        }
        tiles[i] = (uint32_t)count;
    }
    oxb_pipeline *pipeline = NULL;
    oxb_status status =
        front_shipped_pipeline(device, name, tile->constants, tile->n_constants, &pipeline);
    if (status != OXB_OK) return status;
    oxb_binding bindings[MAX_OPERANDS];
    front_role roles[MAX_OPERANDS];
    for (uint32_t i = 0; i < n; i++) {
        bindings[i] = operands[i].binding;
        roles[i] = (front_role){operands[i].name, operands[i].written};
    }
    const front_dispatch dispatch = {.bindings = bindings,
                                     .roles = roles,
                                     .args = args,
                                     .args_size = args_size,
                                     .n_bindings = n,
                                     .threadgroups = {tiles[0], tiles[1], tiles[2]},
                                     .threads = {tile->threads, 1, 1}};
    return front_record_dispatch(commands, pipeline, &dispatch);
}
