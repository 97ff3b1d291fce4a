/* Vectors by name: GCC 12 leaves a plain array of partial sums in memory. */
#ifndef OXB_CPU_VECTOR_H
#define OXB_CPU_VECTOR_H

#include <string.h>

typedef float oxb_four __attribute__((vector_size(16)));

static inline oxb_four oxb_load_four(const float *from)
{
    oxb_four value;
    memcpy(&value, from, sizeof value);
    return value;
}

#endif
