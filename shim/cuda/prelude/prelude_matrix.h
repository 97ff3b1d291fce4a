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

/* sums += a tile of 16 rows and 16 elements, times those of 8 vectors: the half product of
 * mma.m16n8k16, in its order of elements over the lanes. */
MSL_FN void msl_matrix_tile(float *sums, const uint *rows, uint first, uint second) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "r"(first), "r"(second));
#elif __CUDA_ARCH__ >= 750
#pragma unroll
    for (uint pair = 0; pair < 2; pair++)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
            "{%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(rows[2 * pair]), "r"(rows[2 * pair + 1]), "r"(pair ? second : first));
#else
    const uint row = msl_lane() & ~3u, column = (msl_lane() & 3u) * 8;
#pragma unroll 1
    for (uint k = 0; k < 16; k++) {
        const uint quad = k % 8 / 2, down = k % 2 * 16;
        const uint high = k < 8 ? rows[0] : rows[2], low = k < 8 ? rows[1] : rows[3];
        const uint word = k < 8 ? first : second;
#pragma unroll
        for (uint i = 0; i < 4; i++) {
            const uint a = __shfl_sync(MSL_LANES, i < 2 ? high : low, row + quad);
            const uint b = __shfl_sync(MSL_LANES, word, column + i % 2 * 4 + quad);
            sums[i] = fmaf(float(__builtin_bit_cast(half, ushort(a >> down))),
                           float(__builtin_bit_cast(half, ushort(b >> down))), sums[i]);
        }
    }
#endif
}
/* sums = before + a tile of 16 rows and 32 elements, times those of 8 columns, in signed bytes: the
 * product of mma.m16n8k32, in its order of elements over the lanes. */
MSL_FN void msl_matrix_bytes(int *sums, const int *before, const uint *rows, uint first,
                             uint second) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %11, %12, %13};"
        : "=r"(sums[0]), "=r"(sums[1]), "=r"(sums[2]), "=r"(sums[3])
        : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "r"(first), "r"(second),
          "r"(before[0]), "r"(before[1]), "r"(before[2]), "r"(before[3]));
#else
    const uint row = msl_lane() & ~3u, column = (msl_lane() & 3u) * 8;
    int found[4] = {before[0], before[1], before[2], before[3]};
#pragma unroll 1
    for (uint quad = 0; quad < 4; quad++) {
#pragma unroll
        for (uint i = 0; i < 4; i++) { /* a row's words, and those of the column's */
            const uint a = __shfl_sync(MSL_LANES, rows[i], row + quad);
#pragma unroll
            for (uint c = 0; c < 2; c++) {
                const uint b =
                    __shfl_sync(MSL_LANES, i < 2 ? first : second, column + 4 * c + quad);
                found[i % 2 * 2 + c] = __dp4a(int(a), int(b), found[i % 2 * 2 + c]);
            }
        }
    }
#pragma unroll
    for (uint i = 0; i < 4; i++) sums[i] = found[i];
#endif
}
/* The value in a register of its own, for the compiler cannot know it: no SM has a number of 2^31.
 */
MSL_FN uint msl_keep(uint value) {
    uint kept;
    asm volatile(
        "{\n .reg .u32 sm;\n mov.u32 sm, %%smid;\n shr.u32 sm, sm, 31;\n xor.b32 %0, sm, %1;\n}"
        : "=r"(kept)
        : "r"(value));
    return kept;
}
MSL_FN void msl_matrix_fence() { __syncwarp(); }
/* a * b + c of each of two halves. */
MSL_FN uint msl_pair_fma(uint a, uint b, uint c) {
    uint d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
} /* namespace metal */
