/* SIMD-group matrices: 64 elements over 32 lanes, two neighbouring columns a lane, as Metal lays
 * them. */
namespace metal {
MSL_FN uint msl_matrix_row(uint lane) { return ((lane >> 2) & 4) + ((lane >> 1) & 3); }
MSL_FN uint msl_matrix_column(uint lane) { return ((lane >> 2) & 2) * 2 + (lane & 1) * 2; }
/* The lane that holds element (row, column). */
MSL_FN uint msl_matrix_lane(uint row, uint column) {
    return (row & 4) << 2 | (row & 3) << 1 | (column & 4) << 1 | (column >> 1 & 1);
}

template <class T, int Columns, int Rows = Columns>
struct simdgroup_matrix {
    static_assert(Columns == 8 && Rows == 8, "SIMD-group matrices are 8x8");
    static_assert(is_floating_point_v<T>, "SIMD-group matrices hold half or float");
    vec<T, 2> msl_pair;
    simdgroup_matrix() = default;
    /* A diagonal matrix. */
    MSL_METHOD explicit simdgroup_matrix(T v) {
        const uint r = msl_matrix_row(msl_lane()), c = msl_matrix_column(msl_lane());
        msl_pair = vec<T, 2>(r == c ? v : T(0), r == c + 1 ? v : T(0));
    }
    MSL_METHOD vec<T, 2> &thread_elements() { return msl_pair; }
    MSL_METHOD const vec<T, 2> &thread_elements() const { return msl_pair; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
template <class T, int C, int R = C, class U>
MSL_FN simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(U v) {
    simdgroup_matrix<T, C, R> m;
    m.msl_pair = vec<T, 2>(T(v));
    return m;
}

template <class T>
MSL_FN void simdgroup_load(simdgroup_matrix<T, 8, 8> &d, const T *p, ulong per_row = 8,
                           vec<ulong, 2> origin = vec<ulong, 2>(0ul), bool transpose = false) {
    const ulong r = msl_matrix_row(msl_lane()), c = msl_matrix_column(msl_lane());
#pragma unroll
    for (uint i = 0; i < 2; i++)
        d.msl_pair[i] = transpose ? p[(c + i + origin.y) * per_row + r + origin.x]
                                  : p[(r + origin.y) * per_row + c + i + origin.x];
}
template <class T>
MSL_FN void simdgroup_store(const simdgroup_matrix<T, 8, 8> &s, T *p, ulong per_row = 8,
                            vec<ulong, 2> origin = vec<ulong, 2>(0ul), bool transpose = false) {
    const ulong r = msl_matrix_row(msl_lane()), c = msl_matrix_column(msl_lane());
#pragma unroll
    for (uint i = 0; i < 2; i++) {
        if (transpose)
            p[(c + i + origin.y) * per_row + r + origin.x] = s.msl_pair[i];
        else
            p[(r + origin.y) * per_row + c + i + origin.x] = s.msl_pair[i];
    }
}

/* d = a b + c in float32, each product and sum rounded as float: the matrix units would take a and
 * b to fewer bits. */
template <class D, class A, class B, class C>
MSL_FN void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> &d,
                                          const simdgroup_matrix<A, 8, 8> &a,
                                          const simdgroup_matrix<B, 8, 8> &b,
                                          const simdgroup_matrix<C, 8, 8> &c) {
    const uint row = msl_matrix_row(msl_lane()), column = msl_matrix_column(msl_lane());
    const float ax = float(a.msl_pair.x), ay = float(a.msl_pair.y);
    const float bx = float(b.msl_pair.x), by = float(b.msl_pair.y);
    float x = float(c.msl_pair.x), y = float(c.msl_pair.y);
#pragma unroll
    for (uint k = 0; k < 8; k++) {
        const float left = __shfl_sync(MSL_LANES, k & 1 ? ay : ax, msl_matrix_lane(row, k));
        const uint from = msl_matrix_lane(k, column);
        x = fmaf(left, __shfl_sync(MSL_LANES, bx, from), x);
        y = fmaf(left, __shfl_sync(MSL_LANES, by, from), y);
    }
    d.msl_pair = vec<D, 2>(D(x), D(y));
}
template <class D, class A, class B>
MSL_FN void simdgroup_multiply(simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a,
                               const simdgroup_matrix<B, 8, 8> &b) {
    simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float, 8, 8>(0.0f));
}
} /* namespace metal */
