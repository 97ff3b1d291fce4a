/* The Metal standard library on a CPU, put in front of MSL source that the front end has rewritten.
 *
 * Compiled as C++ for OpenCL: clang then checks address spaces as Metal does, and on the host they
 * all are ordinary memory. Functions are inlined and have no debug lines of their own, so that
 * every instruction carries the line of the shader that called. Only what Metal has is in namespace
 * metal; names of our own begin with msl_. */
#pragma clang system_header
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable
#define device      __global
#define threadgroup __local
#define thread      __private
#undef constant
#ifdef MSL_CONSTANT_IS_GLOBAL
#define constant const __global
#else
#define constant const __constant
#endif
/* Words of OpenCL that are plain identifiers in MSL. */
#define global               msl_id_global
#define local                msl_id_local
#define generic              msl_id_generic
#define pipe                 msl_id_pipe
#define uniform              msl_id_uniform
#define atomic_int           msl_id_atomic_int
#define atomic_uint          msl_id_atomic_uint
#define atomic_float         msl_id_atomic_float
#define atomic_ulong         msl_id_atomic_ulong
#define memory_order         msl_id_memory_order
#define memory_order_relaxed msl_id_memory_order_relaxed

#define MSL_FN     static inline __attribute__((always_inline, nodebug))
#define MSL_METHOD inline __attribute__((always_inline, nodebug))
/* Where a function was called from, as further parameters. */
#define MSL_SITE uint site_line = __builtin_LINE(), uint site_column = __builtin_COLUMN()

#include "msl_types.h"
#include "msl_abi.h"

extern "C" {
void msl_rt_barrier(uint kind, uint flags, uint line, uint column);
struct msl_exchange *msl_rt_simd(uint kind, uint line, uint column, const void *value, uint size);
void msl_rt_bad_lane(uint lane);
void *msl_rt_variable(uint number, ulong size, MSL_TABLE char *name);
uint msl_rt_lane();
/* Written into a shader by mutate.py. */
bool msl_rt_mutant(uint number);
bool msl_rt_guard(uint number, bool value, bool without);
}

#include "msl_math.h"
#include "msl_integer.h"
#include "msl_construct.h"
#include "msl_simd.h"
#include "msl_matrix.h"
#include "msl_atomic.h"
#include "msl_entry.h"
