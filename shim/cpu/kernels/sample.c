/* The choice of a token: the logits adjusted block by block, then the draw of each row. */
#include <math.h>
#include <string.h>

#include "base/choice.h"
#include "cpu/cpu.h"
#include "cpu/limits.h"

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
    if (a->n == 0 || a->n_blocks != (a->n - 1) / OXB_ARGMAX_BLOCK + 1 || a->n_slots == 0 ||
        a->n_best > OXB_MAX_BEST)
        return CPU_BAD_ARGS;
    return sample_need(a, (unsigned char)"lasptcx"[binding]);
}

static float penalised(float w, uint32_t count, const struct oxb_sampling *s) {
    w *= w > 0 ? s->inverse_repetition : s->repetition;
    w = fmaf(-(float)count, s->frequency, w) - s->presence;
    return w == w ? w : -INFINITY;
}

/* A row of a block. */
typedef struct block {
    const struct oxb_sample_args *args;
    const struct oxb_sampling *settings;
    uint32_t start, n; /* its tokens */
    float *w;
} block;

/* Returns whether any token of the block has a bias. */
static int add_biases(const block *b, const struct oxb_bias *bias) {
    const uint64_t last = (uint64_t)b->settings->first_bias + b->settings->n_biases;
    const uint64_t end = last < b->args->n_biases ? last : b->args->n_biases;
    int any = 0;
    for (uint64_t i = b->settings->first_bias; i < end; i++) {
        if (bias[i].token - b->start >= b->n) continue;
        float *one = b->w + (bias[i].token - b->start);
        *one += bias[i].value;
        if (*one != *one) *one = -INFINITY;
        any = 1;
    }
    return any;
}

#define TOGETHER 4096u /* tokens of a window that are looked at together */

typedef struct occurrences {
    uint32_t seen[TOGETHER]; /* tokens of the block, as they come */
    uint32_t count[OXB_ARGMAX_BLOCK];
    uint32_t found[OXB_ARGMAX_BLOCK]; /* the tokens whose count is not 0 */
} occurrences;

_Static_assert(sizeof(occurrences) <= CPU_SCRATCH, "the scratch of penalties is too small");

/* Returns whether any token of the block is in the window, tokens [first, end). */
static int penalise(const cpu_choice *c, const block *b, const uint32_t *tokens, uint64_t first,
                    uint64_t end, occurrences *o) {
    uint32_t n_found = 0;
    for (uint64_t i = first; i < end; i += TOGETHER) {
        const uint32_t n = end - i < TOGETHER ? (uint32_t)(end - i) : TOGETHER;
        const uint32_t n_seen = c->within(tokens + i, n, b->start, b->n, o->seen);
        if (n_seen != 0 && n_found == 0) memset(o->count, 0, sizeof o->count);
        for (uint32_t j = 0; j < n_seen; j++)
            if (o->count[o->seen[j]]++ == 0) o->found[n_found++] = o->seen[j];
    }
    for (uint32_t i = 0; i < n_found; i++) {
        const uint32_t token = o->found[i];
        b->w[token] = penalised(b->w[token], o->count[token], b->settings);
    }
    return n_found != 0;
}

/* Write the adjusted logits of a block. Returns the largest. */
static float adjust_block(const cpu_call *call, const block *b, const float *x,
                          const struct oxb_decode_state *state, uint32_t place) {
    const struct oxb_sample_args *a = b->args;
    const struct oxb_sampling *s = b->settings;
    const cpu_choice *c = &call->isa->f32->choice;
    const uint32_t *mask = NULL;
    if (s->mask < a->n_masks)
        mask = (const uint32_t *)call->bindings[5].address +
               s->mask * (((uint64_t)a->n + 31) / 32) + b->start / 32;
    const float largest = c->copy(x, mask, b->w, b->n);
    int changed = add_biases(b, call->bindings[4].address);
    if (s->window != 0) {
        const uint64_t text = state->tokens, end = text + place;
        changed |= penalise(c, b, call->bindings[3].address,
                            text + (place > s->window ? place - s->window : 0),
                            end < a->max_tokens ? end : a->max_tokens, call->scratch);
    }
    return changed ? c->largest(b->w, b->n) : largest;
}

/* Threadgroups count the blocks of a vector of logits, then vectors. */
void cpu_sample_blocks(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_sample_args *a = call->args;
    const struct oxb_decode_state *states = call->bindings[2].address;
    float *adjusted = call->bindings[6].address;
    float *maxima = adjusted + (uint64_t)a->n_vectors * a->n;
    for (uint64_t i = first; i < last && i < (uint64_t)a->n_vectors * a->n_blocks; i++) {
        const uint64_t v = i / a->n_blocks;
        const uint32_t start = (uint32_t)(i % a->n_blocks) * OXB_ARGMAX_BLOCK;
        const uint32_t rest = a->n - start, place = place_of(a, states, v);
        const float *x = (const float *)call->bindings[0].address + v * a->n + start;
        const block b = {.args = a,
                         .settings = (const struct oxb_sampling *)call->bindings[1].address +
                                     settings_of(a, v),
                         .start = start,
                         .n = rest < OXB_ARGMAX_BLOCK ? rest : OXB_ARGMAX_BLOCK,
                         .w = adjusted + v * a->n + start};
        if (place == IDLE) continue;
        maxima[i] = choice_adjusts(*b.settings, a->n_masks, a->n_biases)
                        ? adjust_block(call, &b, x, states + settings_of(a, v), place)
                        : call->isa->f32->choice.largest(x, b.n);
    }
}

/* A row of logits, and the largest of each block. */
typedef struct row {
    const cpu_call *call;
    const float *w;
    uint32_t n;
    const float *maxima; /* NULL: not known */
    float largest;       /* -inf where there is none */
} row;

static uint32_t block_length(const row *r, uint32_t start) {
    return r->n - start < OXB_ARGMAX_BLOCK ? r->n - start : OXB_ARGMAX_BLOCK;
}

static row row_of(const cpu_call *call, const float *w, uint32_t n, const float *maxima) {
    row r = {call, w, n, maxima, -INFINITY};
    for (uint32_t i = 0; i <= (n - 1) / OXB_ARGMAX_BLOCK; i++)
        if (maxima[i] > r.largest) r.largest = maxima[i];
    return r;
}

/* The first token of the largest logit, OXB_NO_INDEX where there is none. */
static uint32_t first_of_largest(const row *r) {
    if (r->largest == -INFINITY) return OXB_NO_INDEX;
    uint32_t start = 0;
    while (r->maxima[start / OXB_ARGMAX_BLOCK] != r->largest) start += OXB_ARGMAX_BLOCK;
    return start + (uint32_t)r->call->isa->f32->choice.find(r->w + start, block_length(r, start),
                                                            r->largest);
}

/* The last token whose logit equals the limit's and is kept. */
static uint32_t last_kept(const row *r, cpu_limit limit) {
    if (limit.ties == UINT64_MAX) return OXB_NO_INDEX;
    for (uint32_t start = 0; start < r->n; start += OXB_ARGMAX_BLOCK) {
        const uint32_t n = block_length(r, start);
        if (r->maxima != NULL && r->maxima[start / OXB_ARGMAX_BLOCK] < limit.lowest) continue;
        const uint64_t equal =
            r->call->isa->f32->choice.tally(r->w + start, n, limit.lowest, limit.lowest).equal;
        if (limit.ties > equal) {
            limit.ties -= equal;
            continue;
        }
        for (uint32_t i = start; i < start + n; i++)
            if (r->w[i] == limit.lowest && --limit.ties == 0) return i;
    }
    return OXB_NO_INDEX;
}

#define LEAST_NOISE (-33 * (1 << 20)) /* choice_gumbel of any number is more */

static uint32_t draw(const row *r, const struct oxb_sampling *s, uint32_t place) {
    const uint32_t top = first_of_largest(r);
    if (top == OXB_NO_INDEX || r->largest == INFINITY) return top;
    if (!(s->scale > 0 && s->scale < INFINITY)) return top;
    const cpu_limit limit = cpu_limit_of_filters(r->call, r->w, r->n, r->largest, s);
    const struct choice_words noise =
        choice_philox(top / 4, place, s->choice, 0, s->seed[0], s->seed[1]);
    cpu_race race = {.w = r->w,
                     .largest = r->largest,
                     .scale = s->scale,
                     .lowest = limit.lowest,
                     .last = OXB_NO_INDEX,
                     .place = place,
                     .choice = s->choice,
                     .seed = {s->seed[0], s->seed[1]},
                     .key = choice_gumbel(noise.word[top % 4]),
                     .token = top};
    /* Those farther away lose to the largest, whatever their noise. */
    const float hopeless =
        cpu_lowest_within(r->largest, s->scale, (uint32_t)(race.key - LEAST_NOISE));
    if (hopeless > race.lowest)
        race.lowest = hopeless;
    else
        race.last = last_kept(r, limit);
    for (uint32_t start = 0; start < r->n; start += OXB_ARGMAX_BLOCK) {
        if (start > race.last) race.lowest = nextafterf(limit.lowest, INFINITY);
        if (r->maxima[start / OXB_ARGMAX_BLOCK] >= race.lowest)
            r->call->isa->f32->choice.race(&race, start, start + block_length(r, start));
    }
    return race.token;
}

/* log of the sum of exp over the logits that are numbers, less the largest of them: together with
 * a large one it would be rounded away. */
static double log_sum(const row *r) {
    if (isinf(r->largest)) return 0;
    return log(r->call->isa->f32->choice.exp_sum(r->w, r->n, r->largest));
}

static float log_probability(const row *r, uint32_t token, double log_total) {
    if (token == OXB_NO_INDEX) return -INFINITY;
    return (float)((double)r->w[token] - (double)r->largest - log_total);
}

/* Put a token among the best ones, which are in order; tokens come in ascending order. */
static void put(const row *r, uint32_t token, uint32_t *best, uint32_t *n, uint32_t room) {
    uint32_t at = *n;
    while (at > 0 && r->w[best[at - 1]] < r->w[token]) at--;
    if (at == room) return;
    if (*n < room) ++*n;
    memmove(best + at + 1, best + at, (*n - 1 - at) * sizeof *best);
    best[at] = token;
}

/* The n_best largest of the logits as they came; -inf ones, then none, where there are too few. */
static void rank(const row *r, double log_total, struct oxb_scored *scored, uint32_t n_best) {
    uint32_t best[OXB_MAX_BEST], n = 0;
    if (r->largest != -INFINITY) {
        const cpu_limit limit = cpu_limit_of_count(r->call, r->w, r->n, r->largest, n_best);
        const uint32_t last = last_kept(r, limit);
        float lowest = limit.lowest;
        for (uint32_t i = 0; i < r->n; i++) {
            if (i > last) lowest = nextafterf(limit.lowest, INFINITY);
            i += (uint32_t)r->call->isa->f32->choice.find(r->w + i, r->n - i, lowest);
            if (i < r->n && (r->w[i] > limit.lowest || i <= last)) put(r, i, best, &n, n_best);
        }
    }
    for (uint32_t i = 0; i < r->n && n < n_best; i++)
        if (r->w[i] == -INFINITY) best[n++] = i;
    for (uint32_t i = 0; i < n_best; i++) {
        const uint32_t token = i < n ? best[i] : OXB_NO_INDEX;
        scored[i] = (struct oxb_scored){token, log_probability(r, token, log_total)};
    }
}

/* The log probability of a row's choice and its best tokens, of the logits as they came. */
static void score(const row *r, const struct oxb_sample_args *a, struct oxb_choice *choice,
                  struct oxb_scored *best) {
    const double log_total = log_sum(r);
    if (a->log_probabilities)
        choice->log_probability = log_probability(r, choice->token, log_total);
    if (a->n_best != 0) rank(r, log_total, best, a->n_best);
}

void cpu_sample_choose(const cpu_call *call, uint64_t first, uint64_t last) {
    const struct oxb_sample_args *a = call->args;
    const float *logits = call->bindings[0].address, *adjusted = call->bindings[1].address;
    const struct oxb_sampling *settings = call->bindings[2].address;
    struct oxb_decode_state *states = call->bindings[3].address;
    uint32_t *tokens = call->bindings[4].address;
    struct oxb_choice *choices = call->bindings[5].address;
    struct oxb_scored *best = call->bindings[6].address;
    for (uint64_t v = first; v < last && v < a->n_vectors; v++) {
        const struct oxb_sampling *s = settings + settings_of(a, v);
        struct oxb_decode_state *state = states + settings_of(a, v);
        const uint32_t place = place_of(a, states, v);
        if (place == IDLE) continue;
        const int adjusts = choice_adjusts(*s, a->n_masks, a->n_biases);
        const float *x = logits + v * a->n;
        const float *maxima = adjusted + (uint64_t)a->n_vectors * a->n + v * a->n_blocks;
        const row r = row_of(call, adjusts ? adjusted + v * a->n : x, a->n, maxima);
        const uint32_t token = draw(&r, s, place);
        const uint64_t slot = v * a->n_slots + place % a->n_slots;
        choices[slot] = (struct oxb_choice){.token = token, .position = place};
        if (a->log_probabilities || a->n_best != 0) {
            const row raw = {call, x, a->n, NULL, call->isa->f32->choice.largest(x, a->n)};
            score(adjusts ? &raw : &r, a, choices + slot, best + slot * a->n_best);
        }
        if (!a->advance) continue;
        const uint64_t at = (uint64_t)state->tokens + place;
        if (at < a->max_tokens) tokens[at] = token == OXB_NO_INDEX ? 0 : token;
        state->position++;
    }
}
