/* Floating-point and relational functions. half and bfloat compute in float and round once. */
namespace metal {
/* Componentwise forms of functions of one, two and three scalars. */
#define MSL_VECTOR_1(F)                                \
    template <class T, int N>                          \
    MSL_FN vec<T, N> F(vec<T, N> v) {                  \
        vec<T, N> r;                                   \
        for (int i = 0; i < N; i++) r[i] = F(T(v[i])); \
        return r;                                      \
    }
#define MSL_VECTOR_2(F)                                         \
    template <class T, int N>                                   \
    MSL_FN vec<T, N> F(vec<T, N> a, vec<T, N> b) {              \
        vec<T, N> r;                                            \
        for (int i = 0; i < N; i++) r[i] = F(T(a[i]), T(b[i])); \
        return r;                                               \
    }                                                           \
    template <class T, int N>                                   \
    MSL_FN vec<T, N> F(vec<T, N> a, msl_id<T> b) {              \
        vec<T, N> r;                                            \
        for (int i = 0; i < N; i++) r[i] = F(T(a[i]), b);       \
        return r;                                               \
    }                                                           \
    template <class T, int N>                                   \
    MSL_FN vec<T, N> F(msl_id<T> a, vec<T, N> b) {              \
        vec<T, N> r;                                            \
        for (int i = 0; i < N; i++) r[i] = F(a, T(b[i]));       \
        return r;                                               \
    }
#define MSL_VECTOR_3(F)                                                  \
    template <class T, int N>                                            \
    MSL_FN vec<T, N> F(vec<T, N> a, vec<T, N> b, vec<T, N> c) {          \
        vec<T, N> r;                                                     \
        for (int i = 0; i < N; i++) r[i] = F(T(a[i]), T(b[i]), T(c[i])); \
        return r;                                                        \
    }                                                                    \
    template <class T, int N>                                            \
    MSL_FN vec<T, N> F(vec<T, N> a, msl_id<T> b, msl_id<T> c) {          \
        vec<T, N> r;                                                     \
        for (int i = 0; i < N; i++) r[i] = F(T(a[i]), b, c);             \
        return r;                                                        \
    }                                                                    \
    template <class T, int N>                                            \
    MSL_FN vec<T, N> F(vec<T, N> a, vec<T, N> b, msl_id<T> c) {          \
        vec<T, N> r;                                                     \
        for (int i = 0; i < N; i++) r[i] = F(T(a[i]), T(b[i]), c);       \
        return r;                                                        \
    }

#define MSL_FLOAT_1(F, value)                 \
    MSL_FN float F(float x) { return value; } \
    MSL_FN half F(half x_) {                  \
        float x = x_;                         \
        return half(value);                   \
    }                                         \
    MSL_BF(MSL_FN bfloat F(bfloat x_) {       \
        float x = x_;                         \
        return bfloat(value);                 \
    })                                        \
    MSL_VECTOR_1(F)
#define MSL_FLOAT_2(F, value)                          \
    MSL_FN float F(float x, float y) { return value; } \
    MSL_FN half F(half x_, half y_) {                  \
        float x = x_, y = y_;                          \
        return half(value);                            \
    }                                                  \
    MSL_BF(MSL_FN bfloat F(bfloat x_, bfloat y_) {     \
        float x = x_, y = y_;                          \
        return bfloat(value);                          \
    })                                                 \
    MSL_VECTOR_2(F)
#if MSL_BFLOAT
#define MSL_BF(...) __VA_ARGS__
#else
#define MSL_BF(...)
#endif
#define MSL_BUILTIN(F) MSL_FLOAT_1(F, __builtin_##F##f(x))

MSL_BUILTIN(sin)
MSL_BUILTIN(cos)
MSL_BUILTIN(tan)
MSL_BUILTIN(asin)
MSL_BUILTIN(acos)
MSL_BUILTIN(atan)
MSL_BUILTIN(sinh)
MSL_BUILTIN(cosh)
MSL_BUILTIN(tanh)
MSL_BUILTIN(asinh)
MSL_BUILTIN(acosh)
MSL_BUILTIN(atanh)
MSL_BUILTIN(exp)
MSL_BUILTIN(exp2)
MSL_BUILTIN(log)
MSL_BUILTIN(log2)
MSL_BUILTIN(log10)
MSL_BUILTIN(sqrt)
MSL_BUILTIN(floor)
MSL_BUILTIN(ceil)
MSL_BUILTIN(trunc)
MSL_BUILTIN(round)
MSL_BUILTIN(rint)
MSL_BUILTIN(fabs)
MSL_FLOAT_1(exp10, __builtin_powf(10.0f, x))
MSL_FLOAT_1(rsqrt, 1.0f / __builtin_sqrtf(x))
MSL_FLOAT_1(sinpi, __builtin_sinf(3.14159265358979f * x))
MSL_FLOAT_1(cospi, __builtin_cosf(3.14159265358979f * x))
MSL_FLOAT_1(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : x == 0 ? x : 0.0f)
MSL_FLOAT_1(saturate, x < 0 ? 0.0f : x > 1 ? 1.0f : x)
MSL_FLOAT_1(fract, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f))
MSL_FLOAT_2(pow, __builtin_powf(x, y))
MSL_FLOAT_2(powr, __builtin_powf(x, y))
MSL_FLOAT_2(fmod, __builtin_fmodf(x, y))
MSL_FLOAT_2(atan2, __builtin_atan2f(x, y))
MSL_FLOAT_2(copysign, __builtin_copysignf(x, y))
MSL_FLOAT_2(fmin, __builtin_fminf(x, y))
MSL_FLOAT_2(fmax, __builtin_fmaxf(x, y))
MSL_FLOAT_2(fdim, __builtin_fdimf(x, y))
MSL_FLOAT_2(step, y < x ? 0.0f : 1.0f)
MSL_FN
float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MSL_FN half fma(half a, half b, half c) { return half(__builtin_fmaf(a, b, c)); }
MSL_VECTOR_3(fma)
MSL_FN float mix(float a, float b, float t) { return a + (b - a) * t; }
MSL_FN half mix(half a, half b, half t) { return half(a + (b - a) * t); }
MSL_VECTOR_3(mix)
MSL_FN float smoothstep(float a, float b, float x) {
    float t = saturate((x - a) / (b - a));
    return t * t * (3.0f - 2.0f * t);
}
MSL_FN float ldexp(float x, int e) { return __builtin_ldexpf(x, e); }
MSL_FN float frexp(float x, thread int &e) {
    int result;
    float m = __builtin_frexpf(x, &result);
    e = result;
    return m;
}

#define MSL_TEST(F, value)                                      \
    MSL_FN bool F(float x) { return value; }                    \
    MSL_FN bool F(half x_) {                                    \
        float x = x_;                                           \
        return value;                                           \
    }                                                           \
    MSL_BF(MSL_FN bool F(bfloat x_) {                           \
        float x = x_;                                           \
        return value;                                           \
    })                                                          \
    template <class T, int N>                                   \
    MSL_FN msl_vec<int, N> F(vec<T, N> v) {                     \
        msl_vec<int, N> r;                                      \
        for (int i = 0; i < N; i++) r[i] = F(T(v[i])) ? -1 : 0; \
        return r;                                               \
    }
MSL_TEST(isnan, __builtin_isnan(x))
MSL_TEST(isinf, __builtin_isinf(x))
MSL_TEST(isfinite, !(__builtin_isnan(x) || __builtin_isinf(x)))
MSL_TEST(signbit, __builtin_signbit(x) != 0)

/* Of numbers that are not NaN the smaller and the larger, for floats as fmin and fmax. */
template <class T>
MSL_FN MSL_NUMBER(T) min(T a, T b) {
    return b < a || a != a ? b : a;
}
template <class T>
MSL_FN MSL_NUMBER(T) max(T a, T b) {
    return a < b || a != a ? b : a;
}
MSL_VECTOR_2(min)
MSL_VECTOR_2(max)
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
    return min(max(x, T(low)), T(high));
}
MSL_VECTOR_3(clamp)
template <class T>
MSL_FN MSL_NUMBER(T) abs(T x) {
    if constexpr (msl_is_float<T>)
        return T(fabs(x));
    else
        return x < T(0) ? T(-x) : x;
}
MSL_VECTOR_1(abs)

#define MSL_USE(F) using metal::F;
#define MSL_PRECISE   \
    MSL_USE(exp)      \
    MSL_USE(exp2)     \
    MSL_USE(exp10)    \
    MSL_USE(log)      \
    MSL_USE(log2)     \
    MSL_USE(log10)    \
    MSL_USE(sqrt)     \
    MSL_USE(rsqrt)    \
    MSL_USE(sin)      \
    MSL_USE(cos)      \
    MSL_USE(tan)      \
    MSL_USE(sinh)     \
    MSL_USE(cosh)     \
    MSL_USE(tanh)     \
    MSL_USE(asin)     \
    MSL_USE(acos)     \
    MSL_USE(atan)     \
    MSL_USE(atan2)    \
    MSL_USE(pow)      \
    MSL_USE(powr)     \
    MSL_USE(fmod)     \
    MSL_USE(round)    \
    MSL_USE(rint)     \
    MSL_USE(trunc)    \
    MSL_USE(floor)    \
    MSL_USE(ceil)     \
    MSL_USE(fma)      \
    MSL_USE(fabs)     \
    MSL_USE(abs)      \
    MSL_USE(min)      \
    MSL_USE(max)      \
    MSL_USE(fmin)     \
    MSL_USE(fmax)     \
    MSL_USE(clamp)    \
    MSL_USE(saturate) \
    MSL_USE(sign)
MSL_FN float divide(float a, float b) { return a / b; }
namespace precise {
MSL_PRECISE MSL_USE(divide)
}
namespace fast {
MSL_PRECISE MSL_USE(divide)
}

/* select(a, b, c) is c ? b : a. */
template <class T>
MSL_FN MSL_NUMBER(T) select(T a, msl_id<T> b, bool c) {
    return c ? T(b) : a;
}
template <class T, int N, class C>
MSL_FN vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<C, N> c) {
    vec<T, N> r;
    for (int i = 0; i < N; i++) r[i] = c[i] ? b[i] : a[i];
    return r;
}
template <class C, int N>
MSL_FN bool any(vec<C, N> c) {
    bool r = false;
    for (int i = 0; i < N; i++) r |= c[i] != 0;
    return r;
}
template <class C, int N>
MSL_FN bool all(vec<C, N> c) {
    bool r = true;
    for (int i = 0; i < N; i++) r &= c[i] != 0;
    return r;
}
MSL_FN bool any(bool c) { return c; }
MSL_FN bool all(bool c) { return c; }

template <class T, int N>
MSL_FN T dot(vec<T, N> a, vec<T, N> b) {
    T s = a[0] * b[0];
    for (int i = 1; i < N; i++) s += a[i] * b[i];
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
template <class T>
MSL_FN vec<T, 3> cross(vec<T, 3> a, vec<T, 3> b) {
    return vec<T, 3>{a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
} /* namespace metal */
