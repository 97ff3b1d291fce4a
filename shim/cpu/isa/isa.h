/* Variants of the cpu kernels for an instruction set: one table of functions each, chosen when a
 * device is opened. Within a variant a row is computed in one order, whatever the split among
 * threads.
 */
#ifndef CPU_ISA_H
#define CPU_ISA_H

#include <stddef.h>
#include <stdint.h>

#include "oxb_args.h"

/* Whether the compiler knows the newer integer dot products. */
#if defined(__clang__)
#define CPU_KNOWS_AVXVNNI (__clang_major__ >= 12)
#elif defined(__GNUC__)
#define CPU_KNOWS_AVXVNNI (__GNUC__ >= 11)
#else
#define CPU_KNOWS_AVXVNNI 0
#endif
#if defined(__ARM_FEATURE_DOTPROD)
#define CPU_KNOWS_DOTPROD 1
#elif defined(__clang__)
#define CPU_KNOWS_DOTPROD (__clang_major__ >= 16)
#elif defined(__GNUC__)
#define CPU_KNOWS_DOTPROD (__GNUC__ >= 8)
#else
#define CPU_KNOWS_DOTPROD 0
#endif

#define CPU_LANES     16u   /* rows of a strip: one in each lane of a vector of 32-bit words */
#define CPU_MAX_PANEL 8u    /* strips of a panel, the most: their scale groups lie side by side */
#define CPU_FLUSH     2048u /* weights added in float32 before they are added in float64 */

/* How the words of a strip hold the codes of a row (panels.h). */
typedef enum cpu_packing {
    CPU_BITS,   /* 1 bit, 32 weights a word */
    CPU_PAIRS,  /* 2 bits, 16 weights a word */
    CPU_TRITS,  /* 5 bits for three weights, 7 words for 128 weights */
    CPU_DIGITS, /* 16 bits for ten weights, 6 words for 120 of 128 and 16 bits beside the scale */
    CPU_PACKING_COUNT
} cpu_packing;

#define CPU_MOST_TOGETHER \
    4u /* vectors that share the codes of a row as they are shifted, the most */

/* Some strips of a panel and some scale groups of their columns. */
typedef struct cpu_strips {
    const uint16_t *scales; /* of the first scale group of the first strip */
    const uint32_t *codes;
    uint64_t n_groups;
    uint32_t group_size; /* weights: 64 or 128 */
    uint32_t n_strips;   /* to the panel's end at most */
    uint32_t n_vectors;  /* whose tables lie side by side: 1, 2 or 4 */
    uint64_t stride;     /* of the sums, from a vector to the next */
    int add;             /* to the sums; else store them */
    int streams;         /* cpu_streams() */
} cpu_strips;

typedef struct cpu_packing_kernels {
    /* Tables of what each field of a word contributes before the scale, for n_groups scale groups
     * of x, which is vector v of n_vectors: their tables of a field lie side by side. */
    void (*tables)(float *tables, const float *x, uint64_t n_groups, uint32_t group, uint32_t v,
                   uint32_t n_vectors);
    /* sums[v * stride + 16 i + lane]: row `lane` of strip i, times vector v. */
    void (*rows)(const cpu_strips *strips, const float *tables, double *sums);
} cpu_packing_kernels;

#define CPU_INT8_BLOCK 16u /* activations that share a scale */

/* A vector as quantize() leaves it: int8 [k], then float scales [k / CPU_INT8_BLOCK], then for each
 * scale group minus the sum of what its activations stand for. Bytes of it: */
static inline uint64_t cpu_int8_bytes(uint64_t k, uint64_t group) {
    return k + k / CPU_INT8_BLOCK * sizeof(float) + k / group * sizeof(float);
}

/* Some strips, with their codes expanded to bytes, times some quantised vectors. */
typedef struct cpu_int8_strips {
    const uint32_t *codes;  /* [strip][four weights][lane] */
    const uint16_t *scales; /* of the first scale group of the first strip */
    uint64_t code_stride;   /* words from a strip to the next */
    uint64_t strip_scales;  /* scales from a strip to the next */
    uint64_t scale_stride;  /* scales from a scale group to the next */
    const int8_t *q;        /* of the first scale group of the first vector */
    const float *q_scales;
    const float *q_sums;
    uint64_t q_stride; /* bytes from a vector to the next */
    uint64_t n_groups;
    uint32_t group_size;
    uint32_t n_strips;
    uint32_t n_vectors;
    uint64_t stride; /* of the sums, from a vector to the next */
    int add;
} cpu_int8_strips;

typedef struct cpu_int8_kernels {
    void (*quantize)(const float *x, uint64_t k, uint32_t group, void *to);
    /* The codes of some scale groups of a strip as bytes of value (code), four weights a word; the
     * scale groups are `stride` words apart. `beside`: the units beside the scales, of digits. */
    void (*expand[CPU_PACKING_COUNT])(uint32_t *to, const uint32_t *codes, const uint16_t *beside,
                                      uint64_t n_groups, uint64_t stride, uint32_t group);
    void (*rows)(const cpu_int8_strips *strips, double *sums);
} cpu_int8_kernels;

#define CPU_ATTEND_HEADS   4u  /* query heads that share each row of the caches as it is read */
#define CPU_ATTEND_BLOCK   64u /* positions whose weights are rescaled together */
#define CPU_ATTEND_SCRATCH 163840u

typedef struct cpu_attend_head {
    float *out;  /* the values' sum, to be divided by the total */
    float max;   /* the largest score */
    float total; /* of exp(score - max) */
} cpu_attend_head;

/* Query heads of one token over positions [begin, end) of a key-value head. Position p is row p %
 * page_size of page pages[p / page_size]; without pages, of page 0. */
typedef struct cpu_attend {
    const float *q; /* [n_heads][head_dim] */
    const void *k;  /* the head in page 0: [page_size][head_dim], of q8 its words after that */
    const void *v;
    const uint32_t *pages; /* or NULL */
    uint64_t page_stride;  /* bytes */
    uint64_t page_size;    /* with pages, a multiple of CPU_ATTEND_BLOCK */
    uint64_t begin;        /* with pages, a multiple of CPU_ATTEND_BLOCK */
    uint64_t end;
    uint32_t head_dim;  /* up to OXB_MAX_HEAD_DIM */
    uint32_t n_heads;   /* 1 to CPU_ATTEND_HEADS */
    uint32_t kv_format; /* oxb_kv_format */
    float scale;
    cpu_attend_head *head;
    void *scratch; /* CPU_ATTEND_SCRATCH bytes */
} cpu_attend;

#define CPU_CHOICE_GROUP  64u   /* logits whose largest one is found together: cpu_choice.maxima */
#define CPU_CHOICE_SLAB   4096u /* logits that are looked at together: as many as a block has */
#define CPU_CHOICE_RANGES 1024u /* of distances, whose probabilities are added up apart */
#define CPU_CHOICE_CHAINS 4u    /* sums of a range, so that an addition does not wait for another */

/* How many numbers are above a value, up to another one, and how many equal it. */
typedef struct cpu_tally {
    uint64_t above, equal;
} cpu_tally;

/* Logits from low to high whose probabilities are added up by their distances from `largest`:
 * sums[chain][(distance - first) >> shift]. */
typedef struct cpu_masses {
    const float *x;
    uint64_t n;
    float low, high;
    float largest, scale;
    uint32_t first, shift;
    uint64_t (*sums)[CPU_CHOICE_RANGES];
    float *slab; /* CPU_CHOICE_SLAB + CPU_LANES */
} cpu_masses;

/* Logits that race: those above `lowest`, and those equal to it up to token `last`. */
typedef struct cpu_race {
    const float *w;
    float largest, scale;
    float lowest;
    uint32_t last;
    uint32_t place, choice;
    uint32_t seed[2];
    int64_t key; /* the smallest so far, and its token; the key of the largest logit at first */
    uint32_t token;
} cpu_race;

/* Passes over the n logits at x. NaN is like -inf. */
typedef struct cpu_choice {
    /* The largest of them; -inf where there is none. */
    float (*largest)(const float *x, uint64_t n);
    /* The smallest that is not less than `low`; or `low`, where any other is less. */
    float (*smallest)(const float *x, uint64_t n, float low);
    /* The largest again; and w is their copy without NaN, where the mask has a 1 or is NULL; else
     * -inf. */
    float (*copy)(const float *x, const uint32_t *mask, float *w, uint64_t n);
    /* Tokens [start, start + length) among n, less `start`, go to `to`. Returns how many. */
    uint32_t (*within)(const uint32_t *tokens, uint32_t n, uint32_t start, uint32_t length,
                       uint32_t *to);
    /* The first that is not less than `value`; n where there is none. */
    uint64_t (*find)(const float *x, uint64_t n, float value);
    /* to[n / CPU_CHOICE_GROUP, up to a multiple of CPU_LANES]: the largest of disjoint groups of
     * CPU_CHOICE_GROUP at most, -inf of empty ones. */
    void (*maxima)(const float *x, uint64_t n, float *to);
    /* Those from low to high go to `to` in order, which may be x and has `room` + CPU_LANES
     * elements. Returns how many there are: where more than `room`, only the first are there. */
    uint64_t (*pack)(const float *x, uint64_t n, float low, float high, float *to, uint64_t room);
    cpu_tally (*tally)(const float *x, uint64_t n, float value, float high);
    void (*masses)(const cpu_masses *masses);
    uint64_t (*mass)(const cpu_masses *masses); /* the sum of all */
    /* Tokens [first, end) take part; first is a multiple of 64. */
    void (*race)(cpu_race *race, uint32_t first, uint32_t end);
    /* The sum of exp(x - largest), within 2e-6 of it. */
    double (*exp_sum)(const float *x, uint64_t n, float largest);
} cpu_choice;

/* What a token brings to a head of the delta rule (struct oxb_delta_args). */
typedef struct cpu_delta_step {
    float q[OXB_MAX_DELTA_DIM], k[OXB_MAX_DELTA_DIM]; /* of their lengths; q times the scale */
    float fade, rate;                                 /* g, and what d is multiplied by */
    float along;                                      /* q times k */
} cpu_delta_step;

/* Columns of a state that are worked on together, the most; the fewest are 32. */
#define CPU_DELTA_COLUMNS 128u

/* Columns of a head's state over some tokens. */
typedef struct cpu_delta {
    const float *from;  /* before the first token; NULL: zeros */
    float *to;          /* behind the last one; it may be `from` */
    uint64_t stride;    /* of the rows of both */
    uint32_t key_dim;   /* rows */
    uint32_t n_columns; /* a multiple of 32 */
    uint32_t n_steps;
    const cpu_delta_step *steps;
    const float *v;
    float *y;
    uint64_t v_stride, y_stride; /* from a token to the next */
    float *strip;                /* [key_dim][CPU_DELTA_COLUMNS] to work in */
} cpu_delta;

/* Of numbers that are multiplied by `power`, a power of two, and then by `rest`. */
typedef struct cpu_factor {
    float power, rest;
} cpu_factor;

/* What layers with a state from token to token have. Each element is computed in one way, whatever
 * is computed beside it. */
typedef struct cpu_recurrent_kernels {
    /* y[i] = silu(sum over j < width of weights[j * stride + i] * rows[j][i]) */
    void (*conv)(const float *const *rows, const float *weights, uint64_t stride, uint32_t width,
                 float *y, uint64_t n);
    void (*delta)(const cpu_delta *delta);
    /* y = x * factor * weight / (1 + exp(-z)), times z too where `silu`; without a weight the
     * factor is 1. */
    void (*gate)(const float *x, const float *z, const float *weight, cpu_factor factor, int silu,
                 float *y, uint64_t n);
    /* In place, without the factor 1 / sqrt(n); n is a power of two, 16 or more. */
    void (*hadamard)(float *x, uint64_t n);
} cpu_recurrent_kernels;

/* Scale groups of the 16 rows of a strip: where their blocks are, and where they go. */
typedef struct cpu_pack_rows {
    const uint8_t *codes[CPU_LANES]; /* plain codes of the first group */
    const uint8_t *scales[CPU_LANES];
    uint64_t code_stride; /* bytes from a scale group to the next */
    uint64_t scale_stride;
    uint64_t n_groups;
    uint32_t group_size; /* weights */
    cpu_packing packing;
    int no_three; /* a code of 3 stands for 1, which is 0 times the scale */
    uint16_t *to_scales;
    uint32_t *to_codes;
} cpu_pack_rows;

typedef struct cpu_float_kernels {
    cpu_packing_kernels packing[CPU_PACKING_COUNT]; /* NULL: the layout is not used */
    /* sums[i] = row i, `stride` bytes apart, times x: F32, F16, BF16 and Q8_0. */
    void (*dense)(uint32_t format, const uint8_t *rows, uint64_t stride, uint64_t n, const float *x,
                  uint64_t k, double *sums);
    /* Returns 0 where a code does not fit. */
    int (*pack)(const cpu_pack_rows *rows);
    void (*attend)(const cpu_attend *a);
    /* s = gate / (1 + exp(-gate)) * up; reads up to the end of a vector of CPU_LANES. */
    void (*swiglu)(const double *gate, const double *up, float *s, uint64_t n);
    cpu_choice choice;
    cpu_recurrent_kernels recurrent;
} cpu_float_kernels;

/* Variants that differ in their integer dot products share the other kernels. */
typedef struct cpu_isa {
    const char *name;
    int (*present)(void); /* whether this processor has the instructions */
    const cpu_float_kernels *f32;
    const cpu_int8_kernels *int8; /* NULL where matrices stay in the plain layout */
} cpu_isa;

extern const cpu_float_kernels cpu_avx512_f32, cpu_avx2_f32, cpu_neon_f32, cpu_portable_f32;
extern const cpu_int8_kernels cpu_avx512_int8, cpu_avx512_vnni_int8, cpu_avx2_int8,
    cpu_avx2_vnni_int8, cpu_neon_int8, cpu_neon_dotprod_int8;

/* Whether codes are best fetched past the second-level cache, where the tables are. */
int cpu_streams(void);

int cpu_has_dotprod(void); /* machine.c: the dot products of Armv8.2 */

/* The variants that this processor can run, the best first; NULL past the end. */
const cpu_isa *cpu_variant(uint32_t index);
/* The variant of that name, NULL where this processor cannot run it. */
const cpu_isa *cpu_variant_named(const char *name);

#endif
