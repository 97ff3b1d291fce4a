"""The products of coded matrices on int8 matrix units, shaders/slices.h, as in test_shaders.py."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import reference
from cases import (
    activations,
    block,
    close_to,
    random_weight,
    same_non_finite,
    set_scales,
    swiglu_with_bound,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from shader_runs import SENTINEL, Placed, every_order, run, tiles_for
from shader_weights import CODES, FORMATS, columns, matrix, random_matrix

from oxibonsai import formats, quant

every_code = pytest.mark.parametrize("name", CODES)
TILES = (1, 2, 6)


def product(kernel, m, inputs, y, rows, tiles, simdgroups, order, eps=0.0):
    """Run a product of `rows` of the output, whose last binding is y."""
    n_rows, k = m.w64.shape
    vectors = len(y) if y.ndim > 1 else 1
    return run(
        kernel,
        [m.data, *inputs, y],
        struct.pack("<QIIIfII", m.codes_offset, rows, k, n_rows, eps, y.shape[-1], 0),
        groups=(tiles_for(rows, 16 * tiles), vectors),
        threads=32 * simdgroups,
        constants={0: tiles},
        order=order,
    )[-1]


def gemv(name, m, x, start=None, order="random", tiles=1, simdgroups=8):
    """Return what gemv, or from `start` gemv_residual, makes of y; x may be several vectors."""
    n_rows = len(m.w64)
    kernel = f"gemv_{name}_slices" if start is None else f"gemv_{name}_residual_slices"
    y = np.full((*x.shape[:-1], n_rows), SENTINEL) if start is None else start
    # The activations start 4 bytes into their buffer: more alignment is not promised.
    padded = np.concatenate([np.full(1, np.nan, np.float32), x.ravel()])
    inputs = [Placed(padded, offset=4)]
    return product(kernel, columns(name, m), inputs, y, n_rows, tiles, simdgroups, order)


def normed_gemv(name, m, x, weight, eps, order="random", tiles=1):
    y = np.full(len(m.w64), SENTINEL)
    kernel = f"gemv_{name}_norm_slices"
    return product(kernel, columns(name, m), [x, weight], y, len(y), tiles, 8, order, eps)


def swiglu(name, m, x, order="random", tiles=1, norm=None, eps=0.0):
    s = np.full(len(m.w64) // 2, SENTINEL)
    kernel = f"fused_gate_up_swiglu_{name}{'' if norm is None else '_norm'}_slices"
    inputs = [x] if norm is None else [x, norm]
    return product(kernel, columns(name, m), inputs, s, len(s), tiles, 8, order, eps)


def is_exact(name, m, x, **how):
    """Fail where a product is off by more than a GEMV may be."""
    r = reference.gemv(m.w64, x)
    y = gemv(name, m, x, **how)
    finite = same_non_finite(y, r)
    close_to(y[finite], r[finite], reference.gemv_bound(m.w64[finite], x, r[finite]))


@every_code
@every_order
def test_gemv_matches_the_definition_at_every_edge(name, order):
    # One block, fewer blocks than SIMD-groups, one in each of them and some in a few.
    least = 64 if name == "q2_g64" else 128
    for n_rows, k in ((16, least), (48, 3 * least), (112, 1024), (32, 1024 + least)):
        m, x = random_matrix(name, n_rows, k), activations(k)
        is_exact(name, m, x, order=order)
        tiles = min(2, n_rows // 16)
        is_exact(name, m, x, order=order, tiles=tiles, simdgroups=16)


@every_code
def test_gemv_of_zeros_is_zero(name):
    m = random_matrix(name, 16, 256)
    assert (gemv(name, m, np.zeros(256, np.float32)) == 0).all()


@every_code
def test_gemv_has_the_same_bits_for_every_number_of_tiles(name):
    # The last threadgroup of two or six tiles has rows of the one before it.
    m, x = random_matrix(name, 112, 1280), activations(1280)
    expected = gemv(name, m, x).view(np.uint32)
    for tiles in TILES[1:]:
        for order in ("forward", "reverse"):
            y = gemv(name, m, x, order=order, tiles=tiles)
            np.testing.assert_array_equal(y.view(np.uint32), expected)


@every_code
def test_gemv_of_several_vectors_is_that_of_each(name):
    m, x = random_matrix(name, 32, 384), activations(3 * 384).reshape(3, 384)
    y = gemv(name, m, x, tiles=2)
    for one, of in zip(y, x, strict=True):
        np.testing.assert_array_equal(one, gemv(name, m, of, tiles=2))


@every_code
@every_order
def test_gemv_residual_adds_once_to_what_is_there(name, order):
    m, x, start = random_matrix(name, 112, 384), activations(384), activations(112, 3)
    r = reference.gemv(m.w64, x)
    bound = reference.gemv_bound(m.w64, x, r) + 1e-7 * float(np.linalg.norm(start))
    for tiles in TILES:
        close_to(gemv(name, m, x, start, order, tiles), r + start, bound)


@every_code
def test_long_rows_with_a_mean_and_outliers_stay_within_the_bound(name):
    k = 12288
    m, outliers = random_matrix(name, 32, k), activations(k)
    outliers[[3, 700, 9000]] = [1e6, -3e6, 7e5]
    for x in (activations(k), activations(k) + np.float32(100), outliers):
        is_exact(name, m, x, tiles=2, simdgroups=16)


@every_code
@pytest.mark.parametrize("outlier", [300.0, 3e5, 3e9, 3e15, 3e30])
def test_an_outlier_under_codes_of_level_zero_takes_no_digit_of_the_others(name, outlier):
    k = 256
    w = 2 * np.random.default_rng(5).integers(0, 2, (16, k)) - 1
    x = activations(k)
    x[[5, 200]] = outlier
    if name != "q1_g128":
        w[:, [5, 200]] = 0
    is_exact(name, with_levels(name, w.astype(np.int8)), x)


@every_code
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 120), st.floats(0, 1))
def test_activations_of_many_magnitudes_stay_within_the_bound(name, seed, spread, zeros):
    rng = np.random.default_rng(seed)
    levels = 2 * rng.integers(0, 2, (16, 320)) - 1
    x = rng.standard_normal(320) * 2.0 ** rng.integers(-spread, 1, 320) * 2.0 ** (spread / 2)
    if name != "q1_g128":  # the larger half may meet codes of level 0 alone
        levels[:, (np.abs(x) > np.median(np.abs(x))) & (rng.random(320) < zeros)] = 0
    k = 320 if name == "q2_g64" else 256
    is_exact(name, with_levels(name, levels[:, :k].astype(np.int8)), x[:k].astype(np.float32))


def with_levels(name, levels):
    """Return the matrix with scales of 1/2 and the given levels."""
    q = quant.quantize(levels.astype(np.float32), FORMATS[name])
    m = matrix(set_scales(q, 0.5))
    np.testing.assert_array_equal(m.w64, levels * 0.5)
    return m


@every_code
@pytest.mark.parametrize("size", [2.0**-149, 2.0**-140, 2.0**-126, 1e-30, 2.0**-96, 1e30, 2.0**101])
def test_blocks_of_any_size_keep_their_accuracy(name, size):
    k = 512
    m = random_matrix(name, 16, k)
    x = np.sign(activations(k)) * np.float32(size)
    is_exact(name, m, x)
    x[:300] = activations(300)  # beside blocks of a common size
    is_exact(name, m, x)


@every_code
def test_subnormal_activations_beside_others_are_not_lost(name):
    k = 256
    levels = np.zeros((16, k), np.int8) if name != "q1_g128" else np.ones((16, k), np.int8)
    levels[:, 7] = 1
    x = np.zeros(k, np.float32)
    x[7], x[8] = 2.0**-140, 1.0
    m = with_levels(name, levels)
    y = gemv(name, m, x)
    np.testing.assert_array_equal(y, reference.gemv(m.w64, x).astype(np.float32))


@every_code
@every_order
@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan, 0.0, -0.0, 2.0**-24, 65504.0])
def test_scales_of_every_kind_follow_ieee(name, order, scale):
    k = 4 * block(FORMATS[name])
    q = random_weight(FORMATS[name], 16, k)
    n_blocks = q.data.size // formats.get(q.format).block_bytes
    scales = np.linspace(0.5, 1.5, n_blocks)
    scales[:: n_blocks // 3] = scale
    x = activations(k)
    # All codes alike as well: then infinities keep their sign.
    for fill in (None, 0x00, 0xAA):
        if fill is not None:
            q.data[:] = fill
            x = np.abs(x) + 1
        is_exact(name, matrix(set_scales(q, scales)), x, order=order)


@every_code
@every_order
def test_infinite_and_nan_activations_follow_ieee(name, order):
    k = 2 * block(FORMATS[name])
    m = random_matrix(name, 16, k)
    for odd in ({0: np.inf}, {k - 1: -np.inf}, {k // 2: np.nan}, {1: np.inf, k - 2: np.inf}):
        x = activations(k)
        x[list(odd)] = list(odd.values())
        is_exact(name, m, x, order=order)


@every_code
@every_order
@pytest.mark.parametrize(
    ("size", "eps"), [(1, 1e-6), (3, 0.25), (1e-30, 0.0), (1e-24, 1e-6), (1e30, 1e-6)]
)
def test_gemv_of_a_norm_matches_the_definition(name, order, size, eps):
    for n_rows, k in ((16, 128), (48, 128 * 11)):
        m, weight = random_matrix(name, n_rows, k), 1 + activations(k, 4) / 4
        x = activations(k) * np.float32(size)
        normed = reference.rmsnorm(x, weight, eps)
        r = reference.gemv(m.w64, normed)
        y = normed_gemv(name, m, x, weight, eps, order, tiles=2 if n_rows > 16 else 1)
        close_to(y, r, 2 * reference.gemv_bound(m.w64, normed, r))


@every_code
def test_gemv_of_a_norm_of_zeros_nan_and_infinity(name):
    m, weight = random_matrix(name, 16, 256), np.ones(256, np.float32)
    x = np.zeros(256, np.float32)
    assert (normed_gemv(name, m, x, weight, 1e-6) == 0).all()
    assert np.isnan(normed_gemv(name, m, x, weight, 0.0)).all()
    for odd in (np.nan, np.inf):
        x[77] = odd
        assert np.isnan(normed_gemv(name, m, x, weight, 1e-6)).all()


@every_code
@every_order
def test_gate_up_swiglu_matches_the_definition(name, order):
    for n_rows, k in ((16, 128), (48, 384), (112, 128 * 9)):
        m, x = random_matrix(name, 2 * n_rows, k), activations(k) / np.float32(8)
        expected = swiglu_with_bound(m.w64, x)
        for tiles in (1, 2) if n_rows > 16 else (1,):
            close_to(swiglu(name, m, x, order, tiles), *expected)


@every_code
@every_order
def test_gate_up_swiglu_with_odd_scales_follows_ieee(name, order):
    k = 128 * 17
    q = random_weight(FORMATS[name], 32, k)
    q.data[:] = 0xAA
    m, x = matrix(set_scales(q, np.inf)), np.abs(activations(k)) + 1
    same_non_finite(swiglu(name, m, x, order), reference.swiglu_gate_up(m.w64, x))


@every_code
@every_order
@pytest.mark.parametrize(("size", "eps"), [(1, 1e-6), (1e-30, 0.0), (1e30, 1e-6)])
def test_gate_up_swiglu_of_a_norm_matches_the_definition(name, order, size, eps):
    n_rows, k = 48, 128 * 11
    m, weight = random_matrix(name, 2 * n_rows, k), (1 + activations(k, 4) / 4) / np.float32(8)
    x = activations(k) * np.float32(size)
    expected, bound = swiglu_with_bound(m.w64, reference.rmsnorm(x, weight, eps))
    close_to(swiglu(name, m, x, order, 2, weight, eps), expected, 2 * bound)
