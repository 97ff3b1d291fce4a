/* Breaks each rule of Metal once, in a child process of its own, and prints a line for each:
 * what was done, a tab, the signal that ended the child, a tab, the first line of its stderr. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#import <Metal/Metal.h>

#include "metal_sim.h"

static const char source[] =
    "#include <metal_stdlib>\n"
    "using namespace metal;\n"
    "struct args { uint n; uint pad[3]; };\n"
    "constant uint factor [[function_constant(0)]];\n"
    "kernel void scale(device float4 *x [[buffer(0)]], constant args &a [[buffer(1)]],\n"
    "                  threadgroup float *t [[threadgroup(0)]], uint i "
    "[[thread_position_in_grid]])\n"
    "{\n"
    "    if (i < 8u) t[i] = 2.0f;\n"
    "    threadgroup_barrier(mem_flags::mem_threadgroup);\n"
    "    if (i < a.n) x[i].x *= t[0];\n"
    "}\n"
    "kernel void specialised(device uint *x [[buffer(0)]]) { x[0] = factor; }\n"
    "kernel void table(constant uint *x [[buffer(0)]], device uint *y [[buffer(1)]]) { y[0] = "
    "x[0]; }\n"
    "kernel void large(device float *x [[buffer(0)]], threadgroup float *t [[threadgroup(0)]],\n"
    "                  uint i [[thread_index_in_threadgroup]])\n"
    "{\n"
    "    threadgroup float own[6000];\n"
    "    own[i] = 1.0f;\n"
    "    t[i] = own[i];\n"
    "    x[i] = t[i];\n"
    "}\n";

static id<MTLDevice> device, other;
static id<MTLCommandQueue> queue;
static id<MTLLibrary> library;
static id<MTLBuffer> buffer;
static id<MTLComputePipelineState> scale, table, large;

static id<MTLComputePipelineState> pipeline_of(NSString *name) {
    NSError *error = nil;
    MTLComputePipelineDescriptor *descriptor =
        [[[MTLComputePipelineDescriptor alloc] init] autorelease];
    [descriptor setComputeFunction:[[library newFunctionWithName:name] autorelease]];
    return [device newComputePipelineStateWithDescriptor:descriptor
                                                 options:MTLPipelineOptionNone
                                              reflection:NULL
                                                   error:&error];
}

static id<MTLComputeCommandEncoder> begin(id<MTLComputePipelineState> pipeline) {
    id<MTLComputeCommandEncoder> encoder = [[queue commandBuffer] computeCommandEncoder];
    [encoder setComputePipelineState:pipeline];
    return encoder;
}

/* An encoder on which scale lacks nothing. */
static id<MTLComputeCommandEncoder> ready(void) {
    char args[16] = {8};
    id<MTLComputeCommandEncoder> encoder = begin(scale);
    [encoder setBuffer:buffer offset:0 atIndex:0];
    [encoder setBytes:args length:sizeof args atIndex:1];
    [encoder setThreadgroupMemoryLength:32 atIndex:0];
    return encoder;
}

static void dispatch(id<MTLComputeCommandEncoder> encoder, NSUInteger threads) {
    [encoder dispatchThreadgroups:MTLSizeMake(1, 1, 1)
            threadsPerThreadgroup:MTLSizeMake(threads, 1, 1)];
}

static void double_commit(void) {
    id<MTLCommandBuffer> commands = [queue commandBuffer];
    [commands commit];
    [commands commit];
}

static void commit_with_an_open_encoder(void) {
    id<MTLCommandBuffer> commands = [queue commandBuffer];
    [commands computeCommandEncoder];
    [commands commit];
}

static void encoder_let_go_open(void) {
    @autoreleasepool {
        begin(scale);
    }
}

static void unbound_buffer(void) {
    char args[16] = {8};
    id<MTLComputeCommandEncoder> encoder = begin(scale);
    [encoder setBytes:args length:sizeof args atIndex:1];
    [encoder setThreadgroupMemoryLength:32 atIndex:0];
    dispatch(encoder, 8);
}

static void unbound_threadgroup_memory(void) {
    id<MTLComputeCommandEncoder> encoder = ready();
    [encoder setThreadgroupMemoryLength:0 atIndex:0];
    dispatch(encoder, 8);
}

static void bytes_too_long(void) {
    static char bytes[4097];
    [ready() setBytes:bytes length:sizeof bytes atIndex:1];
}

static void bytes_too_short(void) {
    char args[12] = {8};
    id<MTLComputeCommandEncoder> encoder = ready();
    [encoder setBytes:args length:sizeof args atIndex:1];
    dispatch(encoder, 8);
}

static void buffer_too_short(void) {
    id<MTLComputeCommandEncoder> encoder = ready();
    [encoder setBuffer:buffer offset:1016 atIndex:0];
    dispatch(encoder, 8);
}

static void offset_off_the_type(void) {
    id<MTLComputeCommandEncoder> encoder = ready();
    [encoder setBuffer:buffer offset:4 atIndex:0];
    dispatch(encoder, 8);
}

static void offset_off_the_constant_space(void) {
    id<MTLComputeCommandEncoder> encoder = begin(table);
    [encoder setBuffer:buffer offset:128 atIndex:0];
    [encoder setBuffer:buffer offset:0 atIndex:1];
    dispatch(encoder, 1);
}

static void index_31(void) { [ready() setBuffer:buffer offset:0 atIndex:31]; }

static void no_threadgroups(void) {
    [ready() dispatchThreadgroups:MTLSizeMake(0, 1, 1) threadsPerThreadgroup:MTLSizeMake(8, 1, 1)];
}

static void too_many_threads(void) { dispatch(ready(), 449); }

static void too_much_threadgroup_memory(void) {
    id<MTLComputeCommandEncoder> encoder = begin(large);
    [encoder setBuffer:buffer offset:0 atIndex:0];
    [encoder setThreadgroupMemoryLength:16384 atIndex:0];
    dispatch(encoder, 8);
}

static void odd_threadgroup_memory(void) { [ready() setThreadgroupMemoryLength:20 atIndex:0]; }

static void specialise(MTLFunctionConstantValues *values) {
    NSError *error = nil;
    [library newFunctionWithName:@"specialised" constantValues:values error:&error];
}

static void constant_unset(void) {
    specialise([[[MTLFunctionConstantValues alloc] init] autorelease]);
}

static void constant_unset_in_the_pipeline(void) { pipeline_of(@"specialised"); }

static void constant_of_the_wrong_type(void) {
    float value = 1;
    MTLFunctionConstantValues *values = [[[MTLFunctionConstantValues alloc] init] autorelease];
    [values setConstantValue:&value type:MTLDataTypeFloat atIndex:0];
    specialise(values);
}

static void buffer_of_another_device(void) {
    id<MTLBuffer> foreign = [other newBufferWithLength:1024 options:MTLResourceStorageModeShared];
    [ready() setBuffer:foreign offset:0 atIndex:0];
}

static void pipeline_of_another_device(void) {
    id<MTLComputeCommandEncoder> encoder =
        [[[other newCommandQueue] commandBuffer] computeCommandEncoder];
    [encoder setComputePipelineState:scale];
}

static void sixty_five_command_buffers(void) {
    for (int i = 0; i < 65; i++) [queue commandBuffer];
}

static void bytes_for_a_written_argument(void) {
    char bytes[64] = {0};
    id<MTLComputeCommandEncoder> encoder = ready();
    [encoder setBytes:bytes length:sizeof bytes atIndex:0];
    dispatch(encoder, 1);
}

static void use_after_end(void) {
    id<MTLComputeCommandEncoder> encoder = ready();
    [encoder endEncoding];
    dispatch(encoder, 8);
}

static void handler_after_commit(void) {
    id<MTLCommandBuffer> commands = [queue commandBuffer];
    [commands commit];
    [commands addCompletedHandler:^(id<MTLCommandBuffer> finished) {
        (void)finished;
    }];
}

static void released_in_flight(void) {
    @autoreleasepool {
        id<MTLBuffer> lent = [device newBufferWithLength:1024 options:MTLResourceStorageModeShared];
        id<MTLCommandBuffer> commands = [queue commandBufferWithUnretainedReferences];
        id<MTLBlitCommandEncoder> encoder = [commands blitCommandEncoder];
        [encoder fillBuffer:lent range:NSMakeRange(0, 64) value:1];
        [encoder endEncoding];
        [lent release];
        [commands commit];
    }
}

static void references_not_retained(void) {
    MTLCommandBufferDescriptor *descriptor =
        [[[MTLCommandBufferDescriptor alloc] init] autorelease];
    [descriptor setRetainedReferences:NO];
    [queue commandBufferWithDescriptor:descriptor];
}

/* Of macOS 15; older headers do not declare it. */
@protocol math_options
- (void)setMathMode:(NSInteger)mode;
- (void)setMathFloatingPointFunctions:(NSInteger)functions;
@end

/* Options that lack nothing. */
static MTLCompileOptions *careful_options(void) {
    MTLCompileOptions *options = [[[MTLCompileOptions alloc] init] autorelease];
    [options setLanguageVersion:MTLLanguageVersion2_4];
    [options setFastMathEnabled:NO];
    [(id<math_options>)options setMathMode:0];
    [(id<math_options>)options setMathFloatingPointFunctions:1];
    return options;
}

static void compile_with(MTLCompileOptions *options) {
    NSError *error = nil;
    [device newLibraryWithSource:@"" options:options error:&error];
}

static void fast_math_left_on(void) {
    MTLCompileOptions *options = careful_options();
    [options setFastMathEnabled:YES];
    compile_with(options);
}

static void math_mode_left_fast(void) {
    MTLCompileOptions *options = careful_options();
    [(id<math_options>)options setMathMode:2];
    compile_with(options);
}

static void math_functions_left_fast(void) {
    MTLCompileOptions *options = careful_options();
    [(id<math_options>)options setMathFloatingPointFunctions:0];
    compile_with(options);
}

static void math_mode_on_an_old_system(void) {
    metal_sim_set_macos(14);
    careful_options();
}

/* Of macOS 15 too. */
@protocol residency
- (id)newResidencySetWithDescriptor:(id)descriptor error:(NSError **)error;
- (void)addResidencySet:(id)set;
- (void)addAllocation:(id)allocation;
@end

static id<residency> new_set(void) {
    id descriptor = [[NSClassFromString(@"MTLResidencySetDescriptor") alloc] init];
    return [(id<residency>)device newResidencySetWithDescriptor:descriptor error:NULL];
}

static void residency_set_on_an_old_system(void) {
    metal_sim_set_macos(14);
    new_set();
}

static void residency_set_of_an_intel_mac(void) {
    metal_sim_set_apples(0);
    new_set();
}

static void thirty_three_residency_sets(void) {
    for (int i = 0; i < 33; i++) [(id<residency>)queue addResidencySet:new_set()];
}

static void residency_of_another_device(void) {
    [new_set() addAllocation:[other newBufferWithLength:16 options:MTLResourceStorageModeShared]];
}

static void buffer_in_no_committed_set(void) {
    id<residency> set = new_set();
    [(id<residency>)queue addResidencySet:set];
    [set addAllocation:buffer];
    metal_sim_require_residency(1);
    ready();
}

static void blit_of_odd_bytes(void) {
    id<MTLBlitCommandEncoder> encoder = [[queue commandBuffer] blitCommandEncoder];
    [encoder fillBuffer:buffer range:NSMakeRange(0, 3) value:0];
}

static void blit_past_the_end(void) {
    id<MTLBlitCommandEncoder> encoder = [[queue commandBuffer] blitCommandEncoder];
    [encoder copyFromBuffer:buffer sourceOffset:1020 toBuffer:buffer destinationOffset:0 size:8];
}

static void wrap_of_a_part_of_a_page(void) {
    static char memory[64];
    [device newBufferWithBytesNoCopy:memory
                              length:sizeof memory
                             options:MTLResourceStorageModeShared
                         deallocator:nil];
}

static void nothing_wrong(void) {
    id<MTLCommandBuffer> commands = [queue commandBuffer];
    id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
    char args[16] = {8};
    [encoder setComputePipelineState:scale];
    [encoder setBuffer:buffer offset:16 atIndex:0];
    [encoder setBytes:args length:sizeof args atIndex:1];
    [encoder setThreadgroupMemoryLength:32 atIndex:0];
    dispatch(encoder, 8);
    [encoder endEncoding];
    [commands commit];
}

#define CASE(name) {#name, name}
static const struct {
    const char *name;
    void (*body)(void);
} cases[] = {CASE(nothing_wrong),
             CASE(double_commit),
             CASE(commit_with_an_open_encoder),
             CASE(encoder_let_go_open),
             CASE(unbound_buffer),
             CASE(unbound_threadgroup_memory),
             CASE(bytes_too_long),
             CASE(bytes_too_short),
             CASE(buffer_too_short),
             CASE(offset_off_the_type),
             CASE(offset_off_the_constant_space),
             CASE(index_31),
             CASE(no_threadgroups),
             CASE(too_many_threads),
             CASE(too_much_threadgroup_memory),
             CASE(odd_threadgroup_memory),
             CASE(constant_unset),
             CASE(constant_unset_in_the_pipeline),
             CASE(constant_of_the_wrong_type),
             CASE(buffer_of_another_device),
             CASE(pipeline_of_another_device),
             CASE(sixty_five_command_buffers),
             CASE(bytes_for_a_written_argument),
             CASE(use_after_end),
             CASE(handler_after_commit),
             CASE(references_not_retained),
             CASE(released_in_flight),
             CASE(fast_math_left_on),
             CASE(math_mode_left_fast),
             CASE(math_functions_left_fast),
             CASE(math_mode_on_an_old_system),
             CASE(residency_set_on_an_old_system),
             CASE(residency_set_of_an_intel_mac),
             CASE(thirty_three_residency_sets),
             CASE(residency_of_another_device),
             CASE(buffer_in_no_committed_set),
             CASE(blit_of_odd_bytes),
             CASE(blit_past_the_end),
             CASE(wrap_of_a_part_of_a_page)};

/* Run one case in a child; the parent has no other thread, so that it can fork. */
static void in_a_child(const char *name, void (*body)(void)) {
    int ends[2], status = 0;
    char text[1024] = "";
    if (pipe(ends) != 0) exit(2);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        @autoreleasepool {
            body();
            metal_sim_live(NULL);
        }
        _exit(0);
    }
    close(ends[1]);
    size_t used = 0;
    for (ssize_t n;
         used < sizeof text - 1 && (n = read(ends[0], text + used, sizeof text - 1 - used)) > 0;)
        used += (size_t)n;
    close(ends[0]);
    waitpid(child, &status, 0);
    text[strcspn(text, "\n")] = '\0';
    printf("%s\t%d\t%s\n", name, WIFSIGNALED(status) ? WTERMSIG(status) : 0, text);
}

int main(void) {
    @autoreleasepool {
        NSError *error = nil;
        metal_sim_set_devices(2);
        metal_sim_set_max_threads(448);
        device = MTLCreateSystemDefaultDevice();
        other = [MTLCopyAllDevices() objectAtIndex:1];
        queue = [device newCommandQueue];
        library = [device newLibraryWithSource:[NSString stringWithUTF8String:source]
                                       options:careful_options()
                                         error:&error];
        if (library == nil) {
            fprintf(stderr, "%s\n", [[error localizedDescription] UTF8String]);
            return 1;
        }
        buffer = [device newBufferWithLength:1024 options:MTLResourceStorageModeShared];
        scale = pipeline_of(@"scale");
        table = pipeline_of(@"table");
        large = pipeline_of(@"large");
        for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++)
            in_a_child(cases[i].name, cases[i].body);
    }
    return 0;
}
