/* The kernels for NEON, which every 64-bit Arm processor has. */
#if defined(__aarch64__)
#include "simd_neon.h"
/* after the registers' functions */
#include "attend.h"
#include "dense.h"
#include "pack.h"
#include "tiles.h"

static int present(void)
{
    return 1;
}

const oxb_cpu_isa oxb_cpu_neon = {.name = "neon", .present = present, CODE_KERNELS, VECTOR_KERNELS, DENSE_KERNELS, PACK_KERNELS};
#else
typedef int nothing_here; /* ISO C forbids an empty file */
#endif
