// Products of a coded matrix and a vector on int8 matrix units: what gemv and swiglu share for
// 1-bit and 2-bit codes.
//
// A block is the activations that meet 16 bytes of codes. They become integers with one power of
// two for the block, and each integer eight slices, which are the columns of the matrix product:
// its digits to base 16, the highest of which has the sign, or to base 256, from -128 to 127. The
// rows are the codes as they are, masked out of their words. So all sums of a block are exact. The
// sum of levels is that of codes less the sum of all activations (codes 0 to 3), or twice that of
// codes less it (codes 0 and 1), and that of all is a product with codes of 1.
//
// A SIMD-group has tiles of 16 rows and the blocks simdgroup, simdgroup + simdgroups, ... of k. It
// makes the slices of its own blocks itself, so that no barrier of the threadgroup stands between.
// Row r of a tile's product is row 2 r of the matrix, row 8 + r the one after it, so that a lane
// has two neighbouring rows and reads their scales at once.
//
// A block that integers do not hold with the accuracy of float has NaN as its power of two. A row
// whose sum is not finite, for that or for any other reason, is computed again by the definition.
#ifndef OXB_SLICES_H
#define OXB_SLICES_H

// A threadgroup has this many SIMD-groups, or twice as many.
#define OXB_SLICES_SIMDGROUPS 8u
#define OXB_SLICES_MOST_ROWS  96u
#define OXB_SLICES_INTEGER    30u // the largest of a block is below 2^30
// Biased exponents of the largest of a block: others leave float's range in what follows.
#define OXB_SLICES_LEAST 31u
#define OXB_SLICES_MOST  227u

template <typename Code>
struct slices;

template <>
struct slices<code_1bit> {
    enum { products = 4, lane_elements = 4, elements_apart = 8 };
    // The upper two words of a lane lie 16 banks off the lower ones.
    enum { part = OXB_SIMD_WIDTH + 4, size = 2 * part }; // in 16 bytes

    // The first of the elements that a lane makes slices of, bytes of one product.
    static uint element(uint lane) { return lane / 8u * 32u + lane % 8u; }

    // The rows of half of a product.
    static uint rows(uint word, uint product, uint second) {
        return (second != 0u ? word >> 4u : word) & 0x01010101u << product;
    }
    static uint ones(uint product) { return 0x01010101u << product; }

    static bool loses(float, uint) { return false; } // every level is 1 or -1

    // The bytes of a product are 2^(3 - product) times digits: with its rows' 2^product, 8 times.
    static void store(thread const float *x, threadgroup uint4 *to, uint lane) {
        uint digits[4];
        OXB_UNROLL
        for (uint j = 0; j < 4u; j++) digits[j] = uint(int(x[j]));
        const uint product = lane % 4u, second = lane / 4u % 2u, shift = 3u - product;
        const uint mask = 0x0f0f0f0fu << shift, sign = 0x08080808u << shift;
        threadgroup uint *at =
            (threadgroup uint *)(to + product / 2u * part + lane / 8u) + product % 2u * 2u + second;
        uint pairs[4]; // bytes 0 and 1 of the first two, of the others, then bytes 2 and 3
        OXB_UNROLL
        for (uint j = 0; j < 4u; j++)
            pairs[j] = matrix_permute(digits[j % 2u * 2u], digits[j % 2u * 2u + 1u],
                                      j < 2u ? 0x5140u : 0x7362u);
        OXB_UNROLL
        for (uint byte = 0; byte < 4u; byte++) {
            // Byte 3 - byte of all four: two digits each.
            const uint of = byte < 2u ? 2u : 0u;
            const uint four =
                matrix_permute(pairs[of], pairs[of + 1u], byte % 2u == 0u ? 0x7632u : 0x5410u);
            uint high = four >> (4u - shift) & mask;
            // The highest digit has the sign, the others are from 0 on.
            if (byte == 0u) high = ((high ^ sign) | 0x80808080u) - sign ^ 0x80808080u;
            at[2u * byte * 16u] = high;
            at[(2u * byte + 1u) * 16u] = four << shift & mask;
        }
    }

    static uint4 load(threadgroup const uint4 *from, uint pair, uint lane) {
        return from[pair * part + lane];
    }

    // A pair of sums as a float that is larger by 1.5 * 2^23: cheaper than a conversion.
    static int before(uint i) { return i % 2u == 0u ? 0 : 0x4b400000; }
    static float joined(int high, int low) {
        return as_type<float>((uint(high) << 4u) + uint(low));
    }
    // What the pair of all activations takes away from the float, times `unit`: half of the pair,
    // for the sums are of codes that count four times what a level does.
    static float less(float all, float unit) { return -fma(all, 0.5f, 6291456.0f) * unit; }
    // 2^e, for slices of numbers below 2^e, to the unit of the lane's pair of columns.
    static float unit(uint quad) { return as_type<float>((127u - 8u - 8u * quad) << 23u); }
};

template <>
struct slices<code_2bit> {
    enum { products = 2, lane_elements = 2, elements_apart = 4 };
    enum { part = OXB_SIMD_WIDTH, size = part };

    static uint element(uint lane) { return lane / 8u * 16u + lane / 4u % 2u * 8u + lane % 4u; }

    static uint rows(uint word, uint product, uint second) {
        return word >> (4u * product + 2u * second) & 0x03030303u;
    }
    static uint ones(uint) { return 0x01010101u; }

    // Codes of level 0 may hide the largest of a block: numbers need all of their digits
    // themselves.
    static bool loses(float x, uint exponent) {
        const uint bits = as_type<uint>(x) & 0x7fffffffu;
        return bits != 0u && (bits >> 23u) + 36u < exponent;
    }

    static void store(thread const float *x, threadgroup uint4 *to, uint lane) {
        uint low[2], high[2];
        OXB_UNROLL
        for (uint j = 0; j < 2u; j++) {
            const ulong digits = ulong(long(x[j] * 4294967296.0f)) + 0x8080808080808080ul;
            low[j] = uint(digits) ^ 0x80808080u;
            high[j] = uint(digits >> 32u) ^ 0x80808080u;
        }
        threadgroup ushort *at =
            (threadgroup ushort *)(to + lane / 8u) + lane % 4u * 2u + lane / 4u % 2u;
        OXB_UNROLL
        for (uint byte = 0; byte < 8u; byte++) {
            const uint from = 3u - byte % 4u;
            const uint two = byte < 4u ? matrix_permute(high[0], high[1], from | (4u + from) << 4u)
                                       : matrix_permute(low[0], low[1], from | (4u + from) << 4u);
            at[byte * 32u] = ushort(two);
        }
    }

    static uint4 load(threadgroup const uint4 *from, uint, uint lane) { return from[lane]; }

    static int before(uint) { return 0; }
    static float joined(int high, int low) { return float(high * 256 + low); }
    static float less(float all, float unit) { return -all * unit; }
    static float unit(uint quad) { return as_type<float>((127u - 14u - 16u * quad) << 23u); }
};

// A lane has a third of its row's digits in its word, the last lane of four has the fifth digits of
// the others' words and the codes beside the scale: element 4 q + n of run b is byte b of what lane
// q multiplies n-th.
template <>
struct slices<code_digits> : slices<code_2bit> {
    enum { elements_apart = 16 };

    static uint element(uint lane) { return lane / 4u % 2u * 32u + lane / 8u * 4u + lane % 4u; }
};

// How a lane reads a row of a block: which word of a load it asks for, the scales of two
// neighbouring rows with what is beside them, and the four words of bytes that it multiplies.
template <typename Packing>
struct slices_packing;

template <>
struct slices_packing<whole_codes> {
    typedef half2 packed_scales;

    uint codes;

    static uint word(uint quad) { return quad; }
    static float2 scales_of(half2 scales) { return float2(scales); }
    static slices_packing unpack(uint codes, half2, uint, uint, uint) { return {codes}; }

    template <typename Kind>
    uint rows(uint product, uint second) const thread {
        return Kind::rows(codes, product, second);
    }
};

template <>
struct slices_packing<digit_codes> {
    typedef uint2 packed_scales;

    uint digits[4];

    static uint word(uint quad) { return min(quad, 2u); } // the last lane uses none
    static float2 scales_of(uint2 scales) {
        return float2(float(as_type<half2>(scales.x).x), float(as_type<half2>(scales.y).x));
    }
    static slices_packing unpack(uint bytes, uint2 scales, uint second, uint part, uint lane) {
        const uint powers[4] = {3u, 9u, 27u, 81u};
        const four_digits of = four_digits_of(bytes);
        const bool is_last = lane % 4u == 3u;
        slices_packing row;
        uint before = 0;
        OXB_UNROLL
        for (uint i = 0; i < 4u; i++) {
            const uint first = first_digits(of, powers[i]);
            row.digits[i] = first - 3u * before;
            before = first;
        }
        const uint fifth = first_digits(of, 243u) - 3u * before;
        OXB_UNROLL
        for (uint i = 0; i < 3u; i++) {
            const uint other = simd_shuffle(fifth, ushort(lane / 4u * 4u + i));
            row.digits[i] = is_last ? other : row.digits[i];
        }
        const uint entry = second != 0u ? scales.y : scales.x;
        const uint beside = codes_in_bytes(entry >> (16u + 8u * part) & 255u);
        row.digits[3] = is_last ? beside : row.digits[3];
        return row;
    }

    template <typename Kind>
    uint rows(uint product, uint second) const thread {
        return digits[2u * product + second];
    }
};

template <typename Code>
struct slices_memory {
    uint4
        slots[2u * OXB_SLICES_SIMDGROUPS * uint(slices<Code>::size)]; // a block of each SIMD-group
    float sums[2u * OXB_SLICES_SIMDGROUPS * OXB_SLICES_MOST_ROWS];    // [SIMD-group][row]
    float squares[2u * OXB_SLICES_SIMDGROUPS];                        // of their activations
    float partial[OXB_MAX_SIMDGROUPS];
};

// What the matrix is multiplied by: x, or x * scale * inverse * weight where there is a norm.
struct slices_input {
    device const float *x;
    device const float *weight;
    float scale, inverse;
};

// The tiles of a SIMD-group: 16 TILES rows from `first` on of each of MATRICES, n_rows apart. The
// matrix lies in columns.
struct slices_rows {
    uint n_rows, first;
};

// What a lane holds of the weights of a block: of the matrix, and of the norm for its activations.
template <typename Packing, uint TILES, uint ELEMENTS>
struct slices_weights {
    uint words[TILES][2];
    typename slices_packing<Packing>::packed_scales scales[TILES];
    float norm[ELEMENTS];
};

// Where a lane's part of a block lies: words and scales of the first tile, with matrices n_rows
// apart, weights of the norm, and activations; and how far on that of the SIMD-group's next block.
struct slices_place {
    device const uint *codes;
    device const uchar *scales;
    device const float *norm, *x;
    uint n_rows, x_step;
    ulong codes_step, scales_step;
};

template <typename Format>
inline slices_place place_of(weight_bytes w, slices_rows rows, slices_input input, uint block,
                             thread_place place) {
    const uint words = uint(Format::load_bytes) / 4u, row = rows.first + place.lane / 4u * 2u;
    const uint size = Format::scale_bytes;
    const uint element =
        block * Format::weights_per_load + slices<typename Format::code>::element(place.lane);
    return {(device const uint *)(w.bytes + w.codes_offset) +
                (ulong(block) * w.column + row) * words +
                slices_packing<typename Format::packing>::word(place.lane % 4u),
            w.bytes + (ulong(block / Format::loads_per_group) * w.column + row) * size,
            input.weight + element,
            input.x + element,
            rows.n_rows,
            place.simdgroups * Format::weights_per_load,
            ulong(place.simdgroups * words) * w.column,
            ulong(place.simdgroups / Format::loads_per_group) * w.column * size};
}

// Tile t of MATRICES * TILES.
template <uint MATRICES, uint TILES, typename Packing, uint ELEMENTS>
inline void ask_tile(slices_place at, uint t,
                     thread slices_weights<Packing, MATRICES * TILES, ELEMENTS> &to) {
    typedef typename slices_packing<Packing>::packed_scales scales;
    const uint words = uint(Packing::load_bytes) / 4u, down = t % TILES * 16u;
    device const uint *codes = at.codes + ulong(t / TILES) * (at.n_rows * words) + down * words;
    to.words[t][0] = codes[0];
    to.words[t][1] = codes[words];
    to.scales[t] = *(device const scales *)(at.scales + (ulong(t / TILES) * at.n_rows + down) *
                                                            uint(Packing::scale_bytes));
}

// A lane's elements of a block.
template <typename Code>
inline void ask_elements(device const float *from, thread float *to) {
    typedef slices<Code> kind;
    OXB_UNROLL
    for (uint j = 0; j < kind::lane_elements; j++) to[j] = from[j * kind::elements_apart];
}

// Make the slices of a block of activations; returns the unit of the lane's pair of columns.
template <typename Code>
inline float make_slices(thread float *x, threadgroup uint4 *to, uint lane) {
    typedef slices<Code> kind;
    uint most = 0;
    OXB_UNROLL
    for (uint j = 0; j < kind::lane_elements; j++)
        most = max(most, as_type<uint>(x[j]) & 0x7fffffffu); // a NaN is above infinity
    most = simd_max(most);
    const uint found = most >> 23u, exponent = max(found, OXB_SLICES_LEAST);
    bool odd = most != 0u && found - OXB_SLICES_LEAST > OXB_SLICES_MOST - OXB_SLICES_LEAST;
    const float up = as_type<float>((253u + OXB_SLICES_INTEGER - exponent) << 23u);
    OXB_UNROLL
    for (uint j = 0; j < kind::lane_elements; j++) {
        odd = odd || kind::loses(x[j], exponent);
        x[j] *= up;
    }
    kind::store(x, to, lane);
    const float unit = as_type<float>((exponent + 1u) << 23u) * kind::unit(lane % 4u);
    return simd_any(odd) ? NAN : unit;
}

// A SIMD-group's part of a product.
template <typename Format, uint MATRICES, uint TILES>
struct slices_part {
    typedef slices<typename Format::code> kind;
    // Where the registers allow it, weights are asked for two blocks ahead of their use. Else the
    // tiles of a block are multiplied in two rounds, and asked for one block ahead after each.
    enum { tiles = MATRICES * TILES, ring = 2 - tiles / 4, rounds = 3 - ring };
    typedef typename Format::packing packing;
    typedef slices_weights<packing, tiles, kind::lane_elements> weights_of_block;

    weights_of_block weights[ring];
    float x[kind::lane_elements]; // of the next block
    float sums[2 * tiles];        // the lane's share of row r % 2 of its two of tile r / 2
    float squares;                // of the lane's activations
    int before[4];
    uint ones[kind::products / 2][4];
};

// Ask for the weights that a part begins with, and leave `at` where those after them lie. A
// SIMD-group without as many blocks asks for one again and does not use it.
template <typename Format, uint MATRICES, uint TILES, bool NORM>
inline void begin_part(thread slices_place &at, uint blocks, thread_place place,
                       thread slices_part<Format, MATRICES, TILES> &part) {
    typedef slices_part<Format, MATRICES, TILES> parts;
    OXB_UNROLL
    for (uint i = 0; i < parts::ring; i++) {
        OXB_UNROLL
        for (uint t = 0; t < parts::tiles; t++) ask_tile<MATRICES, TILES>(at, t, part.weights[i]);
        if (NORM) ask_elements<typename Format::code>(at.norm, part.weights[i].norm);
        const uint on = place.simdgroup + (i + 1u) * place.simdgroups < blocks ? 1u : 0u;
        at.codes += on * at.codes_step;
        at.scales += on * at.scales_step;
        at.norm += on * at.x_step;
    }
}

// What the sum of all activations takes away from that of codes, for the lane's pair of columns.
// Of the tile's two rows of codes of 1 the first has those of even products, the second the others.
template <typename Format, uint MATRICES, uint TILES>
inline float sum_of_all(thread const uint *words, float unit, uint lane,
                        thread const slices_part<Format, MATRICES, TILES> &part) {
    typedef slices<typename Format::code> kind;
    const int nothing[4] = {0, 0, 0, 0};
    int even[4], odd[4];
    OXB_UNROLL
    for (uint i = 0; i < kind::products / 2u; i++) {
        thread const uint *of = words + 4u * i;
        matrix_add_bytes(even, i == 0u ? part.before : even, part.ones[i], of[0], of[1], lane);
        matrix_add_bytes(odd, i == 0u ? nothing : odd, part.ones[i], of[2], of[3], lane);
    }
    return kind::less(kind::joined(even[0] + odd[2], even[1] + odd[3]), unit);
}

// Block `block` of a part, whose weights and activations are asked for; `at` is where those lie
// that are asked for here.
template <typename Format, uint MATRICES, uint TILES, bool NORM>
inline void add_block(thread slices_place &at, uint blocks, uint block, thread_place place,
                      threadgroup uint4 *slot,
                      thread
                      typename slices_part<Format, MATRICES, TILES>::weights_of_block &weights,
                      thread slices_part<Format, MATRICES, TILES> &part) {
    typedef slices_part<Format, MATRICES, TILES> parts;
    typedef slices_packing<typename Format::packing> packing;
    typedef typename parts::kind kind;
    const bool more = block + parts::ring * place.simdgroups < blocks;
    const bool more_x = block + place.simdgroups < blocks;
    float x[kind::lane_elements];
    OXB_UNROLL
    for (uint j = 0; j < kind::lane_elements; j++) {
        const float value = part.x[j];
        if (NORM) part.squares = fma(value, value, part.squares);
        x[j] = NORM ? value * weights.norm[j] : value;
    }
    const float unit = make_slices<typename Format::code>(x, slot, place.lane);
    at.x += more_x ? at.x_step : 0u;
    ask_elements<typename Format::code>(at.x, part.x);
    if (NORM && more) ask_elements<typename Format::code>(at.norm, weights.norm);
    dependents_start(2u, !more); // all weights are asked for
    float less = 0.0f;
    OXB_UNROLL
    for (uint round = 0; round < parts::rounds; round++) {
        // Behind it no product begins before those loads that stand in front of it.
        simdgroup_barrier(mem_flags::mem_threadgroup);
        uint words[2 * kind::products]; // of the lane's column
        OXB_UNROLL
        for (uint pair = 0; pair < kind::products / 2u; pair++) {
            const uint4 four = kind::load(slot, pair, place.lane);
            OXB_UNROLL
            for (uint i = 0; i < 4u; i++) words[4u * pair + i] = four[i];
        }
        if (round == 0u) less = sum_of_all(words, unit, place.lane, part);
        OXB_UNROLL
        for (uint i = 0; i < parts::tiles / parts::rounds; i++) {
            const uint t = round * uint(parts::tiles / parts::rounds) + i;
            const uint group_part = block % uint(Format::loads_per_group);
            const packing low =
                packing::unpack(weights.words[t][0], weights.scales[t], 0u, group_part, place.lane);
            const packing high =
                packing::unpack(weights.words[t][1], weights.scales[t], 1u, group_part, place.lane);
            const float2 scales = packing::scales_of(weights.scales[t]);
            int products[4];
            OXB_UNROLL
            for (uint p = 0; p < kind::products; p++) {
                const uint four[4] = {
                    low.template rows<kind>(p, 0u), high.template rows<kind>(p, 0u),
                    low.template rows<kind>(p, 1u), high.template rows<kind>(p, 1u)};
                matrix_add_bytes(products, p == 0u ? part.before : products, four, words[2u * p],
                                 words[2u * p + 1u], place.lane);
            }
            OXB_UNROLL
            for (uint r = 0; r < 2u; r++) {
                const float sum = kind::joined(products[2u * r], products[2u * r + 1u]);
                part.sums[2u * t + r] = fma(scales[r], fma(sum, unit, less), part.sums[2u * t + r]);
            }
        }
        if (more) {
            OXB_UNROLL
            for (uint i = 0; i < parts::tiles / parts::rounds; i++)
                ask_tile<MATRICES, TILES>(at, round * uint(parts::tiles / parts::rounds) + i,
                                          weights);
        }
    }
    at.codes += at.codes_step;
    at.scales += at.scales_step;
    at.norm += at.x_step;
    simdgroup_barrier(mem_flags::mem_threadgroup); // the next slices take the place of these
}

// memory.sums[simdgroup][row] = the SIMD-group's share of the product of x and the tiles' rows;
// with a norm also memory.squares. `part` is begun.
template <typename Format, uint MATRICES, uint TILES, bool NORM>
inline void multiply_slices(slices_place at, uint blocks,
                            thread slices_part<Format, MATRICES, TILES> &part, thread_place place,
                            threadgroup slices_memory<typename Format::code> &memory) {
    typedef slices_part<Format, MATRICES, TILES> parts;
    typedef typename parts::kind kind;
    threadgroup uint4 *slot = memory.slots + place.simdgroup * uint(kind::size);
    ask_elements<typename Format::code>(at.x, part.x);
    dependents_start(1u, true);
    OXB_UNROLL
    for (uint r = 0; r < 2u * parts::tiles; r++) part.sums[r] = 0.0f;
    part.squares = 0.0f;
    OXB_UNROLL
    for (uint i = 0; i < 4u; i++) part.before[i] = int(matrix_keep(uint(kind::before(i))));
    OXB_UNROLL
    for (uint i = 0; i < 2u * kind::products; i++) {
        const uint one = kind::ones(i / 4u * 2u + i % 2u);
        part.ones[i / 4u][i % 4u] = parts::tiles == 3 ? matrix_keep(one) : one;
    }
    for (uint block = place.simdgroup; block < blocks; block += parts::ring * place.simdgroups) {
        OXB_UNROLL
        for (uint i = 0; i < parts::ring; i++) {
            const uint one = block + i * place.simdgroups;
            const bool is_there = i == 0u || one < blocks;
            if (is_there)
                add_block<Format, MATRICES, TILES, NORM>(at, blocks, one, place, slot,
                                                         part.weights[i], part);
        }
    }
    // The four lanes of a row have a pair of columns each.
    threadgroup float *to =
        memory.sums + place.simdgroup * 16u * parts::tiles + place.lane / 4u * 2u;
    const uint second = place.lane % 2u; // each of two lanes adds one of their two rows
    OXB_UNROLL
    for (uint t = 0; t < parts::tiles; t++) {
        const float rows[2] = {part.sums[2u * t], part.sums[2u * t + 1u]};
        const float other = second != 0u ? rows[0] : rows[1];
        float sum = second != 0u ? rows[1] : rows[0];
        sum += simd_shuffle_xor(other, ushort(1));
        sum += simd_shuffle_xor(sum, ushort(2));
        if (place.lane / 2u % 2u == t % 2u) to[t * 16u + second] = sum;
    }
    if (NORM) {
        const float squares = simd_sum(part.squares);
        if (place.lane == 0u) memory.squares[place.simdgroup] = squares;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// multiply_slices for x, or where NORM for its RMSNorm; returns the factor that the sums still
// lack, and completes `input`. The squares of x are summed in the same pass. Where they leave
// float's range (rms.h) the factor is NaN: then every row is computed by the definition.
// `addend`, where there is one, is read into `added` beside the products.
template <typename Format, uint MATRICES, uint TILES, bool NORM>
inline float multiply_by_slices(weight_bytes w, slices_rows rows, thread slices_input &input,
                                float eps, device const float *addend, thread float &added,
                                thread_place place,
                                threadgroup slices_memory<typename Format::code> &memory) {
    const uint k = uint(w.k), blocks = k / Format::weights_per_load;
    slices_place at = place_of<Format>(w, rows, input, min(place.simdgroup, blocks - 1u), place);
    slices_part<Format, MATRICES, TILES> part;
    begin_part<Format, MATRICES, TILES, NORM>(at, blocks, place, part);
    inputs_wait();
    if (addend) added = *addend;
    multiply_slices<Format, MATRICES, TILES, NORM>(at, blocks, part, place, memory);
    if (!NORM) return 1.0f;
    float total = 0.0f;
    for (uint s = 0; s < place.simdgroups; s += OXB_SLICES_SIMDGROUPS) {
        OXB_UNROLL
        for (uint of = 0; of < OXB_SLICES_SIMDGROUPS; of++) total += memory.squares[s + of];
    }
    input.scale = scale_for(total, eps);
    const bool is_in_range = input.scale == 1.0f;
    if (!is_in_range) {
        total = threadgroup_sum(sum_of_squares(input.x, k, input.scale, index_of(place),
                                               place.simdgroups * OXB_SIMD_WIDTH),
                                memory.partial, place);
    }
    input.inverse = inverse_rms(total, k, input.scale, eps);
    return is_in_range ? input.inverse : NAN;
}

// The product of a row by the definition. A SIMD-group's work.
template <typename Format, bool NORM>
inline float row_by_definition(weight_bytes w, ulong row, slices_input input, uint lane) {
    const uint step = Format::lane_weights;
    float sum = 0.0f;
    for (uint j = lane * step; j < uint(w.k); j += OXB_SIMD_WIDTH * step) {
        const uint codes = Format::word(w, row, j);
        // A scale that is not finite belongs to every level; others lose no digits of small sums.
        const float scale = float(Format::scale(w, row, j));
        const float each = isfinite(scale) ? 1.0f : scale, all = isfinite(scale) ? scale : 1.0f;
        float part = 0.0f;
        OXB_ROLLED // this is for few rows, and must not cost the others registers
            for (uint i = 0; i < step; i++) {
            float x = input.x[j + i];
            if (NORM) x = x * input.scale * input.inverse * input.weight[j + i];
            part = fma(Format::code::level(codes, i) * each, x, part);
        }
        sum = fma(all, part, sum);
    }
    return simd_sum(sum);
}

// The product of row i of the tiles' n, which is `row` of the matrix. All lanes of a SIMD-group
// take part.
template <typename Format, bool NORM>
inline float row_of_slices(weight_bytes w, ulong row, uint i, uint n, slices_input input,
                           float factor, thread_place place,
                           threadgroup const slices_memory<typename Format::code> &memory) {
    float sum = 0.0f;
    for (uint s = 0; s < place.simdgroups; s += OXB_SLICES_SIMDGROUPS) {
        OXB_UNROLL
        for (uint of = 0; of < OXB_SLICES_SIMDGROUPS; of++) sum += memory.sums[(s + of) * n + i];
    }
    sum *= factor;
    const uint odd = isfinite(sum) ? 0u : 1u;
    if (!simd_any(odd != 0u)) return sum;
    for (uint lane = 0; lane < OXB_SIMD_WIDTH; lane++) {
        if (simd_shuffle(odd, ushort(lane)) == 0u) continue;
        const float defined =
            row_by_definition<Format, NORM>(w, simd_shuffle(row, ushort(lane)), input, place.lane);
        sum = place.lane == lane ? defined : sum;
    }
    return sum;
}

#endif
