// Vectors as two halves or one, for the products on matrix units.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "rms.h"
#include "matrix.h"
#include "half_shift.h"
#include "halves.h"

// Write a lane's four elements of a block, `lane` counted in the block; `values` are 0 past the
// last vector. All lanes take part, also those whose block is past the last.
inline void halve_block(thread const float *values, uint vector, uint block, uint blocks, uint size,
                        uint n_eights, uint lane, device uchar *halves) {
    uint most = 0;
    OXB_UNROLL
    for (uint i = 0; i < 4u; i++) most = max(most, as_type<uint>(values[i]) & 0x7fffffffu);
    OXB_UNROLL
    for (uint i = 1; i < 16u; i *= 2u) most = max(most, simd_shuffle_xor(most, ushort(i)));
    const uint other = simd_shuffle_xor(most, ushort(16));
    if (size == 128u) most = max(most, other);
    const int shift = halves_shift(most);
    const float scale = power_of_two(shift);
    half near[4], rest[4];
    OXB_UNROLL
    for (uint i = 0; i < 4u; i++) {
        const float value = values[i] * scale;
        near[i] = half(value);
        const bool finite = (as_type<ushort>(near[i]) & 0x7c00) != 0x7c00;
        rest[i] = half(finite ? (value - float(near[i])) * OXB_HALVES_REST : 0.0f);
        const bool lost = ((as_type<ushort>(near[i]) | as_type<ushort>(rest[i])) & 0x7fff) == 0;
        if (lost && values[i] != 0.0f)
            rest[i] = half(values[i] < 0.0f ? -OXB_LEAST_HALF : OXB_LEAST_HALF);
    }
    if (block >= blocks) return;
    const uint steps = halves_steps(size), eight = vector / 8u;
    device uint4 *tile = (device uint4 *)halves + halves_tile(eight, blocks, block, steps);
    matrix_store(tile + lane / 4u * OXB_SIMD_WIDTH, vector % 8u, lane % 4u, near, rest);
    if (lane == 0) {
        device float *units =
            (device float *)((device uint4 *)halves + halves_tile(n_eights, blocks, 0, steps));
        units[(ulong(eight) * blocks + block) * 8u + vector % 8u] = power_of_two(-shift);
    }
}

// A SIMD-group per 128 elements of a vector; the grid's y counts the vectors of whole eights.
kernel void halve(device const float *x [[buffer(0)]], device uchar *halves [[buffer(1)]],
                  constant oxb_halve_args &args [[buffer(2)]],
                  uint2 tile [[threadgroup_position_in_grid]],
                  uint simdgroup [[simdgroup_index_in_threadgroup]],
                  uint simdgroups [[simdgroups_per_threadgroup]],
                  uint lane [[thread_index_in_simdgroup]]) {
    const uint lanes = args.block / 4u; // of a block
    const uint blocks = args.k / args.block, n_eights = (args.n_vectors + 7u) / 8u;
    const uint block = (tile.x * simdgroups + simdgroup) * (OXB_SIMD_WIDTH / lanes) + lane / lanes;
    const uint start = min(block, blocks - 1u) * args.block, at = lane % lanes;
    float values[4];
    OXB_UNROLL
    for (uint i = 0; i < 4u; i++)
        values[i] = tile.y < args.n_vectors ? x[ulong(tile.y) * args.k + start +
                                                halves_element(at / 4u, at % 4u, i, args.block)]
                                            : 0.0f;
    halve_block(values, tile.y, block, blocks, args.block, n_eights, at, halves);
}

// The same of rmsnorm(x): a threadgroup per vector of whole eights.
[[max_total_threads_per_threadgroup(1024)]]
kernel void halve_norm(
    device const float *x [[buffer(0)]], device const float *norm [[buffer(1)]],
    device uchar *halves [[buffer(2)]], constant oxb_halve_args &args [[buffer(3)]],
    uint vector [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
    uint n_threads [[threads_per_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float partial[2][OXB_MAX_SIMDGROUPS];
    const thread_place place = {lane, simdgroup, simdgroups};
    const bool there = vector < args.n_vectors; // else zeros
    device const float *from = x + ulong(there ? vector : 0u) * args.k;
    float total = threadgroup_sum(sum_of_squares(from, args.k, 1.0f, thread_index, n_threads),
                                  partial[0], place);
    const float scale = scale_for(total, args.eps);
    if (scale != 1.0f)
        total = threadgroup_sum(sum_of_squares(from, args.k, scale, thread_index, n_threads),
                                partial[1], place);
    const float inverse = inverse_rms(total, args.k, scale, args.eps);
    const uint lanes = args.block / 4u, per_simdgroup = OXB_SIMD_WIDTH / lanes; // blocks
    const uint blocks = args.k / args.block, n_eights = (args.n_vectors + 7u) / 8u;
    const uint at = lane % lanes;
    for (uint first = simdgroup * per_simdgroup; first < blocks;
         first += simdgroups * per_simdgroup) {
        const uint block = first + lane / lanes, start = min(block, blocks - 1u) * args.block;
        float values[4];
        OXB_UNROLL
        for (uint i = 0; i < 4u; i++) {
            const uint j = start + halves_element(at / 4u, at % 4u, i, args.block);
            values[i] = there ? from[j] * scale * inverse * norm[j] : 0.0f;
        }
        halve_block(values, vector, block, blocks, args.block, n_eights, at, halves);
    }
}

// What a vector is rounded from: itself, or its RMSNorm.
struct plain_source {
    device const float *x;
    float value(uint j) const thread { return x[j]; }
};

struct norm_source {
    device const float *x;
    device const float *norm;
    float scale, inverse;
    float value(uint j) const thread { return x[j] * scale * inverse * norm[j]; }
};

inline half rounded_half(float value, float scale) {
    const half rounded = half(value * scale);
    if ((as_type<ushort>(rounded) & 0x7fff) != 0 || value == 0.0f) return rounded;
    return half(value < 0.0f ? -OXB_LEAST_HALF : OXB_LEAST_HALF);
}

// Write a vector of an eight as single halves: zeros where it is not there.
template <typename Source>
inline void round_vector(Source source, bool there, uint vector, constant oxb_halve_args &args,
                         threadgroup float *partial, thread_place place, device uchar *halves) {
    const uint thread_index = index_of(place), n_threads = place.simdgroups * OXB_SIMD_WIDTH;
    uint most = 0;
    for (uint j = thread_index; j < args.k; j += n_threads)
        most = max(most, as_type<uint>(there ? source.value(j) : 0.0f) & 0x7fffffffu);
    most = simd_max(most);
    threadgroup uint *largest = (threadgroup uint *)partial;
    if (place.lane == 0) largest[place.simdgroup] = most;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    most = simd_max(place.lane < place.simdgroups ? largest[place.lane] : 0u);
    const int shift = halves_shift(most);
    const float scale = power_of_two(shift);
    const uint eight = vector / 8u, word = args.block / 4u, pairs = args.block / 32u;
    device uint4 *tiles = (device uint4 *)halves + half_tile(eight, args.k);
    for (uint at = thread_index; at < args.k / 8u; at += n_threads) {
        const uint tile = at / 4u, quad = at % 4u;
        const uint start = tile / pairs * args.block + quad * word + tile % pairs * 4u;
        half steps[2][4];
        OXB_UNROLL
        for (uint i = 0; i < 8u; i++) {
            const float value = there ? source.value(start + i / 2u + i % 2u * (word / 2u)) : 0.0f;
            steps[i / 4u][i % 4u] = rounded_half(value, scale);
        }
        matrix_store(tiles + tile * OXB_SIMD_WIDTH, vector % 8u, quad, steps[0], steps[1]);
    }
    const uint n_eights = (args.n_vectors + 7u) / 8u;
    device float *units = (device float *)((device uint4 *)halves + half_tile(n_eights, args.k));
    if (thread_index == 0) units[vector] = power_of_two(-shift);
}

// A threadgroup per vector of whole eights.
kernel void round_half(device const float *x [[buffer(0)]], device uchar *halves [[buffer(1)]],
                       constant oxb_halve_args &args [[buffer(2)]],
                       uint vector [[threadgroup_position_in_grid]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint simdgroups [[simdgroups_per_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float partial[OXB_MAX_SIMDGROUPS];
    const thread_place place = {lane, simdgroup, simdgroups};
    const bool there = vector < args.n_vectors;
    const plain_source source = {x + ulong(there ? vector : 0u) * args.k};
    round_vector(source, there, vector, args, partial, place, halves);
}

kernel void round_half_norm(
    device const float *x [[buffer(0)]], device const float *norm [[buffer(1)]],
    device uchar *halves [[buffer(2)]], constant oxb_halve_args &args [[buffer(3)]],
    uint vector [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
    uint n_threads [[threads_per_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float partial[3][OXB_MAX_SIMDGROUPS];
    const thread_place place = {lane, simdgroup, simdgroups};
    const bool there = vector < args.n_vectors;
    device const float *from = x + ulong(there ? vector : 0u) * args.k;
    float total = threadgroup_sum(sum_of_squares(from, args.k, 1.0f, thread_index, n_threads),
                                  partial[0], place);
    const float scale = scale_for(total, args.eps);
    if (scale != 1.0f)
        total = threadgroup_sum(sum_of_squares(from, args.k, scale, thread_index, n_threads),
                                partial[1], place);
    const norm_source source = {from, norm, scale, inverse_rms(total, args.k, scale, args.eps)};
    round_vector(source, there, vector, args, partial[2], place, halves);
}
