/* What compiled kernels and the runtime agree on. Read by the MSL compiler and by C++, so that it
 * may use neither a standard header nor a type that one of them lacks. */
#ifndef MSL_ABI_H
#define MSL_ABI_H

/* Values of the thread-position attributes. */
struct msl_thread_ids {
    unsigned thread_in_grid[3], thread_in_group[3], group_in_grid[3];
    unsigned threads_per_group[3]; /* of this group: less at the edges of a grid */
    unsigned full_threads_per_group[3];
    unsigned groups_per_grid[3], threads_per_grid[3];
    unsigned thread_index, lane, simdgroup, simdgroups, full_simdgroups, simd_width;
    unsigned quad_lane, quad, quads;
};

/* Addresses of the arguments, by index. */
struct msl_arguments {
    void *buffers[31];
    void *threadgroups[31];
};

/* Where the lanes of a SIMD-group leave their values and find the others'. */
struct msl_exchange {
    unsigned active; /* bit i: lane i takes part */
    unsigned done;   /* set by the first lane to have computed `result` for all */
    unsigned char lanes[32][32] __attribute__((aligned(32)));
    unsigned char result[256] __attribute__((aligned(32)));
};

enum msl_site_kind {
    MSL_THREADGROUP_BARRIER,
    MSL_SIMDGROUP_BARRIER,
    MSL_SIMD_REDUCE,
    MSL_SIMD_PREFIX,
    MSL_SIMD_SHUFFLE,
    MSL_SIMD_VOTE,
    MSL_QUAD,
    MSL_MATRIX_MULTIPLY,
    MSL_MATRIX_MEMORY
};

enum { MSL_MEM_DEVICE = 1, MSL_MEM_THREADGROUP = 2 };

/* The table of a compiled library, under the name msl_entries; entry I runs by the function
 * msl_entry_I(const struct msl_arguments *, const struct msl_thread_ids *). */
#ifdef __OPENCL_CPP_VERSION__
#define MSL_TABLE const __constant
#else
#define MSL_TABLE const
#endif
struct msl_entry_argument {
    unsigned kind, index, writable, by_reference; /* as in struct msl_argument */
    unsigned long size, alignment;
    MSL_TABLE char *name;
};
struct msl_entry_constant {
    unsigned index, required, defined;
    MSL_TABLE char *name, *type;
};
struct msl_entry {
    MSL_TABLE char *name;
    MSL_TABLE struct msl_entry_argument *arguments;
    MSL_TABLE struct msl_entry_constant *constants;
    unsigned n_arguments, n_constants, max_threads;
};

#endif
