/* The process's thread pool: one hand-off per submission, whose steps run one after another.
 *
 * A step is cut into slices of its threadgroups, large ones first. `state` is the step in turn and
 * how many of its slices nobody has claimed; whoever finishes the last slice of a step makes the
 * next one `state`. No thread waits for another by name: one that the system has put aside holds up
 * at most the slice that it is running.
 *
 * Locks: `turn` is taken first and held for a whole submission and across fork(); `sleep_lock` is a
 * leaf. Workers live as long as the process and hold no lock while they run kernels.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "cpu.h"

#define SPINS             256u /* some microseconds */
#define YIELD_NANOSECONDS 50000

#define LEFT_BITS \
    16 /* of `state`: slices not claimed; the rest is the step's number since the start */

typedef struct worker {
    _Alignas(64) unsigned char scratch[CPU_SCRATCH];
    uint64_t step;  /* the number of the last one that this thread worked on */
    uint32_t index; /* 0: the thread that submits */
} worker;

/* What threads wait for, some of them asleep. */
typedef struct signal_word {
    _Alignas(64) atomic_uint_fast64_t value;
    atomic_uint sleepers;
    pthread_cond_t wake;
} signal_word;

static struct {
    pthread_mutex_t turn; /* one submission at a time */
    pthread_mutex_t sleep_lock;

    signal_word state;
    signal_word submissions; /* counted for the workers that the last one did not need */
    _Alignas(64) atomic_uint unfinished; /* slices of the step in turn */
    atomic_uint n_threads;               /* threads that the submission may use */
    atomic_int crowded;                  /* more threads than CPUs: do not spin */

    /* The job: written before `state`, read by those who have claimed a slice of it. */
    const cpu_step *steps;
    uint64_t first; /* number of steps[0] */
    uint32_t n;

    worker *workers[CPU_MAX_THREADS]; /* guarded by `turn` */
    uint32_t started;                 /* threads running beside the caller; guarded by `turn` */
    uint32_t cpus;
    worker caller;
} pool = {.turn = PTHREAD_MUTEX_INITIALIZER,
          .sleep_lock = PTHREAD_MUTEX_INITIALIZER,
          .state = {.wake = PTHREAD_COND_INITIALIZER},
          .submissions = {.wake = PTHREAD_COND_INITIALIZER}};

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __asm__ __volatile__("pause");
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void wait_change(signal_word *word, uint64_t old) {
    const int crowded = atomic_load_explicit(&pool.crowded, memory_order_relaxed);
    for (unsigned spins = 0; spins < (crowded ? 1 : SPINS); spins++) {
        if (atomic_load_explicit(&word->value, memory_order_acquire) != old) return;
        relax();
    }
    /* The other thread may be waiting for this CPU. */
    const int64_t limit = nanoseconds() + YIELD_NANOSECONDS;
    do {
        if (atomic_load_explicit(&word->value, memory_order_acquire) != old) return;
        sched_yield();
    } while (nanoseconds() < limit);
    pthread_mutex_lock(&pool.sleep_lock);
    /* Sequentially consistent, as are the store to the word and the load in change(): either this
     * thread sees the new word, or the other one sees this sleeper. */
    atomic_fetch_add(&word->sleepers, 1);
    while (atomic_load(&word->value) == old) pthread_cond_wait(&word->wake, &pool.sleep_lock);
    atomic_fetch_sub(&word->sleepers, 1);
    pthread_mutex_unlock(&pool.sleep_lock);
}

static void change(signal_word *word, uint64_t value) {
    atomic_store(&word->value, value);
    if (atomic_load(&word->sleepers) != 0) {
        pthread_mutex_lock(&pool.sleep_lock);
        pthread_cond_broadcast(&word->wake);
        pthread_mutex_unlock(&pool.sleep_lock);
    }
}

static uint32_t threads_of(const cpu_step *step, uint32_t n_threads) {
    const uint64_t grains = step->groups / step->call.kernel->grain;
    const uint64_t worth = grains < step->worth ? grains : step->worth;
    return worth >= n_threads ? n_threads : worth > 1 ? (uint32_t)worth : 1;
}

/* In grains of threadgroups. */
typedef struct slice {
    uint64_t first, size;
} slice;

#define SMALLEST_SHARE 8u /* the last slices are this fraction of a thread's share */

static uint64_t grains_of(const cpu_step *step) {
    return (step->groups + step->call.kernel->grain - 1) / step->call.kernel->grain;
}

/* Slice `index` for `n_threads` threads: each takes a slice of the half of what is left, again and
 * again, and then smallest ones. */
static slice slice_of(uint64_t grains, uint32_t n_threads, uint64_t index) {
    const uint64_t smallest = grains / (SMALLEST_SHARE * n_threads) + 1;
    uint64_t first = 0;
    for (;;) {
        const uint64_t half = (grains - first) / 2 / n_threads;
        if (half <= smallest) break;
        if (index < n_threads) return (slice){first + index * half, half};
        first += half * n_threads;
        index -= n_threads;
    }
    first += index * smallest;
    const uint64_t left = first < grains ? grains - first : 0;
    return (slice){first, left < smallest ? left : smallest};
}

static uint32_t slices_of(const cpu_step *step, uint32_t n_threads) {
    const uint64_t grains = grains_of(step);
    const uint32_t now = threads_of(step, n_threads);
    if (now == 1) return 1;
    const uint64_t smallest = grains / (SMALLEST_SHARE * now) + 1;
    uint64_t first = 0, count = 0;
    for (uint64_t half; (half = (grains - first) / 2 / now) > smallest; first += half * now)
        count += now;
    return (uint32_t)(count + (grains - first + smallest - 1) / smallest);
}

static void run_threadgroups(worker *self, const cpu_step *step, uint64_t number, uint64_t first,
                             uint64_t last) {
    cpu_call call = step->call;
    call.scratch = self->scratch;
    call.again = self->step == number;
    self->step = number;
    if (first < last) call.kernel->run(&call, first, last);
}

static void run_slice(worker *self, uint64_t number, uint32_t n_threads, uint64_t left) {
    const cpu_step *step = &pool.steps[number - pool.first];
    const uint64_t grain = step->call.kernel->grain;
    const slice c =
        slice_of(grains_of(step), threads_of(step, n_threads), slices_of(step, n_threads) - left);
    const uint64_t last = (c.first + c.size) * grain;
    run_threadgroups(self, step, number, c.first * grain,
                     last < step->groups ? last : step->groups);
}

/* After the last slice of step `number`: put the next one up. This thread runs those that are not
 * worth sharing itself. */
static void next_step(worker *self, uint64_t number, uint32_t n_threads) {
    for (;;) {
        number++;
        if (number == pool.first + pool.n) {
            change(&pool.state, number << LEFT_BITS);
            return;
        }
        const cpu_step *step = &pool.steps[number - pool.first];
        const uint32_t slices = slices_of(step, n_threads);
        if (slices > 1) {
            atomic_store_explicit(&pool.unfinished, slices, memory_order_relaxed);
            change(&pool.state, number << LEFT_BITS | slices);
            return;
        }
        run_threadgroups(self, step, number, 0, step->groups);
    }
}

/* Claim a slice and run it, if `state` has one. A claim succeeds only on the state that was read,
 * so that what it belongs to cannot have ended since. */
static int claim(worker *self, uint64_t state, uint32_t n_threads) {
    const uint64_t left = state & ((1u << LEFT_BITS) - 1);
    uint_fast64_t expected = state;
    if (left == 0) return 0;
    if (!atomic_compare_exchange_strong(&pool.state.value, &expected, state - 1))
        return 1; /* somebody else was first: look again */
    run_slice(self, state >> LEFT_BITS, n_threads, left);
    if (atomic_fetch_sub(&pool.unfinished, 1) == 1) next_step(self, state >> LEFT_BITS, n_threads);
    return 1;
}

static void *work(void *context) {
    worker *self = context;
    for (;;) {
        const uint64_t submission = atomic_load(&pool.submissions.value);
        const uint64_t state = atomic_load(&pool.state.value);
        const uint32_t n_threads = atomic_load(&pool.n_threads);
        if (self->index >= n_threads)
            wait_change(&pool.submissions, submission);
        else if (!claim(self, state, n_threads))
            wait_change(&pool.state, state);
    }
    return NULL;
}

static void before_fork(void) {
    pthread_mutex_lock(&pool.turn);
    pthread_mutex_lock(&pool.sleep_lock);
}

static void after_fork_parent(void) {
    pthread_mutex_unlock(&pool.sleep_lock);
    pthread_mutex_unlock(&pool.turn);
}

/* The child has no workers: it starts its own when it first submits, in the same memory. */
static void after_fork_child(void) {
    pool.started = 0;
    atomic_store(&pool.n_threads, 0);
    atomic_store(&pool.state.sleepers, 0);
    atomic_store(&pool.submissions.sleepers, 0);
    pthread_cond_init(&pool.state.wake, NULL);
    pthread_cond_init(&pool.submissions.wake, NULL);
    pthread_mutex_unlock(&pool.sleep_lock);
    pthread_mutex_unlock(&pool.turn);
}

static void prepare(void) {
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
    pool.cpus = cpu_count();
}

/* Have `count` workers, or as many as the system gives. Holding `turn`. */
static void start_workers(uint32_t count) {
    if (pool.started >= count) return;
    sigset_t all, old;
    sigfillset(&all);
    pthread_attr_t detached;
    if (pthread_attr_init(&detached) != 0) return;
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    /* Signals belong to the program's own threads. */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (pool.started < count) {
        const uint32_t index = pool.started + 1;
        worker *self = pool.workers[index];
        if (self == NULL) {
            void *memory;
            if (posix_memalign(&memory, 64, sizeof *self) != 0) break;
            self = memory;
            pool.workers[index] = self;
        }
        self->index = index;
        self->step = UINT64_MAX;
        pthread_t thread;
        if (pthread_create(&thread, &detached, work, self) != 0) break;
        pool.started = index;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&detached);
}

/* Steps that are not shared have the number 0, which no shared one has. */
static void run_alone(const cpu_step *steps, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        pool.caller.step = UINT64_MAX;
        run_threadgroups(&pool.caller, &steps[i], 0, 0, steps[i].groups);
    }
}

void cpu_pool_run(const cpu_step *steps, uint32_t n, uint32_t threads) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, prepare);

    uint32_t n_threads = 1;
    for (uint32_t i = 0; i < n && n_threads < threads; i++) {
        const uint32_t wanted = threads_of(&steps[i], threads);
        n_threads = wanted > n_threads ? wanted : n_threads;
    }
    pthread_mutex_lock(&pool.turn);
    if (n_threads > 1) start_workers(n_threads - 1);
    n_threads = n_threads <= pool.started ? n_threads : pool.started + 1;
    if (n_threads == 1) {
        run_alone(steps, n);
        pthread_mutex_unlock(&pool.turn);
        return;
    }
    const uint64_t before = atomic_load(&pool.state.value) >> LEFT_BITS;
    const uint32_t threads_before = atomic_load(&pool.n_threads);
    pool.steps = steps;
    pool.n = n;
    pool.first = before + 1;
    atomic_store(&pool.crowded, n_threads > pool.cpus);
    atomic_store(&pool.n_threads, n_threads);
    if (n_threads > threads_before)
        change(&pool.submissions, atomic_load(&pool.submissions.value) + 1);
    next_step(&pool.caller, before, n_threads);
    const uint64_t end = pool.first + n;
    uint64_t state;
    while ((state = atomic_load(&pool.state.value)) >> LEFT_BITS != end)
        if (!claim(&pool.caller, state, n_threads)) wait_change(&pool.state, state);
    pthread_mutex_unlock(&pool.turn);
}
