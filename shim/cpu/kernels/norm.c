/* RMSNorm, residual addition, biases, and the norm and rotation of query and key heads. */
#include "cpu/cache.h"
#include "cpu/squares.h"

uint64_t cpu_rmsnorm_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_rmsnorm_args *a = args;
    (void)kernel;
    return cpu_mul(cpu_mul(a->n, binding == 1 ? 1 : a->n_vectors), 4);
}

/* x and y may be the same. */
static void normalise(const float *x, const float *weight, uint64_t n, float eps, float *y) {
    const double scale = cpu_inverse_rms(x, n, eps);
    for (uint64_t i = 0; i < n; i++) y[i] = (float)((double)x[i] * scale * (double)weight[i]);
}

void cpu_rmsnorm(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_rmsnorm_args *a = call->args;
    const float *weight = call->bindings[1].address;
    for (uint64_t v = first; v < last && v < a->n_vectors; v++) {
        const float *x = (const float *)call->bindings[0].address + v * a->n;
        float *y = (float *)call->bindings[2].address + v * a->n;
        normalise(x, weight, a->n, a->eps, y);
    }
}

uint64_t cpu_residual_add_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_add_args *a = args;
    (void)kernel;
    (void)binding;
    return cpu_mul(a->n, 4);
}

void cpu_residual_add(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_add_args *a = call->args;
    const float *x = call->bindings[0].address;
    float *y = call->bindings[1].address;
    const uint64_t blocks = a->n / CPU_ELEMENTS + 1;
    const uint64_t end = last < blocks ? last * CPU_ELEMENTS : a->n;
    if (first >= blocks) return;
    for (uint64_t i = first * CPU_ELEMENTS; i < end && i < a->n; i++) y[i] += x[i];
}

uint64_t cpu_bias_add_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_bias_args *a = args;
    (void)kernel;
    if (a->n_vectors == 0 || (a->n_vectors > 1 && a->y_stride < a->n)) return CPU_BAD_ARGS;
    if (binding == 0) return (uint64_t)a->n * 4;
    return cpu_mul(cpu_add(cpu_mul(a->n_vectors - 1, a->y_stride), a->n), 4);
}

/* Threadgroups count blocks of CPU_ELEMENTS, then vectors. */
void cpu_bias_add(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_bias_args *a = call->args;
    const float *bias = call->bindings[0].address;
    const uint64_t blocks = ((uint64_t)a->n + CPU_ELEMENTS - 1) / CPU_ELEMENTS;
    for (uint64_t b = first; b < last && b < blocks * a->n_vectors; b++) {
        float *y = (float *)call->bindings[1].address + b / blocks * a->y_stride;
        const uint64_t start = b % blocks * CPU_ELEMENTS;
        for (uint64_t i = start; i < start + CPU_ELEMENTS && i < a->n; i++) y[i] += bias[i];
    }
}

uint64_t cpu_qk_norm_rope_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_qk_norm_rope_args *a = args;
    (void)kernel;
    if (a->head_dim == 0 || a->head_dim % 2 != 0 || a->head_dim > CPU_MAX_HEAD_DIM ||
        a->rotary_dim == 0 || a->rotary_dim % 2 != 0 || a->rotary_dim > a->head_dim)
        return CPU_BAD_ARGS;
    switch (binding) {
    case 0:
        return cpu_mul(cpu_mul(a->n_tokens, (uint64_t)a->n_heads + 2 * (uint64_t)a->n_kv_heads),
                       (uint64_t)a->head_dim * 4);
    case 3: return cpu_mul(a->max_seq, (uint64_t)a->rotary_dim * 4);
    case 4: return cpu_states_bytes(a->batch, a->n_tokens);
    default: return a->has_norm ? (uint64_t)a->head_dim * 4 : 0;
    }
}

static void rotate_halves(float *x, const float *cosine, const float *sine, uint64_t pairs) {
    for (uint64_t i = 0; i < pairs; i++) {
        const float a = x[i], b = x[i + pairs];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + pairs] = b * cosine[i] + a * sine[i];
    }
}

static void rotate_neighbours(float *x, const float *cosine, const float *sine, uint64_t pairs) {
    for (uint64_t i = 0; i < pairs; i++) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosine[i] - b * sine[i];
        x[2 * i + 1] = b * cosine[i] + a * sine[i];
    }
}

void cpu_qk_norm_rope(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_qk_norm_rope_args *a = call->args;
    const uint64_t pairs = a->rotary_dim / 2;
    const uint64_t heads = (uint64_t)a->n_heads + a->n_kv_heads;
    for (uint64_t i = first; i < last && i < heads * a->n_tokens; i++) {
        const uint64_t token = i / heads, h = i % heads;
        const uint64_t position = cpu_position_of(call->bindings[4].address, a->batch, token);
        if (position >= a->max_seq) continue;
        const float *cosine = (const float *)call->bindings[3].address + position * a->rotary_dim;
        float *x = (float *)call->bindings[0].address +
                   (token * (heads + a->n_kv_heads) + h) * a->head_dim;
        const float *weight = call->bindings[h < a->n_heads ? 1 : 2].address;
        if (a->has_norm) normalise(x, weight, a->head_dim, a->eps, x);
        if (a->interleaved)
            rotate_neighbours(x, cosine, cosine + pairs, pairs);
        else
            rotate_halves(x, cosine, cosine + pairs, pairs);
    }
}
