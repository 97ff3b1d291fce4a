"""Matrix products of several vectors in shaders/, each run alone with every access checked."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import reference
from cases import activations, block, close_to, random_weight, same_non_finite, set_scales
from shader_runs import SENTINEL, Placed, every_order, run, tiles_for
from shader_weights import CODES, FORMATS, columns, every_format, matrix, random_matrix

from oxibonsai import formats

every_tile = pytest.mark.parametrize("eights", [1, 2, 4])


def gemm(name, m, x, start=None, order="random", eights=1, mode="check", stride=None, column=0):
    """Return what gemm, or from `start` gemm_residual, makes of y [n_vectors, stride]."""
    n_rows, k = m.w64.shape
    stride = n_rows if stride is None else stride
    kernel = f"gemm_{name}" if start is None else f"gemm_{name}_residual"
    # Of the last row of y there is no more than is written.
    size = (len(x) - 1) * stride + n_rows
    y = np.full(size, SENTINEL) if start is None else start.reshape(-1)
    padded = np.concatenate([np.full(1, np.nan, np.float32), x.reshape(-1)])
    result = run(
        kernel,
        [m.data, Placed(padded, offset=4), y],
        struct.pack("<QQIIII", m.codes_offset, stride, n_rows, k, len(x), column),
        groups=(tiles_for(n_rows, 64), tiles_for(len(x), 8 * eights)),
        threads=128,
        constants={0: eights},
        order=order,
        mode=mode,
    )[2]
    full = np.full(len(x) * stride, SENTINEL)
    full[:size] = result
    return full.reshape(len(x), stride)


def check(y, m, x, start=0.0):
    """Hold each vector's result to the bound of a GEMV."""
    for got, vector, before in zip(y, x, np.broadcast_to(start, y.shape), strict=True):
        r = reference.gemv(m.w64, vector)
        slack = 1e-7 * float(np.linalg.norm(before))
        close_to(got, r + before, reference.gemv_bound(m.w64, vector, r) + slack)


@every_format
@every_order
@every_tile
def test_gemm_matches_the_definition_at_every_edge(name, order, eights):
    least = block(FORMATS[name])
    ks = [least, 3 * least]
    if formats.get(FORMATS[name]).block_weights == 1:
        ks = [1, 31, 33, 130]
    for n_rows, k, n_vectors in (
        (1, ks[0], 2),
        (65, ks[-1], 8 * eights + 1),
        (64, ks[1 % len(ks)], 7),
    ):
        m, x = random_matrix(name, n_rows, k), activations(n_vectors * k).reshape(n_vectors, k)
        check(gemm(name, m, x, order=order, eights=eights), m, x)


@every_format
@every_order
def test_gemm_residual_adds_to_what_is_there(name, order):
    k = 2 * block(FORMATS[name])
    m, x = random_matrix(name, 13, k), activations(5 * k).reshape(5, k)
    start = activations(5 * 13, 3).reshape(5, 13)
    check(gemm(name, m, x, start, order), m, x, start)


@pytest.mark.parametrize("name", CODES)
def test_a_matrix_in_columns_gives_the_same_bits(name):
    m, x = random_matrix(name, 70, 384), activations(5 * 384).reshape(5, 384)
    plain, column = gemm(name, m, x), gemm(name, columns(name, m), x, column=70)
    np.testing.assert_array_equal(plain, column)


def test_rows_of_the_output_may_lie_apart():
    m, x = random_matrix("q1_g128", 13, 256), activations(5 * 256).reshape(5, 256)
    y = gemm("q1_g128", m, x, stride=20)
    check(y[:, :13], m, x)
    assert (y[:, 13:] == SENTINEL).all()


@pytest.mark.parametrize("name", FORMATS)
def test_long_rows_with_a_mean_and_outliers_stay_within_the_bound(name):
    k = 12288
    m = random_matrix(name, 16, k)
    outliers = activations(k)
    outliers[[3, 700, 9000]] = [1e6, -3e6, 7e5]
    x = np.stack([activations(k), activations(k) + np.float32(100), outliers])
    check(gemm(name, m, x, mode="fast"), m, x)


@pytest.mark.parametrize("name", [*CODES, "q8_0"])
@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan, 0.0, -0.0, 2.0**-24, 65504.0])
def test_scales_of_every_kind_follow_ieee_and_stay_in_their_row(name, scale):
    k = 2 * block(FORMATS[name])
    q = random_weight(FORMATS[name], 12, k)
    n_blocks = q.data.size // formats.get(q.format).block_bytes
    scales = np.linspace(0.5, 1.5, n_blocks)
    scales[:: n_blocks // 3] = scale
    m, x = matrix(set_scales(q, scales)), activations(3 * k).reshape(3, k)
    for got, vector in zip(gemm(name, m, x), x, strict=True):
        r = reference.gemv(m.w64, vector)
        finite = same_non_finite(got, r)
        close_to(got[finite], r[finite], reference.gemv_bound(m.w64[finite], vector, r[finite]))


@every_format
def test_infinite_and_nan_activations_stay_in_their_vector(name):
    k = 2 * block(FORMATS[name])
    m, x = random_matrix(name, 9, k), activations(6 * k).reshape(6, k)
    x[1, 0], x[3, k - 1], x[4, [1, k - 2]] = np.nan, -np.inf, np.inf
    for got, vector in zip(gemm(name, m, x), x, strict=True):
        r = reference.gemv(m.w64, vector)
        finite = same_non_finite(got, r)
        close_to(got[finite], r[finite], reference.gemv_bound(m.w64[finite], vector, r[finite]))


def swiglu(name, m, x, order="random", eights=1):
    n_rows, k = m.w64.shape[0] // 2, m.w64.shape[1]
    return run(
        f"fused_gate_up_swiglu_gemm_{name}",
        [m.data, x, np.full((len(x), n_rows), SENTINEL)],
        struct.pack("<QQIIII", m.codes_offset, n_rows, n_rows, k, len(x), 0),
        groups=(tiles_for(n_rows, 32), tiles_for(len(x), 8 * eights)),
        threads=128,
        constants={0: eights},
        order=order,
    )[2]


@every_format
@every_order
@every_tile
def test_gate_up_swiglu_of_several_vectors_matches_the_definition(name, order, eights):
    k = 2 * block(FORMATS[name])
    for n_rows, n_vectors in ((1, 2), (33, 8 * eights + 1)):
        m = random_matrix(name, 2 * n_rows, k)
        x = activations(n_vectors * k).reshape(n_vectors, k) / np.float32(8)
        for got, vector in zip(swiglu(name, m, x, order, eights), x, strict=True):
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
