// The device formats. Everything that depends on one is here, in types with the same members, so
// that each kernel is written once:
//
//   lane_weights          weights that a lane reads at once; k need not be a multiple of it
//   values(w, row, j, to) weights [j, j + lane_weights) of a row
//   weight(w, row, j)     one weight
//   tile_weights          weights that a thread puts into a tile at once, a divisor of lane_weights
//   tile_values(...)      weights [j, j + tile_weights)
//   exact                 the smallest type that holds every weight exactly
//
// Infinite and NaN scales and weights give what IEEE arithmetic on the definition gives. Indices
// that can pass 2^32 are 64 bits wide: a matrix can hold more weights than that. Of scales and of
// loads of codes it holds fewer, which the host checks: 64-bit arithmetic is slow on
// Apple's GPUs, where it would take a third of the time of a look-up's shifts.
#ifndef OXB_FORMATS_MSL_H
#define OXB_FORMATS_MSL_H

#include "digits.h"

struct weight_bytes {
    device const uchar *bytes;
    ulong codes_offset;
    ulong k;     // weights of a row
    uint column; // rows of a column of codes, 0 for the plain layout: row by row
};

// Coded formats: 1-bit and 2-bit codes. The scales of all scale groups come before the codes.

struct code_1bit {
    enum { bits = 1 };
    typedef half exact;
    // The code's bit becomes the sign of 1.0f, which costs less than a selection.
    static float level(uint codes, uint i) {
        return as_type<float>((codes << (31u - i) & 0x80000000u) ^ 0xbf800000u);
    }
};

struct code_2bit {
    enum { bits = 2 };
    typedef float exact; // twice a large half is none
    static float level(uint codes, uint i) { return float(codes >> 2u * i & 3u) - 1.0f; }
};

// The same, packed as base-3 digits.
struct code_digits : code_2bit {};

// How codes are packed. A load is what becomes 16 bytes of codes, and lies together in every
// layout. What a kernel asks for before it needs it, a load or what one of its words is made of,
// stays packed until then. `load` and `scale` are the addresses of a load and of its scale, `part`
// is the load's number in its scale group, `quad` the word's in its load. A word that has its scale
// beside it saves a register.

struct whole_codes {
    enum { load_bytes = 16, scale_bytes = 2 };
    typedef uint4 packed_load;
    typedef uint packed_word;

    static uint4 ask_load(device const uchar *load, device const uchar *, uint) {
        return *(device const uint4 *)load;
    }
    static uint ask_word(device const uchar *load, device const uchar *, uint quad) {
        return ((device const uint *)load)[quad];
    }
    static uint4 codes_of(uint4 codes) { return codes; }
    static uint word_of(uint codes, uint, uint) { return codes; }
    static half scale_of(uint, half scale) { return scale; }
};

struct digits_load {
    uint words[3];
    uint beside; // the last code of each word
};

struct digits_word {
    uint bytes[3];
    uint beside; // the scale, and the last code of each word of both loads
};

struct digit_codes {
    enum { load_bytes = 12, scale_bytes = 4 };
    typedef digits_load packed_load;
    typedef digits_word packed_word;

    static digits_load ask_load(device const uchar *load, device const uchar *scale, uint part) {
        digits_load asked;
        OXB_UNROLL
        for (uint i = 0; i < 3u; i++) asked.words[i] = ((device const uint *)load)[i];
        asked.beside = scale[2u + part];
        return asked;
    }
    static digits_word ask_word(device const uchar *load, device const uchar *scale, uint quad) {
        digits_word asked;
        OXB_UNROLL
        for (uint i = 0; i < 3u; i++) asked.bytes[i] = load[4u * i + quad];
        asked.beside = *(device const uint *)scale;
        return asked;
    }
    static uint4 codes_of(digits_load load) {
        const five_codes a = five_codes_of(load.words[0]), b = five_codes_of(load.words[1]);
        const five_codes c = five_codes_of(load.words[2]);
        const uint last = a.last | b.last << 2u | c.last << 4u | codes_in_bytes(load.beside) << 6u;
        return words_of_bytes(a.four, b.four, c.four, last);
    }
    static uint word_of(digits_word word, uint part, uint quad) {
        const five_codes of =
            five_codes_of(word.bytes[0] | word.bytes[1] << 8u | word.bytes[2] << 16u);
        const uint last = (of.last & 3u) | (of.last >> 6u & 12u) | (of.last >> 12u & 48u);
        const uint beside = word.beside >> (16u + 8u * part + 2u * quad);
        return (of.four & 0xffffffu) | (last | beside << 6u) << 24u;
    }
    static half scale_of(digits_word word, half) { return as_type<half2>(word.beside).x; }
};

template <typename Code, uint GROUP_SIZE, typename Packing>
struct coded_format {
    enum { lane_weights = 32 / Code::bits }; // one word of codes
    enum { weights_per_load = 128 / Code::bits };
    enum { loads_per_group = GROUP_SIZE / weights_per_load };
    enum { tile_weights = 8 };
    enum { load_bytes = Packing::load_bytes, scale_bytes = Packing::scale_bytes };
    typedef Code code;
    typedef Packing packing;
    typedef typename Code::exact exact;

    // The index of a row's scale, and of a row's load of codes.
    static uint scale_index(weight_bytes w, uint row, uint scale_group) {
        return w.column != 0u ? scale_group * w.column + row
                              : row * (uint(w.k) / GROUP_SIZE) + scale_group;
    }

    static uint load_index(weight_bytes w, uint row, uint load) {
        return w.column != 0u ? load * w.column + row : row * (uint(w.k) / weights_per_load) + load;
    }

    static device const uchar *load_at(weight_bytes w, uint row, uint load) {
        return w.bytes + w.codes_offset + ulong(load_index(w, row, load)) * load_bytes;
    }

    static device const uchar *scale_at(weight_bytes w, uint row, uint load) {
        return w.bytes + ulong(scale_index(w, row, load / loads_per_group)) * scale_bytes;
    }

    static half load_scale(weight_bytes w, uint row, uint load) {
        return *(device const half *)scale_at(w, row, load);
    }

    static typename Packing::packed_load ask_load(weight_bytes w, uint row, uint load) {
        return Packing::ask_load(load_at(w, row, load), scale_at(w, row, load),
                                 load % loads_per_group);
    }

    // What word `quad` of a load is made of.
    static typename Packing::packed_word ask_word(weight_bytes w, uint row, uint load, uint quad) {
        return Packing::ask_word(load_at(w, row, load), scale_at(w, row, load), quad);
    }

    static half scale(weight_bytes w, uint row, uint j) {
        return load_scale(w, row, j / weights_per_load);
    }

    static uint word(weight_bytes w, uint row, uint j) {
        const uint load = j / weights_per_load, quad = j / lane_weights % 4u;
        return Packing::word_of(ask_word(w, row, load, quad), load % loads_per_group, quad);
    }

    static void values(weight_bytes w, uint row, uint j, thread float *to) {
        const float d = float(scale(w, row, j));
        const uint codes = word(w, row, j);
        OXB_UNROLL
        for (uint i = 0; i < lane_weights; i++) to[i] = Code::level(codes, i) * d;
    }

    static void tile_values(weight_bytes w, uint row, uint j, thread float *to) {
        const float d = float(scale(w, row, j));
        const uint codes = word(w, row, j) >> j % lane_weights * Code::bits;
        OXB_UNROLL
        for (uint i = 0; i < tile_weights; i++) to[i] = Code::level(codes, i) * d;
    }

    static float weight(weight_bytes w, uint row, uint j) {
        return Code::level(word(w, row, j), j % lane_weights) * float(scale(w, row, j));
    }
};

typedef coded_format<code_1bit, 128, whole_codes> q1_g128;
typedef coded_format<code_2bit, 128, whole_codes> q2_g128;
typedef coded_format<code_2bit, 64, whole_codes> q2_g64;
typedef coded_format<code_digits, 128, digit_codes> t1_g128;

// Dense formats. k is arbitrary, so a row is aligned to one element only.

struct f32_element {
    typedef float exact;
    typedef float one;
    typedef packed_float4 four;
    static float value(float element) { return element; }
};

struct f16_element {
    typedef half exact;
    typedef half one;
    typedef packed_half4 four;
    static float value(half element) { return float(element); }
};

struct bf16_element { // converted by bits: Metal has bfloat from version 3.1 on only
    typedef float exact;
    typedef ushort one;
    typedef packed_ushort4 four;
    static float value(ushort element) { return as_type<float>(uint(element) << 16); }
};

template <typename Element>
struct dense_format {
    enum { lane_weights = 4, tile_weights = 4 };
    typedef typename Element::exact exact;

    static device const typename Element::one *at(weight_bytes w, ulong row, ulong j) {
        return (device const typename Element::one *)(w.bytes + w.codes_offset) + row * w.k + j;
    }

    static void values(weight_bytes w, ulong row, ulong j, thread float *to) {
        const typename Element::four four = *(device const typename Element::four *)at(w, row, j);
        OXB_UNROLL
        for (uint i = 0; i < lane_weights; i++) to[i] = Element::value(four[i]);
    }

    static void tile_values(weight_bytes w, ulong row, ulong j, thread float *to) {
        values(w, row, j, to);
    }

    static float weight(weight_bytes w, ulong row, ulong j) {
        return Element::value(*at(w, row, j));
    }
};

typedef dense_format<f32_element> f32;
typedef dense_format<f16_element> f16;
typedef dense_format<bf16_element> bf16;

// Blocks of a half scale and 32 signed bytes, as in the file format.
struct q8_0 {
    enum { lane_weights = 8, tile_weights = 8, block_weights = 32, block_bytes = 34 };
    typedef float exact;

    static device const uchar *block(weight_bytes w, ulong row, ulong j) {
        return w.bytes + w.codes_offset + (row * w.k + j) / block_weights * block_bytes;
    }

    // An 8-bit integer times an 11-bit significand is exact in float: no rounding here.
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

    static void tile_values(weight_bytes w, ulong row, ulong j, thread float *to) {
        values(w, row, j, to);
    }

    static float weight(weight_bytes w, ulong row, ulong j) {
        device const uchar *b = block(w, row, j);
        return float(((device const char *)b)[2 + j % block_weights]) *
               float(*(device const half *)b);
    }
};

#endif
