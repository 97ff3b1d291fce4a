// The weight formats that kernels see. Everything that depends on one is here, in functor types with
// the same members, so that each kernel is written once:
//
//   lane_weights          weights that a lane takes at once; a row's k may be no multiple of it
//   dot(w, row, j, x)     sum of weights [j, j + lane_weights) of a row times x[0..lane_weights)
//   weight(w, row, j)     one weight
//
// With infinite and NaN scales, weights or activations they give what IEEE arithmetic on the
// definition gives. Products are indexed in 64 bits: a matrix can hold more than 2^32 weights.
#ifndef OXB_FORMATS_MSL_H
#define OXB_FORMATS_MSL_H

struct weight_bytes {
    device const uchar* bytes;
    ulong codes_offset;
    ulong k; // weights of a row
};

// 1-bit and 2-bit codes, with the half scales of all groups before the codes.

struct code_1bit {
    enum { bits = 1 };
    // 1 or -1: the bit of the code is the sign, set by bits instead of a choice.
    static float level(uint codes, uint i)
    {
        return as_type<float>((codes << (31u - i) & 0x80000000u) ^ 0xbf800000u);
    }
};

struct code_2bit {
    enum { bits = 2 };
    static float level(uint codes, uint i) { return float(codes >> 2u * i & 3u) - 1.0f; }
};

template <typename Code, uint GROUP>
struct grouped_codes {
    enum { lane_weights = 32 / Code::bits }; // one word of codes

    static half scale(weight_bytes w, ulong row, ulong j)
    {
        return ((device const half*)w.bytes)[(row * w.k + j) / GROUP];
    }

    static uint word(weight_bytes w, ulong row, ulong j)
    {
        return ((device const uint*)(w.bytes + w.codes_offset))[(row * w.k + j) / lane_weights];
    }

    // By multiplication, so that a level of 0 times an infinite activation is NaN.
    static float sum(uint codes, float scale, thread const float* x)
    {
        float total = 0.0f;
        OXB_UNROLL
        for (uint i = 0; i < lane_weights; i++)
            total = fma(Code::level(codes, i) * scale, x[i], total);
        return total;
    }

    static float dot(weight_bytes w, ulong row, ulong j, thread const float* x)
    {
        const half half_scale = scale(w, row, j);
        const float d = float(half_scale);
        const uint codes = word(w, row, j);
        // d * sum is the sum of (level * d) * x for a finite d only: an infinite one makes NaN where
        // signs or zeros meet in the sum.
        const bool finite = (as_type<ushort>(half_scale) & 0x7c00) != 0x7c00;
        return finite ? d * sum(codes, 1.0f, x) : sum(codes, d, x);
    }

    static float weight(weight_bytes w, ulong row, ulong j)
    {
        return Code::level(word(w, row, j), uint(j % lane_weights)) * float(scale(w, row, j));
    }
};

typedef grouped_codes<code_1bit, 128> q1_g128;
typedef grouped_codes<code_2bit, 128> q2_g128;
typedef grouped_codes<code_2bit, 64> q2_g64;

// Weights that carry their own value. Rows of any k: nothing but an element's own alignment holds.

struct f32_element {
    typedef float one;
    typedef packed_float4 four;
    static float value(float element) { return element; }
};

struct f16_element {
    typedef half one;
    typedef packed_half4 four;
    static float value(half element) { return float(element); }
};

struct bf16_element { // by bits: the type came with a later language version
    typedef ushort one;
    typedef packed_ushort4 four;
    static float value(ushort element) { return as_type<float>(uint(element) << 16); }
};

template <typename Element>
struct elements {
    enum { lane_weights = 4 };

    static device const typename Element::one* at(weight_bytes w, ulong row, ulong j)
    {
        return (device const typename Element::one*)(w.bytes + w.codes_offset) + row * w.k + j;
    }

    static float dot(weight_bytes w, ulong row, ulong j, thread const float* x)
    {
        const typename Element::four four = *(device const typename Element::four*)at(w, row, j);
        float total = 0.0f;
        OXB_UNROLL
        for (uint i = 0; i < lane_weights; i++)
            total = fma(Element::value(four[i]), x[i], total);
        return total;
    }

    static float weight(weight_bytes w, ulong row, ulong j) { return Element::value(*at(w, row, j)); }
};

typedef elements<f32_element> f32;
typedef elements<f16_element> f16;
typedef elements<bf16_element> bf16;

// Blocks of a half scale and 32 signed bytes, as files hold them.
struct q8_0 {
    enum { lane_weights = 8, block_weights = 32, block_bytes = 34 };

    static device const uchar* block(weight_bytes w, ulong row, ulong j)
    {
        return w.bytes + w.codes_offset + (row * w.k + j) / block_weights * block_bytes;
    }

    // An 8-bit code times an 11-bit scale is exact in float, so this is the definition's weight.
    static float dot(weight_bytes w, ulong row, ulong j, thread const float* x)
    {
        device const uchar* b = block(w, row, j);
        const float d = float(*(device const half*)b);
        device const ushort* pairs = (device const ushort*)(b + 2 + j % block_weights);
        float total = 0.0f;
        OXB_UNROLL
        for (uint i = 0; i < lane_weights / 2; i++) {
            const int pair = int(uint(pairs[i]) << 16);
            total = fma(float(pair << 8 >> 24) * d, x[2 * i], total);
            total = fma(float(pair >> 24) * d, x[2 * i + 1], total);
        }
        return total;
    }

    static float weight(weight_bytes w, ulong row, ulong j)
    {
        device const uchar* b = block(w, row, j);
        return float(((device const char*)b)[2 + j % block_weights]) * float(*(device const half*)b);
    }
};

#endif
