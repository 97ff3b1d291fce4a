/* Which variants the processor can run. */
#include <string.h>

#include "isa.h"

/* The best first. */
static const oxb_cpu_isa *const variants[] = {
#if defined(__x86_64__)
    &oxb_cpu_avx512,
    &oxb_cpu_avx2,
#elif defined(__aarch64__)
    &oxb_cpu_neon,
#endif
    &oxb_cpu_portable,
};

const oxb_cpu_isa *oxb_cpu_variant(uint32_t index)
{
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++)
        if (variants[i]->present() && index-- == 0)
            return variants[i];
    return NULL;
}

const oxb_cpu_isa *oxb_cpu_variant_named(const char *name)
{
    const oxb_cpu_isa *isa;
    for (uint32_t i = 0; (isa = oxb_cpu_variant(i)) != NULL; i++)
        if (strcmp(isa->name, name) == 0)
            return isa;
    return NULL;
}
