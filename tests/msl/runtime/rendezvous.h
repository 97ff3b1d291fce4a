// Where threads wait for each other, and what schedule.cpp and rendezvous.cpp need of each other.
#pragma once

#include "state.h"

namespace msl {

// schedule.cpp
void choose_order(Worker *worker, u32 *numbers, u32 count);
// Leave this context for the next thread that can run, or for the scheduler.
void run_next(void **save_sp);

// rendezvous.cpp
void thread_returned(Worker *worker, Fiber &fiber);
bool finish_partial(Worker *worker);
void report_stall(Worker *worker);

}  // namespace msl
