/* The Walsh-Hadamard transform of activations, and copies. */
#include <math.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/squares.h"

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

/* A block of signs * P(n(x)) from element `start` on. */
static void gather(const struct oxb_hadamard_args *a, const float *x, const float *weight,
                   const float *signs, double factor, uint64_t start, float *block) {
    const uint64_t heads = a->k / a->head_size / a->n_groups, end = start + a->block;
    for (uint64_t i = start; i < end;) {
        /* Up to the end of a head its elements stay together. */
        const uint64_t head = i / a->head_size, within = i % a->head_size;
        const uint64_t at =
            (head % a->n_groups * heads + head / a->n_groups) * a->head_size + within;
        const uint64_t left = a->head_size - within, n = left < end - i ? left : end - i;
        const float *s = signs + i;
        float *to = block + (i - start);
        if (a->has_norm)
            for (uint64_t j = 0; j < n; j++)
                to[j] = (float)((double)x[at + j] * factor * (double)weight[at + j]) * s[j];
        else if (a->inverse)
            memcpy(to, x + at, n * sizeof *to);
        else
            for (uint64_t j = 0; j < n; j++) to[j] = x[at + j] * s[j];
        i += n;
    }
}

/* Threadgroups count the blocks of a vector, then vectors. */
void cpu_hadamard_rotate(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_hadamard_args *a = call->args;
    const uint64_t blocks = a->k / a->block;
    const float *weight = call->bindings[1].address, *signs = call->bindings[2].address;
    const float scale = (float)(1.0 / sqrt(a->block));
    float *block = call->scratch;
    uint64_t normed = UINT64_MAX; /* the vector of the factor */
    double factor = 1;
    for (uint64_t b = first; b < last && b < blocks * a->n_vectors; b++) {
        const uint64_t v = b / blocks, start = b % blocks * a->block;
        const float *x = (const float *)call->bindings[0].address + v * a->k;
        float *y = (float *)call->bindings[3].address + v * a->k + start;
        if (a->has_norm && normed != v) {
            factor = cpu_inverse_rms(x, a->k, a->eps);
            normed = v;
        }
        gather(a, x, weight, signs, factor, start, block);
        call->isa->f32->recurrent.hadamard(block, a->block);
        if (a->inverse)
            for (uint64_t i = 0; i < a->block; i++) y[i] = block[i] * scale * signs[start + i];
        else
            for (uint64_t i = 0; i < a->block; i++) y[i] = block[i] * scale;
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
