/* The op layer: (op, format, shape) -> kernel, constants and grid, by what the device's driver says
 * of itself. Here the matrix products, norms and sums, and where a token enters and leaves;
 * attention.c has the heads.
 *
 * Nothing above the op layer names a grid or a threadgroup, and nothing below it checks a shape.
 */
#include <stdio.h>

#include "record.h"

static ops_operand weight_operand(const oxb_weight *weight) {
    return (ops_operand){"weight", {weight->buffer, 0}, weight->buffer->length, 0};
}

static const oxb_device_format_info *format_of(const oxb_weight *weight) {
    return oxb_device_format_of((oxb_device_format)weight->device_format);
}

/* The shape of an op on a weight; its extent is still to be set. */
static oxb_op_shape matrix_shape(const oxb_weight *weight, uint64_t n_rows, uint64_t k) {
    return (oxb_op_shape){.extent = {1, 1, 1},
                          .format = (oxb_device_format)weight->device_format,
                          .layout = weight->layout,
                          .n_rows = n_rows,
                          .k = k};
}

/* A product of a matrix and one or more vectors. */
typedef struct product {
    const char *op;
    const char *gemv, *gemm; /* kernels' names, up to the format */
    oxb_op op_gemv, op_gemm;
    int residual; /* add to y */
    const oxb_weight *weight;
    const oxb_norm *norm; /* of x, or NULL */
    uint64_t n_rows;      /* of the matrix */
    uint64_t k;
    uint64_t n_out; /* rows of the output */
    oxb_binding x, y;
    uint64_t n_vectors;
    uint64_t y_stride; /* 0: n_out */
} product;

/* What the vectors of a product are; GEMV's are float32. */
typedef enum vectors { FLOAT_VECTORS, INT8_VECTORS, HALF_VECTORS } vectors;

/* How the vectors reach the product. */
typedef struct inputs {
    int by_gemv;             /* else by GEMM */
    int fused_norm;          /* the kernel normalises x: operands weight, x, norm, y */
    vectors of;              /* GEMM */
    uint64_t norm_bytes;     /* of the norm of x in the scratch buffer; 0: none */
    uint64_t prepared_bytes; /* of the vectors there; 0: they stay float32 */
} inputs;

static int takes_halves(const oxb_commands *commands, const product *p) {
    const oxb_abilities *abilities = &front_commands_device(commands)->abilities;
    return (abilities->half_products >> p->weight->device_format & 1) &&
           p->n_vectors >= abilities->half_vectors;
}

/* Where every vector has to have the bits that it has alone, GEMV does it, or a GEMM that says so.
 */
static int by_gemv(const oxb_commands *commands, const product *p) {
    const oxb_abilities *abilities = &front_commands_device(commands)->abilities;
    if (p->n_vectors == 1) return 1;
    if (front_commands_deterministic(commands) && !abilities->same_bits) return 1;
    return p->n_vectors <= abilities->gemv_vectors && !takes_halves(commands, p);
}

/* Activations that meet 16 bytes of codes. */
static uint32_t half_block(const oxb_weight *weight) { return 128 / format_of(weight)->bits; }

/* Two halves for each activation, of whole eights of vectors, and a float for each block. */
static uint64_t half_bytes(const product *p) {
    const uint64_t block = half_block(p->weight);
    return (p->n_vectors + 7) / 8 * (p->k / block) * (8 * 4 * block + 8 * 4);
}

static inputs inputs_of(const oxb_commands *commands, const product *p) {
    const oxb_device *device = front_commands_device(commands);
    const oxb_device_format format = (oxb_device_format)p->weight->device_format;
    inputs in = {.by_gemv = by_gemv(commands, p)};
    in.fused_norm =
        p->norm && !p->residual && in.by_gemv && (device->abilities.fused_norm >> format & 1);
    if (!in.by_gemv && takes_halves(commands, p)) {
        in.of = HALF_VECTORS; /* of the norm, where there is one */
        in.prepared_bytes = half_bytes(p);
        return in;
    }
    if (p->norm && !in.fused_norm) in.norm_bytes = p->n_vectors * p->k * 4;
    if (!in.by_gemv && front_commands_in_int8(commands)) {
        in.prepared_bytes =
            p->n_vectors * device->driver->int8_vector_bytes(device->impl, format,
                                                             p->weight->layout, p->k, p->n_vectors);
        if (in.prepared_bytes) in.of = INT8_VECTORS;
    }
    return in;
}

static oxb_status record_gemv(oxb_commands *commands, const product *p, const ops_operand *operands,
                              uint32_t n, uint64_t stride, int fused_norm) {
    oxb_op_shape shape = matrix_shape(p->weight, p->n_rows, p->k);
    shape.extent[0] = p->n_out;
    shape.extent[1] = p->n_vectors;
    oxb_tile tile;
    oxb_status status = ops_tile(commands, p->op_gemv, &shape, &tile);
    if (status != OXB_OK) return status;
    struct oxb_gemv_args args = {.codes_offset = p->weight->codes_offset,
                                 .n_rows = (oxb_u32)p->n_out,
                                 .k = (oxb_u32)p->k,
                                 .column = tile.column,
                                 .eps = fused_norm ? p->norm->eps : 0,
                                 .y_stride = (oxb_u32)stride};
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "%s_%s%s%s", p->gemv, format_of(p->weight)->name,
             p->residual ? "_residual" : "", fused_norm ? "_norm" : "");
    return ops_record_tiles(commands, &tile, shape.extent, kernel, operands, n, &args, sizeof args);
}

/* Operands: weight, x, y; in int8 the quantised x before y, and halves in place of x. */
static oxb_status record_gemm(oxb_commands *commands, const product *p, const ops_operand *operands,
                              uint32_t n, uint64_t stride, vectors of) {
    oxb_op_shape shape = matrix_shape(p->weight, p->n_rows, p->k);
    shape.extent[0] = p->n_out;
    shape.extent[1] = p->n_vectors;
    oxb_tile tile;
    const oxb_op op = of == INT8_VECTORS   ? OXB_OP_GEMM_INT8
                      : of == HALF_VECTORS ? OXB_OP_GEMM_HALVES
                                           : p->op_gemm;
    oxb_status status = ops_tile(commands, op, &shape, &tile);
    if (status != OXB_OK) return status;
    struct oxb_gemm_args args = {.codes_offset = p->weight->codes_offset,
                                 .y_stride = stride,
                                 .n_rows = (oxb_u32)p->n_out,
                                 .k = (oxb_u32)p->k,
                                 .n_vectors = (oxb_u32)p->n_vectors,
                                 .column = tile.column};
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "%s_%s%s%s", p->gemm, format_of(p->weight)->name,
             p->residual ? "_residual" : "",
             of == INT8_VECTORS   ? "_int8"
             : of == HALF_VECTORS ? "_halves"
                                  : "");
    return ops_record_tiles(commands, &tile, shape.extent, kernel, operands, n, &args, sizeof args);
}

static oxb_status record_quantize(oxb_commands *commands, const product *p, const ops_operand *x,
                                  const ops_operand *quantized) {
    const ops_operand operands[] = {*x, *quantized};
    struct oxb_quantize_args args = {(oxb_u32)p->k, (oxb_u32)p->n_vectors,
                                     format_of(p->weight)->group_size, 0};
    oxb_op_shape shape = matrix_shape(p->weight, p->n_rows, p->k);
    shape.extent[0] = p->n_vectors;
    return ops_record(commands, OXB_OP_QUANTIZE, &shape, "quantize_int8", operands, 2, &args,
                      sizeof args);
}

static oxb_status record_halve(oxb_commands *commands, const product *p, const ops_operand *x,
                               const ops_operand *norm, const ops_operand *halves) {
    ops_operand operands[3] = {*x};
    uint32_t n = 1;
    if (p->norm) operands[n++] = *norm;
    operands[n] = *halves;
    operands[n++].written = 1;
    struct oxb_halve_args args = {(oxb_u32)p->k, (oxb_u32)p->n_vectors, half_block(p->weight),
                                  p->norm ? p->norm->eps : 0};
    const uint64_t n_vectors = (p->n_vectors + 7) / 8 * 8;
    oxb_op_shape shape = matrix_shape(p->weight, p->n_rows, p->k);
    shape.extent[0] = p->norm ? n_vectors : p->k;
    shape.extent[1] = p->norm ? 1 : n_vectors;
    return ops_record(commands, p->norm ? OXB_OP_HALVE_NORM : OXB_OP_HALVE, &shape,
                      p->norm ? "halve_norm" : "halve", operands, n, &args, sizeof args);
}

/* Record the product of operands that are checked. */
static oxb_status record_checked(oxb_commands *commands, const product *p, const ops_operand *x,
                                 const ops_operand *norm, const ops_operand *y, uint64_t stride) {
    const inputs in = inputs_of(commands, p);
    oxb_binding scratch = {NULL, 0}; /* the norm of x, then x in int8 or halves */
    const uint64_t bytes = in.norm_bytes + in.prepared_bytes;
    oxb_status status = OXB_OK;
    if (bytes) status = front_commands_scratch(commands, bytes, &scratch.buffer);
    ops_operand operands[4] = {weight_operand(p->weight), *x};
    uint32_t n = 2;
    if (status == OXB_OK && in.norm_bytes) {
        status = oxb_op_rmsnorm(commands, p->x, p->norm->weight, scratch, p->k, p->n_vectors,
                                p->norm->eps);
        operands[1].binding = scratch;
        scratch.offset = in.norm_bytes;
    }
    if (in.fused_norm) operands[n++] = *norm;
    if (status == OXB_OK && in.of == INT8_VECTORS) {
        operands[n++] = (ops_operand){"quantized input", scratch, in.prepared_bytes, 0};
        status = record_quantize(commands, p, operands + 1, operands + 2);
    }
    if (status == OXB_OK && in.of == HALF_VECTORS) {
        operands[1] = (ops_operand){"halves", scratch, in.prepared_bytes, 0};
        status = record_halve(commands, p, x, norm, operands + 1);
    }
    operands[n++] = *y;
    if (status != OXB_OK) return status;
    return in.by_gemv ? record_gemv(commands, p, operands, n, stride, in.fused_norm)
                      : record_gemm(commands, p, operands, n, stride, in.of);
}

/* Rows of y have n elements and are y_stride apart; 0 stands for n. */
static oxb_status check_stride(const char *op, uint64_t y_stride, uint64_t n, uint64_t *stride) {
    *stride = y_stride ? y_stride : n;
    if (*stride >= n && *stride <= OPS_MAX_COUNT) return OXB_OK;
    return front_fail(OXB_ENCODING_FAILED,
                      "%s: y_stride = %llu must lie in %llu..%u, from the rows on", op,
                      (unsigned long long)*stride, (unsigned long long)n, OPS_MAX_COUNT);
}

static oxb_status record_product(oxb_commands *commands, const product *p) {
    oxb_status status = oxb_weight_check(p->weight, p->n_rows, p->k, p->op);
    if (status == OXB_OK) status = ops_check_count(p->op, "n_vectors", p->n_vectors, OPS_MAX_COUNT);
    if (status == OXB_OK && p->norm) status = ops_check_eps(p->op, p->norm->eps);
    if (status != OXB_OK) return status;
    uint64_t stride;
    if ((status = check_stride(p->op, p->y_stride, p->n_out, &stride)) != OXB_OK) return status;
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
    const uint32_t mark = oxb_commands_length(commands);
    status = record_checked(commands, p, &x, operands + 2, &y, stride);
    if (status != OXB_OK) front_commands_cut(commands, mark);
    return status;
}

oxb_status oxb_op_gemv(oxb_commands *commands, const oxb_weight *weight, uint64_t n_rows,
                       uint64_t k, const oxb_norm *norm, oxb_binding x, oxb_binding y,
                       uint64_t n_vectors, uint64_t y_stride, int residual) {
    const product p = {.op = "gemv",
                       .gemv = "gemv",
                       .gemm = "gemm",
                       .op_gemv = OXB_OP_GEMV,
                       .op_gemm = OXB_OP_GEMM,
                       .residual = residual,
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

/* The products of feed_forward, named after their matrices in messages. */
static oxb_status record_feed_forward(oxb_commands *commands, const oxb_feed_forward *f) {
    const product proj = {.op = "feed_forward: attn_proj",
                          .gemv = "gemv",
                          .gemm = "gemm",
                          .op_gemv = OXB_OP_GEMV,
                          .op_gemm = OXB_OP_GEMM,
                          .residual = 1,
                          .weight = f->attn_proj,
                          .n_rows = f->hidden_size,
                          .k = f->attn_size,
                          .n_out = f->hidden_size,
                          .x = f->attn,
                          .y = f->hidden,
                          .n_vectors = f->n_vectors};
    product gate_up = {.op = "feed_forward: gate_up",
                       .gemv = "fused_gate_up_swiglu",
                       .gemm = "fused_gate_up_swiglu_gemm",
                       .op_gemv = OXB_OP_SWIGLU,
                       .op_gemm = OXB_OP_SWIGLU_GEMM,
                       .weight = f->gate_up,
                       .norm = &f->norm,
                       .n_rows = 2 * f->intermediate_size,
                       .k = f->hidden_size,
                       .n_out = f->intermediate_size,
                       .x = f->hidden,
                       .y = f->activated,
                       .n_vectors = f->n_vectors};
    product down = proj;
    down.op = "feed_forward: down";
    down.weight = f->down;
    down.k = f->intermediate_size;
    down.x = f->activated;
    oxb_status status = record_product(commands, &proj);
    if (status == OXB_OK && f->normed.buffer) {
        status = oxb_op_rmsnorm(commands, f->hidden, f->norm.weight, f->normed, f->hidden_size,
                                f->n_vectors, f->norm.eps);
        gate_up.norm = NULL;
        gate_up.x = f->normed;
    }
    if (status == OXB_OK) status = record_product(commands, &gate_up);
    if (status == OXB_OK) status = record_product(commands, &down);
    return status;
}

oxb_status oxb_op_feed_forward(oxb_commands *commands, const oxb_feed_forward *f) {
    const uint32_t mark = oxb_commands_length(commands);
    oxb_status status = ops_check_count("feed_forward", "intermediate_size", f->intermediate_size,
                                        OPS_MAX_COUNT / 2);
    if (status == OXB_OK) status = record_feed_forward(commands, f);
    if (status != OXB_OK) front_commands_cut(commands, mark);
    return status;
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
    const oxb_op_shape shape = {.extent = {n_vectors, 1, 1}};
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

oxb_status oxb_op_add_bias(oxb_commands *commands, oxb_binding bias, oxb_binding y, uint64_t n,
                           uint64_t n_vectors, uint64_t y_stride) {
    const char *op = "add_bias";
    uint64_t stride;
    oxb_status status = ops_check_count(op, "n", n, OPS_MAX_COUNT);
    if (status == OXB_OK) status = ops_check_count(op, "n_vectors", n_vectors, OPS_MAX_COUNT);
    if (status == OXB_OK) status = check_stride(op, y_stride, n, &stride);
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
    ops_operand operands[] = {weight_operand(weight),
                              {"tokens", tokens, 4, 0},
                              ops_states_operand(state, batch ? n_tokens : 1, 0),
                              {"output", y, n_tokens * k * 4, 1}};
    if ((status = ops_check_operands(op, operands, 4)) != OXB_OK) return status;
    oxb_op_shape shape = matrix_shape(weight, n_rows, k);
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
    snprintf(kernel, sizeof kernel, "embed_%s", format_of(weight)->name);
    return ops_record_tiles(commands, &tile, shape.extent, kernel, operands, 4, &args, sizeof args);
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
        const oxb_op_shape shape = {.extent = {n_vectors, 1, 1}};
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
        const oxb_op_shape shape = {.extent = {1, 1, 1}};
        status = ops_record(commands, OXB_OP_ADVANCE, &shape, "advance", operands, 3, &args,
                            sizeof args);
    }
    if (status != OXB_OK) front_commands_cut(commands, mark);
    return status;
}
