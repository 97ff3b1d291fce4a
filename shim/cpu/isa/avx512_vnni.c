/* The integer kernels for AVX-512 with VNNI. */
#if defined(__x86_64__)
#define SIMD_VNNI 1
#include "simd_avx512.h"
/* after the registers' functions */
#include "int8.h"

const cpu_int8_kernels cpu_avx512_vnni_int8 = {INT8_KERNELS};
#else
typedef int nothing_here; /* ISO C forbids an empty file */
#endif
