/* The op layer's heads: norm and rotation, the caches, attention. */
#include <stdio.h>

#include "record.h"

#define PAGE_GRAIN 64u /* what a page is a multiple of: no block of positions crosses two pages */

static oxb_status check_cache(const char *op, const oxb_attention_shape *s) {
    if (s->kv_format > OXB_KV_Q8)
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: kv_format = %u must be %u (f32), %u (f16) or %u (q8)", op,
                          s->kv_format, OXB_KV_F32, OXB_KV_F16, OXB_KV_Q8);
    if (s->kv_format == OXB_KV_Q8 && s->head_dim % 32)
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: head_dim = %u must be a multiple of 32 for caches of q8: use f16",
                          op, s->head_dim);
    if (!s->page_size) {
        if (!s->pages.buffer) return OXB_OK;
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: pages without a page_size: give both, or neither", op);
    }
    if (!s->pages.buffer)
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: page_size = %u without pages: give both, or neither", op,
                          s->page_size);
    if (s->page_size % PAGE_GRAIN || s->page_size > 1u << 24)
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: page_size = %u must be a multiple of %u in %u..%u", op, s->page_size,
                          PAGE_GRAIN, PAGE_GRAIN, 1u << 24);
    oxb_status status = ops_check_count(op, "n_pages", s->n_pages, 1u << 24);
    if (status == OXB_OK) status = ops_check_count(op, "n_layers", s->n_layers, 4096);
    if (status == OXB_OK && s->layer >= s->n_layers)
        return front_fail(OXB_ENCODING_FAILED, "%s: layer = %u must lie in 0..%u, the n_layers", op,
                          s->layer, s->n_layers - 1);
    return status;
}

/* The limits keep every product below inside 64 bits: 2^12 * 2^12 * 2^10 * 2^24 bytes of a page, of
 * which there may be too many for the buffer. */
static oxb_status check_attention(const char *op, const oxb_attention_shape *s) {
    oxb_status status = ops_check_count(op, "n_kv_heads", s->n_kv_heads, 4096);
    if (status == OXB_OK) status = ops_check_count(op, "n_heads", s->n_heads, 4096);
    if (status == OXB_OK) status = ops_check_count(op, "head_dim", s->head_dim, OXB_MAX_HEAD_DIM);
    if (status == OXB_OK) status = ops_check_count(op, "max_seq", s->max_seq, 1u << 24);
    if (status == OXB_OK) status = ops_check_count(op, "layer + 1", (uint64_t)s->layer + 1, 4096);
    if (status == OXB_OK)
        status = ops_check_count(op, "n_tokens", s->n_tokens, s->batch ? 1u << 20 : s->max_seq);
    if (status == OXB_OK && s->max_length)
        status = ops_check_count(op, "max_length", s->max_length, s->max_seq);
    if (status != OXB_OK) return status;
    if (s->n_heads % s->n_kv_heads) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: %u query heads do not divide among %u key-value heads", op,
                          s->n_heads, s->n_kv_heads);
    }
    if (s->head_dim % 2)
        return front_fail(OXB_ENCODING_FAILED, "%s: head_dim = %u must be even", op, s->head_dim);
    return check_cache(op, s);
}

static uint64_t qkv_bytes(const oxb_attention_shape *s) {
    return s->n_tokens * ((uint64_t)s->n_heads + 2 * (uint64_t)s->n_kv_heads) * s->head_dim * 4;
}

static uint64_t element_bytes(const oxb_attention_shape *s) {
    static const uint8_t bytes[] = {[OXB_KV_F32] = 4, [OXB_KV_F16] = 2, [OXB_KV_Q8] = 1};
    return bytes[s->kv_format];
}

static const char *suffix_of(const oxb_attention_shape *s) {
    static const char *const suffixes[] = {
        [OXB_KV_F32] = "f32", [OXB_KV_F16] = "f16", [OXB_KV_Q8] = "q8"};
    return suffixes[s->kv_format];
}

static struct oxb_cache cache_of(const oxb_attention_shape *s) {
    const int paged = s->page_size != 0;
    struct oxb_cache c = {.page_size = paged ? s->page_size : s->max_seq,
                          .n_pages = paged ? s->n_pages : 1,
                          .max_seq = s->max_seq};
    c.head_stride =
        (uint64_t)c.page_size * (s->head_dim + (s->kv_format == OXB_KV_Q8 ? s->head_dim / 8 : 0u));
    c.layer_offset = s->layer * s->n_kv_heads * c.head_stride;
    c.page_stride = paged ? s->n_layers * s->n_kv_heads * c.head_stride : 0;
    if (paged) {
        const uint64_t length = s->pages.buffer->length, offset = s->pages.offset;
        const uint64_t size = offset < length ? (length - offset) / 4 : 0;
        c.table_size = size < UINT32_MAX ? (uint32_t)size : UINT32_MAX;
    }
    return c;
}

/* Of a whole cache; up to this layer where there are no pages. UINT64_MAX where it passes 64 bits.
 */
static uint64_t cache_bytes(const oxb_attention_shape *s) {
    const struct oxb_cache c = cache_of(s);
    if (!s->page_size) return (c.layer_offset + s->n_kv_heads * c.head_stride) * element_bytes(s);
    const uint64_t page = c.page_stride * element_bytes(s);
    return page > UINT64_MAX / s->n_pages ? UINT64_MAX : page * s->n_pages;
}

/* Caches that are written while states and pages, `in`, are read. */
static oxb_status check_stores_apart(const char *op, const ops_operand in[2],
                                     const ops_operand caches[2]) {
    for (unsigned i = 0; i < 4; i++) {
        const oxb_status status = ops_check_apart(op, in + i % 2, caches + i / 2);
        if (status != OXB_OK) return status;
    }
    return OXB_OK;
}

static ops_operand state_operand(oxb_binding state, const oxb_attention_shape *s) {
    return ops_states_operand(state, s->batch ? s->n_tokens : 1, 0);
}

/* A dispatch has no empty bindings: without pages, the state stands in for the tables. */
static ops_operand pages_operand(oxb_binding state, const oxb_attention_shape *s) {
    if (!s->page_size) return (ops_operand){"state", state, 0, 0};
    const uint64_t bytes = (uint64_t)cache_of(s).table_size * 4; /* any of it may be read */
    return (ops_operand){"pages", s->pages, bytes ? bytes : 4, 0};
}

static ops_operand output_operand(oxb_binding out, const oxb_attention_shape *s) {
    return (ops_operand){"output", out, (uint64_t)s->n_tokens * s->n_heads * s->head_dim * 4, 1};
}

static uint32_t rotary_dim_of(const oxb_attention_shape *s) {
    return s->rotary_dim ? s->rotary_dim : s->head_dim;
}

static oxb_status check_rope(const char *op, const oxb_attention_shape *s, oxb_binding q_norm,
                             oxb_binding k_norm, float eps) {
    const uint32_t rotary_dim = rotary_dim_of(s);
    if (rotary_dim % 2 || rotary_dim > s->head_dim) {
        return front_fail(
            OXB_ENCODING_FAILED,
            "%s: rotary_dim = %u must be even and lie in 2..%u, the head_dim; 0 stands "
            "for head_dim",
            op, rotary_dim, s->head_dim);
    }
    if (s->rope_style != OXB_ROPE_NEOX && s->rope_style != OXB_ROPE_INTERLEAVED) {
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: rope_style = %u must be %u (neox) or %u (interleaved)", op,
                          s->rope_style, OXB_ROPE_NEOX, OXB_ROPE_INTERLEAVED);
    }
    const int has_q_norm = q_norm.buffer != NULL, has_k_norm = k_norm.buffer != NULL;
    if (has_q_norm != has_k_norm) {
        return front_fail(OXB_ENCODING_FAILED, "%s: %s without %s: give both norms, or none", op,
                          has_q_norm ? "q_norm" : "k_norm", has_q_norm ? "k_norm" : "q_norm");
    }
    return has_q_norm ? ops_check_eps(op, eps) : OXB_OK;
}

/* The weight of a norm. A dispatch has no empty bindings: without a norm, the rope table stands in
 * for its weight, and kernels do not read it there. */
static ops_operand norm_operand(const char *name, oxb_binding norm, oxb_binding rope,
                                const oxb_attention_shape *s) {
    return norm.buffer ? (ops_operand){name, norm, (uint64_t)s->head_dim * 4, 0}
                       : (ops_operand){"rope", rope, 0, 0};
}

static ops_operand rope_operand(oxb_binding rope, const oxb_attention_shape *s) {
    return (ops_operand){"rope", rope, (uint64_t)s->max_seq * rotary_dim_of(s) * 4, 0};
}

oxb_status oxb_op_qk_norm_rope(oxb_commands *commands, oxb_binding qkv, oxb_binding q_norm,
                               oxb_binding k_norm, oxb_binding rope, oxb_binding state,
                               const oxb_attention_shape *shape, float eps) {
    const char *op = "qk_norm_rope";
    oxb_status status = check_attention(op, shape);
    if (status == OXB_OK) status = check_rope(op, shape, q_norm, k_norm, eps);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {{"qkv", qkv, qkv_bytes(shape), 1},
                              norm_operand("q_norm", q_norm, rope, shape),
                              norm_operand("k_norm", k_norm, rope, shape),
                              rope_operand(rope, shape),
                              state_operand(state, shape)};
    if ((status = ops_check_operands(op, operands, 5)) != OXB_OK) return status;
    struct oxb_qk_norm_rope_args args = {.n_heads = shape->n_heads,
                                         .n_kv_heads = shape->n_kv_heads,
                                         .head_dim = shape->head_dim,
                                         .rotary_dim = rotary_dim_of(shape),
                                         .interleaved = shape->rope_style == OXB_ROPE_INTERLEAVED,
                                         .has_norm = q_norm.buffer != NULL,
                                         .eps = eps,
                                         .max_seq = shape->max_seq,
                                         .n_tokens = shape->n_tokens,
                                         .batch = shape->batch != 0};
    const oxb_op_shape extent = {
        .extent = {(uint64_t)shape->n_heads + shape->n_kv_heads, shape->n_tokens, 1},
        .elements = shape->head_dim};
    return ops_record(commands, OXB_OP_QK_NORM_ROPE, &extent, "qk_norm_rope", operands, 5, &args,
                      sizeof args);
}

oxb_status oxb_op_kv_store(oxb_commands *commands, oxb_binding qkv, oxb_binding k_cache,
                           oxb_binding v_cache, oxb_binding state,
                           const oxb_attention_shape *shape) {
    const char *op = "kv_store";
    oxb_status status = check_attention(op, shape);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {{"qkv", qkv, qkv_bytes(shape), 0},
                              {"k_cache", k_cache, cache_bytes(shape), 1},
                              {"v_cache", v_cache, cache_bytes(shape), 1},
                              state_operand(state, shape),
                              pages_operand(state, shape)};
    if ((status = ops_check_operands(op, operands, 5)) != OXB_OK) return status;
    if ((status = check_stores_apart(op, operands + 3, operands + 1)) != OXB_OK) return status;
    struct oxb_kv_store_args args = {.cache = cache_of(shape),
                                     .n_heads = shape->n_heads,
                                     .n_kv_heads = shape->n_kv_heads,
                                     .head_dim = shape->head_dim,
                                     .n_tokens = shape->n_tokens,
                                     .batch = shape->batch != 0};
    const oxb_op_shape extent = {.extent = {shape->n_kv_heads, shape->n_tokens, 1},
                                 .elements = shape->head_dim};
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "kv_store_%s", suffix_of(shape));
    return ops_record(commands, OXB_OP_KV_STORE, &extent, kernel, operands, 5, &args, sizeof args);
}

oxb_status oxb_op_qkv_to_cache(oxb_commands *commands, oxb_binding qkv, oxb_binding q_norm,
                               oxb_binding k_norm, oxb_binding rope, oxb_binding k_cache,
                               oxb_binding v_cache, oxb_binding state,
                               const oxb_attention_shape *shape, float eps) {
    const char *op = "qkv_to_cache";
    oxb_status status = check_attention(op, shape);
    if (status == OXB_OK) status = check_rope(op, shape, q_norm, k_norm, eps);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {{"qkv", qkv, qkv_bytes(shape), 1},
                              norm_operand("q_norm", q_norm, rope, shape),
                              norm_operand("k_norm", k_norm, rope, shape),
                              rope_operand(rope, shape),
                              {"k_cache", k_cache, cache_bytes(shape), 1},
                              {"v_cache", v_cache, cache_bytes(shape), 1},
                              state_operand(state, shape),
                              pages_operand(state, shape)};
    if ((status = ops_check_operands(op, operands, 8)) != OXB_OK) return status;
    if ((status = check_stores_apart(op, operands + 6, operands + 4)) != OXB_OK) return status;
    const uint32_t mark = oxb_commands_length(commands);
    if (!front_commands_device(commands)->abilities.fused_cache_store) {
        status = oxb_op_qk_norm_rope(commands, qkv, q_norm, k_norm, rope, state, shape, eps);
        if (status == OXB_OK)
            status = oxb_op_kv_store(commands, qkv, k_cache, v_cache, state, shape);
    } else {
        struct oxb_qkv_to_cache_args args = {.cache = cache_of(shape),
                                             .n_heads = shape->n_heads,
                                             .n_kv_heads = shape->n_kv_heads,
                                             .head_dim = shape->head_dim,
                                             .rotary_dim = rotary_dim_of(shape),
                                             .interleaved =
                                                 shape->rope_style == OXB_ROPE_INTERLEAVED,
                                             .has_norm = q_norm.buffer != NULL,
                                             .eps = eps,
                                             .n_tokens = shape->n_tokens,
                                             .batch = shape->batch != 0};
        const oxb_op_shape extent = {
            .extent = {(uint64_t)shape->n_heads + 2 * (uint64_t)shape->n_kv_heads, shape->n_tokens,
                       1},
            .elements = shape->head_dim};
        char kernel[OXB_NAME_BYTES];
        snprintf(kernel, sizeof kernel, "qkv_to_cache_%s", suffix_of(shape));
        status = ops_record(commands, OXB_OP_QKV_TO_CACHE, &extent, kernel, operands, 8, &args,
                            sizeof args);
    }
    if (status != OXB_OK) front_commands_cut(commands, mark);
    return status;
}

/* Add up what attention left of each split in `splits`. */
static oxb_status record_combine(oxb_commands *commands, oxb_buffer *splits, uint64_t bytes,
                                 ops_operand out, const struct oxb_attention_args *a) {
    ops_operand operands[] = {{"splits", {splits, 0}, bytes, 0}, out};
    struct oxb_combine_args args = {.n_rows = (oxb_u64)a->n_tokens * a->n_heads,
                                    .head_dim = a->head_dim,
                                    .n_splits = a->n_splits};
    const oxb_op_shape extent = {.extent = {args.n_rows, 1, 1},
                                 .elements = (uint64_t)a->head_dim * a->n_splits};
    return ops_record(commands, OXB_OP_COMBINE, &extent, "attention_combine", operands, 2, &args,
                      sizeof args);
}

/* Prompts of as many tokens as the products of such a recording take. */
static int in_half(const oxb_commands *commands, const oxb_attention_shape *s) {
    return front_commands_in_half(commands) && !s->batch &&
           s->n_tokens >= front_commands_device(commands)->abilities.rounded_vectors;
}

static uint64_t start_of(oxb_binding binding) { return binding.buffer->base + binding.offset; }

/* Bytes that the start of both is a multiple of. A driver's buffers start at a page. */
static uint64_t alignment_of(oxb_binding a, oxb_binding b) {
    /* OR keeps the lowest set bit, so the result has the smallest alignment. */
    const uint64_t start = start_of(a) | start_of(b) | 4096;
    return start & (~start + 1);
}

/* What attention is recorded as. */
typedef struct attention_plan {
    oxb_op_shape extent;
    oxb_tile tile;
    struct oxb_attention_args args;
} attention_plan;

/* `makes`: the kernel is to do what qkv_to_cache does too, if it can. */
static oxb_status plan_attention(const oxb_commands *commands, oxb_binding k_cache,
                                 oxb_binding v_cache, oxb_binding out,
                                 const oxb_attention_shape *shape, float scale, int makes,
                                 attention_plan *plan) {
    plan->extent = (oxb_op_shape){.extent = {shape->n_heads, shape->n_tokens, 1},
                                  .attention = shape,
                                  .alignment = alignment_of(k_cache, v_cache),
                                  .out_alignment = alignment_of(out, out),
                                  .halves = in_half(commands, shape),
                                  .same_bits = front_commands_deterministic(commands) != 0,
                                  .makes = makes != 0};
    const oxb_status status = ops_tile(commands, OXB_OP_ATTENTION, &plan->extent, &plan->tile);
    if (status != OXB_OK) return status;
    plan->extent.extent[2] = plan->tile.splits;
    plan->args = (struct oxb_attention_args){.cache = cache_of(shape),
                                             .n_heads = shape->n_heads,
                                             .n_kv_heads = shape->n_kv_heads,
                                             .head_dim = shape->head_dim,
                                             .scale = scale,
                                             .n_tokens = shape->n_tokens,
                                             .n_splits = plan->tile.splits,
                                             .heads = plan->tile.size[0],
                                             .tokens = plan->tile.size[1],
                                             .batch = shape->batch != 0};
    return OXB_OK;
}

/* Record `kernel`, whose last operand is the output, and what adds up its splits. `args` begins
 * with those of the plan, or is them. */
static oxb_status record_attention(oxb_commands *commands, const attention_plan *plan,
                                   const char *kernel, ops_operand *operands, uint32_t n,
                                   void *args, uint32_t args_size) {
    struct oxb_attention_args *a = args;
    const uint64_t rows = (uint64_t)a->n_tokens * a->n_heads;
    const ops_operand final = operands[n - 1];
    oxb_buffer *splits = NULL;
    const uint64_t bytes = rows * a->n_splits * (a->head_dim + (uint64_t)2) * 4;
    oxb_status status;
    if (a->n_splits > 1) {
        if ((status = front_commands_scratch(commands, bytes, &splits)) != OXB_OK) return status;
        operands[n - 1] = (ops_operand){"splits", {splits, 0}, bytes, 1};
    }
    const ops_cut tokens = {
        .axis = 1,
        .piece = ops_piece_of(commands, OXB_OP_ATTENTION, &plan->extent, &plan->tile, 1, 1),
        .first = &a->first_token,
        .end = &a->n_tokens};
    const uint32_t mark = oxb_commands_length(commands);
    const ops_recording recording = {.op = OXB_OP_ATTENTION,
                                     .shape = &plan->extent,
                                     .tile = &plan->tile,
                                     .kernel = kernel,
                                     .operands = operands,
                                     .n_operands = n,
                                     .args_size = args_size,
                                     .args = args,
                                     .cut = &tokens};
    status = ops_record_tiles(commands, &recording);
    if (status == OXB_OK && splits)
        status = record_combine(commands, splits, bytes, final, &plan->args);
    if (status != OXB_OK) front_commands_cut(commands, mark);
    return status;
}

oxb_status oxb_op_attention(oxb_commands *commands, oxb_binding qkv, oxb_binding k_cache,
                            oxb_binding v_cache, oxb_binding state, oxb_binding out,
                            const oxb_attention_shape *shape, float scale) {
    const char *op = "attention";
    oxb_status status = check_attention(op, shape);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {{"qkv", qkv, qkv_bytes(shape), 0},
                              {"k_cache", k_cache, cache_bytes(shape), 0},
                              {"v_cache", v_cache, cache_bytes(shape), 0},
                              state_operand(state, shape),
                              pages_operand(state, shape),
                              output_operand(out, shape)};
    if ((status = ops_check_operands(op, operands, 6)) != OXB_OK) return status;
    for (unsigned i = 0; i < 5; i++) {
        if ((status = ops_check_apart(op, operands + i, operands + 5)) != OXB_OK) return status;
    }
    attention_plan plan;
    status = plan_attention(commands, k_cache, v_cache, out, shape, scale, 0, &plan);
    if (status != OXB_OK) return status;
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "attention_%s", suffix_of(shape));
    struct oxb_attention_args args = plan.args;
    return record_attention(commands, &plan, kernel, operands, 6, &args, sizeof args);
}

oxb_status oxb_op_qkv_attention(oxb_commands *commands, oxb_binding qkv, oxb_binding q_norm,
                                oxb_binding k_norm, oxb_binding rope, oxb_binding k_cache,
                                oxb_binding v_cache, oxb_binding state, oxb_binding out,
                                const oxb_attention_shape *shape, float eps, float scale) {
    const char *op = "qkv_attention";
    oxb_status status = check_attention(op, shape);
    if (status == OXB_OK) status = check_rope(op, shape, q_norm, k_norm, eps);
    if (status != OXB_OK) return status;
    ops_operand operands[] = {{"qkv", qkv, qkv_bytes(shape), 0},
                              norm_operand("q_norm", q_norm, rope, shape),
                              norm_operand("k_norm", k_norm, rope, shape),
                              rope_operand(rope, shape),
                              {"k_cache", k_cache, cache_bytes(shape), 1},
                              {"v_cache", v_cache, cache_bytes(shape), 1},
                              state_operand(state, shape),
                              pages_operand(state, shape),
                              output_operand(out, shape)};
    if ((status = ops_check_operands(op, operands, 9)) != OXB_OK) return status;
    if ((status = check_stores_apart(op, operands + 6, operands + 4)) != OXB_OK) return status;
    for (unsigned i = 0; i < 8; i++) {
        if ((status = ops_check_apart(op, operands + i, operands + 8)) != OXB_OK) return status;
    }
    attention_plan plan;
    status = plan_attention(commands, k_cache, v_cache, out, shape, scale, 1, &plan);
    if (status != OXB_OK) return status;
    const uint32_t mark = oxb_commands_length(commands);
    if (!plan.tile.makes) {
        status = oxb_op_qkv_to_cache(commands, qkv, q_norm, k_norm, rope, k_cache, v_cache, state,
                                     shape, eps);
        if (status == OXB_OK)
            status = oxb_op_attention(commands, qkv, k_cache, v_cache, state, out, shape, scale);
        if (status != OXB_OK) front_commands_cut(commands, mark);
        return status;
    }
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "qkv_attention_%s", suffix_of(shape));
    struct oxb_qkv_attention_args args = {.attention = plan.args,
                                          .rotary_dim = rotary_dim_of(shape),
                                          .interleaved = shape->rope_style == OXB_ROPE_INTERLEAVED,
                                          .has_norm = q_norm.buffer != NULL,
                                          .eps = eps};
    return record_attention(commands, &plan, kernel, operands, 9, &args, sizeof args);
}
