/* The one table of weight formats: everything that depends on a format reads it from here.
 *
 * A file format is how a GGUF or a quantiser stores blocks. A device format is how values lie for
 * kernels, after the reformatter: every 2-bit file format becomes, without loss, codes of value
 * (code - 1) with one half scale per scale group. Base-3 digits stay digits, five to a byte.
 */
#ifndef OXB_FORMATS_H
#define OXB_FORMATS_H

/* X(id, name, bits, group_size, coded, scale_bytes, code_bytes): `name` is part of every kernel's
 * name; `coded` is 1 where weights are codes of 1 or 2 bits that lie apart from their scales, 0 for
 * dense formats. group_size 1 means that a weight has no scale; q8_0 keeps its blocks of 32 as
 * stored. `scale_bytes` and `code_bytes` are those of a scale group in the plain layout; `bits` are
 * those of a code once it is unpacked.
 *
 * t1_g128 has 1.75 bits a weight. Its scale group is two loads of 64 codes, a load four runs of 16:
 * byte 4 b + q of a load's 12 holds, as base-3 digits with the highest first, codes 4 b to 4 b + 3
 * and code 12 + b of run q. Digit n of byte v is (3^n v mod 256) * 3 >> 8. Code 15 of run q has
 * bits 8 l + 2 q and the next of the 16 bits behind the half scale, for load l. */
#define OXB_DEVICE_FORMATS(X)               \
    X(Q1_G128, "q1_g128", 1, 128, 1, 2, 16) \
    X(Q2_G128, "q2_g128", 2, 128, 1, 2, 32) \
    X(Q2_G64, "q2_g64", 2, 64, 1, 2, 16)    \
    X(F32, "f32", 32, 1, 0, 0, 4)           \
    X(F16, "f16", 16, 1, 0, 0, 2)           \
    X(BF16, "bf16", 16, 1, 0, 0, 2)         \
    X(Q8_0, "q8_0", 8, 32, 0, 0, 34)        \
    X(T1_G128, "t1_g128", 2, 128, 1, 4, 24)

typedef enum oxb_device_format {
#define X(id, name, bits, group_size, coded, scale_bytes, code_bytes) OXB_DEVICE_FORMAT_##id,
    OXB_DEVICE_FORMATS(X)
#undef X
        OXB_DEVICE_FORMAT_COUNT
} oxb_device_format;

/* X(id, name, ggml type, weights per block, bytes per block, byte offset of the scale, device
 * format). A ggml type is not unique: 42 stands for three formats in files that exist.
 *
 * tools/generate_formats.py writes the Python table from these rows: run it after a change. */
#define OXB_FILE_FORMATS(X)                               \
    X(Q1_0, "Q1_0", 41, 128, 18, 0, Q1_G128)              \
    X(TQ2_0_G128, "TQ2_0_g128", 42, 128, 34, 32, Q2_G128) \
    X(Q2_0, "Q2_0", 42, 64, 18, 0, Q2_G64)                \
    X(Q2_0_G128, "Q2_0_g128", 42, 128, 34, 0, Q2_G128)    \
    X(PQ2_0, "PQ2_0", 142, 128, 34, 0, Q2_G128)           \
    X(PTQ1_0, "PTQ1_0", 143, 128, 28, 26, T1_G128)        \
    X(TQ2_0, "TQ2_0", 35, 256, 66, 64, Q2_G128)           \
    X(F32, "F32", 0, 1, 4, 0, F32)                        \
    X(F16, "F16", 1, 1, 2, 0, F16)                        \
    X(BF16, "BF16", 30, 1, 2, 0, BF16)                    \
    X(Q8_0, "Q8_0", 8, 32, 34, 0, Q8_0)

typedef enum oxb_file_format {
#define X(id, name, type, weights, bytes, scale, device_format) OXB_FILE_FORMAT_##id,
    OXB_FILE_FORMATS(X)
#undef X
        OXB_FILE_FORMAT_COUNT
} oxb_file_format;

typedef struct oxb_file_format_info {
    const char *name;
    unsigned ggml_type;
    unsigned block_weights;
    unsigned block_bytes;
    unsigned scale_offset;
    oxb_device_format device_format;
} oxb_file_format_info;

typedef struct oxb_device_format_info {
    const char *name;
    unsigned bits;        /* of a code that is unpacked */
    unsigned group_size;  /* weights that share a scale */
    unsigned coded;       /* 1: codes, with the scales apart; 0: dense */
    unsigned scale_bytes; /* of a scale group: the scale, and codes that lie beside it */
    unsigned code_bytes;  /* of a scale group: the codes that lie apart */
} oxb_device_format_info;

/* NULL for a value outside the table. */
const oxb_file_format_info *oxb_file_format_of(oxb_file_format format);
const oxb_device_format_info *oxb_device_format_of(oxb_device_format format);

#endif
