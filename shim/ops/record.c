/* Checks of operands, and the record of a dispatch. */
#include "record.h"

#include <math.h>
#include <stdio.h>

#include "work.h"

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

oxb_status ops_check_stride(const char *op, const char *name, uint64_t given, uint64_t n,
                            uint64_t *stride) {
    *stride = given ? given : n;
    if (*stride >= n && *stride <= OPS_MAX_COUNT) return OXB_OK;
    return front_fail(OXB_ENCODING_FAILED, "%s: %s = %llu must lie in %llu..%u, from the rows on",
                      op, name, (unsigned long long)*stride, (unsigned long long)n, OPS_MAX_COUNT);
}

ops_operand ops_weight_operand(const oxb_weight *weight) {
    return (ops_operand){"weight", {weight->buffer, 0}, weight->buffer->length, 0};
}

const oxb_device_format_info *ops_format_of(const oxb_weight *weight) {
    return oxb_device_format_of((oxb_device_format)weight->device_format);
}

oxb_op_shape ops_matrix_shape(const oxb_weight *weight, uint64_t n_rows, uint64_t k) {
    return (oxb_op_shape){.extent = {1, 1, 1},
                          .format = (oxb_device_format)weight->device_format,
                          .layout = weight->layout,
                          .n_rows = n_rows,
                          .k = k};
}

ops_operand ops_states_operand(oxb_binding states, uint64_t n, int written) {
    return (ops_operand){"state", states, n * sizeof(struct oxb_decode_state), written};
}

ops_operand ops_state_operand(oxb_binding state, int written) {
    return ops_states_operand(state, 1, written);
}

oxb_status ops_tile(const oxb_commands *commands, oxb_op op, const oxb_op_shape *shape,
                    oxb_tile *tile) {
    oxb_device *device = front_commands_device(commands);
    oxb_op_shape chosen = *shape;
    /* A choice may depend on the number of vectors, which deterministic products must not. */
    const int choose = !front_commands_deterministic(commands);
    if (choose) chosen.variant = front_chosen_variant(device, op, shape);
    oxb_status status = front_tile(device, op, &chosen, tile);
    if (status == OXB_OK && choose) front_variant_used(device, op, shape, tile->variant);
    return status;
}

oxb_status ops_record(oxb_commands *commands, oxb_op op, const oxb_op_shape *shape,
                      const char *kernel, const ops_operand *operands, uint32_t n, void *args,
                      uint32_t args_size) {
    oxb_tile tile;
    oxb_status status = ops_tile(commands, op, shape, &tile);
    if (status != OXB_OK) return status;
    const ops_recording recording = {.op = op,
                                     .shape = shape,
                                     .tile = &tile,
                                     .kernel = kernel,
                                     .operands = operands,
                                     .n_operands = n,
                                     .args_size = args_size,
                                     .args = args};
    return ops_record_tiles(commands, &recording);
}

uint64_t ops_piece_of(const oxb_commands *commands, oxb_op op, const oxb_op_shape *shape,
                      const oxb_tile *tile, uint32_t axis, uint32_t grain) {
    oxb_op_shape one = *shape;
    one.extent[axis] = 1;
    uint64_t whole = tile->size[axis];
    while (whole % grain) whole += tile->size[axis];
    return ops_piece(ops_work(op, &one, tile),
                     front_commands_device(commands)->abilities.dispatch_work, shape->extent[axis],
                     whole);
}

/* Record one dispatch, of the extent of `shape`, with the operands bound from element `start` of
 * the cut on. */
static oxb_status record_piece(oxb_commands *commands, oxb_pipeline *pipeline,
                               const ops_recording *r, const oxb_op_shape *shape, uint64_t start) {
    const oxb_tile *tile = r->tile;
    uint32_t tiles[3];
    for (unsigned i = 0; i < 3; i++) {
        const uint64_t extent = shape->extent[i];
        const uint64_t count = extent / tile->size[i] + (extent % tile->size[i] != 0);
        if (count > UINT32_MAX) {
            return front_fail(OXB_ENCODING_FAILED,
                              "%s: %llu elements in tiles of %u are too many threadgroups: at most "
                              "%u are allowed",
                              pipeline->name, (unsigned long long)extent, tile->size[i],
                              UINT32_MAX);
        }
        tiles[i] = (uint32_t)count;
    }
    oxb_binding bindings[OPS_MAX_OPERANDS];
    front_role roles[OPS_MAX_OPERANDS];
    for (uint32_t i = 0; i < r->n_operands; i++) {
        bindings[i] = r->operands[i].binding;
        if (r->cut) bindings[i].offset += start * r->cut->steps[i];
        roles[i] = (front_role){r->operands[i].name, r->operands[i].written};
    }
    const front_dispatch dispatch = {.bindings = bindings,
                                     .roles = roles,
                                     .args = r->args,
                                     .args_size = r->args_size,
                                     .n_bindings = r->n_operands,
                                     .threadgroups = {tiles[0], tiles[1], tiles[2]},
                                     .threads = {tile->threads, 1, 1},
                                     .work = ops_work(r->op, shape, r->tile)};
    return front_record_dispatch(commands, pipeline, &dispatch);
}

static oxb_status record_cut(oxb_commands *commands, oxb_pipeline *pipeline,
                             const ops_recording *r) {
    const ops_cut *cut = r->cut;
    const uint64_t extent = r->shape->extent[cut->axis];
    const uint64_t counted = cut->count ? *cut->count : 0; /* the extent may be padded */
    const uint32_t mark = oxb_commands_length(commands);
    oxb_status status = OXB_OK;
    for (uint64_t start = 0; start < extent && status == OXB_OK; start += cut->piece) {
        oxb_op_shape shape = *r->shape;
        const uint64_t rest = extent - start, left = counted - start;
        shape.extent[cut->axis] = rest < cut->piece ? rest : cut->piece;
        if (cut->count) *cut->count = (oxb_u32)(left < cut->piece ? left : cut->piece);
        if (cut->first) {
            *cut->first = (oxb_u32)start;
            *cut->end = (oxb_u32)(start + shape.extent[cut->axis]);
        }
        status = record_piece(commands, pipeline, r, &shape, start);
    }
    if (status != OXB_OK) front_commands_cut(commands, mark);
    return status;
}

oxb_status ops_record_tiles(oxb_commands *commands, const ops_recording *r) {
    char name[OXB_NAME_BYTES];
    if (snprintf(name, sizeof name, "%s%s", r->kernel, r->tile->suffix) >= (int)sizeof name) {
        return front_fail(OXB_COMPILATION_FAILED,
                          "%s%s: a kernel's name has at most %u bytes: the driver's suffix is too "
                          "long",
                          r->kernel, r->tile->suffix, OXB_NAME_BYTES - 1);
    }
    oxb_pipeline *pipeline = NULL;
    oxb_status status = front_shipped_pipeline(front_commands_device(commands), name,
                                               r->tile->constants, r->tile->n_constants, &pipeline);
    if (status != OXB_OK) return status;
    return r->cut ? record_cut(commands, pipeline, r)
                  : record_piece(commands, pipeline, r, r->shape, 0);
}
