/* The thread that is the device: it runs what is committed, in that order, and can hang. */
#include <pthread.h>

#include "sim.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t change = PTHREAD_COND_INITIALIZER;
/* Guarded by lock. */
static NSMutableArray *queue;
static BOOL started, running, held;
static int64_t hang_after = -1; /* command buffers until the hang; -1 for none */

/* The next command buffer to run, retained; waits for one, and for the end of a hang. */
static SimCommandBuffer *next(void) {
    pthread_mutex_lock(&lock);
    running = NO;
    pthread_cond_broadcast(&change);
    while ([queue count] == 0) pthread_cond_wait(&change, &lock);
    running = YES;
    if (hang_after >= 0 && hang_after-- == 0) held = YES;
    pthread_cond_broadcast(&change);
    while (held) pthread_cond_wait(&change, &lock);
    SimCommandBuffer *commands = [[queue objectAtIndex:0] retain];
    [queue removeObjectAtIndex:0];
    pthread_mutex_unlock(&lock);
    return commands;
}

static void *work(void *unused) {
    (void)unused;
    sim_handler_thread();
    for (;;) {
        @autoreleasepool {
            SimCommandBuffer *commands = next();
            [commands execute];
            [commands release];
        }
    }
    return NULL;
}

void sim_enqueue(SimCommandBuffer *commands) {
    pthread_mutex_lock(&lock);
    if (!started) {
        pthread_t thread;
        started = YES;
        queue = [[NSMutableArray alloc] init];
        if (pthread_create(&thread, NULL, work, NULL) != 0)
            sim_misuse("no thread", "for the simulated device");
        pthread_detach(thread);
    }
    [queue addObject:commands];
    pthread_cond_broadcast(&change);
    pthread_mutex_unlock(&lock);
}

void sim_drain(void) {
    pthread_mutex_lock(&lock);
    while ((running || [queue count] != 0) && !held) pthread_cond_wait(&change, &lock);
    pthread_mutex_unlock(&lock);
}

void metal_sim_hang(uint32_t skip) {
    pthread_mutex_lock(&lock);
    hang_after = skip;
    pthread_mutex_unlock(&lock);
}

void metal_sim_release_hang(void) {
    pthread_mutex_lock(&lock);
    held = NO;
    hang_after = -1;
    pthread_cond_broadcast(&change);
    pthread_mutex_unlock(&lock);
}

void sim_worker_reset(void) { metal_sim_release_hang(); }
