/* The one symbol of CoreGraphics that the driver refers to. */
#ifndef SIM_COREGRAPHICS_H
#define SIM_COREGRAPHICS_H

#include <stdint.h>

typedef uint32_t CGDirectDisplayID;

CGDirectDisplayID CGMainDisplayID(void);

#endif
