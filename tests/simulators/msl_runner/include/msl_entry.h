/* What the front end's entry functions are made of: conversions from the runtime's arguments to the
 * types a kernel declares, and the description of those types. */
struct msl_pointer_argument {
    void *address;
    template <class T>
    operator device T *() const {
        return (device T *)(ulong)address;
    }
#ifndef MSL_CONSTANT_IS_GLOBAL
    template <class T>
    operator constant T *() const {
        return (constant T *)(ulong)address;
    }
#endif
};
struct msl_reference_argument {
    void *address;
    template <class T>
    operator device T &() const {
        return *(device T *)(ulong)address;
    }
#ifndef MSL_CONSTANT_IS_GLOBAL
    template <class T>
    operator constant T &() const {
        return *(constant T *)(ulong)address;
    }
#endif
};
struct msl_group_argument {
    void *address;
    template <class T>
    operator threadgroup T *() const {
        return (threadgroup T *)(ulong)address;
    }
    template <class T>
    operator threadgroup T &() const {
        return *(threadgroup T *)(ulong)address;
    }
};
struct msl_scalar_id {
    uint value;
    template <class T>
    operator T() const {
        return T(value);
    }
};
template <class T>
struct msl_id_vector {
    static T of(const uint *v) { return T(v[0]); }
};
template <class T>
struct msl_id_vector<msl_vec<T, 2>> {
    static msl_vec<T, 2> of(const uint *v) { return msl_vec<T, 2>{T(v[0]), T(v[1])}; }
};
template <class T>
struct msl_id_vector<msl_vec<T, 3>> {
    static msl_vec<T, 3> of(const uint *v) { return msl_vec<T, 3>{T(v[0]), T(v[1]), T(v[2])}; }
};
struct msl_vector_id {
    const uint *values;
    template <class T>
    operator T() const {
        return msl_id_vector<T>::of(values);
    }
};

/* A static threadgroup variable: a reference into the runtime's memory. */
#define MSL_GROUP_VARIABLE(number, type, name) \
    (*(threadgroup type *)(ulong)msl_rt_variable(number, sizeof(type), name))

template <class T>
struct msl_pointee;
#define MSL_POINTEE(space, kind_, writable_)                           \
    template <class T>                                                 \
    struct msl_pointee<space T *> {                                    \
        typedef T type;                                                \
        enum { kind = kind_, writable = writable_, by_reference = 0 }; \
    };                                                                 \
    template <class T>                                                 \
    struct msl_pointee<space T &> {                                    \
        typedef T type;                                                \
        enum { kind = kind_, writable = writable_, by_reference = 1 }; \
    };
MSL_POINTEE(device, 0, 1)
MSL_POINTEE(const device, 0, 0)
MSL_POINTEE(threadgroup, 2, 1)
#ifndef MSL_CONSTANT_IS_GLOBAL
MSL_POINTEE(constant, 1, 0)
#endif
template <uint I, class F>
struct msl_parameter;
template <class A, class... B>
struct msl_parameter<0, void(A, B...)> {
    typedef A type;
};
template <uint I, class A, class... B>
struct msl_parameter<I, void(A, B...)> : msl_parameter<I - 1, void(B...)> {};
/* A row of the table for parameter `place` of a kernel of type `function`. */
#define MSL_ARGUMENT(function, place, kind_, index, name)                                \
    {kind_,                                                                              \
     index,                                                                              \
     msl_pointee<typename msl_parameter<place, function>::type>::writable,               \
     msl_pointee<typename msl_parameter<place, function>::type>::by_reference,           \
     sizeof(typename msl_pointee<typename msl_parameter<place, function>::type>::type),  \
     alignof(typename msl_pointee<typename msl_parameter<place, function>::type>::type), \
     name}
