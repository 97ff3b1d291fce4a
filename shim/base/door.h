/* A door that any number of threads pass, until one closes it and waits for those inside. */
#ifndef BASE_DOOR_H
#define BASE_DOOR_H

#include <limits.h>
#include <sched.h>
#include <stdatomic.h>

#define DOOR_CLOSED INT_MIN

typedef struct door {
    atomic_int state; /* threads inside, and DOOR_CLOSED */
} door;

/* Whether it is open; whoever has entered leaves. */
static inline int door_enter(door *self) {
    if (atomic_fetch_add(&self->state, 1) >= 0) return 1;
    atomic_fetch_sub(&self->state, 1);
    return 0;
}

static inline void door_leave(door *self) { atomic_fetch_sub(&self->state, 1); }

/* For what takes no longer than a lock inside. */
static inline void door_close(door *self) {
    atomic_fetch_or(&self->state, DOOR_CLOSED);
    while (atomic_load(&self->state) != DOOR_CLOSED) sched_yield();
}

/* In a forked process, which has none of the threads that were inside. */
static inline void door_reset(door *self) { atomic_fetch_and(&self->state, DOOR_CLOSED); }

#endif
