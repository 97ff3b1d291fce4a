/* The op layer: (op, format, shape) -> kernel, constants and grid, by what the device's driver says
 * of itself. Here norms, sums and copies, and where a token enters and leaves; product.c has the
 * products of matrices, attention.c the heads, recurrent.c what carries a state from token to
 * token, rotation.c the Hadamard transform, sample.c the choice of a token.
 *
 * Nothing above the op layer names a grid or a threadgroup, and nothing below it checks a shape.
 */
#include <stdio.h>

#include "record.h"

oxb_status oxb_op_rmsnorm(oxb_commands *commands, oxb_binding x, oxb_binding weight, oxb_binding y,
                          uint64_t n, uint64_t n_vectors, float eps) {
    const char *op = "rmsnorm";
    oxb_status status = ops_check_count(op, "n", n, OPS_MAX_COUNT);
    if (status == OXB_OK) status = ops_check_count(op, "n_vectors", n_vectors, OPS_MAX_COUNT);
    if (status == OXB_OK) status = ops_check_eps(op, eps);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {{"input", x, n * n_vectors * 4, 0},
                              {"weight", weight, n * 4, 0},
                              {"output", y, n * n_vectors * 4, 1}};
    if ((status = ops_check_operands(op, operands, 3)) != OXB_OK) return status;
    /* In place is fine, a shifted overlap is not. */
    if (x.buffer == y.buffer && x.offset != y.offset &&
        (status = ops_check_apart(op, operands, operands + 2)) != OXB_OK)
        return status;
    if ((status = ops_check_apart(op, operands + 1, operands + 2)) != OXB_OK) return status;
    struct oxb_rmsnorm_args args = {(oxb_u32)n, (oxb_u32)n_vectors, eps, 0};
    const oxb_op_shape shape = {.extent = {n_vectors, 1, 1}, .elements = n};
    return ops_record(commands, OXB_OP_RMSNORM, &shape, "rmsnorm", operands, 3, &args, sizeof args);
}

oxb_status oxb_op_add(oxb_commands *commands, oxb_binding x, oxb_binding y, uint64_t n) {
    const char *op = "add";
    oxb_status status = ops_check_count(op, "n", n, (uint64_t)1 << 40);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {{"input", x, n * 4, 0}, {"output", y, n * 4, 1}};
    if ((status = ops_check_operands(op, operands, 2)) != OXB_OK) return status;
    if (x.offset != y.offset && (status = ops_check_apart(op, operands, operands + 1)) != OXB_OK)
        return status;
    struct oxb_add_args args = {n, 0};
    const oxb_op_shape shape = {.extent = {n, 1, 1}};
    return ops_record(commands, OXB_OP_ADD, &shape, "residual_add", operands, 2, &args,
                      sizeof args);
}

oxb_status oxb_op_copy(oxb_commands *commands, oxb_binding x, oxb_binding y, uint64_t n) {
    const char *op = "copy";
    oxb_status status = ops_check_count(op, "n", n, (uint64_t)1 << 40);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {{"input", x, n * 4, 0}, {"output", y, n * 4, 1}};
    if ((status = ops_check_operands(op, operands, 2)) != OXB_OK) return status;
    if ((status = ops_check_apart(op, operands, operands + 1)) != OXB_OK) return status;
    struct oxb_copy_args args = {n, 0};
    const oxb_op_shape shape = {.extent = {n, 1, 1}};
    return ops_record(commands, OXB_OP_COPY, &shape, "copy", operands, 2, &args, sizeof args);
}

oxb_status oxb_op_add_bias(oxb_commands *commands, oxb_binding bias, oxb_binding y, uint64_t n,
                           uint64_t n_vectors, uint64_t y_stride) {
    const char *op = "add_bias";
    uint64_t stride;
    oxb_status status = ops_check_count(op, "n", n, OPS_MAX_COUNT);
    if (status == OXB_OK) status = ops_check_count(op, "n_vectors", n_vectors, OPS_MAX_COUNT);
    if (status == OXB_OK) status = ops_check_stride(op, "y_stride", y_stride, n, &stride);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {{"bias", bias, n * 4, 0},
                              {"output", y, ((n_vectors - 1) * stride + n) * 4, 1}};
    if ((status = ops_check_operands(op, operands, 2)) != OXB_OK) return status;
    if ((status = ops_check_apart(op, operands, operands + 1)) != OXB_OK) return status;
    struct oxb_bias_args args = {stride, (oxb_u32)n, (oxb_u32)n_vectors};
    const oxb_op_shape extent = {.extent = {n, n_vectors, 1}};
    return ops_record(commands, OXB_OP_BIAS, &extent, "bias_add", operands, 2, &args, sizeof args);
}

oxb_status oxb_op_embed(oxb_commands *commands, const oxb_weight *weight, uint64_t n_rows,
                        uint64_t k, oxb_binding tokens, oxb_binding state, oxb_binding y,
                        uint64_t n_tokens, int batch) {
    const char *op = "embed";
    oxb_status status = oxb_weight_check(weight, n_rows, k, op);
    if (status == OXB_OK) status = ops_check_count(op, "n_tokens", n_tokens, OPS_MAX_COUNT);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {ops_weight_operand(weight),
                              {"tokens", tokens, 4, 0},
                              ops_states_operand(state, batch ? n_tokens : 1, 0),
                              {"output", y, n_tokens * k * 4, 1}};
    if ((status = ops_check_operands(op, operands, 4)) != OXB_OK) return status;
    oxb_op_shape shape = ops_matrix_shape(weight, n_rows, k);
    shape.extent[0] = k;
    shape.extent[1] = n_tokens;
    oxb_tile tile;
    if ((status = ops_tile(commands, OXB_OP_EMBED, &shape, &tile)) != OXB_OK) return status;
    uint64_t max_tokens = (tokens.buffer->length - tokens.offset) / 4;
    struct oxb_embed_args args = {
        .codes_offset = weight->codes_offset,
        .n_rows = (oxb_u32)n_rows,
        .k = (oxb_u32)k,
        .max_tokens = (oxb_u32)(max_tokens < OPS_MAX_COUNT ? max_tokens : OPS_MAX_COUNT),
        .n_tokens = (oxb_u32)n_tokens,
        .column = tile.column,
        .batch = batch != 0};
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "embed_%s", ops_format_of(weight)->name);
    const ops_recording recording = {.op = OXB_OP_EMBED,
                                     .shape = &shape,
                                     .tile = &tile,
                                     .kernel = kernel,
                                     .operands = operands,
                                     .n_operands = 4,
                                     .args_size = sizeof args,
                                     .args = &args};
    return ops_record_tiles(commands, &recording);
}

/* Record the best of each block of logits, and give where they are. */
static oxb_status record_argmax_blocks(oxb_commands *commands, const ops_operand *logits,
                                       uint64_t n, uint64_t n_vectors, ops_operand *best,
                                       uint32_t *n_blocks) {
    *n_blocks = (uint32_t)((n + OXB_ARGMAX_BLOCK - 1) / OXB_ARGMAX_BLOCK);
    uint64_t bytes = n_vectors * *n_blocks * sizeof(struct oxb_best);
    oxb_buffer *buffer = NULL;
    oxb_status status = front_commands_scratch(commands, bytes, &buffer);
    if (status != OXB_OK) return status;
    *best = (ops_operand){"best", {buffer, 0}, bytes, 0};
    const ops_operand operands[] = {*logits, *best};
    struct oxb_argmax_blocks_args args = {(oxb_u32)n, (oxb_u32)n_vectors, *n_blocks, 0};
    const oxb_op_shape shape = {.extent = {n, n_vectors, 1}};
    return ops_record(commands, OXB_OP_ARGMAX_BLOCKS, &shape, "argmax_blocks", operands, 2, &args,
                      sizeof args);
}

oxb_status oxb_op_argmax(oxb_commands *commands, oxb_binding logits, oxb_binding out, uint64_t n,
                         uint64_t n_vectors) {
    const char *op = "argmax";
    oxb_status status = ops_check_count(op, "n", n, OPS_MAX_COUNT);
    if (status == OXB_OK) status = ops_check_count(op, "n_vectors", n_vectors, OPS_MAX_COUNT);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {{"logits", logits, n * n_vectors * 4, 0},
                              {"output", out, n_vectors * 4, 1}};
    if ((status = ops_check_operands(op, operands, 2)) != OXB_OK) return status;
    if ((status = ops_check_apart(op, operands, operands + 1)) != OXB_OK) return status;
    const uint32_t mark = oxb_commands_length(commands);
    struct oxb_argmax_args args = {.n_vectors = (oxb_u32)n_vectors};
    const ops_operand from = operands[0];
    status = record_argmax_blocks(commands, &from, n, n_vectors, operands, &args.n_blocks);
    if (status == OXB_OK) {
        const oxb_op_shape shape = {.extent = {n_vectors, 1, 1}, .elements = args.n_blocks};
        status =
            ops_record(commands, OXB_OP_ARGMAX, &shape, "argmax", operands, 2, &args, sizeof args);
    }
    if (status != OXB_OK) front_commands_cut(commands, mark);
    return status;
}

oxb_status oxb_op_advance(oxb_commands *commands, oxb_binding logits, oxb_binding tokens,
                          oxb_binding state, uint64_t n, uint64_t max_tokens, uint64_t n_tokens,
                          int greedy) {
    const char *op = "advance";
    oxb_status status = ops_check_count(op, "n", n, OPS_MAX_COUNT);
    if (status == OXB_OK) status = ops_check_count(op, "max_tokens", max_tokens, 1u << 25);
    if (status == OXB_OK) status = ops_check_count(op, "n_tokens", n_tokens, 1u << 25);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {{"logits", logits, n * 4, 0},
                              {"tokens", tokens, max_tokens * 4, 1},
                              ops_state_operand(state, 1)};
    if ((status = ops_check_operands(op, operands, 3)) != OXB_OK) return status;
    const uint32_t mark = oxb_commands_length(commands);
    struct oxb_advance_args args = {.max_tokens = (oxb_u32)max_tokens,
                                    .n_tokens = (oxb_u32)n_tokens};
    const ops_operand from = operands[0];
    if (greedy) {
        status = record_argmax_blocks(commands, &from, n, 1, operands, &args.n_blocks);
    } else {
        operands[0] = ops_state_operand(state, 0); /* not read */
    }
    if (status == OXB_OK) {
        const oxb_op_shape shape = {.extent = {1, 1, 1}, .elements = args.n_blocks};
        status = ops_record(commands, OXB_OP_ADVANCE, &shape, "advance", operands, 3, &args,
                            sizeof args);
    }
    if (status != OXB_OK) front_commands_cut(commands, mark);
    return status;
}
