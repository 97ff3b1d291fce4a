/* The probe: what a device must do before the driver "metal" admits it. */
#include "metal.h"

#define PROBE_SECONDS 30.0

static const char probe_source[] = "#include <metal_stdlib>\n"
                                   "using namespace metal;\n"
                                   "kernel void oxb_probe(device uint *sums [[buffer(0)]], uint "
                                   "lane [[thread_index_in_simdgroup]])\n"
                                   "{\n"
                                   "    uint sum = simd_sum(lane + 1u);\n"
                                   "    sums[lane] = sum;\n"
                                   "}\n";

/* Run `pipeline`, the probe; nil, or what is wrong, +0. */
static NSString *run_probe(metal_device *self, metal_pipeline *pipeline) {
    id<MTLBuffer> sums =
        [[self->device newBufferWithLength:METAL_SIMD_WIDTH * sizeof(uint32_t)
                                   options:MTLResourceStorageModeShared] autorelease];
    if (sums == nil) return @"Metal gave no buffer";
    NSString *reason = metal_run(
        self, @"oxibonsai probe", PROBE_SECONDS, ^NSString *(id<MTLCommandBuffer> commands) {
            id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder]; /* +0 */
            if (encoder == nil) return @"Metal gave no encoder";
            [encoder setLabel:@"probe"];
            [encoder setComputePipelineState:pipeline->state];
            [encoder setBuffer:sums offset:0 atIndex:0];
            [encoder dispatchThreadgroups:MTLSizeMake(1, 1, 1)
                    threadsPerThreadgroup:MTLSizeMake(METAL_SIMD_WIDTH, 1, 1)];
            [encoder endEncoding];
            return nil;
        });
    const uint32_t *values = [sums contents],
                   expected = METAL_SIMD_WIDTH * (METAL_SIMD_WIDTH + 1) / 2;
    for (uint32_t i = 0; reason == nil && i < METAL_SIMD_WIDTH; i++) {
        if (values[i] != expected)
            reason = metal_text("simd_sum gave %u in lane %u, not %u", values[i], i, expected);
    }
    return reason;
}

/* Compile and run a small kernel. Virtual machines under-report the GPU family, so a device is
 * admitted by running the kernel and not by its family. nil, or why it is refused, +0. */
NSString *metal_probe(metal_device *self) {
    NSString *reason = nil, *name = @"oxb_probe";
    id<MTLLibrary> library =
        [metal_compile(self->device, metal_string(probe_source), &reason) autorelease];
    id<MTLFunction> function =
        library != nil ? metal_new_function(library, name, NULL, 0, &reason) : nil; /* +1 */
    [function autorelease];
    oxb_pipeline_info info;
    metal_pipeline *pipeline =
        function != nil ? metal_make_pipeline(self->device, function, name, &info, &reason) : NULL;
    if (pipeline == NULL) return metal_text("it cannot compile a kernel: %@", reason);
    if (info.simd_width != METAL_SIMD_WIDTH)
        reason = metal_text(
            "its SIMD-groups have %u threads and the kernels need %u; use the cpu device",
            info.simd_width, METAL_SIMD_WIDTH);
    @try {
        if (reason == nil) reason = run_probe(self, pipeline);
    } @finally {
        metal_pipeline_free(self, pipeline);
    }
    return reason;
}
