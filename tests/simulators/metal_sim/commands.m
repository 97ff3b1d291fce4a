/* Queues and command buffers. */
#include <stdlib.h>
#include <string.h>

#import <Block.h>

#include "sim.h"

/* A device can be opened in a dry run too. */
static BOOL probes(const sim_work *work) {
    static const char prefix[] = "oxb_probe_";
    return strncmp(work->pipeline->_kernel->name, prefix, sizeof prefix - 1) == 0;
}

@implementation SimQueue
+ (const char *)simName {
    return "MTLCommandQueue";
}
- (void)dealloc {
    [_sets release];
    [super dealloc];
}
- (id<MTLCommandBuffer>)made:(MTLCommandBufferDescriptor *)descriptor retaining:(BOOL)retaining {
    if (sim_fails("commandBuffer", NULL)) return nil;
    if (descriptor != nil && ![descriptor retainedReferences])
        sim_misuse("references not retained", "the driver relies on them");
    if (__atomic_fetch_add(&_inFlight, 1, __ATOMIC_SEQ_CST) >= SIM_MAX_IN_FLIGHT)
        sim_misuse("64 command buffers in flight",
                   "a real queue blocks here for ever if none can finish");
    BOOL described =
        ([descriptor errorOptions] & MTLCommandBufferErrorOptionEncoderExecutionStatus) != 0;
    return [[[SimCommandBuffer alloc] initWithQueue:self described:described
                                          retaining:retaining] autorelease];
}
- (id<MTLCommandBuffer>)commandBuffer {
    return [self made:nil retaining:YES];
}
- (id<MTLCommandBuffer>)commandBufferWithUnretainedReferences {
    return [self made:nil retaining:NO];
}
- (id<MTLCommandBuffer>)commandBufferWithDescriptor:(MTLCommandBufferDescriptor *)descriptor {
    return [self made:descriptor retaining:YES];
}
@end

@implementation MTLCommandBufferDescriptor
@synthesize retainedReferences = _retainedReferences, errorOptions = _errorOptions;
+ (id)allocWithZone:(NSZone *)zone {
    sim_made("MTLCommandBufferDescriptor");
    return [super allocWithZone:zone];
}
- (id)init {
    self = [super init];
    _retainedReferences = YES;
    return self;
}
- (void)dealloc {
    sim_gone("MTLCommandBufferDescriptor");
    [super dealloc];
}
@end

@implementation SimEncoderInfo
@synthesize label = _label, errorState = _errorState;
- (NSArray *)debugSignposts {
    return [NSArray array];
}
- (void)dealloc {
    [_label release];
    [super dealloc];
}
@end

@implementation SimCommandBuffer
@synthesize error = _error, GPUStartTime = _start, GPUEndTime = _end;
+ (const char *)simName {
    return "MTLCommandBuffer";
}
- (id)initWithQueue:(SimQueue *)queue described:(BOOL)described retaining:(BOOL)retaining {
    self = [super initWithDevice:(SimDevice *)[queue device]];
    _queue = [queue retain];
    _held = [[NSMutableArray alloc] init];
    if (!retaining) _lent = [[NSMutableSet alloc] init];
    _last = &_first;
    if (described) _encoders = [[NSMutableArray alloc] init];
    return self;
}
- (void)drop {
    for (sim_work *work = _first; work != NULL;) {
        sim_work *next = work->next;
        free(work);
        work = next;
    }
    _first = NULL;
    _last = &_first;
    [_held removeAllObjects];
    [_lent removeAllObjects];
    for (unsigned i = 0; i < _handlerCount; i++) _Block_release(_handlers[i]);
    _handlerCount = 0;
}
- (void)dealloc {
    [self drop];
    if (_status < MTLCommandBufferStatusCommitted)
        __atomic_fetch_sub(&_queue->_inFlight, 1, __ATOMIC_SEQ_CST);
    [_held release];
    [_lent release];
    [_encoders release];
    [_queue release];
    [_error release];
    [super dealloc];
}
- (MTLCommandBufferStatus)status {
    return __atomic_load_n(&_status, __ATOMIC_ACQUIRE);
}
- (void)add:(sim_work)work {
    sim_work *copy = malloc(sizeof *copy);
    *copy = work;
    *_last = copy;
    _last = &copy->next;
}
- (void)hold:(id)object {
    [_held addObject:object];
}
- (void)use:(id)object {
    if (_lent != nil)
        [_lent addObject:object];
    else
        [_held addObject:object];
}
/* The set's own reference must not be the last. */
- (void)checkLent {
    for (SimObject *object in _lent) {
        if ([object retainCount] == 1)
            sim_misuse("released in flight", "%s of a command buffer that does not retain it",
                       [[object class] simName]);
    }
}
- (void)checkOpen:(const char *)call {
    if (_status != MTLCommandBufferStatusNotEnqueued) sim_misuse("use after commit", "%s", call);
    if (_encoding) sim_misuse("encoder not ended", "%s while another encoder is open", call);
}
- (id<MTLComputeCommandEncoder>)computeCommandEncoder {
    return [self computeCommandEncoderWithDispatchType:MTLDispatchTypeSerial];
}
- (id<MTLComputeCommandEncoder>)computeCommandEncoderWithDispatchType:
    (MTLDispatchType)dispatchType {
    [self checkOpen:"computeCommandEncoder"];
    if (dispatchType != MTLDispatchTypeSerial)
        sim_misuse("dispatch type", "the simulated device runs dispatches in series");
    if (sim_fails("computeCommandEncoder", NULL)) return nil;
    return [[[SimComputeEncoder alloc] initWithCommandBuffer:self] autorelease];
}
- (id<MTLBlitCommandEncoder>)blitCommandEncoder {
    [self checkOpen:"blitCommandEncoder"];
    if (sim_fails("blitCommandEncoder", NULL)) return nil;
    return [[[SimBlitEncoder alloc] initWithCommandBuffer:self] autorelease];
}
- (void)addCompletedHandler:(MTLCommandBufferHandler)block {
    if (_status != MTLCommandBufferStatusNotEnqueued)
        sim_misuse("handler after commit", "addCompletedHandler");
    if (_handlerCount == sizeof _handlers / sizeof _handlers[0])
        sim_misuse("too many handlers", "%u", _handlerCount);
    _handlers[_handlerCount++] = _Block_copy(block);
}
- (void)commit {
    (void)sim_fails("commit", NULL); /* only raising makes a difference */
    if (_status != MTLCommandBufferStatusNotEnqueued)
        sim_misuse("double commit", "commit of a command buffer of status %d", (int)_status);
    if (_encoding) sim_misuse("encoder not ended", "commit while an encoder is open");
    _status = MTLCommandBufferStatusCommitted;
    sim_enqueue(self);
}
/* nil, or what the runner found wrong. */
- (NSString *)run:(const sim_work *)work {
    char text[2048] = "";
    NSString *reason = nil;
    if (work->pipeline == nil) {
        if (work->from != NULL)
            memmove(work->to, work->from, work->length);
        else
            sim_fill(work->to, work->value, work->length);
        return nil;
    }
    const SimPipeline *p = work->pipeline;
    if (sim_load_runtime(&reason)->run(p->_program, p->_kernel, &work->launch, text, sizeof text) ==
        0)
        return nil;
    return [NSString stringWithUTF8String:text];
}
/* Of what ended at an encoder: of those behind it nothing has run. */
- (NSError *)error:(NSString *)text code:(int)code encoder:(unsigned)encoder {
    NSMutableDictionary *info =
        [NSMutableDictionary dictionaryWithObject:text forKey:NSLocalizedDescriptionKey];
    for (unsigned i = 0; i < [_encoders count] && code != SIM_IGNORED && i <= encoder; i++)
        ((SimEncoderInfo *)[_encoders objectAtIndex:i])->_errorState =
            i < encoder ? MTLCommandEncoderErrorStateCompleted
            : code == 3 ? MTLCommandEncoderErrorStateFaulted
                        : MTLCommandEncoderErrorStateAffected;
    if (_encoders != nil) [info setObject:_encoders forKey:MTLCommandBufferEncoderInfoErrorKey];
    return [NSError errorWithDomain:MTLCommandBufferErrorDomain
                               code:sim_error_code(code)
                           userInfo:info];
}
/* On the worker's thread. */
- (void)execute {
    NSError *error = nil;
    BOOL failed = NO;
    _status = MTLCommandBufferStatusScheduled;
    sim_run run = sim_begin(_queue->_ignoring);
    if (run.code != 0) error = [self error:sim_reason(run.code) code:run.code encoder:0];
    @try {
        failed = error != nil || sim_fails("execute", &error);
    } @catch (NSException *exception) {
        failed = YES; /* a device raises nothing */
    }
    for (sim_work *work = _first; work != NULL && !failed; work = work->next) {
        NSString *reason = nil;
        if (!sim_step(&run, work)) {
            reason = sim_reason(run.code);
        } else if (work->pipeline == nil || !run.dry || probes(work)) {
            reason = [self run:work];
            if (reason != nil) run.code = 3;
        }
        failed = reason != nil;
        if (failed) error = [self error:reason code:run.code encoder:work->encoder];
    }
    if (run.code != 0) _queue->_ignoring = YES;
    _start = run.start;
    _end = sim_finish(&run, failed);
    if (failed && !sim_failed_times()) _start = _end = 0;
    _error = [error retain];
    __atomic_store_n(&_status,
                     failed ? MTLCommandBufferStatusError : MTLCommandBufferStatusCompleted,
                     __ATOMIC_RELEASE);
    __atomic_fetch_sub(&_queue->_inFlight, 1, __ATOMIC_SEQ_CST);
    [self checkLent];
    sim_before_handlers();
    for (unsigned i = 0; i < _handlerCount; i++) ((MTLCommandBufferHandler)_handlers[i])(self);
    [self drop];
}
@end
