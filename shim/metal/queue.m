/* The queue of the driver "metal": command buffers, their failures, and waiting inside the driver.
 *
 * After an error Metal ignores what follows on a queue, so that a queue with an error is replaced
 * once nothing is in flight on it. */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "metal.h"

/* A queue of Metal's has 64 command buffers, and blocks for another one while all are in flight.
 * The rest is for what others do with it, such as a capture. */
#define MAX_IN_FLIGHT 48u

struct metal_queue {
    pthread_mutex_t lock;
    pthread_cond_t change;
    /* Guarded by lock. */
    id<MTLCommandQueue> queue; /* +1 */
    uint32_t refs;             /* of the device, and of each command buffer in flight */
    uint32_t in_flight;
    bool failed;    /* Metal may ignore what is committed from now on */
    bool replacing; /* one thread makes a new queue */
};

static id<MTLCommandQueue> new_queue(id<MTLDevice> device, metal_residency *residency) {
    id<MTLCommandQueue> queue = [device newCommandQueue]; /* +1 */
    [queue setLabel:@"oxibonsai"];
    metal_residency_attach(residency, queue);
    return queue;
}

metal_queue *metal_queue_new(id<MTLDevice> device, metal_residency *residency) {
    id<MTLCommandQueue> queue = new_queue(device, residency); /* +1 */
    metal_queue *made = queue != nil ? calloc(1, sizeof *made) : NULL;
    if (made == NULL) {
        [queue release];
        return NULL;
    }
    pthread_mutex_init(&made->lock, NULL);
    clock_cond_init(&made->change);
    made->queue = queue;
    made->refs = 1;
    return made;
}

/* Called with the lock held; unlocks it. */
static void drop_reference(metal_queue *q) {
    bool last = --q->refs == 0;
    pthread_mutex_unlock(&q->lock);
    if (!last) return;
    [q->queue release];
    pthread_mutex_destroy(&q->lock);
    pthread_cond_destroy(&q->change);
    free(q);
}

void metal_queue_release(metal_queue *q) {
    if (q == NULL) return;
    pthread_mutex_lock(&q->lock);
    drop_reference(q);
}

static void leave_flight(metal_queue *q) {
    pthread_mutex_lock(&q->lock);
    q->in_flight--;
    pthread_cond_broadcast(&q->change);
    drop_reference(q);
}

static NSString *raised(NSException *exception) {
    return metal_text("Metal raised %@: %@", [exception name], [exception reason]);
}

/* Called with the lock held, which it gives up while it calls Metal; nil, or the reason, +0. */
static NSString *replace_queue(metal_device *self) {
    metal_queue *q = self->queue;
    id<MTLCommandQueue> fresh = nil, old = nil;
    NSString *reason = nil;
    q->replacing = true;
    pthread_mutex_unlock(&q->lock);
    @try {
        fresh = new_queue(self->device, self->residency); /* +1 */
        if (fresh == nil) reason = @"Metal gave no new command queue after an error";
    } @catch (NSException *exception) {
        reason = raised(exception);
    }
    pthread_mutex_lock(&q->lock);
    q->replacing = false;
    if (fresh != nil) {
        old = q->queue;
        q->queue = fresh;
        q->failed = false;
    }
    pthread_cond_broadcast(&q->change);
    pthread_mutex_unlock(&q->lock);
    [old release];
    pthread_mutex_lock(&q->lock);
    return reason;
}

/* Take a place in the flight: the queue, +1, or nil with the reason, +0. */
static id<MTLCommandQueue> enter_flight(metal_device *self, double seconds, NSString **reason) {
    metal_queue *q = self->queue;
    double deadline = clock_now() + seconds;
    id<MTLCommandQueue> queue = nil;
    pthread_mutex_lock(&q->lock);
    while (*reason == nil && queue == nil) {
        if (q->replacing || q->in_flight >= (q->failed ? 1 : MAX_IN_FLIGHT)) {
            if (seconds < 0)
                pthread_cond_wait(&q->change, &q->lock);
            else if (!clock_cond_wait_until(&q->change, &q->lock, deadline))
                *reason =
                    metal_text("the device did not finish what is in flight within %g s", seconds);
        } else if (q->failed) {
            *reason = replace_queue(self);
        } else {
            q->in_flight++;
            q->refs++;
            queue = [q->queue retain]; /* +1 */
        }
    }
    pthread_mutex_unlock(&q->lock);
    return queue;
}

/* +0, or nil. */
static id<MTLCommandBuffer> command_buffer(id<MTLCommandQueue> queue, bool debug, bool kept) {
    if (!debug) return kept ? [queue commandBufferWithUnretainedReferences] : [queue commandBuffer];
    MTLCommandBufferDescriptor *descriptor =
        [[[MTLCommandBufferDescriptor alloc] init] autorelease];
    [descriptor setErrorOptions:MTLCommandBufferErrorOptionEncoderExecutionStatus];
    return [queue commandBufferWithDescriptor:descriptor];
}

id<MTLCommandBuffer> metal_encode(metal_device *self, NSString *label, double seconds, bool kept,
                                  NSString * (^encode)(id<MTLCommandBuffer>), NSString **reason) {
    id<MTLCommandBuffer> commands = nil; /* +0: Metal keeps it once committed */
    id<MTLCommandQueue> queue = enter_flight(self, seconds, reason); /* +1 */
    if (queue == nil) return nil;
    @try {
        commands = command_buffer(queue, self->debug, kept);
        [commands setLabel:label];
        *reason = commands != nil ? encode(commands) : @"Metal gave no command buffer";
    } @catch (NSException *exception) {
        *reason = raised(exception);
    }
    [queue release];
    if (*reason == nil) return commands;
    leave_flight(self->queue);
    return nil;
}

NSString *metal_commit(metal_device *self, id<MTLCommandBuffer> commands,
                       void (^finished)(id<MTLCommandBuffer>, NSString *)) {
    metal_queue *q = self->queue; /* the device may be closed before the handler ends */
    NSString *reason = nil;
    @try {
        [commands addCompletedHandler:^(id<MTLCommandBuffer> done) {
            @autoreleasepool {
                NSString *failure = metal_failure(done);
                pthread_mutex_lock(&q->lock);
                /* Before anybody learns of it, so that what they submit next is not ignored. */
                q->failed |= failure != nil;
                pthread_mutex_unlock(&q->lock);
                finished(done, failure);
                /* After it, so that a list with an error is known by it before it goes on. */
                leave_flight(q);
            }
        }];
        [commands commit];
    } @catch (NSException *exception) {
        reason = raised(exception);
        leave_flight(q);
    }
    return reason;
}

/* Failures */

/* MTLCommandBufferErrorAccessRevoked of MTLCommandBuffer.h, which older SDKs call Blacklisted. */
#define SUBMISSIONS_IGNORED 4

static bool says(NSError *error, NSString *words) {
    return [metal_why(error) rangeOfString:words].location != NSNotFound;
}

metal_end metal_end_of(id<MTLCommandBuffer> commands) {
    NSError *error = [commands error]; /* +0 */
    if ([commands status] == MTLCommandBufferStatusCompleted && error == nil)
        return METAL_COMPLETED;
    if (![[error domain] isEqualToString:MTLCommandBufferErrorDomain]) return METAL_FAILED;
    switch ([error code]) {
    case MTLCommandBufferErrorInternal:
        return says(error, @"Interactivity") ? METAL_TOO_LONG : METAL_FAILED;
    case MTLCommandBufferErrorTimeout: return METAL_TOO_LONG;
    case SUBMISSIONS_IGNORED: return METAL_IGNORED;
    default: return METAL_FAILED;
    }
}

/* What a failure means and what to do, or "". */
static NSString *advice(NSError *error) {
    if (![[error domain] isEqualToString:MTLCommandBufferErrorDomain]) return @"";
    switch ([error code]) {
    case MTLCommandBufferErrorInternal:
        if (says(error, @"Interactivity"))
            return @": macOS ended work that kept the display waiting; lower the chunk of the "
                   @"session or engine, or the threads of a dispatch of your own";
        /* In full: "Discarded (victim of GPU error/recovery) (00000005:...InnocentVictim)". */
        if (says(error, @"ictim"))
            return @": an error of another program's work on this device ended it; submit it again";
        return @"";
    case MTLCommandBufferErrorTimeout:
        return @": macOS ended work that took too long; lower the chunk of the session or engine, "
               @"or the threads of a dispatch of your own";
    case MTLCommandBufferErrorPageFault:
        return @": a kernel touched memory that no buffer of it holds; check the arguments of a "
               @"kernel of your own, or else report this";
    case SUBMISSIONS_IGNORED:
        return @": it was not run because of an earlier error of this device; submit it again";
    case MTLCommandBufferErrorOutOfMemory:
        return @": the device has too little memory for the work; close sessions or models, or "
               @"lower max_seq";
    case MTLCommandBufferErrorDeviceRemoved: return @": the device is gone; open another one";
    default: return @"";
    }
}

#define MAX_NAMES 8u /* of encoders in a message */

/* The encoders that had to do with a failure, where their status was asked for, or "". */
static NSString *encoders_of(NSError *error) {
    NSArray *infos = [[error userInfo] objectForKey:MTLCommandBufferEncoderInfoErrorKey]; /* +0 */
    NSMutableArray *names = [NSMutableArray array];
    for (id<MTLCommandBufferEncoderInfo> info in infos) {
        MTLCommandEncoderErrorState state = [info errorState];
        if (state == MTLCommandEncoderErrorStateFaulted)
            [names addObject:metal_text("%@ faulted", [info label])];
        else if (state == MTLCommandEncoderErrorStateAffected)
            [names addObject:metal_text("%@ was affected", [info label])];
    }
    NSUInteger n = [names count], told = n < MAX_NAMES ? n : MAX_NAMES;
    if (n == 0) return @"";
    NSString *first =
        [[names subarrayWithRange:NSMakeRange(0, told)] componentsJoinedByString:@", "];
    return metal_text("; of %lu encoders %@%@", (unsigned long)[infos count], first,
                      n > told ? metal_text(", and %lu more", (unsigned long)(n - told)) : @"");
}

NSString *metal_failure(id<MTLCommandBuffer> commands) {
    MTLCommandBufferStatus status = [commands status];
    NSError *error = [commands error]; /* +0 */
    if (status == MTLCommandBufferStatusCompleted && error == nil) return nil;
    if (error == nil)
        return metal_text("the command buffer ended with status %lu and no reason",
                          (unsigned long)status);
    return metal_text("%@ (%@ %ld)%@%@", metal_why(error), [error domain], (long)[error code],
                      advice(error), encoders_of(error));
}

/* Waiting inside the driver, for the probe and for blits; the front waits for submissions. */

typedef struct outcome {
    pthread_mutex_t lock;
    pthread_cond_t finished;
    /* Guarded by lock. */
    bool left; /* waiter or handler has released it: after a timeout the handler still runs */
    bool done;
    metal_end end;
    char text[1024];
} outcome;

/* Called with the lock held; unlocks it. */
static void leave_outcome(outcome *o) {
    bool last = o->left;
    o->left = true;
    pthread_mutex_unlock(&o->lock);
    if (!last) return;
    pthread_mutex_destroy(&o->lock);
    pthread_cond_destroy(&o->finished);
    free(o);
}

static NSString *run_once(metal_device *self, NSString *label, double seconds,
                          NSString * (^encode)(id<MTLCommandBuffer>), metal_end *end) {
    NSString *reason = nil;
    *end = METAL_NO_END;
    outcome *o = calloc(1, sizeof *o);
    if (o == NULL) return @"out of memory";
    pthread_mutex_init(&o->lock, NULL);
    clock_cond_init(&o->finished);
    id<MTLCommandBuffer> commands = metal_encode(self, label, seconds, false, encode, &reason);
    if (commands != nil)
        reason = metal_commit(self, commands, ^(id<MTLCommandBuffer> finished, NSString *failure) {
            metal_end ended = metal_end_of(finished);
            pthread_mutex_lock(&o->lock);
            o->end = ended;
            snprintf(o->text, sizeof o->text, "%s", failure != nil ? metal_utf8(failure) : "");
            o->done = true;
            pthread_cond_signal(&o->finished);
            leave_outcome(o);
        });
    pthread_mutex_lock(&o->lock);
    if (reason != nil) { /* no handler will run */
        o->left = true;
        leave_outcome(o);
        return reason;
    }
    double deadline = clock_now() + seconds;
    while (!o->done && clock_cond_wait_until(&o->finished, &o->lock, deadline)) {
    }
    if (!o->done)
        reason = metal_text("the device did not finish within %g s", seconds);
    else if (o->end != METAL_COMPLETED)
        reason = metal_string(o->text);
    if (o->done) *end = o->end;
    leave_outcome(o);
    return reason;
}

NSString *metal_run(metal_device *self, NSString *label, double seconds, unsigned again,
                    NSString * (^encode)(id<MTLCommandBuffer>)) {
    metal_end end;
    NSString *reason = run_once(self, label, seconds, encode, &end);
    if (reason == nil || !(again >> end & 1)) return reason;
    return run_once(self, label, seconds, encode, &end);
}
