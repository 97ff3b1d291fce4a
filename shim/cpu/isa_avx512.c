/* The kernels for AVX-512. */
#if defined(__x86_64__)
#include "simd_avx512.h"
/* after the registers' functions */
#include "attend.h"
#include "dense.h"
#include "pack.h"
#include "tiles.h"

static int present(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const oxb_cpu_isa oxb_cpu_avx512 = {.name = "avx512", .present = present, CODE_KERNELS, VECTOR_KERNELS, DENSE_KERNELS, PACK_KERNELS};
#else
typedef int nothing_here; /* ISO C forbids an empty file */
#endif
