/* Which logits may be drawn. */
#ifndef CPU_LIMITS_H
#define CPU_LIMITS_H

#include "cpu.h"

/* Those above `lowest`, and the first `ties` of those equal to it. */
typedef struct cpu_limit {
    float lowest;
    uint64_t ties;
} cpu_limit;

/* The k largest of n numbers, of which `largest` is the largest; all but NaN and -inf where k is 0
 * or there are fewer. Uses the call's scratch. */
cpu_limit cpu_limit_of_count(const cpu_call *call, const float *w, uint64_t n, float largest,
                             uint64_t k);
/* What top-k, top-p and min-p keep of them; the scale is positive and finite. */
cpu_limit cpu_limit_of_filters(const cpu_call *call, const float *w, uint64_t n, float largest,
                               const struct oxb_sampling *s);
/* The smallest number whose distance from the largest is u at most. */
float cpu_lowest_within(float largest, float scale, uint32_t u);

#endif
