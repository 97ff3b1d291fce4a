/* What the front end makes of constructor calls and casts. In OpenCL (float4)(a, b) and a vector
 * cast reinterpret or demand other things than MSL, where components are converted by value. */
namespace metal {
template <class T>
struct msl_make {
    template <class... A>
    MSL_FN T of(A... a) {
        return T(a...);
    }
    MSL_FN T of() { return T(); }
};
template <class E, int N, class S>
MSL_FN void msl_put(thread vec<E, N> &r, thread int &k, S s) {
    r[k++] = E(s);
}
template <class E, int N, class S, int M>
MSL_FN void msl_put(thread vec<E, N> &r, thread int &k, vec<S, M> s) {
    for (int i = 0; i < M; i++) r[k++] = E(s[i]);
}
template <class E, int N>
struct msl_make<vec<E, N>> {
    template <class S>
    MSL_FN enable_if_t<msl_is_number<S>, vec<E, N>> of(S s) {
        return (vec<E, N>)(E(s));
    }
    template <class S, int M>
    MSL_FN vec<E, N> of(vec<S, M> s) {
        static_assert(M == N, "vector conversion changes the number of components");
        return __builtin_convertvector(s, vec<E, N>);
    }
    template <class S> /* packed vectors */
    MSL_FN enable_if_t<!msl_is_number<S> && msl_element<S>::count == 1, vec<E, N>> of(S s) {
        return vec<E, N>(s);
    }
    template <class A, class B, class... C>
    MSL_FN vec<E, N> of(A a, B b, C... c) {
        static_assert(
            msl_element<A>::count + msl_element<B>::count + (0 + ... + msl_element<C>::count) == N,
            "wrong number of components in a vector constructor");
        vec<E, N> r;
        int k = 0;
        msl_put<E, N>(r, k, a);
        msl_put<E, N>(r, k, b);
        (msl_put<E, N>(r, k, c), ...);
        return r;
    }
    MSL_FN vec<E, N> of() { return (vec<E, N>)(E(0)); }
};
/* {a, b, ...} in a declaration: what is left out is zero. */
template <class V, class... A>
MSL_FN V msl_init(A... a) {
    typedef typename msl_element<V>::type E;
    constexpr int N = msl_element<V>::count;
    static_assert((0 + ... + msl_element<A>::count) <= N,
                  "too many components in a vector initialiser");
    V r = (V)(E(0));
    int k = 0;
    (msl_put<E, N>(r, k, a), ...);
    return r;
}
template <class T>
struct msl_cast {};
template <class T, class S>
MSL_FN T operator->*(msl_cast<T>, S s) {
    return msl_make<T>::of(s);
}
} /* namespace metal */
