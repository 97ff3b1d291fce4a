/* Devices: as many as a test asks for, kept for the life of the process. */
#import <CoreGraphics/CoreGraphics.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <mach/vm_page_size.h>

#include "sim.h"

CGDirectDisplayID CGMainDisplayID(void) { return 1; }

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Guarded by lock. */
static SimDevice *devices[SIM_MAX_DEVICES];
static uint32_t widths[SIM_MAX_DEVICES];
static char given_name[64];
static uint32_t device_count = 1, default_device, max_threads, queues_made;
static NSMutableArray *kernel_names; /* in the order in which they were seen since the reset */
static uint64_t max_buffer_length;

#define DEFAULT_MAX_BUFFER_LENGTH ((uint64_t)8 << 30)

/* +1 */
static SimDevice *copy_device(uint32_t index) {
    pthread_mutex_lock(&lock);
    if (devices[index] == nil) devices[index] = [[SimDevice alloc] init];
    SimDevice *device = [devices[index] retain];
    pthread_mutex_unlock(&lock);
    return device;
}

id<MTLDevice> MTLCreateSystemDefaultDevice(void) {
    if (default_device >= device_count || sim_fails("MTLCreateSystemDefaultDevice", NULL))
        return nil;
    return copy_device(default_device);
}

NSArray *MTLCopyAllDevices(void) {
    NSMutableArray *all = [[NSMutableArray alloc] init];
    if (sim_fails("MTLCopyAllDevices", NULL)) return all;
    for (uint32_t i = 0; i < device_count; i++) {
        SimDevice *device = copy_device(i);
        [all addObject:device];
        [device release];
    }
    return all;
}

int64_t sim_device_references(void) {
    int64_t n = 0;
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < SIM_MAX_DEVICES; i++)
        n += devices[i] != nil ? (int64_t)[devices[i] retainCount] - 1 : 0;
    pthread_mutex_unlock(&lock);
    return n;
}

void sim_devices_reset(void) {
    device_count = 1;
    default_device = 0;
    max_threads = 0;
    given_name[0] = '\0';
    max_buffer_length = 0;
    queues_made = 0;
    [kernel_names removeAllObjects];
    memset(widths, 0, sizeof widths);
}

void metal_sim_set_devices(uint32_t count) {
    device_count = count < SIM_MAX_DEVICES ? count : SIM_MAX_DEVICES;
}

void metal_sim_set_default_device(uint32_t device) { default_device = device; }

void metal_sim_set_simd_width(uint32_t device, uint32_t width) {
    widths[device % SIM_MAX_DEVICES] = width;
}

void metal_sim_set_max_buffer_length(uint64_t length) { max_buffer_length = length; }

void metal_sim_set_max_threads(uint32_t threads) { max_threads = threads; }
void metal_sim_set_name(const char *name) { snprintf(given_name, sizeof given_name, "%s", name); }

uint32_t sim_max_threads_of(const char *kernel) {
    static const uint32_t turns[] = {1024, 448, 256};
    NSString *name = [NSString stringWithUTF8String:kernel];
    pthread_mutex_lock(&lock);
    if (kernel_names == nil) kernel_names = [[NSMutableArray alloc] init];
    if (![kernel_names containsObject:name]) [kernel_names addObject:name];
    NSUInteger turn = [kernel_names indexOfObject:name] + queues_made;
    uint32_t threads = max_threads != 0 ? max_threads : turns[turn % 3];
    pthread_mutex_unlock(&lock);
    return threads;
}

@implementation SimDevice
- (NSUInteger)place {
    NSUInteger i = 0;
    while (i + 1 < SIM_MAX_DEVICES && devices[i] != self) i++;
    return i;
}
- (NSString *)name {
    if (given_name[0] != '\0') return [NSString stringWithUTF8String:given_name];
    if (sim_is_virtual()) return @"Apple Paravirtual device";
    return [NSString stringWithFormat:@"Simulated Metal %lu", (unsigned long)[self place]];
}
- (uint64_t)registryID {
    return 0x100000000ull + [self place];
}
- (uint32_t)simdWidth {
    uint32_t width = widths[[self place]];
    return width != 0 ? width : MSL_SIMD_WIDTH;
}
- (BOOL)supportsFamily:(MTLGPUFamily)family {
    return sim_is_apples() && !sim_is_virtual() && family != MTLGPUFamilyMac2;
}
- (MTLSize)maxThreadsPerThreadgroup {
    return MTLSizeMake(1024, 1024, 1024);
}
- (BOOL)hasUnifiedMemory {
    return YES;
}
- (uint64_t)recommendedMaxWorkingSetSize {
    uint64_t bytes = sim_working_set();
    return bytes != 0 ? bytes : [self maxBufferLength] * 2;
}
- (NSUInteger)maxBufferLength {
    return max_buffer_length != 0 ? max_buffer_length : DEFAULT_MAX_BUFFER_LENGTH;
}
- (NSUInteger)maxThreadgroupMemoryLength {
    return sim_max_threadgroup_memory();
}
- (NSUInteger)currentAllocatedSize {
    return (NSUInteger)__atomic_load_n(&_allocated, __ATOMIC_RELAXED);
}
- (void)allocated:(NSInteger)bytes {
    __atomic_fetch_add(&_allocated, bytes, __ATOMIC_RELAXED);
}
- (id<MTLCommandQueue>)newCommandQueue {
    if (sim_fails("newCommandQueue", NULL)) return nil;
    pthread_mutex_lock(&lock);
    queues_made++;
    pthread_mutex_unlock(&lock);
    return [[SimQueue alloc] initWithDevice:self];
}
- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options {
    if (length == 0 || length > [self maxBufferLength])
        sim_misuse("buffer length", "%lu bytes, 1 to %lu are allowed", (unsigned long)length,
                   (unsigned long)[self maxBufferLength]);
    if (sim_fails("newBufferWithLength", NULL)) return nil;
    return [[SimBuffer alloc] initWithDevice:self length:length options:options];
}
- (void)checkMapped:(char *)memory length:(NSUInteger)length {
    NSUInteger page = (NSUInteger)sysconf(_SC_PAGESIZE);
    unsigned char resident;
    for (NSUInteger at = 0; at < length; at += page) {
        if (mincore(memory + at, 1, &resident) != 0)
            sim_misuse("wrapped memory not mapped", "byte %lu of %lu at %p", (unsigned long)at,
                       (unsigned long)length, (void *)memory);
    }
}
- (id<MTLBuffer>)newBufferWithBytesNoCopy:(void *)pointer
                                   length:(NSUInteger)length
                                  options:(MTLResourceOptions)options
                              deallocator:(void (^)(void *, NSUInteger))deallocator {
    NSUInteger page = (NSUInteger)vm_page_size;
    if ((uintptr_t)pointer % page != 0 || length % page != 0 || length == 0)
        sim_misuse("wrapped memory not whole pages", "%lu bytes at %p", (unsigned long)length,
                   pointer);
    [self checkMapped:pointer length:length];
    if (options != MTLResourceStorageModeShared || deallocator != nil)
        sim_misuse("wrapped memory", "storage %lu or a deallocator", (unsigned long)options);
    if (sim_fails("newBufferWithBytesNoCopy", NULL)) return nil;
    return [[SimBuffer alloc] initWithDevice:self wrapping:pointer length:length];
}
- (id<MTLLibrary>)libraryOf:(NSString *)source error:(NSError **)error {
    NSString *log = nil;
    source = sim_with_prelude(source);
    const msl_library *program = sim_compile(source, nil, nil, &log);
    if (program == NULL) {
        if (error != NULL) *error = sim_error(MTLLibraryErrorDomain, 3, log);
        return nil;
    }
    return [[SimLibrary alloc] initWithDevice:self source:source program:program];
}
- (id<MTLLibrary>)newLibraryWithSource:(NSString *)source
                               options:(MTLCompileOptions *)options
                                 error:(NSError **)error {
    [options simCheck];
    sim_take_compile_time();
    if (sim_fails("newLibraryWithSource", error)) return nil;
    return [self libraryOf:source error:error];
}
/* What stands for a metallib here: a file of source after a first line "simulated metallib". */
- (id<MTLLibrary>)newLibraryWithURL:(NSURL *)url error:(NSError **)error {
    NSString *mark = @"simulated metallib\n";
    NSString *text = [NSString stringWithContentsOfFile:[url path]
                                               encoding:NSUTF8StringEncoding
                                                  error:NULL];
    if (![text hasPrefix:mark]) {
        if (error != NULL) *error = sim_error(MTLLibraryErrorDomain, 1, @"not a metallib");
        return nil;
    }
    return [self libraryOf:[text substringFromIndex:[mark length]] error:error];
}
- (id<MTLComputePipelineState>)
    newComputePipelineStateWithDescriptor:(MTLComputePipelineDescriptor *)descriptor
                                  options:(MTLPipelineOption)options
                               reflection:(MTLAutoreleasedComputePipelineReflection *)reflection
                                    error:(NSError **)error {
    if ([descriptor computeFunction] == nil)
        sim_misuse("no function", "a pipeline descriptor without computeFunction");
    if ([[descriptor computeFunction] device] != (id<MTLDevice>)self)
        sim_misuse("object of another device", "a function");
    if (sim_fails("newComputePipelineStateWithDescriptor", error)) return nil;
    if (sim_refuses_kernel([[[descriptor computeFunction] name] UTF8String])) {
        if (error != NULL)
            *error = sim_error(@"AGXMetal", 3,
                               @"Encountered unlowered function call to "
                               @"air.simdgroup_matrix_8x8_multiply_accumulate");
        return nil;
    }
    SimPipeline *pipeline = [[SimPipeline alloc] initWithDevice:self descriptor:descriptor];
    if (reflection != NULL && (options & MTLPipelineOptionArgumentInfo))
        *reflection = sim_reflection(pipeline->_kernel);
    return pipeline;
}
@end
