/* Barriers and SIMD-group functions: each is a rendezvous in the runtime. */
namespace metal {
enum class mem_flags : uint {
    mem_none = 0,
    mem_device = MSL_MEM_DEVICE,
    mem_threadgroup = MSL_MEM_THREADGROUP,
    mem_texture = 4
};
MSL_FN constexpr mem_flags operator|(mem_flags a, mem_flags b) {
    return mem_flags(uint(a) | uint(b));
}
MSL_FN void threadgroup_barrier(mem_flags f, MSL_SITE) {
    msl_rt_barrier(MSL_THREADGROUP_BARRIER, uint(f), site_line, site_column);
}
MSL_FN void simdgroup_barrier(mem_flags f, MSL_SITE) {
    msl_rt_barrier(MSL_SIMDGROUP_BARRIER, uint(f), site_line, site_column);
}

template <class T>
MSL_FN void msl_check_type(T) {
    static_assert(msl_is_number<typename msl_element<T>::type> && !__is_same(T, bool),
                  "not a type that SIMD-group functions take");
}
#define MSL_MEET(kind, value) \
    msl_check_type(value);    \
    struct msl_exchange *x = msl_rt_simd(kind, site_line, site_column, &value, sizeof(value));
#define MSL_LANE(T, i) (*(T *)x->lanes[i])

/* In pairs at distance 16, 8, 4, 2, 1: one fixed order for all hosts, and an error no larger than a
 * tree's. The order that hardware takes is not specified. */
#define MSL_REDUCE(F, identity, combined)                                   \
    template <class T>                                                      \
    MSL_FN T F(T value, MSL_SITE) {                                         \
        MSL_MEET(MSL_SIMD_REDUCE, value)                                    \
        if (!x->done) {                                                     \
            T v[32];                                                        \
            for (int i = 0; i < 32; i++)                                    \
                v[i] = (x->active >> i & 1) ? MSL_LANE(T, i) : T(identity); \
            for (int h = 16; h; h >>= 1)                                    \
                for (int i = 0; i < h; i++) {                               \
                    T a = v[i], b = v[i + h];                               \
                    v[i] = (combined);                                      \
                }                                                           \
            *(T *)x->result = v[0];                                         \
            x->done = 1;                                                    \
        }                                                                   \
        return *(T *)x->result;                                             \
    }
MSL_REDUCE(simd_sum, 0, a + b)
MSL_REDUCE(simd_product, 1, a *b)
MSL_REDUCE(simd_and, ~T(0), a &b)
MSL_REDUCE(simd_or, 0, a | b)
MSL_REDUCE(simd_xor, 0, a ^ b)
/* No identity: begins with the first active lane. */
#define MSL_REDUCE_FROM_FIRST(F, combine)                               \
    template <class T>                                                  \
    MSL_FN T F(T value, MSL_SITE) {                                     \
        MSL_MEET(MSL_SIMD_REDUCE, value)                                \
        if (!x->done) {                                                 \
            int first = __builtin_ctz(x->active);                       \
            T a = MSL_LANE(T, first);                                   \
            for (int i = first + 1; i < 32; i++)                        \
                if (x->active >> i & 1) a = combine(a, MSL_LANE(T, i)); \
            *(T *)x->result = a;                                        \
            x->done = 1;                                                \
        }                                                               \
        return *(T *)x->result;                                         \
    }
MSL_REDUCE_FROM_FIRST(simd_max, metal::max)
MSL_REDUCE_FROM_FIRST(simd_min, metal::min)
#define MSL_SCAN(F, identity, op, inclusive)                 \
    template <class T>                                       \
    MSL_FN T F(T value, MSL_SITE) {                          \
        MSL_MEET(MSL_SIMD_PREFIX, value)                     \
        T a = T(identity);                                   \
        uint end = msl_rt_lane() + inclusive;                \
        for (uint i = 0; i < end; i++)                       \
            if (x->active >> i & 1) a = a op MSL_LANE(T, i); \
        return a;                                            \
    }
MSL_SCAN(simd_prefix_inclusive_sum, 0, +, 1)
MSL_SCAN(simd_prefix_exclusive_sum, 0, +, 0)
MSL_SCAN(simd_prefix_inclusive_product, 1, *, 1)
MSL_SCAN(simd_prefix_exclusive_product, 1, *, 0)

/* A value from an inactive lane, or from outside 0 to 31, is undefined in MSL: an error here. */
template <class T>
MSL_FN T msl_shuffle(T value, uint kind, uint from, uint site_line, uint site_column) {
    MSL_MEET(kind, value)
    if (from > 31 || !(x->active >> from & 1)) msl_rt_bad_lane(from);
    return MSL_LANE(T, from);
}
#define MSL_SHUFFLE(F, parameter, kind, from)                          \
    template <class T>                                                 \
    MSL_FN T F(T value, parameter, MSL_SITE) {                         \
        const uint lane = msl_rt_lane();                               \
        (void)lane;                                                    \
        return msl_shuffle(value, kind, from, site_line, site_column); \
    }
MSL_SHUFFLE(simd_shuffle, ushort n, MSL_SIMD_SHUFFLE, n)
MSL_SHUFFLE(simd_broadcast, ushort n, MSL_SIMD_SHUFFLE, n)
MSL_SHUFFLE(simd_shuffle_xor, ushort n, MSL_SIMD_SHUFFLE, lane ^ n)
MSL_SHUFFLE(simd_shuffle_rotate_up, ushort n, MSL_SIMD_SHUFFLE, (lane - n) & 31)
MSL_SHUFFLE(simd_shuffle_rotate_down, ushort n, MSL_SIMD_SHUFFLE, (lane + n) & 31)
/* Past the end these two leave the lane's own value, as Apple documents for up and hardware does.
 */
MSL_SHUFFLE(simd_shuffle_up, ushort n, MSL_SIMD_SHUFFLE, lane < n ? lane : lane - n)
MSL_SHUFFLE(simd_shuffle_down, ushort n, MSL_SIMD_SHUFFLE, lane + n > 31 ? lane : lane + n)
MSL_SHUFFLE(quad_shuffle, ushort n, MSL_QUAD, (lane & ~3u) | (n & 3))
MSL_SHUFFLE(quad_broadcast, ushort n, MSL_QUAD, (lane & ~3u) | (n & 3))
MSL_SHUFFLE(quad_shuffle_xor, ushort n, MSL_QUAD, lane ^ (n & 3))
#define MSL_FILL(F, past, near, far)                                                            \
    template <class T>                                                                          \
    MSL_FN T F(T value, T fill, ushort n, MSL_SITE) {                                           \
        const uint lane = msl_rt_lane();                                                        \
        T a = msl_shuffle(value, MSL_SIMD_SHUFFLE, past ? lane : near, site_line, site_column); \
        T b = msl_shuffle(fill, MSL_SIMD_SHUFFLE, (far) & 31, site_line, site_column);          \
        return past ? b : a;                                                                    \
    }
MSL_FILL(simd_shuffle_and_fill_up, lane < n, lane - n, lane - n)
MSL_FILL(simd_shuffle_and_fill_down, lane + n > 31, lane + n, lane + n)

template <class T>
MSL_FN T simd_broadcast_first(T value, MSL_SITE) {
    MSL_MEET(MSL_SIMD_SHUFFLE, value)
    return MSL_LANE(T, __builtin_ctz(x->active));
}
MSL_FN bool simd_is_first(MSL_SITE) {
    uint value = 0;
    MSL_MEET(MSL_SIMD_VOTE, value)
    return __builtin_ctz(x->active) == int(msl_rt_lane());
}
MSL_FN uint msl_vote(bool e, thread uint &active, uint site_line, uint site_column) {
    uint value = e, votes = 0;
    MSL_MEET(MSL_SIMD_VOTE, value)
    active = x->active;
    for (uint i = 0; i < 32; i++)
        if ((active >> i & 1) && MSL_LANE(uint, i)) votes |= 1u << i;
    return votes;
}
struct simd_vote {
    typedef ulong vote_t;
    vote_t msl_votes;
    MSL_METHOD explicit constexpr simd_vote(vote_t v = 0) : msl_votes(v) {}
    MSL_METHOD explicit operator vote_t() const { return msl_votes; }
    MSL_METHOD bool any() const { return msl_votes != 0; }
    MSL_METHOD bool all() const { return msl_votes == 0xffffffffu; }
};
MSL_FN bool simd_any(bool e, MSL_SITE) {
    uint active;
    return msl_vote(e, active, site_line, site_column) != 0;
}
MSL_FN bool simd_all(bool e, MSL_SITE) {
    uint active;
    return msl_vote(e, active, site_line, site_column) == active;
}
MSL_FN simd_vote simd_ballot(bool e, MSL_SITE) {
    uint active;
    return simd_vote(msl_vote(e, active, site_line, site_column));
}
MSL_FN simd_vote simd_active_threads_mask(MSL_SITE) {
    uint active;
    msl_vote(true, active, site_line, site_column);
    return simd_vote(active);
}

#define MSL_QUAD_REDUCE(F, combined)           \
    template <class T>                         \
    MSL_FN T F(T value, MSL_SITE) {            \
        MSL_MEET(MSL_QUAD, value)              \
        const uint q = msl_rt_lane() & ~3u;    \
        T a = MSL_LANE(T, q);                  \
        for (uint i = q + 1; i < q + 4; i++) { \
            T b = MSL_LANE(T, i);              \
            a = (combined);                    \
        }                                      \
        return a;                              \
    }
MSL_QUAD_REDUCE(quad_sum, a + b)
MSL_QUAD_REDUCE(quad_max, metal::max(a, b))
MSL_QUAD_REDUCE(quad_min, metal::min(a, b))
} /* namespace metal */
