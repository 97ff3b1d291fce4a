// Selection without a sort: the logit up to which the first ones count so many, or sum to such a
// probability. Sums are of integers, so that their order does not matter.
#ifndef OXB_SELECT_H
#define OXB_SELECT_H

#include "base/choice.h"
#include "order.h"

#define OXB_BINS        256u
#define OXB_LISTED      1024u // logits that fit into threadgroup memory
#define OXB_BIN_SHIFT   17u   // of distances: a bin is 2^-3 in log2 of the probability
#define OXB_BY_DISTANCE 64u   // in place of an order's shift

// Of a threadgroup that draws.
struct select_memory {
    ulong list[OXB_LISTED];                                      // orders
    uint weight[OXB_LISTED];                                     // the probability of each
    atomic_uint counts[OXB_BINS], low[OXB_BINS], high[OXB_BINS]; // the words of a sum
    atomic_uint n_listed;
    ulong found[2], total; // by pick()
};

// A row of logits, and what its distances are counted from.
struct logit_row {
    device const float *logits;
    device const float *maxima; // of blocks of OXB_ARGMAX_BLOCK, where `bounded`
    bool bounded;
    uint n;
    float largest;
    float scale;
};

inline uint component(uint4 of, uint j) {
    return j == 0u ? of[0] : j == 1u ? of[1] : j == 2u ? of[2] : of[3];
}

inline uint distance_of(logit_row row, uint key) {
    return choice_distance(row.largest, logit_of(key), row.scale);
}

// Gives each quad from `begin` to `end` of the row to a thread: Pass::take(pass, row, keys, token
// of the first). QUADS are in flight at once. A block whose largest logit is behind `last` is left
// out.
template <typename Pass, uint QUADS, bool SKIPS, typename State>
inline void take_quads(logit_row row, uint begin, uint end, uint last, thread State &pass,
                       thread_place place) {
    const uint quads_of_block = OXB_ARGMAX_BLOCK / 4u;
    const uint threads = place.simdgroups * OXB_SIMD_WIDTH;
    for (uint q = begin + index_of(place); q < end; q += QUADS * threads) {
        float4 logits[QUADS];
        OXB_UNROLL
        for (uint j = 0; j < QUADS; j++) {
            const uint quad = q + j * threads;
            logits[j] = float4(NAN);
            if (quad >= end) continue;
            if (SKIPS && row.bounded) {
                const bool behind = key_of(row.maxima[quad / quads_of_block]) > last;
                if (behind) continue;
            }
            logits[j] = quad_of(row.logits, row.n, quad);
        }
        OXB_UNROLL
        for (uint j = 0; j < QUADS; j++) {
            const float4 four = logits[j];
            const uint4 keys =
                uint4(key_of(four[0]), key_of(four[1]), key_of(four[2]), key_of(four[3]));
            Pass::take(pass, row, keys, 4u * (q + j * threads));
        }
    }
}

template <typename Pass, uint QUADS, bool SKIPS, typename State>
inline void take_row(logit_row row, uint last, thread State &pass, thread_place place) {
    take_quads<Pass, QUADS, SKIPS>(row, 0, (row.n + 3u) / 4u, last, pass, place);
}

// Orders lo to hi are put into bins: by their distance, or by their own bits from `shift` on.
struct bins_pass {
    threadgroup select_memory *memory;
    ulong lo, hi;
    uint shift;
    bool weighed;

    static void take(thread bins_pass &pass, logit_row row, uint4 keys, uint first) {
        threadgroup select_memory *memory = pass.memory;
        OXB_UNROLL
        for (uint j = 0; j < 4; j++) {
            const ulong order = order_of(keys[j], first + j);
            if (order < pass.lo || order > pass.hi) continue;
            const uint u = distance_of(row, keys[j]);
            uint bin = u >> OXB_BIN_SHIFT;
            if (pass.shift != OXB_BY_DISTANCE) bin = uint((order - pass.lo) >> pass.shift);
            if (bin >= OXB_BINS) continue;
            atomic_fetch_add_explicit(&memory->counts[bin], 1u, memory_order_relaxed);
            if (!pass.weighed) continue;
            const uint p = choice_probability(u);
            const uint old = atomic_fetch_add_explicit(&memory->low[bin], p, memory_order_relaxed);
            if (old + p < old)
                atomic_fetch_add_explicit(&memory->high[bin], 1u, memory_order_relaxed);
        }
    }
};

// Orders lo to hi, into the list.
struct list_pass {
    threadgroup select_memory *memory;
    ulong lo, hi;

    static void take(thread list_pass &pass, logit_row row, uint4 keys, uint first) {
        uint inside = 0;
        OXB_UNROLL
        for (uint j = 0; j < 4; j++) {
            const ulong order = order_of(keys[j], first + j);
            inside |= order >= pass.lo && order <= pass.hi ? 1u << j : 0u;
        }
        for (; inside != 0u; inside &= inside - 1u) {
            const uint j = ctz(inside);
            const uint key = component(keys, j);
            const uint slot =
                atomic_fetch_add_explicit(&pass.memory->n_listed, 1u, memory_order_relaxed);
            if (slot >= OXB_LISTED) continue;
            pass.memory->list[slot] = order_of(key, first + j);
            pass.memory->weight[slot] = choice_probability(distance_of(row, key));
        }
    }
};

// Lists orders lo to hi and returns how many there are, which may be more than fit.
inline uint list_orders(logit_row row, ulong lo, ulong hi, threadgroup select_memory &memory,
                        thread_place place) {
    if (index_of(place) == 0) atomic_store_explicit(&memory.n_listed, 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    list_pass pass;
    pass.memory = &memory;
    pass.lo = lo;
    pass.hi = hi;
    take_row<list_pass, 2, true>(row, key_in(hi), pass, place);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return atomic_load_explicit(&memory.n_listed, memory_order_relaxed);
}

// The order in the list up to which `before` and the listed ones reach `need`: so many, or such a
// sum where weighed. memory.total is the sum up to it
// where not weighed.
inline ulong pick(threadgroup select_memory &memory, uint listed, bool weighed, ulong before,
                  ulong need, thread_place place) {
    const uint threads = place.simdgroups * OXB_SIMD_WIDTH;
    for (uint i = index_of(place); i < listed; i += threads) {
        const ulong own = memory.list[i];
        uint rank = 0;
        ulong sum = 0;
        for (uint j = 0; j < listed; j++) {
            if (memory.list[j] >= own) continue;
            rank++;
            sum += memory.weight[j];
        }
        const ulong here = before + (weighed ? sum : ulong(rank));
        const ulong past = here + (weighed ? memory.weight[i] : 1u);
        if (here >= need || past < need) continue;
        memory.found[weighed ? 1 : 0] = own;
        if (!weighed) memory.total = sum + memory.weight[i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return memory.found[weighed ? 1 : 0];
}

// A bin, and what the bins hold.
struct found_bin {
    uint bin;     // OXB_BINS: the target is not reached, as it is where weighed
    uint count;   // of it
    uint counted; // the count of the bins before it
    ulong before; // their sum
};

inline ulong order_shuffle(ulong order, uint lane) {
    return order_of(simd_shuffle(key_in(order), ushort(lane)),
                    simd_shuffle(token_in(order), ushort(lane)));
}

// The sum over the lanes up to this one.
inline ulong simd_sum_up_to(ulong value, uint lane) {
    OXB_UNROLL
    for (uint step = 1; step < OXB_SIMD_WIDTH; step *= 2) {
        const ulong other = order_of(simd_shuffle_up(key_in(value), ushort(step)),
                                     simd_shuffle_up(token_in(value), ushort(step)));
        if (lane >= step) value += other;
    }
    return value;
}

inline ulong bin_sum(threadgroup select_memory &memory, uint bin, bool weighed) {
    if (!weighed) return atomic_load_explicit(&memory.counts[bin], memory_order_relaxed);
    return order_of(atomic_load_explicit(&memory.high[bin], memory_order_relaxed),
                    atomic_load_explicit(&memory.low[bin], memory_order_relaxed));
}

// The sums of a lane's bins, and of the lanes up to it.
struct bin_sums {
    ulong own, up_to;
};

inline bin_sums sum_bins(threadgroup select_memory &memory, bool weighed, uint lane) {
    const uint bins = OXB_BINS / OXB_SIMD_WIDTH;
    bin_sums sums;
    sums.own = 0;
    for (uint b = 0; b < bins; b++) sums.own += bin_sum(memory, lane * bins + b, weighed);
    sums.up_to = simd_sum_up_to(sums.own, lane);
    return sums;
}

// The first bin up to which the sum reaches `need`. Every SIMD-group finds it for itself.
inline found_bin find_bin(threadgroup select_memory &memory, bin_sums sums, bool weighed,
                          ulong need, uint lane) {
    const uint bins = OXB_BINS / OXB_SIMD_WIDTH;
    found_bin found;
    found.bin = OXB_BINS;
    found.count = 0;
    found.before = order_shuffle(sums.up_to, OXB_SIMD_WIDTH - 1u);
    found.counted = uint(found.before);
    const uint at = simd_min(sums.up_to >= need ? lane : OXB_SIMD_WIDTH);
    if (at == OXB_SIMD_WIDTH) return found;
    found.before = order_shuffle(sums.up_to - sums.own, at);
    uint bin = at * bins;
    for (;;) {
        const ulong past = found.before + bin_sum(memory, bin, weighed);
        if (past >= need) break;
        found.before = past;
        bin++;
    }
    found.bin = bin;
    found.count = atomic_load_explicit(&memory.counts[bin], memory_order_relaxed);
    uint counted = 0;
    for (uint b = lane; b < bin; b += OXB_SIMD_WIDTH)
        counted += atomic_load_explicit(&memory.counts[b], memory_order_relaxed);
    found.counted = simd_sum(counted);
    return found;
}

// The last key within a distance, of keys from the largest logit's to the last finite one's; the
// key before them where none is.
inline uint last_key_within(logit_row row, uint distance) {
    uint low = key_of(row.largest) - 1u, high = OXB_LAST_KEY - 1u;
    while (low < high) {
        const uint middle = high - (high - low) / 2u;
        if (distance_of(row, middle) <= distance)
            low = middle;
        else
            high = middle - 1u;
    }
    return low;
}

// floor(total * share / 2^32), at least 1.
inline ulong share_of(ulong total, uint share) {
    return max((total >> 32) * share + ((total & 0xfffffffful) * share >> 32), 1ul);
}

// The order up to which the orders up to `limit` are so many or, where weighed, reach that share of
// their sum, in 2^-32; `limit` where they do not. Sets `listed` to how many orders the list holds
// where all up to the result are in it, as they are for OXB_MAX_BEST or fewer; else to 0.
inline ulong select_order(logit_row row, ulong limit, bool weighed, uint target,
                          thread uint &listed, threadgroup select_memory &memory,
                          thread_place place) {
    const uint threads = place.simdgroups * OXB_SIMD_WIDTH;
    bins_pass pass;
    pass.memory = &memory;
    pass.lo = 0;
    pass.hi = limit;
    pass.shift = OXB_BY_DISTANCE;
    pass.weighed = weighed;
    uint counted = 0; // orders before lo, and their sum
    ulong before = 0, need = target;
    listed = 0;
    for (;;) {
        for (uint b = index_of(place); b < OXB_BINS; b += threads) {
            atomic_store_explicit(&memory.counts[b], 0u, memory_order_relaxed);
            atomic_store_explicit(&memory.low[b], 0u, memory_order_relaxed);
            atomic_store_explicit(&memory.high[b], 0u, memory_order_relaxed);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        take_row<bins_pass, 1, true>(row, key_in(pass.hi), pass, place);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const bool first = pass.shift == OXB_BY_DISTANCE;
        const bin_sums sums = sum_bins(memory, weighed, place.lane);
        if (weighed && first)
            need = share_of(order_shuffle(sums.up_to, OXB_SIMD_WIDTH - 1u), target);
        const found_bin found = find_bin(memory, sums, weighed, need - before, place.lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        before += found.before;
        counted += found.counted;
        const bool reached = found.bin != OXB_BINS;
        if (!reached && !first) return limit;
        if (first) {
            // What is too far away for a bin is behind them all.
            const uint start = found.bin << OXB_BIN_SHIFT;
            if (found.bin != 0u) pass.lo = order_of(last_key_within(row, start - 1u) + 1u, 0);
            if (reached) {
                const uint end = start + (1u << OXB_BIN_SHIFT) - 1u;
                pass.hi = min(pass.hi, order_of(last_key_within(row, end), 0xffffffffu));
            }
        } else {
            pass.lo += ulong(found.bin) << pass.shift;
            pass.hi = min(pass.hi, pass.lo + (1ul << pass.shift) - 1ul);
        }
        if (reached) listed = counted + found.count;
        const bool fits = reached && found.count <= OXB_LISTED - OXB_MAX_BEST;
        if (fits) break;
        pass.shift = 0;
        while ((pass.hi - pass.lo) >> pass.shift >= OXB_BINS) pass.shift++;
    }
    const bool all = listed <= OXB_LISTED;
    if (all) {
        pass.lo = 0;
        before = 0;
    }
    listed = list_orders(row, pass.lo, pass.hi, memory, place);
    limit = pick(memory, listed, weighed, before, need, place);
    if (!all) listed = 0;
    return limit;
}

#endif
