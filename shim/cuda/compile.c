/* From a translated source to machine code: NVRTC, and the cache ahead of it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_driver.h"
#include "gpu/msl_sources.h"

#define MAX_OPTIONS 48u
#define MAX_DEFINES 4u /* in OXIBONSAI_CUDA_DEFINES */

/* No fast math: products and sums are rounded one by one, subnormals stay, quotients and roots are
 * IEEE's. */
static const char *const fixed_options[] = {"--std=c++17",
                                            "--device-as-default-execution-space",
                                            "--fmad=false",
                                            "--ftz=false",
                                            "--prec-div=true",
                                            "--prec-sqrt=true",
                                            "--pre-include=prelude.h"};
#define N_FIXED (sizeof fixed_options / sizeof fixed_options[0])

/* Machine code for the device where NVRTC knows it, else PTX for the newest it knows, which the
 * driver compiles. */
static bool choose_target(int arch, char *option, size_t size) {
    int count = 0, known[128], best = 0;
    if (cuda_nvrtc.GetNumSupportedArchs(&count) != 0 || count < 1 || count > 128) return false;
    if (cuda_nvrtc.GetSupportedArchs(known) != 0) return false;
    for (int i = 0; i < count; i++) {
        if (known[i] <= arch && known[i] > best) best = known[i];
    }
    snprintf(option, size, "--gpu-architecture=%s_%d", best == arch ? "sm" : "compute",
             best ? best : known[0]);
    return best != 0;
}

static oxb_status nvrtc_failed(const char *name, const char *call, int result) {
    return cuda_fail(OXB_COMPILATION_FAILED, "'%s': %s of NVRTC %d.%d gave %s", name, call,
                     cuda_nvrtc.major, cuda_nvrtc.minor, cuda_nvrtc.GetErrorString(result));
}

static oxb_status log_failed(const char *name, nvrtc_program program, int result) {
    size_t length = 0;
    char *log = cuda_nvrtc.GetProgramLogSize(program, &length) == 0 && length > 1
                    ? malloc(length + 1)
                    : NULL;
    if (!log || cuda_nvrtc.GetProgramLog(program, log) != 0) {
        free(log);
        return nvrtc_failed(name, "nvrtcCompileProgram", result);
    }
    log[length] = '\0';
    cuda_fail(OXB_COMPILATION_FAILED, "'%s': %s", name, log);
    free(log);
    return OXB_COMPILATION_FAILED;
}

static oxb_status take_code(const char *name, nvrtc_program program, bool machine,
                            cuda_code *code) {
    size_t length = 0;
    int result = machine ? cuda_nvrtc.GetCUBINSize(program, &length)
                         : cuda_nvrtc.GetPTXSize(program, &length);
    if (result != 0 || length == 0)
        return nvrtc_failed(name, machine ? "nvrtcGetCUBINSize" : "nvrtcGetPTXSize", result);
    char *bytes = malloc(length + 1);
    if (!bytes)
        return cuda_fail(OXB_COMPILATION_FAILED, "'%s': out of memory for %zu bytes of code", name,
                         length);
    bytes[length] = '\0';
    result = machine ? cuda_nvrtc.GetCUBIN(program, bytes) : cuda_nvrtc.GetPTX(program, bytes);
    if (result != 0) {
        free(bytes);
        return nvrtc_failed(name, machine ? "nvrtcGetCUBIN" : "nvrtcGetPTX", result);
    }
    *code = (cuda_code){bytes, length};
    return OXB_OK;
}

static oxb_status compile(const char *name, const char *source, const char *const *options,
                          uint32_t n, bool machine, cuda_code *code) {
    static const char *const header_names[] = {"prelude.h"};
    const char *headers[] = {cuda_prelude};
    nvrtc_program program = NULL;
    int result = cuda_nvrtc.CreateProgram(&program, source, "program.cu", 1, headers, header_names);
    if (result != 0) return nvrtc_failed(name, "nvrtcCreateProgram", result);
    result = cuda_nvrtc.CompileProgram(program, (int)n, options);
    oxb_status status =
        result == 0 ? take_code(name, program, machine, code) : log_failed(name, program, result);
    (void)cuda_nvrtc.DestroyProgram(&program);
    return status;
}

/* Each part with its length, so that no two lists of parts are alike. */
static void add_part(cuda_hash *hash, const void *bytes, size_t length) {
    uint64_t n = length;
    cuda_hash_add(hash, &n, sizeof n);
    cuda_hash_add(hash, bytes, length);
}

typedef struct define_option {
    char text[48]; /* -DNAME or -DNAME=VALUE */
} define_option;

/* Macros that a test or a measurement sets in every kernel. */
static uint32_t read_defines(define_option found[MAX_DEFINES]) {
    const char *at = getenv("OXIBONSAI_CUDA_DEFINES");
    uint32_t n = 0;
    while (at && *at && n < MAX_DEFINES) {
        const size_t length = strcspn(at, ",");
        snprintf(found[n++].text, sizeof found->text, "-D%.*s", (int)length, at);
        at += length + (at[length] == ',');
    }
    return n;
}

oxb_status cuda_compile(const cuda_device *self, const char *name, const char *source,
                        size_t length, const char *const *options, uint32_t n_options,
                        cuda_code *code) {
    const char *all[MAX_OPTIONS];
    char target[48];
    define_option defines[MAX_DEFINES];
    const uint32_t n_defines = read_defines(defines);
    uint32_t n = 0;
    if (n_options + n_defines + N_FIXED + 1 > MAX_OPTIONS)
        return cuda_fail(OXB_COMPILATION_FAILED, "'%s': %u options are too many", name, n_options);
    if (!choose_target(self->arch, target, sizeof target))
        return cuda_fail(OXB_COMPILATION_FAILED, "'%s': NVRTC %d.%d does not compile for sm_%d",
                         name, cuda_nvrtc.major, cuda_nvrtc.minor, self->arch);
    all[n++] = target;
    for (unsigned i = 0; i < N_FIXED; i++) all[n++] = fixed_options[i];
    for (uint32_t i = 0; i < n_options; i++) all[n++] = options[i];
    for (uint32_t i = 0; i < n_defines; i++) all[n++] = defines[i].text;

    cuda_hash hash;
    unsigned char key[CUDA_DIGEST_BYTES];
    int versions[] = {cuda_nvrtc.major, cuda_nvrtc.minor, cuda.version};
    cuda_hash_begin(&hash);
    add_part(&hash, versions, sizeof versions);
    for (uint32_t i = 0; i < n; i++) add_part(&hash, all[i], strlen(all[i]));
    add_part(&hash, cuda_prelude, strlen(cuda_prelude));
    add_part(&hash, source, length);
    cuda_hash_end(&hash, key);
    if (cuda_cache_get(key, code)) return OXB_OK;
    oxb_status status = compile(name, source, all, n, strstr(target, "=sm_") != NULL, code);
    if (status == OXB_OK) cuda_cache_put(key, code);
    return status;
}
