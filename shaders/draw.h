// A draw from a row of logits, and the scores that come with it.
#ifndef OXB_DRAW_H
#define OXB_DRAW_H

#include "select.h"

#define OXB_QUICK_LANES 4u // that give quick_list() one logit

// Of a threadgroup. Each use of threadgroup_first() has its own row of `partial`.
struct draw_memory {
    select_memory select;
    ulong partial[5][OXB_MAX_SIMDGROUPS];
    ulong kth;
    float sums[OXB_MAX_SIMDGROUPS];
};

// The first order of each thread.
struct first_pass {
    uint key, token;

    static void take(thread first_pass &pass, logit_row, uint4 keys, uint first) {
        OXB_UNROLL
        for (uint j = 0; j < 4; j++) {
            if (keys[j] < pass.key) {
                pass.key = keys[j];
                pass.token = first + j;
            }
        }
    }
};

inline first_pass no_first() {
    first_pass pass;
    pass.key = OXB_NO_KEY;
    pass.token = OXB_NO_INDEX;
    return pass;
}

// The first order of the threadgroup among some quads.
inline ulong first_of(logit_row row, uint begin, uint end, threadgroup ulong *partial,
                      thread_place place) {
    first_pass pass = no_first();
    take_quads<first_pass, 1, false>(row, begin, end, 0, pass, place);
    return threadgroup_first(order_of(pass.key, pass.token), partial, place);
}

// Lists the first k orders up to `limit`, with some more: those up to the k-th of what
// OXB_QUICK_LANES lanes have first. Returns how many, or 0 where they are too many.
inline uint quick_list(logit_row row, ulong limit, uint k, threadgroup draw_memory &memory,
                       thread_place place) {
    threadgroup select_memory &select = memory.select;
    const uint thread_index = index_of(place);
    const uint firsts = place.simdgroups * OXB_SIMD_WIDTH / OXB_QUICK_LANES;
    const bool many = k > firsts;
    if (many) return 0;
    first_pass pass = no_first();
    take_row<first_pass, 4, false>(row, 0, pass, place);
    ulong own = order_of(pass.key, pass.token);
    for (uint step = 1; step < OXB_QUICK_LANES; step *= 2)
        own = min(own, order_shuffle_xor(own, ushort(step)));
    if (thread_index % OXB_QUICK_LANES == 0u) select.list[thread_index / OXB_QUICK_LANES] = own;
    if (thread_index == 0) memory.kth = limit;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index < firsts) {
        own = select.list[thread_index];
        uint rank = 0;
        for (uint j = 0; j < firsts; j++) rank += select.list[j] < own ? 1u : 0u;
        if (rank == k - 1u && own <= limit) memory.kth = own;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint listed = list_orders(row, 0, memory.kth, select, place);
    return listed <= OXB_LISTED ? listed : 0u;
}

// What a race is over, and its best runner so far.
struct race_state {
    ulong limit;
    uint least;
    uint seed[2];
    uint choice, place;
    int bound;    // no runner behind it wins
    ulong winner; // the order of key and token
};

inline uint word_of(choice_words words, uint j) {
    return component(uint4(words.word[0], words.word[1], words.word[2], words.word[3]), j);
}

inline choice_words noise_of(race_state race, uint quad) {
    return choice_philox(quad, race.place, race.choice, 0u, race.seed[0], race.seed[1]);
}

// choice_gumbel(r) is at least and at most; 16 covers the errors of both. With y = (r + 1/2) /
// 2^32, -log2(1 - y) is at least y log2(e), and at most 2 y where y < 1/2.
inline int gumbel_least(uint r) { return -int((clz(r) + 1u) << 20) + 554452 - 16; }
inline int gumbel_most(uint r) {
    const bool wide = r >> 31 != 0u; // y of a half or more
    return (wide ? 6 : 1 - int(clz(r))) * (1 << 20) + 16;
}

inline ulong runner_of(int key, uint token) { return order_of(uint(key) ^ 0x80000000u, token); }

// The runners of a quad: a bit for each logit that is kept.
inline uint runners_of(race_state race, logit_row row, uint4 keys, uint first) {
    uint runners = 0;
    OXB_UNROLL
    for (uint j = 0; j < 4; j++) {
        const bool kept =
            order_of(keys[j], first + j) <= race.limit && distance_of(row, keys[j]) <= race.least;
        runners |= kept ? 1u << j : 0u;
    }
    return runners;
}

// Brings the bound to the least of what the runners' keys are at most.
struct bound_pass {
    static void take(thread race_state &race, logit_row row, uint4 keys, uint first) {
        const uint runners = runners_of(race, row, keys, first);
        if (runners == 0u) return;
        const choice_words noise = noise_of(race, first / 4u);
        OXB_UNROLL
        for (uint j = 0; j < 4; j++) {
            if ((runners >> j & 1u) == 0u) continue;
            const int most = int(distance_of(row, keys[j])) + gumbel_most(noise.word[j]);
            race.bound = min(race.bound, most);
        }
    }
};

inline void run_one(thread race_state &race, uint u, uint r, uint token) {
    const int key = int(u) + choice_gumbel(r);
    race.bound = min(race.bound, key);
    race.winner = min(race.winner, runner_of(key, token));
}

// Runs those whose key may be within the bound.
struct run_pass {
    static void take(thread race_state &race, logit_row row, uint4 keys, uint first) {
        uint runners = runners_of(race, row, keys, first);
        if (runners == 0u) return;
        const choice_words noise = noise_of(race, first / 4u);
        OXB_UNROLL
        for (uint j = 0; j < 4; j++) {
            const int least = int(distance_of(row, keys[j])) + gumbel_least(noise.word[j]);
            const bool behind = least > race.bound;
            if (behind) runners &= ~(1u << j);
        }
        for (; runners != 0u; runners &= runners - 1u) {
            const uint j = ctz(runners);
            run_one(race, distance_of(row, component(keys, j)), word_of(noise, j), first + j);
        }
    }
};

// The token that wins the race of the orders up to `limit`, which the list holds if `listed`. The
// largest logit is in quads begin to end.
inline uint run_race(logit_row row, device const oxb_sampling &s, uint place, ulong limit,
                     uint listed, uint begin, uint end, threadgroup draw_memory &memory,
                     thread_place at) {
    race_state race;
    race.limit = limit;
    race.least = s.least;
    race.seed[0] = s.seed[0];
    race.seed[1] = s.seed[1];
    race.choice = s.choice;
    race.place = place;
    race.bound = INT_MAX;
    race.winner = OXB_NO_ORDER;
    if (listed != 0u) {
        for (uint i = index_of(at); i < listed; i += at.simdgroups * OXB_SIMD_WIDTH) {
            const ulong order = memory.select.list[i];
            const uint u = distance_of(row, key_in(order)), token = token_in(order);
            if (order > limit || u > s.least) continue;
            run_one(race, u, word_of(noise_of(race, token / 4u), token % 4u), token);
        }
    } else {
        take_quads<bound_pass, 1, false>(row, begin, end, 0, race, at);
        const ulong bound = threadgroup_first(runner_of(race.bound, 0), memory.partial[2], at);
        race.bound = int(key_in(bound) ^ 0x80000000u);
        take_row<run_pass, 1, true>(row, key_in(limit), race, at);
    }
    return token_in(threadgroup_first(race.winner, memory.partial[3], at));
}

// exp over the logits, relative to the largest.
struct sum_pass {
    float sum;

    static void take(thread sum_pass &pass, logit_row row, uint4 keys, uint) {
        OXB_UNROLL
        for (uint j = 0; j < 4; j++) {
            if (keys[j] != OXB_NO_KEY) pass.sum += exp(logit_of(keys[j]) - row.largest);
        }
    }
};

// log of the sum of exp over the logits, relative to the largest; 0 where that is infinite.
inline float log_sum_of(logit_row row, threadgroup float *sums, thread_place at) {
    if (isinf(row.largest)) return 0.0f;
    sum_pass pass;
    pass.sum = 0.0f;
    take_row<sum_pass, 2, false>(row, 0, pass, at);
    return log(threadgroup_sum(pass.sum, sums, at));
}

// The n_best first of the list, which holds them; those that are none are OXB_NO_INDEX.
inline void rank_best(logit_row row, uint listed, float log_sum, device oxb_scored *best,
                      uint n_best, threadgroup select_memory &select, thread_place at) {
    const uint threads = at.simdgroups * OXB_SIMD_WIDTH;
    for (uint i = index_of(at); i < listed; i += threads) {
        const ulong own = select.list[i];
        uint rank = 0;
        for (uint j = 0; j < listed; j++) rank += select.list[j] < own ? 1u : 0u;
        if (rank >= n_best) continue;
        best[rank].token = token_in(own);
        best[rank].log_probability = logit_of(key_in(own)) - row.largest - log_sum;
    }
    for (uint i = listed + index_of(at); i < n_best; i += threads) {
        best[i].token = OXB_NO_INDEX;
        best[i].log_probability = -INFINITY;
    }
}

#endif
