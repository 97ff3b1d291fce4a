"""SIMD-group functions and matrices, executed in both builds and in three thread orders."""

from __future__ import annotations

import numpy as np
import pytest
from msl import Buffer, LaunchError, Library
from msl.testing import HEADER, require_runner
from msl.testing import check_kernel as check

require_runner()

f16, f32, u32 = np.float16, np.float32, np.uint32
rng = np.random.default_rng(0)
OUT = "device float* o [[buffer(0)]]"
GID = "uint i [[thread_position_in_grid]]"


def test_simd_functions():
    x = rng.standard_normal((2, 32)).astype(f32)
    each = {
        "simd_max(v)": np.repeat(x.max(1), 32),
        "simd_min(v)": np.repeat(x.min(1), 32),
        "simd_sum(v)": np.repeat(x.sum(1, dtype=np.float64), 32),
        "simd_product(v)": np.repeat(x.prod(1, dtype=np.float64), 32),
        "simd_prefix_inclusive_sum(v)": x.cumsum(1),
        "simd_prefix_exclusive_sum(v)": x.cumsum(1) - x,
        "simd_broadcast(v, 7)": np.repeat(x[:, 7], 32),
        "simd_broadcast_first(v)": np.repeat(x[:, 0], 32),
        "simd_shuffle(v, 31 - l)": x[:, ::-1],
        "simd_shuffle_xor(v, 5)": x[:, np.arange(32) ^ 5],
        "simd_shuffle_down(v, 3)": np.concatenate([x[:, 3:], x[:, 29:]], 1),
        "simd_shuffle_up(v, 1)": np.concatenate([x[:, :1], x[:, :-1]], 1),
        "simd_shuffle_rotate_down(v, 2)": np.roll(x, -2, 1),
        "simd_shuffle_rotate_up(v, 2)": np.roll(x, 2, 1),
        "simd_shuffle_and_fill_up(v, 9.0f, 2)": np.concatenate([np.full((2, 2), 9), x[:, :-2]], 1),
        "simd_shuffle_and_fill_down(v, 9.0f, 2)": np.concatenate([x[:, 2:], np.full((2, 2), 9)], 1),
        "float(popcount(uint(ulong(simd_ballot(v > 0.0f)))))": np.repeat((x > 0).sum(1), 32),
        "float(simd_all(v < 10.0f)) + float(simd_any(v > 10.0f))": np.ones(64),
        "float(simd_is_first())": np.tile(np.arange(32) == 0, 2),
        "quad_sum(v)": np.repeat(x.reshape(2, 8, 4).sum(2), 4),
        "quad_max(v)": np.repeat(x.reshape(2, 8, 4).max(2), 4),
        "quad_broadcast(v, 2)": np.repeat(x.reshape(2, 8, 4)[:, :, 2], 4),
        "quad_shuffle_xor(v, 1)": x[:, np.arange(32) ^ 1],
        "simd_sum(float4(v, 1.0f, 2.0f, 3.0f)).y": np.full(64, 32),
        "float(simd_or(1u << l) == ~0u) + float(simd_and(3u | l))": np.full(64, 1 + 3),
        "float(simd_xor(ushort(l)))": np.zeros(64),
    }
    stores = "\n".join(f"r[{n}] = {expression};" for n, expression in enumerate(each))
    check(
        f"""
kernel void k(device const float* x [[buffer(0)]], device float* o [[buffer(1)]],
              uint i [[thread_position_in_grid]], ushort l [[thread_index_in_simdgroup]]) {{
  float v = x[i];
  device float* r = o + i * {len(each)};
{stores}
}}""",
        [x, np.zeros((64, len(each)), f32)],
        {1: np.stack([np.ravel(v) for v in each.values()], 1)},
        rtol=2e-6,
        groups=1,
        threads=64,
    )


def test_simd_functions_leave_out_lanes_that_returned():
    body = f"kernel void k({OUT}, {GID}) {{ if (i >= 40) return; o[i] = simd_sum(1.0f); }}"
    want = [32] * 32 + [8] * 8 + [0] * 24
    check(body, [np.zeros(64, f32)], {0: want}, groups=1, threads=64)
    with pytest.raises(LaunchError, match="divergence"):
        Library(HEADER + body)["k"](
            [Buffer(np.zeros(64, f32))], groups=1, threads=64, forbid_exited=True
        )


def test_simd_functions_of_some_lanes_where_that_is_allowed():
    body = f"""kernel void k({OUT}, {GID}) {{
 float r = 0;
 if (i < 10) r = simd_sum(1.0f);
 else r = -1;
 o[i] = r + simd_sum(1.0f);
}}"""
    want = [42] * 10 + [31] * 22
    check(body, [np.zeros(32, f32)], {0: want}, groups=1, threads=32, partial_simd=True)


def test_a_simdgroup_barrier_orders_a_simdgroup():
    check(
        f"""kernel void k({OUT}, {GID}, uint sg [[simdgroup_index_in_threadgroup]],
                          uint l [[thread_index_in_simdgroup]]) {{
  threadgroup float s[64];
  s[i] = i;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  float v = s[sg * 32 + 31 - l];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  s[i] = v;
  o[i] = s[i];
}}""",
        [np.zeros(64, f32)],
        {0: np.r_[31:-1:-1, 63:31:-1]},
        groups=1,
        threads=64,
    )


@pytest.mark.parametrize("element", ["half", "float"])
def test_simdgroup_matrices(element):
    m, n, depth = 32, 24, 40
    dtype = f16 if element == "half" else f32
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in ((m, depth), (depth, n)))
    check(
        f"""
#include <metal_simdgroup_matrix>
kernel void k(device const {element}* A [[buffer(0)]], device const {element}* B [[buffer(1)]],
              device float* C [[buffer(2)]], constant uint4& mnk [[buffer(3)]],
              uint2 tg [[threadgroup_position_in_grid]],
              ushort lane [[thread_index_in_simdgroup]]) {{
  threadgroup {element} bt[64];
  simdgroup_float8x8 acc = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  simdgroup_{element}8x8 a, b;
  for (uint k = 0; k < mnk.z; k += 8) {{
    for (uint i = lane; i < 64; i += 32)
      bt[(i % 8) * 8 + i / 8] = B[(k + i / 8) * mnk.y + tg.x * 8 + i % 8];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_load(a, A + tg.y * 8 * mnk.z + k, mnk.z);
    simdgroup_load(b, bt, 8, ulong2(0, 0), true);
    simdgroup_multiply_accumulate(acc, a, b, acc);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }}
  simdgroup_store(acc, C, mnk.y, ulong2(tg.x * 8, tg.y * 8));
}}""",
        [a, b, np.zeros((m, n), f32), np.array([m, n, depth, 0], u32)],
        {2: a.astype(np.float64) @ b.astype(np.float64)},
        rtol=2e-5,
        groups=(n // 8, m // 8),
        threads=32,
    )


def test_a_diagonal_simdgroup_matrix():
    body = f"kernel void k({OUT}) {{ simdgroup_float8x8 m(2.0f); simdgroup_store(m, o, 8); }}"
    check(body, [np.zeros(64, f32)], {0: 2 * np.eye(8).ravel()}, groups=1, threads=32)
