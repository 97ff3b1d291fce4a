// Where the tokens in flight stand, and where their keys and values lie: see oxb_cache.
#ifndef OXB_CACHE_H
#define OXB_CACHE_H

struct sequence_place {
    ulong position; // 64 bits: an idle sequence is at the last position of 32
    uint tokens;    // where its tokens begin
    uint pages;     // where its table begins
};

inline sequence_place place_of(device const oxb_decode_state *state, uint batch, uint token) {
    device const oxb_decode_state *own = state + (batch != 0u ? token : 0u);
    sequence_place place;
    place.position = ulong(own->position) + (batch != 0u ? 0u : token);
    place.tokens = own->tokens;
    place.pages = own->pages;
    return place;
}

// The page of a position below max_seq; cache.n_pages where it has none.
inline uint page_of(constant oxb_cache &cache, device const uint *tables, uint pages,
                    uint position) {
    if (cache.table_size == 0u) return 0u;
    const ulong at = ulong(pages) + position / cache.page_size;
    return at < cache.table_size ? min(tables[at], cache.n_pages) : cache.n_pages;
}

// The Walsh-Hadamard transform of `x` over the lanes: number `lane` of it, in the order of
// additions of cpu_hadamard (shim/cpu/hadamard.h).
inline float hadamard(float x, uint lane) {
    OXB_UNROLL
    for (uint apart = 1; apart < OXB_SIMD_WIDTH; apart *= 2u) {
        const float other = simd_shuffle_xor(x, ushort(apart));
        x = fma((lane & apart) != 0u ? -1.0f : 1.0f, x, other);
    }
    return x;
}

// The first element of the layer's key-value heads in a page.
inline ulong layer_of(constant oxb_cache &cache, uint page) {
    return page * ulong(cache.page_stride) + cache.layer_offset;
}

#endif
