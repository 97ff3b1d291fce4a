/* Residency: what keeps the buffers of a device in memory that the GPU can use at once.
 *
 * macOS takes such memory from a process about a second after its last command buffer, and gives it
 * back at the next, which costs a step about 20 ms for each GB. From macOS 15 on a residency set
 * prevents that; from 26 on only while residency is asked for again and again, as the keeper's
 * thread does for some minutes after a submission. Memory of an idle process is not held for ever.
 *
 * A set holds the buffers that the device allocated, up to what it recommends as working set: above
 * that the system has to choose. Wrapped memory is the caller's, and so is how it is paged. Where a
 * system or a device has no sets, or Metal fails here, work goes on without.
 *
 * Locks: keeper_lock guards the list of residencies and is taken before `lock`, which guards the
 * fields of one, and the set, which is not for two threads at once. */
#include <stdlib.h>

#include "base/clock.h"
#include "metal.h"

#ifndef METAL_KEEP_SECONDS
#define METAL_KEEP_SECONDS 180.0 /* after a submission */
#endif
#ifndef METAL_BEAT_SECONDS
#define METAL_BEAT_SECONDS 0.5 /* macOS 26 takes memory back after one second */
#endif

/* Of macOS 15, by the names of Apple's MTLResidencySet.h, MTLDevice.h and MTLCommandQueue.h; older
 * SDKs do not declare them. */
@protocol metal_residency_set <NSObject>
- (void)addAllocation:(id)allocation;
- (void)removeAllocation:(id)allocation;
- (void)removeAllAllocations;
- (BOOL)containsAllocation:(id)allocation;
- (void)commit;
- (void)requestResidency;
- (void)endResidency;
@end

@protocol metal_residency_descriptor <NSObject>
- (void)setLabel:(NSString *)label;
@end

@protocol metal_residency_device <NSObject>
- (id<metal_residency_set>)newResidencySetWithDescriptor:(id)descriptor error:(NSError **)error;
@end

@protocol metal_residency_queue <NSObject>
- (void)addResidencySet:(id)set;
@end

struct metal_residency {
    metal_residency *next; /* guarded by keeper_lock */
    pthread_mutex_t lock;
    /* Guarded by lock. */
    id<metal_residency_set> set; /* +1; nil after Metal has raised */
    uint64_t bytes, most;        /* of the buffers in the set, and how many may be */
    bool changed;                /* since the last commit of the set */
    double asked, used;          /* when, by clock_now(); 0: never */
};

static pthread_mutex_t keeper_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t keeper_once = PTHREAD_ONCE_INIT;
/* Guarded by keeper_lock. */
static metal_residency *kept;
static bool keeper_runs, exiting;

/* Queues still have the set, which is not to hold memory. */
static void give_up(metal_residency *r) {
    @try {
        [r->set removeAllAllocations];
        [r->set commit];
    } @catch (NSException *exception) {
    }
    [r->set release];
    r->set = nil;
}

/* Run `body` with the set, where there is one; without it from now on where Metal raises. */
static void with_set(metal_residency *r, void (^body)(id<metal_residency_set>)) {
    if (r == NULL) return;
    pthread_mutex_lock(&r->lock);
    @autoreleasepool {
        @try {
            if (r->set != nil) body(r->set);
        } @catch (NSException *exception) {
            give_up(r);
        }
    }
    pthread_mutex_unlock(&r->lock);
}

/* The keeper */

static void ask_again(metal_residency *r, double now, bool *more) {
    with_set(r, ^(id<metal_residency_set> set) {
        if (r->used <= 0 || now - r->used > METAL_KEEP_SECONDS) return;
        *more = true;
        [set requestResidency];
        r->asked = now;
    });
}

static void *keep(void *unused) {
    (void)unused;
    pthread_mutex_lock(&keeper_lock);
    for (;;) {
        bool more = false;
        double now = clock_now();
        for (metal_residency *r = kept; r != NULL && !exiting; r = r->next)
            ask_again(r, now, &more);
        if (!more) break;
        pthread_mutex_unlock(&keeper_lock);
        nanosleep(&(struct timespec){.tv_nsec = (long)(METAL_BEAT_SECONDS * 1e9)}, NULL);
        pthread_mutex_lock(&keeper_lock);
    }
    keeper_runs = false;
    pthread_mutex_unlock(&keeper_lock);
    return NULL;
}

/* Metal may not be called while the process exits. */
static void stop_keeper(void) {
    pthread_mutex_lock(&keeper_lock);
    exiting = true;
    pthread_mutex_unlock(&keeper_lock);
}

static void before_fork(void) { pthread_mutex_lock(&keeper_lock); }

static void after_fork_parent(void) { pthread_mutex_unlock(&keeper_lock); }

static void after_fork_child(void) {
    keeper_runs = false;
    pthread_mutex_unlock(&keeper_lock);
}

static void prepare_keeper(void) {
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
    atexit(stop_keeper);
}

static void start_keeper(void) {
    pthread_t thread;
    pthread_mutex_lock(&keeper_lock);
    if (!keeper_runs && !exiting && pthread_create(&thread, NULL, keep, NULL) == 0) {
        pthread_detach(thread);
        keeper_runs = true;
    }
    pthread_mutex_unlock(&keeper_lock);
}

/* The set of a device */

/* +1, or nil. Apple's own GPUs have sets; to ask another one for a set is misuse, by Metal's
 * validation layer. */
static id<metal_residency_set> new_set(id<MTLDevice> device) {
    Class kind = NSClassFromString(@"MTLResidencySetDescriptor");
    if (kind == Nil ||
        ![device respondsToSelector:@selector(newResidencySetWithDescriptor:error:)] ||
        ![device supportsFamily:MTLGPUFamilyApple7])
        return nil;
    id<metal_residency_descriptor> descriptor = [[[kind alloc] init] autorelease];
    [descriptor setLabel:@"oxibonsai"];
    return [(id<metal_residency_device>)device newResidencySetWithDescriptor:descriptor error:NULL];
}

metal_residency *metal_residency_new(id<MTLDevice> device) {
    id<metal_residency_set> set = nil;
    @try {
        set = new_set(device); /* +1 */
    } @catch (NSException *exception) {
        return NULL;
    }
    metal_residency *r = set != nil ? calloc(1, sizeof *r) : NULL;
    if (r == NULL) {
        [set release];
        return NULL;
    }
    pthread_mutex_init(&r->lock, NULL);
    r->set = set;
    r->most = [device recommendedMaxWorkingSetSize];
    pthread_once(&keeper_once, prepare_keeper);
    pthread_mutex_lock(&keeper_lock);
    r->next = kept;
    kept = r;
    pthread_mutex_unlock(&keeper_lock);
    return r;
}

void metal_residency_free(metal_residency *r) {
    if (r == NULL) return;
    pthread_mutex_lock(&keeper_lock);
    metal_residency **place = &kept;
    while (*place != r) place = &(*place)->next;
    *place = r->next;
    pthread_mutex_unlock(&keeper_lock);
    with_set(r, ^(id<metal_residency_set> set) {
        if (r->asked > 0) [set endResidency];
        [set removeAllAllocations];
        [set commit];
    });
    [r->set release];
    pthread_mutex_destroy(&r->lock);
    free(r);
}

void metal_residency_attach(metal_residency *r, id<MTLCommandQueue> queue) {
    if (![queue respondsToSelector:@selector(addResidencySet:)]) return;
    with_set(r, ^(id<metal_residency_set> set) {
        [(id<metal_residency_queue>)queue addResidencySet:set];
    });
}

void metal_residency_add(metal_residency *r, id<MTLBuffer> buffer) {
    with_set(r, ^(id<metal_residency_set> set) {
        uint64_t length = [buffer length];
        if (length > r->most || r->bytes > r->most - length) return;
        [set addAllocation:buffer];
        r->bytes += length;
        r->changed = true; /* committed once, with what else a model uploads */
    });
}

/* At once: the set holds the memory until the removal is committed. */
void metal_residency_remove(metal_residency *r, id<MTLBuffer> buffer) {
    with_set(r, ^(id<metal_residency_set> set) {
        if (![set containsAllocation:buffer]) return;
        [set removeAllocation:buffer];
        [set commit];
        r->bytes -= [buffer length];
        r->changed = false;
    });
}

void metal_residency_use(metal_residency *r) {
    double now = clock_now();
    __block bool first = false;
    with_set(r, ^(id<metal_residency_set> set) {
        if (r->changed) [set commit];
        r->changed = false;
        if (r->asked <= 0 || now - r->asked >= METAL_BEAT_SECONDS) {
            [set requestResidency];
            r->asked = now;
            first = true;
        }
        r->used = now;
    });
    if (first) start_keeper();
}
