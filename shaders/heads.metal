// The heads of the tokens in flight: RMSNorm and RoPE of queries and keys, and the store into the
// caches.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "cache.h"
#include "heads.h"
#include "instantiate.h"

// A SIMD-group per head of q and k; y counts tokens.
kernel void qk_norm_rope(device float *qkv [[buffer(0)]], device const float *q_norm [[buffer(1)]],
                         device const float *k_norm [[buffer(2)]],
                         device const float *rope [[buffer(3)]],
                         device const oxb_decode_state *state [[buffer(4)]],
                         constant oxb_qk_norm_rope_args &args [[buffer(5)]],
                         uint2 tile [[threadgroup_position_in_grid]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]]) {
    const uint head = tile.x * simdgroups + simdgroup;
    const ulong position = place_of(state, args.batch, tile.y).position;
    if (head >= args.n_heads + args.n_kv_heads || position >= args.max_seq) return;
    device float *at =
        qkv + (ulong(tile.y) * (args.n_heads + 2u * args.n_kv_heads) + head) * args.head_dim;
    norm_and_rotate<float>(at, head < args.n_heads ? q_norm : k_norm,
                           rope + position * args.rotary_dim, at, form_of(args, args.head_dim),
                           lane);
}

// Caches of elements T.
template <typename T>
struct plain_cache {
    // Store a head, of n elements, in slot `slot` of a page of a key-value head.
    static void store_value(device const float *from, device T *page, uint, ulong slot, uint n,
                            uint lane) {
        device T *to = page + slot * n;
        for (uint i = lane; i < n; i += OXB_SIMD_WIDTH) to[i] = T(from[i]);
    }
    static void store_key(device const float *from, device T *page, uint page_size, ulong slot,
                          uint n, uint lane) {
        store_value(from, page, page_size, slot, n, lane);
    }
    // The same after norm and rotation; what is left in `from` is not defined.
    static void rotate_and_store_key(device float *from, device const float *weight,
                                     device const float *cosine, device T *page, uint, ulong slot,
                                     head_form form, uint lane) {
        norm_and_rotate<T>(from, weight, cosine, page + slot * form.head_dim, form, lane);
    }
};

// Caches of 8 bits: see oxb_cache. A lane has the n / 32 elements of a head after each other.
struct q8_cache {
    enum { EACH = OXB_MAX_HEAD_DIM / 32 }; // elements of a lane, at most
    enum { GROUP = 4 };                    // of them that are worked on at once

    // The bits of the unit, as a float, of a row with this largest magnitude: infinite where an
    // element is not finite.
    static uint unit_of(float largest) {
        const uint up = as_type<uint>(largest / 255.0f) + 0xffffu;
        return isfinite(largest) ? up & 0xffff0000u : 0x7fc00000u;
    }
    // The low bits of the 16 elements from 16 * lane on, from those of each lane's own elements.
    static uint word_of(uint bits, uint each, uint n, uint lane) {
        uint word = 0;
        OXB_ROLLED
        for (uint i = 0; i < 16u; i++) {
            const uint at = min(16u * lane + i, n - 1u);
            word |= (simd_shuffle(bits, ushort(at / each)) >> (at % each) & 1u) << i;
        }
        return word;
    }
    // The same where n / 32 is a power of two: neighbours share the word that has their own bits.
    static uint shared_word_of(uint bits, uint each, uint lane) {
        uint word = bits << each * lane % 16u;
        OXB_ROLLED
        for (uint apart = 1; apart * each < 16u; apart *= 2u)
            word |= simd_shuffle_xor(word, ushort(apart));
        return word;
    }
    // Store a row, transformed where TURNED.
    template <bool TURNED>
    static void store_row(device const float *from, device char *page, uint page_size, ulong slot,
                          uint n, uint lane) {
        const uint each = n / OXB_SIMD_WIDTH, first = each * lane, words = n / 16u;
        float own[EACH];
        OXB_UNROLL
        for (uint g = 0; g < EACH && g < each; g += GROUP) {
            OXB_UNROLL
            for (uint j = g; j < g + GROUP; j++) own[j] = j < each ? from[first + j] : 0.0f;
        }
        float largest = 0.0f; // infinite where an element is not finite
        OXB_UNROLL
        for (uint g = 0; g < EACH && g < each; g += GROUP) {
            OXB_UNROLL
            for (uint j = g; j < g + GROUP; j++) {
                if (TURNED) own[j] = hadamard(own[j], lane);
                largest = isfinite(own[j]) ? max(largest, fabs(own[j])) : INFINITY;
            }
        }
        const uint unit_bits = unit_of(simd_max(largest));
        const float unit = as_type<float>(unit_bits);
        // A quotient is x * (1 / unit), corrected once by its remainder. That gives the bits of a
        // division, as the reciprocal is rounded correctly, unless something overflows or loses
        // bits: hence the scale, a power of two. Where bits are lost nevertheless, the quotient is
        // so small that it is rounded to 0.
        const uint exponent = unit < 1e-18f ? 100u : unit > 1e18f ? uint(-100) : 0u;
        const float scale = as_type<float>((127u + exponent) << 23);
        const float scaled = unit * scale, inverse = 1.0f / scaled;
        device char *to = page + slot * n + first;
        uint bits = 0; // of the lane's elements
        OXB_UNROLL
        for (uint g = 0; g < EACH && g < each; g += GROUP) {
            OXB_UNROLL
            for (uint j = g; j < g + GROUP; j++) {
                const float x = own[j] * scale, about = x * inverse;
                const float quotient = fma(fma(-about, scaled, x), inverse, about);
                const bool has_bit = first + j + 16u < n;
                const float most = has_bit ? 255.0f : 127.0f;
                const float rounded = rint(has_bit ? quotient : quotient * 0.5f);
                const int whole = unit > 0.0f ? int(clamp(rounded, -most, most)) : 0;
                if (j < each) to[j] = char(has_bit ? whole >> 1 : whole);
                bits |= (has_bit ? uint(whole & 1) : 0u) << j;
            }
        }
        device ushort *to_words = (device ushort *)(page + ulong(page_size) * n) + slot * words;
        if ((each & (each - 1u)) == 0u) {
            const uint word = shared_word_of(bits, each, lane), at = first / 16u;
            if (first % 16u == 0u) to_words[at] = ushort(at + 1u < words ? word : unit_bits >> 16);
        } else {
            const uint word = word_of(bits, each, n, lane);
            if (lane < words) to_words[lane] = ushort(lane + 1u < words ? word : unit_bits >> 16);
        }
    }
    static void store_key(device const float *from, device char *page, uint page_size, ulong slot,
                          uint n, uint lane) {
        store_row<true>(from, page, page_size, slot, n, lane);
    }
    static void store_value(device const float *from, device char *page, uint page_size, ulong slot,
                            uint n, uint lane) {
        store_row<false>(from, page, page_size, slot, n, lane);
    }
    static void rotate_and_store_key(device float *from, device const float *weight,
                                     device const float *cosine, device char *page, uint page_size,
                                     ulong slot, head_form form, uint lane) {
        norm_and_rotate<float>(from, weight, cosine, from, form, lane);
        simdgroup_barrier(mem_flags::mem_device);
        store_key(from, page, page_size, slot, form.head_dim, lane);
    }
};

// A threadgroup per key-value head and token, whose SIMD-groups take turns at the key and the
// value.
template <typename T, typename Cache>
[[kernel]] void
kv_store(device const float *qkv [[buffer(0)]], device T *k_cache [[buffer(1)]],
         device T *v_cache [[buffer(2)]], device const oxb_decode_state *state [[buffer(3)]],
         device const uint *pages [[buffer(4)]], constant oxb_kv_store_args &args [[buffer(5)]],
         uint2 tile [[threadgroup_position_in_grid]],
         uint simdgroup [[simdgroup_index_in_threadgroup]],
         uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    const sequence_place place = place_of(state, args.batch, tile.y);
    if (place.position >= args.cache.max_seq) return;
    const uint position = uint(place.position);
    const uint page = page_of(args.cache, pages, place.pages, position);
    if (page >= args.cache.n_pages) return;
    const ulong n = args.head_dim, slot = position % args.cache.page_size;
    const ulong at = layer_of(args.cache, page) + tile.x * args.cache.head_stride;
    device const float *k =
        qkv + (ulong(tile.y) * (args.n_heads + 2u * args.n_kv_heads) + args.n_heads + tile.x) * n;
    for (uint value = simdgroup; value < 2u; value += simdgroups) {
        if (value == 0u)
            Cache::store_key(k, k_cache + at, args.cache.page_size, slot, args.head_dim, lane);
        else
            Cache::store_value(k + args.n_kv_heads * n, v_cache + at, args.cache.page_size, slot,
                               args.head_dim, lane);
    }
}

OXB_KERNEL("kv_store_f16", kv_store<half, plain_cache<half>>)
OXB_KERNEL("kv_store_f32", kv_store<float, plain_cache<float>>)
OXB_KERNEL("kv_store_q8", kv_store<char, q8_cache>)

// qk_norm_rope and kv_store in one: a SIMD-group per head of q, k and v; y counts tokens.
template <typename T, typename Cache>
[[kernel]] void qkv_to_cache(
    device float *qkv [[buffer(0)]], device const float *q_norm [[buffer(1)]],
    device const float *k_norm [[buffer(2)]], device const float *rope [[buffer(3)]],
    device T *k_cache [[buffer(4)]], device T *v_cache [[buffer(5)]],
    device const oxb_decode_state *state [[buffer(6)]], device const uint *pages [[buffer(7)]],
    constant oxb_qkv_to_cache_args &args [[buffer(8)]], uint2 tile [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    const uint head = tile.x * simdgroups + simdgroup;
    const uint n_heads = args.n_heads + 2u * args.n_kv_heads;
    const sequence_place place = place_of(state, args.batch, tile.y);
    if (head >= n_heads || place.position >= args.cache.max_seq) return;
    const uint position = uint(place.position);
    const uint page = page_of(args.cache, pages, place.pages, position);
    if (page >= args.cache.n_pages) return;
    const ulong n = args.head_dim, slot = position % args.cache.page_size;
    device float *from = qkv + (ulong(tile.y) * n_heads + head) * n;
    device const float *cosine = rope + place.position * args.rotary_dim;
    const uint kv_head = (head - args.n_heads) % args.n_kv_heads; // of a key or value
    const ulong at = layer_of(args.cache, page) + kv_head * args.cache.head_stride;
    const head_form form = form_of(args, args.head_dim);
    if (head < args.n_heads)
        norm_and_rotate<float>(from, q_norm, cosine, from, form, lane);
    else if (head < args.n_heads + args.n_kv_heads)
        Cache::rotate_and_store_key(from, k_norm, cosine, k_cache + at, args.cache.page_size, slot,
                                    form, lane);
    else
        Cache::store_value(from, v_cache + at, args.cache.page_size, slot, args.head_dim, lane);
}

OXB_KERNEL("qkv_to_cache_f16", qkv_to_cache<half, plain_cache<half>>)
OXB_KERNEL("qkv_to_cache_f32", qkv_to_cache<float, plain_cache<float>>)
OXB_KERNEL("qkv_to_cache_q8", qkv_to_cache<char, q8_cache>)
