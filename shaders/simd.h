// The SIMD-group width that all kernels are written for, and sums over a threadgroup. Devices of
// another width are refused when they are opened.
#ifndef OXB_SIMD_H
#define OXB_SIMD_H

#define OXB_SIMD_WIDTH     32u
#define OXB_MAX_SIMDGROUPS 32u // a threadgroup has at most 1024 threads

// A thread's arrays stay in registers only where the loops that index them are unrolled.
#if defined(__METAL_VERSION__)
#define OXB_UNROLL _Pragma("clang loop unroll(full)")
#define OXB_ROLLED _Pragma("clang loop unroll(disable)")
#else
#define OXB_UNROLL _Pragma("unroll")
#define OXB_ROLLED _Pragma("unroll 1")
#endif

// Where a thread stands in its threadgroup.
struct thread_place {
    uint lane;       // in the SIMD-group
    uint simdgroup;  // in the threadgroup
    uint simdgroups; // of the threadgroup
};

inline uint index_of(thread_place place) { return place.simdgroup * OXB_SIMD_WIDTH + place.lane; }

// The sum of `value` over the threadgroup, in every thread, in a fixed order. `partial` holds
// OXB_MAX_SIMDGROUPS floats for this call alone; every SIMD-group adds them up itself, which saves
// a second barrier.
inline float threadgroup_sum(float value, threadgroup float *partial, thread_place place) {
    const float sum = simd_sum(value);
    if (place.lane == 0) partial[place.simdgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_sum(place.lane < place.simdgroups ? partial[place.lane] : 0.0f);
}

#endif
