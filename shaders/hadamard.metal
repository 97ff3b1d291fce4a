// The Walsh-Hadamard transform of the blocks of a vector: in registers, over the lanes by shuffles,
// and over the SIMD-groups through threadgroup memory.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "rms.h"

// Butterflies of the lane's elements, then over the lanes. Both leave what lies further apart than
// a block.
template <uint EACH>
inline void transform_simdgroup(thread float *own, uint block, uint lane) {
    OXB_UNROLL
    for (uint apart = 1; apart < EACH; apart *= 2u) {
        OXB_UNROLL
        for (uint i = 0; i < EACH; i++) {
            if ((i & apart) != 0u) continue;
            const float low = own[i], high = own[i + apart];
            own[i] = low + high;
            own[i + apart] = low - high;
        }
    }
    OXB_UNROLL
    for (uint apart = 1; apart < OXB_SIMD_WIDTH; apart *= 2u) {
        if (apart >= block) continue;
        const float sign = (lane & apart) != 0u ? -1.0f : 1.0f;
        OXB_UNROLL
        for (uint i = 0; i < EACH; i++)
            own[i] = fma(sign, own[i], simd_shuffle_xor(own[i], ushort(apart)));
    }
}

// The element of a vector that comes to place i where the heads are permuted.
inline uint source_of(constant oxb_hadamard_args &args, uint i) {
    if (args.n_groups == 1u) return i;
    const uint head = i / args.head_size, each = args.k / args.head_size / args.n_groups;
    return (head % args.n_groups * each + head / args.n_groups) * args.head_size +
           i % args.head_size;
}

// The elements of a threadgroup, EACH of a thread: element lane + 32 i of the SIMD-group's 32 EACH.
// EACH is above 1 only where a block has all of them.
template <uint EACH>
inline void transform(device const float *x, device const float *norm, device const float *signs,
                      device float *y, constant oxb_hadamard_args &args, uint tile,
                      thread_place place, threadgroup float *memory) {
    const uint n_threads = place.simdgroups * OXB_SIMD_WIDTH, index = index_of(place);
    const bool forward = args.inverse == 0u, normed = args.has_norm != 0u;
    const uint start = EACH * OXB_SIMD_WIDTH * place.simdgroup + place.lane; // in the threadgroup
    const uint first = tile * EACH * n_threads + start;                      // in the vector
    float own[EACH], sign[EACH], weight[EACH]; // asked for before the sum of the norm
    OXB_UNROLL
    for (uint i = 0; i < EACH; i++) {
        const uint at = first + i * OXB_SIMD_WIDTH;
        const bool there = at < args.k;
        const uint from = source_of(args, at);
        sign[i] = there ? signs[at] : 0.0f;
        own[i] = there ? x[from] : 0.0f;
        weight[i] = there && normed ? norm[from] : 0.0f;
    }
    if (normed) { // of the whole vector, by every threadgroup of it
        float total =
            threadgroup_sum(sum_of_squares(x, args.k, 1.0f, index, n_threads), memory, place);
        const float scale = scale_for(total, args.eps);
        if (scale != 1.0f)
            total = threadgroup_sum(sum_of_squares(x, args.k, scale, index, n_threads),
                                    memory + OXB_MAX_SIMDGROUPS, place);
        const float inverse = inverse_rms(total, args.k, scale, args.eps);
        OXB_UNROLL
        for (uint i = 0; i < EACH; i++) own[i] = own[i] * scale * inverse * weight[i];
    }
    OXB_UNROLL
    for (uint i = 0; i < EACH; i++) own[i] *= forward ? sign[i] : 1.0f;
    transform_simdgroup<EACH>(own, args.block, place.lane);
    const uint of_block = args.block / (EACH * OXB_SIMD_WIDTH); // SIMD-groups
    if (of_block > 1u) {
        if (normed) threadgroup_barrier(mem_flags::mem_threadgroup); // every SIMD-group has the sum
        OXB_UNROLL
        for (uint i = 0; i < EACH; i++) memory[start + i * OXB_SIMD_WIDTH] = own[i];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const uint number = place.simdgroup % of_block;
        const uint least = start - number * EACH * OXB_SIMD_WIDTH;
        OXB_UNROLL
        for (uint i = 0; i < EACH; i++) own[i] = 0.0f;
        for (uint s = 0; s < of_block; s++) {
            const float factor = (popcount(s & number) & 1u) != 0u ? -1.0f : 1.0f;
            OXB_UNROLL
            for (uint i = 0; i < EACH; i++)
                own[i] = fma(factor, memory[least + (s * EACH + i) * OXB_SIMD_WIDTH], own[i]);
        }
    }
    const float factor = 1.0f / precise::sqrt(float(args.block));
    OXB_UNROLL
    for (uint i = 0; i < EACH; i++) {
        const uint at = first + i * OXB_SIMD_WIDTH;
        if (at < args.k) y[at] = own[i] * factor * (forward ? 1.0f : sign[i]);
    }
}

// A threadgroup for a block, or for as many blocks as it has threads for, x, of a vector, y. Its
// SIMD-groups are a power of two. y and x may be the same where there is no norm and heads stay: a
// thread reads the elements that it writes.
kernel void hadamard(device const float *x [[buffer(0)]], device const float *norm [[buffer(1)]],
                     device const float *signs [[buffer(2)]], device float *y [[buffer(3)]],
                     constant oxb_hadamard_args &args [[buffer(4)]],
                     uint2 tile [[threadgroup_position_in_grid]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]],
                     uint simdgroups [[simdgroups_per_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]]) {
    // Of a block's elements, and before them of the sums of a norm: two threadgroups fit 32 KiB.
    threadgroup float memory[OXB_MAX_HADAMARD];
    const thread_place place = {lane, simdgroup, simdgroups};
    const uint each = args.block / (simdgroups * OXB_SIMD_WIDTH);
    const ulong row = ulong(tile.y) * args.k;
    x += row;
    y += row;
    switch (each) {
    case 2: transform<2>(x, norm, signs, y, args, tile.x, place, memory); break;
    case 4: transform<4>(x, norm, signs, y, args, tile.x, place, memory); break;
    case 8: transform<8>(x, norm, signs, y, args, tile.x, place, memory); break;
    case 16: transform<16>(x, norm, signs, y, args, tile.x, place, memory); break;
    default: transform<1>(x, norm, signs, y, args, tile.x, place, memory); break;
    }
}
