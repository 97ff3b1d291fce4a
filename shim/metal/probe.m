/* The probe: what a device must do before the driver "metal" admits it. */
#include <stdlib.h>

#include "metal.h"

#define WIDTH   METAL_SIMD_WIDTH
#define PLACES  256u  /* floats of a part's results, at the most */
#define THREADS 256u  /* of a threadgroup */
#define FLOATS  7424u /* of threadgroup memory */

/* What the kernels are built on, each part a kernel of its own, so that a refusal names what the
 * device lacks. Results are whole numbers, which are exact in any order of addition. */

#define MSL(...) #__VA_ARGS__

/* shaders/simd.h and others */
static const char lanes_source[] = MSL(kernel void oxb_probe_lanes(
    device float *out [[buffer(0)]], uint lane [[thread_index_in_simdgroup]]) {
    float value = float(lane + 1u);
    out[lane] = simd_sum(value);
    out[32u + lane] = simd_max(value);
    out[64u + lane] = simd_shuffle_xor(value, ushort(5));
    out[96u + lane] = simd_shuffle_up(value, ushort(3));
    out[128u + lane] = simd_shuffle(value, ushort(lane * 5u & 31u));
});

/* Products of 8x8 matrices: in float through threadgroup memory, the second transposed, in float
 * and in half, as in shaders/gemm.h; and in half with elements in the lanes that shaders/matrix.h
 * expects, an order that Apple documents nowhere. */
static const char products_source[] = MSL(kernel void oxb_probe_products(
    device float *out [[buffer(0)]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float a[64];
    threadgroup float b[64];
    threadgroup float c[64];
    threadgroup half d[64];
    for (uint i = lane; i < 64u; i += 32u) {
        a[i] = float(i % 7u) - 3.0f;
        b[i] = float(i % 5u) - 2.0f;
        d[i] = half(b[i]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_float8x8 first;
    simdgroup_float8x8 second;
    simdgroup_float8x8 sums = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
    simdgroup_load(first, a, 8);
    simdgroup_load(second, b, 8, ulong2(0ul, 0ul), true);
    simdgroup_multiply_accumulate(sums, first, second, sums);
    simdgroup_store(sums, c, 8);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = lane; i < 64u; i += 32u) out[i] = c[i];
    simdgroup_half8x8 third;
    sums = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
    simdgroup_load(third, d, 8, ulong2(0ul, 0ul), true);
    simdgroup_multiply_accumulate(sums, first, third, sums);
    simdgroup_store(sums, out + 128, 8);
    uint at = 8u * ((lane >> 2u & 4u) + (lane >> 1u & 3u)) + 2u * ((lane >> 2u & 2u) + (lane & 1u));
    simdgroup_half8x8 rows;
    simdgroup_half8x8 columns;
    rows.thread_elements()[0] = half(a[at]);
    rows.thread_elements()[1] = half(a[at + 1u]);
    columns.thread_elements()[0] = half(b[at]);
    columns.thread_elements()[1] = half(b[at + 1u]);
    sums = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
    simdgroup_multiply_accumulate(sums, rows, columns, sums);
    out[64u + at] = sums.thread_elements()[0];
    out[65u + at] = sums.thread_elements()[1];
});

/* Every thread reads what others wrote before the barrier. */
static const char threads_source[] = MSL(kernel void oxb_probe_threads(
    device float *out [[buffer(0)]], uint thread_index [[thread_index_in_threadgroup]]) {
    threadgroup float memory[7424];
    for (uint i = thread_index; i < 7424u; i += 256u) memory[i] = float(i);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float sum = 0.0f;
    for (uint i = 255u - thread_index; i < 7424u; i += 256u) sum += memory[i];
    out[thread_index] = sum;
});

static NSString *wrong(const char *what, const char *place, uint32_t i, float got, float expected) {
    return metal_text("%s gave %g in %s %u, not %g", what, (double)got, place, i, (double)expected);
}

/* nil, or the first wrong result, +0. */
static NSString *check_lanes(const float *out) {
    for (uint32_t i = 0; i < WIDTH; i++) {
        float own = (float)(i + 1), sum = (float)(WIDTH * (WIDTH + 1) / 2);
        if (out[i] != sum) return wrong("simd_sum", "lane", i, out[i], sum);
        if (out[32 + i] != (float)WIDTH)
            return wrong("simd_max", "lane", i, out[32 + i], (float)WIDTH);
        if (out[64 + i] != (float)((i ^ 5) + 1))
            return wrong("simd_shuffle_xor", "lane", i, out[64 + i], (float)((i ^ 5) + 1));
        if (i >= 3 && out[96 + i] != own - 3)
            return wrong("simd_shuffle_up", "lane", i, out[96 + i], own - 3);
        if (out[128 + i] != (float)(i * 5 % WIDTH + 1))
            return wrong("simd_shuffle", "lane", i, out[128 + i], (float)(i * 5 % WIDTH + 1));
    }
    return nil;
}

static NSString *check_products(const float *out) {
    for (uint32_t i = 0; i < 64; i++) {
        float transposed = 1, plain = 1;
        for (uint32_t k = 0; k < 8; k++) {
            float a = (float)((i / 8 * 8 + k) % 7) - 3;
            transposed += a * ((float)((i % 8 * 8 + k) % 5) - 2);
            plain += a * ((float)((8 * k + i % 8) % 5) - 2);
        }
        if (out[i] != transposed)
            return wrong("the product of float matrices", "element", i, out[i], transposed);
        if (out[128 + i] != transposed)
            return wrong("the product of float and half matrices", "element", i, out[128 + i],
                         transposed);
        if (out[64 + i] != plain)
            return wrong("the product of half matrices", "element", i, out[64 + i], plain);
    }
    return nil;
}

static NSString *check_threads(const float *out) {
    const uint32_t own = FLOATS / THREADS; /* floats that each thread adds up */
    for (uint32_t i = 0; i < THREADS; i++) {
        float sum = (float)((THREADS - 1 - i) * own + THREADS * (own * (own - 1) / 2));
        if (out[i] != sum) return wrong("a sum behind a barrier", "thread", i, out[i], sum);
    }
    return nil;
}

static const struct part {
    const char *feature;
    const char *kernel;
    const char *source;
    uint32_t threads;
    NSString *(*check)(const float *out);
} parts[] = {
    {"SIMD-group functions", "oxb_probe_lanes", lanes_source, WIDTH, check_lanes},
    {"threadgroups of 256 threads with 29696 bytes", "oxb_probe_threads", threads_source, THREADS,
     check_threads},
    {"SIMD-group matrices", "oxb_probe_products", products_source, WIDTH, check_products},
};
#define PARTS (sizeof parts / sizeof parts[0])

/* A statement a line, for the compiler's log. */
static NSString *source_of(NSString *kernels) {
    return metal_text("#include <metal_stdlib>\nusing namespace metal;\n%@",
                      [kernels stringByReplacingOccurrencesOfString:@"; " withString:@";\n"]);
}

/* +1, or nil with the reason, +0: the library of all parts. Where that does not compile, each part
 * is compiled alone, to find the one that is to blame. */
static id<MTLLibrary> new_library(metal_device *self, NSString **reason) {
    NSMutableString *all = [NSMutableString string]; /* +0 */
    for (unsigned i = 0; i < PARTS; i++) [all appendFormat:@"%s\n", parts[i].source];
    NSString *why = nil, *blamed = nil;
    id<MTLLibrary> library = metal_compile(self->device, source_of(all), &why); /* +1 */
    for (unsigned i = 0; library == nil && blamed == nil && i < PARTS; i++) {
        NSString *source = source_of(metal_string(parts[i].source)), *log = nil;
        [metal_compile(self->device, source, &log) release];
        if (log != nil) blamed = metal_text("it has no %s: %@", parts[i].feature, log);
    }
    if (library == nil)
        *reason = blamed != nil ? blamed : metal_text("it cannot compile kernels: %@", why);
    return library;
}

/* The pipeline of a part, owned by the caller, or NULL with the reason, +0. */
static metal_pipeline *make_part(metal_device *self, id<MTLLibrary> library,
                                 const struct part *part, NSString **reason) {
    NSString *why = nil, *name = metal_string(part->kernel);
    id<MTLFunction> function = [metal_new_function(library, name, NULL, 0, &why) autorelease];
    oxb_pipeline_info info;
    metal_pipeline *made =
        function != nil ? metal_make_pipeline(self->device, function, name, &info, &why) : NULL;
    if (made == NULL) {
        *reason = metal_text("it has no %s: %@", part->feature, why);
        return NULL;
    }
    if (info.simd_width != WIDTH)
        *reason = metal_text("its SIMD-groups have %u threads in %@ and the kernels need %u; use "
                             "the cpu device",
                             info.simd_width, name, WIDTH);
    else if (info.max_threads < part->threads)
        *reason = metal_text("it runs %@ with at most %u threads and the kernels need %u", name,
                             info.max_threads, part->threads);
    if (*reason == nil) return made;
    metal_pipeline_free(self, made);
    return NULL;
}

/* Run the parts and check their results; nil, or what is wrong, +0. */
static NSString *run_parts(metal_device *self, metal_pipeline *const *pipelines) {
    const NSUInteger stride = PLACES * sizeof(float);
    id<MTLBuffer> results =
        [[self->device newBufferWithLength:PARTS * stride
                                   options:MTLResourceStorageModeShared] autorelease];
    if (results == nil) return @"Metal gave no buffer";
    NSString *reason =
        metal_run(self, @"oxibonsai probe", METAL_PROBE_SECONDS, METAL_ANY_ERROR,
                  ^NSString *(id<MTLCommandBuffer> commands) {
                      id<MTLComputeCommandEncoder> encoder =
                          [commands computeCommandEncoder]; /* +0 */
                      if (encoder == nil) return @"Metal gave no encoder";
                      [encoder setLabel:@"probe"];
                      for (unsigned i = 0; i < PARTS; i++) {
                          [encoder setComputePipelineState:pipelines[i]->state];
                          [encoder setBuffer:results offset:i * stride atIndex:0];
                          [encoder dispatchThreadgroups:MTLSizeMake(1, 1, 1)
                                  threadsPerThreadgroup:MTLSizeMake(parts[i].threads, 1, 1)];
                      }
                      [encoder endEncoding];
                      return nil;
                  });
    if (reason != nil) return metal_text("it does not run kernels: %@", reason);
    for (unsigned i = 0; i < PARTS; i++) {
        reason = parts[i].check((const float *)[results contents] + i * PLACES);
        if (reason != nil) return metal_text("its %s do not work: %@", parts[i].feature, reason);
    }
    return nil;
}

static NSString *probe(metal_device *self) {
    if (self->max_threadgroup_memory < FLOATS * sizeof(float))
        return metal_text("its threadgroups have %" PRIu64 " bytes of memory and the kernels need "
                          "%lu",
                          self->max_threadgroup_memory, (unsigned long)(FLOATS * sizeof(float)));
    NSString *reason = nil;
    metal_pipeline *pipelines[PARTS] = {NULL};
    @try {
        id<MTLLibrary> library = [new_library(self, &reason) autorelease];
        for (unsigned i = 0; reason == nil && i < PARTS; i++)
            pipelines[i] = make_part(self, library, parts + i, &reason);
        if (reason == nil) reason = run_parts(self, pipelines);
    } @catch (NSException *exception) {
        reason = metal_text("Metal raised %@: %@", [exception name], [exception reason]);
    } @finally {
        for (unsigned i = 0; i < PARTS; i++) {
            if (pipelines[i] != NULL) metal_pipeline_free(self, pipelines[i]);
        }
    }
    return reason;
}

/* Threads that open a device while it is probed wait for the answer, and do not compile again. */
typedef struct trial {
    struct trial *next;
    uint64_t device; /* its registryID */
    unsigned threads;
    bool done;
    NSString *reason; /* +1, or nil */
} trial;

static pthread_mutex_t trial_lock = PTHREAD_MUTEX_INITIALIZER; /* guards the list and its trials */
static pthread_cond_t trial_change = PTHREAD_COND_INITIALIZER;
static trial *trials;

NSString *metal_probe(metal_device *self) {
    uint64_t device = [self->device registryID];
    pthread_mutex_lock(&trial_lock);
    trial *t = trials;
    while (t != NULL && (t->device != device || t->done)) t = t->next;
    bool first = t == NULL;
    if (first) {
        t = calloc(1, sizeof *t);
        if (t == NULL) {
            pthread_mutex_unlock(&trial_lock);
            return @"out of memory";
        }
        *t = (trial){.next = trials, .device = device};
        trials = t;
    }
    t->threads++;
    if (first) {
        pthread_mutex_unlock(&trial_lock);
        NSString *reason = [probe(self) retain]; /* +1, the trial's; raises nothing */
        pthread_mutex_lock(&trial_lock);
        t->reason = reason;
        t->done = true;
        pthread_cond_broadcast(&trial_change);
    }
    while (!t->done) pthread_cond_wait(&trial_change, &trial_lock);
    NSString *reason = [[t->reason retain] autorelease];
    if (--t->threads == 0) {
        trial **at = &trials;
        while (*at != t) at = &(*at)->next;
        *at = t->next;
        [t->reason release];
        free(t);
    }
    pthread_mutex_unlock(&trial_lock);
    return reason;
}
