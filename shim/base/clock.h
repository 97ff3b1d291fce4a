/* A condition variable with a timed wait on the monotonic clock. macOS has no
 * pthread_condattr_setclock, Linux no relative wait. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <errno.h>
#include <pthread.h>
#include <time.h>

static inline void clock_cond_init(pthread_cond_t *cond) {
#ifdef __APPLE__
    pthread_cond_init(cond, NULL);
#else
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
#endif
}

static inline double clock_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Wait until `deadline` (seconds of clock_now) at the latest; 0 when it has passed. */
static inline int clock_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex,
                                        double deadline) {
    double left = deadline - clock_now();
    if (left <= 0) return 0;
    if (left > 1e6) left = 1e6; /* the caller's loop asks again */
#ifdef __APPLE__
    struct timespec t = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
    (void)pthread_cond_timedwait_relative_np(cond, mutex, &t);
#else
    double until = clock_now() + left;
    struct timespec t = {(time_t)until, (long)((until - (double)(time_t)until) * 1e9)};
    (void)pthread_cond_timedwait(cond, mutex, &t);
#endif
    return 1;
}

#endif
