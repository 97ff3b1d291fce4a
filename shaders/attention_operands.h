// What all kernels of attention are given, and what an empty split leaves.
#ifndef OXB_ATTENTION_OPERANDS_H
#define OXB_ATTENTION_OPERANDS_H

#define OXB_EMPTY_SPLIT -1.0f // the sum of its weights

template <typename T>
struct attention_operands {
    device const float *qkv;
    device const T *k, *v; // of the key-value head, in page 0
    device const oxb_decode_state *state;
    device const uint *pages;
    device float *out;
};

// While all scores are -inf their weights are 0, not NaN: a later score may be finite.
inline float base_of(float largest) { return largest == -INFINITY ? 0.0f : largest; }

// The first element of the key-value head of a tile, in page 0.
inline ulong head_of_tile(constant oxb_attention_args &args, uint tile) {
    return layer_of(args.cache, 0u) +
           ulong(tile * args.heads / (args.n_heads / args.n_kv_heads)) * args.cache.head_stride;
}

// Say that a split of a row of the output has no positions.
inline void mark_empty_split(device float *out, constant oxb_attention_args &args, ulong row,
                             uint split) {
    device float *to = out + (row * args.n_splits + split) * (args.head_dim + 2u) + args.head_dim;
    to[0] = -INFINITY;
    to[1] = OXB_EMPTY_SPLIT;
}

#endif
