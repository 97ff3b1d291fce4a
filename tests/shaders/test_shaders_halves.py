"""Vectors as halves and their products in shaders/, each run alone with every access checked."""

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
SHAPES = [(2, 1, 1, 8), (4, 1, 4, 8), (2, 2, 8, 8), (4, 2, 2, 4)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(map(str, s)))


def block_of(name):
    return 128 // formats.get(FORMATS[name]).bits


def halve(x, block, order="random", mode="check", norm=None, eps=0.0, prepares=False):
    """Return what halve makes of x [n_vectors, k], or halve_norm, after bytes to be overwritten."""
    n_vectors, k = x.shape
    eights = tiles_for(n_vectors, 8)
    out = np.full(eights * (k // block) * 32 * (block + 1), 0xEE, np.uint8)
    padded = Placed(np.concatenate([np.full(1, np.nan, np.float32), x.reshape(-1)]), offset=4)
    return run(
        "halve" if norm is None else "halve_norm",
        [padded, out] if norm is None else [padded, norm, out],
        struct.pack("<IIIf", k, n_vectors, block, eps),
        groups=(tiles_for(k, 1024), 8 * eights) if norm is None else 8 * eights,
        threads=256,
        order=order,
        mode=mode,
        prepares=prepares,
    )[-1]


def whole(halves, n_vectors, k, block):
    """Return the vectors that halves stand for, and those that fill up the last eight, in float64.

    A lane of a SIMD-group matrix holds two neighbouring columns of a row; here the columns are
    vectors and the rows elements, of two matrices for each half.
    """
    eights, blocks, steps = tiles_for(n_vectors, 8), k // block, block // 16
    words = eights * blocks * steps * 32 * 8
    units = halves[2 * words :].view(np.float32).reshape(eights, blocks, 8)
    tiles = halves[: 2 * words].view(np.float16).reshape(eights, blocks, steps, 32, 2, 2, 2)
    x = np.full((8 * eights, k), np.nan)
    for lane in range(32):
        row = (lane >> 2 & 4) + (lane >> 1 & 3)
        column = 2 * ((lane >> 2 & 2) + (lane & 1))
        for step in range(steps):
            for pair in range(2):
                word = block // 4
                at = row // 2 * word + 2 * step + pair + row % 2 * (word // 2)
                for side in range(2):
                    near, rest = (
                        tiles[:, :, step, lane, i, pair, side].astype(np.float64) for i in (0, 1)
                    )
                    values = (near + rest / 2048) * units[:, :, column + side]
                    x[column + side :: 8, at::block] = values
    return x


def tile_of(name, shape):
    tiles, eights, rows, simdgroups = shape
    if eights == 2 and name != "q1_g128":
        tiles = 2  # the kernel for 2-bit codes has no larger one
    return tiles, eights, rows, simdgroups


def product(
    kernel, name, m, x, y, n_rows, *, shape=SHAPES[0], order="random", mode="check", splits=1,
    stride=None, column=0, outputs=1,
):  # fmt: skip
    """Return y after a kernel that computes n_rows of it, from 16 / outputs rows a tile."""
    k = m.w64.shape[1]
    tiles, eights, rows, simdgroups = tile_of(name, shape)
    stride = n_rows if stride is None else stride
    size = 16 * tiles * rows // outputs
    return run(
        kernel,
        [m.data, halve(x, block_of(name), mode="fast", prepares=True), y],
        struct.pack("<QQIIII", m.codes_offset, stride, n_rows, k, len(x), column),
        groups=(tiles_for(n_rows, size), tiles_for(len(x), 8 * eights), splits),
        threads=32 * simdgroups,
        constants={0: 10 * tiles + eights, 1: rows},
        order=order,
        mode=mode,
    )[2]  # fmt: skip


def gemm(name, m, x, start=None, *, splits=1, stride=None, **options):
    """Return what gemm, or from `start` gemm_residual, makes of y [n_vectors, stride]."""
    n_rows = len(m.w64)
    stride = n_rows if stride is None else stride
    kernel = f"gemm_{name}_halves" if start is None else f"gemm_{name}_residual_halves"
    size = (splits * len(x) - 1) * stride + n_rows
    y = np.full(size, SENTINEL) if start is None else start.reshape(-1)
    full = np.full(splits * len(x) * stride, SENTINEL)
    full[:size] = product(kernel, name, m, x, y, n_rows, splits=splits, stride=stride, **options)
    return full.reshape(-1, len(x), stride)[0 if splits == 1 else slice(None)]


def check(y, m, x, start=0.0):
    """Hold each vector's result to the bound of a GEMV."""
    for got, vector, before in zip(y, x, np.broadcast_to(start, y.shape), strict=True):
        r = reference.gemv(m.w64, vector)
        slack = 1e-7 * float(np.linalg.norm(before))
        close_to(got, r + before, reference.gemv_bound(m.w64, vector, r) + slack)


def check_ieee(y, m, x):
    """As check(), with NaN and infinities exactly where the definition has them."""
    for got, vector in zip(y, x, strict=True):
        r = reference.gemv(m.w64, vector)
        finite = same_non_finite(got, r)
        close_to(got[finite], r[finite], reference.gemv_bound(m.w64[finite], vector, r[finite]))


@every_order
@pytest.mark.parametrize("block", [64, 128])
def test_halves_keep_22_bits(order, block):
    x = activations(3 * 384).reshape(3, 384)
    x[1] *= np.geomspace(1, 2.0**-13, 384, dtype=np.float32)
    x[2, 7], x[0, :128] = 0, 0
    got = whole(halve(x, block, order), 3, 384, block)
    assert (np.abs(got[:3] - x) <= np.abs(x) * 2.0**-22).all()
    assert (got[3:] == 0).all()


@pytest.mark.parametrize("block", [64, 128])
def test_halves_of_what_is_no_number_or_far_from_the_largest(block):
    x = np.ones((1, 128), np.float32)
    x[0, :6] = [np.inf, -np.inf, np.nan, 3.4e38, -1e-45, -0.0]
    got = whole(halve(x, block), 1, 128, block)[0]
    np.testing.assert_array_equal(got[:3], x[0, :3])
    assert abs(got[3] - x[0, 3]) <= 2.0**-22 * x[0, 3]
    assert got[4] < 0
    assert got[5] == 0
    assert ((got[6:block] > 0) & (got[6:block] < 2.0**90)).all()


@every_order
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
def test_halves_of_the_norm_match_the_definition(order, block, size):
    k = 9 * 128 + 128 - block
    x = activations(10 * k).reshape(10, k) * np.float32(size)
    norm = activations(k, 3)
    got = whole(halve(x, block, order, norm=norm, eps=1e-6 if size == 1 else 0.0), 10, k, block)
    r = reference.rmsnorm(x, norm, 1e-6 if size == 1 else 0.0)
    assert (np.abs(got[:10] - r) <= 1e-6 * np.abs(r)).all()
    assert (got[10:] == 0).all()


@every_code
@every_order
@every_shape
def test_products_match_the_definition_at_every_edge(name, order, shape):
    block = block_of(name)
    for n_rows, k, n_vectors in ((1, 128, 2), (131, 9 * 128, 8 * shape[1] + 1), (64, 3 * block, 7)):
        if k % formats.get(FORMATS[name]).group_size:
            k += block
        m, x = random_matrix(name, n_rows, k), activations(n_vectors * k).reshape(n_vectors, k)
        check(gemm(name, m, x, order=order, shape=shape), m, x)


@every_code
@every_order
def test_the_residual_form_adds_to_what_is_there(name, order):
    m, x = random_matrix(name, 13, 256), activations(5 * 256).reshape(5, 256)
    start = activations(5 * 13, 3).reshape(5, 13)
    check(gemm(name, m, x, start, order=order), m, x, start)


@every_code
def test_a_matrix_in_columns_gives_the_same_bits(name):
    m, x = random_matrix(name, 70, 384), activations(5 * 384).reshape(5, 384)
    plain, column = gemm(name, m, x), gemm(name, columns(name, m), x, column=70)
    np.testing.assert_array_equal(plain, column)


@every_code
def test_a_vector_has_its_bits_whatever_the_others_of_its_tile(name):
    m, x = random_matrix(name, 40, 512), activations(8 * 512).reshape(8, 512)
    other = x * np.float32(1000)
    other[5] = x[5]
    np.testing.assert_array_equal(gemm(name, m, x)[5], gemm(name, m, other)[5])


@every_code
@every_shape
def test_splits_of_k_add_up(name, shape):
    m, x = random_matrix(name, 40, 1280), activations(9 * 1280).reshape(9, 1280)
    check(gemm(name, m, x, splits=3, shape=shape).sum(axis=0, dtype=np.float64), m, x)


def test_rows_of_the_output_may_lie_apart():
    m, x = random_matrix("q1_g128", 13, 256), activations(5 * 256).reshape(5, 256)
    y = gemm("q1_g128", m, x, stride=20)
    check(y[:, :13], m, x)
    assert (y[:, 13:] == SENTINEL).all()


@every_code
def test_long_rows_with_a_mean_and_outliers_stay_within_the_bound(name):
    k = 12288
    outliers = activations(k)
    outliers[[3, 700, 9000]] = [1e6, -3e6, 7e5]
    x = np.stack([activations(k), activations(k) + np.float32(100), outliers])
    m = random_matrix(name, 16, k)
    check(gemm(name, m, x, mode="fast"), m, x)


def test_an_outlier_under_a_zero_costs_its_neighbours_nothing():
    q = random_weight("TQ2_0_g128", 24, 128)
    m = matrix(q)
    for size in (300.0, 1e6, 1e8):
        for at in (0, 17, 127):
            keep = m.w64[:, at] == 0
            x = activations(2 * 128).reshape(2, 128)
            x[:, at] = size
            for got, vector in zip(gemm("q2_g128", m, x), x, strict=True):
                r = reference.gemv(m.w64[keep], vector)
                close_to(got[keep], r, reference.gemv_bound(m.w64[keep], vector, r))


@every_code
@pytest.mark.parametrize("size", [2.0**-149, 2.0**-140, 2.0**-120, 2.0**-30, 1e30, 2.0**122])
def test_activations_of_every_size_stay_within_the_bound(name, size):
    m = matrix(set_scales(random_weight(FORMATS[name], 20, 256), 0.5))
    x = (activations(3 * 256).reshape(3, 256) * np.float64(size)).astype(np.float32)
    x[1, :128] = 0
    x[2, 5] *= np.float32(4)
    for got, vector in zip(gemm(name, m, x), x, strict=True):
        r = reference.gemv(m.w64, vector)
        # Of a subnormal result half a unit in the last place.
        close_to(got, r, reference.gemv_bound(m.w64, vector, r) + 20**0.5 * 2.0**-149)


@every_code
@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan, 0.0, -0.0, 2.0**-24, 65504.0])
def test_scales_of_every_kind_follow_ieee_and_stay_in_their_row(name, scale):
    q = random_weight(FORMATS[name], 40, 512)
    n_blocks = q.data.size // formats.get(q.format).block_bytes
    scales = np.linspace(0.5, 1.5, n_blocks)
    scales[:: n_blocks // 3] = scale
    m, x = matrix(set_scales(q, scales)), activations(3 * 512).reshape(3, 512)
    x[2, 7] = 0
    check_ieee(gemm(name, m, x), m, x)


@pytest.mark.parametrize("codes", [0x00, 0xFF, 0xAA])
def test_infinite_scales_keep_the_sign_of_their_terms(codes):
    for name in CODES:
        q = random_weight(FORMATS[name], 17, 256)
        q.data[:] = codes
        m = matrix(set_scales(q, -np.inf))
        x = np.abs(activations(2 * 256)).reshape(2, 256) + 1
        check_ieee(gemm(name, m, x), m, x)


@every_code
def test_infinite_and_nan_activations_stay_in_their_vector(name):
    k = 512
    m, x = random_matrix(name, 35, k), activations(11 * k).reshape(11, k)
    x[1, 0], x[3, k - 1], x[4, [1, k - 2]] = np.nan, -np.inf, np.inf
    x[6, 40], x[6, 41] = np.inf, 3e38
    x[9, [2, 3]] = np.inf, -np.inf
    check_ieee(gemm(name, m, x, shape=(2, 2, 2, 4)), m, x)


@every_code
@every_order
@every_shape
def test_gate_up_swiglu_matches_the_definition(name, order, shape):
    k = 384
    for n_rows, n_vectors in ((1, 2), (67, 8 * shape[1] + 1)):
        m = random_matrix(name, 2 * n_rows, k)
        x = activations(n_vectors * k).reshape(n_vectors, k) / np.float32(8)
        s = np.full((n_vectors, n_rows), SENTINEL)
        kernel = f"fused_gate_up_swiglu_gemm_{name}_halves"
        s = product(kernel, name, m, x, s, n_rows, shape=shape, order=order, outputs=2)
        for got, vector in zip(s, x, strict=True):
            gate, up = np.split(reference.gemv(m.w64, vector), 2)
            bounds = [
                reference.gemv_bound(w, vector, r)
                for w, r in zip(np.split(m.w64, 2), (gate, up), strict=True)
            ]
            expected = reference.swiglu(gate, up)
            # The slope of silu is at most 1.1.
            bound = (
                1.1 * bounds[0] * np.abs(up).max() + np.abs(reference.silu(gate)).max() * bounds[1]
            )
            close_to(got, expected, float(bound) + 1e-6 * float(np.linalg.norm(expected)))
