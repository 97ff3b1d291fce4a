/* What carries a state from token to token: the convolution along the tokens and the gated delta
 * rule; and the gate behind it. */
#include <math.h>
#include <string.h>

#include "cpu/recurrence.h"
#include "cpu/squares.h"

#define MAX_DIM OXB_MAX_DELTA_DIM

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

/* Channels [first, first + count) of a sequence of n tokens. */
static void convolve(const cpu_call *call, cpu_recurrent state, const float *x, float *y,
                     uint64_t n, uint64_t first, uint64_t count) {
    static const float zeros[CPU_CHANNELS];
    const struct oxb_conv_args *a = call->args;
    const uint64_t before = a->width - 1, channels = a->n_channels;
    const float *weight = (const float *)call->bindings[1].address + first * a->width;
    float *turned = call->scratch;                  /* [width][CPU_CHANNELS] */
    const float *rows[OXB_MAX_CONV_WIDTH] = {NULL}; /* of inputs, the oldest first */
    for (uint64_t j = 0; j < a->width; j++)
        for (uint64_t c = 0; c < count; c++)
            turned[j * CPU_CHANNELS + c] = weight[c * a->width + j];
    for (uint64_t j = 0; j < before; j++)
        rows[j] = state.from ? state.from + j * channels + first : zeros;
    for (uint64_t t = 0; t < n; t++) {
        rows[before] = x + t * a->x_stride + first;
        call->isa->f32->recurrent.conv(rows, turned, CPU_CHANNELS, a->width,
                                       y + t * a->y_stride + first, count);
        memmove(rows, rows + 1, before * sizeof *rows);
    }
    /* In place the rows of the state before lie behind those that they go to. */
    for (uint64_t j = 0; j < before; j++)
        memmove(state.to + j * channels + first, rows[j], count * sizeof(float));
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
        const uint64_t count = rest < CPU_CHANNELS ? rest : CPU_CHANNELS;
        const cpu_recurrent state =
            cpu_recurrent_of(r, call->bindings[2].address, call->bindings[3].address, sequence);
        const float *x = (const float *)call->bindings[0].address + sequence * a->x_stride;
        float *y = (float *)call->bindings[4].address + sequence * a->y_stride;
        if (state.to) {
            convolve(call, state, x, y, n, start, count);
            continue;
        }
        for (uint64_t t = 0; t < n; t++) memset(y + t * a->y_stride + start, 0, count * sizeof *y);
    }
}

uint64_t cpu_delta_rule_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_delta_args *a = args;
    const struct oxb_recurrence *r = &a->recurrence;
    const uint64_t values = (uint64_t)a->n_value_heads * a->value_dim;
    (void)kernel;
    if (a->n_key_heads == 0 || a->first_head >= a->end_head || a->end_head > a->n_value_heads ||
        a->key_dim == 0 || a->key_dim % 32 != 0 || a->key_dim > MAX_DIM || a->value_dim == 0 ||
        a->value_dim % 32 != 0 || a->value_dim > MAX_DIM)
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

#define STEPS 32u /* tokens that are prepared together */

_Static_assert((OXB_MAX_DELTA_DIM * CPU_DELTA_COLUMNS) * sizeof(float) +
                       STEPS * sizeof(cpu_delta_step) <=
                   CPU_SCRATCH,
               "a strip of a state and the steps must fit the scratch of a thread");

static void normalise(const float *x, uint64_t n, float eps, float scale, float *y) {
    const double factor = (double)scale / sqrt(cpu_squares(x, n) + (double)eps);
    for (uint64_t i = 0; i < n; i++) y[i] = (float)((double)x[i] * factor);
}

static float product(const float *x, const float *y, uint64_t n) {
    float lane[8] = {0};
    for (uint64_t i = 0; i < n; i += 8)
        for (unsigned j = 0; j < 8; j++) lane[j] += x[i + j] * y[i + j];
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

static void prepare(const cpu_call *call, uint64_t token, uint64_t head, cpu_delta_step *s) {
    const struct oxb_delta_args *a = call->args;
    const uint64_t keys = a->key_dim, key_head = head % a->n_key_heads;
    const float *qkv = (const float *)call->bindings[0].address + token * a->qkv_stride;
    const float *ab = (const float *)call->bindings[1].address + token * a->ab_stride;
    const float decay = ((const float *)call->bindings[2].address)[head];
    const float x = ab[head] + ((const float *)call->bindings[3].address)[head];
    normalise(qkv + key_head * keys, keys, a->eps, a->scale, s->q);
    normalise(qkv + (a->n_key_heads + key_head) * keys, keys, a->eps, 1.0f, s->k);
    s->fade = expf(decay * (x > 20.0f ? x : log1pf(expf(x))));
    s->rate = 1.0f / (1.0f + expf(-ab[a->n_value_heads + head]));
    s->along = product(s->q, s->k, keys);
}

/* A head of a sequence, whose tokens are [first, end). */
static void run_head(const cpu_call *call, cpu_recurrent state, uint64_t head, uint64_t first,
                     uint64_t end) {
    const struct oxb_delta_args *a = call->args;
    const uint64_t part = head * a->key_dim * a->value_dim;
    const uint64_t v = 2 * (uint64_t)a->n_key_heads * a->key_dim + head * a->value_dim;
    float *strip = call->scratch;
    cpu_delta_step *steps = (cpu_delta_step *)(void *)(strip + MAX_DIM * CPU_DELTA_COLUMNS);
    cpu_delta d = {.from = state.from ? state.from + part : NULL,
                   .to = state.to + part,
                   .stride = a->value_dim,
                   .key_dim = a->key_dim,
                   .n_columns = a->value_dim,
                   .steps = steps,
                   .v_stride = a->qkv_stride,
                   .y_stride = a->y_stride,
                   .strip = strip};
    for (uint64_t t = first; t < end; t += d.n_steps) {
        d.n_steps = end - t < STEPS ? (uint32_t)(end - t) : STEPS;
        d.v = (const float *)call->bindings[0].address + t * a->qkv_stride + v;
        d.y = (float *)call->bindings[6].address + t * a->y_stride + head * a->value_dim;
        for (uint64_t i = 0; i < d.n_steps; i++) prepare(call, t + i, head, steps + i);
        call->isa->f32->recurrent.delta(&d);
        d.from = d.to;
    }
}

/* Threadgroups count value heads of the dispatch, then sequences. */
void cpu_delta_rule(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_delta_args *a = call->args;
    const struct oxb_recurrence *r = &a->recurrence;
    const uint64_t heads = a->end_head - a->first_head, n = r->batch ? 1 : r->n_tokens;
    for (uint64_t i = first; i < last && i < heads * cpu_sequences(r); i++) {
        const uint64_t sequence = i / heads, h = a->first_head + i % heads;
        const cpu_recurrent state =
            cpu_recurrent_of(r, call->bindings[4].address, call->bindings[5].address, sequence);
        if (state.to) {
            run_head(call, state, h, sequence, sequence + n);
            continue;
        }
        float *y = (float *)call->bindings[6].address + h * a->value_dim;
        for (uint64_t t = sequence; t < sequence + n; t++)
            memset(y + t * a->y_stride, 0, a->value_dim * sizeof *y);
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

/* A factor whose float would be infinite or lose digits is one of 2^64 times x, or of 2^-64 times
 * x: exact, but for elements that it leaves at 0 either way. */
static cpu_factor factor_of(double value) {
    const float power = value > 0x1p126 ? 0x1p64f : value < 0x1p-126 ? 0x1p-64f : 1.0f;
    return (cpu_factor){power, (float)(value / (double)power)};
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
        const cpu_factor factor = factor_of(a->has_norm ? cpu_inverse_rms(x, n, a->eps) : 1.0);
        call->isa->f32->recurrent.gate(x, z, a->has_norm ? weight : NULL, factor,
                                       a->activation == OXB_GATE_SILU, y, n);
    }
}
