/* What real devices and their drivers get wrong, as a test sets it. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <mach/vm_page_size.h>

#include "sim.h"

#define DEFAULT_MAX_THREADGROUP_MEMORY \
    65536u /* more than kernels may use, as some devices report */
#define MAX_WIDTHS 8u

vm_size_t vm_page_size;

typedef char text[1024];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Guarded by lock. */
static text prelude, refused_kernels;
static struct {
    text prefix;
    uint32_t width;
} widths[MAX_WIDTHS];
static double compile_seconds;
static int is_virtual, wrap;
static uint32_t max_threadgroup_memory;

static void keep(text *to, const char *from) {
    if (strlen(from) >= sizeof *to) sim_misuse("text too long", "%s", from);
    strcpy(*to, from);
}

static BOOL begins(const char *name, const char *prefix) {
    return prefix[0] != '\0' && strncmp(name, prefix, strlen(prefix)) == 0;
}

void metal_sim_set_prelude(const char *lines) {
    pthread_mutex_lock(&lock);
    keep(&prelude, lines);
    pthread_mutex_unlock(&lock);
}

NSString *sim_with_prelude(NSString *source) {
    pthread_mutex_lock(&lock);
    NSString *lines = [NSString stringWithUTF8String:prelude];
    pthread_mutex_unlock(&lock);
    NSRange include = [source rangeOfString:@"#include <metal_stdlib>\n"];
    if ([lines length] == 0 || include.location == NSNotFound) return source;
    NSUInteger end = NSMaxRange(include);
    return [NSString stringWithFormat:@"%@%@\n%@", [source substringToIndex:end], lines,
                                      [source substringFromIndex:end]];
}

void metal_sim_refuse_kernels(const char *prefix) {
    pthread_mutex_lock(&lock);
    keep(&refused_kernels, prefix);
    pthread_mutex_unlock(&lock);
}

BOOL sim_refuses_kernel(const char *kernel) {
    pthread_mutex_lock(&lock);
    BOOL refuses = begins(kernel, refused_kernels);
    pthread_mutex_unlock(&lock);
    return refuses;
}

void metal_sim_set_kernel_width(const char *prefix, uint32_t width) {
    pthread_mutex_lock(&lock);
    unsigned i = 0;
    while (i < MAX_WIDTHS && widths[i].width != 0 && strcmp(widths[i].prefix, prefix) != 0) i++;
    if (i == MAX_WIDTHS) sim_misuse("too many widths", "%s", prefix);
    keep(&widths[i].prefix, prefix);
    widths[i].width = width;
    pthread_mutex_unlock(&lock);
}

uint32_t sim_width_of(SimDevice *device, const char *kernel) {
    uint32_t width = 0;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < MAX_WIDTHS && width == 0; i++) {
        if (begins(kernel, widths[i].prefix)) width = widths[i].width;
    }
    pthread_mutex_unlock(&lock);
    return width != 0 ? width : [device simdWidth];
}

void metal_sim_set_compile_seconds(double seconds) {
    pthread_mutex_lock(&lock);
    compile_seconds = seconds;
    pthread_mutex_unlock(&lock);
}

void sim_take_compile_time(void) {
    pthread_mutex_lock(&lock);
    double seconds = compile_seconds;
    pthread_mutex_unlock(&lock);
    struct timespec t = {.tv_sec = (time_t)seconds,
                         .tv_nsec = (long)(1e9 * (seconds - (double)(time_t)seconds))};
    if (seconds > 0) nanosleep(&t, NULL);
}

void metal_sim_set_virtual(int value) { __atomic_store_n(&is_virtual, value, __ATOMIC_RELAXED); }

BOOL sim_is_virtual(void) { return __atomic_load_n(&is_virtual, __ATOMIC_RELAXED) != 0; }

void metal_sim_set_max_threadgroup_memory(uint32_t bytes) {
    __atomic_store_n(&max_threadgroup_memory, bytes, __ATOMIC_RELAXED);
}

uint32_t sim_max_threadgroup_memory(void) {
    return __atomic_load_n(&max_threadgroup_memory, __ATOMIC_RELAXED);
}

void metal_sim_set_wrap(int value) { __atomic_store_n(&wrap, value, __ATOMIC_RELAXED); }

int sim_wrap(void) { return __atomic_load_n(&wrap, __ATOMIC_RELAXED); }

void metal_sim_set_page_size(uint64_t bytes) {
    vm_page_size = bytes != 0 ? (vm_size_t)bytes : (vm_size_t)sysconf(_SC_PAGESIZE);
}

void sim_faults_reset(void) {
    metal_sim_set_prelude("");
    metal_sim_refuse_kernels("");
    pthread_mutex_lock(&lock);
    memset(widths, 0, sizeof widths);
    pthread_mutex_unlock(&lock);
    metal_sim_set_compile_seconds(0);
    metal_sim_set_virtual(0);
    metal_sim_set_max_threadgroup_memory(DEFAULT_MAX_THREADGROUP_MEMORY);
    metal_sim_set_wrap(METAL_SIM_WRAPS);
    metal_sim_set_page_size(0);
}

/* As it starts. */
__attribute__((constructor)) static void begin(void) { sim_faults_reset(); }
