// Elements of caches of 8 bits: see oxb_cache.
#ifndef OXB_Q8_H
#define OXB_Q8_H

#define OXB_WORD_ELEMENTS 32u // elements that have their low bits in a word of 32 bits

// Four elements as floats, in units of two steps: element e + 0.5 for bit e of `bits`, which is
// below 16.
inline float4 q8_elements(char4 from, uint bits) {
    float4 to;
#if defined(__METAL_VERSION__)
    OXB_UNROLL
    for (uint e = 0; e < 4u; e++) to[e] = float(from[e]) + ((bits >> e & 1u) != 0u ? 0.5f : 0.0f);
#else
    // NVIDIA's GPUs convert 16 integers in the time of 64 permutations. With the exponent of 2^15 a
    // float's bit 8 is 1, so its second byte is an element + 128, and bit 7 is the bit below.
    const uint elements = as_type<uint>(from) ^ 0x80808080u;
    // The lowest bytes of two of the floats, and the two highest bytes of both.
    const uint first = ((bits & 3u) * 0x4080u & 0x8080u) | 0x47000000u;
    const uint last = ((bits & 12u) * 0x1020u & 0x8080u) | 0x47000000u;
    to[0] = as_type<float>(__byte_perm(elements, first, 0x7604u));
    to[1] = as_type<float>(__byte_perm(elements, first, 0x7615u));
    to[2] = as_type<float>(__byte_perm(elements, last, 0x7624u));
    to[3] = as_type<float>(__byte_perm(elements, last, 0x7635u));
    OXB_UNROLL
    for (uint e = 0; e < 4u; e++) to[e] -= 32896.0f; // 2^15 + 128
#endif
    return to;
}

#endif
