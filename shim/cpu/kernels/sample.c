/* The choice of a token: the logits adjusted block by block, then the draw of each row. */
#include <math.h>
#include <string.h>

#include "base/choice.h"
#include "cpu/cpu.h"

#define IDLE 0x80000000u /* positions from here on are of idle rows */

static uint64_t settings_of(const struct oxb_sample_args *a, uint64_t v) {
    return a->batch ? v : 0;
}

/* The place of the token that row v chooses, or IDLE. */
static uint32_t place_of(const struct oxb_sample_args *a, const struct oxb_decode_state *state,
                         uint64_t v) {
    const uint64_t place = (uint64_t)state[settings_of(a, v)].position + (a->batch ? 0 : v) + 1;
    return place < IDLE ? (uint32_t)place : IDLE;
}

static uint64_t sample_need(const struct oxb_sample_args *a, unsigned what) {
    const uint64_t logits = cpu_mul(cpu_mul(a->n, a->n_vectors), 4);
    const uint64_t maxima = cpu_mul(cpu_mul(a->n_blocks, a->n_vectors), 4);
    const uint64_t rows = a->batch ? a->n_vectors : 1;
    const uint64_t slots = cpu_mul(a->n_vectors, a->n_slots);
    switch (what) {
    case 'l': return logits;
    case 'a': return logits + maxima < logits ? UINT64_MAX : logits + maxima;
    case 's': return rows * sizeof(struct oxb_sampling);
    case 'p': return rows * sizeof(struct oxb_decode_state);
    case 't': return (uint64_t)a->max_tokens * 4;
    case 'b': return (uint64_t)a->n_biases * sizeof(struct oxb_bias);
    case 'm': return cpu_mul(a->n_masks, ((uint64_t)a->n + 31) / 32 * 4);
    case 'c': return cpu_mul(slots, sizeof(struct oxb_choice));
    default: return cpu_mul(slots, (uint64_t)a->n_best * sizeof(struct oxb_scored));
    }
}

uint64_t cpu_sample_blocks_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_sample_args *a = args;
    (void)kernel;
    if (a->n == 0 || a->n_blocks != (a->n - 1) / OXB_ARGMAX_BLOCK + 1) return CPU_BAD_ARGS;
    return sample_need(a, (unsigned char)"lsptbma"[binding]);
}

uint64_t cpu_sample_choose_need(const cpu_kernel *kernel, const void *args, uint32_t binding) {
    const struct oxb_sample_args *a = args;
    (void)kernel;
    if (a->n == 0 || a->n_blocks != (a->n - 1) / OXB_ARGMAX_BLOCK + 1 || a->n_slots == 0)
        return CPU_BAD_ARGS;
    return sample_need(a, (unsigned char)"lasptcx"[binding]);
}

static float penalised(float w, uint32_t count, const struct oxb_sampling *s) {
    w *= w > 0 ? s->inverse_repetition : s->repetition;
    w = fmaf(-(float)count, s->frequency, w) - s->presence;
    return w == w ? w : -INFINITY;
}

/* The adjusted logits of a block, where the settings change any. */
static void adjust_block(const cpu_call *call, uint64_t v, uint32_t place, uint32_t start,
                         uint32_t n, float *w) {
    const struct oxb_sample_args *a = call->args;
    const struct oxb_sampling *s =
        (const struct oxb_sampling *)call->bindings[1].address + settings_of(a, v);
    const struct oxb_decode_state *state = call->bindings[2].address;
    const uint32_t *tokens = call->bindings[3].address;
    const float *x = (const float *)call->bindings[0].address + v * a->n + start;
    for (uint32_t i = 0; i < n; i++) w[i] = x[i] == x[i] ? x[i] : -INFINITY;
    if (s->mask < a->n_masks) {
        const uint32_t *mask = (const uint32_t *)call->bindings[5].address +
                               s->mask * (((uint64_t)a->n + 31) / 32) + start / 32;
        for (uint32_t i = 0; i < n; i++)
            if (!(mask[i / 32] >> i % 32 & 1)) w[i] = -INFINITY;
    }
    const struct oxb_bias *bias = call->bindings[4].address;
    const uint64_t end = (uint64_t)s->first_bias + s->n_biases;
    for (uint64_t i = s->first_bias; i < end && i < a->n_biases; i++) {
        if (bias[i].token < start || bias[i].token - start >= n) continue;
        float *one = w + (bias[i].token - start);
        *one += bias[i].value;
        if (*one != *one) *one = -INFINITY;
    }
    if (s->window == 0) return;
    uint32_t *counts = call->scratch;
    memset(counts, 0, n * sizeof *counts);
    for (uint32_t p = place > s->window ? place - s->window : 0; p < place; p++) {
        const uint64_t at = (uint64_t)state[settings_of(a, v)].tokens + p;
        if (at < a->max_tokens && tokens[at] >= start && tokens[at] - start < n)
            counts[tokens[at] - start]++;
    }
    for (uint32_t i = 0; i < n; i++)
        if (counts[i] != 0) w[i] = penalised(w[i], counts[i], s);
}

/* Threadgroups count the blocks of a vector of logits, then vectors. */
void cpu_sample_blocks(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_sample_args *a = call->args;
    float *adjusted = call->bindings[6].address;
    float *maxima = adjusted + (uint64_t)a->n_vectors * a->n;
    for (uint64_t i = first; i < last && i < (uint64_t)a->n_vectors * a->n_blocks; i++) {
        const uint64_t v = i / a->n_blocks;
        const uint32_t start = (uint32_t)(i % a->n_blocks) * OXB_ARGMAX_BLOCK;
        const uint32_t n = a->n - start < OXB_ARGMAX_BLOCK ? a->n - start : OXB_ARGMAX_BLOCK;
        const struct oxb_sampling *s =
            (const struct oxb_sampling *)call->bindings[1].address + settings_of(a, v);
        const uint32_t place = place_of(a, call->bindings[2].address, v);
        if (place == IDLE) continue;
        const float *row = (const float *)call->bindings[0].address + v * a->n + start;
        if (choice_adjusts(*s, a->n_masks, a->n_biases)) {
            adjust_block(call, v, place, start, n, adjusted + v * a->n + start);
            row = adjusted + v * a->n + start;
        }
        float largest = -INFINITY;
        for (uint32_t j = 0; j < n; j++)
            if (row[j] > largest) largest = row[j];
        maxima[i] = largest;
    }
}

/* Ascending where the logits descend, then where the tokens ascend. */
static uint64_t order_of(float w, uint32_t token) {
    uint32_t bits;
    w += 0.0f; /* -0 is 0 */
    memcpy(&bits, &w, sizeof bits);
    bits = bits >> 31 ? bits : ~bits & 0x7fffffffu;
    return (uint64_t)bits << 32 | token;
}

/* The sum over the first tokens up to order `limit`: of 1, or of their probabilities. */
static uint64_t sum_to(const float *w, uint32_t n, float m, float scale, uint64_t limit,
                       int probability) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        if (w[i] > -INFINITY && order_of(w[i], i) <= limit)
            sum += probability ? choice_probability(choice_distance(m, w[i], scale)) : 1;
    return sum;
}

/* The lowest order, up to `limit`, up to which the sum reaches `target`; `limit` where none. */
static uint64_t order_reaching(const float *w, uint32_t n, float m, float scale, uint64_t limit,
                               int probability, uint64_t target) {
    uint64_t low = order_of(m, 0), high = limit;
    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        if (sum_to(w, n, m, scale, middle, probability) >= target)
            high = middle;
        else
            low = middle + 1;
    }
    return high;
}

/* Logits that are NaN are not drawn. */
static uint32_t draw(const float *w, uint32_t n, const float *maxima, const struct oxb_sampling *s,
                     uint32_t place) {
    float m = -INFINITY;
    uint32_t top = OXB_NO_INDEX;
    for (uint32_t block = 0, i = 0; i < n; block++, i += OXB_ARGMAX_BLOCK) {
        if (maxima[block] > m) {
            m = maxima[block];
            top = i;
        }
    }
    while (top != OXB_NO_INDEX && w[top] != m) top++;
    if (top == OXB_NO_INDEX || s->scale == 0 || m == INFINITY) return top;
    uint64_t limit = order_of(-INFINITY, 0) - 1;
    if (s->top_k != 0) limit = order_reaching(w, n, m, s->scale, limit, 0, s->top_k);
    if (s->top_p != 0) {
        const uint64_t total = sum_to(w, n, m, s->scale, limit, 1);
        /* floor(total * top_p / 2^32) without a product of more than 64 bits */
        const uint64_t target = (total >> 32) * s->top_p + ((total & UINT32_MAX) * s->top_p >> 32);
        limit = order_reaching(w, n, m, s->scale, limit, 1, target > 1 ? target : 1);
    }
    int64_t least = INT64_MAX;
    uint32_t found = OXB_NO_INDEX;
    struct choice_words noise = {{0}};
    for (uint32_t i = 0, group = OXB_NO_INDEX; i < n; i++) {
        if (!(w[i] > -INFINITY) || order_of(w[i], i) > limit) continue;
        const uint32_t u = choice_distance(m, w[i], s->scale);
        if (u > s->least) continue;
        if (i / 4 != group) {
            group = i / 4;
            noise = choice_philox(group, place, s->choice, 0, s->seed[0], s->seed[1]);
        }
        const int64_t key = (int64_t)u + choice_gumbel(noise.word[i % 4]);
        if (key < least) {
            least = key;
            found = i;
        }
    }
    return found;
}

/* log of the sum of exp over the logits that are numbers. */
static double log_sum(const float *x, uint32_t n) {
    double m = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        if (x[i] > m) m = x[i];
    if (isinf(m)) return m;
    for (uint32_t i = 0; i < n; i++)
        if (x[i] == x[i]) sum += exp(x[i] - m);
    return m + log(sum);
}

/* The n_best largest logits as they came. */
static void rank(const float *x, uint32_t n, double log_total, struct oxb_scored *best,
                 uint32_t n_best) {
    uint64_t after = 0; /* the order from which the next one is looked for */
    for (uint32_t b = 0; b < n_best; b++) {
        uint64_t found = UINT64_MAX;
        for (uint32_t i = 0; i < n; i++) {
            if (x[i] != x[i]) continue;
            const uint64_t order = order_of(x[i], i);
            if (order >= after && order < found) found = order;
        }
        const uint32_t token = found == UINT64_MAX ? OXB_NO_INDEX : (uint32_t)found;
        best[b] = (struct oxb_scored){token, token == OXB_NO_INDEX ? -INFINITY
                                                                   : (float)(x[token] - log_total)};
        after = found == UINT64_MAX ? found : found + 1;
    }
}

void cpu_sample_choose(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_sample_args *a = call->args;
    struct oxb_decode_state *states = call->bindings[3].address;
    uint32_t *tokens = call->bindings[4].address;
    struct oxb_choice *choices = call->bindings[5].address;
    struct oxb_scored *best = call->bindings[6].address;
    for (uint64_t v = first; v < last && v < a->n_vectors; v++) {
        const float *x = (const float *)call->bindings[0].address + v * a->n;
        const float *adjusted = call->bindings[1].address;
        const float *maxima = adjusted + (uint64_t)a->n_vectors * a->n + v * a->n_blocks;
        const struct oxb_sampling *s =
            (const struct oxb_sampling *)call->bindings[2].address + settings_of(a, v);
        struct oxb_decode_state *state = states + settings_of(a, v);
        const uint32_t place = place_of(a, states, v);
        if (place == IDLE) continue;
        const float *w = choice_adjusts(*s, a->n_masks, a->n_biases) ? adjusted + v * a->n : x;
        const uint32_t token = draw(w, a->n, maxima, s, place);
        const uint64_t slot = v * a->n_slots + place % a->n_slots;
        const double log_total = a->log_probabilities || a->n_best != 0 ? log_sum(x, a->n) : 0;
        choices[slot] = (struct oxb_choice){.token = token, .position = place};
        if (a->log_probabilities)
            choices[slot].log_probability =
                token == OXB_NO_INDEX ? -INFINITY : (float)(x[token] - log_total);
        if (a->n_best != 0) rank(x, a->n, log_total, best + slot * a->n_best, a->n_best);
        if (!a->advance) continue;
        const uint64_t at = (uint64_t)state->tokens + place;
        if (at < a->max_tokens) tokens[at] = token == OXB_NO_INDEX ? 0 : token;
        state->position++;
    }
}
