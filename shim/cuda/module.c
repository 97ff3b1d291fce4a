/* Libraries and pipelines of the driver "cuda". A pipeline is compiled from its library's source
 * with the one kernel that is wanted and its function constants; what the kernel takes it reads
 * from the table that oxibonsai/msl/cuda.py put beside the kernel's entry. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_driver.h"
#include "gpu/msl_sources.h"

/* Written by oxibonsai/msl/cuda.py. */
#define MARK          "// Translated from Metal Shading Language for shim/cuda/prelude, version 2\n"
#define TABLE_VERSION 1u

typedef struct library {
    char *source; /* NUL-terminated */
    size_t length;
} library;

oxb_status cuda_library_new(void *device, const char *source, size_t length, void **out) {
    cuda_device *self = device;
    if (length < strlen(MARK) || memcmp(source, MARK, strlen(MARK)) != 0) {
        return cuda_fail(OXB_COMPILATION_FAILED,
                         "the cuda device compiles what oxibonsai.msl.cuda.translate() makes of "
                         "Metal source, and this "
                         "source of %zu bytes is not that",
                         length);
    }
    library *made = calloc(1, sizeof *made);
    char *text = malloc(length + 1);
    if (!made || !text) {
        free(made);
        free(text);
        return cuda_fail(OXB_COMPILATION_FAILED, "out of memory for a library of %zu bytes",
                         length);
    }
    memcpy(text, source, length);
    text[length] = '\0';
    *made = (library){text, length};
    /* Compile all kernels once, so that errors in the source are reported here. */
    cuda_code code;
    oxb_status status = strlen(text) == length
                            ? cuda_compile(self, "library", text, length, NULL, 0, &code)
                            : cuda_fail(OXB_COMPILATION_FAILED, "the source has a NUL in it");
    if (status != OXB_OK) {
        cuda_library_free(self, made);
        return status;
    }
    free(code.bytes);
    *out = made;
    return OXB_OK;
}

void cuda_library_free(void *device, void *handle) {
    library *self = handle;
    (void)device;
    free(self->source);
    free(self);
}

/* Whether a translation has an entry of that name. */
static bool has_entry(const char *source, const char *function) {
    char guard[OXB_NAME_BYTES + 32];
    int length = snprintf(guard, sizeof guard, "defined(MSL_ONE_%s)\n", function);
    return length > 0 && (size_t)length < sizeof guard && strstr(source, guard) != NULL;
}

/* The names of a library's kernels, for a message. */
static void list_entries(const char *source, char *text, size_t size) {
    static const char guard[] = "defined(MSL_ONE_";
    size_t used = 0;
    text[0] = '\0';
    for (const char *at = source; (at = strstr(at, guard)) && used + 1 < size;) {
        at += sizeof guard - 1;
        int n = snprintf(text + used, size - used, "%s%.*s", used ? ", " : "",
                         (int)strcspn(at, ")"), at);
        used += n > 0 ? (size_t)n : 0;
    }
}

static oxb_status find_source(const library *from, const char *function, const char **source,
                              size_t *length) {
    if (from) {
        if (has_entry(from->source, function)) {
            *source = from->source;
            *length = from->length;
            return OXB_OK;
        }
        char known[1024];
        list_entries(from->source, known, sizeof known);
        return cuda_fail(OXB_COMPILATION_FAILED, "'%s': no kernel of that name: the library has %s",
                         function, known);
    }
    for (unsigned i = 0; i < gpu_msl_family_count; i++) {
        const struct msl_family *family = gpu_msl_families + i;
        for (size_t f = 0; f < family->n_functions; f++) {
            if (strcmp(family->functions[f], function) != 0) continue;
            *source = family->source;
            *length = family->length;
            return OXB_OK;
        }
    }
    return cuda_fail(OXB_COMPILATION_FAILED, "'%s': no kernel of that name ships with oxibonsai",
                     function);
}

/* The macro that defines a function constant; a float is passed by its bits. */
static void constant_option(const oxb_constant *constant, char *option, size_t size) {
    unsigned index = constant->index;
    oxb_constant_value value = constant->value;
    switch (constant->type) {
    case OXB_CONSTANT_BOOL:
        snprintf(option, size, "-DMSL_CONSTANT_%u=%s", index, value.u32 ? "true" : "false");
        break;
    case OXB_CONSTANT_I32:
        snprintf(option, size, "-DMSL_CONSTANT_%u=(%lldll)", index, (long long)value.i32);
        break;
    case OXB_CONSTANT_F32:
        snprintf(option, size, "-DMSL_CONSTANT_%u=__builtin_bit_cast(float,0x%08xu)", index,
                 (unsigned)value.u32);
        break;
    default: snprintf(option, size, "-DMSL_CONSTANT_%u=%uu", index, (unsigned)value.u32);
    }
}

static oxb_status compile_kernel(const cuda_device *self, const library *from, const char *function,
                                 const oxb_constant *constants, uint32_t n, cuda_code *code) {
    const char *source = NULL, *options[OXB_MAX_CONSTANTS + 2];
    size_t length = 0;
    oxb_status status = find_source(from, function, &source, &length);
    if (status != OXB_OK) return status;
    char texts[OXB_MAX_CONSTANTS][80], one[OXB_NAME_BYTES + 16];
    snprintf(one, sizeof one, "-DMSL_ONE_%s", function);
    options[0] = "-DMSL_ONE";
    options[1] = one;
    for (uint32_t i = 0; i < n; i++) {
        constant_option(constants + i, texts[i], sizeof texts[i]);
        options[i + 2] = texts[i];
    }
    return cuda_compile(self, function, source, length, options, n + 2, code);
}

/* Check the given constants against those that the kernel declares, in rows of index, type,
 * required. Only the compiled code knows them, so that this check is the driver's. */
static oxb_status check_constants(const char *name, const uint32_t *rows, uint32_t n_rows,
                                  const oxb_constant *constants, uint32_t n) {
    static const char *const types[] = {"a bool", "a uint", "an int", "a float"};
    for (uint32_t r = 0; r < n_rows; r++) {
        bool given = false;
        for (uint32_t i = 0; i < n; i++) given |= constants[i].index == rows[3 * r];
        if (!given && rows[3 * r + 2])
            return cuda_fail(OXB_COMPILATION_FAILED, "'%s': function constant %u needs a value",
                             name, rows[3 * r]);
    }
    for (uint32_t i = 0; i < n; i++) {
        const oxb_constant *c = constants + i;
        uint32_t r = 0;
        while (r < n_rows && rows[3 * r] != c->index) r++;
        if (r == n_rows)
            return cuda_fail(OXB_COMPILATION_FAILED, "'%s': the kernel has no function constant %u",
                             name, c->index);
        uint32_t type = rows[3 * r + 1];
        bool fits = type == c->type;
        if (type == OXB_CONSTANT_U32 && c->type == OXB_CONSTANT_I32) fits = c->value.i32 >= 0;
        if (type == OXB_CONSTANT_I32 && c->type == OXB_CONSTANT_U32)
            fits = c->value.u32 <= INT32_MAX;
        if (!fits)
            return cuda_fail(OXB_COMPILATION_FAILED,
                             "'%s': function constant %u is %s, and %s was given that does not fit",
                             name, c->index,
                             type < 4 ? types[type] : "of a type that cannot be set",
                             types[c->type & 3]);
    }
    return OXB_OK;
}

static oxb_status bad_table(const char *name) {
    return cuda_fail(OXB_COMPILATION_FAILED,
                     "'%s': the compiled code describes no kernel: it is damaged", name);
}

/* Rows of kind, index, writable, size, alignment, as oxb_argument_kind counts the kinds. */
static oxb_status read_table(cuda_pipeline *pipeline, const uint32_t *table, size_t words,
                             const oxb_constant *constants, uint32_t n, oxb_pipeline_info *info) {
    const char *name = pipeline->name;
    if (words < 3 || table[0] != TABLE_VERSION) return bad_table(name);
    uint64_t n_arguments = table[1], n_constants = table[2];
    if (n_arguments > OXB_MAX_ARGUMENTS || n_constants > words ||
        words != 3 + 5 * n_arguments + 3 * n_constants)
        return bad_table(name);
    const uint32_t *row = table + 3;
    for (uint64_t i = 0; i < n_arguments; i++, row += 5) {
        if (row[0] > OXB_ARGUMENT_THREADGROUP || row[1] >= OXB_MAX_BINDINGS) return bad_table(name);
        info->arguments[info->n_arguments++] =
            (oxb_argument){.kind = row[0],
                           .index = row[1],
                           .size = row[3],
                           .alignment = row[4],
                           .access = row[2] ? OXB_ACCESS_WRITE : OXB_ACCESS_READ};
        if (row[0] == OXB_ARGUMENT_THREADGROUP) continue;
        if (pipeline->n_parameters == OXB_MAX_BINDINGS) return bad_table(name);
        pipeline->parameters[pipeline->n_parameters++] =
            (cuda_parameter){row[0] == OXB_ARGUMENT_STRUCT, row[1]};
    }
    return check_constants(name, row, (uint32_t)n_constants, constants, n);
}

static oxb_status load_table(cuda_device *self, cuda_pipeline *pipeline,
                             const oxb_constant *constants, uint32_t n, oxb_pipeline_info *info) {
    char symbol[OXB_NAME_BYTES + 16], text[CUDA_TEXT_BYTES];
    cuda_address address = 0;
    size_t size = 0;
    snprintf(symbol, sizeof symbol, "msl_table_%s", pipeline->name);
    cuda_result result = cuda.ModuleGetGlobal(&address, &size, pipeline->module, symbol);
    if (result != CUDA_OK) {
        return cuda_fail(OXB_COMPILATION_FAILED, "'%s': %s", pipeline->name,
                         cuda_text(text, "cuModuleGetGlobal", result));
    }
    uint32_t *table = malloc(size + 1);
    if (!table) return cuda_fail(OXB_COMPILATION_FAILED, "'%s': out of memory", pipeline->name);
    oxb_status status = cuda_copy_out(self, table, address, size);
    if (status == OXB_OK)
        status = read_table(pipeline, table, size / sizeof *table, constants, n, info);
    free(table);
    return status;
}

static cuda_result load_function(cuda_pipeline *pipeline, const cuda_code *code,
                                 oxb_pipeline_info *info, const char **call) {
    char symbol[OXB_NAME_BYTES + 16];
    int threads = 0, memory = 0;
    *call = "cuModuleLoadData";
    cuda_result result = cuda.ModuleLoadData(&pipeline->module, code->bytes);
    if (result != CUDA_OK) {
        pipeline->module = NULL;
        return result;
    }
    snprintf(symbol, sizeof symbol, "msl_entry_%s", pipeline->name);
    *call = "cuModuleGetFunction";
    result = cuda.ModuleGetFunction(&pipeline->function, pipeline->module, symbol);
    if (result != CUDA_OK) return result;
    *call = "cuFuncGetAttribute";
    result = cuda.FuncGetAttribute(&threads, CUDA_FUNCTION_MAX_THREADS, pipeline->function);
    if (result == CUDA_OK)
        result = cuda.FuncGetAttribute(&memory, CUDA_FUNCTION_SHARED_BYTES, pipeline->function);
    *info = (oxb_pipeline_info){.max_threads = (uint32_t)threads,
                                .simd_width = 32,
                                .static_threadgroup_memory = (uint64_t)memory};
    return result;
}

/* Called with the context entered. */
static oxb_status load(cuda_device *self, cuda_pipeline *pipeline, const cuda_code *code,
                       const oxb_constant *constants, uint32_t n, oxb_pipeline_info *info) {
    char text[CUDA_TEXT_BYTES];
    const char *call;
    cuda_result result = load_function(pipeline, code, info, &call);
    if (result != CUDA_OK)
        return cuda_fail(OXB_COMPILATION_FAILED, "'%s': %s", pipeline->name,
                         cuda_text(text, call, result));
    return load_table(self, pipeline, constants, n, info);
}

oxb_status cuda_pipeline_new(void *device, void *from, const char *function,
                             const oxb_constant *constants, uint32_t n_constants, void **out,
                             oxb_pipeline_info *info) {
    cuda_device *self = device;
    cuda_code code;
    oxb_status status = compile_kernel(self, from, function, constants, n_constants, &code);
    if (status != OXB_OK) return status;
    oxb_pipeline_info found;
    cuda_pipeline *pipeline = calloc(1, sizeof *pipeline);
    if (pipeline) {
        snprintf(pipeline->name, sizeof pipeline->name, "%s", function);
        status = cuda_enter(self, OXB_COMPILATION_FAILED);
        if (status == OXB_OK) {
            status = load(self, pipeline, &code, constants, n_constants, &found);
            cuda_leave();
        }
    } else {
        status = cuda_fail(OXB_COMPILATION_FAILED, "'%s': out of memory for a pipeline", function);
    }
    free(code.bytes);
    if (status != OXB_OK) {
        if (pipeline) cuda_pipeline_free(self, pipeline);
        return status;
    }
    *info = found;
    *out = pipeline;
    return OXB_OK;
}

void cuda_pipeline_free(void *device, void *handle) {
    cuda_device *self = device;
    cuda_pipeline *pipeline = handle;
    if (pipeline->module && cuda.CtxPushCurrent(self->context) == CUDA_OK) {
        (void)cuda.ModuleUnload(pipeline->module);
        cuda_leave();
    }
    free(pipeline);
}
