// Where threads wait for each other, and what schedule.cpp and rendezvous.cpp need of each other.
#pragma once

#include "fiber.h"
#include "state.h"

namespace msl {

// schedule.cpp
void choose_order(Worker *worker, u32 *numbers, u32 count);
void give_stack(Worker *worker, Fiber &fiber);

// Leave this context for the next thread that can run, or for the scheduler.
__attribute__((always_inline)) inline void run_next(Worker *w, void **save_sp) {
    u32 thread;
    if (!w->pop_ready(&thread)) {
        switch_context(save_sp, w->scheduler_sp);
        return;
    }
    Fiber &f = w->fibers[thread];
    if (f.state == State::kFresh) give_stack(w, f);
    f.state = State::kReady;
    w->current = thread;
    if (&f.sp != save_sp) switch_context(save_sp, f.sp);
}

// rendezvous.cpp
void thread_returned(Worker *worker, Fiber &fiber);
bool finish_partial(Worker *worker);
void report_stall(Worker *worker);

} // namespace msl
