/* Residency sets, as from macOS 15 on. */
#define SIM_MACOS 26 /* what is newer than the oldest system, and is looked up at run time */

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "sim.h"

#define MAX_SETS_OF_A_QUEUE 32u

static BOOL apples = YES, required;
static uint64_t working_set;
static uint32_t request_microseconds;
static BOOL exiting;

void metal_sim_set_request_time(uint32_t microseconds) { request_microseconds = microseconds; }

void metal_sim_set_working_set(uint64_t bytes) { working_set = bytes; }

uint64_t sim_working_set(void) { return working_set; }

void metal_sim_set_apples(int enabled) { apples = enabled != 0; }

BOOL sim_is_apples(void) { return apples; }

void metal_sim_require_residency(int enabled) { required = enabled != 0; }

void sim_residency_reset(void) {
    apples = YES;
    required = NO;
    working_set = 0;
    request_microseconds = 0;
}

@implementation MTLResidencySetDescriptor
@synthesize label = _label, initialCapacity = _initialCapacity;
+ (id)allocWithZone:(NSZone *)zone {
    sim_made("MTLResidencySetDescriptor");
    return [super allocWithZone:zone];
}
- (void)dealloc {
    sim_gone("MTLResidencySetDescriptor");
    [_label release];
    [super dealloc];
}
@end

/* A set holds its buffers until a removal is committed. */
@interface SimResidencySet : SimObject <MTLResidencySet> {
    NSMutableSet *_all, *_committed;
    int _users;
}
@end

@implementation SimResidencySet
+ (const char *)simName {
    return "MTLResidencySet";
}
- (id)initWithDevice:(SimDevice *)device {
    self = [super initWithDevice:device];
    _all = [[NSMutableSet alloc] init];
    _committed = [[NSMutableSet alloc] init];
    return self;
}
- (void)dealloc {
    [_all release];
    [_committed release];
    [super dealloc];
}
- (void)enter:(const char *)call {
    if (__atomic_fetch_add(&_users, 1, __ATOMIC_SEQ_CST) != 0)
        sim_misuse("residency set used by two threads", "%s", call);
    sim_called(call);
}
- (void)leave {
    __atomic_fetch_sub(&_users, 1, __ATOMIC_SEQ_CST);
}
- (BOOL)fails:(const char *)call {
    @try {
        return sim_fails(call, NULL);
    } @catch (NSException *exception) {
        [self leave];
        @throw;
    }
}
- (void)addAllocation:(id<MTLAllocation>)allocation {
    [self enter:"addAllocation"];
    if ([(id)allocation device] != (id<MTLDevice>)_device)
        sim_misuse("object of another device", "addAllocation");
    if (![self fails:"addAllocation"]) [_all addObject:allocation];
    [self leave];
}
- (void)removeAllocation:(id<MTLAllocation>)allocation {
    [self enter:"removeAllocation"];
    if (![self fails:"removeAllocation"]) [_all removeObject:allocation];
    [self leave];
}
- (void)removeAllAllocations {
    [self enter:"removeAllAllocations"];
    [_all removeAllObjects];
    [self leave];
}
- (BOOL)containsAllocation:(id<MTLAllocation>)anAllocation {
    [self enter:"containsAllocation"];
    BOOL found = [_all containsObject:anAllocation];
    [self leave];
    return found;
}
- (NSUInteger)allocationCount {
    return [_all count];
}
- (void)commit {
    [self enter:"residency commit"];
    if (![self fails:"residency commit"]) [_committed setSet:_all];
    [self leave];
}
- (void)requestResidency {
    [self enter:"requestResidency"];
    if (exiting) sim_misuse("call during exit", "requestResidency");
    usleep(request_microseconds);
    (void)[self fails:"requestResidency"];
    [self leave];
}
- (void)endResidency {
    [self enter:"endResidency"];
    [self leave];
}
- (BOOL)isCommitted:(SimBuffer *)buffer {
    [self enter:"isCommitted"];
    BOOL found = [_committed containsObject:buffer];
    [self leave];
    return found;
}
@end

/* The classes are elsewhere, and compiled for a system without these methods. */
#pragma clang diagnostic ignored "-Wobjc-protocol-method-implementation"

static void at_exit(void) {
    exiting = YES;
    usleep(2 * request_microseconds);
}

static void register_at_exit(void) { atexit(at_exit); }

@implementation SimDevice (Residency)
- (BOOL)respondsToSelector:(SEL)selector {
    BOOL newer = sel_isEqual(selector, @selector(newResidencySetWithDescriptor:error:));
    return newer && sim_macos() < 15 ? NO : [super respondsToSelector:selector];
}
- (id<MTLResidencySet>)newResidencySetWithDescriptor:(MTLResidencySetDescriptor *)descriptor
                                               error:(NSError **)error {
    sim_since(15, "newResidencySetWithDescriptor");
    if (![self supportsFamily:MTLGPUFamilyApple7])
        sim_misuse("no residency sets", "this device does not support them");
    if (descriptor == nil) sim_misuse("no descriptor", "newResidencySetWithDescriptor");
    if (sim_fails("newResidencySetWithDescriptor", error)) return nil;
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_at_exit);
    return [[SimResidencySet alloc] initWithDevice:self];
}
@end

@implementation SimQueue (Residency)
- (BOOL)respondsToSelector:(SEL)selector {
    BOOL newer = sel_isEqual(selector, @selector(addResidencySet:)) ||
                 sel_isEqual(selector, @selector(removeResidencySet:));
    return newer && sim_macos() < 15 ? NO : [super respondsToSelector:selector];
}
- (void)addResidencySet:(id<MTLResidencySet>)residencySet {
    sim_since(15, "addResidencySet");
    if ([residencySet device] != [self device])
        sim_misuse("object of another device", "addResidencySet");
    if (_sets == nil) _sets = [[NSMutableArray alloc] init];
    if (![_sets containsObject:residencySet]) [_sets addObject:residencySet];
    if ([_sets count] > MAX_SETS_OF_A_QUEUE) sim_misuse("over 32 residency sets", "of a queue");
}
- (void)removeResidencySet:(id<MTLResidencySet>)residencySet {
    sim_since(15, "removeResidencySet");
    [_sets removeObject:residencySet];
}
- (void)simCheckResident:(SimBuffer *)buffer {
    if (!required || buffer->_wrapped) return;
    for (SimResidencySet *set in _sets) {
        if ([set isCommitted:buffer]) return;
    }
    sim_misuse("buffer outside the residency set", "one of %lu bytes",
               (unsigned long)buffer->_length);
}
@end
