/* What is in flight in the whole process, for its exit.
 *
 * Submissions are counted in two generations. A wait starts the other one and waits for those
 * before it alone: neither a thread that goes on submitting nor what an earlier wait has given up
 * on holds it up. */
#include "base/clock.h"
#include "front.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* a leaf */
static pthread_cond_t none_left;
/* Guarded by lock. */
static uint64_t in_flight[2];
static unsigned generation; /* the one that new submissions belong to */

/* A forked process has none of its parent's submissions, nor the threads that would end them. */
static void after_fork_child(void) {
    pthread_mutex_init(&lock, NULL);
    clock_cond_init(&none_left);
    in_flight[0] = in_flight[1] = 0;
}

static void prepare(void) {
    clock_cond_init(&none_left);
    pthread_atfork(NULL, NULL, after_fork_child);
}

unsigned front_flight_begin(void) {
    pthread_once(&once, prepare);
    pthread_mutex_lock(&lock);
    unsigned own = generation;
    in_flight[own]++;
    pthread_mutex_unlock(&lock);
    return own;
}

void front_flight_end(unsigned own) {
    pthread_mutex_lock(&lock);
    if (--in_flight[own] == 0) pthread_cond_broadcast(&none_left);
    pthread_mutex_unlock(&lock);
}

int oxb_wait_all(double timeout) {
    pthread_once(&once, prepare);
    double deadline = clock_now() + timeout;
    pthread_mutex_lock(&lock);
    unsigned before = generation;
    generation = 1 - generation;
    while (in_flight[before] && clock_cond_wait_until(&none_left, &lock, deadline)) {
    }
    int ended = in_flight[before] == 0;
    pthread_mutex_unlock(&lock);
    return ended;
}
