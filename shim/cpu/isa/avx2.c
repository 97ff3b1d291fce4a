/* The kernels for AVX2 with FMA. */
#if defined(__x86_64__)
#include "base/choice.h"
#include "simd_avx2.h"
/* after the registers' functions */
#include "attend.h"
#include "choose.h"
#include "dense.h"
#include "int8.h"
#include "pack.h"
#include "recurrent.h"
#include "strips.h"

const cpu_float_kernels cpu_avx2_f32 = {PACKING_KERNELS, VECTOR_KERNELS, DENSE_KERNELS,
                                        PACK_KERNELS,    CHOICE_KERNELS, RECURRENT_KERNELS};
const cpu_int8_kernels cpu_avx2_int8 = {INT8_KERNELS};
#else
typedef int nothing_here; /* ISO C forbids an empty file */
#endif
