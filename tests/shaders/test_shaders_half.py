"""Vectors as single halves and their products in shaders/, each run with every access checked."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import reference
from cases import activations, close_to, random_weight, same_non_finite, set_scales
from shader_runs import SENTINEL, Placed, every_order, run, tiles_for
from shader_weights import CODES, FORMATS, columns, matrix, random_matrix

from oxibonsai import formats

every_code = pytest.mark.parametrize("name", CODES)
# Tiles of 16 rows and eights of vectors of a SIMD-group; SIMD-groups over the rows, and in all.
SHAPES = [(2, 4, 2, 4), (4, 4, 2, 4), (4, 4, 4, 8), (2, 4, 2, 2)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(map(str, s)))


def block_of(name):
    return 128 // formats.get(FORMATS[name]).bits


def rounded(x, block, order="random", mode="check", norm=None, eps=0.0, prepares=False, threads=64):
    """Return what round_half makes of x [n_vectors, k], or round_half_norm."""
    n_vectors, k = x.shape
    eights = tiles_for(n_vectors, 8)
    out = np.full(eights * (16 * k + 32), 0xEE, np.uint8)
    padded = Placed(np.concatenate([np.full(1, np.nan, np.float32), x.reshape(-1)]), offset=4)
    return run(
        "round_half" if norm is None else "round_half_norm",
        [padded, out] if norm is None else [padded, norm, out],
        struct.pack("<IIIf", k, n_vectors, block, eps),
        groups=8 * eights,
        threads=threads,
        order=order,
        mode=mode,
        prepares=prepares,
    )[-1]


def whole(halves, n_vectors, k, block):
    """Return the vectors that halves stand for, and those that fill up the last eight, in float64.

    A lane of a SIMD-group matrix holds two neighbouring columns of a row; here the columns are
    vectors and the rows elements.
    """
    eights, word = tiles_for(n_vectors, 8), block // 4
    units = halves[16 * eights * k :].view(np.float32)
    tiles = halves[: 16 * eights * k].view(np.float16).reshape(eights, k // 16 // 2, 32, 2, 2, 2)
    x = np.full((8 * eights, k), np.nan)
    for lane in range(32):
        row = (lane >> 2 & 4) + (lane >> 1 & 3)
        column = 2 * ((lane >> 2 & 2) + (lane & 1))
        for step in range(block // 16):
            for pair in range(2):
                at = row // 2 * word + 2 * step + pair + row % 2 * (word // 2)
                for side in range(2):
                    found = tiles[:, step // 2 :: block // 32, lane, step % 2, pair, side]
                    x[column + side :: 8, at::block] = found
    with np.errstate(invalid="ignore"):
        return x * units[:, None]


def product(
    kernel, name, m, x, y, n_rows, *, shape=SHAPES[0], order="random", mode="check", stride=None,
    column=0, outputs=1,
):  # fmt: skip
    """Return y after a kernel that computes n_rows of it, and the vectors that it multiplied by."""
    k = m.w64.shape[1]
    tiles, eights, rows, simdgroups = shape
    halves = rounded(x, block_of(name), mode="fast", prepares=True)
    y = run(
        kernel,
        [m.data, halves, y],
        struct.pack("<QQIIII", m.codes_offset, stride or n_rows, n_rows, k, len(x), column),
        groups=(
            tiles_for(n_rows, 16 * tiles * rows // outputs),
            tiles_for(len(x), 8 * eights * simdgroups // rows),
        ),
        threads=32 * simdgroups,
        constants={0: 100 * tiles + 10 * eights + rows},
        order=order,
        mode=mode,
    )[2]
    return y, whole(halves, len(x), k, block_of(name))[: len(x)]


def gemm(name, m, x, start=None, *, stride=None, **options):
    """Return what gemm, or from `start` gemm_residual, makes of y [n_vectors, stride], and x."""
    n_rows = len(m.w64)
    stride = n_rows if stride is None else stride
    kernel = f"gemm_{name}_half" if start is None else f"gemm_{name}_residual_half"
    size = (len(x) - 1) * stride + n_rows
    y = np.full(size, SENTINEL) if start is None else start.reshape(-1)
    full = np.full(len(x) * stride, SENTINEL)
    full[:size], halves = product(kernel, name, m, x, y, n_rows, stride=stride, **options)
    return full.reshape(len(x), stride), halves


def check(found, m, start=0.0):
    """Hold each result to the bound of a GEMV on the rounded vectors."""
    y, x = found
    for got, vector, before in zip(y, x, np.broadcast_to(start, y.shape), strict=True):
        r = reference.gemv(m.w64, vector)
        slack = 1e-7 * float(np.linalg.norm(before)) + len(r) ** 0.5 * 2.0**-149
        close_to(got, r + before, reference.gemv_bound(m.w64, vector, r) + slack)


def check_ieee(found, m):
    """As check(), with NaN and infinities exactly where the definition has them."""
    y, x = found
    for got, vector in zip(y, x, strict=True):
        r = reference.gemv(m.w64, vector)
        finite = same_non_finite(got, r)
        close_to(got[finite], r[finite], reference.gemv_bound(m.w64[finite], vector, r[finite]))


def off_by(got, expected):
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@every_order
@pytest.mark.parametrize("block", [64, 128])
def test_a_half_keeps_11_bits_of_each_activation(order, block):
    x = activations(3 * 384).reshape(3, 384)
    x[1] *= np.geomspace(1, 2.0**-13, 384, dtype=np.float32)
    x[2, 7], x[0, :128] = 0, 0
    got = whole(rounded(x, block, order), 3, 384, block)
    assert (np.abs(got[:3] - x) <= np.abs(x) * 2.0**-11).all()
    assert (got[3:] == 0).all()


@pytest.mark.parametrize("threads", [32, 256])
def test_the_largest_of_a_vector_is_found_wherever_it_is(threads):
    for at in (0, 130, 639):
        x = np.full((2, 640), 0.25, np.float32)
        x[0, at], x[1, at] = -65536.0, 3e38
        got = whole(rounded(x, 128, threads=threads), 2, 640, 128)
        np.testing.assert_array_equal(got[0], x[0])
        assert abs(got[1, at] - x[1, at]) <= 2.0**-11 * x[1, at]


@pytest.mark.parametrize("block", [64, 128])
def test_a_half_of_what_is_no_number_or_far_from_the_largest(block):
    x = np.ones((1, 128), np.float32)
    x[0, :6] = [np.inf, -np.inf, np.nan, 3.4e38, -1e-45, -0.0]
    got = whole(rounded(x, block), 1, 128, block)[0]
    np.testing.assert_array_equal(got[:3], x[0, :3])
    assert abs(got[3] - x[0, 3]) <= 2.0**-11 * x[0, 3]
    assert got[4] < 0
    assert got[5] == 0
    assert ((got[6:] > 0) & (got[6:] < 2.0**90)).all()


@every_order
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
def test_a_half_of_the_norm_matches_the_definition(order, block, size):
    k = 9 * 128 + 128 - block
    x = activations(10 * k).reshape(10, k) * np.float32(size)
    norm = activations(k, 3)
    eps = 1e-6 if size == 1 else 0.0
    got = whole(rounded(x, block, order, norm=norm, eps=eps), 10, k, block)
    r = reference.rmsnorm(x, norm, eps)
    slack = 2.0**-38 * np.abs(r).max(axis=1, keepdims=True)
    assert (np.abs(got[:10] - r) <= 2.0**-10.99 * np.abs(r) + slack).all()
    assert (got[10:] == 0).all()


@every_code
@every_shape
def test_products_match_the_definition_at_every_edge(name, shape):
    block = block_of(name)
    for n_rows, k, n_vectors in ((1, 128, 1), (131, 5 * 128, 33), (64, 3 * block, 7)):
        if k % formats.get(FORMATS[name]).group_size:
            k += block
        m, x = random_matrix(name, n_rows, k), activations(n_vectors * k).reshape(n_vectors, k)
        check(gemm(name, m, x, shape=shape), m)


@every_code
@every_order
def test_products_match_the_definition_in_every_order(name, order):
    m, x = random_matrix(name, 70, 384), activations(9 * 384).reshape(9, 384)
    check(gemm(name, m, x, order=order), m)


@every_code
def test_the_error_of_a_product_is_below_a_thousandth_of_its_norm(name):
    k = 2048
    x = activations(16 * k).reshape(16, k)
    x[3] += 10
    x[4, 7] = 1000
    m = random_matrix(name, 300, k)
    y, _ = gemm(name, m, x, mode="fast", shape=SHAPES[1])
    for got, vector in zip(y, x, strict=True):
        assert off_by(got, reference.gemv(m.w64, vector)) < 4e-4


@every_code
@every_order
def test_the_residual_form_adds_to_what_is_there(name, order):
    m, x = random_matrix(name, 13, 256), activations(5 * 256).reshape(5, 256)
    start = activations(5 * 13, 3).reshape(5, 13)
    check(gemm(name, m, x, start, order=order), m, start)


@every_code
def test_a_matrix_in_columns_gives_the_same_bits(name):
    m, x = random_matrix(name, 70, 384), activations(5 * 384).reshape(5, 384)
    plain, _ = gemm(name, m, x)
    column, _ = gemm(name, columns(name, m), x, column=70)
    np.testing.assert_array_equal(plain, column)


@every_code
def test_a_vector_has_its_bits_whatever_the_tile_and_its_other_vectors(name):
    m, x = random_matrix(name, 40, 512), activations(8 * 512).reshape(8, 512)
    other = x * np.float32(1000)
    other[5] = x[5]
    for shape in SHAPES:
        got, _ = gemm(name, m, other, shape=shape)
        np.testing.assert_array_equal(gemm(name, m, x)[0][5], got[5])


def test_rows_of_the_output_may_lie_apart():
    m, x = random_matrix("q1_g128", 13, 256), activations(5 * 256).reshape(5, 256)
    y, halves = gemm("q1_g128", m, x, stride=20)
    check((y[:, :13], halves), m)
    assert (y[:, 13:] == SENTINEL).all()


@every_code
def test_long_rows_with_a_mean_and_outliers_stay_within_the_bound(name):
    k = 12288
    outliers = activations(k)
    outliers[[3, 700, 9000]] = [1e6, -3e6, 7e5]
    x = np.stack([activations(k), activations(k) + np.float32(100), outliers])
    m = random_matrix(name, 16, k)
    check(gemm(name, m, x, mode="fast"), m)


@every_code
@pytest.mark.parametrize("size", [2.0**-149, 2.0**-140, 2.0**-120, 2.0**-30, 1e30, 2.0**122])
def test_activations_of_every_size_stay_within_the_bound(name, size):
    m = matrix(set_scales(random_weight(FORMATS[name], 20, 256), 0.5))
    x = (activations(3 * 256).reshape(3, 256) * np.float64(size)).astype(np.float32)
    x[1, :128] = 0
    x[2, 5] *= np.float32(4)
    check(gemm(name, m, x), m)


@every_code
@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan, 0.0, -0.0, 2.0**-24, 40000.0, -65504.0])
def test_scales_of_every_kind_follow_ieee_and_stay_in_their_row(name, scale):
    q = random_weight(FORMATS[name], 40, 512)
    if formats.get(q.format).bits == 2:
        q.data[-64:] = 0xFF  # level 2, twice a scale that may be the largest half
    n_blocks = q.data.size // formats.get(q.format).block_bytes
    scales = np.linspace(0.5, 1.5, n_blocks)
    scales[:: n_blocks // 3] = scale
    m, x = matrix(set_scales(q, scales)), activations(3 * 512).reshape(3, 512)
    x[2, 7] = 0
    check_ieee(gemm(name, m, x), m)


def twice_the_largest(n_rows, k):
    q = random_weight("PQ2_0", n_rows, k)
    return matrix(set_scales(q, np.where(np.arange(q.data.size // 34) % 3 == 0, 60000.0, 1e-3)))


@every_shape
def test_twice_a_large_scale_is_no_infinity(shape):
    m = twice_the_largest(70, 512)
    assert np.abs(m.w64).max() == 2 * float(np.float16(60000))
    x = activations(9 * 512).reshape(9, 512)
    check_ieee(gemm("q2_g128", m, x, shape=shape), m)
    start = activations(9 * 70, 3).reshape(9, 70)
    check(gemm("q2_g128", m, x, start, shape=shape), m, start)


@pytest.mark.parametrize("codes", [0x00, 0xFF, 0xAA])
def test_infinite_scales_keep_the_sign_of_their_terms(codes):
    for name in CODES:
        q = random_weight(FORMATS[name], 17, 256)
        q.data[:] = codes
        m = matrix(set_scales(q, -np.inf))
        x = np.abs(activations(2 * 256)).reshape(2, 256) + 1
        check_ieee(gemm(name, m, x), m)


@every_code
def test_infinite_and_nan_activations_stay_in_their_vector(name):
    k = 512
    m, x = random_matrix(name, 35, k), activations(11 * k).reshape(11, k)
    x[1, 0], x[3, k - 1], x[4, [1, k - 2]] = np.nan, -np.inf, np.inf
    x[6, 40], x[6, 41] = np.inf, 3e38
    x[9, [2, 3]] = np.inf, -np.inf
    check_ieee(gemm(name, m, x), m)


def gate_up(name, m, x, n_rows, shape, order="random"):
    """Hold fused gate-up-SwiGLU to its definition on the rounded vectors."""
    s = np.full((len(x), n_rows), SENTINEL)
    kernel = f"fused_gate_up_swiglu_gemm_{name}_half"
    s, halves = product(kernel, name, m, x, s, n_rows, shape=shape, order=order, outputs=2)
    for got, vector in zip(s, halves, strict=True):
        gate, up = np.split(reference.gemv(m.w64, vector), 2)
        bounds = [
            reference.gemv_bound(w, vector, r)
            for w, r in zip(np.split(m.w64, 2), (gate, up), strict=True)
        ]
        expected = reference.swiglu(gate, up)
        # The slope of silu is at most 1.1.
        bound = 1.1 * bounds[0] * np.abs(up).max() + np.abs(reference.silu(gate)).max() * bounds[1]
        close_to(got, expected, float(bound) + 1e-6 * float(np.linalg.norm(expected)))


@every_code
@every_shape
def test_gate_up_swiglu_matches_the_definition(name, shape):
    for n_rows, n_vectors in ((1, 2), (67, 33)):
        m = random_matrix(name, 2 * n_rows, 384)
        x = activations(n_vectors * 384).reshape(n_vectors, 384) / np.float32(8)
        gate_up(name, m, x, n_rows, shape)


@every_code
@every_order
def test_gate_up_swiglu_matches_the_definition_in_every_order(name, order):
    m, x = random_matrix(name, 40, 256), activations(3 * 256).reshape(3, 256)
    gate_up(name, m, x, 20, SHAPES[0], order)


def test_gate_up_swiglu_with_twice_a_large_scale_matches_the_definition():
    x = activations(9 * 512).reshape(9, 512) * np.float32(1e-6)
    gate_up("q2_g128", twice_the_largest(140, 512), x, 70, SHAPES[0])
