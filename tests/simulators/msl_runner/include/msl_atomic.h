/* Atomics: Metal has relaxed ones only. */
namespace metal {
enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
    T msl_value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<bool> atomic_bool;
#if __METAL_VERSION__ >= 300
typedef atomic<float> atomic_float;
#endif

#define MSL_ATOMIC_UPDATE(space, name, builtin)                             \
    template <class T>                                                      \
    MSL_FN T name(volatile space atomic<T> *p, msl_id<T> v, memory_order) { \
        return builtin(&p->msl_value, v, 0);                                \
    }
#define MSL_ATOMICS(space)                                                                      \
    template <class T>                                                                          \
    MSL_FN T atomic_load_explicit(const volatile space atomic<T> *p, memory_order) {            \
        T r;                                                                                    \
        const volatile T *q = &p->msl_value;                                                    \
        __atomic_load(q, &r, 0);                                                                \
        return r;                                                                               \
    }                                                                                           \
    template <class T>                                                                          \
    MSL_FN void atomic_store_explicit(volatile space atomic<T> *p, msl_id<T> v, memory_order) { \
        T copy = v;                                                                             \
        volatile T *q = &p->msl_value;                                                          \
        __atomic_store(q, &copy, 0);                                                            \
    }                                                                                           \
    template <class T>                                                                          \
    MSL_FN T atomic_exchange_explicit(volatile space atomic<T> *p, msl_id<T> v, memory_order) { \
        T copy = v, r;                                                                          \
        volatile T *q = &p->msl_value;                                                          \
        __atomic_exchange(q, &copy, &r, 0);                                                     \
        return r;                                                                               \
    }                                                                                           \
    template <class T>                                                                          \
    MSL_FN bool atomic_compare_exchange_weak_explicit(volatile space atomic<T> *p,              \
                                                      thread T *expected, msl_id<T> v,          \
                                                      memory_order, memory_order) {             \
        T want = *expected, copy = v;                                                           \
        volatile T *q = &p->msl_value;                                                          \
        bool done = __atomic_compare_exchange(q, &want, &copy, false, 0, 0);                    \
        *expected = want;                                                                       \
        return done;                                                                            \
    }                                                                                           \
    MSL_ATOMIC_UPDATE(space, atomic_fetch_add_explicit, __atomic_fetch_add)                     \
    MSL_ATOMIC_UPDATE(space, atomic_fetch_sub_explicit, __atomic_fetch_sub)                     \
    MSL_ATOMIC_UPDATE(space, atomic_fetch_and_explicit, __atomic_fetch_and)                     \
    MSL_ATOMIC_UPDATE(space, atomic_fetch_or_explicit, __atomic_fetch_or)                       \
    MSL_ATOMIC_UPDATE(space, atomic_fetch_xor_explicit, __atomic_fetch_xor)                     \
    MSL_ATOMIC_UPDATE(space, atomic_fetch_max_explicit, __atomic_fetch_max)                     \
    MSL_ATOMIC_UPDATE(space, atomic_fetch_min_explicit, __atomic_fetch_min)
MSL_ATOMICS(device)
MSL_ATOMICS(threadgroup)
} /* namespace metal */
