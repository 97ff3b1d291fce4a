/* What carries a state from token to token: the convolution along the tokens and the gated delta
 * rule; and the gate behind it. */
#include <math.h>
#include <string.h>

#include "cpu/recurrence.h"

#define MAX_DIM OXB_MAX_DELTA_DIM

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

static float silu(float x) { return x / (1.0f + expf(-x)); }

uint64_t cpu_conv_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_conv_args *a = args;
    const struct oxb_recurrence *r = &a->recurrence;
    (void)kernel;
    if (a->width < 2 || a->width > OXB_MAX_CONV_WIDTH || a->n_channels == 0) return CPU_BAD_ARGS;
    switch (binding) {
    case 0: return cpu_token_rows(r, a->x_stride, a->n_channels);
    case 1: return (uint64_t)a->n_channels * a->width * 4;
    case 2: return cpu_states_bytes(r->batch, r->n_tokens);
    case 3: return cpu_recurrent_bytes(r, (a->width - 1ull) * a->n_channels);
    default: return cpu_token_rows(r, a->y_stride, a->n_channels);
    }
}

/* Channels [first, end) of a sequence of n tokens. */
static void convolve(const struct oxb_conv_args *a, const float *weight, cpu_recurrent state,
                     const float *x, float *y, uint64_t n, uint64_t first, uint64_t end) {
    const uint64_t before = a->width - 1, channels = a->n_channels;
    for (uint64_t c = first; c < end; c++) {
        float window[OXB_MAX_CONV_WIDTH] = {0}; /* the oldest first */
        const float *w = weight + c * a->width;
        if (state.from)
            for (uint64_t i = 0; i < before; i++) window[i] = state.from[i * channels + c];
        for (uint64_t t = 0; t < n; t++) {
            window[before] = x[t * a->x_stride + c];
            float sum = 0;
            for (uint64_t i = 0; i <= before; i++) sum += w[i] * window[i];
            y[t * a->y_stride + c] = silu(sum);
            for (uint64_t i = 0; i < before; i++) window[i] = window[i + 1];
        }
        for (uint64_t i = 0; i < before; i++) state.to[i * channels + c] = window[i];
    }
}

/* Threadgroups count tiles of CPU_CHANNELS, then sequences. */
void cpu_conv(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_conv_args *a = call->args;
    const struct oxb_recurrence *r = &a->recurrence;
    const uint64_t tiles = ((uint64_t)a->n_channels + CPU_CHANNELS - 1) / CPU_CHANNELS;
    const uint64_t n = r->batch ? 1 : r->n_tokens;
    for (uint64_t i = first; i < last && i < tiles * cpu_sequences(r); i++) {
        const uint64_t sequence = i / tiles, start = i % tiles * CPU_CHANNELS;
        const uint64_t rest = a->n_channels - start;
        const uint64_t end = start + (rest < CPU_CHANNELS ? rest : CPU_CHANNELS);
        const cpu_recurrent state =
            cpu_recurrent_of(r, call->bindings[2].address, call->bindings[3].address, sequence);
        const float *x = (const float *)call->bindings[0].address + sequence * a->x_stride;
        float *y = (float *)call->bindings[4].address + sequence * a->y_stride;
        if (state.to) {
            convolve(a, call->bindings[1].address, state, x, y, n, start, end);
            continue;
        }
        for (uint64_t t = 0; t < n; t++)
            memset(y + t * a->y_stride + start, 0, (end - start) * sizeof *y);
    }
}

uint64_t cpu_delta_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_delta_args *a = args;
    const struct oxb_recurrence *r = &a->recurrence;
    const uint64_t values = (uint64_t)a->n_value_heads * a->value_dim;
    (void)kernel;
    if (a->n_key_heads == 0 || a->n_value_heads == 0 || a->key_dim == 0 || a->key_dim % 32 != 0 ||
        a->key_dim > MAX_DIM || a->value_dim == 0 || a->value_dim % 32 != 0 ||
        a->value_dim > MAX_DIM)
        return CPU_BAD_ARGS;
    switch (binding) {
    case 0:
        return cpu_token_rows(r, a->qkv_stride, 2 * (uint64_t)a->n_key_heads * a->key_dim + values);
    case 1: return cpu_token_rows(r, a->ab_stride, 2 * (uint64_t)a->n_value_heads);
    case 2:
    case 3: return (uint64_t)a->n_value_heads * 4;
    case 4: return cpu_states_bytes(r->batch, r->n_tokens);
    case 5: return cpu_recurrent_bytes(r, cpu_mul(values, a->key_dim));
    default: return cpu_token_rows(r, a->y_stride, values);
    }
}

/* What a token brings to a head. */
typedef struct step {
    float q[MAX_DIM], k[MAX_DIM]; /* of their lengths, q times scale */
    float fade, rate;             /* g and beta */
    float along;                  /* q times k */
} step;

static void normalise(const float *x, uint64_t n, float eps, double scale, float *y) {
    double sum = 0;
    for (uint64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    const double factor = scale / sqrt(sum + (double)eps);
    for (uint64_t i = 0; i < n; i++) y[i] = (float)((double)x[i] * factor);
}

static void prepare(const struct oxb_delta_args *a, const cpu_call *call, uint64_t token,
                    uint64_t head, step *s) {
    const uint64_t keys = a->key_dim, key_head = head % a->n_key_heads;
    const float *qkv = (const float *)call->bindings[0].address + token * a->qkv_stride;
    const float *ab = (const float *)call->bindings[1].address + token * a->ab_stride;
    const float decay = ((const float *)call->bindings[2].address)[head];
    const float x = ab[head] + ((const float *)call->bindings[3].address)[head];
    normalise(qkv + key_head * keys, keys, a->eps, (double)a->scale, s->q);
    normalise(qkv + (a->n_key_heads + key_head) * keys, keys, a->eps, 1.0, s->k);
    s->fade = expf(decay * (x > 20.0f ? x : log1pf(expf(x))));
    s->rate = sigmoid(ab[a->n_value_heads + head]);
    s->along = 0;
    for (uint64_t i = 0; i < keys; i++) s->along += s->q[i] * s->k[i];
}

/* One token: with S the state before it, k S and q S in one pass, then the new state. Its output is
 * q (g S + k d) = g (q S) + (q k) d. */
static void advance(const step *s, const float *from, float *to, const float *v, float *y,
                    uint64_t keys, uint64_t values) {
    float seen[MAX_DIM] = {0}, asked[MAX_DIM] = {0};
    for (uint64_t i = 0; from && i < keys; i++)
        for (uint64_t j = 0; j < values; j++) {
            seen[j] += s->k[i] * from[i * values + j];
            asked[j] += s->q[i] * from[i * values + j];
        }
    for (uint64_t j = 0; j < values; j++) {
        seen[j] = (v[j] - s->fade * seen[j]) * s->rate;
        y[j] = s->fade * asked[j] + s->along * seen[j];
    }
    for (uint64_t i = 0; i < keys; i++)
        for (uint64_t j = 0; j < values; j++)
            to[i * values + j] = s->fade * (from ? from[i * values + j] : 0.0f) + s->k[i] * seen[j];
}

/* Threadgroups count value heads, then sequences. */
void cpu_delta(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_delta_args *a = call->args;
    const struct oxb_recurrence *r = &a->recurrence;
    const uint64_t heads = a->n_value_heads, n = r->batch ? 1 : r->n_tokens;
    for (uint64_t i = first; i < last && i < heads * cpu_sequences(r); i++) {
        const uint64_t sequence = i / heads, h = i % heads;
        const uint64_t part = h * a->key_dim * a->value_dim;
        const cpu_recurrent state =
            cpu_recurrent_of(r, call->bindings[4].address, call->bindings[5].address, sequence);
        for (uint64_t t = sequence; t < sequence + n; t++) {
            const float *v = (const float *)call->bindings[0].address + t * a->qkv_stride +
                             2 * (uint64_t)a->n_key_heads * a->key_dim + h * a->value_dim;
            float *y = (float *)call->bindings[6].address + t * a->y_stride + h * a->value_dim;
            if (!state.to) {
                memset(y, 0, a->value_dim * sizeof *y);
                continue;
            }
            const float *from = t == sequence ? state.from : state.to;
            step s;
            prepare(a, call, t, h, &s);
            advance(&s, from ? from + part : NULL, state.to + part, v, y, a->key_dim, a->value_dim);
        }
    }
}

uint64_t cpu_gate_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_gate_args *a = args;
    const uint64_t row = (uint64_t)a->n_heads * a->head_dim;
    const uint64_t strides[] = {a->x_stride, a->z_stride, 0, a->y_stride};
    (void)kernel;
    if (row == 0 || a->n_tokens == 0) return CPU_BAD_ARGS;
    if (binding == 2) return a->has_norm ? (uint64_t)a->head_dim * 4 : 0;
    if (a->n_tokens > 1 && strides[binding] < row) return CPU_BAD_ARGS;
    return cpu_mul(cpu_add(cpu_mul(a->n_tokens - 1ull, strides[binding]), row), 4);
}

/* Threadgroups count heads, then tokens. x and y may be the same. */
void cpu_gate(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_gate_args *a = call->args;
    const float *weight = call->bindings[2].address;
    for (uint64_t i = first; i < last && i < (uint64_t)a->n_heads * a->n_tokens; i++) {
        const uint64_t t = i / a->n_heads, h = i % a->n_heads, n = a->head_dim;
        const float *x = (const float *)call->bindings[0].address + t * a->x_stride + h * n;
        const float *z = (const float *)call->bindings[1].address + t * a->z_stride + h * n;
        float *y = (float *)call->bindings[3].address + t * a->y_stride + h * n;
        double sum = 0;
        for (uint64_t j = 0; a->has_norm && j < n; j++) sum += (double)x[j] * (double)x[j];
        const double factor = a->has_norm ? 1.0 / sqrt(sum / (double)n + (double)a->eps) : 1.0;
        for (uint64_t j = 0; j < n; j++) {
            const float normed =
                a->has_norm ? (float)((double)x[j] * factor * (double)weight[j]) : x[j];
            y[j] = (a->activation == OXB_GATE_SILU ? silu(z[j]) : sigmoid(z[j])) * normed;
        }
    }
}
