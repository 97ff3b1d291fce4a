/* Loading of libcuda and NVRTC, and the texts of errors. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "cuda_driver.h"

struct cuda_api cuda;
struct nvrtc_api cuda_nvrtc;
const oxb_host *cuda_host;

/* Guards the loading of both. */
static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;
static bool cuda_loaded, nvrtc_loaded;

/* ISO C has no cast from an object's address to a function's. */
static bool find(void *library, const char *symbol, void *function) {
    void *address = dlsym(library, symbol);
    memcpy(function, &address, sizeof address);
    return address != NULL;
}

const char *cuda_text(char text[CUDA_TEXT_BYTES], const char *call, cuda_result result) {
    const char *name = NULL, *what = NULL;
    if (cuda.GetErrorName(result, &name) != CUDA_OK || !name) name = "an unknown error";
    if (cuda.GetErrorString(result, &what) != CUDA_OK || !what) what = "no text";
    /* After these every call in the context fails. */
    bool lost = result == 214 || result == 702 || result == 709 || result == 710 ||
                (result >= 714 && result <= 720) || result == 700;
    snprintf(text, CUDA_TEXT_BYTES, "%s gave %s (%d): %s%s", call, name, result, what,
             lost ? "; the context is lost, and CUDA with it in this process: start a new process"
                  : "");
    return text;
}

static oxb_status load_cuda(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        return cuda_fail(OXB_DEVICE_NOT_FOUND,
                         "no device \"cuda\": NVIDIA's driver is not installed (%s); install it, "
                         "or use the cpu device",
                         dlerror());
    }
    struct cuda_api found = {0};
    const char *missing = NULL;
#define X(name, symbol, parameters) \
    if (!find(library, symbol, &found.name)) missing = symbol;
    CUDA_FUNCTIONS(X)
#undef X
#define X(name, symbol, parameters) (void)find(library, symbol, &found.name);
    CUDA_NEWER_FUNCTIONS(X)
#undef X
    if (missing) {
        dlclose(library);
        return cuda_fail(OXB_DEVICE_NOT_FOUND,
                         "no device \"cuda\": NVIDIA's driver is too old, it has no %s; CUDA 12.0 "
                         "or newer is needed",
                         missing);
    }
    cuda = found; /* before cuda_text is used */
    char text[CUDA_TEXT_BYTES];
    cuda_result result = cuda.Init(0);
    if (result == CUDA_OK) result = cuda.DriverGetVersion(&cuda.version);
    if (result != CUDA_OK) {
        cuda_text(text, "cuInit", result);
        return cuda_fail(OXB_DEVICE_NOT_FOUND, "no device \"cuda\": %s%s", text,
                         result == CUDA_NO_DEVICE
                             ? "; this machine has no NVIDIA GPU that the process may use"
                             : "");
    }
    if (cuda.version < 12000) {
        return cuda_fail(
            OXB_DEVICE_NOT_FOUND,
            "no device \"cuda\": NVIDIA's driver is for CUDA %d.%d, and 12.0 or newer is needed",
            cuda.version / 1000, cuda.version % 1000 / 10);
    }
    cuda_loaded = true; /* the library stays */
    return OXB_OK;
}

oxb_status cuda_load(int *gpus) {
    pthread_mutex_lock(&load_lock);
    oxb_status status = cuda_loaded ? OXB_OK : load_cuda();
    pthread_mutex_unlock(&load_lock);
    if (status != OXB_OK) return status;
    char text[CUDA_TEXT_BYTES];
    cuda_result result = cuda.DeviceGetCount(gpus);
    if (result == CUDA_OK) return OXB_OK;
    return cuda_fail(OXB_DEVICE_NOT_FOUND, "no device \"cuda\": %s",
                     cuda_text(text, "cuDeviceGetCount", result));
}

static oxb_status load_nvrtc(void) {
    /* Code of a newer major version than the driver's does not run on it. */
    int newest = cuda.version / 1000;
    void *library = NULL;
    for (int major = newest < 13 ? newest : 13; major >= 12 && !library; major--) {
        char name[32];
        snprintf(name, sizeof name, "libnvrtc.so.%d", major);
        library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    if (!library) {
        return cuda_fail(OXB_DEVICE_NOT_FOUND,
                         "no device \"cuda\": there is a GPU, but not NVRTC, NVIDIA's run-time "
                         "compiler (%s): pip install "
                         "%s, or install the CUDA toolkit",
                         newest < 13 ? "libnvrtc.so.12 for this driver" : "libnvrtc.so.13 or .12",
                         newest < 13 ? "nvidia-cuda-nvrtc-cu12" : "nvidia-cuda-nvrtc");
    }
    struct nvrtc_api found = {0};
    const char *missing = NULL;
#define X(type, name, parameters) \
    if (!find(library, "nvrtc" #name, &found.name)) missing = "nvrtc" #name;
    NVRTC_FUNCTIONS(X)
#undef X
    if (missing || found.Version(&found.major, &found.minor) != 0) {
        dlclose(library);
        return cuda_fail(OXB_DEVICE_NOT_FOUND,
                         "no device \"cuda\": NVRTC is damaged, it has no working %s",
                         missing ? missing : "nvrtcVersion");
    }
    cuda_nvrtc = found;
    nvrtc_loaded = true;
    return OXB_OK;
}

oxb_status cuda_load_nvrtc(void) {
    pthread_mutex_lock(&load_lock);
    oxb_status status = nvrtc_loaded ? OXB_OK : load_nvrtc();
    pthread_mutex_unlock(&load_lock);
    return status;
}
