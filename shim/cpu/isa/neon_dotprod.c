/* The integer kernels for NEON with the dot products of Armv8.2. */
#include "isa.h"

#if defined(__aarch64__) && CPU_KNOWS_DOTPROD
#define SIMD_DOTPROD 1
#include "simd_neon.h"
/* after the registers' functions */
#include "int8.h"

const cpu_int8_kernels cpu_neon_dotprod_int8 = {INT8_KERNELS};
#else
typedef int nothing_here; /* ISO C forbids an empty file */
#endif
