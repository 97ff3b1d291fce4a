/* Vectors by name: GCC 12 leaves a plain array of partial sums in memory. */
#ifndef CPU_VECTOR_H
#define CPU_VECTOR_H

#include <string.h>

typedef float cpu_four __attribute__((vector_size(16)));

static inline cpu_four cpu_load_four(const float *from) {
    cpu_four value;
    memcpy(&value, from, sizeof value);
    return value;
}

#endif
