// The weight formats that kernels see. Everything that depends on one is here, in functor types
// with the same members, so that each kernel is written once:
//
//   lane_weights          weights that a lane takes at once; a row's k may be no multiple of it
//   values(w, row, j, to) weights [j, j + lane_weights) of a row
//   weight(w, row, j)     one weight
//
// With infinite and NaN scales, weights or activations they give what IEEE arithmetic on the
// definition gives. Products are indexed in 64 bits: a matrix can hold more than 2^32 weights.
#ifndef OXB_FORMATS_MSL_H
#define OXB_FORMATS_MSL_H

struct weight_bytes {
    device const uchar *bytes;
    ulong codes_offset;
    ulong k;     // weights of a row
    uint column; // rows of a column of codes, or 0 where codes lie row by row
};

// 1-bit and 2-bit codes, with the half scales of all groups before the codes.
//
// A level of 1 or -1 has the code's bit as its sign: a choice between two floats costs more.

struct code_1bit {
    enum { bits = 1 };
    static float level(uint codes, uint i) {
        return as_type<float>((codes << (31u - i) & 0x80000000u) ^ 0xbf800000u);
    }
};

struct code_2bit {
    enum { bits = 2 };
    static float level(uint codes, uint i) { return float(codes >> 2u * i & 3u) - 1.0f; }
};

#define OXB_UNIT_BYTES 16u // of codes of one row, which lie together in every layout

template <typename Code, uint GROUP>
struct grouped_codes {
    enum { lane_weights = 32 / Code::bits };     // one word of codes
    enum { unit_weights = 128 / Code::bits };    // OXB_UNIT_BYTES of codes
    enum { group_units = GROUP / unit_weights }; // units with one scale
    typedef Code code;

    // Which scale, for group `group` of a row; and which unit of codes.
    static ulong scale_index(weight_bytes w, ulong row, uint group) {
        return w.column != 0u ? ulong(group) * w.column + row : row * (w.k / GROUP) + group;
    }

    static ulong unit_index(weight_bytes w, ulong row, uint unit) {
        return w.column != 0u ? ulong(unit) * w.column + row : row * (w.k / unit_weights) + unit;
    }

    static half unit_scale(weight_bytes w, ulong row, uint unit) {
        return ((device const half *)w.bytes)[scale_index(w, row, unit / group_units)];
    }

    static uint4 unit_codes(weight_bytes w, ulong row, uint unit) {
        return ((device const uint4 *)(w.bytes + w.codes_offset))[unit_index(w, row, unit)];
    }

    static half scale(weight_bytes w, ulong row, ulong j) {
        return ((device const half *)w.bytes)[scale_index(w, row, uint(j / GROUP))];
    }

    static uint word(weight_bytes w, ulong row, ulong j) {
        const uint words = OXB_UNIT_BYTES / 4u;
        const ulong unit = unit_index(w, row, uint(j / unit_weights));
        return ((device const uint *)(w.bytes +
                                      w.codes_offset))[unit * words + j / lane_weights % words];
    }

    static void values(weight_bytes w, ulong row, ulong j, thread float *to) {
        const float d = float(scale(w, row, j));
        const uint codes = word(w, row, j);
        OXB_UNROLL
        for (uint i = 0; i < lane_weights; i++) to[i] = Code::level(codes, i) * d;
    }

    static float weight(weight_bytes w, ulong row, ulong j) {
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

    static device const typename Element::one *at(weight_bytes w, ulong row, ulong j) {
        return (device const typename Element::one *)(w.bytes + w.codes_offset) + row * w.k + j;
    }

    static void values(weight_bytes w, ulong row, ulong j, thread float *to) {
        const typename Element::four four = *(device const typename Element::four *)at(w, row, j);
        OXB_UNROLL
        for (uint i = 0; i < lane_weights; i++) to[i] = Element::value(four[i]);
    }

    static float weight(weight_bytes w, ulong row, ulong j) {
        return Element::value(*at(w, row, j));
    }
};

typedef elements<f32_element> f32;
typedef elements<f16_element> f16;
typedef elements<bf16_element> bf16;

// Blocks of a half scale and 32 signed bytes, as files hold them.
struct q8_0 {
    enum { lane_weights = 8, block_weights = 32, block_bytes = 34 };

    static device const uchar *block(weight_bytes w, ulong row, ulong j) {
        return w.bytes + w.codes_offset + (row * w.k + j) / block_weights * block_bytes;
    }

    // An 8-bit code times an 11-bit scale is exact in float, so this is the definition's weight.
    static void values(weight_bytes w, ulong row, ulong j, thread float *to) {
        device const uchar *b = block(w, row, j);
        const float d = float(*(device const half *)b);
        device const ushort *pairs = (device const ushort *)(b + 2 + j % block_weights);
        OXB_UNROLL
        for (uint i = 0; i < lane_weights / 2; i++) {
            const int pair = int(uint(pairs[i]) << 16);
            to[2 * i] = float(pair << 8 >> 24) * d;
            to[2 * i + 1] = float(pair >> 24) * d;
        }
    }

    static float weight(weight_bytes w, ulong row, ulong j) {
        device const uchar *b = block(w, row, j);
        return float(((device const char *)b)[2 + j % block_weights]) *
               float(*(device const half *)b);
    }
};

#endif
