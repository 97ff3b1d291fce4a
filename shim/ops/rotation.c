/* The op layer's Walsh-Hadamard transform of activations. */
#include "record.h"

static oxb_status check_hadamard(const char *op, const oxb_hadamard *h) {
    const int has_norm = h->norm.weight.buffer != NULL;
    oxb_status status = ops_check_count(op, "k", h->k, OPS_MAX_COUNT);
    if (status == OXB_OK) status = ops_check_count(op, "n_vectors", h->n_vectors, OPS_MAX_COUNT);
    if (status == OXB_OK && has_norm) status = ops_check_eps(op, h->norm.eps);
    if (status != OXB_OK) return status;
    if (h->block < OXB_MIN_HADAMARD || h->block > OXB_MAX_HADAMARD || h->block & (h->block - 1))
        return front_fail(OXB_ENCODING_FAILED, "%s: block = %u must be a power of two in %d..%d",
                          op, h->block, OXB_MIN_HADAMARD, OXB_MAX_HADAMARD);
    if (h->k % h->block)
        return front_fail(OXB_ENCODING_FAILED, "%s: k = %llu must be a multiple of block = %u", op,
                          (unsigned long long)h->k, h->block);
    status = ops_check_count(op, "n_groups", h->n_groups, h->k);
    if (status != OXB_OK) return status;
    if (h->n_groups > 1 && (!h->head_size || h->k % ((uint64_t)h->head_size * h->n_groups)))
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: k = %llu must be a multiple of n_groups = %u times head_size = %u",
                          op, (unsigned long long)h->k, h->n_groups, h->head_size);
    if (h->inverse && (has_norm || h->n_groups > 1))
        return front_fail(OXB_ENCODING_FAILED,
                          "%s: the inverse takes neither a norm nor groups of heads: n_groups = %u "
                          "must be 1, and norm none",
                          op, h->n_groups);
    return OXB_OK;
}

oxb_status ops_hadamard(oxb_commands *commands, const char *op, const oxb_hadamard *h) {
    const int has_norm = h->norm.weight.buffer != NULL;
    oxb_status status = check_hadamard(op, h);
    if (status != OXB_OK) return status;
    const uint64_t bytes = h->k * h->n_vectors * 4;
    ops_operand operands[] = {{"input", h->x, bytes, 0},
                              {"norm", h->norm.weight, h->k * 4, 0},
                              {"signs", h->signs, h->k * 4, 0},
                              {"output", h->y, bytes, 1}};
    /* A dispatch has no empty bindings. */
    if (!has_norm) operands[1] = (ops_operand){"signs", h->signs, 0, 0};
    if ((status = ops_check_operands(op, operands, 4)) != OXB_OK) return status;
    /* A threadgroup reads other blocks than its own for a norm and where heads move. */
    const int in_place = h->x.offset == h->y.offset && !has_norm && h->n_groups == 1;
    if (!in_place) status = ops_check_apart(op, operands, operands + 3);
    if (status == OXB_OK && has_norm) status = ops_check_apart(op, operands + 1, operands + 3);
    if (status == OXB_OK) status = ops_check_apart(op, operands + 2, operands + 3);
    if (status != OXB_OK) return status;
    struct oxb_hadamard_args args = {.k = (oxb_u32)h->k,
                                     .n_vectors = (oxb_u32)h->n_vectors,
                                     .block = h->block,
                                     .head_size = h->n_groups > 1 ? h->head_size : (oxb_u32)h->k,
                                     .n_groups = h->n_groups,
                                     .inverse = h->inverse != 0,
                                     .eps = has_norm ? h->norm.eps : 0,
                                     .has_norm = has_norm};
    const oxb_op_shape shape = {.extent = {h->k / h->block, h->n_vectors, 1}, .elements = h->block};
    return ops_record(commands, OXB_OP_HADAMARD, &shape, "hadamard", operands, 4, &args,
                      sizeof args);
}

oxb_status oxb_op_hadamard(oxb_commands *commands, const oxb_hadamard *h) {
    return ops_hadamard(commands, "hadamard", h);
}
