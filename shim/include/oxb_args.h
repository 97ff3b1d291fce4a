/* The argument structs of kernels: one definition for C, Metal and NVRTC.
 *
 * Members have a fixed width and stand at their natural alignment, and sizes are padded to a
 * multiple of 16 bytes, so that every compiler lays a struct out alike; the asserts check it. Sizes
 * and strides count elements, offsets count bytes, where no comment says otherwise. What can pass
 * 2^32 is 64 bits wide.
 */
#ifndef OXB_ARGS_H
#define OXB_ARGS_H

#if defined(__METAL_VERSION__) || defined(__CUDACC_RTC__)
typedef unsigned int oxb_u32;
typedef unsigned long oxb_u64;
typedef float oxb_f32;
#else
#include <stdint.h>
typedef uint32_t oxb_u32;
typedef uint64_t oxb_u64;
typedef float oxb_f32;
#endif

#if defined(__cplusplus)
#define OXB_ASSERT(condition, message) static_assert(condition, message)
#else
#define OXB_ASSERT(condition, message) _Static_assert(condition, message)
#endif

#define OXB_MAX_HEAD_DIM 512   /* kernels keep a head in arrays of fixed size */
#define OXB_MAX_SPLITS   32768 /* of the positions in decode attention: 2^24 in splits of 512 */

#define OXB_ARGS_SIZE(type, size)                                                                 \
    OXB_ASSERT(sizeof(struct type) == (size) && (size) % 16 == 0, #type " must be " #size " byte" \
                                                                        "s")

/* y[n_rows] = W x, or y += W x for the residual form, or s[n_rows] = silu(W[0:n_rows] x) *
 * (W[n_rows:2 n_rows] x), for each vector of the grid's y: rows of x are k apart, those of y
 * y_stride. Bindings: weight, x, y; with a norm, weight, x, its weight, y. The weight buffer holds
 * a half scale per scale group, then at codes_offset the codes. Where `column` is not 0, scales and
 * 16-byte loads of codes lie column by column, that many rows each. */
struct oxb_gemv_args {
    oxb_u64 codes_offset;
    oxb_u32 n_rows;
    oxb_u32 k;
    oxb_u32 column;
    oxb_f32 eps; /* of the norm */
    oxb_u32 y_stride;
    oxb_u32 pad;
};
OXB_ARGS_SIZE(oxb_gemv_args, 32);

/* The same for each row of x [n_vectors][k], to rows of y that are y_stride elements apart.
 * Bindings: weight, x, y. */
struct oxb_gemm_args {
    oxb_u64 codes_offset;
    oxb_u64 y_stride;
    oxb_u32 n_rows;
    oxb_u32 k;
    oxb_u32 n_vectors;
    oxb_u32 column;
};
OXB_ARGS_SIZE(oxb_gemm_args, 32);

/* y = x / sqrt(mean(x^2) + eps) * weight, each of n_vectors rows. Bindings: x, weight, y. */
struct oxb_rmsnorm_args {
    oxb_u32 n;
    oxb_u32 n_vectors;
    oxb_f32 eps;
    oxb_u32 pad;
};
OXB_ARGS_SIZE(oxb_rmsnorm_args, 16);

/* Vectors rounded to int8 for the gemm kernels that take them. The cpu driver alone has such
 * kernels, and defines the layout. Bindings: x, quantised x. */
struct oxb_quantize_args {
    oxb_u32 k;
    oxb_u32 n_vectors;
    oxb_u32 group_size; /* of the matrix */
    oxb_u32 pad;
};
OXB_ARGS_SIZE(oxb_quantize_args, 16);

/* Vectors as two halves for the gemm kernels on matrix units (shaders/halves.h), in blocks of as
 * many activations as meet 16 bytes of codes: 128 or 64. Vectors are added up to a multiple of 8,
 * as zeros. round_half rounds to one half instead. Bindings: x, halves; halve_norm and
 * round_half_norm make them of rmsnorm(x): x, norm, halves. */
struct oxb_halve_args {
    oxb_u32 k;
    oxb_u32 n_vectors;
    oxb_u32 block;
    oxb_f32 eps; /* of the norm */
};
OXB_ARGS_SIZE(oxb_halve_args, 16);

/* y += x. Bindings: x, y. */
struct oxb_add_args {
    oxb_u64 n;
    oxb_u64 pad;
};
OXB_ARGS_SIZE(oxb_add_args, 16);

/* y[v][i] += bias[i] for i < n, in each of n_vectors rows of y that are y_stride elements apart.
 * Bindings: bias, y. */
struct oxb_bias_args {
    oxb_u64 y_stride;
    oxb_u32 n;
    oxb_u32 n_vectors;
};
OXB_ARGS_SIZE(oxb_bias_args, 16);

/* What changes from submission to submission, in a device buffer that the kernels read. */
struct oxb_decode_state {
    oxb_u32 position;  /* of its first token in flight */
    oxb_u32 tokens;    /* elements of the token buffer before this sequence's */
    oxb_u32 pages;     /* elements of the page buffer before this sequence's table */
    oxb_u32 recurrent; /* the first slot of this sequence's ring: struct oxb_recurrence */
};
OXB_ARGS_SIZE(oxb_decode_state, 16);

/* y[t][k] = row tokens[state.tokens + state.position + t] of W, for n_tokens; where batch is 1, row
 * t has element t of the states, and t is not added. NaN where the position or the token is out of
 * range. Bindings: weight, tokens, state, y. */
struct oxb_embed_args {
    oxb_u64 codes_offset;
    oxb_u32 n_rows;
    oxb_u32 k;
    oxb_u32 max_tokens; /* elements of tokens */
    oxb_u32 n_tokens;
    oxb_u32 column; /* as in oxb_gemv_args */
    oxb_u32 batch;  /* 0 or 1 */
};
OXB_ARGS_SIZE(oxb_embed_args, 32);

/* RMSNorm of each head of q and k where has_norm, then RoPE of its first rotary_dim elements, in
 * place in the fused qkv [n_tokens][n_heads + 2 n_kv_heads][head_dim]. The pair that rotates by
 * angle i is elements i and i + rotary_dim / 2 (NeoX), or 2 i and 2 i + 1 where interleaved.
 * Bindings: qkv, q_norm, k_norm, rope, state; without a norm q_norm and k_norm are not read. rope:
 * float32 [position][2][rotary_dim / 2], cosines then sines. Token t is at state[0].position + t
 * or, where batch is 1, at state[t].position: so for all kernels with a state. */
struct oxb_qk_norm_rope_args {
    oxb_u32 n_heads;
    oxb_u32 n_kv_heads;
    oxb_u32 head_dim;
    oxb_u32 rotary_dim;  /* even, 2..head_dim */
    oxb_u32 interleaved; /* 0 or 1 */
    oxb_u32 has_norm;    /* 0 or 1 */
    oxb_f32 eps;
    oxb_u32 max_seq; /* positions of rope; tokens past them stay as they are */
    oxb_u32 n_tokens;
    oxb_u32 batch; /* 0 or 1 */
    oxb_u32 pad[2];
};
OXB_ARGS_SIZE(oxb_qk_norm_rope_args, 48);

/* Where the keys, or the values, of a layer lie: position p of key-value head h at element
 * page * page_stride + layer_offset + h * head_stride + p % page_size * head_dim, with the page of
 * p, element state.pages + p / page_size of the tables, or page 0 where table_size is 0. Elements
 * are f32, f16 or, for q8, int8, by the end of a kernel's name.
 *
 * A head of q8, whose head_dim is a multiple of 32, has after its page_size * head_dim elements
 * head_dim / 16 words of 16 bits for each position. The last word is the unit of the position, a
 * bfloat16: max|x| / 255 rounded up, or NaN where an x is not finite. Bit i of word w is one more
 * bit of element e = 16 * w + i: x = unit * (2 * element + bit). The last 16 elements have none:
 * x = unit * 2 * element. Keys are stored after a Walsh-Hadamard transform of their columns:
 * element head_dim / 32 * a + b of a key becomes the sum over c < 32 of the elements head_dim / 32
 * * c + b, each negated where a & c has an odd number of bits. A query that is transformed in the
 * same way has 32 times its product with the key.
 *
 * A position from max_seq on, or whose page is not below n_pages or lies outside the tables, has no
 * place: it is not stored, and what would attend to it is NaN. */
struct oxb_cache {
    oxb_u64 page_stride; /* these three are in elements, which are bytes for q8 */
    oxb_u64 layer_offset;
    oxb_u64 head_stride;
    oxb_u32 page_size;  /* a multiple of 64, or max_seq where there is one page */
    oxb_u32 n_pages;    /* of the cache */
    oxb_u32 table_size; /* elements of the tables of all sequences; 0: none */
    oxb_u32 max_seq;
    oxb_u32 pad[2];
};
OXB_ARGS_SIZE(oxb_cache, 48);

/* Store k and v of n_tokens tokens into the caches. Bindings: qkv, k cache, v cache, state, pages.
 */
struct oxb_kv_store_args {
    struct oxb_cache cache;
    oxb_u32 n_heads;
    oxb_u32 n_kv_heads;
    oxb_u32 head_dim;
    oxb_u32 n_tokens;
    oxb_u32 batch; /* 0 or 1 */
    oxb_u32 pad[3];
};
OXB_ARGS_SIZE(oxb_kv_store_args, 80);

/* qk_norm_rope and kv_store in one: queries in place, keys and values to the caches; what is left
 * of the keys in qkv is not defined. Bindings: qkv, q_norm, k_norm, rope, k cache, v cache, state,
 * pages. */
struct oxb_qkv_to_cache_args {
    struct oxb_cache cache;
    oxb_u32 n_heads;
    oxb_u32 n_kv_heads;
    oxb_u32 head_dim;
    oxb_u32 rotary_dim;
    oxb_u32 interleaved;
    oxb_u32 has_norm;
    oxb_f32 eps;
    oxb_u32 n_tokens;
    oxb_u32 batch; /* 0 or 1 */
    oxb_u32 pad[3];
};
OXB_ARGS_SIZE(oxb_qkv_to_cache_args, 96);

/* out[t][n_heads][head_dim] = softmax(q k / sqrt(head_dim)) v over the positions up to that of
 * token t, NaN for a token without a place. Bindings: qkv (queries first), k cache, v cache, state,
 * pages, out. A tile is `heads` query heads of one key-value head, `tokens` tokens (1 where batch
 * is 1) and one of n_splits splits of the positions. Where a split ends depends on the token's
 * position alone, so that its bits do not depend on n_splits. With several splits, out holds for
 * each [t][head][split] the sum of weight * value [head_dim], then the largest score and the sum of
 * the weights relative to it: attention_combine adds them up. A dispatch is of the tokens
 * first_token to n_tokens - 1; first_token is a multiple of `tokens`. */
struct oxb_attention_args {
    struct oxb_cache cache;
    oxb_u32 n_heads;
    oxb_u32 n_kv_heads;
    oxb_u32 head_dim;
    oxb_f32 scale;
    oxb_u32 n_tokens;
    oxb_u32 n_splits;
    oxb_u32 heads;
    oxb_u32 tokens;
    oxb_u32 batch; /* 0 or 1 */
    oxb_u32 first_token;
    oxb_u32 pad[2];
};
OXB_ARGS_SIZE(oxb_attention_args, 96);

/* qkv_to_cache and attention in one, for tokens that have no other token of their sequence beside
 * them; a tile has all query heads of a key-value head. qkv stays as it is. Bindings: qkv, q_norm,
 * k_norm, rope, k cache, v cache, state, pages, out. */
struct oxb_qkv_attention_args {
    struct oxb_attention_args attention;
    oxb_u32 rotary_dim;
    oxb_u32 interleaved;
    oxb_u32 has_norm;
    oxb_f32 eps;
};
OXB_ARGS_SIZE(oxb_qkv_attention_args, 112);

/* out[row][head_dim] from the n_splits splits of each row, n_tokens * n_heads of them. Bindings:
 * splits, out. */
struct oxb_combine_args {
    oxb_u64 n_rows;
    oxb_u32 head_dim;
    oxb_u32 n_splits;
};
OXB_ARGS_SIZE(oxb_combine_args, 16);

/* The largest of some logits, and the lowest of its indices; OXB_NO_INDEX where all are NaN. */
#define OXB_NO_INDEX     0xffffffffu
#define OXB_ARGMAX_BLOCK 4096u /* logits of a block */

struct oxb_best {
    oxb_f32 value;
    oxb_u32 index;
};
OXB_ASSERT(sizeof(struct oxb_best) == 8, "oxb_best must be 8 bytes");

/* best[v][block] of row v of logits [n_vectors][n], n_blocks of OXB_ARGMAX_BLOCK logits or, the
 * last, fewer. Bindings: logits, best. */
struct oxb_argmax_blocks_args {
    oxb_u32 n;
    oxb_u32 n_vectors;
    oxb_u32 n_blocks;
    oxb_u32 pad;
};
OXB_ARGS_SIZE(oxb_argmax_blocks_args, 16);

/* out[v] = the index of the best of best[v][n_blocks], 0 where there is none. Bindings: best, out.
 */
struct oxb_argmax_args {
    oxb_u32 n_blocks;
    oxb_u32 n_vectors;
    oxb_u32 pad[2];
};
OXB_ARGS_SIZE(oxb_argmax_args, 16);

/* Advance past the tokens of the batch: state.position += n_tokens; where n_blocks is not 0,
 * tokens[state.position] = the index of the best of best[n_blocks]. Bindings: best, tokens, state.
 */
struct oxb_advance_args {
    oxb_u32 n_blocks;
    oxb_u32 max_tokens; /* elements of tokens */
    oxb_u32 n_tokens;
    oxb_u32 pad;
};
OXB_ARGS_SIZE(oxb_advance_args, 16);

/* How the next token of a sequence is chosen, in a device buffer. */
struct oxb_sampling {
    oxb_u32 seed[2];
    oxb_u32 choice;                         /* which of several texts of one seed */
    oxb_f32 scale;                          /* 2^20 log2(e) / temperature; 0: the largest logit */
    oxb_u32 top_k;                          /* 0: all */
    oxb_u32 top_p;                          /* floor(2^32 p); 0: all */
    oxb_u32 least;                          /* the largest distance that is kept */
    oxb_f32 repetition, inverse_repetition; /* multiply negative and positive logits */
    oxb_f32 presence, frequency;            /* subtracted once, and once per occurrence */
    oxb_u32 window; /* tokens before the chosen one that penalties count; 0: no penalty */
    oxb_u32 first_bias, n_biases; /* of the bias buffer */
    oxb_u32 mask;                 /* row of the masks; OXB_NO_INDEX: none */
    oxb_u32 pad;
};
OXB_ARGS_SIZE(oxb_sampling, 64);

struct oxb_choice {
    oxb_u32 token;    /* OXB_NO_INDEX where none can be drawn */
    oxb_u32 position; /* where it goes in its text */
    oxb_f32 log_probability;
    oxb_u32 pad;
};
OXB_ARGS_SIZE(oxb_choice, 16);

struct oxb_scored {
    oxb_u32 token;
    oxb_f32 log_probability;
};
OXB_ASSERT(sizeof(struct oxb_scored) == 8, "oxb_scored must be 8 bytes");

struct oxb_bias {
    oxb_u32 token;
    oxb_f32 value;
};
OXB_ASSERT(sizeof(struct oxb_bias) == 8, "oxb_bias must be 8 bytes");

#define OXB_MAX_BEST 32u

/* Both kernels of sample. sample_blocks writes to adjusted [n_vectors][n] the logits after mask,
 * bias and penalties, NaN as -inf, and behind them the largest of each block [n_vectors][n_blocks],
 * -inf where none; bindings: logits, settings, state, tokens, biases, masks, adjusted.
 * sample_choose draws; bindings: logits, adjusted, settings, state, tokens, choices, best. Where
 * the settings change no logit (choice_adjusts), a row of adjusted is neither written nor read.
 * Where n_biases, n_masks or n_best is 0, that binding is not used. */
struct oxb_sample_args {
    oxb_u32 n;
    oxb_u32 n_vectors;
    oxb_u32 max_tokens; /* elements of tokens */
    oxb_u32 n_biases;
    oxb_u32 n_masks;
    oxb_u32 n_slots;
    oxb_u32 n_best;
    oxb_u32 n_blocks; /* of OXB_ARGMAX_BLOCK logits */
    oxb_u32 batch;
    oxb_u32 log_probabilities;
    oxb_u32 advance;
    oxb_u32 pad;
};
OXB_ARGS_SIZE(oxb_sample_args, 48);

/* Where a layer's part of the recurrent states of sequences lies, in a buffer of n_slots slots. A
 * slot holds the parts of all layers. The state of a sequence before position p is in slot
 * state.recurrent + p % ring, so that a step of n tokens leaves that of p as it is where n is no
 * multiple of the ring. At position 0 the state is zero, whatever the slot holds.
 *
 * A sequence has no place where state.recurrent + ring passes n_slots, or its last token the
 * position 2^32 - 2: nothing of its state is written, and its rows of the output are zeros. */
struct oxb_recurrence {
    oxb_u64 slot_stride; /* elements of a slot */
    oxb_u64 offset;      /* elements of a slot before this part */
    oxb_u32 n_slots;
    oxb_u32 ring; /* slots of a sequence, 1 or more */
    oxb_u32 n_tokens;
    oxb_u32 batch; /* 0: tokens of one sequence, at the state's position and after it; 1: each the
                      one token of a sequence of its own */
};
OXB_ARGS_SIZE(oxb_recurrence, 32);

#define OXB_MAX_CONV_WIDTH 8

/* y[t][c] = silu(sum over j < width of weight[c][j] * x[t + j - (width - 1)][c]): a causal
 * convolution along the tokens. Inputs before the first token come from the state, float32
 * [width - 1][n_channels], the oldest first, which is left with the last width - 1 inputs.
 * Bindings: x, weight, state, recurrent states, y. */
struct oxb_conv_args {
    struct oxb_recurrence recurrence;
    oxb_u64 x_stride;
    oxb_u64 y_stride;
    oxb_u32 n_channels;
    oxb_u32 width; /* 2 to OXB_MAX_CONV_WIDTH */
    oxb_u32 pad[2];
};
OXB_ARGS_SIZE(oxb_conv_args, 64);

#define OXB_MAX_DELTA_DIM 256 /* of a key or a value of the delta rule */

/* The gated delta rule. Value head h has the state S[key_dim][value_dim], float32 [n_value_heads]
 * in the recurrent state, and shares key head h % n_key_heads with others. For each token, with q
 * and k divided by their lengths, sqrt(sum of squares + eps), and q times scale:
 *     g = exp(a[h] * softplus(alpha[h] + dt_bias[h])),  softplus(x) = x > 20 ? x : log(1 + exp(x))
 *     S = g S;  d[j] = (v[j] - sum over i of k[i] S[i][j]) / (1 + exp(-beta[h]))
 *     S[i][j] += k[i] d[j];  y[h][j] = sum over i of q[i] S[i][j]
 * A row of qkv holds all queries, all keys, all values; one of alpha_beta all of alpha, all of
 * beta. A dispatch has value heads first_head to end_head - 1. Bindings: qkv, alpha_beta, a,
 * dt_bias, state, recurrent states, y. */
struct oxb_delta_args {
    struct oxb_recurrence recurrence;
    oxb_u64 qkv_stride;
    oxb_u64 ab_stride;
    oxb_u64 y_stride;
    oxb_u32 n_key_heads;
    oxb_u32 n_value_heads;
    oxb_u32 key_dim; /* both multiples of 32 up to OXB_MAX_DELTA_DIM */
    oxb_u32 value_dim;
    oxb_f32 eps;
    oxb_f32 scale;
    oxb_u32 first_head;
    oxb_u32 end_head;
    oxb_u32 pad[2];
};
OXB_ARGS_SIZE(oxb_delta_args, 96);

#define OXB_GATE_SIGMOID 0u
#define OXB_GATE_SILU    1u

/* y[t][h] = activation(z[t][h]) * n(x[t][h]) with n the RMSNorm of a head where has_norm, by a
 * weight [head_dim] of all heads. Bindings: x, z, norm, y; y may be x. */
struct oxb_gate_args {
    oxb_u64 x_stride;
    oxb_u64 z_stride;
    oxb_u64 y_stride;
    oxb_u32 n_heads;
    oxb_u32 head_dim;
    oxb_u32 n_tokens;
    oxb_u32 activation; /* OXB_GATE_SIGMOID or OXB_GATE_SILU */
    oxb_f32 eps;
    oxb_u32 has_norm; /* 0 or 1 */
};
OXB_ARGS_SIZE(oxb_gate_args, 48);

#define OXB_MIN_HADAMARD 16
#define OXB_MAX_HADAMARD 4096

/* y = H (signs * P(n(x))) or, where inverse is 1, y = signs * (H x), for each vector of k elements:
 * H is the Walsh-Hadamard transform of each block of elements, H[r][c] = (-1)^(ones in r & c) /
 * sqrt(block). n is the RMSNorm of the vector where has_norm. P moves head r * K + j of head_size
 * elements to head j * n_groups + r, where K = k / head_size / n_groups. Bindings: x, norm, signs
 * [k] of 1 and -1, y; y may be x where there is neither a norm nor more than one group. */
struct oxb_hadamard_args {
    oxb_u32 k;
    oxb_u32 n_vectors;
    oxb_u32 block; /* a power of two that divides k, OXB_MIN_HADAMARD to OXB_MAX_HADAMARD */
    oxb_u32 head_size;
    oxb_u32 n_groups; /* 1: P changes nothing */
    oxb_u32 inverse;  /* 0 or 1 */
    oxb_f32 eps;
    oxb_u32 has_norm; /* 0 or 1 */
};
OXB_ARGS_SIZE(oxb_hadamard_args, 32);

/* y = x, n words of 32 bits. Bindings: x, y. */
struct oxb_copy_args {
    oxb_u64 n;
    oxb_u64 pad;
};
OXB_ARGS_SIZE(oxb_copy_args, 16);

#endif
