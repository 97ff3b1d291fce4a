"""SIMD-group functions and matrices, executed in both builds and in three thread orders."""

from __future__ import annotations

import numpy as np
import pytest
from msl_runner import Buffer, LaunchError, Library
from msl_runner.testing import HEADER, require_runner
from msl_runner.testing import check_kernel as check

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


def matrix_kernel(element, body):
    """A kernel of one SIMD-group from `x` to `o`, with threadgroup memory `t`."""
    return f"""
kernel void k(device const {element}* x [[buffer(0)]], device {element}* o [[buffer(1)]],
              ushort lane [[thread_index_in_simdgroup]]) {{
  threadgroup {element} t[12 * 20];
  for (uint i = lane; i < 12 * 20; i += 32) t[i] = x[i];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_{element}8x8 m;
{body}
}}"""


@pytest.mark.parametrize("element", ["half", "float"])
@pytest.mark.parametrize("memory", ["x", "t"])
@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("20", lambda x: x[:8, :8]),
        ("20, 0, false", lambda x: x[:8, :8]),
        ("20, ulong2(5, 3)", lambda x: x[3:11, 5:13]),
        ("20, ulong2(5, 3), true", lambda x: x[3:11, 5:13].T),
        ("0", lambda x: np.tile(x[0, :8], (8, 1))),
        ("", lambda x: x.ravel()[:64].reshape(8, 8)),
    ],
    ids=["rows", "defaults", "origin", "transposed", "one row", "packed"],
)
def test_a_simdgroup_matrix_is_loaded_from_its_place(element, memory, place, expected):
    x = np.arange(240).reshape(12, 20).astype(f16 if element == "half" else f32)
    load = f"simdgroup_load(m, {memory}{', ' * bool(place)}{place});\n  simdgroup_store(m, o);"
    check(
        matrix_kernel(element, load),
        [x, np.zeros(64, x.dtype)],
        {1: expected(x)},
        groups=1,
        threads=32,
    )


@pytest.mark.parametrize("element", ["half", "float"])
@pytest.mark.parametrize("transpose", [False, True])
def test_a_simdgroup_matrix_is_stored_in_its_place(element, transpose):
    x = np.arange(240).reshape(12, 20).astype(f16 if element == "half" else f32)
    block = x[2:10, 4:12]
    want = x.copy()
    want[1:9, 9:17] = block.T if transpose else block
    body = f"""  simdgroup_load(m, x, 20, ulong2(4, 2));
  simdgroup_store(m, t, 20, ulong2(9, 1), {str(transpose).lower()});
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = lane; i < 12 * 20; i += 32) o[i] = t[i];"""
    check(matrix_kernel(element, body), [x, np.zeros_like(x)], {1: want}, groups=1, threads=32)


def test_simdgroup_matrices_multiply_in_float_and_round_once():
    a, b, c = (rng.standard_normal((8, 8)).astype(dtype) for dtype in (f16, f16, f32))
    product = a.astype(np.float64) @ b.astype(np.float64)
    check(
        """
kernel void k(device const half* A [[buffer(0)]], device const half* B [[buffer(1)]],
              device const float* C [[buffer(2)]], device float* o [[buffer(3)]],
              device half* h [[buffer(4)]]) {
  simdgroup_half8x8 a, b, r, half_of(0.5h);
  simdgroup_float8x8 c, d, twice(2.0f), threes = make_filled_simdgroup_matrix<float, 8, 8>(3.0f);
  simdgroup_load(a, A);
  simdgroup_load(b, B);
  simdgroup_load(c, C);
  simdgroup_multiply(d, a, b);
  simdgroup_store(d, o);
  simdgroup_multiply_accumulate(d, a, b, c);
  simdgroup_store(d, o + 64);
  simdgroup_multiply_accumulate(c, a, b, c);
  simdgroup_multiply_accumulate(c, b, half_of, c);
  simdgroup_store(c, o + 128);
  simdgroup_multiply(r, a, b);
  simdgroup_store(r, h);
  simdgroup_multiply_accumulate(c, twice, threes, c);
  simdgroup_store(c, o + 192);
}""",
        [a, b, c, np.zeros((4, 8, 8), f32), np.zeros((8, 8), f16)],
        {
            3: np.stack([product, product + c, product + c + b / 2, product + c + b / 2 + 6]),
            4: product.astype(f32).astype(f16),
        },
        rtol=2e-6,
        groups=1,
        threads=32,
    )


def test_an_infinite_element_of_a_simdgroup_matrix_reaches_its_row_only():
    a, b = np.ones((8, 8), f32), np.ones((8, 8), f32)
    a[2, 3], b[3, 5] = np.inf, 0
    with np.errstate(invalid="ignore"):
        want = a @ b
    assert np.isnan(want[2, 5])
    check(
        """
kernel void k(device const float* A [[buffer(0)]], device const float* B [[buffer(1)]],
              device float* o [[buffer(2)]]) {
  simdgroup_float8x8 a, b;
  simdgroup_load(a, A);
  simdgroup_load(b, B);
  simdgroup_multiply(a, a, b);
  simdgroup_store(a, o);
}""",
        [a, b, np.zeros((8, 8), f32)],
        {2: want},
        groups=1,
        threads=32,
    )


def test_every_simdgroup_has_matrices_of_its_own():
    body = f"""kernel void k({OUT}, uint sg [[simdgroup_index_in_threadgroup]]) {{
  simdgroup_float8x8 m(float(sg + 1)), n;
  for (uint i = 0; i <= sg; i++) simdgroup_multiply(m, m, m);
  n = m;
  simdgroup_store(n, o + sg * 64, 8);
}}"""
    want = [(s + 1.0) ** (2 ** (s + 1)) * np.eye(8) for s in range(3)]
    check(body, [np.zeros((3, 8, 8), f32)], {0: want}, groups=1, threads=96)


def test_a_diagonal_simdgroup_matrix():
    body = f"kernel void k({OUT}) {{ simdgroup_float8x8 m(2.0f); simdgroup_store(m, o, 8); }}"
    check(body, [np.zeros(64, f32)], {0: 2 * np.eye(8).ravel()}, groups=1, threads=32)
