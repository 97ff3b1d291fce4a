/* Residency: what keeps the buffers of a device in memory that the GPU can use at once.
 *
 * macOS takes such memory from a process about a second after its last command buffer, and gives it
 * back at the next, which costs a step about 20 ms for each GB. From macOS 15 on a residency set
 * prevents that; from 26 on only while residency is asked for again and again, as the keeper's
 * thread does for some minutes after a submission. Then it ends the residency, so that an idle
 * process holds no memory, and the next submission asks again.
 *
 * A set holds the buffers that the device allocated. All sets of a GPU together hold up to what the
 * GPU recommends as working set: above that the system has to choose. What finds no room waits for
 * some. Wrapped memory is the caller's, and so is how it is paged. Where a system or a device has
 * no sets, or Metal fails here, work goes on without.
 *
 * A set is not taken to be for several threads at once, and a request may take long. So one thread
 * at a time is in a set, without a lock, and nobody waits for it: what others want they leave in
 * the fields of the residency, and that thread does it before it goes.
 *
 * Locks: keeper_lock guards the list of residencies and the room on GPUs, and is taken before
 * `lock`, which guards the fields of one residency. Metal is not called with one of them held. */
#include <signal.h>
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

/* What the sets of all devices of a GPU hold; guarded by keeper_lock. */
typedef struct room {
    struct room *next;
    uint64_t gpu; /* its registryID */
    uint64_t bytes, most;
    unsigned residencies;
} room;

struct metal_residency {
    metal_residency *next; /* guarded by keeper_lock */
    room *room;
    pthread_mutex_t lock;
    pthread_cond_t change;
    /* Guarded by lock. */
    id<metal_residency_set> set; /* +1; nil after Metal has raised */
    unsigned pins;               /* of threads that will look at it again */
    bool inside;                 /* a thread is in the set */
    NSMutableArray *joining;     /* +1; buffers that are not in the set yet */
    NSMutableArray *leaving;     /* +1; buffers that are freed */
    bool tries;                  /* there may be room for those that are joining */
    bool changed;                /* buffers were added since the last commit of the set */
    bool commits, asks, ends;    /* what the thread in the set is to do yet */
    double asked, used;          /* when, by clock_now(); 0: never, or ended since */
    uint64_t bytes;              /* of the buffers in the set; of the thread that is inside */
};

static pthread_mutex_t keeper_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t keeper_change = PTHREAD_COND_INITIALIZER;
static pthread_once_t keeper_once = PTHREAD_ONCE_INIT;
/* Guarded by keeper_lock. */
static metal_residency *kept;
static room *rooms;
static bool keeper_runs, keeper_calls, exiting;

/* Room on a GPU */

/* With keeper_lock held; NULL without memory. */
static room *enter_room(uint64_t gpu, uint64_t most) {
    room *found = rooms;
    while (found != NULL && found->gpu != gpu) found = found->next;
    if (found == NULL) {
        found = calloc(1, sizeof *found);
        if (found == NULL) return NULL;
        *found = (room){.next = rooms, .gpu = gpu};
        rooms = found;
    }
    found->most = most;
    found->residencies++;
    return found;
}

/* With keeper_lock held. */
static void leave_room(room *left) {
    if (--left->residencies != 0) return;
    room **place = &rooms;
    while (*place != left) place = &(*place)->next;
    *place = left->next;
    free(left);
}

static bool take_room(metal_residency *r, uint64_t bytes) {
    pthread_mutex_lock(&keeper_lock);
    room *own = r->room;
    bool fits = bytes <= own->most && own->bytes <= own->most - bytes;
    if (fits) own->bytes += bytes;
    pthread_mutex_unlock(&keeper_lock);
    if (fits) r->bytes += bytes;
    return fits;
}

/* What waits for it in any set of the GPU tries again. */
static void give_room(metal_residency *r, uint64_t bytes) {
    if (bytes == 0) return;
    r->bytes -= bytes;
    pthread_mutex_lock(&keeper_lock);
    r->room->bytes -= bytes;
    for (metal_residency *other = kept; other != NULL; other = other->next) {
        if (other->room != r->room) continue;
        pthread_mutex_lock(&other->lock);
        other->tries = true;
        pthread_mutex_unlock(&other->lock);
    }
    pthread_mutex_unlock(&keeper_lock);
}

/* In the set */

/* What one thread does there. */
typedef struct visit {
    NSMutableArray *joining, *leaving; /* +1 */
    bool changed, commits, asks, ends;
} visit;

/* With the lock held. */
static bool is_due(const metal_residency *r) {
    return r->set != nil && !r->inside &&
           ((r->tries && [r->joining count] != 0) || [r->leaving count] != 0 ||
            (r->commits && r->changed) || r->asks || r->ends);
}

static void remove_those(metal_residency *r, visit *v) {
    uint64_t freed = 0;
    for (id<MTLBuffer> buffer in v->leaving) {
        if (![r->set containsAllocation:buffer]) continue;
        [r->set removeAllocation:buffer];
        freed += [buffer length];
    }
    if (freed == 0) return;
    [r->set commit]; /* at once: the set holds the memory until then */
    v->changed = false;
    give_room(r, freed);
}

/* What finds no room stays in `joining`. */
static void add_those(metal_residency *r, visit *v) {
    NSMutableArray *left_out = [NSMutableArray array];
    for (id<MTLBuffer> buffer in v->joining) {
        if (!take_room(r, [buffer length])) {
            [left_out addObject:buffer];
            continue;
        }
        [r->set addAllocation:buffer];
        v->changed = true; /* committed once, with what else a model uploads */
    }
    [v->joining setArray:left_out];
}

/* NO after Metal has raised. */
static BOOL visit_set(metal_residency *r, visit *v) {
    @try {
        remove_those(r, v);
        add_those(r, v);
        if (v->commits && v->changed) {
            [r->set commit];
            v->changed = false;
        }
        if (v->ends) [r->set endResidency];
        if (v->asks) [r->set requestResidency];
    } @catch (NSException *exception) {
        return NO;
    }
    return YES;
}

/* Queues may still have the set, which then is not to hold memory. */
static void empty_set(id<metal_residency_set> set) {
    @try {
        [set removeAllAllocations];
        [set commit];
    } @catch (NSException *exception) {
    }
}

/* With the lock held: what is to be done now. */
static visit begin_visit(metal_residency *r) {
    for (id<MTLBuffer> buffer in r->leaving) [r->joining removeObjectIdenticalTo:buffer];
    visit v = {.leaving = r->leaving, .changed = r->changed};
    r->leaving = [[NSMutableArray alloc] init];
    v.joining = [[NSMutableArray alloc] init];
    if (r->tries) [v.joining setArray:r->joining];
    if (r->tries) [r->joining removeAllObjects];
    v.commits = r->commits;
    v.asks = r->asks;
    v.ends = r->ends;
    r->tries = r->commits = r->asks = r->ends = false;
    r->inside = true;
    return v;
}

/* With the lock held. */
static void end_visit(metal_residency *r, visit *v, BOOL well) {
    r->changed = v->changed;
    if (v->asks) r->asked = clock_now();
    [r->joining addObjectsFromArray:v->joining];
    if (!well) {
        [r->set release];
        r->set = nil;
        [r->joining removeAllObjects];
        [r->leaving removeAllObjects];
    }
    r->inside = false;
    pthread_cond_broadcast(&r->change);
}

/* Do what is due, unless a thread is in the set: it does it before it goes. With the lock held,
 * which it gives up meanwhile. */
static void settle(metal_residency *r) {
    while (is_due(r)) {
        @autoreleasepool {
            visit v = begin_visit(r);
            pthread_mutex_unlock(&r->lock);
            BOOL well = visit_set(r, &v);
            if (!well) {
                empty_set(r->set);
                give_room(r, r->bytes);
            }
            pthread_mutex_lock(&r->lock);
            end_visit(r, &v, well);
            pthread_mutex_unlock(&r->lock);
            [v.joining release]; /* the last references of buffers may be among these */
            [v.leaving release];
        }
        pthread_mutex_lock(&r->lock);
    }
    if (!r->inside) r->commits = false; /* there is nothing to commit */
}

/* The keeper */

/* With the lock held: whether there is something to do in this set; *more: or later. A set that is
 * in use needs no request: macOS leaves its memory alone. */
static bool wants_call(metal_residency *r, double now, bool *more) {
    if (r->set == nil || r->asked <= 0) return false;
    *more = true;
    double idle = now - r->used;
    if (idle > METAL_KEEP_SECONDS) {
        r->asked = 0;
        r->ends = true;
    } else if (idle >= METAL_BEAT_SECONDS / 2 && now - r->asked >= METAL_BEAT_SECONDS / 2) {
        r->asks = true;
    }
    return r->asks || r->ends;
}

/* Once through the list, with keeper_lock held, which it gives up for calls. */
static bool beat(void) {
    bool more = false;
    double now = clock_now();
    for (metal_residency *r = kept; r != NULL && !exiting;) {
        pthread_mutex_lock(&r->lock);
        if (!wants_call(r, now, &more)) {
            pthread_mutex_unlock(&r->lock);
            r = r->next;
            continue;
        }
        r->pins++;
        keeper_calls = true;
        pthread_mutex_unlock(&keeper_lock);
        settle(r);
        pthread_mutex_unlock(&r->lock); /* for that of the list goes first; it is pinned */
        pthread_mutex_lock(&keeper_lock);
        pthread_mutex_lock(&r->lock);
        metal_residency *next = r->next;
        r->pins--;
        pthread_cond_broadcast(&r->change);
        pthread_mutex_unlock(&r->lock);
        keeper_calls = false;
        pthread_cond_broadcast(&keeper_change);
        r = next;
    }
    return more;
}

static void *keep(void *unused) {
    (void)unused;
    pthread_mutex_lock(&keeper_lock);
    while (beat()) {
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
    while (keeper_calls) pthread_cond_wait(&keeper_change, &keeper_lock);
    pthread_mutex_unlock(&keeper_lock);
}

static void before_fork(void) { pthread_mutex_lock(&keeper_lock); }

static void after_fork_parent(void) { pthread_mutex_unlock(&keeper_lock); }

/* Other threads may have been anywhere in a residency. Metal is not for a forked child, so that its
 * objects are left as they are. */
static void after_fork_child(void) {
    for (metal_residency *r = kept; r != NULL; r = r->next) {
        pthread_mutex_init(&r->lock, NULL);
        pthread_cond_init(&r->change, NULL);
        r->set = nil;
        r->joining = r->leaving = nil;
        r->inside = r->tries = r->changed = r->commits = r->asks = r->ends = false;
        r->pins = 0;
        r->asked = 0;
    }
    pthread_cond_init(&keeper_change, NULL);
    keeper_runs = keeper_calls = false;
    pthread_mutex_unlock(&keeper_lock);
}

static void prepare_keeper(void) {
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
    atexit(stop_keeper);
}

/* Signals are for the program's threads. */
static void start_keeper(void) {
    pthread_t thread;
    sigset_t all, before;
    pthread_mutex_lock(&keeper_lock);
    if (!keeper_runs && !exiting) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        keeper_runs = pthread_create(&thread, NULL, keep, NULL) == 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (keeper_runs) pthread_detach(thread);
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
    pthread_once(&keeper_once, prepare_keeper);
    pthread_mutex_lock(&keeper_lock);
    r->room = enter_room([device registryID], [device recommendedMaxWorkingSetSize]);
    if (r->room != NULL) {
        pthread_mutex_init(&r->lock, NULL);
        pthread_cond_init(&r->change, NULL);
        r->set = set;
        r->joining = [[NSMutableArray alloc] init]; /* +1 */
        r->leaving = [[NSMutableArray alloc] init]; /* +1 */
        r->next = kept;
        kept = r;
    }
    pthread_mutex_unlock(&keeper_lock);
    if (r->room != NULL) return r;
    [set release];
    free(r);
    return NULL;
}

void metal_residency_free(metal_residency *r) {
    if (r == NULL) return;
    pthread_mutex_lock(&r->lock);
    while (r->inside || r->pins != 0) pthread_cond_wait(&r->change, &r->lock);
    id<metal_residency_set> set = r->set;
    bool ends = r->asked > 0;
    r->set = nil; /* so that the keeper leaves it alone */
    pthread_mutex_unlock(&r->lock);
    @autoreleasepool {
        @try {
            if (ends) [set endResidency];
        } @catch (NSException *exception) {
        }
        empty_set(set);
        [set release];
        [r->joining release];
        [r->leaving release];
    }
    give_room(r, r->bytes);
    pthread_mutex_lock(&keeper_lock);
    metal_residency **place = &kept;
    while (*place != r) place = &(*place)->next;
    *place = r->next;
    leave_room(r->room);
    pthread_mutex_unlock(&keeper_lock);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->change);
    free(r);
}

void metal_residency_attach(metal_residency *r, id<MTLCommandQueue> queue) {
    if (r == NULL || ![queue respondsToSelector:@selector(addResidencySet:)]) return;
    pthread_mutex_lock(&r->lock);
    id<metal_residency_set> set = [r->set retain]; /* +1 */
    pthread_mutex_unlock(&r->lock);
    @try {
        if (set != nil) [(id<metal_residency_queue>)queue addResidencySet:set];
    } @catch (NSException *exception) {
    }
    [set release];
}

void metal_residency_add(metal_residency *r, id<MTLBuffer> buffer) {
    if (r == NULL) return;
    pthread_mutex_lock(&r->lock);
    if (r->set != nil) [r->joining addObject:buffer];
    r->tries = true;
    settle(r);
    pthread_mutex_unlock(&r->lock);
}

void metal_residency_remove(metal_residency *r, id<MTLBuffer> buffer) {
    if (r == NULL) return;
    pthread_mutex_lock(&r->lock);
    if (r->set != nil) [r->leaving addObject:buffer];
    settle(r);
    pthread_mutex_unlock(&r->lock);
}

void metal_residency_use(metal_residency *r) {
    if (r == NULL) return;
    double now = clock_now();
    pthread_mutex_lock(&r->lock);
    bool first = r->set != nil && r->asked <= 0;
    r->used = now;
    r->commits = true;
    if (first) {
        r->asks = true;
        r->asked = now;
    }
    settle(r);
    pthread_mutex_unlock(&r->lock);
    if (first) start_keeper();
}
