// y = sigmoid(z) * x or silu(z) * x, or the same of the RMSNorm of each head of x.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "rms.h"
#include "silu.h"

// A SIMD-group per head; y counts tokens. y and x may be the same: a lane reads the elements that
// it writes.
kernel void gate(device const float *x [[buffer(0)]], device const float *z [[buffer(1)]],
                 device const float *norm [[buffer(2)]], device float *y [[buffer(3)]],
                 constant oxb_gate_args &args [[buffer(4)]],
                 uint2 tile [[threadgroup_position_in_grid]],
                 uint simdgroup [[simdgroup_index_in_threadgroup]],
                 uint simdgroups [[simdgroups_per_threadgroup]],
                 uint lane [[thread_index_in_simdgroup]]) {
    const uint head = tile.x * simdgroups + simdgroup;
    if (head >= args.n_heads) return;
    const ulong token = tile.y, first = ulong(head) * args.head_dim;
    device const float *from = x + token * args.x_stride + first;
    device const float *gates = z + token * args.z_stride + first;
    device float *to = y + token * args.y_stride + first;
    float scale = 1.0f, inverse = 1.0f;
    if (args.has_norm != 0u) {
        float total = simd_sum(sum_of_squares(from, args.head_dim, 1.0f, lane, OXB_SIMD_WIDTH));
        scale = scale_for(total, args.eps);
        if (scale != 1.0f)
            total = simd_sum(sum_of_squares(from, args.head_dim, scale, lane, OXB_SIMD_WIDTH));
        inverse = inverse_rms(total, args.head_dim, scale, args.eps);
    }
    for (uint i = lane; i < args.head_dim; i += OXB_SIMD_WIDTH) {
        const float own = args.has_norm != 0u ? from[i] * scale * inverse * norm[i] : from[i];
        const float open = args.activation == OXB_GATE_SILU ? silu(gates[i]) : sigmoid(gates[i]);
        to[i] = open * own;
    }
}
