// Signals that a kernel raises become errors of its launch.
#include <signal.h>
#include <ucontext.h>

#include <cstring>
#include <mutex>

#include "state.h"

namespace msl {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
constexpr int kCount = sizeof kSignals / sizeof kSignals[0];

std::mutex lock;
int users = 0;
struct sigaction before[kCount];

#if defined(__x86_64__)
u64 pc_of(const ucontext_t *c) { return static_cast<u64>(c->uc_mcontext.gregs[REG_RIP]); }
const char *verb_of(const ucontext_t *c) {
    return c->uc_mcontext.gregs[REG_ERR] & 2 ? "writes" : "reads";
}
void resume_at(ucontext_t *c, void (*code)(), u8 *stack) {
    c->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(code);
    c->uc_mcontext.gregs[REG_RSP] = reinterpret_cast<greg_t>(stack) - 8;
}
#else
u64 pc_of(const ucontext_t *c) { return c->uc_mcontext.pc; }
const char *verb_of(const ucontext_t *) { return "touches"; }
void resume_at(ucontext_t *c, void (*code)(), u8 *stack) {
    c->uc_mcontext.pc = reinterpret_cast<u64>(code);
    c->uc_mcontext.sp = reinterpret_cast<u64>(stack);
}
#endif

void describe(Worker *w, int signal_number, const siginfo_t *info, const ucontext_t *context) {
    Launch *launch = w->launch;
    const u64 address = reinterpret_cast<u64>(info->si_addr);
    const std::string who = here(), where = source_line(launch, pc_of(context));
    const u64 stack = reinterpret_cast<u64>(w->stacks) +
                      static_cast<u64>(w->fibers[w->current].stack) * kStackStep;
    if (signal_number == SIGILL || signal_number == SIGTRAP)
        report(launch,
               "undefined behaviour: %s: an array index or a division is out of range, at %s",
               who.c_str(), where.c_str());
    else if (signal_number == SIGFPE)
        report(launch, "undefined behaviour: %s divides by zero, at %s", who.c_str(),
               where.c_str());
    else if (address >= stack && address < stack + kStackGuard)
        report(launch, "stack overflow: %s: recursion or a very large thread array, at %s",
               who.c_str(), where.c_str());
    else if (address < 65536)
        report(launch,
               "out of bounds: %s %s through a null pointer, or an access is misaligned, at %s",
               who.c_str(), verb_of(context), where.c_str());
    else
        report(launch, "out of bounds: %s %s %s, at %s", who.c_str(), verb_of(context),
               nearest_buffer(launch, address).c_str(), where.c_str());
}

void on_signal(int signal_number, siginfo_t *info, void *raw) {
    Worker *w = current_worker;
    if (!w || !w->in_fiber) { // not a kernel's: to whom it was for before
        for (int i = 0; i < kCount; i++)
            if (kSignals[i] == signal_number) sigaction(signal_number, &before[i], nullptr);
        return;
    }
    auto *context = static_cast<ucontext_t *>(raw);
    w->in_fiber = false; // a fault in here is ours
    describe(w, signal_number, info, context);
    // The fiber's own stack is given up, so that its top serves to leave it.
    u8 *top = w->stacks + static_cast<u64>(w->fibers[w->current].stack + 1) * kStackStep;
    resume_at(context, leave_fiber, top);
}

} // namespace

void install_handlers() {
    std::lock_guard<std::mutex> guard(lock);
    if (users++) return;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < kCount; i++) sigaction(kSignals[i], &action, &before[i]);
}

void remove_handlers() {
    std::lock_guard<std::mutex> guard(lock);
    if (--users) return;
    for (int i = 0; i < kCount; i++) sigaction(kSignals[i], &before[i], nullptr);
}

// A handler cannot run on a stack that overflowed.
bool enter_signal_stack(Worker *worker, void *saved) {
    stack_t stack;
    memset(&stack, 0, sizeof stack);
    stack.ss_sp = worker->signal_stack;
    stack.ss_size = sizeof worker->signal_stack;
    return sigaltstack(&stack, static_cast<stack_t *>(saved)) == 0;
}

void leave_signal_stack(void *saved) { sigaltstack(static_cast<stack_t *>(saved), nullptr); }

} // namespace msl
