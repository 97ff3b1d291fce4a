/* The op layer's part of layers that carry a state from token to token: the convolution along the
 * tokens, the gated delta rule, and the gate behind it. */
#include "record.h"

#define MAX_HEADS  4096u
#define MAX_TOKENS (1u << 20)

/* The recurrent states as an operand, with the slots that their buffer holds: one at least. */
static ops_operand recurrent_operand(const oxb_recurrent_shape *s, oxb_binding recurrent,
                                     uint64_t *n_slots) {
    const uint64_t length = recurrent.buffer ? recurrent.buffer->length : 0;
    const uint64_t left = recurrent.offset < length ? length - recurrent.offset : 0;
    const uint64_t slots = left / 4 / s->slot_size;
    *n_slots = slots == 0 ? 1 : slots < OPS_MAX_COUNT ? slots : OPS_MAX_COUNT;
    return (ops_operand){"recurrent", recurrent, *n_slots * s->slot_size * 4, 1};
}

/* What does not depend on the operands; a part of the states has `part` elements. */
static oxb_status check_shape(const char *op, const oxb_recurrent_shape *s, uint64_t part) {
    oxb_status status = ops_check_count(op, "n_tokens", s->n_tokens, MAX_TOKENS);
    if (status == OXB_OK)
        status = ops_check_count(op, "slot_size", s->slot_size, (uint64_t)1 << 40);
    if (status != OXB_OK) return status;
    if (s->offset <= s->slot_size && part <= s->slot_size - s->offset) return OXB_OK;
    return front_fail(OXB_ENCODING_FAILED,
                      "%s: a state of %llu elements from offset = %llu on passes the end of the "
                      "slot: slot_size = %llu",
                      op, (unsigned long long)part, (unsigned long long)s->offset,
                      (unsigned long long)s->slot_size);
}

/* Check the operands, of which `recurrent` and the last one are written, and give where the states
 * lie. */
static oxb_status check_operands(const char *op, const oxb_recurrent_shape *s,
                                 const ops_operand *operands, uint32_t n, uint32_t recurrent,
                                 uint64_t n_slots, struct oxb_recurrence *r) {
    oxb_status status = ops_check_operands(op, operands, n);
    if (status != OXB_OK) return status;
    if (s->ring < 1 || s->ring > n_slots)
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: ring = %u must lie in 1..%llu, the slots of recurrent", op, s->ring,
                          (unsigned long long)n_slots);
    for (uint32_t i = 0; i < n && status == OXB_OK; i++) {
        if (i != recurrent) status = ops_check_apart(op, operands + i, operands + recurrent);
        if (i != n - 1 && status == OXB_OK)
            status = ops_check_apart(op, operands + i, operands + n - 1);
    }
    *r = (struct oxb_recurrence){.slot_stride = s->slot_size,
                                 .offset = s->offset,
                                 .n_slots = (oxb_u32)n_slots,
                                 .ring = s->ring,
                                 .n_tokens = s->n_tokens,
                                 .batch = s->batch != 0};
    return status;
}

/* Bytes of n rows of `row` elements. */
static uint64_t rows_bytes(uint64_t n, uint64_t stride, uint64_t row) {
    return ((n - 1) * stride + row) * 4;
}

oxb_status oxb_op_conv(oxb_commands *commands, const oxb_conv *c) {
    const char *op = "conv";
    const oxb_recurrent_shape *s = &c->shape;
    const uint64_t n = s->n_tokens, sequences = s->batch ? n : 1;
    uint64_t x_stride, y_stride, n_slots;
    oxb_status status = ops_check_count(op, "n_channels", c->n_channels, 1u << 24);
    if (status != OXB_OK) return status;
    if (c->width < 2 || c->width > OXB_MAX_CONV_WIDTH)
        return front_fail(OXB_ENCODING_FAILED, "%s: width = %u must lie in 2..%d", op, c->width,
                          OXB_MAX_CONV_WIDTH);
    status = check_shape(op, s, (c->width - 1) * (uint64_t)c->n_channels);
    if (status == OXB_OK)
        status = ops_check_stride(op, "x_stride", c->x_stride, c->n_channels, &x_stride);
    if (status == OXB_OK)
        status = ops_check_stride(op, "y_stride", c->y_stride, c->n_channels, &y_stride);
    if (status != OXB_OK) return status;
    const ops_operand operands[] = {
        {"input", c->x, rows_bytes(n, x_stride, c->n_channels), 0},
        {"weight", c->weight, (uint64_t)c->n_channels * c->width * 4, 0},
        ops_states_operand(c->state, sequences, 0),
        recurrent_operand(s, c->recurrent, &n_slots),
        {"output", c->y, rows_bytes(n, y_stride, c->n_channels), 1}};
    struct oxb_conv_args args = {
        .x_stride = x_stride, .y_stride = y_stride, .n_channels = c->n_channels, .width = c->width};
    status = check_operands(op, s, operands, 5, 3, n_slots, &args.recurrence);
    if (status != OXB_OK) return status;
    const oxb_op_shape shape = {.extent = {c->n_channels, sequences, n / sequences},
                                .elements = c->width};
    return ops_record(commands, OXB_OP_CONV, &shape, "conv_silu", operands, 5, &args, sizeof args);
}

static oxb_status check_dim(const char *op, const char *name, uint32_t dim) {
    if (dim % 32 == 0 && dim >= 32 && dim <= OXB_MAX_DELTA_DIM) return OXB_OK;
    return front_fail(OXB_ENCODING_FAILED, "%s: %s = %u must be a multiple of 32 in 32..%d", op,
                      name, dim, OXB_MAX_DELTA_DIM);
}

static oxb_status check_delta(const char *op, const oxb_delta *d) {
    oxb_status status = ops_check_count(op, "n_key_heads", d->n_key_heads, MAX_HEADS);
    if (status == OXB_OK)
        status = ops_check_count(op, "n_value_heads", d->n_value_heads, MAX_HEADS);
    if (status == OXB_OK) status = check_dim(op, "key_dim", d->key_dim);
    if (status == OXB_OK) status = check_dim(op, "value_dim", d->value_dim);
    if (status == OXB_OK) status = ops_check_eps(op, d->eps);
    if (status != OXB_OK) return status;
    if (d->n_value_heads % d->n_key_heads)
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: %u value heads do not divide among %u key heads", op,
                          d->n_value_heads, d->n_key_heads);
    return check_shape(op, &d->shape, (uint64_t)d->n_value_heads * d->key_dim * d->value_dim);
}

oxb_status oxb_op_delta(oxb_commands *commands, const oxb_delta *d) {
    const char *op = "delta";
    const oxb_recurrent_shape *s = &d->shape;
    const uint64_t n = s->n_tokens, sequences = s->batch ? n : 1, heads = d->n_value_heads;
    const uint64_t values = heads * d->value_dim;
    const uint64_t qkv = 2 * (uint64_t)d->n_key_heads * d->key_dim + values;
    uint64_t qkv_stride, ab_stride, y_stride, n_slots;
    oxb_status status = check_delta(op, d);
    if (status == OXB_OK)
        status = ops_check_stride(op, "qkv_stride", d->qkv_stride, qkv, &qkv_stride);
    if (status == OXB_OK)
        status = ops_check_stride(op, "ab_stride", d->ab_stride, 2 * heads, &ab_stride);
    if (status == OXB_OK) status = ops_check_stride(op, "y_stride", d->y_stride, values, &y_stride);
    if (status != OXB_OK) return status;
    const ops_operand operands[] = {
        {"qkv", d->qkv, rows_bytes(n, qkv_stride, qkv), 0},
        {"alpha_beta", d->alpha_beta, rows_bytes(n, ab_stride, 2 * heads), 0},
        {"a", d->a, heads * 4, 0},
        {"dt_bias", d->dt_bias, heads * 4, 0},
        ops_states_operand(d->state, sequences, 0),
        recurrent_operand(s, d->recurrent, &n_slots),
        {"output", d->y, rows_bytes(n, y_stride, values), 1}};
    struct oxb_delta_args args = {.qkv_stride = qkv_stride,
                                  .ab_stride = ab_stride,
                                  .y_stride = y_stride,
                                  .n_key_heads = d->n_key_heads,
                                  .n_value_heads = d->n_value_heads,
                                  .key_dim = d->key_dim,
                                  .value_dim = d->value_dim,
                                  .eps = d->eps,
                                  .scale = d->scale};
    status = check_operands(op, s, operands, 7, 5, n_slots, &args.recurrence);
    if (status != OXB_OK) return status;
    /* Each element of a state is read, faded, added to and read again. */
    const oxb_op_shape shape = {.extent = {d->value_dim, heads, sequences},
                                .k = d->key_dim,
                                .elements = 4 * (uint64_t)d->key_dim * (n / sequences)};
    oxb_tile tile;
    if ((status = ops_tile(commands, OXB_OP_DELTA, &shape, &tile)) != OXB_OK) return status;
    const ops_cut cut = {.axis = 1,
                         .piece = ops_piece_of(commands, OXB_OP_DELTA, &shape, &tile, 1, 1),
                         .first = &args.first_head,
                         .end = &args.end_head};
    const ops_recording recording = {.op = OXB_OP_DELTA,
                                     .shape = &shape,
                                     .tile = &tile,
                                     .kernel = "delta_rule",
                                     .operands = operands,
                                     .n_operands = 7,
                                     .args_size = sizeof args,
                                     .args = &args,
                                     .cut = &cut};
    return ops_record_tiles(commands, &recording);
}

static oxb_status check_gate(const char *op, const oxb_gate *g) {
    oxb_status status = ops_check_count(op, "n_heads", g->n_heads, MAX_HEADS);
    if (status == OXB_OK) status = ops_check_count(op, "head_dim", g->head_dim, OXB_MAX_HEAD_DIM);
    if (status == OXB_OK) status = ops_check_count(op, "n_vectors", g->n_vectors, MAX_TOKENS);
    if (status == OXB_OK && g->norm.weight.buffer) status = ops_check_eps(op, g->norm.eps);
    if (status != OXB_OK) return status;
    if (g->activation == OXB_SIGMOID || g->activation == OXB_SILU) return OXB_OK;
    return front_fail(OXB_ENCODING_FAILED, "%s: activation = %u must be %u (sigmoid) or %u (silu)",
                      op, g->activation, OXB_SIGMOID, OXB_SILU);
}

oxb_status oxb_op_gate(oxb_commands *commands, const oxb_gate *g) {
    const char *op = "gate";
    const uint64_t row = (uint64_t)g->n_heads * g->head_dim, n = g->n_vectors;
    const int has_norm = g->norm.weight.buffer != NULL;
    uint64_t x_stride, z_stride, y_stride;
    oxb_status status = check_gate(op, g);
    if (status == OXB_OK) status = ops_check_stride(op, "x_stride", g->x_stride, row, &x_stride);
    if (status == OXB_OK) status = ops_check_stride(op, "z_stride", g->z_stride, row, &z_stride);
    if (status == OXB_OK) status = ops_check_stride(op, "y_stride", g->y_stride, row, &y_stride);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {{"input", g->x, rows_bytes(n, x_stride, row), 0},
                              {"z", g->z, rows_bytes(n, z_stride, row), 0},
                              {"norm", g->norm.weight, (uint64_t)g->head_dim * 4, 0},
                              {"output", g->y, rows_bytes(n, y_stride, row), 1}};
    /* A dispatch has no empty bindings. */
    if (!has_norm) operands[2] = (ops_operand){"input", g->x, 0, 0};
    if ((status = ops_check_operands(op, operands, 4)) != OXB_OK) return status;
    /* In place is fine, a shifted overlap is not. */
    const int in_place = g->x.offset == g->y.offset && (x_stride == y_stride || n == 1);
    for (unsigned i = in_place; i < 3 && status == OXB_OK; i++)
        if (i < 2 || has_norm) status = ops_check_apart(op, operands + i, operands + 3);
    if (status != OXB_OK) return status;
    struct oxb_gate_args args = {.x_stride = x_stride,
                                 .z_stride = z_stride,
                                 .y_stride = y_stride,
                                 .n_heads = g->n_heads,
                                 .head_dim = g->head_dim,
                                 .n_tokens = (oxb_u32)n,
                                 .activation =
                                     g->activation == OXB_SILU ? OXB_GATE_SILU : OXB_GATE_SIGMOID,
                                 .eps = has_norm ? g->norm.eps : 0,
                                 .has_norm = has_norm};
    const oxb_op_shape shape = {.extent = {g->n_heads, n, 1}, .elements = g->head_dim};
    return ops_record(commands, OXB_OP_GATE, &shape, "gate", operands, 4, &args, sizeof args);
}
