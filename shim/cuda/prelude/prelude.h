/* The Metal standard library in CUDA C++: what NVRTC compiles ahead of a program that
 * oxibonsai/msl/cuda.py has translated.
 *
 * No header of CUDA's is included, so that NVRTC needs none. Names of our own begin with msl_; what
 * Metal has is in namespace metal, or a macro where CUDA gives a global name another meaning.
 * A SIMD-group is a warp, and all of its 32 lanes take part in its functions.
 */
#ifndef MSL_CUDA_H
#define MSL_CUDA_H

#define MSL_FN     static __forceinline__ __device__
#define MSL_METHOD __forceinline__ __device__

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;

#include "prelude_types.h"
#include "prelude_math.h"
#include "prelude_simd.h"
#include "prelude_matrix.h"
#include "prelude_atomic.h"
#include "prelude_entry.h"

#endif
