/* The op layer's products of a matrix and vectors: by which kernel, from what form of the vectors,
 * and in how many dispatches. */
#include <stdio.h>

#include "record.h"

/* A product of a matrix and one or more vectors. */
typedef struct product {
    const char *op;
    const char *gemv, *gemm; /* kernels' names, up to the format */
    oxb_op op_gemv, op_gemm;
    int residual; /* add to y */
    const oxb_weight *weight;
    const oxb_norm *norm;         /* of x, or NULL */
    const oxb_rotation *rotation; /* of x or its norm, or NULL */
    const char *rotation_op;      /* what errors of it name */
    uint64_t n_rows;              /* of the matrix */
    uint64_t k;
    uint64_t n_out; /* rows of the output */
    oxb_binding x, y;
    uint64_t n_vectors;
    uint64_t y_stride; /* 0: n_out */
} product;

/* What the vectors of a product are; GEMV's are float32. */
typedef enum vector_form {
    FLOAT_VECTORS,
    INT8_VECTORS,
    HALVES_VECTORS, /* two halves of each activation */
    HALF_VECTORS    /* one */
} vector_form;

/* How the vectors reach the product. */
typedef struct inputs {
    int by_gemv;             /* else by GEMM */
    int fused_norm;          /* the kernel normalises x: operands weight, x, norm, y */
    vector_form of;          /* GEMM */
    uint64_t norm_bytes;     /* of the norm of x in the scratch buffer; 0: none */
    uint64_t prepared_bytes; /* of the vectors there; 0: they stay float32 */
} inputs;

static int takes_halves(const oxb_commands *commands, const product *p) {
    const oxb_abilities *abilities = &front_commands_device(commands)->abilities;
    return (abilities->half_products >> p->weight->device_format & 1) &&
           p->n_vectors >= abilities->half_vectors;
}

/* One half of each, where the recording is in half. Their kernel finds rows and vectors by 32 bits:
 * bytes of codes, and 16 bytes of halves. */
static int takes_half(const oxb_commands *commands, const product *p) {
    const oxb_abilities *abilities = &front_commands_device(commands)->abilities;
    return front_commands_in_half(commands) &&
           (abilities->rounded_products >> p->weight->device_format & 1) &&
           p->n_vectors >= abilities->rounded_vectors &&
           p->n_rows * p->k / 8 * ops_format_of(p->weight)->bits <= UINT32_MAX &&
           (p->n_vectors + 7) / 8 * p->k <= UINT32_MAX;
}

/* Where every vector has to have the bits that it has alone, GEMV does it, or a GEMM that says so.
 */
static int by_gemv(const oxb_commands *commands, const product *p) {
    const oxb_abilities *abilities = &front_commands_device(commands)->abilities;
    if (p->n_vectors == 1) return 1;
    if (front_commands_deterministic(commands) && !abilities->same_bits) return 1;
    return p->n_vectors <= abilities->gemv_vectors && !takes_halves(commands, p) &&
           !takes_half(commands, p);
}

/* Activations that meet 16 bytes of codes. */
static uint32_t half_block(const oxb_weight *weight) { return 128 / ops_format_of(weight)->bits; }

/* Eight vectors: two halves for each activation, and a float for each block of each; or one half
 * for each, and a float for each vector. */
static uint64_t eight_bytes(const product *p, vector_form of) {
    const uint64_t block = half_block(p->weight);
    return of == HALF_VECTORS ? 8 * 2 * p->k + 8 * 4 : p->k / block * (8 * 4 * block + 8 * 4);
}

static inputs inputs_of(const oxb_commands *commands, const product *p) {
    const oxb_device *device = front_commands_device(commands);
    const oxb_device_format format = (oxb_device_format)p->weight->device_format;
    inputs in = {.by_gemv = by_gemv(commands, p)};
    /* A kernel may read the weight of its norm ahead of the dispatch before, as it does the matrix.
     */
    in.fused_norm = p->norm && !p->residual && in.by_gemv &&
                    (device->abilities.fused_norm >> format & 1) &&
                    !front_commands_writes(commands, p->norm->weight.buffer);
    const int half = takes_half(commands, p);
    if (!in.by_gemv && (half || takes_halves(commands, p))) {
        in.of = half ? HALF_VECTORS : HALVES_VECTORS; /* of the norm, where there is one */
        in.prepared_bytes = (p->n_vectors + 7) / 8 * eight_bytes(p, in.of);
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

/* A product in dispatches of `piece` vectors. */
typedef struct pieces {
    oxb_op op;
    oxb_op_shape shape;
    oxb_tile tile;
    uint64_t piece;
} pieces;

static oxb_status cut_product(const oxb_commands *commands, const product *p, const inputs *in,
                              pieces *found) {
    found->op = in->by_gemv                ? p->op_gemv
                : in->of == INT8_VECTORS   ? OXB_OP_GEMM_INT8
                : in->of == HALVES_VECTORS ? OXB_OP_GEMM_HALVES
                : in->of == HALF_VECTORS   ? OXB_OP_GEMM_HALF
                                           : p->op_gemm;
    found->shape = ops_matrix_shape(p->weight, p->n_rows, p->k);
    found->shape.extent[0] = p->n_out;
    found->shape.extent[1] = p->n_vectors;
    oxb_status status = ops_tile(commands, found->op, &found->shape, &found->tile);
    if (status != OXB_OK) return status;
    /* Halves lie in eights of vectors. Of int8 vectors only the driver knows how they lie. */
    found->piece = in->of == INT8_VECTORS
                       ? p->n_vectors
                       : ops_piece_of(commands, found->op, &found->shape, &found->tile, 1,
                                      in->of == FLOAT_VECTORS ? 1 : 8);
    return OXB_OK;
}

/* Operands: weight, x, then in int8 the quantised x and with a norm its weight, y; halves in place
 * of x. `x_step` is from vector to vector. */
static oxb_status record_pieces(oxb_commands *commands, const product *p, const inputs *in,
                                const pieces *cut, const ops_operand *operands, uint32_t n,
                                uint64_t x_step, uint64_t stride) {
    struct oxb_gemv_args gemv = {.codes_offset = p->weight->codes_offset,
                                 .n_rows = (oxb_u32)p->n_out,
                                 .k = (oxb_u32)p->k,
                                 .column = cut->tile.column,
                                 .eps = in->fused_norm ? p->norm->eps : 0,
                                 .y_stride = (oxb_u32)stride};
    struct oxb_gemm_args gemm = {.codes_offset = p->weight->codes_offset,
                                 .y_stride = stride,
                                 .n_rows = (oxb_u32)p->n_out,
                                 .k = (oxb_u32)p->k,
                                 .n_vectors = (oxb_u32)p->n_vectors,
                                 .column = cut->tile.column};
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "%s_%s%s%s", in->by_gemv ? p->gemv : p->gemm,
             ops_format_of(p->weight)->name, p->residual ? "_residual" : "",
             in->fused_norm             ? "_norm"
             : in->of == INT8_VECTORS   ? "_int8"
             : in->of == HALVES_VECTORS ? "_halves"
             : in->of == HALF_VECTORS   ? "_half"
                                        : "");
    ops_cut vectors = {
        .axis = 1, .piece = cut->piece, .count = in->by_gemv ? NULL : &gemm.n_vectors};
    vectors.steps[1] = x_step;
    vectors.steps[n - 1] = stride * 4;
    const ops_recording recording = {.op = cut->op,
                                     .shape = &cut->shape,
                                     .tile = &cut->tile,
                                     .kernel = kernel,
                                     .operands = operands,
                                     .n_operands = n,
                                     .args_size = in->by_gemv ? sizeof gemv : sizeof gemm,
                                     .args = in->by_gemv ? (void *)&gemv : (void *)&gemm,
                                     .cut = &vectors};
    return ops_record_tiles(commands, &recording);
}

static oxb_status record_quantize(oxb_commands *commands, const product *p, const ops_operand *x,
                                  const ops_operand *quantized) {
    const ops_operand operands[] = {*x, *quantized};
    struct oxb_quantize_args args = {(oxb_u32)p->k, (oxb_u32)p->n_vectors,
                                     ops_format_of(p->weight)->group_size, 0};
    oxb_op_shape shape = ops_matrix_shape(p->weight, p->n_rows, p->k);
    shape.extent[0] = p->n_vectors;
    shape.elements = p->k;
    return ops_record(commands, OXB_OP_QUANTIZE, &shape, "quantize_int8", operands, 2, &args,
                      sizeof args);
}

/* Where pieces of the product begin, so do halves of their own. */
static oxb_status record_halve(oxb_commands *commands, const product *p, vector_form of,
                               const ops_operand *x, const ops_operand *norm,
                               const ops_operand *halves, uint64_t piece, uint64_t step) {
    const oxb_op op = of == HALF_VECTORS ? OXB_OP_ROUND_HALF
                      : p->norm          ? OXB_OP_HALVE_NORM
                                         : OXB_OP_HALVE;
    const int whole = op != OXB_OP_HALVE; /* a threadgroup has a whole vector */
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "%s%s", of == HALF_VECTORS ? "round_half" : "halve",
             p->norm ? "_norm" : "");
    ops_operand operands[3] = {*x};
    uint32_t n = 1;
    if (p->norm) operands[n++] = *norm;
    operands[n] = *halves;
    operands[n++].written = 1;
    struct oxb_halve_args args = {(oxb_u32)p->k, (oxb_u32)p->n_vectors, half_block(p->weight),
                                  p->norm ? p->norm->eps : 0};
    const uint64_t n_vectors = (p->n_vectors + 7) / 8 * 8;
    oxb_op_shape shape = ops_matrix_shape(p->weight, p->n_rows, p->k);
    shape.extent[0] = whole ? n_vectors : p->k;
    shape.extent[1] = whole ? 1 : n_vectors;
    shape.elements = whole ? p->k : 1;
    oxb_tile tile;
    oxb_status status = ops_tile(commands, op, &shape, &tile);
    if (status != OXB_OK) return status;
    ops_cut vectors = {
        .axis = whole ? 0 : 1, .piece = (piece + 7) / 8 * 8, .count = &args.n_vectors};
    vectors.steps[0] = p->k * 4;
    vectors.steps[n - 1] = step;
    const ops_recording recording = {.op = op,
                                     .shape = &shape,
                                     .tile = &tile,
                                     .kernel = kernel,
                                     .operands = operands,
                                     .n_operands = n,
                                     .args_size = sizeof args,
                                     .args = &args,
                                     .cut = &vectors};
    return ops_record_tiles(commands, &recording);
}

/* The norm and the rotation of x, in one dispatch. */
static oxb_status record_rotation(oxb_commands *commands, const product *p, oxb_binding rotated) {
    oxb_hadamard hadamard = {.x = p->x,
                             .signs = p->rotation->signs,
                             .y = rotated,
                             .k = p->k,
                             .n_vectors = p->n_vectors,
                             .block = p->rotation->block,
                             .head_size = p->rotation->head_size,
                             .n_groups = p->rotation->n_groups};
    if (p->norm) hadamard.norm = *p->norm;
    return ops_hadamard(commands, p->rotation_op, &hadamard);
}

/* Record the product of operands that are checked. */
static oxb_status record_checked(oxb_commands *commands, const product *whole,
                                 const ops_operand *whole_x, const ops_operand *norm,
                                 const ops_operand *y, uint64_t stride) {
    product p = *whole; /* of x as it is, or rotated with its norm */
    ops_operand x = *whole_x;
    const uint64_t rotated_bytes = p.rotation ? p.n_vectors * p.k * 4 : 0;
    if (p.rotation) p.norm = NULL;
    const inputs in = inputs_of(commands, &p);
    oxb_binding scratch = {NULL, 0}; /* x rotated or its norm, then x in int8 or halves */
    const uint64_t bytes = rotated_bytes + in.norm_bytes + in.prepared_bytes;
    uint64_t x_step = p.k * 4;
    pieces cut;
    oxb_status status = cut_product(commands, &p, &in, &cut);
    if (status == OXB_OK && bytes)
        status = front_commands_scratch(commands, bytes, &scratch.buffer);
    if (status == OXB_OK && p.rotation) {
        status = record_rotation(commands, whole, scratch);
        x.binding = p.x = scratch;
        scratch.offset = rotated_bytes;
    }
    ops_operand operands[4] = {ops_weight_operand(p.weight), x};
    uint32_t n = 2;
    if (status == OXB_OK && in.norm_bytes) {
        status =
            oxb_op_rmsnorm(commands, p.x, p.norm->weight, scratch, p.k, p.n_vectors, p.norm->eps);
        operands[1].binding = scratch;
        scratch.offset = in.norm_bytes;
    }
    if (in.fused_norm) operands[n++] = *norm;
    if (status == OXB_OK && in.of == INT8_VECTORS) {
        operands[n++] = (ops_operand){"quantized input", scratch, in.prepared_bytes, 0};
        status = record_quantize(commands, &p, operands + 1, operands + 2);
    }
    if (status == OXB_OK && (in.of == HALVES_VECTORS || in.of == HALF_VECTORS)) {
        operands[1] = (ops_operand){"halves", scratch, in.prepared_bytes, 0};
        x_step = eight_bytes(&p, in.of) / 8;
        status = record_halve(commands, &p, in.of, &x, norm, operands + 1, cut.piece, x_step);
    }
    operands[n++] = *y;
    if (status != OXB_OK) return status;
    return record_pieces(commands, &p, &in, &cut, operands, n, x_step, stride);
}

static oxb_status record_product(oxb_commands *commands, const product *p) {
    oxb_status status = oxb_weight_check(p->weight, p->n_rows, p->k, p->op);
    if (status == OXB_OK) status = ops_check_count(p->op, "n_vectors", p->n_vectors, OPS_MAX_COUNT);
    if (status == OXB_OK && p->norm) status = ops_check_eps(p->op, p->norm->eps);
    if (status != OXB_OK) return status;
    uint64_t stride;
    if ((status = ops_check_stride(p->op, "y_stride", p->y_stride, p->n_out, &stride)) != OXB_OK)
        return status;
    /* Both factors are below 2^31. */
    const ops_operand x = {"input", p->x, p->n_vectors * p->k * 4, 0};
    const ops_operand y = {"output", p->y, ((p->n_vectors - 1) * stride + p->n_out) * 4, 1};
    ops_operand operands[5] = {ops_weight_operand(p->weight), x};
    uint32_t n = 2;
    const uint32_t norm = n;
    if (p->norm) operands[n++] = (ops_operand){"norm", p->norm->weight, p->k * 4, 0};
    if (p->rotation) operands[n++] = (ops_operand){"signs", p->rotation->signs, p->k * 4, 0};
    operands[n++] = y;
    if ((status = ops_check_operands(p->op, operands, n)) != OXB_OK) return status;
    for (uint32_t i = 1; i + 1 < n; i++) {
        if ((status = ops_check_apart(p->op, operands + i, &y)) != OXB_OK) return status;
    }
    const uint32_t mark = oxb_commands_length(commands);
    status = record_checked(commands, p, &x, operands + norm, &y, stride);
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

static const oxb_rotation *given(const oxb_rotation *rotation) {
    return rotation->signs.buffer ? rotation : NULL;
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
                          .n_vectors = f->n_vectors,
                          .rotation = given(&f->attn_rotation),
                          .rotation_op = "feed_forward: attn_rotation"};
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
                       .n_vectors = f->n_vectors,
                       .rotation = given(&f->gate_up_rotation),
                       .rotation_op = "feed_forward: gate_up_rotation"};
    product down = proj;
    down.op = "feed_forward: down";
    down.weight = f->down;
    down.k = f->intermediate_size;
    down.x = f->activated;
    down.rotation = given(&f->down_rotation);
    down.rotation_op = "feed_forward: down_rotation";
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
