/* The kernels in C alone. Matrices stay in the layout of the other devices, for gemv_codes.c. */
#include "simd_portable.h"
/* after the registers' functions */
#include "attend.h"
#include "dense.h"

static int present(void)
{
    return 1;
}

const oxb_cpu_isa oxb_cpu_portable = {.name = "portable", .present = present, VECTOR_KERNELS, DENSE_KERNELS};
