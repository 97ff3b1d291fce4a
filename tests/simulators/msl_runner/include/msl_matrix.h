/* SIMD-group matrices: 64 elements over 32 lanes, two neighbouring columns a lane. */
namespace metal {
MSL_FN uint msl_row(uint lane) { return ((lane >> 2) & 4) + ((lane >> 1) & 3); }
MSL_FN uint msl_column(uint lane) { return ((lane >> 2) & 2) * 2 + (lane & 1) * 2; }

/* What thread_elements() gives. Apple's is a vector of 64, of which a lane may use elements 0 and
 * 1: no vector of two can be assigned to it. */
template <class T>
struct msl_elements {
    T msl_own[2];
    MSL_METHOD T &operator[](uint i) { return msl_own[i]; }
    MSL_METHOD const T &operator[](uint i) const { return msl_own[i]; }
};

template <class T, int Columns, int Rows = Columns>
struct simdgroup_matrix {
    static_assert(Columns == 8 && Rows == 8, "SIMD-group matrices are 8x8");
    static_assert(msl_is_float<T>, "SIMD-group matrices hold half, float or bfloat");
    msl_elements<T> msl_pair;
    simdgroup_matrix() = default;
    /* A diagonal matrix. */
    MSL_METHOD explicit simdgroup_matrix(T v) {
        const uint r = msl_row(msl_rt_lane()), c = msl_column(msl_rt_lane());
        msl_pair = {r == c ? v : T(0), r == c + 1 ? v : T(0)};
    }
    /* Not in Apple's specification; MLX relies on it, and on this order of lanes, on every GPU. */
    MSL_METHOD msl_elements<T> &thread_elements() { return msl_pair; }
    MSL_METHOD const msl_elements<T> &thread_elements() const { return msl_pair; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
#if MSL_BFLOAT
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
#endif
template <class T, int C, int R = C, class U>
MSL_FN simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(U v) {
    simdgroup_matrix<T, C, R> m;
    m.msl_pair = {T(v), T(v)};
    return m;
}

/* Element (row, column) of the matrix is at p[(row + origin.y) * per_row + column + origin.x], or
 * with row and column exchanged where it is transposed. A lane touches its own two elements, which
 * it need not wait for the others to do; the check build lets them meet, and holds them to one
 * place. */
#define MSL_MATRIX_MEMORY_OF(space)                                                    \
    template <class T, class U>                                                        \
    MSL_FN void simdgroup_load(thread simdgroup_matrix<T, 8, 8> &d, const space U *p,  \
                               ulong per_row = 8, ulong2 origin = ulong2(0ul),         \
                               bool transpose = false, MSL_SITE) {                     \
        static_assert(is_same_v<T, U>, "matrix and memory hold different types");      \
        msl_same_place(ulong(p), per_row, origin, transpose, site_line, site_column);  \
        const ulong2 at = msl_place(per_row, origin, transpose);                       \
        d.msl_pair = {p[at.x], p[at.y]};                                               \
    }                                                                                  \
    template <class T, class U>                                                        \
    MSL_FN void simdgroup_store(thread const simdgroup_matrix<T, 8, 8> &s, space U *p, \
                                ulong per_row = 8, ulong2 origin = ulong2(0ul),        \
                                bool transpose = false, MSL_SITE) {                    \
        static_assert(is_same_v<T, U>, "matrix and memory hold different types");      \
        msl_same_place(ulong(p), per_row, origin, transpose, site_line, site_column);  \
        const ulong2 at = msl_place(per_row, origin, transpose);                       \
        p[at.x] = s.msl_pair[0];                                                       \
        p[at.y] = s.msl_pair[1];                                                       \
    }
/* Where this lane's two elements are. */
MSL_FN ulong2 msl_place(ulong per_row, ulong2 origin, bool transpose) {
    const uint lane = msl_rt_lane();
    const ulong r = msl_row(lane), c = msl_column(lane);
    const ulong first = transpose ? (c + origin.y) * per_row + r + origin.x
                                  : (r + origin.y) * per_row + c + origin.x;
    return ulong2{first, first + (transpose ? per_row : 1ul)};
}
extern "C" void msl_rt_bad_matrix(void);
MSL_FN void msl_same_place(ulong address, ulong per_row, ulong2 origin, bool transpose,
                           uint site_line, uint site_column) {
#if MSL_CHECK_BUILD
    ulong4 value = (ulong4)(address, per_row << 1 | ulong(transpose), origin.x, origin.y);
    MSL_MEET(MSL_MATRIX_MEMORY, value)
    if (x->active != 0xffffffffu) msl_rt_bad_matrix();
    ulong4 first = MSL_LANE(ulong4, 0);
    if (first.x != value.x || first.y != value.y || first.z != value.z || first.w != value.w)
        msl_rt_bad_matrix();
#endif
}
MSL_MATRIX_MEMORY_OF(device)
MSL_MATRIX_MEMORY_OF(threadgroup)

/* d = a b + c, accumulated in float. */
template <class D, class A, class B, class C>
MSL_FN void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8> &d,
                                          const thread simdgroup_matrix<A, 8, 8> &a,
                                          const thread simdgroup_matrix<B, 8, 8> &b,
                                          const thread simdgroup_matrix<C, 8, 8> &c, MSL_SITE) {
    float4 value = (float4)(a.msl_pair[0], a.msl_pair[1], b.msl_pair[0], b.msl_pair[1]);
    MSL_MEET(MSL_MATRIX_MULTIPLY, value)
    float(&product)[64] = *(float(*)[64])x->result;
    if (!x->done) {
        if (x->active != 0xffffffffu) msl_rt_bad_matrix();
        float m[64], n[64];
        for (uint l = 0; l < 32; l++) {
            float4 q = MSL_LANE(float4, l);
            uint i = msl_row(l) * 8 + msl_column(l);
            m[i] = q.x, m[i + 1] = q.y, n[i] = q.z, n[i + 1] = q.w;
        }
        for (int i = 0; i < 8; i++) {
            float r[8] = {};
            for (int k = 0; k < 8; k++)
                for (int j = 0; j < 8; j++) r[j] += m[i * 8 + k] * n[k * 8 + j];
            for (int j = 0; j < 8; j++) product[i * 8 + j] = r[j];
        }
        x->done = 1;
    }
    const uint i = msl_row(msl_rt_lane()) * 8 + msl_column(msl_rt_lane());
    d.msl_pair = {D(product[i] + float(c.msl_pair[0])), D(product[i + 1] + float(c.msl_pair[1]))};
}
template <class D, class A, class B>
MSL_FN void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8> &d,
                               const thread simdgroup_matrix<A, 8, 8> &a,
                               const thread simdgroup_matrix<B, 8, 8> &b, MSL_SITE) {
    simdgroup_matrix<D, 8, 8> zero;
    zero.msl_pair = {D(0), D(0)};
    simdgroup_multiply_accumulate(d, a, b, zero, site_line, site_column);
}
} /* namespace metal */
