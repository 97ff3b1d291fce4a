/* The kernels of layers with a state, and the Walsh-Hadamard transform. */
#include <math.h>
#include <string.h>

#include "check.h"

#define MAX_N  300u
#define TOKENS 3u

static void fill(float *x, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) x[i] = 4 * random_float();
}

static double distance(const float *x, const double *expected, uint64_t n) {
    double error = 0, size = 0;
    for (uint64_t i = 0; i < n; i++) {
        error += ((double)x[i] - expected[i]) * ((double)x[i] - expected[i]);
        size += expected[i] * expected[i];
    }
    return sqrt(error / size);
}

static void check_conv(const cpu_isa *isa, uint64_t n, uint32_t width) {
    static float x[OXB_MAX_CONV_WIDTH][MAX_N], weights[OXB_MAX_CONV_WIDTH][MAX_N], y[MAX_N + 1];
    static double expected[MAX_N];
    const float *rows[OXB_MAX_CONV_WIDTH];
    for (uint32_t j = 0; j < width; j++) {
        rows[j] = x[j];
        fill(x[j], n);
        fill(weights[j], n);
    }
    for (uint64_t i = 0; i < n; i++) {
        double sum = 0;
        for (uint32_t j = 0; j < width; j++) sum += (double)weights[j][i] * x[j][i];
        expected[i] = sum / (1 + exp(-sum));
    }
    y[n] = 7;
    isa->f32->recurrent.conv(rows, weights[0], MAX_N, width, y, n);
    const double off = distance(y, expected, n);
    expect(off < 2e-6, isa->name, "error of a convolution", off, 2e-6);
    expect(y[n] == 7, isa->name, "what lies behind a convolution", y[n], 7);
}

static void check_gate(const cpu_isa *isa, uint64_t n, int normed, int silu) {
    static float x[MAX_N], z[MAX_N], weight[MAX_N], y[MAX_N + 1];
    static double expected[MAX_N];
    fill(x, n);
    fill(z, n);
    fill(weight, n);
    for (uint64_t i = 0; i < n; i++)
        expected[i] = (silu ? (double)z[i] : 1.0) / (1 + exp(-(double)z[i])) *
                      (normed ? 0.5 * x[i] * weight[i] : (double)x[i]);
    y[n] = 7;
    const cpu_factor factor = {normed ? 2.0f : 1.0f, normed ? 0.25f : 1.0f};
    isa->f32->recurrent.gate(x, z, normed ? weight : NULL, factor, silu, y, n);
    const double off = distance(y, expected, n);
    expect(off < 2e-6, isa->name, "error of a gate", off, 2e-6);
    expect(y[n] == 7, isa->name, "what lies behind a gate", y[n], 7);
}

static void check_delta(const cpu_isa *isa, uint32_t keys, uint32_t values, uint32_t tokens) {
    static float before[OXB_MAX_DELTA_DIM * OXB_MAX_DELTA_DIM], after[sizeof before / 4];
    static float strip[OXB_MAX_DELTA_DIM * CPU_DELTA_COLUMNS];
    static float v[TOKENS * OXB_MAX_DELTA_DIM], y[TOKENS * OXB_MAX_DELTA_DIM];
    static double state[sizeof before / 4], expected[TOKENS * OXB_MAX_DELTA_DIM];
    static cpu_delta_step steps[TOKENS];
    fill(before, keys * values);
    fill(v, tokens * values);
    for (uint32_t i = 0; i < keys * values; i++) state[i] = before[i];
    for (uint32_t t = 0; t < tokens; t++) {
        cpu_delta_step *s = steps + t;
        double along = 0;
        fill(s->q, keys);
        fill(s->k, keys);
        for (uint32_t i = 0; i < keys; i++) {
            s->q[i] /= (float)keys;
            s->k[i] /= (float)keys;
            along += (double)s->q[i] * s->k[i];
        }
        s->along = (float)along;
        s->fade = 0.9f;
        s->rate = 0.7f;
        for (uint32_t j = 0; j < values; j++) {
            double seen = 0, asked = 0;
            for (uint32_t i = 0; i < keys; i++)
                seen += s->k[i] * (state[i * values + j] *= s->fade);
            const double change = (v[t * values + j] - seen) * s->rate;
            for (uint32_t i = 0; i < keys; i++)
                asked += s->q[i] * (state[i * values + j] += s->k[i] * change);
            expected[t * values + j] = asked;
        }
    }
    const cpu_delta d = {.from = before,
                         .to = after,
                         .stride = values,
                         .key_dim = keys,
                         .n_columns = values,
                         .n_steps = tokens,
                         .steps = steps,
                         .v = v,
                         .y = y,
                         .v_stride = values,
                         .y_stride = values,
                         .strip = strip};
    isa->f32->recurrent.delta(&d);
    const double off = distance(y, expected, tokens * values);
    expect(off < 2e-6, isa->name, "error of the delta rule", off, 2e-6);
    const double of_state = distance(after, state, keys * values);
    expect(of_state < 2e-6, isa->name, "error of a state", of_state, 2e-6);
}

static void check_hadamard(const cpu_isa *isa, uint32_t n) {
    static float x[OXB_MAX_HADAMARD];
    static double expected[OXB_MAX_HADAMARD];
    fill(x, n);
    for (uint32_t r = 0; r < n; r++) {
        expected[r] = 0;
        for (uint32_t c = 0; c < n; c++)
            expected[r] += __builtin_popcount(r & c) % 2 ? -(double)x[c] : (double)x[c];
    }
    isa->f32->recurrent.hadamard(x, n);
    const double off = distance(x, expected, n);
    expect(off < 1e-6, isa->name, "error of a transform", off, 1e-6);
}

void check_recurrent(const cpu_isa *isa) {
    for (uint64_t n = 1; n <= MAX_N; n += 1 + n / 5) {
        for (uint32_t width = 2; width <= OXB_MAX_CONV_WIDTH; width += 2) check_conv(isa, n, width);
        for (int form = 0; form < 4; form++) check_gate(isa, n, form % 2, form / 2);
    }
    for (uint32_t keys = 32; keys <= OXB_MAX_DELTA_DIM; keys += 96)
        for (uint32_t values = 32; values <= OXB_MAX_DELTA_DIM; values += 32)
            for (uint32_t tokens = 1; tokens <= TOKENS; tokens++)
                check_delta(isa, keys, values, tokens);
    for (uint32_t n = OXB_MIN_HADAMARD; n <= OXB_MAX_HADAMARD; n *= 2) check_hadamard(isa, n);
}
