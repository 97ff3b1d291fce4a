// gemv and the fused gate-up-SwiGLU of coded formats by look-up in registers.
#include <metal_stdlib>
using namespace metal;

#include "oxb_args.h"
#include "simd.h"
#include "formats.h"
#include "rms.h"
#include "rows.h"
#include "coded.h"
#include "tables.h"
#include "shuffle.h"
#include "coded_vector.h"
#include "silu.h"
#include "gemv_coded.h"
#include "swiglu_coded.h"
#include "instantiate.h"

OXB_KERNEL("gemv_q1_g128_shuffle", gemv_coded<shuffle_form, q1_g128, false>)
OXB_KERNEL("gemv_q2_g128_shuffle", gemv_coded<shuffle_form, q2_g128, false>)
OXB_KERNEL("gemv_q2_g64_shuffle", gemv_coded<shuffle_form, q2_g64, false>)
OXB_KERNEL("gemv_t1_g128_shuffle", gemv_coded<shuffle_form, t1_g128, false>)

OXB_KERNEL("gemv_q1_g128_residual_shuffle", gemv_coded<shuffle_form, q1_g128, true>)
OXB_KERNEL("gemv_q2_g128_residual_shuffle", gemv_coded<shuffle_form, q2_g128, true>)
OXB_KERNEL("gemv_q2_g64_residual_shuffle", gemv_coded<shuffle_form, q2_g64, true>)
OXB_KERNEL("gemv_t1_g128_residual_shuffle", gemv_coded<shuffle_form, t1_g128, true>)

OXB_KERNEL("gemv_q1_g128_norm_shuffle", gemv_coded_norm<shuffle_form, q1_g128>)
OXB_KERNEL("gemv_q2_g128_norm_shuffle", gemv_coded_norm<shuffle_form, q2_g128>)
OXB_KERNEL("gemv_q2_g64_norm_shuffle", gemv_coded_norm<shuffle_form, q2_g64>)
OXB_KERNEL("gemv_t1_g128_norm_shuffle", gemv_coded_norm<shuffle_form, t1_g128>)

OXB_KERNEL("fused_gate_up_swiglu_q1_g128_shuffle",
           fused_gate_up_swiglu_coded<shuffle_form, q1_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g128_shuffle",
           fused_gate_up_swiglu_coded<shuffle_form, q2_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g64_shuffle", fused_gate_up_swiglu_coded<shuffle_form, q2_g64>)
OXB_KERNEL("fused_gate_up_swiglu_t1_g128_shuffle",
           fused_gate_up_swiglu_coded<shuffle_form, t1_g128>)

OXB_KERNEL("fused_gate_up_swiglu_q1_g128_norm_shuffle",
           fused_gate_up_swiglu_coded_norm<shuffle_form, q1_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g128_norm_shuffle",
           fused_gate_up_swiglu_coded_norm<shuffle_form, q2_g128>)
OXB_KERNEL("fused_gate_up_swiglu_q2_g64_norm_shuffle",
           fused_gate_up_swiglu_coded_norm<shuffle_form, q2_g64>)
OXB_KERNEL("fused_gate_up_swiglu_t1_g128_norm_shuffle",
           fused_gate_up_swiglu_coded_norm<shuffle_form, t1_g128>)
