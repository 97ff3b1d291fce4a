/* Pipelines and what they say of their kernels. */
#include "sim.h"

@implementation MTLComputePipelineDescriptor
@synthesize label = _label, computeFunction = _computeFunction;
+ (id)allocWithZone:(NSZone *)zone {
    sim_made("MTLComputePipelineDescriptor");
    return [super allocWithZone:zone];
}
- (void)dealloc {
    sim_gone("MTLComputePipelineDescriptor");
    [_label release];
    [_computeFunction release];
    [super dealloc];
}
@end

@implementation MTLArgument
@synthesize name = _name, type = _type, access = _access, index = _index;
@synthesize bufferAlignment = _bufferAlignment, bufferDataSize = _bufferDataSize;
- (id)initWith:(const struct msl_argument *)argument {
    BOOL threadgroup = argument->kind == MSL_ARGUMENT_THREADGROUP;
    self = [super init];
    _name = [[NSString alloc] initWithUTF8String:argument->name];
    _type = threadgroup ? MTLArgumentTypeThreadgroupMemory : MTLArgumentTypeBuffer;
    _access = argument->writable ? MTLArgumentAccessReadWrite : MTLArgumentAccessReadOnly;
    _index = argument->index;
    _bufferAlignment = argument->alignment;
    _bufferDataSize = argument->size;
    return self;
}
- (BOOL)isActive {
    return YES;
}
- (void)dealloc {
    [_name release];
    [super dealloc];
}
@end

@implementation MTLComputePipelineReflection
@synthesize arguments = _arguments;
- (id)initWith:(const struct msl_kernel *)kernel {
    NSMutableArray *arguments = [[NSMutableArray alloc] init];
    for (uint32_t i = 0; i < kernel->n_arguments; i++) {
        MTLArgument *argument = [[MTLArgument alloc] initWith:kernel->arguments + i];
        [arguments addObject:argument];
        [argument release];
    }
    self = [super init];
    _arguments = arguments;
    return self;
}
- (void)dealloc {
    [_arguments release];
    [super dealloc];
}
@end

MTLComputePipelineReflection *sim_reflection(const struct msl_kernel *kernel) {
    return [[[MTLComputePipelineReflection alloc] initWith:kernel] autorelease];
}

@implementation SimPipeline
+ (const char *)simName {
    return "MTLComputePipelineState";
}
- (id)initWithDevice:(SimDevice *)device descriptor:(MTLComputePipelineDescriptor *)descriptor {
    SimFunction *function = (SimFunction *)[descriptor computeFunction];
    self = [super initWithDevice:device];
    _label = [[descriptor label] copy];
    _program = function->_program;
    _kernel = function->_kernel;
    for (uint32_t i = 0; i < _kernel->n_constants; i++) {
        if (_kernel->constants[i].required && !_kernel->constants[i].defined)
            sim_misuse("function constant unset", "%s needs constant %u (%s)", _kernel->name,
                       _kernel->constants[i].index, _kernel->constants[i].name);
    }
    _maxThreads =
        _kernel->max_threads != 0 ? _kernel->max_threads : sim_max_threads_of(_kernel->name);
    return self;
}
- (NSUInteger)maxTotalThreadsPerThreadgroup {
    return _maxThreads;
}
- (NSUInteger)threadExecutionWidth {
    return sim_width_of(_device, _kernel->name);
}
- (NSUInteger)staticThreadgroupMemoryLength {
    return _kernel->static_threadgroup_bytes;
}
@end
