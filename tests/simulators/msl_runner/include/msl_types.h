/* Scalars, vectors, packed vectors, type traits, limits. */
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef __UINTPTR_TYPE__ uintptr_t;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
#if MSL_BFLOAT
typedef __bf16 bfloat;
#else
struct msl_no_bfloat; /* stands where overloads for bfloat would */
#endif

template <class T, int N>
using msl_vec = T __attribute__((ext_vector_type(N)));
#define MSL_VECTORS(T)          \
    typedef msl_vec<T, 2> T##2; \
    typedef msl_vec<T, 3> T##3; \
    typedef msl_vec<T, 4> T##4;
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(long)
MSL_VECTORS(ulong)
MSL_VECTORS(half)
MSL_VECTORS(float)
#if MSL_BFLOAT
MSL_VECTORS(bfloat)
#endif
/* clang's OpenCL mode has no vectors of bool; comparisons give vectors of int. */
typedef int2 bool2;
typedef int3 bool3;
typedef int4 bool4;

namespace metal {
template <class T, int N>
using vec = msl_vec<T, N>;

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
template <class T>
struct msl_same {
    typedef T type;
};
template <class T>
using msl_id = typename msl_same<T>::type;

template <class T>
constexpr constant bool msl_is_half = __is_same(T, half);
#if MSL_BFLOAT
template <class T>
constexpr constant bool msl_is_bfloat = __is_same(T, bfloat);
#else
template <class T>
constexpr constant bool msl_is_bfloat = false;
#endif
template <class T>
constexpr constant bool msl_is_number = __is_arithmetic(T) || msl_is_half<T> || msl_is_bfloat<T>;
template <class T>
constexpr constant bool msl_is_float = __is_floating_point(T) || msl_is_half<T> || msl_is_bfloat<T>;

#define MSL_TRAIT(name, value_)                        \
    template <class T>                                 \
    struct name {                                      \
        static constexpr constant bool value = value_; \
    };                                                 \
    template <class T>                                 \
    constexpr constant bool name##_v = value_;
MSL_TRAIT(is_integral, __is_integral(T))
MSL_TRAIT(is_floating_point, msl_is_float<T>)
MSL_TRAIT(is_unsigned, __is_unsigned(T))
MSL_TRAIT(is_signed, __is_signed(T) || msl_is_float<T>)
template <class A, class B>
struct is_same {
    static constexpr constant bool value = __is_same(A, B);
};
template <class A, class B>
constexpr constant bool is_same_v = __is_same(A, B);

template <class T>
struct msl_element {
    typedef T type;
    static constexpr constant int count = 1;
};
template <class T, int N>
struct msl_element<vec<T, N>> {
    typedef T type;
    static constexpr constant int count = N;
};

/* Overloads for all scalars are limited to numbers, so that vectors go to their own. */
#define MSL_NUMBER(T)  enable_if_t<msl_is_number<T>, T>
#define MSL_INTEGER(T) enable_if_t<__is_integral(T), T>

template <class T>
struct numeric_limits;
#define MSL_LIMITS(T, max_, lowest_, min_, epsilon_, infinity_, nan_) \
    template <>                                                       \
    struct numeric_limits<T> {                                        \
        static constexpr T max() { return max_; }                     \
        static constexpr T lowest() { return lowest_; }               \
        static constexpr T min() { return min_; }                     \
        static constexpr T epsilon() { return epsilon_; }             \
        static constexpr T infinity() { return infinity_; }           \
        static constexpr T quiet_NaN() { return nan_; }               \
    };
MSL_LIMITS(float, 3.402823466e+38f, -3.402823466e+38f, 1.175494351e-38f, 1.192092896e-07f,
           __builtin_inff(), __builtin_nanf(""))
MSL_LIMITS(half, half(65504.0f), half(-65504.0f), half(6.103515625e-05f), half(9.765625e-04f),
           half(__builtin_inff()), half(__builtin_nanf("")))
MSL_LIMITS(char, 127, -128, -128, 0, 0, 0)
MSL_LIMITS(uchar, 255, 0, 0, 0, 0, 0)
MSL_LIMITS(short, 32767, -32768, -32768, 0, 0, 0)
MSL_LIMITS(ushort, 65535, 0, 0, 0, 0, 0)
MSL_LIMITS(int, 2147483647, -2147483647 - 1, -2147483647 - 1, 0, 0, 0)
MSL_LIMITS(uint, 0xffffffffu, 0u, 0u, 0u, 0u, 0u)
MSL_LIMITS(long, 0x7fffffffffffffffL, -0x7fffffffffffffffL - 1, -0x7fffffffffffffffL - 1, 0, 0, 0)
MSL_LIMITS(ulong, ~0ul, 0, 0, 0, 0, 0)

template <class D, class S>
MSL_FN D as_type(S s) {
    static_assert(sizeof(D) == sizeof(S), "as_type: the sizes differ");
    return __builtin_bit_cast(D, s);
}

template <class T, size_t N>
struct array {
    T msl_items[N];
    MSL_METHOD constexpr size_t size() const { return N; }
    MSL_METHOD T &operator[](size_t i) { return msl_items[i]; }
    MSL_METHOD const T &operator[](size_t i) const { return msl_items[i]; }
};

#define MSL_PACKED(T)                                                             \
    struct packed_##T##2 {                                                        \
        T x, y;                                                                   \
        packed_##T##2() = default;                                                \
        MSL_METHOD packed_##T##2(vec<T, 2> v) : x(v.x), y(v.y) {}                 \
        MSL_METHOD packed_##T##2(T a, T b) : x(a), y(b) {}                        \
        MSL_METHOD operator vec<T, 2>() const { return vec<T, 2>{x, y}; }         \
        MSL_METHOD T &operator[](uint i) { return (&x)[i]; }                      \
        MSL_METHOD const T &operator[](uint i) const { return (&x)[i]; }          \
    };                                                                            \
    struct packed_##T##3 {                                                        \
        T x, y, z;                                                                \
        packed_##T##3() = default;                                                \
        MSL_METHOD packed_##T##3(vec<T, 3> v) : x(v.x), y(v.y), z(v.z) {}         \
        MSL_METHOD packed_##T##3(T a, T b, T c) : x(a), y(b), z(c) {}             \
        MSL_METHOD operator vec<T, 3>() const { return vec<T, 3>{x, y, z}; }      \
        MSL_METHOD T &operator[](uint i) { return (&x)[i]; }                      \
        MSL_METHOD const T &operator[](uint i) const { return (&x)[i]; }          \
    };                                                                            \
    struct packed_##T##4 {                                                        \
        T x, y, z, w;                                                             \
        packed_##T##4() = default;                                                \
        MSL_METHOD packed_##T##4(vec<T, 4> v) : x(v.x), y(v.y), z(v.z), w(v.w) {} \
        MSL_METHOD packed_##T##4(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}  \
        MSL_METHOD operator vec<T, 4>() const { return vec<T, 4>{x, y, z, w}; }   \
        MSL_METHOD T &operator[](uint i) { return (&x)[i]; }                      \
        MSL_METHOD const T &operator[](uint i) const { return (&x)[i]; }          \
    };
MSL_PACKED(char)
MSL_PACKED(uchar)
MSL_PACKED(short)
MSL_PACKED(ushort)
MSL_PACKED(int)
MSL_PACKED(uint)
MSL_PACKED(half)
MSL_PACKED(float)

/* Every type is metal::T too. */
using ::size_t;
using ::uchar;
using ::uint;
using ::ulong;
using ::ushort;
#define MSL_USING(T) \
    using ::T##2;    \
    using ::T##3;    \
    using ::T##4;
MSL_USING(char)
MSL_USING(uchar)
MSL_USING(short)
MSL_USING(ushort)
MSL_USING(int)
MSL_USING(uint)
MSL_USING(long)
MSL_USING(ulong)
MSL_USING(half)
MSL_USING(float)
MSL_USING(bool)
#if MSL_BFLOAT
using ::bfloat;
MSL_USING(bfloat)
#endif
} /* namespace metal */
