/* The drivers that a build can hold: what the front asks each for, and what each of them defines.
 */
#ifndef BASE_BUILTIN_DRIVERS_H
#define BASE_BUILTIN_DRIVERS_H

#include "oxb_driver.h"

const oxb_driver *cpu_driver(const oxb_host *host);
const oxb_driver *metal_driver(const oxb_host *host); /* with OXB_HAVE_METAL */
const oxb_driver *cuda_driver(const oxb_host *host);  /* with OXB_HAVE_CUDA */

#endif
