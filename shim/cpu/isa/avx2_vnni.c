/* The integer kernels for AVX2 with AVX-VNNI. */
#include "isa.h"

#if defined(__x86_64__) && CPU_KNOWS_AVXVNNI
#define SIMD_VNNI 1
#include "simd_avx2.h"
/* after the registers' functions */
#include "int8.h"

const cpu_int8_kernels cpu_avx2_vnni_int8 = {INT8_KERNELS};
#else
typedef int nothing_here; /* ISO C forbids an empty file */
#endif
