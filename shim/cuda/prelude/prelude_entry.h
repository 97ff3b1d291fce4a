/* What the kernel entries that oxibonsai/msl/cuda.py generates are written with. */

/* Wait for the kernel before, where the host lets this one start when the threadgroups of that one
 * end and not when its writes are seen (programmatic dependent launch). Every entry begins with it,
 * but for kernels that wait themselves (shaders/early.h), so that nothing is read or written too
 * early, and a kernel that has ended knows that all before it have. With MSL_STALL every kernel
 * lets the next one start at once and then lingers, so that one that does not wait reads what is
 * not yet written. */
MSL_FN void msl_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#ifdef MSL_STALL
    asm volatile("griddepcontrol.launch_dependents;");
#endif
    asm volatile("griddepcontrol.wait;" ::: "memory");
#ifdef MSL_STALL
    for (const long long begin = clock64(); clock64() - begin < 40000;) {
    }
#endif
#endif
}

/* Let the next kernel start before this one has ended, once each threadgroup has come here. Most
 * kernels never do: threadgroups that wait take the places of those that work. */
MSL_FN void msl_let_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* The type of a function's parameter number `place`. */
template <unsigned place, class F>
struct msl_parameter;
template <class A, class... B>
struct msl_parameter<0, void(A, B...)> {
    typedef A type;
};
template <unsigned place, class A, class... B>
struct msl_parameter<place, void(A, B...)> : msl_parameter<place - 1, void(B...)> {};

template <class T>
struct msl_pointee;
template <class T>
struct msl_pointee<T *> {
    typedef T type;
};
template <class T>
struct msl_pointee<T &> {
    typedef T type;
};
template <class T>
struct msl_without_const {
    typedef T type;
    enum { writable = 1, size = sizeof(T), align = alignof(T) };
};
template <class T>
struct msl_without_const<const T> : msl_without_const<T> {
    enum { writable = 0 };
};
template <>
struct msl_without_const<void> {
    typedef void type;
    enum { writable = 1, size = 1, align = 1 };
};
template <unsigned place, class F>
using msl_bound = typename msl_pointee<typename msl_parameter<place, F>::type>::type;
template <unsigned place, class F>
using msl_pointer = msl_bound<place, F> *;
template <unsigned place, class F>
using msl_value = typename msl_without_const<msl_bound<place, F>>::type;
#define MSL_ARGUMENT(place, function)                        \
    msl_without_const<msl_bound<place, function>>::writable, \
        msl_without_const<msl_bound<place, function>>::size, \
        msl_without_const<msl_bound<place, function>>::align

/* enum oxb_constant_type of shim/include/oxb_shim.h. */
template <class T>
struct msl_constant_type {
    enum { value = 255 };
};
template <>
struct msl_constant_type<bool> {
    enum { value = 0 };
};
template <>
struct msl_constant_type<uint> {
    enum { value = 1 };
};
template <>
struct msl_constant_type<int> {
    enum { value = 2 };
};
template <>
struct msl_constant_type<float> {
    enum { value = 3 };
};

/* A position in the grid or the threadgroup; converts to what the kernel declares. */
struct msl_vector_id {
    uint x, y, z;
    MSL_METHOD operator uint() const { return x; }
    MSL_METHOD operator ushort() const { return ushort(x); }
    template <class T>
    MSL_METHOD operator metal::vec<T, 2>() const {
        return metal::vec<T, 2>(x, y);
    }
    template <class T>
    MSL_METHOD operator metal::vec<T, 3>() const {
        return metal::vec<T, 3>(x, y, z);
    }
};
MSL_FN msl_vector_id msl_thread_in_grid() {
    return {blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y,
            blockIdx.z * blockDim.z + threadIdx.z};
}
MSL_FN msl_vector_id msl_thread_in_group() { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
MSL_FN msl_vector_id msl_group_in_grid() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
MSL_FN msl_vector_id msl_threads_per_group() { return {blockDim.x, blockDim.y, blockDim.z}; }
MSL_FN msl_vector_id msl_full_threads_per_group() { return msl_threads_per_group(); }
MSL_FN msl_vector_id msl_groups_per_grid() { return {gridDim.x, gridDim.y, gridDim.z}; }
MSL_FN msl_vector_id msl_threads_per_grid() {
    return {gridDim.x * blockDim.x, gridDim.y * blockDim.y, gridDim.z * blockDim.z};
}
MSL_FN uint msl_simdgroup() { return msl_thread_index() >> 5; }
MSL_FN uint msl_simdgroups() { return (blockDim.x * blockDim.y * blockDim.z + 31u) >> 5; }
MSL_FN uint msl_full_simdgroups() { return msl_simdgroups(); }
MSL_FN uint msl_simd_width() { return 32u; }
MSL_FN uint msl_quad_lane() { return msl_thread_index() & 3u; }
MSL_FN uint msl_quad() { return msl_thread_index() >> 2; }
MSL_FN uint msl_quads() { return (blockDim.x * blockDim.y * blockDim.z + 3u) >> 2; }

/* The kernel's threadgroup(0): dynamic memory, whose length each dispatch gives. */
extern __shared__ uint4 msl_group_memory[];
struct msl_group_argument {
    template <class T>
    MSL_METHOD operator T *() const {
        return (T *)msl_group_memory;
    }
    template <class T>
    MSL_METHOD operator T &() const {
        return *(T *)msl_group_memory;
    }
};
