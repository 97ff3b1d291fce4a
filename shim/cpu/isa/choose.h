/* Passes over the logits among which a token is chosen: what each variant compiles for its
 * registers. Included after its simd_*.h. The integers are those of base/choice.h.
 */
#ifndef CPU_CHOOSE_H
#define CPU_CHOOSE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/choice.h"
#include "exp.h"
#include "isa.h"

#define WIDE CPU_LANES

/* Up to 16 of them, then -inf. */
SIMD_INLINE lanes load_some(const float *x, uint64_t n) {
    float rest[WIDE];
    if (n >= WIDE) return lanes_load(x);
    lanes_store(rest, lanes_of(-INFINITY));
    memcpy(rest, x, n * sizeof *x);
    return lanes_load(rest);
}

SIMD_INLINE uint32_t count_bits(uint32_t bits) { return (uint32_t)__builtin_popcount(bits); }

SIMD_TARGET static float choice_largest(const float *x, uint64_t n) {
    lanes most[4];
    uint64_t i = 0;
    for (unsigned j = 0; j < 4; j++) most[j] = lanes_of(-INFINITY);
    for (; i + 4 * WIDE <= n; i += 4 * WIDE)
        for (unsigned j = 0; j < 4; j++)
            most[j] = lanes_larger(lanes_load(x + i + j * WIDE), most[j]);
    for (; i < n; i += WIDE) most[0] = lanes_larger(load_some(x + i, n - i), most[0]);
    return lanes_largest(
        lanes_larger(lanes_larger(most[0], most[1]), lanes_larger(most[2], most[3])));
}

SIMD_INLINE float copy_kept(const float *x, const uint32_t *mask, float *w, uint64_t n) {
    const lanes none = lanes_of(-INFINITY);
    lanes most = none;
    for (uint64_t i = 0; i < n; i += WIDE) {
        lanes a = lanes_larger(load_some(x + i, n - i), none);
        if (mask != NULL) a = lanes_keep(a, mask[i / 32] >> i % 32 & 0xffff);
        most = lanes_larger(a, most);
        if (n - i >= WIDE) {
            lanes_store(w + i, a);
        } else {
            float rest[WIDE];
            lanes_store(rest, a);
            memcpy(w + i, rest, (n - i) * sizeof *w);
        }
    }
    return lanes_largest(most);
}

SIMD_TARGET static float choice_copy(const float *x, const uint32_t *mask, float *w, uint64_t n) {
    return mask != NULL ? copy_kept(x, mask, w, n) : copy_kept(x, NULL, w, n);
}

SIMD_TARGET static uint64_t choice_find(const float *x, uint64_t n, float value) {
    for (uint64_t i = 0; i < n; i += WIDE) {
        uint32_t bits = lanes_reach(load_some(x + i, n - i), lanes_of(value));
        if (n - i < WIDE) bits &= (1u << (n - i)) - 1;
        if (bits != 0) return i + (uint64_t)__builtin_ctz(bits);
    }
    return n;
}

SIMD_TARGET static void choice_maxima(const float *x, uint64_t n, float *to) {
    for (uint64_t i = 0; i < n; i += CPU_CHOICE_GROUP * WIDE, to += WIDE) {
        const uint64_t end = n - i < CPU_CHOICE_GROUP * WIDE ? n - i : CPU_CHOICE_GROUP * WIDE;
        lanes most = lanes_of(-INFINITY);
        for (uint64_t j = 0; j < end; j += WIDE)
            most = lanes_larger(load_some(x + i + j, end - j), most);
        lanes_store(to, most);
    }
}

SIMD_TARGET static float choice_smallest(const float *x, uint64_t n, float low) {
    const lanes least = lanes_of(low);
    lanes found = lanes_of(INFINITY);
    float rest[WIDE];
    uint64_t i = 0;
    for (; i + WIDE <= n; i += WIDE)
        found = lanes_smaller(lanes_larger(lanes_load(x + i), least), found);
    lanes_store(rest, found);
    for (; i < n; i++) {
        if (!(x[i] >= low)) return low;
        rest[0] = x[i] < rest[0] ? x[i] : rest[0];
    }
    for (unsigned l = 1; l < WIDE; l++) rest[0] = rest[l] < rest[0] ? rest[l] : rest[0];
    return rest[0];
}

SIMD_TARGET static uint64_t choice_pack(const float *x, uint64_t n, float low, float high,
                                        float *to, uint64_t room) {
    uint64_t count = 0;
    for (uint64_t i = 0; i < n; i += WIDE) {
        const lanes a = load_some(x + i, n - i);
        const uint32_t bits = lanes_reach(a, lanes_of(low)) & lanes_reach(lanes_of(high), a);
        if (bits == 0) continue;
        if (count <= room) lanes_pack(to + count, a, bits);
        count += count_bits(bits);
    }
    return count;
}

SIMD_TARGET static cpu_tally choice_tally(const float *x, uint64_t n, float value, float high) {
    const lanes v = lanes_of(value), top = lanes_of(high);
    cpu_tally tally = {0, 0};
    for (uint64_t i = 0; i < n; i += WIDE) {
        const lanes a = load_some(x + i, n - i);
        const uint32_t bits = lanes_reach(a, v) & lanes_reach(top, a);
        if (bits == 0) continue;
        const uint32_t equal = bits & lanes_reach(v, a);
        tally.equal += count_bits(equal);
        tally.above += count_bits(bits ^ equal);
    }
    return tally;
}

SIMD_TARGET static uint32_t choice_within(const uint32_t *tokens, uint32_t n, uint32_t start,
                                          uint32_t length, uint32_t *to) {
    const words sign = words_of(1u << 31), most = words_of((length - 1) ^ 1u << 31);
    uint32_t count = 0, i = 0;
    for (; i + WIDE <= n; i += WIDE) {
        const words from = words_sub(words_load(tokens + i), words_of(start));
        uint32_t bits = words_up_to(words_xor(from, sign), most);
        for (; bits != 0; bits &= bits - 1)
            to[count++] = tokens[i + (unsigned)__builtin_ctz(bits)] - start;
    }
    for (; i < n; i++)
        if (tokens[i] - start < length) to[count++] = tokens[i] - start;
    return count;
}

/* choice_distance */
SIMD_INLINE words distances(lanes w, lanes largest, lanes scale) {
    const lanes u = lanes_mul(lanes_sub(largest, w), scale);
    return words_of_whole(lanes_smaller(u, lanes_of(1073741824.0f)));
}

SIMD_INLINE words words_high(words a, words b) {
    words high, low;
    words_product(a, b, &high, &low);
    return high;
}

/* choice_probability for u < 32 * 2^20. */
SIMD_INLINE words probabilities(words u) {
    static const uint32_t term[] = {639488u,    5712048u,    41304489u,
                                    238387495u, 1031764939u, 2977044471u};
    const words x = words_shift_left(u, 12), shift = words_shift(u, 20);
    words sum = words_of(48550u);
    for (unsigned i = 0; i < sizeof term / sizeof *term; i++)
        sum = words_sub(words_of(term[i]), words_high(sum, x));
    sum = words_sub(words_of(1u << 31), words_shift(words_high(sum, x), 1));
    const words half = words_shift(words_shift_left_by(words_of(1), shift), 1);
    return words_shift_by(words_add(sum, half), shift);
}

/* The logits of a slab that are in the range, side by side, and others of it to the end of a
 * vector. Returns how many. */
SIMD_INLINE uint64_t fill_slab(const cpu_masses *m, uint64_t from) {
    const uint64_t n = m->n - from < CPU_CHOICE_SLAB ? m->n - from : CPU_CHOICE_SLAB;
    const uint64_t count = choice_pack(m->x + from, n, m->low, m->high, m->slab, CPU_CHOICE_SLAB);
    lanes_store(m->slab + count, lanes_of(m->high));
    return count;
}

SIMD_INLINE words slab_distances(const cpu_masses *m, uint64_t i) {
    return distances(lanes_load(m->slab + i), lanes_of(m->largest), lanes_of(m->scale));
}

SIMD_TARGET static void choice_masses(const cpu_masses *m) {
    uint64_t(*sums)[CPU_CHOICE_RANGES] = m->sums;
    for (uint64_t i = 0; i < m->n; i += CPU_CHOICE_SLAB) {
        const uint64_t count = fill_slab(m, i);
        for (uint64_t j = 0; j < count; j += WIDE) {
            uint32_t range[WIDE], probability[WIDE];
            const words u = slab_distances(m, j);
            words_store(probability, probabilities(u));
            words_store(range,
                        words_shift_by(words_sub(u, words_of(m->first)), words_of(m->shift)));
            if (count - j < WIDE) memset(probability + (count - j), 0, (WIDE - count + j) * 4);
            for (unsigned l = 0; l < WIDE; l++)
                sums[l % CPU_CHOICE_CHAINS][range[l]] += probability[l];
        }
    }
}

/* Halves of a word are added up apart: 2^16 of them fit in a word. */
SIMD_TARGET static uint64_t choice_mass(const cpu_masses *m) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < m->n; i += CPU_CHOICE_SLAB) {
        const uint64_t count = fill_slab(m, i);
        words low = words_of(0), high = words_of(0);
        uint32_t part[WIDE], rest[WIDE];
        for (uint64_t j = 0; j < count; j += WIDE) {
            words p = probabilities(slab_distances(m, j));
            if (count - j < WIDE) {
                words_store(rest, p);
                memset(rest + (count - j), 0, (WIDE - count + j) * 4);
                p = words_load(rest);
            }
            low = words_add(low, words_and(p, words_of(0xffff)));
            high = words_add(high, words_shift(p, 16));
        }
        words_store(part, low);
        words_store(rest, high);
        for (unsigned l = 0; l < WIDE; l++) sum += part[l] + ((uint64_t)rest[l] << 16);
    }
    return sum;
}

typedef struct race_keys {
    uint32_t word[2][10]; /* of the rounds of Philox */
} race_keys;

/* choice_philox, lane by lane. */
SIMD_INLINE void philox(words c[4], const race_keys *keys) {
    for (unsigned round = 0; round < 10; round++) {
        words high[2], low[2];
        words_product(c[0], words_of(0xd2511f53u), &high[0], &low[0]);
        words_product(c[2], words_of(0xcd9e8d57u), &high[1], &low[1]);
        c[0] = words_xor(words_xor(high[1], c[1]), words_of(keys->word[0][round]));
        c[1] = low[1];
        c[2] = words_xor(words_xor(high[0], c[3]), words_of(keys->word[1][round]));
        c[3] = low[0];
    }
}

/* Not more than choice_gumbel: log2((r + 1/2) / 2^32) + log2(1 / ln 2), with the bits of a float as
 * its logarithm, 0.086 less at most, and the lowest bit of r left out for conversion as a signed
 * number. */
SIMD_INLINE words noise_bound(words r) {
    const words log = words_shift(words_of_bits(lanes_of_whole(words_shift(r, 1))), 3);
    return words_sub(log, words_of(((127u + 31u) << 20) - 553000u)); /* 553000 < 0.5287 * 2^20 */
}

SIMD_INLINE void race_one(cpu_race *race, uint32_t token, uint32_t r) {
    const float w = race->w[token];
    if (!(w > race->lowest || (w == race->lowest && token <= race->last))) return;
    const int64_t u = choice_distance(race->largest, w, race->scale);
    const int64_t key = u + choice_gumbel(r);
    if (key < race->key || (key == race->key && token < race->token)) {
        race->key = key;
        race->token = token;
    }
}

/* 64 tokens at once; those that a bound of the noise leaves in the race one by one. */
SIMD_TARGET static void choice_race(cpu_race *race, uint32_t first, uint32_t end) {
    static const uint32_t groups[WIDE] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const lanes largest = lanes_of(race->largest), scale = lanes_of(race->scale);
    const lanes lowest = lanes_of(race->lowest);
    race_keys keys;
    for (uint32_t round = 0; round < 10; round++) {
        keys.word[0][round] = race->seed[0] + round * 0x9e3779b9u;
        keys.word[1][round] = race->seed[1] + round * 0xbb67ae85u;
    }
    for (uint32_t i = first; i < end; i += 4 * WIDE) {
        lanes w[4];
        words c[4];
        uint32_t bits = 0;
        for (unsigned j = 0; j < 4; j++) {
            w[j] = i + j * WIDE < end ? load_some(race->w + i + j * WIDE, end - i - j * WIDE)
                                      : lanes_of(-INFINITY);
            bits |= lanes_reach(w[j], lowest);
        }
        if (bits == 0) continue;
        lanes_deal(w);
        c[0] = words_add(words_of(i / 4), words_load(groups));
        c[1] = words_of(race->place);
        c[2] = words_of(race->choice);
        c[3] = words_of(0);
        philox(c, &keys);
        for (unsigned j = 0; j < 4; j++) {
            const words bound = words_add(distances(w[j], largest, scale), noise_bound(c[j]));
            bits = lanes_reach(w[j], lowest) & words_up_to(bound, words_of((uint32_t)race->key));
            if (bits == 0) continue;
            uint32_t r[WIDE];
            words_store(r, c[j]);
            for (; bits != 0; bits &= bits - 1) {
                const unsigned lane = (unsigned)__builtin_ctz(bits);
                race_one(race, i + 4 * groups[lane] + j, r[lane]);
            }
        }
    }
}

SIMD_TARGET static double choice_exp_sum(const float *x, uint64_t n, float largest) {
    const lanes none = lanes_of(-INFINITY), from = lanes_of(largest);
    double result = 0;
    for (uint64_t i = 0; i < n;) {
        const uint64_t end = n - i < 8 * WIDE ? n : i + 8 * WIDE;
        lanes sum = lanes_zero();
        for (; i < end; i += WIDE) {
            const lanes a = lanes_larger(load_some(x + i, n - i), none);
            sum = lanes_add(sum, lanes_exp(lanes_sub(a, from)));
        }
        result += (double)lanes_sum(sum);
    }
    return result;
}

#define CHOICE_KERNELS                      \
    .choice = {.largest = choice_largest,   \
               .smallest = choice_smallest, \
               .copy = choice_copy,         \
               .within = choice_within,     \
               .find = choice_find,         \
               .maxima = choice_maxima,     \
               .pack = choice_pack,         \
               .tally = choice_tally,       \
               .masses = choice_masses,     \
               .mass = choice_mass,         \
               .race = choice_race,         \
               .exp_sum = choice_exp_sum}

#endif
