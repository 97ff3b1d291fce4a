/* Buffers: the runner's memory, with inaccessible pages around it, or what the caller wraps. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sim.h"

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
    /* Apple documents zeros; the driver is not to rely on it. */
    memset(_memory, 0xa5, length < 1 << 20 ? length : 1 << 20);
    [device allocated:(NSInteger)length];
    return self;
}
- (id)initWithDevice:(SimDevice *)device wrapping:(void *)memory length:(NSUInteger)length {
    self = [super initWithDevice:device];
    _memory = memory;
    _length = length;
    _wrapped = YES;
    return self;
}
- (void)dealloc {
    NSString *reason = nil;
    if (!_wrapped && _memory != NULL) [_device allocated:-(NSInteger)_length];
    if (_fromRunner)
        sim_load_runtime(&reason)->free(_memory);
    else if (!_wrapped)
        free(_memory);
    [super dealloc];
}
- (void *)contents {
    return _private ? NULL : _memory;
}
@end
