/* Libraries and pipelines of the driver "metal". */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* dladdr */
#endif

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/msl_sources.h"
#include "metal.h"

/* Libraries */

/* Of MTLCompileOptions from macOS 15 on, where setFastMathEnabled: is deprecated; older SDKs
 * declare neither the properties nor the values, which are those of Apple's MTLLibrary.h. */
@protocol metal_math_options
- (void)setMathMode:(NSInteger)mode;
- (void)setMathFloatingPointFunctions:(NSInteger)functions;
@end
#define MATH_MODE_SAFE         0
#define MATH_FUNCTIONS_PRECISE 1

/* IEEE arithmetic: kernels depend on infinities, NaN and the order of additions. The defaults are
 * the opposite. */
static void be_careful(MTLCompileOptions *options) {
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wdeprecated-declarations"
    [options setFastMathEnabled:NO];
#pragma clang diagnostic pop
    id<metal_math_options> newer = (id<metal_math_options>)options;
    if ([options respondsToSelector:@selector(setMathMode:)]) [newer setMathMode:MATH_MODE_SAFE];
    if ([options respondsToSelector:@selector(setMathFloatingPointFunctions:)])
        [newer setMathFloatingPointFunctions:MATH_FUNCTIONS_PRECISE];
}

/* +1, or nil with the reason, +0. Never raises: other threads may be waiting for the result. */
id<MTLLibrary> metal_compile(id<MTLDevice> device, NSString *source, NSString **reason) {
    id<MTLLibrary> library = nil;
    @try {
        NSError *error = nil;
        MTLCompileOptions *options = [[[MTLCompileOptions alloc] init] autorelease];
        [options setLanguageVersion:MTLLanguageVersion2_4];
        be_careful(options);
        library = [device newLibraryWithSource:source options:options error:&error]; /* +1 */
        if (library == nil) *reason = metal_why(error); /* with a library, an error is a warning */
    } @catch (NSException *exception) {
        *reason = metal_text("Metal raised %@: %@", [exception name], [exception reason]);
    }
    return library;
}

/* The library of a family of shipped kernels: the device's own reference, or nil with the reason.
 * The first caller compiles it; callers that come meanwhile wait. */
static id<MTLLibrary> family_library(metal_device *self, unsigned index, NSString **reason) {
    metal_family *family = self->families + index;
    pthread_mutex_lock(&self->library_lock);
    while (family->compiling) pthread_cond_wait(&self->library_change, &self->library_lock);
    id<MTLLibrary> library = family->library;
    family->compiling = library == nil;
    pthread_mutex_unlock(&self->library_lock);
    if (library != nil) return library;
    const struct msl_family *from = gpu_msl_families + index;
    NSString *source = [[[NSString alloc] initWithBytes:from->source
                                                 length:from->length
                                               encoding:NSUTF8StringEncoding] autorelease];
    library = metal_compile(self->device, source, reason); /* +1, the device's */
    pthread_mutex_lock(&self->library_lock);
    family->library = library;
    family->compiling = false;
    pthread_cond_broadcast(&self->library_change);
    pthread_mutex_unlock(&self->library_lock);
    [library setLabel:metal_string(from->name)];
    return library;
}

/* "oxibonsai.metallib" beside the library that holds this code, +0, or nil. */
static NSString *metallib_beside(void) {
    Dl_info where;
    if (dladdr(&metal_host, &where) == 0 || where.dli_fname == NULL) return nil;
    NSString *folder = [metal_string(where.dli_fname) stringByDeletingLastPathComponent]; /* +0 */
    return [folder stringByAppendingPathComponent:@"oxibonsai.metallib"];
}

/* The sources are the default: an offline compiler is one more that can be wrong, and nothing says
 * that a file was made from these sources. */
oxb_status metal_load_metallib(metal_device *self) {
    const char *asked = getenv("OXIBONSAI_METALLIB");
    if (asked == NULL || *asked == '\0' || strcmp(asked, "0") == 0) return OXB_OK;
    NSString *path = strcmp(asked, "1") == 0 ? metallib_beside() : metal_string(asked);
    NSString *reason = nil;
    NSError *error = nil;
    if (path == nil)
        reason = @"the folder of the driver is not known";
    else if (access([path fileSystemRepresentation], R_OK) != 0)
        reason = metal_string(strerror(errno));
    else
        self->metallib = [self->device newLibraryWithURL:[NSURL fileURLWithPath:path]
                                                   error:&error]; /* +1 */
    if (self->metallib != nil) return OXB_OK;
    if (reason == nil) reason = metal_why(error);
    return metal_fail(OXB_COMPILATION_FAILED,
                      "the environment variable OXIBONSAI_METALLIB is '%s', and %s cannot be used: "
                      "%s; build the package with OXIBONSAI_BUILD_METALLIB=1, or unset the "
                      "variable to compile the kernels from their sources",
                      asked, path != nil ? metal_utf8(path) : "oxibonsai.metallib",
                      metal_utf8(reason));
}

oxb_status metal_library_new(void *device, const char *source, size_t length, void **library) {
    metal_device *self = device;
    return metal_guarded(OXB_COMPILATION_FAILED, ^oxb_status {
        NSString *reason = nil;
        NSString *text = [[[NSString alloc] initWithBytes:source
                                                   length:length
                                                 encoding:NSUTF8StringEncoding] autorelease];
        if (text == nil)
            return metal_fail(OXB_COMPILATION_FAILED, "the source of %zu bytes is not UTF-8",
                              length);
        id<MTLLibrary> made = metal_compile(self->device, text, &reason); /* +1, the handle's */
        if (made == nil) return metal_fail(OXB_COMPILATION_FAILED, "%s", metal_utf8(reason));
        *library = (void *)made;
        return OXB_OK;
    });
}

/* Pipelines */

/* Set one function constant as the kernel declares it; nil, or the reason, +0. */
static NSString *set_constant(MTLFunctionConstantValues *values, MTLFunctionConstant *declared,
                              const oxb_constant *given) {
    NSUInteger index = [declared index];
    MTLDataType type = [declared type];
    oxb_constant_value value = given->value;
    bool flag = value.u32 != 0, same = false;
    const char *wanted = "of a type that cannot be set";
    if (type == MTLDataTypeBool) {
        wanted = "bool";
        same = given->type == OXB_CONSTANT_BOOL;
    } else if (type == MTLDataTypeFloat) {
        wanted = "float";
        same = given->type == OXB_CONSTANT_F32;
    } else if (type == MTLDataTypeUInt || type == MTLDataTypeInt) { /* either, below 2^31 */
        bool is_signed = given->type == OXB_CONSTANT_I32;
        wanted = type == MTLDataTypeInt ? "int" : "uint";
        same = (is_signed || given->type == OXB_CONSTANT_U32) &&
               (is_signed == (type == MTLDataTypeInt) || value.i32 >= 0);
    }
    if (!same) {
        static const char *const names[] = {"a bool", "an integer", "an integer", "a float"};
        return metal_text("function constant %lu (%@) is %s, and %s was given that does not fit",
                          (unsigned long)index, [declared name], wanted,
                          names[given->type < 4 ? given->type : 1]);
    }
    [values setConstantValue:type == MTLDataTypeBool ? (void *)&flag : &value
                        type:type
                     atIndex:index];
    return nil;
}

static const oxb_constant *constant_at(const oxb_constant *constants, uint32_t n,
                                       NSUInteger index) {
    for (uint32_t i = 0; i < n; i++) {
        if (constants[i].index == index) return constants + i;
    }
    return NULL;
}

/* +1, or nil with the reason, +0. */
id<MTLFunction> metal_new_function(id<MTLLibrary> library, NSString *name,
                                   const oxb_constant *constants, uint32_t n, NSString **reason) {
    id<MTLFunction> general = [[library newFunctionWithName:name] autorelease]; /* +0 */
    if (general == nil || [general functionType] != MTLFunctionTypeKernel) {
        NSString *known = [[library functionNames] componentsJoinedByString:@", "]; /* +0 */
        *reason = metal_text("no kernel of that name: the library has %@", known);
        return nil;
    }
    NSArray *declared = [[general functionConstantsDictionary] allValues]; /* +0 */
    MTLFunctionConstantValues *values = [[[MTLFunctionConstantValues alloc] init] autorelease];
    uint32_t used = 0;
    for (MTLFunctionConstant *constant in declared) {
        const oxb_constant *given = constant_at(constants, n, [constant index]);
        if (given == NULL && [constant required])
            *reason = metal_text("function constant %lu (%@) needs a value",
                                 (unsigned long)[constant index], [constant name]);
        else if (given != NULL)
            *reason = set_constant(values, constant, given);
        if (*reason != nil) return nil;
        used += given != NULL;
    }
    for (uint32_t i = 0; used < n && i < n; i++) {
        bool known = false;
        for (MTLFunctionConstant *constant in declared)
            known |= [constant index] == constants[i].index;
        if (!known) {
            *reason = metal_text("the kernel has no function constant %u", constants[i].index);
            return nil;
        }
    }
    if ([declared count] == 0) return [general retain]; /* +1: there is nothing to specialise */
    NSError *error = nil;
    id<MTLFunction> made = [library newFunctionWithName:name
                                         constantValues:values
                                                  error:&error]; /* +1 */
    if (made == nil) *reason = metal_why(error);
    return made;
}

/* MTLArgument, and what belongs to it, is deprecated from macOS 13 on for MTLBinding, which macOS
 * 12 lacks; both give the same. */
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wdeprecated-declarations"

/* List what the kernel takes; nil, or the reason why it cannot be given that, +0. Metal says of a
 * buffer's type how long one value of it is, and not whether there is one (a reference) or an array
 * of them (a pointer), so that an argument struct may be longer than it. */
static NSString *list_arguments(oxb_pipeline_info *info, NSArray *arguments) {
    for (MTLArgument *argument in arguments) {
        oxb_argument *to = info->arguments + info->n_arguments;
        if (info->n_arguments == OXB_MAX_ARGUMENTS)
            return metal_text("it takes more than %u arguments", OXB_MAX_ARGUMENTS);
        uint32_t index = (uint32_t)[argument index];
        if ([argument type] == MTLArgumentTypeBuffer) {
            *to = (oxb_argument){.kind = OXB_ARGUMENT_BUFFER,
                                 .index = index,
                                 .access = [argument access] == MTLArgumentAccessReadOnly
                                               ? OXB_ACCESS_READ
                                               : OXB_ACCESS_WRITE,
                                 .optional = ![argument isActive]};
            if (!to->optional) { /* of what is not used Metal says no size */
                to->size = (uint32_t)[argument bufferDataSize];
                to->alignment = (uint32_t)[argument bufferAlignment];
            }
        } else if ([argument type] == MTLArgumentTypeThreadgroupMemory && index == 0) {
            *to =
                (oxb_argument){.kind = OXB_ARGUMENT_THREADGROUP, .optional = ![argument isActive]};
        } else if ([argument isActive]) {
            return metal_text(
                "the argument %@ cannot be given: a kernel takes buffers and threadgroup(0)",
                [argument name]);
        } else {
            continue;
        }
        info->n_arguments++;
    }
    return nil;
}

/* Owned by the caller, or NULL with the reason, +0. */
metal_pipeline *metal_make_pipeline(id<MTLDevice> device, id<MTLFunction> function, NSString *name,
                                    oxb_pipeline_info *info, NSString **reason) {
    NSError *error = nil;
    MTLComputePipelineReflection *reflection = nil; /* +0 */
    MTLComputePipelineDescriptor *descriptor =
        [[[MTLComputePipelineDescriptor alloc] init] autorelease];
    [descriptor setLabel:name];
    [descriptor setComputeFunction:function];
    id<MTLComputePipelineState> state =
        [[device newComputePipelineStateWithDescriptor:descriptor
                                               options:MTLPipelineOptionArgumentInfo
                                            reflection:&reflection
                                                 error:&error] autorelease];
    if (state == nil) {
        *reason = metal_why(error);
        return NULL;
    }
    *info = (oxb_pipeline_info){.max_threads = (uint32_t)[state maxTotalThreadsPerThreadgroup],
                                .simd_width = (uint32_t)[state threadExecutionWidth],
                                .static_threadgroup_memory = [state staticThreadgroupMemoryLength]};
    *reason = list_arguments(info, [reflection arguments]);
    if (*reason != nil) return NULL;
    metal_pipeline *pipeline = calloc(1, sizeof *pipeline);
    if (pipeline == NULL) {
        *reason = @"out of memory";
        return NULL;
    }
    pipeline->state = [state retain]; /* +1 */
    pipeline->name = [name copy];     /* +1 */
    return pipeline;
}

#pragma clang diagnostic pop

void metal_pipeline_free(void *device, void *pipeline) {
    (void)device;
    metal_pipeline *self = pipeline;
    metal_guarded(OXB_EXECUTION_FAILED, ^oxb_status {
        [self->state release];
        [self->name release];
        return OXB_OK;
    });
    free(self);
}

/* +1: a kernel that ships, or nil with the reason, +0. */
static id<MTLFunction> new_shipped_function(metal_device *self, const char *name,
                                            const oxb_constant *constants, uint32_t n,
                                            NSString **reason) {
    for (unsigned i = 0; i < gpu_msl_family_count; i++) {
        const struct msl_family *family = gpu_msl_families + i;
        for (size_t f = 0; f < family->n_functions; f++) {
            if (strcmp(family->functions[f], name) != 0) continue;
            /* What the metallib lacks, the source has. */
            id<MTLLibrary> library =
                [[self->metallib functionNames] containsObject:metal_string(name)]
                    ? self->metallib
                    : family_library(self, i, reason);
            if (library == nil) return nil;
            return metal_new_function(library, metal_string(name), constants, n, reason); /* +1 */
        }
    }
    *reason = @"no kernel of that name ships with oxibonsai";
    return nil;
}

oxb_status metal_pipeline_new(void *device, void *library, const char *function,
                              const oxb_constant *constants, uint32_t n_constants, void **out,
                              oxb_pipeline_info *info) {
    metal_device *self = device;
    return metal_guarded(OXB_COMPILATION_FAILED, ^oxb_status {
        NSString *reason = nil, *name = metal_string(function);
        id<MTLFunction> found =
            library != NULL
                ? metal_new_function((id<MTLLibrary>)library, name, constants, n_constants, &reason)
                : new_shipped_function(self, function, constants, n_constants, &reason); /* +1 */
        [found autorelease];
        oxb_pipeline_info made;
        metal_pipeline *pipeline =
            found != nil ? metal_make_pipeline(self->device, found, name, &made, &reason) : NULL;
        if (pipeline == NULL)
            return metal_fail(OXB_COMPILATION_FAILED, "'%s': %s", function, metal_utf8(reason));
        if (made.simd_width != METAL_SIMD_WIDTH) {
            metal_pipeline_free(self, pipeline);
            return metal_fail(
                OXB_COMPILATION_FAILED,
                "'%s': Metal compiled it for SIMD-groups of %u threads and the kernels "
                "need %u: use Device(\"cpu\")",
                function, made.simd_width, METAL_SIMD_WIDTH);
        }
        *info = made;
        *out = pipeline;
        return OXB_OK;
    });
}
