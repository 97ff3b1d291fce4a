/* The process's thread pool: one hand-off per submission, then a barrier between dispatches.
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

#include "oxb_cpu.h"

#define SPINS 256u /* some microseconds */
#define YIELD_NANOSECONDS 50000

typedef struct worker {
    _Alignas(64) unsigned char scratch[OXB_CPU_SCRATCH];
    _Alignas(64) atomic_uint ticket; /* changes when there is a job for this worker */
    unsigned seen;                   /* the ticket before the thread started */
    uint32_t index;
} worker;

static struct {
    pthread_mutex_t turn; /* one submission at a time */
    pthread_mutex_t sleep_lock;
    pthread_cond_t wake;
    atomic_uint sleepers;

    /* The job: written under `turn` before the tickets, read by the workers that got one. */
    const oxb_cpu_step *steps;
    uint32_t n;
    uint32_t parts;
    int crowded; /* more threads than CPUs: do not spin */

    worker *workers[OXB_CPU_MAX_THREADS]; /* 1 and up; guarded by `turn` */
    uint32_t started;                     /* threads running beside the caller; guarded by `turn` */
    uint32_t cpus;

    _Alignas(64) atomic_uint arrived;
    _Alignas(64) atomic_uint phase;
    _Alignas(64) unsigned char scratch[OXB_CPU_SCRATCH]; /* of the thread that submits */
} pool = {.turn = PTHREAD_MUTEX_INITIALIZER,
          .sleep_lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __asm__ __volatile__("pause");
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void wait_change(atomic_uint *word, unsigned old, int crowded)
{
    for (unsigned spins = 0; spins < (crowded ? 1 : SPINS); spins++) {
        if (atomic_load_explicit(word, memory_order_acquire) != old)
            return;
        relax();
    }
    /* The other thread may be waiting for this CPU. */
    const int64_t limit = nanoseconds() + YIELD_NANOSECONDS;
    do {
        if (atomic_load_explicit(word, memory_order_acquire) != old)
            return;
        sched_yield();
    } while (nanoseconds() < limit);
    pthread_mutex_lock(&pool.sleep_lock);
    /* Sequentially consistent, as are the store to the word and the load in wake_sleepers(): either this
     * thread sees the new word, or the other one sees this sleeper. */
    atomic_fetch_add(&pool.sleepers, 1);
    while (atomic_load(word) == old)
        pthread_cond_wait(&pool.wake, &pool.sleep_lock);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.sleep_lock);
}

/* After a sequentially consistent store to the word that changes. */
static void wake_sleepers(void)
{
    if (atomic_load(&pool.sleepers) != 0) {
        pthread_mutex_lock(&pool.sleep_lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleep_lock);
    }
}

/* The phase cannot change before this thread has arrived, so it may be read first. */
static void barrier(uint32_t parts, int crowded, int wait)
{
    const unsigned phase = atomic_load_explicit(&pool.phase, memory_order_relaxed);
    if (atomic_fetch_add(&pool.arrived, 1) + 1 == parts) {
        atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
        atomic_store(&pool.phase, phase + 1);
        wake_sleepers();
    } else if (wait) {
        wait_change(&pool.phase, phase, crowded);
    }
}

static uint32_t parts_of(const oxb_cpu_step *step, uint32_t parts)
{
    const uint64_t worth = step->groups / step->call.kernel->grain;
    return worth >= parts ? parts : worth > 1 ? (uint32_t)worth : 1;
}

static void run_steps(const oxb_cpu_step *steps, uint32_t n, uint32_t parts, uint32_t index,
                      int crowded, void *scratch)
{
    uint32_t before = 1;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t now = parts_of(&steps[i], parts);
        /* Neighbours that both run on the caller alone need nobody else. */
        if (i > 0 && (now > 1 || before > 1))
            barrier(parts, crowded, 1);
        before = now;
        if (index >= now)
            continue;
        const uint64_t share = steps[i].groups / now;
        const uint64_t more = steps[i].groups % now;
        const uint64_t first = share * index + (index < more ? index : more);
        const uint64_t last = first + share + (index < more);
        if (first < last) {
            oxb_cpu_call call = steps[i].call;
            call.scratch = scratch;
            call.again = 0;
            call.kernel->run(&call, first, last);
        }
    }
}

static void *work(void *context)
{
    worker *self = context;
    unsigned seen = self->seen;
    int crowded = 0;
    for (;;) {
        wait_change(&self->ticket, seen, crowded);
        seen++;
        const uint32_t parts = pool.parts;
        crowded = pool.crowded;
        run_steps(pool.steps, pool.n, parts, self->index, crowded, self->scratch);
        barrier(parts, crowded, 0);
    }
    return NULL;
}

static void before_fork(void)
{
    pthread_mutex_lock(&pool.turn);
    pthread_mutex_lock(&pool.sleep_lock);
}

static void after_fork_parent(void)
{
    pthread_mutex_unlock(&pool.sleep_lock);
    pthread_mutex_unlock(&pool.turn);
}

/* The child has no workers: it starts its own when it first submits, in the same memory. */
static void after_fork_child(void)
{
    pool.started = 0;
    atomic_store(&pool.sleepers, 0);
    pthread_cond_init(&pool.wake, NULL);
    pthread_mutex_unlock(&pool.sleep_lock);
    pthread_mutex_unlock(&pool.turn);
}

static void prepare(void)
{
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
    pool.cpus = oxb_cpu_count();
}

/* Have `count` workers, or as many as the system gives. Holding `turn`. */
static void start_workers(uint32_t count)
{
    if (pool.started >= count)
        return;
    sigset_t all, old;
    sigfillset(&all);
    pthread_attr_t detached;
    if (pthread_attr_init(&detached) != 0)
        return;
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    /* Signals belong to the program's own threads. */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (pool.started < count) {
        const uint32_t index = pool.started + 1;
        worker *self = pool.workers[index];
        if (self == NULL) {
            void *memory;
            if (posix_memalign(&memory, 64, sizeof *self) != 0)
                break;
            self = memory;
            atomic_init(&self->ticket, 0);
            pool.workers[index] = self;
        }
        self->index = index;
        self->seen = atomic_load(&self->ticket);
        pthread_t thread;
        if (pthread_create(&thread, &detached, work, self) != 0)
            break;
        pool.started = index;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&detached);
}

void oxb_cpu_pool_run(const oxb_cpu_step *steps, uint32_t n, uint32_t threads)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, prepare);

    uint32_t parts = 1;
    for (uint32_t i = 0; i < n && parts < threads; i++) {
        const uint32_t wanted = parts_of(&steps[i], threads);
        parts = wanted > parts ? wanted : parts;
    }
    pthread_mutex_lock(&pool.turn);
    start_workers(parts - 1);
    parts = parts <= pool.started ? parts : pool.started + 1;
    pool.steps = steps;
    pool.n = n;
    pool.parts = parts;
    pool.crowded = parts > pool.cpus;
    for (uint32_t i = 1; i < parts; i++) {
        atomic_uint *ticket = &pool.workers[i]->ticket;
        atomic_store(ticket, atomic_load_explicit(ticket, memory_order_relaxed) + 1);
    }
    if (parts > 1)
        wake_sleepers();
    run_steps(steps, n, parts, 0, pool.crowded, pool.scratch);
    if (parts > 1)
        barrier(parts, pool.crowded, 1);
    pthread_mutex_unlock(&pool.turn);
}
