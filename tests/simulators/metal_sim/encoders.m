/* Encoders: everything a real one would trust is checked here. */
#include <string.h>

#include "sim.h"

#define MAX_BYTES             4096u
#define MAX_THREADGROUP_BYTES 32768u
#define CONSTANT_ALIGNMENT    256u

@implementation SimEncoder
+ (const char *)simName {
    return "MTLCommandEncoder";
}
- (id)initWithCommandBuffer:(SimCommandBuffer *)commands {
    self = [super initWithDevice:(SimDevice *)[commands device]];
    _commands = [commands retain];
    commands->_encoding = YES;
    _number = commands->_encoderCount++;
    return self;
}
- (void)dealloc {
    if (!_ended) sim_misuse("encoder not ended", "an encoder was let go without endEncoding");
    [_commands release];
    [super dealloc];
}
- (void)check:(const char *)call {
    if (_ended) sim_misuse("use after endEncoding", "%s", call);
}
- (void)same:(id)object call:(const char *)call {
    [self check:call];
    if (object != nil && [object device] != (id<MTLDevice>)_device)
        sim_misuse("object of another device", "%s", call);
}
- (void)pushDebugGroup:(NSString *)string {
    [self check:"pushDebugGroup"];
    _groups++;
    sim_trace([NSString stringWithFormat:@"group %@", string]);
}
- (void)popDebugGroup {
    [self check:"popDebugGroup"];
    if (_groups-- == 0) sim_misuse("debug groups", "popDebugGroup without a group");
}
- (void)endEncoding {
    [self check:"endEncoding"];
    if (_groups != 0) sim_misuse("debug groups", "%u not popped", _groups);
    _ended = YES;
    if (_commands->_encoders != nil) {
        SimEncoderInfo *info = [[SimEncoderInfo alloc] init];
        info->_label = [_label copy];
        info->_errorState = MTLCommandEncoderErrorStatePending;
        [_commands->_encoders addObject:info];
        [info release];
    }
    _commands->_encoding = NO;
}
@end

@implementation SimComputeEncoder
- (void)dealloc {
    [_pipeline release];
    [super dealloc];
}
- (void)index:(NSUInteger)index call:(const char *)call {
    [self check:call];
    if (index >= MSL_MAX_BUFFERS)
        sim_misuse("index over 30", "%s at index %lu", call, (unsigned long)index);
}
- (void)setComputePipelineState:(id<MTLComputePipelineState>)state {
    if (state == nil) sim_misuse("no pipeline", "setComputePipelineState of nil");
    [self same:state call:"setComputePipelineState"];
    [(SimPipeline *)state retain];
    [_pipeline release];
    _pipeline = (SimPipeline *)state;
}
- (void)setBytes:(const void *)bytes length:(NSUInteger)length atIndex:(NSUInteger)index {
    [self index:index call:"setBytes"];
    if (length == 0 || length > MAX_BYTES)
        sim_misuse("setBytes over 4096 bytes", "%lu bytes at index %lu, 1 to 4096 are allowed",
                   (unsigned long)length, (unsigned long)index);
    NSMutableData *copy = [NSMutableData dataWithBytes:bytes length:length];
    [_commands hold:copy];
    _launch.buffers[index] = (struct msl_binding){[copy mutableBytes], length, 0};
    _bytes[index] = YES;
}
- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset atIndex:(NSUInteger)index {
    [self index:index call:"setBuffer"];
    [self same:buffer call:"setBuffer"];
    SimBuffer *own = (SimBuffer *)buffer;
    if (own != nil && offset >= own->_length)
        sim_misuse("offset past the buffer", "%lu in %lu bytes", (unsigned long)offset,
                   (unsigned long)own->_length);
    if (own != nil) [_commands use:own];
    if (own != nil) [_commands->_queue simCheckResident:own];
    _launch.buffers[index] = own != nil ? (struct msl_binding){own->_memory, own->_length, offset}
                                        : (struct msl_binding){NULL, 0, 0};
    _bytes[index] = NO;
}
- (void)setThreadgroupMemoryLength:(NSUInteger)length atIndex:(NSUInteger)index {
    [self index:index call:"setThreadgroupMemoryLength"];
    if (length % 16 != 0)
        sim_misuse("threadgroup memory not a multiple of 16", "%lu bytes", (unsigned long)length);
    _launch.threadgroup_bytes[index] = length;
}
- (void)checkArgument:(const struct msl_argument *)a of:(const char *)kernel {
    if (a->kind == MSL_ARGUMENT_THREADGROUP) {
        if (_launch.threadgroup_bytes[a->index] == 0)
            sim_misuse("unbound argument", "%s: threadgroup(%u) %s has no length", kernel, a->index,
                       a->name);
        return;
    }
    const struct msl_binding *b = _launch.buffers + a->index;
    if (b->base == NULL)
        sim_misuse("unbound argument", "%s: buffer(%u) %s", kernel, a->index, a->name);
    if (b->length - b->offset < a->size)
        sim_misuse(_bytes[a->index] ? "setBytes shorter than the struct"
                                    : "buffer shorter than the struct",
                   "%s: buffer(%u) %s has %llu bytes of %llu", kernel, a->index, a->name,
                   (unsigned long long)(b->length - b->offset), (unsigned long long)a->size);
    if (_bytes[a->index] && a->writable)
        sim_misuse("bytes bound to a writable argument", "%s: buffer(%u) %s", kernel, a->index,
                   a->name);
    uint64_t unit = a->kind == MSL_ARGUMENT_CONSTANT ? CONSTANT_ALIGNMENT : a->alignment;
    if (b->offset % unit != 0)
        sim_misuse("wrong offset alignment",
                   "%s: buffer(%u) %s at byte %llu, not a multiple of %llu", kernel, a->index,
                   a->name, (unsigned long long)b->offset, (unsigned long long)unit);
}
- (void)dispatchThreadgroups:(MTLSize)groups threadsPerThreadgroup:(MTLSize)threads {
    [self check:"dispatchThreadgroups"];
    (void)sim_fails("dispatchThreadgroups", NULL); /* only raising makes a difference */
    if (_pipeline == nil) sim_misuse("no pipeline", "dispatch before setComputePipelineState");
    const struct msl_kernel *kernel = _pipeline->_kernel;
    if (!groups.width || !groups.height || !groups.depth || !threads.width || !threads.height ||
        !threads.depth)
        sim_misuse("empty grid", "%s: %lu x %lu x %lu threadgroups of %lu x %lu x %lu",
                   kernel->name, (unsigned long)groups.width, (unsigned long)groups.height,
                   (unsigned long)groups.depth, (unsigned long)threads.width,
                   (unsigned long)threads.height, (unsigned long)threads.depth);
    MTLSize most = [_device maxThreadsPerThreadgroup];
    if (threads.width > most.width || threads.height > most.height || threads.depth > most.depth ||
        threads.width * threads.height * threads.depth > _pipeline->_maxThreads)
        sim_misuse("threadgroup over the pipeline's maximum",
                   "%s: %lu x %lu x %lu threads, %u are allowed", kernel->name,
                   (unsigned long)threads.width, (unsigned long)threads.height,
                   (unsigned long)threads.depth, _pipeline->_maxThreads);
    uint64_t memory = kernel->static_threadgroup_bytes;
    for (unsigned i = 0; i < MSL_MAX_BUFFERS; i++) memory += _launch.threadgroup_bytes[i];
    if (memory > MAX_THREADGROUP_BYTES)
        sim_misuse("threadgroup memory over 32 KiB", "%s: %llu bytes", kernel->name,
                   (unsigned long long)memory);
    for (uint32_t i = 0; i < kernel->n_arguments; i++)
        [self checkArgument:kernel->arguments + i of:kernel->name];
    sim_work work = {.pipeline = _pipeline, .launch = _launch, .encoder = _number};
    const NSUInteger grid[6] = {groups.width,  groups.height,  groups.depth,
                                threads.width, threads.height, threads.depth};
    for (unsigned i = 0; i < 3; i++) {
        work.launch.threadgroups[i] = (uint32_t)grid[i];
        work.launch.threads_per_threadgroup[i] = (uint32_t)grid[3 + i];
    }
    [_commands use:_pipeline];
    [_commands add:work];
}
@end

/* Fills and copies of 4 GiB and more do the length modulo 4 GiB, and say nothing. */
static uint64_t cut(uint64_t length) { return length & UINT32_MAX; }

@implementation SimBlitEncoder
- (char *)range:(NSUInteger)offset
         length:(NSUInteger)length
             of:(id<MTLBuffer>)buffer
           call:(const char *)call {
    [self same:buffer call:call];
    SimBuffer *own = (SimBuffer *)buffer;
    if (own == nil || length == 0 || offset > own->_length || length > own->_length - offset)
        sim_misuse("range outside the buffer", "%s: %lu bytes at %lu of %lu", call,
                   (unsigned long)length, (unsigned long)offset,
                   own != nil ? (unsigned long)own->_length : 0);
    if (offset % 4 != 0 || length % 4 != 0)
        sim_misuse("blit range not a multiple of 4", "%s: %lu bytes at %lu", call,
                   (unsigned long)length, (unsigned long)offset);
    [_commands use:own];
    return own->_memory + offset;
}
- (void)fillBuffer:(id<MTLBuffer>)buffer range:(NSRange)range value:(uint8_t)value {
    char *to = [self range:range.location length:range.length of:buffer call:"fillBuffer"];
    [_commands
        add:(sim_work){.to = to, .length = cut(range.length), .value = value, .encoder = _number}];
}
- (void)copyFromBuffer:(id<MTLBuffer>)sourceBuffer
          sourceOffset:(NSUInteger)sourceOffset
              toBuffer:(id<MTLBuffer>)destinationBuffer
     destinationOffset:(NSUInteger)destinationOffset
                  size:(NSUInteger)size {
    const char *from = [self range:sourceOffset length:size of:sourceBuffer call:"copyFromBuffer"];
    char *to = [self range:destinationOffset
                    length:size
                        of:destinationBuffer
                      call:"copyFromBuffer"];
    [_commands add:(sim_work){.from = from, .to = to, .length = cut(size), .encoder = _number}];
}
@end
