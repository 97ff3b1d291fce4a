// Barriers and SIMD-group functions: points where threads wait until all that have to come are
// there.
#include "rendezvous.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace msl {
namespace {

// Ascending, those released go on before all others: the fewer stacks take turns, the more of them
// stay in the cache.
void release(Worker *w, u32 first, u32 count, const Site &site) {
    auto released = [&](u32 thread) {
        Fiber &f = w->fibers[thread];
        if (f.state != State::kWaiting || !f.site.same(site)) return false;
        f.state = State::kReady;
        return true;
    };
    if (w->launch->options->order == MSL_ORDER_FORWARD) {
        for (u32 i = count; i-- > 0;)
            if (released(first + i)) w->push_ready_first(first + i);
        return;
    }
    u32 order[MSL_MAX_THREADS];
    choose_order(w, order, count);
    for (u32 i = 0; i < count; i++)
        if (released(first + order[i])) w->push_ready(first + order[i]);
}

bool simdgroup_complete(const Worker *w, const SimdGroup &s) {
    const bool strict = w->launch->options->flags & MSL_FORBID_EXITED_LANES;
    return s.arrived && s.arrived == s.live && !s.mixed && (s.live == s.size || !strict);
}

void finish_simdgroup(Worker *w, SimdGroup &s) {
    u32 active = 0, flags = 0;
    for (u32 i = 0; i < s.size; i++)
        if (w->fibers[s.first + i].state == State::kWaiting) {
            active |= 1u << i;
            flags = w->fibers[s.first + i].mem_flags;
        }
    if (s.site.kind() == MSL_SIMDGROUP_BARRIER) {
        if (flags & MSL_MEM_DEVICE) s.device_epoch++;
        if (flags & MSL_MEM_THREADGROUP) s.threadgroup_epoch++;
    } else {
        msl_exchange &x = s.exchange[s.parity];
        x.done = 0;
        x.active = active;
        s.parity ^= 1;
    }
    s.arrived = 0;
    release(w, s.first, s.size, s.site);
}

bool barrier_complete(const Worker *w) {
    return w->barrier_arrived && w->barrier_arrived == w->n_threads && !w->barrier_mixed;
}

void finish_barrier(Worker *w, u32 flags) {
    if (flags & MSL_MEM_DEVICE) w->device_epoch++;
    if (flags & MSL_MEM_THREADGROUP) w->threadgroup_epoch++;
    w->barrier_arrived = 0;
    release(w, 0, w->n_threads, w->barrier_site);
}

void arrive_in_simdgroup(SimdGroup &s, const Site &site) {
    if (!s.arrived++) {
        s.site = site;
        s.mixed = false;
    } else if (!site.same(s.site)) {
        s.mixed = true;
    }
}

// Numbers of the threads that stand where thread `first` stands, as "0-31,40"; marks them.
std::string same_place(Worker *w, u32 first, std::vector<bool> *seen, u32 *count) {
    const Fiber &f = w->fibers[first];
    auto same = [&](u32 i) {
        const Fiber &g = w->fibers[i];
        return !(*seen)[i] && g.state == f.state &&
               (f.state == State::kDone || g.site.same(f.site));
    };
    std::string text;
    *count = 0;
    for (u32 i = first; i < w->n_threads; i++) {
        if (!same(i)) continue;
        u32 last = i;
        while (last + 1 < w->n_threads && same(last + 1)) last++;
        for (u32 k = i; k <= last; k++) (*seen)[k] = true;
        *count += last - i + 1;
        if (text.size() < 100) {
            if (!text.empty()) text += ",";
            text += std::to_string(i);
            if (last > i) text += "-" + std::to_string(last);
        } else if (text.back() != '.') {
            text += ",...";
        }
        i = last;
    }
    return text;
}

} // namespace

void thread_returned(Worker *w, Fiber &f) {
    w->live--;
    SimdGroup &s = w->simdgroups[f.ids.simdgroup];
    s.live--;
    if (simdgroup_complete(w, s)) finish_simdgroup(w, s);
}

// As the hardware does: complete the SIMD-group function of the lowest line for the lanes there.
bool finish_partial(Worker *w) {
    if (!(w->launch->options->flags & MSL_ALLOW_PARTIAL_SIMD)) return false;
    bool any = false;
    for (u32 i = 0; i < w->n_simdgroups; i++) {
        SimdGroup &s = w->simdgroups[i];
        if (!s.arrived) continue;
        const Fiber *first = nullptr;
        for (u32 l = 0; l < s.size; l++) {
            const Fiber &f = w->fibers[s.first + l];
            if (f.state != State::kWaiting || f.site.kind() == MSL_THREADGROUP_BARRIER) continue;
            if (!first || f.site.before(first->site)) first = &f;
        }
        if (!first) continue;
        const Site site = first->site;
        u32 active = 0;
        for (u32 l = 0; l < s.size; l++) {
            const Fiber &f = w->fibers[s.first + l];
            if (f.state == State::kWaiting && f.site.same(site)) active |= 1u << l;
        }
        if (site.kind() != MSL_SIMDGROUP_BARRIER) {
            msl_exchange &now = s.exchange[s.parity], &later = s.exchange[s.parity ^ 1];
            now.active = active;
            now.done = 0;
            s.parity ^= 1;
            for (u32 l = 0; l < s.size; l++) // those still waiting have left their value here
                if (!(active >> l & 1)) memcpy(later.lanes[l], now.lanes[l], sizeof now.lanes[l]);
        }
        release(w, s.first, s.size, site);
        s.arrived = 0;
        for (u32 l = 0; l < s.size; l++) {
            const Fiber &f = w->fibers[s.first + l];
            if (f.state == State::kWaiting && f.site.kind() != MSL_THREADGROUP_BARRIER)
                arrive_in_simdgroup(s, f.site);
        }
        any = true;
    }
    return any;
}

// Nothing can run and threads are left: say who waits where.
void report_stall(Worker *w) {
    std::string text;
    std::vector<bool> seen(w->n_threads, false);
    for (u32 i = 0; i < w->n_threads && text.size() < 1500; i++) {
        if (seen[i]) continue;
        u32 count;
        const std::string threads = same_place(w, i, &seen, &count);
        const Fiber &f = w->fibers[i];
        text += "\n  " + std::to_string(count) + " threads (" + threads + ") ";
        if (f.state == State::kDone)
            text += "have returned";
        else
            text +=
                "wait in " + site_name(f.site.kind()) + " at " + source_line(w->launch, f.site.pc);
    }
    report(w->launch,
           "divergence: a barrier or SIMD-group function is not reached by all threads: kernel %s, "
           "threadgroup (%u,%u,%u), %u threads%s",
           w->launch->kernel->name, w->group[0], w->group[1], w->group[2], w->n_threads,
           text.c_str());
}

} // namespace msl

using namespace msl;

#define CALLER (reinterpret_cast<u64>(__builtin_return_address(0)) - 1)

MSL_API msl_exchange *msl_rt_simd(u32 kind, u32 line, u32 column, const void *value, u32 size) {
    Worker *w = current_worker;
    Fiber &f = w->fibers[w->current];
    SimdGroup &s = w->simdgroups[f.ids.simdgroup];
    const Site site(kind, line, column, CALLER);
    f.site = site;
    f.state = State::kWaiting;
    arrive_in_simdgroup(s, site);
    u8 *slot = s.exchange[s.parity].lanes[f.ids.lane];
    if (size == 4)
        memcpy(slot, value, 4);
    else
        memcpy(slot, value, size);
    if (simdgroup_complete(w, s)) finish_simdgroup(w, s);
    run_next(w, &f.sp);
    return &s.exchange[s.parity ^ 1]; // turning over again would take this lane too
}

MSL_API void msl_rt_barrier(u32 kind, u32 flags, u32 line, u32 column) {
    Worker *w = current_worker;
    Fiber &f = w->fibers[w->current];
    const Site site(kind, line, column, CALLER);
    f.site = site;
    f.mem_flags = flags;
    f.state = State::kWaiting;
    if (kind == MSL_SIMDGROUP_BARRIER) {
        SimdGroup &s = w->simdgroups[f.ids.simdgroup];
        arrive_in_simdgroup(s, site);
        if (simdgroup_complete(w, s)) finish_simdgroup(w, s);
    } else {
        if (!w->barrier_arrived++) {
            w->barrier_site = site;
            w->barrier_mixed = false;
        } else if (!site.same(w->barrier_site)) {
            w->barrier_mixed = true;
        }
        if (barrier_complete(w)) finish_barrier(w, flags);
    }
    run_next(w, &f.sp);
}

MSL_API u32 msl_rt_lane() { return current_worker->fibers[current_worker->current].ids.lane; }

MSL_API void msl_rt_bad_lane(u32 lane) {
    const u64 pc = CALLER;
    MSL_FAIL("undefined shuffle: %s reads from lane %u, which is not active, at %s", here().c_str(),
             lane, source_line(current_worker->launch, pc).c_str());
}

MSL_API void msl_rt_bad_matrix() {
    const u64 pc = CALLER;
    MSL_FAIL(
        "SIMD-group matrix: %s: not all 32 lanes take part, or they name different places, at %s",
        here().c_str(), source_line(current_worker->launch, pc).c_str());
}
