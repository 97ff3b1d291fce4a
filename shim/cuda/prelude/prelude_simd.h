/* Barriers and SIMD-group functions, on shuffles of a whole warp. */
#define MSL_LANES 0xffffffffu

MSL_FN uint msl_thread_index() {
    return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
}
MSL_FN uint msl_lane() { return msl_thread_index() & 31u; }

namespace metal {
enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr MSL_METHOD mem_flags operator|(mem_flags a, mem_flags b) {
    return mem_flags(uint(a) | uint(b));
}
MSL_FN void threadgroup_barrier(mem_flags) { __syncthreads(); }
MSL_FN void simdgroup_barrier(mem_flags) { __syncwarp(); }

/* Move a value of any type, a word at a time. */
template <class T, class F>
MSL_FN T msl_by_words(T value, F move) {
    uint words[(sizeof(T) + 3) / 4] = {};
    memcpy(words, &value, sizeof value);
#pragma unroll
    for (uint i = 0; i < (sizeof(T) + 3) / 4; i++) words[i] = move(words[i]);
    memcpy(&value, words, sizeof value);
    return value;
}
template <class T>
MSL_FN T simd_shuffle(T value, ushort lane) {
    return msl_by_words(value, [=](uint w) { return __shfl_sync(MSL_LANES, w, lane); });
}
template <class T>
MSL_FN T simd_broadcast(T value, ushort lane) {
    return simd_shuffle(value, lane);
}
template <class T>
MSL_FN T simd_broadcast_first(T value) {
    return simd_shuffle(value, 0);
}
template <class T>
MSL_FN T simd_shuffle_xor(T value, ushort mask) {
    return msl_by_words(value, [=](uint w) { return __shfl_xor_sync(MSL_LANES, w, mask); });
}
template <class T>
MSL_FN T simd_shuffle_up(T value, ushort delta) {
    return msl_by_words(value, [=](uint w) { return __shfl_up_sync(MSL_LANES, w, delta); });
}
template <class T>
MSL_FN T simd_shuffle_down(T value, ushort delta) {
    return msl_by_words(value, [=](uint w) { return __shfl_down_sync(MSL_LANES, w, delta); });
}
template <class T>
MSL_FN T simd_shuffle_rotate_up(T value, ushort delta) {
    return simd_shuffle(value, ushort((msl_lane() - delta) & 31u));
}
template <class T>
MSL_FN T simd_shuffle_rotate_down(T value, ushort delta) {
    return simd_shuffle(value, ushort((msl_lane() + delta) & 31u));
}
template <class T>
MSL_FN T simd_shuffle_and_fill_up(T value, T fill, ushort delta) {
    const T moved = simd_shuffle_up(value, delta);
    const T filled = simd_shuffle(fill, ushort((msl_lane() - delta) & 31u));
    return msl_lane() < delta ? filled : moved;
}
template <class T>
MSL_FN T simd_shuffle_and_fill_down(T value, T fill, ushort delta) {
    const T moved = simd_shuffle_down(value, delta);
    const T filled = simd_shuffle(fill, ushort((msl_lane() + delta) & 31u));
    return msl_lane() + delta > 31u ? filled : moved;
}

/* A butterfly: one fixed order, and all lanes get the same bits. */
#define MSL_REDUCE(F, combined)                                        \
    template <class T>                                                 \
    MSL_FN T F(T value) {                                              \
        _Pragma("unroll") for (uint h = 16; h; h >>= 1) {              \
            const T a = value, b = simd_shuffle_xor(value, ushort(h)); \
            value = T(combined);                                       \
        }                                                              \
        return value;                                                  \
    }
MSL_REDUCE(simd_sum, a + b);
MSL_REDUCE(simd_product, a *b);
MSL_REDUCE(simd_and, a &b);
MSL_REDUCE(simd_or, a | b);
MSL_REDUCE(simd_xor, a ^ b);
MSL_REDUCE(simd_max, max(a, b));
#if __CUDA_ARCH__ >= 800
template <>
MSL_METHOD uint simd_max(uint value) {
    return __reduce_max_sync(MSL_LANES, value);
}
#endif
MSL_REDUCE(simd_min, min(a, b));
#define MSL_QUAD_REDUCE(F, combined)                                   \
    template <class T>                                                 \
    MSL_FN T F(T value) {                                              \
        _Pragma("unroll") for (uint h = 2; h; h >>= 1) {               \
            const T a = value, b = simd_shuffle_xor(value, ushort(h)); \
            value = T(combined);                                       \
        }                                                              \
        return value;                                                  \
    }
MSL_QUAD_REDUCE(quad_sum, a + b);
MSL_QUAD_REDUCE(quad_max, max(a, b));
MSL_QUAD_REDUCE(quad_min, min(a, b));
template <class T>
MSL_FN T quad_shuffle(T value, ushort lane) {
    return simd_shuffle(value, ushort((msl_lane() & ~3u) + lane));
}
template <class T>
MSL_FN T quad_broadcast(T value, ushort lane) {
    return quad_shuffle(value, lane);
}
template <class T>
MSL_FN T quad_shuffle_xor(T value, ushort mask) {
    return simd_shuffle_xor(value, mask);
}

#define MSL_SCAN(F, identity, op)                                           \
    template <class T>                                                      \
    MSL_FN T simd_prefix_inclusive_##F(T value) {                           \
        _Pragma("unroll") for (uint h = 1; h < 32; h <<= 1) {               \
            const T b = simd_shuffle_up(value, ushort(h));                  \
            if (msl_lane() >= h) value = T(b op value);                     \
        }                                                                   \
        return value;                                                       \
    }                                                                       \
    template <class T>                                                      \
    MSL_FN T simd_prefix_exclusive_##F(T value) {                           \
        const T sum = simd_shuffle_up(simd_prefix_inclusive_##F(value), 1); \
        return msl_lane() ? sum : T(identity);                              \
    }
MSL_SCAN(sum, 0, +);
MSL_SCAN(product, 1, *);

MSL_FN bool simd_any(bool c) { return __any_sync(MSL_LANES, c); }
MSL_FN bool simd_all(bool c) { return __all_sync(MSL_LANES, c); }
MSL_FN bool simd_is_first() { return msl_lane() == 0; }
struct simd_vote {
    typedef ulong vote_t;
    vote_t msl_vote;
    MSL_METHOD explicit operator vote_t() const { return msl_vote; }
};
MSL_FN simd_vote simd_ballot(bool c) { return simd_vote{__ballot_sync(MSL_LANES, c)}; }
MSL_FN simd_vote simd_active_threads_mask() { return simd_vote{MSL_LANES}; }
} /* namespace metal */
