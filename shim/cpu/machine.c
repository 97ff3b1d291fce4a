/* What the operating system says about the processor. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#include <sys/types.h>
#else
#include <sched.h>
#endif

#include "cpu.h"

static uint32_t clamp_count(long count) {
    return count<1 ? 1 : count>(long) CPU_MAX_THREADS ? CPU_MAX_THREADS : (uint32_t)count;
}

#if defined(__APPLE__)
static long sysctl_int(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 ? value : 0;
}

int cpu_has_dotprod(void) { return sysctl_int("hw.optional.arm.FEAT_DotProd") != 0; }

/* The efficiency cores would hold up the others at every barrier. */
uint32_t cpu_count(void) {
    long count = sysctl_int("hw.perflevel0.physicalcpu");
    if (count < 1) count = sysctl_int("hw.physicalcpu");
    return clamp_count(count < 1 ? sysconf(_SC_NPROCESSORS_ONLN) : count);
}

uint64_t cpu_memory(void) {
    uint64_t bytes = 0;
    size_t size = sizeof bytes;
    return sysctlbyname("hw.memsize", &bytes, &size, NULL, 0) == 0 && bytes != 0 ? bytes
                                                                                 : SIZE_MAX / 2;
}

void cpu_brand(char *name, size_t size) {
    size_t length = size;
    if (sysctlbyname("machdep.cpu.brand_string", name, &length, NULL, 0) != 0)
        snprintf(name, size, "cpu");
    name[size - 1] = '\0';
}
#else
#if defined(__linux__)
/* The kernel refuses a set smaller than its own, so the set grows until it is taken. */
static long affinity_count(void) {
    for (int cpus = 1024; cpus <= 1 << 20; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        if (set == NULL) return 0;
        const size_t size = CPU_ALLOC_SIZE((size_t)cpus);
        const long count = sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (count > 0) return count;
    }
    return 0;
}
#endif

int cpu_has_dotprod(void) {
#if defined(__aarch64__) && defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return 0;
#endif
}

uint32_t cpu_count(void) {
    long count = 0;
#if defined(__linux__)
    count = affinity_count();
#endif
    return clamp_count(count < 1 ? sysconf(_SC_NPROCESSORS_ONLN) : count);
}

uint64_t cpu_memory(void) {
    const long pages = sysconf(_SC_PHYS_PAGES);
    const long page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : SIZE_MAX / 2;
}

void cpu_brand(char *name, size_t size) {
#if defined(__aarch64__)
    snprintf(name, size, "aarch64"); /* the kernel gives no name there */
#elif defined(__x86_64__)
    snprintf(name, size, "x86_64");
#else
    snprintf(name, size, "cpu");
#endif
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (file == NULL) return;
    char line[512];
    while (fgets(line, sizeof line, file) != NULL) {
        const char *value = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || value == NULL) continue;
        value += strspn(value, ": \t");
        const size_t length = strcspn(value, "\n");
        if (length > 0) snprintf(name, size, "%.*s", (int)length, value);
        break;
    }
    fclose(file);
}
#endif
