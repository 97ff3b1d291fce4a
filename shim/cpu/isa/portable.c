/* The kernels in C alone. Matrices stay in the layout of the other devices, for gemv_codes.c. */
#include "base/choice.h"
#include "simd_portable.h"
/* after the registers' functions */
#include "attend.h"
#include "choose.h"
#include "dense.h"
#include "recurrent.h"

const cpu_float_kernels cpu_portable_f32 = {VECTOR_KERNELS, DENSE_KERNELS, CHOICE_KERNELS,
                                            RECURRENT_KERNELS};
