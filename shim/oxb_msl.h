/* The text of the kernels in shaders/, as tools/embed_shaders.py puts it into oxb_msl.c. */
#ifndef OXB_MSL_H
#define OXB_MSL_H

#include <stddef.h>

/* One file of shaders/ with its headers inlined: it compiles alone, on every compiler. */
struct oxb_msl_family {
    const char *name;             /* of the file, without .metal */
    const char *source;           /* NUL-terminated */
    size_t length;                /* bytes of the source */
    const char *const *functions; /* names of its kernels */
    size_t n_functions;
};

extern const struct oxb_msl_family oxb_msl_families[];
extern const unsigned oxb_msl_family_count;

/* In a build with the cuda driver the sources are translated to CUDA C++, and this is compiled ahead
 * of each. */
extern const char oxb_msl_cuda_prelude[];

#endif
