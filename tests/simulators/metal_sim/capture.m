/* Captures: the file gets a line for each debug group. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Guarded by lock. */
static NSMutableString *trace;
static NSURL *output;

void sim_trace(NSString *line) {
    pthread_mutex_lock(&lock);
    [trace appendFormat:@"%@\n", line];
    pthread_mutex_unlock(&lock);
}

@implementation MTLCaptureDescriptor
@synthesize captureObject = _captureObject, destination = _destination, outputURL = _outputURL;
+ (id)allocWithZone:(NSZone *)zone {
    sim_made("MTLCaptureDescriptor");
    return [super allocWithZone:zone];
}
- (void)dealloc {
    sim_gone("MTLCaptureDescriptor");
    [_captureObject release];
    [_outputURL release];
    [super dealloc];
}
@end

@implementation MTLCaptureManager
+ (MTLCaptureManager *)sharedCaptureManager {
    static MTLCaptureManager *shared;
    pthread_mutex_lock(&lock);
    if (shared == nil) shared = [[MTLCaptureManager alloc] init];
    pthread_mutex_unlock(&lock);
    return shared;
}
- (BOOL)supportsDestination:(MTLCaptureDestination)destination {
    const char *enabled = getenv("MTL_CAPTURE_ENABLED");
    if (enabled == NULL) enabled = getenv("METAL_CAPTURE_ENABLED");
    return destination == MTLCaptureDestinationGPUTraceDocument && enabled != NULL &&
           strcmp(enabled, "1") == 0;
}
- (BOOL)startCaptureWithDescriptor:(MTLCaptureDescriptor *)descriptor error:(NSError **)error {
    NSString *path = [[descriptor outputURL] path], *reason = nil;
    if (sim_fails("startCaptureWithDescriptor", error)) return NO;
    pthread_mutex_lock(&lock);
    if (trace != nil)
        reason = @"a capture is running";
    else if ([descriptor captureObject] == nil || path == nil)
        reason = @"nothing to capture, or nowhere to write it";
    else if ([[NSFileManager defaultManager] fileExistsAtPath:path])
        reason = [NSString stringWithFormat:@"%@ exists", path];
    if (reason == nil) {
        trace = [[NSMutableString alloc] init];
        output = [[descriptor outputURL] retain];
    } else if (error != NULL) {
        *error = sim_error(MTLCaptureErrorDomain, 1, reason);
    }
    pthread_mutex_unlock(&lock);
    return reason == nil;
}
- (void)stopCapture {
    pthread_mutex_lock(&lock);
    if (trace == nil) sim_misuse("no capture", "stopCapture");
    [trace writeToFile:[output path] atomically:NO encoding:NSUTF8StringEncoding error:NULL];
    [trace release];
    [output release];
    trace = nil;
    output = nil;
    pthread_mutex_unlock(&lock);
}
- (BOOL)isCapturing {
    pthread_mutex_lock(&lock);
    BOOL capturing = trace != nil;
    pthread_mutex_unlock(&lock);
    return capturing;
}
@end
