/* Floating-point, relational and integer functions. half computes in float and rounds once.
 *
 * CUDA has the float and integer forms of many under the same global names, which Metal's
 * unqualified calls find; namespace metal takes those in and adds the others. */
#undef INFINITY
#undef NAN
#define INFINITY    __builtin_bit_cast(float, 0x7f800000u)
#define NAN         __builtin_bit_cast(float, 0x7fc00000u)
#define HUGE_VALF   INFINITY
#define MAXFLOAT    3.402823466e+38f
#define FLT_MAX     3.402823466e+38f
#define FLT_MIN     1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define MAXHALF     65504.0f
#define HALF_MAX    65504.0f
#define HALF_MIN    6.103515625e-05f
#define M_E_F       2.71828182845904523536f
#define M_LOG2E_F   1.44269504088896340736f
#define M_LN2_F     0.693147180559945309417f
#define M_PI_F      3.14159265358979323846f
#define M_SQRT2_F   1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f
#define CHAR_BIT    8
#define INT_MAX     2147483647
#define INT_MIN     (-2147483647 - 1)
#define UINT_MAX    0xffffffffu

namespace metal {
/* Componentwise forms of functions of one, two and three scalars. */
#define MSL_VECTOR_1(F)                                               \
    template <class T, int N>                                         \
    MSL_FN vec<T, N> F(vec<T, N> v) {                                 \
        vec<T, N> r;                                                  \
        _Pragma("unroll") for (int i = 0; i < N; i++) r[i] = F(v[i]); \
        return r;                                                     \
    }
#define MSL_VECTOR_2(F)                                                     \
    template <class T, int N>                                               \
    MSL_FN vec<T, N> F(vec<T, N> a, vec<T, N> b) {                          \
        vec<T, N> r;                                                        \
        _Pragma("unroll") for (int i = 0; i < N; i++) r[i] = F(a[i], b[i]); \
        return r;                                                           \
    }                                                                       \
    template <class T, int N>                                               \
    MSL_FN vec<T, N> F(vec<T, N> a, msl_id<T> b) {                          \
        return F(a, vec<T, N>(b));                                          \
    }
#define MSL_VECTOR_3(F)                                                           \
    template <class T, int N>                                                     \
    MSL_FN vec<T, N> F(vec<T, N> a, vec<T, N> b, vec<T, N> c) {                   \
        vec<T, N> r;                                                              \
        _Pragma("unroll") for (int i = 0; i < N; i++) r[i] = F(a[i], b[i], c[i]); \
        return r;                                                                 \
    }                                                                             \
    template <class T, int N>                                                     \
    MSL_FN vec<T, N> F(vec<T, N> a, msl_id<T> b, msl_id<T> c) {                   \
        return F(a, vec<T, N>(b), vec<T, N>(c));                                  \
    }                                                                             \
    template <class T, int N>                                                     \
    MSL_FN vec<T, N> F(vec<T, N> a, vec<T, N> b, msl_id<T> c) {                   \
        return F(a, b, vec<T, N>(c));                                             \
    }

/* Of one float, as CUDA names it. */
#define MSL_TAKEN_1(F)                                    \
    using ::F;                                            \
    MSL_FN half F(half x) { return half(::F(float(x))); } \
    MSL_VECTOR_1(F)
#define MSL_TAKEN_2(F)                                                      \
    using ::F;                                                              \
    MSL_FN half F(half x, half y) { return half(::F(float(x), float(y))); } \
    MSL_VECTOR_2(F)
MSL_TAKEN_1(sin);
MSL_TAKEN_1(cos);
MSL_TAKEN_1(tan);
MSL_TAKEN_1(asin);
MSL_TAKEN_1(acos);
MSL_TAKEN_1(atan);
MSL_TAKEN_1(sinh);
MSL_TAKEN_1(cosh);
MSL_TAKEN_1(tanh);
MSL_TAKEN_1(asinh);
MSL_TAKEN_1(acosh);
MSL_TAKEN_1(atanh);
MSL_TAKEN_1(exp);
MSL_TAKEN_1(exp2);
MSL_TAKEN_1(log);
MSL_TAKEN_1(log2);
MSL_TAKEN_1(log10);
MSL_TAKEN_1(sqrt);
MSL_TAKEN_1(floor);
MSL_TAKEN_1(ceil);
MSL_TAKEN_1(trunc);
MSL_TAKEN_1(round);
MSL_TAKEN_1(rint);
MSL_TAKEN_1(fabs);
MSL_TAKEN_2(pow);
MSL_TAKEN_2(fmod);
MSL_TAKEN_2(atan2);
MSL_TAKEN_2(copysign);
MSL_TAKEN_2(fmin);
MSL_TAKEN_2(fmax);
MSL_TAKEN_2(fdim);
using ::fma;
MSL_FN half fma(half a, half b, half c) {
    half r;
    asm("fma.rn.f16 %0, %1, %2, %3;"
        : "=h"(r.msl_bits)
        : "h"(a.msl_bits), "h"(b.msl_bits), "h"(c.msl_bits));
    return r;
}
MSL_VECTOR_3(fma);

/* Of one float, by a formula in x. */
#define MSL_FLOAT_1(F, value)                 \
    MSL_FN float F(float x) { return value; } \
    MSL_FN half F(half x_) {                  \
        const float x = x_;                   \
        return half(value);                   \
    }                                         \
    MSL_VECTOR_1(F)
MSL_FLOAT_1(sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x == 0.0f ? x : 0.0f);
MSL_FLOAT_1(saturate, x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x);
MSL_FLOAT_1(fract, fminf(x - floorf(x), 0x1.fffffep-1f));
using ::rsqrt;
MSL_FN half rsqrt(half x) { return half(rsqrtf(float(x))); }
MSL_VECTOR_1(rsqrt);
using ::exp10;
MSL_FN half exp10(half x) { return half(exp10f(float(x))); }
MSL_VECTOR_1(exp10);
using ::cospi;
using ::sinpi;
MSL_FN float powr(float x, float y) { return powf(x, y); }
MSL_FN float step(float edge, float x) { return x < edge ? 0.0f : 1.0f; }
MSL_FN float mix(float a, float b, float t) { return a + (b - a) * t; }
MSL_VECTOR_3(mix);
MSL_FN float smoothstep(float a, float b, float x) {
    const float t = saturate((x - a) / (b - a));
    return t * t * (3.0f - 2.0f * t);
}
using ::ldexp;
MSL_FN float frexp(float x, int &e) { return frexpf(x, &e); }
MSL_FN float divide(float a, float b) { return a / b; }

#define MSL_TEST(F, value)                                            \
    MSL_FN bool F(half x_) {                                          \
        const float x = x_;                                           \
        return value;                                                 \
    }                                                                 \
    template <class T, int N>                                         \
    MSL_FN vec<bool, N> F(vec<T, N> v) {                              \
        vec<bool, N> r;                                               \
        _Pragma("unroll") for (int i = 0; i < N; i++) r[i] = F(v[i]); \
        return r;                                                     \
    }
using ::isfinite;
using ::isinf;
using ::isnan;
using ::signbit;
MSL_TEST(isnan, ::isnan(x));
MSL_TEST(isinf, ::isinf(x));
MSL_TEST(isfinite, ::isfinite(x));
MSL_TEST(signbit, ::signbit(x));

/* Of numbers that are not NaN the smaller and the larger, for floats as fmin and fmax. */
using ::max;
using ::min;
MSL_FN half min(half a, half b) { return half(fminf(float(a), float(b))); }
MSL_FN half max(half a, half b) { return half(fmaxf(float(a), float(b))); }
#define MSL_SMALL(T)                                 \
    MSL_FN T min(T a, T b) { return b < a ? b : a; } \
    MSL_FN T max(T a, T b) { return a < b ? b : a; }
MSL_SMALL(char);
MSL_SMALL(uchar);
MSL_SMALL(short);
MSL_SMALL(ushort);
MSL_VECTOR_2(min);
MSL_VECTOR_2(max);
template <class T>
MSL_FN MSL_NUMBER(T) min3(T a, T b, T c) {
    return min(a, min(b, c));
}
template <class T>
MSL_FN MSL_NUMBER(T) max3(T a, T b, T c) {
    return max(a, max(b, c));
}
template <class T>
MSL_FN MSL_NUMBER(T) clamp(T x, msl_id<T> low, msl_id<T> high) {
    return min(max(x, low), high);
}
MSL_VECTOR_3(clamp);
using ::abs;
MSL_FN half abs(half x) { return half(fabsf(float(x))); }
MSL_VECTOR_1(abs);

#define MSL_USE(F) using metal::F
#define MSL_PRECISE    \
    MSL_USE(exp);      \
    MSL_USE(exp2);     \
    MSL_USE(exp10);    \
    MSL_USE(log);      \
    MSL_USE(log2);     \
    MSL_USE(log10);    \
    MSL_USE(sqrt);     \
    MSL_USE(rsqrt);    \
    MSL_USE(sin);      \
    MSL_USE(cos);      \
    MSL_USE(tan);      \
    MSL_USE(sinh);     \
    MSL_USE(cosh);     \
    MSL_USE(tanh);     \
    MSL_USE(asin);     \
    MSL_USE(acos);     \
    MSL_USE(atan);     \
    MSL_USE(atan2);    \
    MSL_USE(pow);      \
    MSL_USE(powr);     \
    MSL_USE(fmod);     \
    MSL_USE(round);    \
    MSL_USE(rint);     \
    MSL_USE(trunc);    \
    MSL_USE(floor);    \
    MSL_USE(ceil);     \
    MSL_USE(fma);      \
    MSL_USE(fabs);     \
    MSL_USE(abs);      \
    MSL_USE(min);      \
    MSL_USE(max);      \
    MSL_USE(fmin);     \
    MSL_USE(fmax);     \
    MSL_USE(clamp);    \
    MSL_USE(saturate); \
    MSL_USE(sign);     \
    MSL_USE(divide);
namespace precise {
MSL_PRECISE
}
namespace fast {
MSL_PRECISE
}

/* select(a, b, c) is c ? b : a. */
template <class T>
MSL_FN MSL_NUMBER(T) select(T a, msl_id<T> b, bool c) {
    return c ? b : a;
}
template <class T, int N>
MSL_FN vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<bool, N> c) {
    vec<T, N> r;
#pragma unroll
    for (int i = 0; i < N; i++) r[i] = c[i] ? b[i] : a[i];
    return r;
}
template <int N>
MSL_FN bool any(vec<bool, N> c) {
    bool r = false;
#pragma unroll
    for (int i = 0; i < N; i++) r |= c[i];
    return r;
}
template <int N>
MSL_FN bool all(vec<bool, N> c) {
    bool r = true;
#pragma unroll
    for (int i = 0; i < N; i++) r &= c[i];
    return r;
}
MSL_FN bool any(bool c) { return c; }
MSL_FN bool all(bool c) { return c; }

template <class T, int N>
MSL_FN T dot(vec<T, N> a, vec<T, N> b) {
    T s = a[0] * b[0];
#pragma unroll
    for (int i = 1; i < N; i++) s = s + a[i] * b[i];
    return s;
}
template <class T, int N>
MSL_FN T length_squared(vec<T, N> a) {
    return dot(a, a);
}
template <class T, int N>
MSL_FN T length(vec<T, N> a) {
    return sqrt(dot(a, a));
}
template <class T, int N>
MSL_FN vec<T, N> normalize(vec<T, N> a) {
    return a * rsqrt(dot(a, a));
}

/* Integers. */
template <class T>
MSL_FN ulong msl_unsigned(T x) {
    return sizeof(T) == 8 ? ulong(x) : ulong(x) & ((1ul << (sizeof(T) * 8 % 64)) - 1);
}
template <class T>
MSL_FN MSL_INTEGER(T) popcount(T x) {
    return T(__popcll(msl_unsigned(x)));
}
template <class T>
MSL_FN MSL_INTEGER(T) clz(T x) {
    return T(__clzll(long(msl_unsigned(x))) - (64 - 8 * int(sizeof(T))));
}
template <class T>
MSL_FN MSL_INTEGER(T) ctz(T x) {
    return T(x ? __ffsll(long(msl_unsigned(x))) - 1 : 8 * int(sizeof(T)));
}
template <class T>
MSL_FN MSL_INTEGER(T) reverse_bits(T x) {
    return T(__brevll(msl_unsigned(x)) >> (64 - 8 * sizeof(T)));
}
template <class T>
MSL_FN MSL_INTEGER(T) rotate(T x, msl_id<T> n) {
    const uint width = 8 * sizeof(T), k = uint(n) % width;
    const ulong v = msl_unsigned(x);
    return k ? T(v << k | v >> (width - k)) : x;
}
MSL_FN uint mulhi(uint a, uint b) { return __umulhi(a, b); }
MSL_FN int mulhi(int a, int b) { return __mulhi(a, b); }
MSL_FN ulong mulhi(ulong a, ulong b) { return __umul64hi(a, b); }
template <class T>
MSL_FN MSL_INTEGER(T) extract_bits(T x, uint offset, uint bits) {
    const uint width = 8 * sizeof(T);
    return bits ? T(T(x << (width - bits - offset)) >> (width - bits)) : T(0);
}
template <class T>
MSL_FN MSL_INTEGER(T) insert_bits(T base, T insert, uint offset, uint bits) {
    const ulong mask = (bits >= 64 ? ~0ul : (1ul << bits) - 1) << offset;
    return T((ulong(base) & ~mask) | ((ulong(insert) << offset) & mask));
}
template <class T>
MSL_FN MSL_INTEGER(T) absdiff(T a, T b) {
    return a > b ? a - b : b - a;
}
} /* namespace metal */
