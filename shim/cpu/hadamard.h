/* What keys of 8 bits are turned by, so that no element of them is far larger than the others. */
#ifndef CPU_HADAMARD_H
#define CPU_HADAMARD_H

#include <stdint.h>

/* x[n] as n / 32 columns of 32 elements, n / 32 apart: a Walsh-Hadamard transform of each, in
 * place. Twice it is 32 times x; the order of the additions is part of the definition. */
static inline void cpu_hadamard(float *x, uint64_t n) {
    for (uint64_t apart = n / 32; apart < n; apart *= 2)
        for (uint64_t start = 0; start < n; start += 2 * apart)
            for (uint64_t i = start; i < start + apart; i++) {
                const float low = x[i], high = x[i + apart];
                x[i] = low + high;
                x[i + apart] = low - high;
            }
}

#endif
