/* Buffers: the runner's memory, with inaccessible pages around it, or what the caller wraps. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sim.h"

#define SPARSE_BYTES ((uint64_t)256 << 20)

@implementation SimBuffer
@synthesize length = _length;
+ (const char *)simName {
    return "MTLBuffer";
}
- (id)initWithDevice:(SimDevice *)device
              length:(NSUInteger)length
             options:(MTLResourceOptions)options {
    if (options != MTLResourceStorageModeShared && options != MTLResourceStorageModePrivate)
        sim_misuse("storage mode", "%lu", (unsigned long)options);
    self = [super initWithDevice:device];
    _length = length;
    _private = options == MTLResourceStorageModePrivate;
    NSString *reason = nil;
    const sim_runtime *runtime = sim_load_runtime(&reason);
    _memory = runtime != NULL ? runtime->alloc(length) : NULL;
    _fromRunner = _memory != NULL;
    /* The runner has a limited number of guarded places. */
    if (!_fromRunner &&
        posix_memalign((void **)&_memory, (size_t)sysconf(_SC_PAGESIZE), length) != 0) {
        _memory = NULL;
        [self release];
        return nil;
    }
    /* Apple documents zeros; the driver is not to rely on it. What lies between the ends of a large
     * buffer is left alone, so that it takes no memory. */
    NSUInteger end = length < 1 << 20 ? length : 1 << 20;
    memset(_memory, 0xa5, end);
    memset(_memory + length - end, 0xa5, end);
    [device allocated:(NSInteger)length];
    return self;
}
- (id)initWithDevice:(SimDevice *)device wrapping:(void *)memory length:(NSUInteger)length {
    self = [super initWithDevice:device];
    int wrap = sim_wrap();
    _memory = _host = memory;
    _length = wrap == METAL_SIM_WRAPS_EMPTY ? 0 : length;
    if (wrap == METAL_SIM_WRAPS_COPY || wrap == METAL_SIM_WRAPS_OTHER) {
        _memory = malloc(length);
        memcpy(_memory, memory, length);
    }
    if (wrap == METAL_SIM_WRAPS_OTHER) _host = _memory;
    _wrapped = memory;
    return self;
}
- (void)dealloc {
    NSString *reason = nil;
    if (_wrapped == NULL && _memory != NULL) [_device allocated:-(NSInteger)_length];
    if (_fromRunner)
        sim_load_runtime(&reason)->free(_memory);
    else if (_memory != _wrapped)
        free(_memory);
    [super dealloc];
}
- (void *)contents {
    return _private ? NULL : _wrapped != NULL ? _host : _memory;
}
@end

/* Zeros of a large range take no memory: the system drops its whole pages, which are anonymous. */
void sim_fill(char *to, uint8_t value, uint64_t length) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    char *first = to + (page - (uintptr_t)to % page) % page, *end = to + length;
    char *last = end - (uintptr_t)end % page;
    if (length < SPARSE_BYTES || value != 0 ||
        madvise(first, (size_t)(last - first), MADV_DONTNEED) != 0) {
        memset(to, value, length);
        return;
    }
    memset(to, 0, (size_t)(first - to));
    memset(last, 0, (size_t)(end - last));
}
