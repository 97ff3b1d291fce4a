/* The device's clock, and what ends a command buffer: simulated seconds by kernel, a budget for one
 * command buffer, the errors that macOS gives, and a record of what finished. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sim.h"

#define MAX_COSTS 256u

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Guarded by lock. */
static BOOL on, dry, no_failed_times;
static double time_now, default_cost, blit_cost, budget;
static int budget_code;
static struct {
    char kernel[96];
    double seconds; /* of a thread */
} costs[MAX_COSTS];
static unsigned n_costs;
static int64_t ends_after = -1; /* command buffers until one is ended; -1 for none */
static int end_code;
static uint32_t end_dispatch;
static struct metal_sim_record *records;
static uint64_t n_records, room_for_records;

static double real_time(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void metal_sim_set_cost(const char *kernel, double seconds) {
    pthread_mutex_lock(&lock);
    if (!on) time_now = real_time();
    on = YES;
    unsigned i = 0;
    while (kernel != NULL && i < n_costs && strcmp(costs[i].kernel, kernel) != 0) i++;
    if (i == MAX_COSTS) sim_misuse("too many costs", "%s", kernel);
    if (kernel == NULL) {
        default_cost = seconds;
    } else {
        strncpy(costs[i].kernel, kernel, sizeof costs[i].kernel - 1);
        costs[i].seconds = seconds;
        if (i == n_costs) n_costs++;
    }
    pthread_mutex_unlock(&lock);
}

void metal_sim_set_blit_cost(double seconds) {
    pthread_mutex_lock(&lock);
    blit_cost = seconds;
    pthread_mutex_unlock(&lock);
}

void metal_sim_set_budget(double seconds, int code) {
    pthread_mutex_lock(&lock);
    budget = seconds;
    budget_code = code;
    pthread_mutex_unlock(&lock);
}

void metal_sim_end(uint32_t skip, int code, uint32_t dispatch) {
    pthread_mutex_lock(&lock);
    ends_after = skip;
    end_code = code;
    end_dispatch = dispatch;
    pthread_mutex_unlock(&lock);
}

void metal_sim_set_dry(int enabled) {
    pthread_mutex_lock(&lock);
    dry = enabled != 0;
    pthread_mutex_unlock(&lock);
}

void metal_sim_set_failed_times(int enabled) {
    pthread_mutex_lock(&lock);
    no_failed_times = enabled == 0;
    pthread_mutex_unlock(&lock);
}

BOOL sim_failed_times(void) {
    pthread_mutex_lock(&lock);
    BOOL has = !no_failed_times;
    pthread_mutex_unlock(&lock);
    return has;
}

uint64_t metal_sim_records(struct metal_sim_record *out, uint64_t room) {
    sim_drain();
    pthread_mutex_lock(&lock);
    uint64_t n = n_records;
    if (n != 0 && room != 0) memcpy(out, records, (n < room ? n : room) * sizeof *records);
    pthread_mutex_unlock(&lock);
    return n;
}

void metal_sim_forget_records(void) {
    sim_drain();
    pthread_mutex_lock(&lock);
    n_records = 0;
    pthread_mutex_unlock(&lock);
}

void sim_clock_reset(void) {
    metal_sim_forget_records();
    pthread_mutex_lock(&lock);
    on = dry = no_failed_times = NO;
    default_cost = blit_cost = budget = 0;
    n_costs = 0;
    ends_after = -1;
    pthread_mutex_unlock(&lock);
}

uint32_t sim_clock_pending(void) {
    pthread_mutex_lock(&lock);
    uint32_t n = ends_after >= 0;
    pthread_mutex_unlock(&lock);
    return n;
}

/* With lock held. */
static double seconds_of(const sim_work *work) {
    if (work->pipeline == nil) return blit_cost * (double)work->length;
    double threads = 1, seconds = default_cost;
    for (unsigned i = 0; i < 3; i++)
        threads *= (double)work->launch.threadgroups[i] * work->launch.threads_per_threadgroup[i];
    for (unsigned i = 0; i < n_costs; i++) {
        if (strcmp(costs[i].kernel, work->pipeline->_kernel->name) == 0) seconds = costs[i].seconds;
    }
    return threads * seconds;
}

sim_run sim_begin(BOOL ignored) {
    pthread_mutex_lock(&lock);
    sim_run run = {.start = on ? time_now : real_time(), .dry = dry};
    if (ignored) run.code = SIM_IGNORED;
    if (!ignored && ends_after >= 0 && ends_after-- == 0) {
        run.end_code = end_code;
        run.end_dispatch = end_dispatch;
    }
    pthread_mutex_unlock(&lock);
    return run;
}

BOOL sim_step(sim_run *run, const sim_work *work) {
    pthread_mutex_lock(&lock);
    if (run->end_code != 0 && (run->dispatches == run->end_dispatch || work->next == NULL)) {
        run->code = run->end_code;
    } else if (on) {
        run->seconds += seconds_of(work);
        if (budget > 0 && run->seconds > budget) run->code = budget_code;
    }
    run->dispatches += work->pipeline != nil;
    pthread_mutex_unlock(&lock);
    return run->code == 0;
}

double sim_finish(sim_run *run, BOOL failed) {
    pthread_mutex_lock(&lock);
    /* What the budget ended ran until then. */
    double seconds = !on ? real_time() - run->start
                     : run->code != 0 && budget > 0 && run->seconds > budget ? budget
                                                                             : run->seconds;
    if (on) time_now = run->start + seconds;
    if (n_records == room_for_records) {
        room_for_records = room_for_records != 0 ? 2 * room_for_records : 256;
        records = realloc(records, room_for_records * sizeof *records);
    }
    records[n_records++] =
        (struct metal_sim_record){seconds, run->dispatches, failed && !run->code ? -1 : run->code};
    pthread_mutex_unlock(&lock);
    return run->start + seconds;
}

static const struct {
    int code;
    const char *text;
} reasons[] = {
    {1, "Impacting Interactivity "
        "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"},
    {2, "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)"},
    {3, "Caused GPU Address Fault Error (0000000b:kIOGPUCommandBufferCallbackErrorPageFault)"},
    {SIM_IGNORED, "Ignored (for causing prior/excessive GPU errors) "
                  "(00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)"},
    {8, "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"},
    {METAL_SIM_VICTIM, "Discarded (victim of GPU error/recovery) "
                       "(00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)"},
};

int sim_error_code(int code) { return code == METAL_SIM_VICTIM ? 1 : code; }

NSString *sim_reason(int code) {
    for (unsigned i = 0; i < sizeof reasons / sizeof reasons[0]; i++) {
        if (reasons[i].code == code) return [NSString stringWithUTF8String:reasons[i].text];
    }
    return [NSString stringWithFormat:@"Internal Error (%08x:unknown)", code];
}
