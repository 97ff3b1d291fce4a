/* The thread on which completion handlers run: handlers can come late, and the thread belongs to
 * the system, so that no handler may end it. */
#include <pthread.h>
#include <time.h>

#include "sim.h"

static uint32_t late; /* milliseconds */

void metal_sim_late(uint32_t milliseconds) {
    __atomic_store_n(&late, milliseconds, __ATOMIC_SEQ_CST);
}

static void ended(void *unused) {
    (void)unused;
    sim_misuse("a thread of the system ended", "a completion handler called pthread_exit");
}

/* Apple's threads are not made by pthread_create, and pthread_exit() aborts there. */
void sim_handler_thread(void) {
    static const char alive;
    pthread_key_t key;
    if (pthread_key_create(&key, ended) != 0 || pthread_setspecific(key, &alive) != 0)
        sim_misuse("no key", "for the thread of the handlers");
}

void sim_before_handlers(void) {
    uint32_t left = __atomic_load_n(&late, __ATOMIC_SEQ_CST);
    struct timespec pause = {left / 1000, (long)(left % 1000) * 1000000};
    if (left != 0) nanosleep(&pause, NULL);
}

void sim_handlers_reset(void) { metal_sim_late(0); }
