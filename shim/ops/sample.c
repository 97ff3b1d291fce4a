/* The op layer's choice of a token. */
#include "record.h"

/* A dispatch has no empty bindings: what is left out has the settings in its place. */
static ops_operand optional(const char *name, oxb_binding binding, uint64_t bytes,
                            oxb_binding settings) {
    return binding.buffer ? (ops_operand){name, binding, bytes, 0}
                          : (ops_operand){"settings", settings, 0, 0};
}

static oxb_status check_sample(const char *op, const oxb_sample *s) {
    oxb_status status = ops_check_count(op, "n", s->n, OPS_MAX_COUNT);
    if (status == OXB_OK) status = ops_check_count(op, "n_vectors", s->n_vectors, 1u << 20);
    if (status == OXB_OK) status = ops_check_count(op, "max_tokens", s->max_tokens, OPS_MAX_COUNT);
    if (status == OXB_OK) status = ops_check_count(op, "n_slots", s->n_slots, 1u << 24);
    if (status == OXB_OK && s->biases.buffer)
        status = ops_check_count(op, "n_biases", s->n_biases, OPS_MAX_COUNT);
    if (status == OXB_OK && s->masks.buffer)
        status = ops_check_count(op, "n_masks", s->n_masks, 1u << 20);
    if (status != OXB_OK) return status;
    if (!s->biases.buffer && s->n_biases)
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: n_biases = %llu without biases: give both, or neither", op,
                          (unsigned long long)s->n_biases);
    if (!s->masks.buffer && s->n_masks)
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: n_masks = %llu without masks: give both, or neither", op,
                          (unsigned long long)s->n_masks);
    if (s->n_best > OXB_MAX_BEST)
        return front_fail(OXB_ENCODING_FAILED, "%s: n_best = %u must lie in 0..%u", op, s->n_best,
                          OXB_MAX_BEST);
    if (!s->best.buffer != (s->n_best == 0))
        return front_fail(OXB_ENCODING_FAILED, "%s: n_best = %u %s best: give both, or neither", op,
                          s->n_best, s->best.buffer ? "with" : "without");
    if (s->advance && !s->batch && s->n_vectors != 1)
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: advance takes 1 row of a sequence, not n_vectors = %llu: use batch, "
                          "or advance after it",
                          op, (unsigned long long)s->n_vectors);
    return OXB_OK;
}

oxb_status oxb_op_sample(oxb_commands *commands, const oxb_sample *s) {
    const char *op = "sample";
    oxb_status status = check_sample(op, s);
    if (status != OXB_OK) return status;
    const uint64_t bytes = s->n * s->n_vectors * 4, rows = s->batch ? s->n_vectors : 1;
    const uint64_t slots = s->n_vectors * s->n_slots;
    const uint64_t n_blocks = (s->n + OXB_ARGMAX_BLOCK - 1) / OXB_ARGMAX_BLOCK;
    const uint64_t adjusted_bytes = bytes + n_blocks * s->n_vectors * 4;
    const uint32_t n_biases = s->biases.buffer ? (uint32_t)s->n_biases : 0;
    const uint32_t n_masks = s->masks.buffer ? (uint32_t)s->n_masks : 0;
    ops_operand blocks[] = {
        {"logits", s->logits, bytes, 0},
        {"settings", s->settings, rows * sizeof(struct oxb_sampling), 0},
        {"state", s->state, rows * sizeof(struct oxb_decode_state), 0},
        {"tokens", s->tokens, s->max_tokens * 4, 0},
        optional("biases", s->biases, n_biases * sizeof(struct oxb_bias), s->settings),
        optional("masks", s->masks, n_masks * ((s->n + 31) / 32) * 4, s->settings),
        {0}};
    ops_operand choose[] = {blocks[0],
                            {0},
                            blocks[1],
                            {"state", s->state, blocks[2].bytes, 1},
                            {"tokens", s->tokens, blocks[3].bytes, 1},
                            {"choices", s->choices, slots * sizeof(struct oxb_choice), 1},
                            {"best", s->best, slots * s->n_best * sizeof(struct oxb_scored), 1}};
    if (!s->best.buffer) choose[6] = (ops_operand){"choices", s->choices, 0, 1};
    if ((status = ops_check_operands(op, blocks, 6)) != OXB_OK) return status;
    if ((status = ops_check_operands(op, choose + 5, 2)) != OXB_OK) return status;
    for (unsigned out = 3; out < 7; out++) {
        for (unsigned in = 0; in < 6; in++) {
            if (in == out - 1 && out < 5) continue; /* itself */
            if ((status = ops_check_apart(op, blocks + in, choose + out)) != OXB_OK) return status;
        }
    }
    if ((status = ops_check_apart(op, choose + 5, choose + 6)) != OXB_OK) return status;
    oxb_buffer *adjusted = NULL;
    if ((status = front_commands_scratch(commands, adjusted_bytes, &adjusted)) != OXB_OK)
        return status;
    blocks[6] = choose[1] = (ops_operand){"adjusted", {adjusted, 0}, adjusted_bytes, 0};
    blocks[6].written = 1;
    struct oxb_sample_args args = {.n = (oxb_u32)s->n,
                                   .n_vectors = (oxb_u32)s->n_vectors,
                                   .max_tokens = (oxb_u32)s->max_tokens,
                                   .n_biases = n_biases,
                                   .n_masks = n_masks,
                                   .n_slots = s->n_slots,
                                   .n_best = s->n_best,
                                   .n_blocks = (oxb_u32)n_blocks,
                                   .batch = s->batch != 0,
                                   .log_probabilities = s->log_probabilities != 0,
                                   .advance = s->advance != 0};
    const uint32_t mark = oxb_commands_length(commands);
    const oxb_op_shape over_blocks = {.extent = {s->n, s->n_vectors, 1}};
    const oxb_op_shape over_rows = {.extent = {s->n_vectors, 1, 1}, .elements = s->n};
    status = ops_record(commands, OXB_OP_SAMPLE_BLOCKS, &over_blocks, "sample_blocks", blocks, 7,
                        &args, sizeof args);
    if (status == OXB_OK)
        status = ops_record(commands, OXB_OP_SAMPLE_CHOOSE, &over_rows, "sample_choose", choose, 7,
                            &args, sizeof args);
    if (status != OXB_OK) front_commands_cut(commands, mark);
    return status;
}
