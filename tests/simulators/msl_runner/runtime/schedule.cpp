// One threadgroup: its threads are fibers that run until they wait or return, in the order asked
// for.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "rendezvous.h"
#include "state.h"

namespace msl {

__thread Worker *current_worker __attribute__((tls_model("initial-exec"))) = nullptr;

Worker::Worker() {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    const u64 bytes = static_cast<u64>(MSL_MAX_THREADS) * kStackStep;
    stacks = static_cast<u8 *>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0));
    arena = static_cast<u8 *>(mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, flags, -1, 0));
    if (stacks == MAP_FAILED || arena == MAP_FAILED) {
        perror("msl runner: no memory for stacks");
        abort();
    }
    for (u64 i = 0; i < MSL_MAX_THREADS; i++)
        mprotect(stacks + i * kStackStep, kStackGuard, PROT_NONE);
    initialised.resize(kArenaBytes);
}

u32 Worker::random() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return static_cast<u32>(random_state >> 11);
}

void leave_fiber() {
    Worker *w = current_worker;
    w->aborted = true;
    void *unused;
    switch_context(&unused, w->scheduler_sp);
    __builtin_unreachable();
}

void choose_order(Worker *w, u32 *numbers, u32 count) {
    const u32 order = w->launch->options->order;
    for (u32 i = 0; i < count; i++) numbers[i] = order == MSL_ORDER_REVERSE ? count - 1 - i : i;
    if (order == MSL_ORDER_RANDOM)
        for (u32 i = count; i > 1; i--) std::swap(numbers[i - 1], numbers[w->random() % i]);
}

namespace {

void thread_main();

} // namespace

// Stack tops are staggered, so that the fibers' frames do not share cache sets.
void give_stack(Worker *w, Fiber &f) {
    f.stack = w->free_stacks[--w->n_free_stacks];
    u8 *top = w->stacks + static_cast<u64>(f.stack + 1) * kStackStep - (f.stack % 32) * 192;
    f.sp = prepare_stack(top, thread_main);
}

namespace {

// The code of every fiber: its thread, then each further thread that has not started, on this
// stack.
void thread_main() {
    for (;;) {
        Worker *w = current_worker;
        w->launch->run(&w->arguments, &w->fibers[w->current].ids);
        Fiber &f = w->fibers[w->current];
        f.state = State::kDone;
        thread_returned(w, f);
        u32 next = 0;
        void *unused;
        if (!w->pop_ready(&next)) {
            w->free_stacks[w->n_free_stacks++] = f.stack;
            switch_context(&unused, w->scheduler_sp);
        }
        Fiber &g = w->fibers[next];
        w->current = next;
        if (g.state == State::kFresh) {
            g.state = State::kReady;
            g.stack = f.stack;
            continue;
        }
        w->free_stacks[w->n_free_stacks++] = f.stack;
        switch_context(&unused, g.sp);
    }
}

// What differs from one threadgroup of a launch to the next of the same size.
void place_ids(const Worker *w, msl_thread_ids &t) {
    const u32 *full = w->launch->options->threads_per_threadgroup;
    for (int k = 0; k < 3; k++) {
        t.group_in_grid[k] = w->group[k];
        t.thread_in_grid[k] = w->group[k] * full[k] + t.thread_in_group[k];
    }
}

void set_ids(Worker *w, const u32 size[3]) {
    const Launch *launch = w->launch;
    const u32 *full = launch->options->threads_per_threadgroup;
    const bool same_size = std::equal(size, size + 3, w->ids_size);
    std::copy(size, size + 3, w->ids_size);
    for (u32 i = 0; i < w->n_threads; i++) {
        Fiber &f = w->fibers[i];
        f.state = State::kFresh;
        msl_thread_ids &t = f.ids;
        if (!same_size) {
            t.thread_in_group[0] = i % size[0];
            t.thread_in_group[1] = i / size[0] % size[1];
            t.thread_in_group[2] = i / size[0] / size[1];
            for (int k = 0; k < 3; k++) {
                t.threads_per_group[k] = size[k];
                t.full_threads_per_group[k] = full[k];
                t.groups_per_grid[k] = launch->options->threadgroups[k];
                t.threads_per_grid[k] = launch->grid[k];
            }
            t.thread_index = i;
            t.lane = i % MSL_SIMD_WIDTH;
            t.simdgroup = i / MSL_SIMD_WIDTH;
            t.simdgroups = w->n_simdgroups;
            t.full_simdgroups = (full[0] * full[1] * full[2] + MSL_SIMD_WIDTH - 1) / MSL_SIMD_WIDTH;
            t.simd_width = MSL_SIMD_WIDTH;
            t.quad_lane = i % 4;
            t.quad = i / 4;
            t.quads = (w->n_threads + 3) / 4;
        }
        place_ids(w, t);
    }
}

void reset_group(Worker *w, u32 number) {
    const Launch *launch = w->launch;
    const msl_launch *options = launch->options;
    const u32 *groups = options->threadgroups;
    w->group_number = number;
    w->group[0] = number % groups[0];
    w->group[1] = number / groups[0] % groups[1];
    w->group[2] = number / groups[0] / groups[1];
    u32 size[3];
    for (int k = 0; k < 3; k++) {
        const u32 full = options->threads_per_threadgroup[k];
        size[k] = std::min(full, launch->grid[k] - w->group[k] * full);
    }
    w->n_threads = w->live = size[0] * size[1] * size[2];
    w->n_simdgroups = (w->n_threads + MSL_SIMD_WIDTH - 1) / MSL_SIMD_WIDTH;
    w->ready_head = w->ready_tail = w->barrier_arrived = 0;
    w->barrier_mixed = w->aborted = false;
    w->device_epoch = w->threadgroup_epoch = 1;
    for (u32 i = 0; i < w->n_simdgroups; i++) {
        SimdGroup &s = w->simdgroups[i];
        s.first = i * MSL_SIMD_WIDTH;
        s.size = s.live = std::min<u32>(MSL_SIMD_WIDTH, w->n_threads - s.first);
        s.arrived = s.parity = 0;
        s.mixed = false;
        s.device_epoch = s.threadgroup_epoch = 1;
    }
    set_ids(w, size);
    reset_group_memory(w);
    for (u32 i = 0; i < launch->kernel->n_arguments; i++) {
        const msl_argument &a = launch->kernel->arguments[i];
        if (a.kind == MSL_ARGUMENT_THREADGROUP)
            w->arguments.threadgroups[a.index] =
                group_variable(kDynamic + a.index, options->threadgroup_bytes[a.index], a.name);
    }
    u32 order[MSL_MAX_THREADS];
    choose_order(w, order, w->n_threads);
    for (u32 i = 0; i < w->n_threads; i++) w->push_ready(order[i]);
    w->n_free_stacks = w->n_threads;
    for (u32 i = 0; i < w->n_threads; i++) w->free_stacks[i] = w->n_threads - 1 - i;
}

} // namespace

void run_group(Worker *w, u32 number) {
    reset_group(w, number);
    while (!w->launch->stop) {
        w->in_fiber = true;
        run_next(w, &w->scheduler_sp);
        w->in_fiber = false;
        if (w->aborted || !w->live) break;
        if (w->ready_head == w->ready_tail && !finish_partial(w)) {
            report_stall(w);
            break;
        }
    }
    if (!w->launch->stop) variable_overrun(w);
}

} // namespace msl
