/* The op layer: (op, format, shape) -> kernel, constants and grid for the device at hand.
 *
 * Nothing above this file names a grid or a threadgroup, and nothing below it checks a shape.
 */
#include <math.h>
#include <stdio.h>

#include "geometry.h"
#include "oxb_internal.h"

/* One binding of an op with what the op needs of it. */
struct operand {
    const char *name;
    oxb_binding binding;
    uint64_t bytes;
    int written;
};

static oxb_status check_operands(const char *op, const struct operand *operands, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        const oxb_buffer *buffer = operands[i].binding.buffer;
        uint64_t offset = operands[i].binding.offset;
        if (!buffer) return oxb_fail(OXB_ENCODING_FAILED, "%s: %s has no buffer", op, operands[i].name);
        uint64_t length = offset < buffer->length ? buffer->length - offset : 0;
        if (length < operands[i].bytes) {
            return oxb_fail(OXB_ENCODING_FAILED, "%s: %s too short: need %llu bytes, got %llu", op, operands[i].name,
                            (unsigned long long)operands[i].bytes, (unsigned long long)length);
        }
        if (operands[i].written && buffer->read_only) {
            return oxb_fail(OXB_ENCODING_FAILED, "%s: %s is a buffer over read-only memory", op, operands[i].name);
        }
        if (offset % 4) {
            return oxb_fail(OXB_ENCODING_FAILED, "%s: %s starts at byte %llu: offsets must be multiples of 4", op,
                            operands[i].name, (unsigned long long)offset);
        }
    }
    return OXB_OK;
}

/* The device may read `in` after it wrote `out`: no byte of the two may be shared. */
static oxb_status check_apart(const char *op, const struct operand *in, const struct operand *out) {
    if (in->binding.buffer != out->binding.buffer || in->binding.offset >= out->binding.offset + out->bytes ||
        out->binding.offset >= in->binding.offset + in->bytes) {
        return OXB_OK;
    }
    return oxb_fail(OXB_ENCODING_FAILED, "%s: %s and %s overlap in one buffer: use two, or ranges apart", op, in->name,
                    out->name);
}

static oxb_status check_count(const char *op, const char *name, uint64_t n, uint64_t limit) {
    if (n >= 1 && n <= limit) return OXB_OK;
    return oxb_fail(OXB_ENCODING_FAILED, "%s: %s = %llu must lie in 1..%llu", op, name, (unsigned long long)n,
                    (unsigned long long)limit);
}

static oxb_status check_eps(const char *op, float eps) {
    if (eps >= 0 && !isinf(eps)) return OXB_OK;
    return oxb_fail(OXB_ENCODING_FAILED, "%s: eps = %g must be finite and not negative", op, (double)eps);
}

#define MAX_OPERANDS 6u
#define MAX_COUNT 0x7fffffffu

static uint32_t groups_of(uint64_t n, uint32_t per_group) { return (uint32_t)((n + per_group - 1) / per_group); }

/* Record `kernel` for `units` of the operation along x, and `units_y` along y. */
static oxb_status record(oxb_commands *commands, oxb_op op, const char *kernel, const struct operand *operands,
                         uint32_t n, const void *args, uint32_t args_size, uint64_t units, uint64_t units_y) {
    oxb_device *device = oxb_commands_device(commands);
    const oxb_tile *tile = &oxb_geometry_of(&device->info)->tiles[op];
    oxb_pipeline *pipeline = NULL;
    oxb_status status = oxb_builtin_pipeline(device, kernel, tile->constants, tile->n_constants, &pipeline);
    if (status != OXB_OK) return status;
    oxb_binding bindings[MAX_OPERANDS];
    for (uint32_t i = 0; i < n; i++) bindings[i] = operands[i].binding;
    oxb_size threadgroups = {groups_of(units, tile->units[0]), groups_of(units_y, tile->units[1]), 1};
    oxb_size threads = {tile->threads, 1, 1};
    return oxb_commands_dispatch(commands, pipeline, bindings, n, args, args_size, threadgroups, threads, 0);
}

static struct operand weight_operand(const oxb_weight *weight) {
    return (struct operand){"weight", {weight->buffer, 0}, weight->buffer->length, 0};
}

/* Kernels that read another layout than the plain one are named after it. */
static const char *layout_suffix(const oxb_weight *weight) {
    static const char *const suffix[OXB_LAYOUT_COUNT] = {"", "_panels", "_trits"};
    return weight->layout < OXB_LAYOUT_COUNT ? suffix[weight->layout] : "";
}

oxb_status oxb_op_gemv(oxb_commands *commands, const oxb_weight *weight, uint64_t n_rows, uint64_t k,
                       oxb_binding x, oxb_binding y, int residual) {
    const char *op = "gemv";
    oxb_status status = oxb_weight_check(weight, n_rows, k, op);
    if (status != OXB_OK) return status;
    struct operand operands[] = {weight_operand(weight), {"input", x, k * 4, 0}, {"output", y, n_rows * 4, 1}};
    if ((status = check_operands(op, operands, 3)) != OXB_OK) return status;
    if ((status = check_apart(op, operands + 1, operands + 2)) != OXB_OK) return status;
    struct oxb_gemv_args args = {weight->codes_offset, (oxb_u32)n_rows, (oxb_u32)k};
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "gemv_%s%s%s", oxb_kernel((oxb_kernel_format)weight->kernel)->name,
             residual ? "_residual" : "", layout_suffix(weight));
    return record(commands, OXB_OP_GEMV, kernel, operands, 3, &args, sizeof args, n_rows, 1);
}

oxb_status oxb_op_gate_up_swiglu(oxb_commands *commands, const oxb_weight *weight, uint64_t n_rows, uint64_t k,
                                 oxb_binding x, oxb_binding s) {
    const char *op = "gate_up_swiglu";
    oxb_status status = oxb_weight_check(weight, n_rows, k, op);
    if (status != OXB_OK) return status;
    if (n_rows % 2) {
        return oxb_fail(OXB_ENCODING_FAILED, "%s: %llu rows: gate and up need an even number", op,
                        (unsigned long long)n_rows);
    }
    struct operand operands[] = {weight_operand(weight), {"input", x, k * 4, 0}, {"output", s, n_rows / 2 * 4, 1}};
    if ((status = check_operands(op, operands, 3)) != OXB_OK) return status;
    if ((status = check_apart(op, operands + 1, operands + 2)) != OXB_OK) return status;
    struct oxb_swiglu_args args = {weight->codes_offset, (oxb_u32)(n_rows / 2), (oxb_u32)k};
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "fused_gate_up_swiglu_%s%s", oxb_kernel((oxb_kernel_format)weight->kernel)->name,
             layout_suffix(weight));
    return record(commands, OXB_OP_SWIGLU, kernel, operands, 3, &args, sizeof args, n_rows / 2, 1);
}

oxb_status oxb_op_rmsnorm(oxb_commands *commands, oxb_binding x, oxb_binding weight, oxb_binding y, uint64_t n,
                          uint64_t n_vectors, float eps) {
    const char *op = "rmsnorm";
    oxb_status status = check_count(op, "n", n, MAX_COUNT);
    if (status == OXB_OK) status = check_count(op, "n_vectors", n_vectors, MAX_COUNT);
    if (status == OXB_OK) status = check_eps(op, eps);
    if (status != OXB_OK) return status;
    struct operand operands[] = {{"input", x, n * n_vectors * 4, 0}, {"weight", weight, n * 4, 0},
                                 {"output", y, n * n_vectors * 4, 1}};
    if ((status = check_operands(op, operands, 3)) != OXB_OK) return status;
    /* In place is fine, a shifted overlap is not. */
    if (x.buffer == y.buffer && x.offset != y.offset &&
        (status = check_apart(op, operands, operands + 2)) != OXB_OK) return status;
    if ((status = check_apart(op, operands + 1, operands + 2)) != OXB_OK) return status;
    struct oxb_rmsnorm_args args = {(oxb_u32)n, (oxb_u32)n_vectors, eps, 0};
    return record(commands, OXB_OP_RMSNORM, "rmsnorm", operands, 3, &args, sizeof args, n_vectors, 1);
}

oxb_status oxb_op_add(oxb_commands *commands, oxb_binding x, oxb_binding y, uint64_t n) {
    const char *op = "add";
    oxb_status status = check_count(op, "n", n, (uint64_t)1 << 40);
    if (status != OXB_OK) return status;
    struct operand operands[] = {{"input", x, n * 4, 0}, {"output", y, n * 4, 1}};
    if ((status = check_operands(op, operands, 2)) != OXB_OK) return status;
    if (x.offset != y.offset && (status = check_apart(op, operands, operands + 1)) != OXB_OK) return status;
    struct oxb_add_args args = {n, 0};
    return record(commands, OXB_OP_ADD, "residual_add", operands, 2, &args, sizeof args, n, 1);
}

static struct operand state_operand(oxb_binding state, int written) {
    return (struct operand){"state", state, sizeof(struct oxb_decode_state), written};
}

oxb_status oxb_op_embed(oxb_commands *commands, const oxb_weight *weight, uint64_t n_rows, uint64_t k,
                        oxb_binding tokens, oxb_binding state, oxb_binding y) {
    const char *op = "embed";
    oxb_status status = oxb_weight_check(weight, n_rows, k, op);
    if (status != OXB_OK) return status;
    struct operand operands[] = {weight_operand(weight), {"tokens", tokens, 4, 0}, state_operand(state, 0),
                                 {"output", y, k * 4, 1}};
    if ((status = check_operands(op, operands, 4)) != OXB_OK) return status;
    uint64_t max_tokens = (tokens.buffer->length - tokens.offset) / 4;
    struct oxb_embed_args args = {.codes_offset = weight->codes_offset,
                                  .n_rows = (oxb_u32)n_rows,
                                  .k = (oxb_u32)k,
                                  .max_tokens = (oxb_u32)(max_tokens < MAX_COUNT ? max_tokens : MAX_COUNT)};
    char kernel[OXB_NAME_BYTES];
    snprintf(kernel, sizeof kernel, "embed_%s%s", oxb_kernel((oxb_kernel_format)weight->kernel)->name,
             layout_suffix(weight));
    return record(commands, OXB_OP_EMBED, kernel, operands, 4, &args, sizeof args, k, 1);
}

/* The limits keep every product below inside 64 bits: 2^12 * 2^12 * 2^9 * 2^24 elements. */
static oxb_status check_attention(const char *op, const oxb_attention_shape *s) {
    oxb_status status = check_count(op, "n_kv_heads", s->n_kv_heads, 4096);
    if (status == OXB_OK) status = check_count(op, "n_heads", s->n_heads, 4096);
    if (status == OXB_OK) status = check_count(op, "head_dim", s->head_dim, OXB_MAX_HEAD_DIM);
    if (status == OXB_OK) status = check_count(op, "max_seq", s->max_seq, 1u << 24);
    if (status == OXB_OK) status = check_count(op, "layer + 1", (uint64_t)s->layer + 1, 4096);
    if (status != OXB_OK) return status;
    if (s->n_heads % s->n_kv_heads) {
        return oxb_fail(OXB_ENCODING_FAILED, "%s: %u query heads do not divide among %u key-value heads", op,
                        s->n_heads, s->n_kv_heads);
    }
    if (s->head_dim % 2) return oxb_fail(OXB_ENCODING_FAILED, "%s: head_dim = %u must be even", op, s->head_dim);
    return OXB_OK;
}

static uint64_t qkv_bytes(const oxb_attention_shape *s) {
    return ((uint64_t)s->n_heads + 2 * (uint64_t)s->n_kv_heads) * s->head_dim * 4;
}

/* Elements of one layer's keys, or values. */
static uint64_t layer_elements(const oxb_attention_shape *s) {
    return (uint64_t)s->n_kv_heads * s->max_seq * s->head_dim;
}

static uint64_t cache_bytes(const oxb_attention_shape *s) {
    return ((uint64_t)s->layer + 1) * layer_elements(s) * (s->kv_f16 ? 2 : 4);
}

oxb_status oxb_op_qk_norm_rope(oxb_commands *commands, oxb_binding qkv, oxb_binding q_norm, oxb_binding k_norm,
                               oxb_binding rope, oxb_binding state, const oxb_attention_shape *shape, float eps) {
    const char *op = "qk_norm_rope";
    oxb_status status = check_attention(op, shape);
    if (status == OXB_OK) status = check_eps(op, eps);
    if (status != OXB_OK) return status;
    struct operand operands[] = {{"qkv", qkv, qkv_bytes(shape), 1},
                                 {"q_norm", q_norm, (uint64_t)shape->head_dim * 4, 0},
                                 {"k_norm", k_norm, (uint64_t)shape->head_dim * 4, 0},
                                 {"rope", rope, (uint64_t)shape->max_seq * shape->head_dim * 4, 0},
                                 state_operand(state, 0)};
    if ((status = check_operands(op, operands, 5)) != OXB_OK) return status;
    struct oxb_qk_norm_rope_args args = {shape->n_heads, shape->n_kv_heads, shape->head_dim, eps, shape->max_seq, {0}};
    return record(commands, OXB_OP_QK_NORM_ROPE, "qk_norm_rope", operands, 5, &args, sizeof args,
                  (uint64_t)shape->n_heads + shape->n_kv_heads, 1);
}

oxb_status oxb_op_kv_store(oxb_commands *commands, oxb_binding qkv, oxb_binding k_cache, oxb_binding v_cache,
                           oxb_binding state, const oxb_attention_shape *shape) {
    const char *op = "kv_store";
    oxb_status status = check_attention(op, shape);
    if (status != OXB_OK) return status;
    struct operand operands[] = {{"qkv", qkv, qkv_bytes(shape), 0},
                                 {"k_cache", k_cache, cache_bytes(shape), 1},
                                 {"v_cache", v_cache, cache_bytes(shape), 1},
                                 state_operand(state, 0)};
    if ((status = check_operands(op, operands, 4)) != OXB_OK) return status;
    struct oxb_kv_store_args args = {.layer_offset = shape->layer * layer_elements(shape),
                                     .n_heads = shape->n_heads,
                                     .n_kv_heads = shape->n_kv_heads,
                                     .head_dim = shape->head_dim,
                                     .max_seq = shape->max_seq};
    return record(commands, OXB_OP_KV_STORE, shape->kv_f16 ? "kv_store_f16" : "kv_store_f32", operands, 4, &args,
                  sizeof args, shape->n_kv_heads, 1);
}

oxb_status oxb_op_attention(oxb_commands *commands, oxb_binding qkv, oxb_binding k_cache, oxb_binding v_cache,
                            oxb_binding state, oxb_binding out, const oxb_attention_shape *shape, float scale) {
    const char *op = "attention";
    oxb_status status = check_attention(op, shape);
    if (status != OXB_OK) return status;
    struct operand operands[] = {{"qkv", qkv, qkv_bytes(shape), 0},
                                 {"k_cache", k_cache, cache_bytes(shape), 0},
                                 {"v_cache", v_cache, cache_bytes(shape), 0},
                                 state_operand(state, 0),
                                 {"output", out, (uint64_t)shape->n_heads * shape->head_dim * 4, 1}};
    if ((status = check_operands(op, operands, 5)) != OXB_OK) return status;
    if ((status = check_apart(op, operands, operands + 4)) != OXB_OK) return status;
    struct oxb_attention_args args = {.layer_offset = shape->layer * layer_elements(shape),
                                      .n_heads = shape->n_heads,
                                      .n_kv_heads = shape->n_kv_heads,
                                      .head_dim = shape->head_dim,
                                      .max_seq = shape->max_seq,
                                      .scale = scale};
    return record(commands, OXB_OP_ATTENTION, shape->kv_f16 ? "attention_decode_f16" : "attention_decode_f32",
                  operands, 5, &args, sizeof args, shape->n_kv_heads, shape->n_heads / shape->n_kv_heads);
}

oxb_status oxb_op_advance(oxb_commands *commands, oxb_binding logits, oxb_binding tokens, oxb_binding state,
                          uint64_t n, uint64_t max_tokens, int greedy) {
    const char *op = "advance";
    oxb_status status = check_count(op, "n", n, MAX_COUNT);
    if (status == OXB_OK) status = check_count(op, "max_tokens", max_tokens, 1u << 25);
    if (status != OXB_OK) return status;
    struct operand operands[] = {{"logits", logits, n * 4, 0}, {"tokens", tokens, max_tokens * 4, 1}, state_operand(state, 1)};
    if ((status = check_operands(op, operands, 3)) != OXB_OK) return status;
    struct oxb_advance_args args = {(oxb_u32)n, greedy != 0, (oxb_u32)max_tokens, 0};
    return record(commands, OXB_OP_ADVANCE, "advance", operands, 3, &args, sizeof args, 1, 1);
}
