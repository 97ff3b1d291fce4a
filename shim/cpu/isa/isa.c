/* The variants, and which of them the processor can run. */
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "isa.h"

#if defined(__x86_64__)
static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#if CPU_KNOWS_AVXVNNI
/* Fewer compilers know the name "avxvnni". */
static int has_avx2_vnni(void) {
    unsigned eax, ebx, ecx, edx;
    return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#endif

static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static int has_avx512_vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif

static int always(void) { return 1; }

/* The best first. */
static const cpu_isa variants[] = {
#if defined(__x86_64__)
    {"avx512-vnni", has_avx512_vnni, &cpu_avx512_f32, &cpu_avx512_vnni_int8},
    {"avx512", has_avx512, &cpu_avx512_f32, &cpu_avx512_int8},
#if CPU_KNOWS_AVXVNNI
    {"avx2-vnni", has_avx2_vnni, &cpu_avx2_f32, &cpu_avx2_vnni_int8},
#endif
    {"avx2", has_avx2, &cpu_avx2_f32, &cpu_avx2_int8},
#elif defined(__aarch64__)
#if CPU_KNOWS_DOTPROD
    {"neon-dotprod", cpu_has_dotprod, &cpu_neon_f32, &cpu_neon_dotprod_int8},
#endif
    {"neon", always, &cpu_neon_f32, &cpu_neon_int8},
#endif
    {"portable", always, &cpu_portable_f32, NULL},
};

/* AMD's processors gain some percent by it. Intel's drop such lines before they are read: half the
 * speed. */
int cpu_streams(void) {
#if defined(__x86_64__)
    return __builtin_cpu_is("amd") != 0;
#else
    return 0;
#endif
}

const cpu_isa *cpu_variant(uint32_t index) {
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++)
        if (variants[i].present() && index-- == 0) return &variants[i];
    return NULL;
}

const cpu_isa *cpu_variant_named(const char *name) {
    const cpu_isa *isa;
    for (uint32_t i = 0; (isa = cpu_variant(i)) != NULL; i++)
        if (strcmp(isa->name, name) == 0) return isa;
    return NULL;
}
