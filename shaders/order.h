// Logits in the order of a choice: descending, then by token. Comparisons are of integers, which
// have no subnormals to lose.
#ifndef OXB_ORDER_H
#define OXB_ORDER_H

#include "simd.h"

#define OXB_NO_KEY   0xffffffffu // NaN, and what lies behind the last logit
#define OXB_LAST_KEY 0xff800000u // of -INFINITY
#define OXB_NO_ORDER 0xfffffffffffffffful

// Ascending where logits descend; 0 and -0 are one.
inline uint key_of(float logit) {
    const uint bits = as_type<uint>(logit);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return OXB_NO_KEY;
    return (bits << 1) == 0u ? 0x7fffffffu : bits >> 31 != 0u ? bits : ~bits & 0x7fffffffu;
}

inline float logit_of(uint key) {
    return as_type<float>(key >> 31 != 0u ? key : ~key & 0x7fffffffu);
}

inline ulong order_of(uint key, uint token) { return ulong(key) << 32 | token; }
inline uint key_in(ulong order) { return uint(order >> 32); }
inline uint token_in(ulong order) { return uint(order); }

// Logits 4 quad to 4 quad + 3; NaN past the last one.
inline float4 quad_of(device const float *row, uint n, uint quad) {
    const uint first = 4u * quad;
    float4 logits = float4(NAN);
    if (first + 4u <= n) {
        // Packed, for a binding's offset is a multiple of 4 bytes only.
        logits = float4(*(device const packed_float4 *)(row + first));
    } else {
        OXB_UNROLL
        for (uint j = 0; j < 4; j++) {
            if (first + j < n) logits[j] = row[first + j];
        }
    }
    return logits;
}

inline ulong order_shuffle_xor(ulong order, ushort mask) {
    return order_of(simd_shuffle_xor(key_in(order), mask), simd_shuffle_xor(token_in(order), mask));
}

// Metal's reductions take no 64-bit integers.
inline ulong simd_first(ulong order) {
    const uint key = simd_min(key_in(order));
    return order_of(key, simd_min(key_in(order) == key ? token_in(order) : 0xffffffffu));
}

// The smallest order of the threadgroup, in every thread. `partial` holds OXB_MAX_SIMDGROUPS for
// this call alone.
inline ulong threadgroup_first(ulong order, threadgroup ulong *partial, thread_place place) {
    const ulong own = simd_first(order);
    if (place.lane == 0) partial[place.simdgroup] = own;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_first(place.lane < place.simdgroups ? partial[place.lane] : OXB_NO_ORDER);
}

#endif
