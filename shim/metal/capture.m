/* Captures of the driver "metal", for Xcode. */
#include "metal.h"

/* The name in Apple's documentation, and the one that Xcode sets. */
#define ENABLED "MTL_CAPTURE_ENABLED=1 (on some systems METAL_CAPTURE_ENABLED=1)"

oxb_status metal_capture_start(void *device, const char *path) {
    metal_device *self = device;
    return metal_guarded(OXB_ENCODING_FAILED, ^oxb_status {
        MTLCaptureManager *manager = [MTLCaptureManager sharedCaptureManager]; /* +0 */
        if (![manager supportsDestination:MTLCaptureDestinationGPUTraceDocument])
            return metal_fail(OXB_ENCODING_FAILED,
                              "Metal does not write %s: start the process with " ENABLED
                              " in its environment",
                              path);
        MTLCaptureDescriptor *descriptor = [[[MTLCaptureDescriptor alloc] init] autorelease];
        [descriptor setCaptureObject:self->device];
        [descriptor setDestination:MTLCaptureDestinationGPUTraceDocument];
        [descriptor setOutputURL:[NSURL fileURLWithPath:metal_string(path)]];
        NSError *error = nil;
        if (![manager startCaptureWithDescriptor:descriptor error:&error])
            return metal_fail(OXB_ENCODING_FAILED,
                              "cannot capture to %s: %s; the process needs " ENABLED
                              " in its environment",
                              path, metal_utf8(metal_why(error)));
        return OXB_OK;
    });
}

oxb_status metal_capture_stop(void *device) {
    (void)device;
    return metal_guarded(OXB_ENCODING_FAILED, ^oxb_status {
        MTLCaptureManager *manager = [MTLCaptureManager sharedCaptureManager]; /* +0 */
        if (![manager isCapturing]) return metal_fail(OXB_ENCODING_FAILED, "no capture is running");
        [manager stopCapture];
        return OXB_OK;
    });
}
