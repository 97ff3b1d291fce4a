// The parts of a layer that hand a state from token to token: the causal convolution, and the delta
// rule of Gated DeltaNet.
//
// Tokens are taken in their order and nothing is added up across them, so the bits depend neither
// on how a text is divided into dispatches nor on what is in flight beside it.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "rms.h"
#include "silu.h"

// Where a sequence's state lies before and after the tokens of a dispatch, in elements.
struct state_place {
    ulong from, to;
    bool fresh; // it starts here, from zeros
    bool has_place;
};

inline state_place place_of_state(device const oxb_decode_state *state,
                                  constant oxb_recurrence &args, uint sequence) {
    device const oxb_decode_state *own = state + sequence;
    const ulong position = own->position, first = own->recurrent;
    const ulong after = position + (args.batch != 0u ? 1u : args.n_tokens);
    state_place place;
    place.from = (first + position % args.ring) * args.slot_stride + args.offset;
    place.to = (first + after % args.ring) * args.slot_stride + args.offset;
    place.fresh = position == 0u;
    place.has_place = after <= OXB_NO_INDEX && first + args.ring <= args.n_slots;
    return place;
}

// Tokens of a thread, at least the inputs that a state holds: the thread with the first tokens
// reads the state and then overwrites it, and no other thread needs it.
#define OXB_CONV_TOKENS 16u

// One channel of tokens first to end - 1, which are of one sequence. `x` and `y` are the channel's
// in the sequence's first token, `old` and `kept` its state before and after.
template <uint WIDTH>
inline void convolve(device const float *x, device const float *weight, device const float *old,
                     device float *kept, device float *y, constant oxb_conv_args &args,
                     state_place place, uint first, uint end, uint n_tokens) {
    const ulong n = args.n_channels;
    float inputs[WIDTH - 1u + OXB_CONV_TOKENS]; // of the tokens from first - (WIDTH - 1) on
    OXB_UNROLL
    for (uint i = 0; i < WIDTH - 1u; i++) {
        if (first != 0u)
            inputs[i] = x[(first + i - (WIDTH - 1u)) * args.x_stride];
        else
            inputs[i] = place.has_place && !place.fresh ? old[i * n] : 0.0f;
    }
    OXB_UNROLL
    for (uint i = 0; i < OXB_CONV_TOKENS; i++)
        inputs[WIDTH - 1u + i] = x[min(first + i, end - 1u) * args.x_stride];
    float weights[WIDTH];
    OXB_UNROLL
    for (uint j = 0; j < WIDTH; j++) weights[j] = weight[j];
    OXB_UNROLL
    for (uint i = 0; i < OXB_CONV_TOKENS; i++) {
        float sum = 0.0f;
        OXB_UNROLL
        for (uint j = 0; j < WIDTH; j++) sum = fma(weights[j], inputs[i + j], sum);
        if (first + i < end) y[(first + i) * args.y_stride] = place.has_place ? silu(sum) : 0.0f;
    }
    if (first != 0u || !place.has_place) return;
    OXB_UNROLL
    for (uint i = 0; i < WIDTH - 1u; i++) {
        // Of few tokens a state keeps inputs from before them.
        const uint at = n_tokens + i;
        float input = inputs[WIDTH - 2u];
        if (at >= WIDTH - 1u) {
            input = x[(at - (WIDTH - 1u)) * args.x_stride];
        } else {
            OXB_UNROLL
            for (uint j = 0; j < WIDTH - 1u; j++) input = at == j ? inputs[j] : input;
        }
        kept[i * n] = input;
    }
}

// A thread per channel, x, and OXB_CONV_TOKENS tokens, z, of a sequence, y.
kernel void conv_silu(device const float *x [[buffer(0)]], device const float *weight [[buffer(1)]],
                      device const oxb_decode_state *state [[buffer(2)]],
                      device float *recurrent [[buffer(3)]], device float *y [[buffer(4)]],
                      constant oxb_conv_args &args [[buffer(5)]],
                      uint3 at [[thread_position_in_grid]]) {
    const uint channel = at.x;
    if (channel >= args.n_channels) return;
    const ulong row = at.y; // of the sequence's first token: each has one, or there is one sequence
    const state_place place = place_of_state(state, args.recurrence, at.y);
    const uint n_tokens = args.recurrence.batch != 0u ? 1u : args.recurrence.n_tokens;
    const uint first = at.z * OXB_CONV_TOKENS, end = min(first + OXB_CONV_TOKENS, n_tokens);
    x += row * args.x_stride + channel;
    y += row * args.y_stride + channel;
    weight += ulong(channel) * args.width;
    device const float *old = recurrent + place.from + channel;
    device float *kept = recurrent + place.to + channel;
    switch (args.width) {
    case 2: convolve<2>(x, weight, old, kept, y, args, place, first, end, n_tokens); break;
    case 3: convolve<3>(x, weight, old, kept, y, args, place, first, end, n_tokens); break;
    case 4: convolve<4>(x, weight, old, kept, y, args, place, first, end, n_tokens); break;
    case 5: convolve<5>(x, weight, old, kept, y, args, place, first, end, n_tokens); break;
    case 6: convolve<6>(x, weight, old, kept, y, args, place, first, end, n_tokens); break;
    case 7: convolve<7>(x, weight, old, kept, y, args, place, first, end, n_tokens); break;
    default: convolve<8>(x, weight, old, kept, y, args, place, first, end, n_tokens); break;
    }
}

// What a key head has of the delta rule; it selects a template instance, as in rows.h.
constant uint key_dim_constant [[function_constant(0)]];
constant uint delta_key_dim =
    is_function_constant_defined(key_dim_constant) ? key_dim_constant : 128u;

#define OXB_DELTA_COLUMNS    8u   // of a SIMD-group, whose lanes have a quarter of one each
#define OXB_DELTA_PARTS      4u   // of a column
#define OXB_DELTA_SIMDGROUPS 4u   // at most; of 3 columns would cross heads
#define OXB_DELTA_ELEMENTS   512u // of the queries, or keys, of a block of tokens

// A block of tokens, one of each SIMD-group that there is room for, and the next block.
struct delta_memory {
    float4 queries[2][OXB_DELTA_ELEMENTS / 4u]; // of the length `scale`, [token][key_dim]
    float4 keys[2][OXB_DELTA_ELEMENTS / 4u];    // of the length 1
    float values[2][OXB_DELTA_SIMDGROUPS][OXB_DELTA_COLUMNS * OXB_DELTA_SIMDGROUPS];
    float decays[2][OXB_DELTA_SIMDGROUPS], betas[2][OXB_DELTA_SIMDGROUPS];
};

// log(1 + exp(x)), but x above 20. log(u) / (u - 1) makes up for what rounding u = 1 + e left.
inline float softplus(float x) {
    if (x > 20.0f) return x;
    const float e = precise::exp(x), u = 1.0f + e;
    return u == 1.0f ? e : precise::log(u) * (e / (u - 1.0f));
}

// What brings a vector, a share of it in each lane, to a length of 1 where eps is nothing. Returns
// the factor of the elements times `scale`, by which they are multiplied first.
template <uint EACH>
inline float inverse_length(thread const float *own, float eps, thread float &scale) {
    scale = 1.0f;
    float total = 0.0f;
    OXB_UNROLL
    for (uint i = 0; i < EACH; i++) total = fma(own[i], own[i], total);
    total = simd_sum(total);
    scale = scale_for(total, eps);
    if (scale != 1.0f) {
        total = 0.0f;
        OXB_UNROLL
        for (uint i = 0; i < EACH; i++) {
            const float value = own[i] * scale;
            total = fma(value, value, total);
        }
        total = simd_sum(total);
    }
    return inverse_rms(total, 1u, scale, eps);
}

// A token of a head as a SIMD-group loads it, ahead of its use.
template <uint KEY_DIM>
struct delta_token {
    float query[KEY_DIM / OXB_SIMD_WIDTH], key[KEY_DIM / OXB_SIMD_WIDTH];
    float value; // of the lane's column
    float alpha, beta;
};

// Where the head of a threadgroup stands in the rows of tokens.
struct delta_head {
    device const float *qkv, *alpha_beta; // of the first token
    uint query, key, value;               // elements of a row before those of this threadgroup
    uint head;
    float a, dt_bias;
};

template <uint KEY_DIM>
inline delta_token<KEY_DIM> load_token(delta_head head, constant oxb_delta_args &args, uint token,
                                       uint columns, uint lane) {
    delta_token<KEY_DIM> own;
    device const float *row = head.qkv + token * args.qkv_stride;
    OXB_UNROLL
    for (uint i = 0; i < KEY_DIM / OXB_SIMD_WIDTH; i++) {
        own.query[i] = row[head.query + i * OXB_SIMD_WIDTH + lane];
        own.key[i] = row[head.key + i * OXB_SIMD_WIDTH + lane];
    }
    own.value = lane < columns ? row[head.value + lane] : 0.0f;
    row = head.alpha_beta + token * args.ab_stride;
    own.alpha = row[head.head];
    own.beta = row[args.n_value_heads + head.head];
    return own;
}

// Put a token in place `at` of block `b`.
template <uint KEY_DIM>
inline void prepare_token(delta_token<KEY_DIM> own, delta_head head, constant oxb_delta_args &args,
                          uint b, uint at, uint lane, threadgroup delta_memory &memory) {
    const uint each = KEY_DIM / OXB_SIMD_WIDTH;
    float query_scale, key_scale;
    const float of_query = inverse_length<each>(own.query, args.eps, query_scale);
    const float of_key = inverse_length<each>(own.key, args.eps, key_scale);
    threadgroup float *queries = (threadgroup float *)memory.queries[b] + at * KEY_DIM + lane;
    threadgroup float *keys = (threadgroup float *)memory.keys[b] + at * KEY_DIM + lane;
    OXB_UNROLL
    for (uint i = 0; i < each; i++) {
        queries[i * OXB_SIMD_WIDTH] = own.query[i] * query_scale * of_query * args.scale;
        keys[i * OXB_SIMD_WIDTH] = own.key[i] * key_scale * of_key;
    }
    memory.values[b][at][lane] = own.value;
    if (lane == 0u) {
        memory.decays[b][at] = precise::exp(head.a * softplus(own.alpha + head.dt_bias));
        memory.betas[b][at] = sigmoid(own.beta);
    }
}

// The sum over the lanes of a column, in all of them.
inline float column_sum(thread const float *sums) {
    float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    sum += simd_shuffle_xor(sum, ushort(OXB_DELTA_COLUMNS));
    return sum + simd_shuffle_xor(sum, ushort(2u * OXB_DELTA_COLUMNS));
}

// The columns of a threadgroup for n_tokens. A lane has rows 16 m + 4 part to 16 m + 4 part + 3 of
// its column of the state, for every m, in registers.
template <uint KEY_DIM>
inline void run_delta(delta_head head, device float *recurrent, device float *y,
                      constant oxb_delta_args &args, state_place where, uint column, uint n_tokens,
                      thread_place place, threadgroup delta_memory &memory) {
    const uint lane = place.lane, part = lane / OXB_DELTA_COLUMNS;
    const uint own_column = place.simdgroup * OXB_DELTA_COLUMNS + lane % OXB_DELTA_COLUMNS;
    const uint columns = place.simdgroups * OXB_DELTA_COLUMNS;
    const uint at_once = min(place.simdgroups, OXB_DELTA_ELEMENTS / KEY_DIM); // tokens of a block
    y += head.head * ulong(args.value_dim) + column + own_column;
    if (!where.has_place) {
        for (uint t = part; t < n_tokens; t += OXB_DELTA_PARTS) y[t * args.y_stride] = 0.0f;
        return;
    }
    const ulong own = ulong(head.head * KEY_DIM + part * 4u) * args.value_dim + column + own_column;
    device const float *from = recurrent + where.from + own;
    float state[KEY_DIM / OXB_DELTA_PARTS];
    OXB_UNROLL
    for (uint i = 0; i < KEY_DIM / OXB_DELTA_PARTS; i++) {
        const uint row = i / 4u * 16u + i % 4u;
        state[i] = where.fresh ? 0.0f : from[row * args.value_dim];
    }
    delta_token<KEY_DIM> next;
    const bool prepares = place.simdgroup < at_once;
    if (prepares && place.simdgroup < n_tokens) {
        next = load_token<KEY_DIM>(head, args, place.simdgroup, columns, lane);
        prepare_token<KEY_DIM>(next, head, args, 0u, place.simdgroup, lane, memory);
    }
    for (uint start = 0, b = 0; start < n_tokens; start += at_once, b ^= 1u) {
        const uint ahead = start + at_once + place.simdgroup;
        const bool more = prepares && ahead < n_tokens;
        if (more) next = load_token<KEY_DIM>(head, args, ahead, columns, lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const uint count = min(n_tokens - start, at_once);
        for (uint t = 0; t < count; t++) {
            threadgroup const float4 *keys = memory.keys[b] + t * (KEY_DIM / 4u) + part;
            threadgroup const float4 *queries = memory.queries[b] + t * (KEY_DIM / 4u) + part;
            const float decay = memory.decays[b][t];
            float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            OXB_UNROLL
            for (uint m = 0; m < KEY_DIM / 16u; m++) {
                const float4 key = keys[4u * m];
                OXB_UNROLL
                for (uint e = 0; e < 4u; e++) sums[e] = fma(key[e], state[4u * m + e], sums[e]);
            }
            const float seen = column_sum(sums);
            const float change =
                fma(-decay, seen, memory.values[b][t][own_column]) * memory.betas[b][t];
            OXB_UNROLL
            for (uint e = 0; e < 4u; e++) sums[e] = 0.0f;
            OXB_UNROLL
            for (uint m = 0; m < KEY_DIM / 16u; m++) {
                const float4 key = keys[4u * m], query = queries[4u * m];
                OXB_UNROLL
                for (uint e = 0; e < 4u; e++) {
                    const uint i = 4u * m + e;
                    state[i] = fma(key[e], change, decay * state[i]);
                    sums[e] = fma(query[e], state[i], sums[e]);
                }
            }
            const float result = column_sum(sums);
            if (part == 0u) y[(start + t) * args.y_stride] = result;
        }
        if (more) prepare_token<KEY_DIM>(next, head, args, b ^ 1u, place.simdgroup, lane, memory);
    }
    device float *to = recurrent + where.to + own;
    OXB_UNROLL
    for (uint i = 0; i < KEY_DIM / OXB_DELTA_PARTS; i++) {
        const uint row = i / 4u * 16u + i % 4u;
        to[row * args.value_dim] = state[i];
    }
}

// A threadgroup for some columns, x, of a value head of the dispatch, y, and the tokens of a
// sequence, z.
kernel void delta_rule(
    device const float *qkv [[buffer(0)]], device const float *alpha_beta [[buffer(1)]],
    device const float *a [[buffer(2)]], device const float *dt_bias [[buffer(3)]],
    device const oxb_decode_state *state [[buffer(4)]], device float *recurrent [[buffer(5)]],
    device float *y [[buffer(6)]], constant oxb_delta_args &args [[buffer(7)]],
    uint3 tile [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup delta_memory memory;
    const thread_place place = {lane, simdgroup, simdgroups};
    const state_place where = place_of_state(state, args.recurrence, tile.z);
    const ulong row = tile.z; // of the sequence's first token: each has one, or there is one
    const uint column = tile.x * simdgroups * OXB_DELTA_COLUMNS;
    const uint n_keys = args.n_key_heads * delta_key_dim;
    delta_head head;
    head.qkv = qkv + row * args.qkv_stride;
    head.alpha_beta = alpha_beta + row * args.ab_stride;
    head.head = args.first_head + tile.y;
    head.query = head.head % args.n_key_heads * delta_key_dim;
    head.key = n_keys + head.query;
    head.value = 2u * n_keys + head.head * args.value_dim + column;
    head.a = a[head.head];
    head.dt_bias = dt_bias[head.head];
    y += row * args.y_stride;
    const uint n_tokens = args.recurrence.batch != 0u ? 1u : args.recurrence.n_tokens;
    switch (delta_key_dim) {
    case 32: run_delta<32>(head, recurrent, y, args, where, column, n_tokens, place, memory); break;
    case 64: run_delta<64>(head, recurrent, y, args, where, column, n_tokens, place, memory); break;
    case 96: run_delta<96>(head, recurrent, y, args, where, column, n_tokens, place, memory); break;
    case 160:
        run_delta<160>(head, recurrent, y, args, where, column, n_tokens, place, memory);
        break;
    case 192:
        run_delta<192>(head, recurrent, y, args, where, column, n_tokens, place, memory);
        break;
    case 224:
        run_delta<224>(head, recurrent, y, args, where, column, n_tokens, place, memory);
        break;
    case 256:
        run_delta<256>(head, recurrent, y, args, where, column, n_tokens, place, memory);
        break;
    default:
        run_delta<128>(head, recurrent, y, args, where, column, n_tokens, place, memory);
        break;
    }
}
