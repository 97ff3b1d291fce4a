/* half, vectors, packed vectors, traits and limits. */
struct half;
namespace metal {
template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
    typedef T type;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class F>
struct conditional {
    typedef T type;
};
template <class T, class F>
struct conditional<false, T, F> {
    typedef F type;
};
template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;
template <class A, class B>
struct is_same {
    static constexpr bool value = false;
};
template <class A>
struct is_same<A, A> {
    static constexpr bool value = true;
};
template <class A, class B>
constexpr bool is_same_v = is_same<A, B>::value;
template <class T>
constexpr bool is_integral_v = false;
template <class T>
constexpr bool is_floating_point_v = false;
#define MSL_TRAIT(trait, T) \
    template <>             \
    constexpr bool trait<T> = true;
MSL_TRAIT(is_integral_v, bool);
MSL_TRAIT(is_integral_v, char);
MSL_TRAIT(is_integral_v, signed char);
MSL_TRAIT(is_integral_v, uchar);
MSL_TRAIT(is_integral_v, short);
MSL_TRAIT(is_integral_v, ushort);
MSL_TRAIT(is_integral_v, int);
MSL_TRAIT(is_integral_v, uint);
MSL_TRAIT(is_integral_v, long);
MSL_TRAIT(is_integral_v, ulong);
MSL_TRAIT(is_floating_point_v, float);
MSL_TRAIT(is_floating_point_v, ::half);
template <class T>
struct msl_same {
    typedef T type;
};
template <class T>
using msl_id = typename msl_same<T>::type;

template <class D, class S>
MSL_FN D as_type(S s) {
    static_assert(sizeof(D) == sizeof(S), "as_type: the sizes differ");
    return __builtin_bit_cast(D, s);
}
} /* namespace metal */

/* IEEE binary16. Arithmetic of two halves is rounded to half once: float has more than twice the
 * digits, so that rounding to it first changes nothing. Beside a float a half is a float. */
struct half {
    ushort msl_bits;
    half() = default;
    template <class T,
              class = metal::enable_if_t<metal::is_integral_v<T> || metal::is_floating_point_v<T>>>
    MSL_METHOD half(T value) {
        const float f = float(value);
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(msl_bits) : "f"(f));
    }
    MSL_METHOD operator float() const {
        float f;
        asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(msl_bits));
        return f;
    }
    MSL_METHOD half operator-() const {
        half h;
        h.msl_bits = msl_bits ^ 0x8000;
        return h;
    }
};
#define MSL_HALF_OPERATOR(op)                                                          \
    template <class H>                                                                 \
    MSL_FN metal::enable_if_t<metal::is_same_v<H, half>, half> operator op(H a, H b) { \
        return half(float(a) op float(b));                                             \
    }                                                                                  \
    template <class T>                                                                 \
    MSL_FN half &operator op##=(half & a, T b) {                                       \
        return a = half(a op b);                                                       \
    }
MSL_HALF_OPERATOR(+);
MSL_HALF_OPERATOR(-);
MSL_HALF_OPERATOR(*);
MSL_HALF_OPERATOR(/)

namespace metal {
template <class T>
constexpr bool msl_is_number = is_integral_v<T> || is_floating_point_v<T>;
template <class T>
struct is_integral {
    static constexpr bool value = is_integral_v<T>;
};
template <class T>
struct is_floating_point {
    static constexpr bool value = is_floating_point_v<T>;
};
#define MSL_NUMBER(T)  enable_if_t<msl_is_number<T>, T>
#define MSL_INTEGER(T) enable_if_t<is_integral_v<T>, T>

/* A vector lies as in Metal: aligned to its size, one of three like one of four. */
template <class T, int N>
struct vec;
template <class T, int N>
struct msl_storage;
template <class T>
struct alignas(2 * sizeof(T)) msl_storage<T, 2> {
    union {
        T msl_items[2];
        struct {
            T x, y;
        };
        struct {
            T r, g;
        };
    };
};
template <class T>
struct alignas(4 * sizeof(T)) msl_storage<T, 3> {
    union {
        T msl_items[3];
        struct {
            T x, y, z;
        };
        struct {
            T r, g, b;
        };
        vec<T, 2> xy;
        struct {
            T msl_x;
            T msl_yz[2];
        };
    };
    msl_storage() = default;
};
template <class T>
struct alignas(4 * sizeof(T)) msl_storage<T, 4> {
    union {
        T msl_items[4];
        struct {
            T x, y, z, w;
        };
        struct {
            T r, g, b, a;
        };
        struct {
            vec<T, 2> xy, zw;
        };
        vec<T, 3> xyz;
    };
    msl_storage() = default;
};

template <class T>
struct msl_element {
    typedef T type;
    static constexpr int count = 1;
};
template <class T, int N>
struct msl_element<vec<T, N>> {
    typedef T type;
    static constexpr int count = N;
};
template <class T, int N, class S>
MSL_FN void msl_put(vec<T, N> &v, int &k, S s) {
    v.msl_items[k++] = T(s);
}
template <class T, int N, class S, int M>
MSL_FN void msl_put(vec<T, N> &v, int &k, vec<S, M> s) {
#pragma unroll
    for (int i = 0; i < M; i++) v.msl_items[k++] = T(s.msl_items[i]);
}

template <class T, int N>
struct vec : msl_storage<T, N> {
    vec() = default;
    template <class S, class = enable_if_t<msl_is_number<S>>>
    MSL_METHOD vec(S s) {
#pragma unroll
        for (int i = 0; i < N; i++) this->msl_items[i] = T(s);
    }
    template <class S>
    MSL_METHOD explicit vec(vec<S, N> s) {
#pragma unroll
        for (int i = 0; i < N; i++) this->msl_items[i] = T(s.msl_items[i]);
    }
    template <class A, class B, class... C>
    MSL_METHOD vec(A a, B b, C... c) {
        static_assert(
            msl_element<A>::count + msl_element<B>::count + (0 + ... + msl_element<C>::count) == N,
            "wrong number of components in a vector");
        int k = 0;
        msl_put(*this, k, a);
        msl_put(*this, k, b);
        (msl_put(*this, k, c), ...);
    }
    MSL_METHOD T &operator[](uint i) { return this->msl_items[i]; }
    MSL_METHOD const T &operator[](uint i) const { return this->msl_items[i]; }
};

#define MSL_VECTOR_OPERATOR(op)                                               \
    template <class T, int N>                                                 \
    MSL_FN vec<T, N> operator op(vec<T, N> a, vec<T, N> b) {                  \
        vec<T, N> r;                                                          \
        _Pragma("unroll") for (int i = 0; i < N; i++) r[i] = T(a[i] op b[i]); \
        return r;                                                             \
    }                                                                         \
    template <class T, int N>                                                 \
    MSL_FN vec<T, N> operator op(vec<T, N> a, msl_id<T> b) {                  \
        return a op vec<T, N>(b);                                             \
    }                                                                         \
    template <class T, int N>                                                 \
    MSL_FN vec<T, N> operator op(msl_id<T> a, vec<T, N> b) {                  \
        return vec<T, N>(a) op b;                                             \
    }                                                                         \
    template <class T, int N, class U>                                        \
    MSL_FN vec<T, N> &operator op##=(vec<T, N> &a, U b) {                     \
        return a = a op b;                                                    \
    }
MSL_VECTOR_OPERATOR(+);
MSL_VECTOR_OPERATOR(-);
MSL_VECTOR_OPERATOR(*);
MSL_VECTOR_OPERATOR(/);
MSL_VECTOR_OPERATOR(%);
MSL_VECTOR_OPERATOR(&);
MSL_VECTOR_OPERATOR(|);
MSL_VECTOR_OPERATOR(^);
MSL_VECTOR_OPERATOR(<<);
MSL_VECTOR_OPERATOR(>>);
#define MSL_VECTOR_COMPARISON(op)                                          \
    template <class T, int N>                                              \
    MSL_FN vec<bool, N> operator op(vec<T, N> a, vec<T, N> b) {            \
        vec<bool, N> r;                                                    \
        _Pragma("unroll") for (int i = 0; i < N; i++) r[i] = a[i] op b[i]; \
        return r;                                                          \
    }                                                                      \
    template <class T, int N>                                              \
    MSL_FN vec<bool, N> operator op(vec<T, N> a, msl_id<T> b) {            \
        return a op vec<T, N>(b);                                          \
    }
MSL_VECTOR_COMPARISON(==);
MSL_VECTOR_COMPARISON(!=);
MSL_VECTOR_COMPARISON(<);
MSL_VECTOR_COMPARISON(>);
MSL_VECTOR_COMPARISON(<=);
MSL_VECTOR_COMPARISON(>=);
template <class T, int N>
MSL_FN vec<T, N> operator-(vec<T, N> a) {
    vec<T, N> r;
#pragma unroll
    for (int i = 0; i < N; i++) r[i] = T(-a[i]);
    return r;
}
template <class T, int N>
MSL_FN vec<T, N> operator~(vec<T, N> a) {
    vec<T, N> r;
#pragma unroll
    for (int i = 0; i < N; i++) r[i] = T(~a[i]);
    return r;
}
template <int N>
MSL_FN vec<bool, N> operator!(vec<bool, N> a) {
    vec<bool, N> r;
#pragma unroll
    for (int i = 0; i < N; i++) r[i] = !a[i];
    return r;
}

/* Aligned like its elements. */
template <class T, int N>
struct msl_packed {
    T msl_items[N];
    msl_packed() = default;
    MSL_METHOD msl_packed(vec<T, N> v) {
#pragma unroll
        for (int i = 0; i < N; i++) msl_items[i] = v[i];
    }
    template <class A, class B, class... C>
    MSL_METHOD msl_packed(A a, B b, C... c) : msl_packed(vec<T, N>(a, b, c...)) {}
    MSL_METHOD operator vec<T, N>() const {
        vec<T, N> v;
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = msl_items[i];
        return v;
    }
    MSL_METHOD T &operator[](uint i) { return msl_items[i]; }
    MSL_METHOD const T &operator[](uint i) const { return msl_items[i]; }
};

/* Reads a T in one access where it lies aligned to its size, else as its type allows. */
template <class T>
MSL_FN T msl_read(const T *p) {
    return *p;
}
template <class W, class T>
MSL_FN T msl_read_as(const T *p) {
    if (((ulong)p & (sizeof(T) - 1)) == 0) return as_type<T>(*(const W *)p);
    return *p;
}
template <class T, int N>
MSL_FN msl_packed<T, N> msl_read(const msl_packed<T, N> *p) {
    if constexpr (sizeof *p == 16)
        return msl_read_as<::uint4>(p);
    else if constexpr (sizeof *p == 8)
        return msl_read_as<::uint2>(p);
    else if constexpr (sizeof *p == 4)
        return msl_read_as<uint>(p);
    else
        return *p;
}

template <class T>
struct numeric_limits;
#define MSL_LIMITS(T, max_, lowest_, min_, epsilon_)                               \
    template <>                                                                    \
    struct numeric_limits<T> {                                                     \
        static constexpr MSL_METHOD T max() { return max_; }                       \
        static constexpr MSL_METHOD T lowest() { return lowest_; }                 \
        static constexpr MSL_METHOD T min() { return min_; }                       \
        static constexpr MSL_METHOD T epsilon() { return epsilon_; }               \
        static MSL_METHOD T infinity() { return T(as_type<float>(0x7f800000u)); }  \
        static MSL_METHOD T quiet_NaN() { return T(as_type<float>(0x7fffffffu)); } \
    };
MSL_LIMITS(float, 3.402823466e+38f, -3.402823466e+38f, 1.175494351e-38f, 1.192092896e-07f);
MSL_LIMITS(char, 127, -128, -128, 0);
MSL_LIMITS(uchar, 255, 0, 0, 0);
MSL_LIMITS(short, 32767, -32768, -32768, 0);
MSL_LIMITS(ushort, 65535, 0, 0, 0);
MSL_LIMITS(int, 2147483647, -2147483647 - 1, -2147483647 - 1, 0);
MSL_LIMITS(uint, 0xffffffffu, 0u, 0u, 0u);
MSL_LIMITS(long, 0x7fffffffffffffffL, -0x7fffffffffffffffL - 1, -0x7fffffffffffffffL - 1, 0);
MSL_LIMITS(ulong, ~0ul, 0ul, 0ul, 0ul);

template <class T, unsigned long N>
struct array {
    T msl_items[N];
    MSL_METHOD constexpr unsigned long size() const { return N; }
    MSL_METHOD T &operator[](unsigned long i) { return msl_items[i]; }
    MSL_METHOD const T &operator[](unsigned long i) const { return msl_items[i]; }
};
} /* namespace metal */

template <class T>
struct msl_reader {
    const T *msl_from;
    MSL_METHOD explicit msl_reader(const T *from) : msl_from(from) {}
    template <class U>
    MSL_METHOD explicit msl_reader(const U *from) : msl_from((const T *)from) {}
    MSL_METHOD T operator*() const { return metal::msl_read(msl_from); }
};

/* CUDA has structs of most of these names, without operators. */
#define MSL_VECTORS(T)                   \
    typedef metal::vec<T, 2> msl_##T##2; \
    typedef metal::vec<T, 3> msl_##T##3; \
    typedef metal::vec<T, 4> msl_##T##4; \
    namespace metal {                    \
    using ::msl_##T##2;                  \
    using ::msl_##T##3;                  \
    using ::msl_##T##4;                  \
    }
#define MSL_PACKED(T)                              \
    typedef metal::msl_packed<T, 2> packed_##T##2; \
    typedef metal::msl_packed<T, 3> packed_##T##3; \
    typedef metal::msl_packed<T, 4> packed_##T##4;
MSL_VECTORS(char);
MSL_VECTORS(uchar);
MSL_VECTORS(short);
MSL_VECTORS(ushort);
MSL_VECTORS(int);
MSL_VECTORS(uint);
MSL_VECTORS(long);
MSL_VECTORS(ulong);
MSL_VECTORS(half);
MSL_VECTORS(float);
MSL_VECTORS(bool);
MSL_PACKED(char);
MSL_PACKED(uchar);
MSL_PACKED(short);
MSL_PACKED(ushort);
MSL_PACKED(int);
MSL_PACKED(uint);
MSL_PACKED(half);
MSL_PACKED(float);
#define char2   msl_char2
#define char3   msl_char3
#define char4   msl_char4
#define uchar2  msl_uchar2
#define uchar3  msl_uchar3
#define uchar4  msl_uchar4
#define short2  msl_short2
#define short3  msl_short3
#define short4  msl_short4
#define ushort2 msl_ushort2
#define ushort3 msl_ushort3
#define ushort4 msl_ushort4
#define int2    msl_int2
#define int3    msl_int3
#define int4    msl_int4
#define uint2   msl_uint2
#define uint3   msl_uint3
#define uint4   msl_uint4
#define long2   msl_long2
#define long3   msl_long3
#define long4   msl_long4
#define ulong2  msl_ulong2
#define ulong3  msl_ulong3
#define ulong4  msl_ulong4
#define half2   msl_half2
#define half3   msl_half3
#define half4   msl_half4
#define float2  msl_float2
#define float3  msl_float3
#define float4  msl_float4
#define bool2   msl_bool2
#define bool3   msl_bool3
#define bool4   msl_bool4
