/* The kernels for AVX2 with FMA. */
#if defined(__x86_64__)
#include "simd_avx2.h"
/* after the registers' functions */
#include "attend.h"
#include "dense.h"
#include "pack.h"
#include "tiles.h"

static int present(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const oxb_cpu_isa oxb_cpu_avx2 = {.name = "avx2", .present = present, CODE_KERNELS, VECTOR_KERNELS, DENSE_KERNELS, PACK_KERNELS};
#else
typedef int nothing_here; /* ISO C forbids an empty file */
#endif
