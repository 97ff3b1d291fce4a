/* The Walsh-Hadamard transform of activations, and copies. */
#include <math.h>
#include <string.h>

#include "cpu/cpu.h"

uint64_t cpu_hadamard_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_hadamard_args *a = args;
    const uint64_t period = (uint64_t)a->head_size * a->n_groups;
    (void)kernel;
    if (a->block < OXB_MIN_HADAMARD || a->block > OXB_MAX_HADAMARD ||
        (a->block & (a->block - 1)) != 0 || a->k == 0 || a->k % a->block != 0 || period == 0 ||
        a->k % period != 0 || (a->inverse && (a->has_norm || a->n_groups > 1)))
        return CPU_BAD_ARGS;
    if (binding == 1 && !a->has_norm) return 0;
    return cpu_mul(cpu_mul(a->k, binding == 0 || binding == 3 ? a->n_vectors : 1), 4);
}

static void transform(float *x, uint64_t n) {
    for (uint64_t apart = 1; apart < n; apart *= 2)
        for (uint64_t start = 0; start < n; start += 2 * apart)
            for (uint64_t i = start; i < start + apart; i++) {
                const float low = x[i], high = x[i + apart];
                x[i] = low + high;
                x[i + apart] = low - high;
            }
}

/* Element i of P(x) is element source(i) of x. */
static uint64_t source(const struct oxb_hadamard_args *a, uint64_t i) {
    const uint64_t head = i / a->head_size, heads = a->k / a->head_size / a->n_groups;
    return (head % a->n_groups * heads + head / a->n_groups) * a->head_size + i % a->head_size;
}

/* Threadgroups count the blocks of a vector, then vectors. */
void cpu_hadamard_blocks(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_hadamard_args *a = call->args;
    const uint64_t blocks = a->k / a->block;
    const float *weight = call->bindings[1].address, *signs = call->bindings[2].address;
    const float scale = (float)(1.0 / sqrt(a->block));
    uint64_t normed = UINT64_MAX; /* the vector of the factor */
    double factor = 1;
    for (uint64_t b = first; b < last && b < blocks * a->n_vectors; b++) {
        const uint64_t v = b / blocks, start = b % blocks * a->block;
        const float *x = (const float *)call->bindings[0].address + v * a->k;
        float *y = (float *)call->bindings[3].address + v * a->k + start;
        float block[OXB_MAX_HADAMARD];
        if (a->has_norm && normed != v) {
            double sum = 0;
            for (uint64_t i = 0; i < a->k; i++) sum += (double)x[i] * (double)x[i];
            factor = 1.0 / sqrt(sum / (double)a->k + (double)a->eps);
            normed = v;
        }
        for (uint64_t i = 0; i < a->block; i++) {
            const uint64_t at = source(a, start + i);
            const float value =
                a->has_norm ? (float)((double)x[at] * factor * (double)weight[at]) : x[at];
            block[i] = a->inverse ? value : value * signs[start + i];
        }
        transform(block, a->block);
        for (uint64_t i = 0; i < a->block; i++)
            y[i] = block[i] * (a->inverse ? scale * signs[start + i] : scale);
    }
}

uint64_t cpu_copy_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_copy_args *a = args;
    (void)kernel;
    (void)binding;
    return cpu_mul(a->n, 4);
}

/* Threadgroups count blocks of CPU_ELEMENTS. */
void cpu_copy(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_copy_args *a = call->args;
    const uint64_t blocks = a->n / CPU_ELEMENTS + (a->n % CPU_ELEMENTS != 0);
    if (first >= blocks) return;
    const uint64_t start = first * CPU_ELEMENTS;
    const uint64_t end = last < blocks ? last * CPU_ELEMENTS : a->n;
    memcpy((uint32_t *)call->bindings[1].address + start,
           (const uint32_t *)call->bindings[0].address + start, (end - start) * 4);
}
