/* Atomics. Metal has relaxed ordering only. */
namespace metal {
enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
    T msl_value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;

template <class T>
MSL_FN T *msl_address(volatile atomic<T> *p) {
    return (T *)&p->msl_value;
}
template <class T>
MSL_FN T atomic_load_explicit(const volatile atomic<T> *p, memory_order) {
    return p->msl_value;
}
template <class T>
MSL_FN void atomic_store_explicit(volatile atomic<T> *p, msl_id<T> v, memory_order) {
    p->msl_value = v;
}
#define MSL_ATOMIC(name, function)                                                        \
    template <class T>                                                                    \
    MSL_FN T atomic_##name##_explicit(volatile atomic<T> *p, msl_id<T> v, memory_order) { \
        return function(msl_address(p), v);                                               \
    }
MSL_ATOMIC(exchange, atomicExch);
MSL_ATOMIC(fetch_add, atomicAdd);
MSL_ATOMIC(fetch_and, atomicAnd);
MSL_ATOMIC(fetch_or, atomicOr);
MSL_ATOMIC(fetch_xor, atomicXor);
MSL_ATOMIC(fetch_max, atomicMax);
MSL_ATOMIC(fetch_min, atomicMin);
template <class T>
MSL_FN T atomic_fetch_sub_explicit(volatile atomic<T> *p, msl_id<T> v, memory_order) {
    return atomicAdd(msl_address(p), T(-v));
}
template <class T>
MSL_FN bool atomic_compare_exchange_weak_explicit(volatile atomic<T> *p, T *expected, msl_id<T> v,
                                                  memory_order, memory_order) {
    const T found = atomicCAS(msl_address(p), *expected, T(v)), wanted = *expected;
    *expected = found;
    return found == wanted;
}
} /* namespace metal */
