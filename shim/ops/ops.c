/* The op layer: (op, format, shape) -> kernel, constants and grid for the device at hand. Here the
 * matrix products, norms and sums, and where a token enters and leaves; ops_attention.c has the
 * heads.
 *
 * Nothing above the op layer names a grid or a threadgroup, and nothing below it checks a shape.
 */
#include <stdio.h>

#include "record.h"

static ops_operand weight_operand(const oxb_weight *weight) {
    return (ops_operand){"weight", {weight->buffer, 0}, weight->buffer->length, 0};
}

static const char *format_of(const oxb_weight *weight) {
    return oxb_device_format_of((oxb_device_format)weight->device_format)->name;
}

/* Kernels that read nothing but another layout are named after it; those of GPUs are told by
 * `column`. */
static const char *layout_of(const oxb_weight *weight) {
    static const char *const suffix[OXB_LAYOUT_COUNT] = {"", "_panels", "_trits", ""};
    return weight->layout < OXB_LAYOUT_COUNT ? suffix[weight->layout] : "";
}

static oxb_u32 column_of(const oxb_weight *weight) {
    return weight->layout == OXB_LAYOUT_COLUMNS ? weight->n_rows : 0;
}

/* A product of a matrix and one or more vectors. */
typedef struct product {
    const char *op;
    const char *gemv, *gemm; /* kernels: prefix and suffix around the format */
    const char *suffix;
    oxb_op op_gemv, op_gemm;
    const oxb_weight *weight;
    const oxb_norm *norm; /* of x, or NULL */
    uint64_t n_rows;      /* of the matrix */
    uint64_t k;
    uint64_t n_out; /* rows of the output */
    oxb_binding x, y;
    uint64_t n_vectors;
    uint64_t y_stride; /* 0: n_out */
} product;

static oxb_status record_gemv(oxb_commands *commands, const product *p, const ops_operand *operands,
                              uint32_t n) {
    const oxb_device_info *info = &front_commands_device(commands)->info;
    struct oxb_gemv_args args = {.codes_offset = p->weight->codes_offset,
                                 .n_rows = (oxb_u32)p->n_out,
                                 .k = (oxb_u32)p->k,
                                 .column = column_of(p->weight),
                                 .eps = n > 3 ? p->norm->eps : 0};
    oxb_tile tile =
        ops_gemv_tile(info, p->op_gemv, (oxb_device_format)p->weight->device_format, p->n_out);
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "%s_%s%s%s%s", p->gemv, format_of(p->weight), p->suffix,
             n > 3 ? "_norm" : "", layout_of(p->weight));
    const uint64_t units[3] = {p->n_out, 1, 1};
    return ops_record(commands, &tile, kernel, operands, n, &args, sizeof args, units);
}

/* Operands: weight, x, y; with the quantised x before y, in int8. */
static oxb_status record_gemm(oxb_commands *commands, const product *p, const ops_operand *operands,
                              uint32_t n, uint64_t stride) {
    const oxb_device_info *info = &front_commands_device(commands)->info;
    struct oxb_gemm_args args = {.codes_offset = p->weight->codes_offset,
                                 .y_stride = stride,
                                 .n_rows = (oxb_u32)p->n_out,
                                 .k = (oxb_u32)p->k,
                                 .n_vectors = (oxb_u32)p->n_vectors,
                                 .column = column_of(p->weight)};
    const int int8 = n > 3;
    oxb_tile tile = ops_gemm_tile(info, int8 ? OXB_OP_GEMM_INT8 : p->op_gemm, p->n_vectors);
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "%s_%s%s%s%s", p->gemm, format_of(p->weight), p->suffix,
             int8 ? "_int8" : "", layout_of(p->weight));
    const uint64_t units[3] = {p->n_out, p->n_vectors, 1};
    return ops_record(commands, &tile, kernel, operands, n, &args, sizeof args, units);
}

/* Record the norm of x on its own into `to`, and put that in the place of x. */
static oxb_status record_norm(oxb_commands *commands, const product *p, oxb_binding to,
                              ops_operand *x) {
    oxb_status status =
        oxb_op_rmsnorm(commands, p->x, p->norm->weight, to, p->k, p->n_vectors, p->norm->eps);
    x->binding = to;
    return status;
}

/* Whether the vectors are rounded to int8, and the bytes that they then take. */
static int is_int8(const oxb_commands *commands, const product *p, uint64_t *bytes) {
    *bytes = 0;
    if (!front_commands_in_int8(commands) || p->n_vectors < OPS_LEAST_INT8_VECTORS) return 0;
    if (p->weight->layout != OXB_LAYOUT_PANELS && p->weight->layout != OXB_LAYOUT_TRITS) return 0;
    *bytes =
        p->n_vectors *
        ops_int8_bytes(
            p->k, oxb_device_format_of((oxb_device_format)p->weight->device_format)->group_size);
    return 1;
}

static oxb_status record_quantize(oxb_commands *commands, const product *p, const ops_operand *x,
                                  const ops_operand *quantized) {
    const ops_operand operands[] = {*x, *quantized};
    struct oxb_quantize_args args = {
        (oxb_u32)p->k, (oxb_u32)p->n_vectors,
        oxb_device_format_of((oxb_device_format)p->weight->device_format)->group_size, 0};
    oxb_tile tile = ops_tile_of(&front_commands_device(commands)->info, OXB_OP_QUANTIZE);
    const uint64_t units[3] = {p->n_vectors, 1, 1};
    return ops_record(commands, &tile, "quantize_int8", operands, 2, &args, sizeof args, units);
}

static oxb_status record_product(oxb_commands *commands, const product *p) {
    oxb_status status = oxb_weight_check(p->weight, p->n_rows, p->k, p->op);
    if (status == OXB_OK) status = ops_check_count(p->op, "n_vectors", p->n_vectors, OPS_MAX_COUNT);
    if (status == OXB_OK && p->norm) status = ops_check_eps(p->op, p->norm->eps);
    if (status != OXB_OK) return status;
    uint64_t stride = p->y_stride ? p->y_stride : p->n_out;
    if (stride < p->n_out || stride > OPS_MAX_COUNT) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: y_stride = %llu must lie in %llu..%u, from the rows on", p->op,
                          (unsigned long long)stride, (unsigned long long)p->n_out, OPS_MAX_COUNT);
    }
    /* Both factors are below 2^31. */
    const ops_operand x = {"input", p->x, p->n_vectors * p->k * 4, 0};
    const ops_operand y = {"output", p->y, ((p->n_vectors - 1) * stride + p->n_out) * 4, 1};
    ops_operand operands[4] = {weight_operand(p->weight), x, y};
    uint32_t n = 3;
    if (p->norm) {
        operands[2] = (ops_operand){"norm", p->norm->weight, p->k * 4, 0};
        operands[n++] = y;
    }
    if ((status = ops_check_operands(p->op, operands, n)) != OXB_OK) return status;
    for (uint32_t i = 1; i + 1 < n; i++) {
        if ((status = ops_check_apart(p->op, operands + i, &y)) != OXB_OK) return status;
    }
    const oxb_device_info *info = &front_commands_device(commands)->info;
    const uint32_t mark = oxb_commands_length(commands);
    const int residual = p->suffix[0] != 0;
    const int apart =
        p->norm && (residual || p->n_vectors > 1 ||
                    !ops_norm_is_fused(info, (oxb_device_format)p->weight->device_format));
    uint64_t int8_bytes;
    const int int8 = is_int8(commands, p, &int8_bytes);
    oxb_binding scratch = {NULL, 0}; /* the norm of x, then x in int8 */
    if (apart || int8)
        status =
            front_commands_scratch(commands, (apart ? x.bytes : 0) + int8_bytes, &scratch.buffer);
    if (status == OXB_OK && apart) {
        status = record_norm(commands, p, scratch, operands + 1);
        operands[2] = y;
        n = 3;
        scratch.offset = x.bytes;
    }
    if (status == OXB_OK && int8) {
        operands[2] = (ops_operand){"quantized input", scratch, int8_bytes, 0};
        operands[n++] = y;
        status = record_quantize(commands, p, operands + 1, operands + 2);
    }
    if (status == OXB_OK) {
        status = p->n_vectors == 1 ? record_gemv(commands, p, operands, n)
                                   : record_gemm(commands, p, operands, n, stride);
    }
    if (status != OXB_OK) front_commands_cut(commands, mark);
    return status;
}

oxb_status oxb_op_gemv(oxb_commands *commands, const oxb_weight *weight, uint64_t n_rows,
                       uint64_t k, const oxb_norm *norm, oxb_binding x, oxb_binding y,
                       uint64_t n_vectors, uint64_t y_stride, int residual) {
    const product p = {.op = "gemv",
                       .gemv = "gemv",
                       .gemm = "gemm",
                       .suffix = residual ? "_residual" : "",
                       .op_gemv = OXB_OP_GEMV,
                       .op_gemm = OXB_OP_GEMM,
                       .weight = weight,
                       .norm = norm,
                       .n_rows = n_rows,
                       .k = k,
                       .n_out = n_rows,
                       .x = x,
                       .y = y,
                       .n_vectors = n_vectors,
                       .y_stride = y_stride};
    return record_product(commands, &p);
}

oxb_status oxb_op_gate_up_swiglu(oxb_commands *commands, const oxb_weight *weight, uint64_t n_rows,
                                 uint64_t k, const oxb_norm *norm, oxb_binding x, oxb_binding s,
                                 uint64_t n_vectors) {
    const product p = {.op = "gate_up_swiglu",
                       .gemv = "fused_gate_up_swiglu",
                       .gemm = "fused_gate_up_swiglu_gemm",
                       .suffix = "",
                       .op_gemv = OXB_OP_SWIGLU,
                       .op_gemm = OXB_OP_SWIGLU_GEMM,
                       .weight = weight,
                       .norm = norm,
                       .n_rows = n_rows,
                       .k = k,
                       .n_out = n_rows / 2,
                       .x = x,
                       .y = s,
                       .n_vectors = n_vectors};
    if (n_rows % 2) {
        return front_fail(OXB_ENCODING_FAILED, "%s: %llu rows: gate and up need an even number",
                          p.op, (unsigned long long)n_rows);
    }
    return record_product(commands, &p);
}

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
    oxb_tile tile = ops_tile_of(&front_commands_device(commands)->info, OXB_OP_RMSNORM);
    const uint64_t units[3] = {n_vectors, 1, 1};
    return ops_record(commands, &tile, "rmsnorm", operands, 3, &args, sizeof args, units);
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
    oxb_tile tile = ops_tile_of(&front_commands_device(commands)->info, OXB_OP_ADD);
    const uint64_t units[3] = {n, 1, 1};
    return ops_record(commands, &tile, "residual_add", operands, 2, &args, sizeof args, units);
}

oxb_status oxb_op_embed(oxb_commands *commands, const oxb_weight *weight, uint64_t n_rows,
                        uint64_t k, oxb_binding tokens, oxb_binding state, oxb_binding y,
                        uint64_t n_tokens) {
    const char *op = "embed";
    oxb_status status = oxb_weight_check(weight, n_rows, k, op);
    if (status == OXB_OK) status = ops_check_count(op, "n_tokens", n_tokens, OPS_MAX_COUNT);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {weight_operand(weight),
                              {"tokens", tokens, 4, 0},
                              ops_state_operand(state, 0),
                              {"output", y, n_tokens * k * 4, 1}};
    if ((status = ops_check_operands(op, operands, 4)) != OXB_OK) return status;
    uint64_t max_tokens = (tokens.buffer->length - tokens.offset) / 4;
    struct oxb_embed_args args = {
        .codes_offset = weight->codes_offset,
        .n_rows = (oxb_u32)n_rows,
        .k = (oxb_u32)k,
        .max_tokens = (oxb_u32)(max_tokens < OPS_MAX_COUNT ? max_tokens : OPS_MAX_COUNT),
        .n_tokens = (oxb_u32)n_tokens,
        .column = column_of(weight)};
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "embed_%s%s", format_of(weight), layout_of(weight));
    oxb_tile tile = ops_tile_of(&front_commands_device(commands)->info, OXB_OP_EMBED);
    const uint64_t units[3] = {k, n_tokens, 1};
    return ops_record(commands, &tile, kernel, operands, 4, &args, sizeof args, units);
}

/* Record the best of each part of the logits, and give where they are. */
static oxb_status record_argmax_parts(oxb_commands *commands, const ops_operand *logits, uint64_t n,
                                      uint64_t n_vectors, ops_operand *best, uint32_t *n_parts) {
    *n_parts = (uint32_t)((n + OXB_ARGMAX_PART - 1) / OXB_ARGMAX_PART);
    uint64_t bytes = n_vectors * *n_parts * sizeof(struct oxb_best);
    oxb_buffer *buffer = NULL;
    oxb_status status = front_commands_scratch(commands, bytes, &buffer);
    if (status != OXB_OK) return status;
    *best = (ops_operand){"best", {buffer, 0}, bytes, 0};
    const ops_operand operands[] = {*logits, *best};
    struct oxb_argmax_parts_args args = {(oxb_u32)n, (oxb_u32)n_vectors, *n_parts, 0};
    oxb_tile tile = ops_tile_of(&front_commands_device(commands)->info, OXB_OP_ARGMAX_PARTS);
    const uint64_t units[3] = {n, n_vectors, 1};
    return ops_record(commands, &tile, "argmax_parts", operands, 2, &args, sizeof args, units);
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
    status = record_argmax_parts(commands, &from, n, n_vectors, operands, &args.n_parts);
    if (status == OXB_OK) {
        oxb_tile tile = ops_tile_of(&front_commands_device(commands)->info, OXB_OP_ARGMAX);
        const uint64_t units[3] = {n_vectors, 1, 1};
        status = ops_record(commands, &tile, "argmax", operands, 2, &args, sizeof args, units);
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
        status = record_argmax_parts(commands, &from, n, 1, operands, &args.n_parts);
    } else {
        operands[0] = ops_state_operand(state, 0); /* not read */
    }
    if (status == OXB_OK) {
        oxb_tile tile = ops_tile_of(&front_commands_device(commands)->info, OXB_OP_ADVANCE);
        const uint64_t units[3] = {1, 1, 1};
        status = ops_record(commands, &tile, "advance", operands, 3, &args, sizeof args, units);
    }
    if (status != OXB_OK) front_commands_cut(commands, mark);
    return status;
}
