/* The text of the kernels in shaders/, as tools/embed_shaders.py puts it into oxb_msl.c. */
#ifndef GPU_MSL_SOURCES_H
#define GPU_MSL_SOURCES_H

#include <stddef.h>

/* One file of shaders/ with its headers inlined: it compiles alone, on every compiler. */
struct msl_family {
    const char *name;             /* of the file, without .metal */
    const char *source;           /* NUL-terminated */
    size_t length;                /* bytes of the source */
    const char *const *functions; /* names of its kernels */
    size_t n_functions;
};

extern const struct msl_family gpu_msl_families[];
extern const unsigned gpu_msl_family_count;

#endif
