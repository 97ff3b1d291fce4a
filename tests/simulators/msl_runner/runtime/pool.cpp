// Host threads that share the threadgroups of a launch. They are started once and wait for work.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "state.h"

namespace msl {
namespace {

struct Pool {
    std::mutex lock;
    std::condition_variable work, finished;
    std::deque<Launch *> queue;
    std::vector<Worker *> idle;
    u32 threads = 0;
    pid_t process = getpid();
};

// Never destroyed: its threads are still waiting when the process ends. A forked child has none of
// its parent's threads, so it starts over.
Pool &pool() {
    static std::mutex lock;
    static Pool *instance = nullptr;
    std::lock_guard<std::mutex> guard(lock);
    if (!instance || instance->process != getpid()) instance = new Pool;
    return *instance;
}

Worker *take_worker(Pool &p) {
    std::lock_guard<std::mutex> guard(p.lock);
    if (p.idle.empty()) return new Worker;
    Worker *w = p.idle.back();
    p.idle.pop_back();
    return w;
}

void work_on(Pool &p, Launch *launch) {
    Worker *w = take_worker(p);
    stack_t saved;
    const bool own_stack = enter_signal_stack(w, &saved);
    current_worker = w;
    w->launch = launch;
    w->arguments = launch->arguments;
    std::fill(w->ids_size, w->ids_size + 3, 0u);
    const msl_launch *options = launch->options;
    w->random_state = 88172645463325252ull ^ (options->seed * 2654435761ull + 1);
    const u32 n = launch->n_groups;
    std::vector<u32> order;
    if (options->order == MSL_ORDER_RANDOM) { // the same on every worker
        order.resize(n);
        for (u32 i = 0; i < n; i++) order[i] = i;
        for (u32 i = n; i > 1; i--) std::swap(order[i - 1], order[w->random() % i]);
    }
    for (u32 i; !launch->stop && (i = launch->next_group++) < n;)
        run_group(w, !order.empty()                        ? order[i]
                     : options->order == MSL_ORDER_REVERSE ? n - 1 - i
                                                           : i);
    current_worker = nullptr;
    if (own_stack) leave_signal_stack(&saved);
    std::lock_guard<std::mutex> guard(p.lock);
    p.idle.push_back(w);
}

void helper_main(Pool *p) {
    for (;;) {
        Launch *launch;
        {
            std::unique_lock<std::mutex> guard(p->lock);
            p->work.wait(guard, [&] { return !p->queue.empty(); });
            launch = p->queue.front();
            p->queue.pop_front();
        }
        work_on(*p, launch);
        std::lock_guard<std::mutex> guard(p->lock);
        launch->pending--;
        p->finished.notify_all();
    }
}

// Signals sent to the process are for its own threads.
void start_helper(Pool *p) {
    sigset_t all, saved;
    sigfillset(&all);
    for (int number : {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE}) sigdelset(&all, number);
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    std::thread(helper_main, p).detach();
    pthread_sigmask(SIG_SETMASK, &saved, nullptr);
}

} // namespace

void run_on_workers(Launch *launch, u32 n_workers) {
    Pool &p = pool();
    n_workers = std::min(n_workers, launch->n_groups);
    if (n_workers > 1) {
        std::lock_guard<std::mutex> guard(p.lock);
        for (; p.threads + 1 < n_workers; p.threads++) start_helper(&p);
        launch->pending = n_workers - 1;
        p.queue.insert(p.queue.end(), n_workers - 1, launch);
        p.work.notify_all();
    }
    work_on(p, launch);
    std::unique_lock<std::mutex> guard(p.lock);
    for (auto at = p.queue.begin(); at != p.queue.end();) { // what no helper has begun
        if (*at == launch) {
            at = p.queue.erase(at);
            launch->pending--;
        } else {
            ++at;
        }
    }
    p.finished.wait(guard, [&] { return launch->pending == 0; });
}

} // namespace msl
