"""The other forms of a coded matrix times a vector: look-up by shuffle, and selection.

Each is held to what the default form is held to (test_shaders.py).
"""

from __future__ import annotations

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
from shader_products import FORM_ROWS, gemv, normed_gemv, normed_swiglu, swiglu
from shader_runs import every_order
from shader_weights import CODES, FORMATS, matrix, random_matrix

from oxibonsai import formats

every_form = pytest.mark.parametrize("form", [form for form in FORM_ROWS if form])
every_code = pytest.mark.parametrize("name", CODES)


@every_form
@every_code
@every_order
def test_every_tile_matches_the_definition_at_every_edge(name, order, form):
    # Ragged rows, one word of a row at the least, and more 16-byte loads than splits.
    least = block(FORMATS[name])
    for n_rows, k in ((1, least), (9, 3 * least), (70, 128 * 9), (33, 128 * 17)):
        m, x = random_matrix(name, n_rows, k), activations(k)
        r = reference.gemv(m.w64, x)
        first = gemv(name, m, x, order=order, form=form)
        close_to(first, r, reference.gemv_bound(m.w64, x, r))
        for rows, simdgroups, column in ((1, 8, True), (2, 3, False)):
            y = gemv(
                name,
                m,
                x,
                order=order,
                rows=rows,
                simdgroups=simdgroups,
                column=column,
                form=form,
            )
            np.testing.assert_array_equal(y.view(np.uint32), first.view(np.uint32))


@every_code
def test_a_look_up_by_shuffle_has_the_bits_of_one_in_memory(name):
    m, x = random_matrix(name, 70, 128 * 11), activations(128 * 11)
    weight = 1 + activations(128 * 11, 4) / 4
    for by in (
        lambda form: gemv(name, m, x, form=form),
        lambda form: normed_gemv(name, m, x, weight, 1e-6, form=form),
        lambda form: swiglu(name, m, x / np.float32(8), form=form),
    ):
        np.testing.assert_array_equal(by("shuffle").view(np.uint32), by("").view(np.uint32))


@every_form
@every_code
@every_order
def test_residual_adds_to_what_is_there(name, order, form):
    m, x, start = random_matrix(name, 45, 256), activations(256), activations(45, 3)
    r = reference.gemv(m.w64, x)
    y = gemv(name, m, x, start, order, form=form)
    close_to(y, r + start, reference.gemv_bound(m.w64, x, r) + 1e-7 * float(np.linalg.norm(start)))


@every_form
@every_code
@every_order
@pytest.mark.parametrize(("size", "eps"), [(3, 0.25), (1e-30, 0.0), (1e30, 1e-6)])
def test_a_norm_matches_the_definition(name, order, size, eps, form):
    n_rows, k = 36, 128 * 11
    m, weight = random_matrix(name, n_rows, k), (1 + activations(k, 4) / 4) / np.float32(8)
    x = activations(k) * np.float32(size)
    normed = reference.rmsnorm(x, weight, eps)
    r = reference.gemv(m.w64, normed)
    y = normed_gemv(name, m, x, weight, eps, order, form=form)
    close_to(y, r, 2 * reference.gemv_bound(m.w64, normed, r))
    expected, bound = swiglu_with_bound(m.w64, normed)
    for rows in (1, 4):
        y = normed_swiglu(name, m, x, weight, eps, order, rows, form=form)
        close_to(y, expected, 2 * bound)


@every_form
@every_code
@every_order
def test_gate_up_swiglu_matches_the_definition(name, order, form):
    for n_rows, k in ((1, block(FORMATS[name])), (45, 128 * 9)):
        m, x = random_matrix(name, 2 * n_rows, k), activations(k) / np.float32(8)
        first = swiglu(name, m, x, order, form=form)
        close_to(first, *swiglu_with_bound(m.w64, x))
        for rows in (1, 4):
            y = swiglu(name, m, x, order, rows, 3, column=True, form=form)
            np.testing.assert_array_equal(y.view(np.uint32), first.view(np.uint32))


@every_form
@every_code
def test_long_rows_with_a_mean_outliers_or_subnormals_stay_within_the_bound(name, form):
    k = 12288
    m = random_matrix(name, 40, k)
    outliers = activations(k)
    outliers[[3, 700, 9000]] = [1e6, -3e6, 7e5]
    tiny = activations(k) * np.float32(1e-41)
    for x in (activations(k) + np.float32(100), outliers, tiny, np.zeros(k, np.float32)):
        r = reference.gemv(m.w64, x)
        # A subnormal product is rounded to a multiple of 2^-149.
        bound = reference.gemv_bound(m.w64, x, r) + np.sqrt(40) * k * 2.0**-149
        close_to(gemv(name, m, x, mode="fast", form=form), r, bound)


@every_form
@every_code
@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan, -0.0, 2.0**-24, 65504.0])
def test_scales_of_every_kind_follow_ieee(name, scale, form):
    k = 4 * block(FORMATS[name])
    q = random_weight(FORMATS[name], 11, k)
    n_blocks = q.data.size // formats.get(q.format).block_bytes
    scales = np.linspace(0.5, 1.5, n_blocks)
    scales[:: n_blocks // 3] = scale
    # All codes alike as well: then infinities keep their sign.
    for fill in (None, 0xAA):
        if fill is not None:
            q.data[:] = fill
        x = activations(k) if fill is None else np.abs(activations(k)) + 1
        m = matrix(set_scales(q, scales))
        r = reference.gemv(m.w64, x)
        y = gemv(name, m, x, form=form)
        finite = same_non_finite(y, r)
        close_to(y[finite], r[finite], reference.gemv_bound(m.w64[finite], x, r[finite]))


@every_form
@every_code
def test_one_odd_scale_among_others_follows_ieee(name, form):
    # The lanes beside it still look up and select, and with a norm it meets the normalised vector.
    n_rows, k = 38, 128 * 9
    q = random_weight(FORMATS[name], n_rows, k)
    n_blocks = q.data.size // formats.get(q.format).block_bytes
    scales = np.full(n_blocks, 0.5)
    scales[n_blocks * 5 // n_rows + 1] = np.inf
    m, x = matrix(set_scales(q, scales)), activations(k) * np.float32(1e30)
    r = reference.gemv(m.w64, x)
    finite = same_non_finite(gemv(name, m, x, form=form), r)
    assert finite.sum() == n_rows - 1
    weight = 1 + activations(k, 4) / 4
    r = reference.gemv(m.w64, reference.rmsnorm(x, weight, 1e-6))
    same_non_finite(normed_gemv(name, m, x, weight, 1e-6, form=form), r)


@every_form
@every_code
def test_infinite_and_nan_activations_follow_ieee(name, form):
    k = 2 * block(FORMATS[name])
    m = random_matrix(name, 9, k)
    for odd in ({0: np.inf}, {k - 1: -np.inf}, {k // 2: np.nan}, {1: np.inf, k - 2: np.inf}):
        x = activations(k)
        x[list(odd)] = list(odd.values())
        r = reference.gemv(m.w64, x)
        y = gemv(name, m, x, form=form)
        finite = same_non_finite(y, r)
        close_to(y[finite], r[finite], reference.gemv_bound(m.w64[finite], x, r[finite]))
