"""Every variant of the products' kernels against float64: a choice changes the speed alone."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import (
    DENSE_FORMATS,
    activations,
    block,
    close_to,
    contents,
    dense,
    random_weight,
    same_non_finite,
    swiglu_with_bound,
    upload,
)
from kernel_variants import chosen, each_variant
from op_runs import SENTINEL

from oxibonsai import formats

ROWS = (1, 33, 112, 130)  # one, and some that end inside a tile
EPS = 1e-6
CODED = ("Q1_0", "TQ2_0_g128", "Q2_0")  # one file format for each device format

every_format = pytest.mark.parametrize("name", [*CODED, *DENSE_FORMATS])


def on_device(name):
    return formats.get(name).device_format


def run(device, x, y, record):
    """Return y after `record(commands, x, y)`."""
    with device.commands() as commands, device.upload(x) as bx, device.upload(y) as by:
        record(commands, bx, by)
        commands.replay()
        return contents(by).reshape(y.shape)


@every_format
def test_every_variant_of_gemv_matches_the_definition(device, graph, name):
    k = 3 * block(name)
    x, norm = activations(k), 1 + activations(k, 2) / 4
    normed = reference.rmsnorm(x[None], norm, EPS)[0]
    for n_rows in ROWS:
        q = random_weight(name, n_rows, k)
        w64, y = dense(q), activations(n_rows, 3)
        with upload(graph, q) as handle, device.upload(norm) as weight:
            seen = set()
            for variant in each_variant(device, "gemv", on_device(name), n_rows, k):
                # Of a form with 1, 2 and 4 rows, every kernel once.
                form = variant.rpartition("-")[0]
                kinds = ((0, 0),) if form in seen else ((0, 0), (1, 0), (0, 1))
                seen.add(form)
                for to_norm, residual in kinds:
                    got = run(
                        device,
                        x,
                        y,
                        lambda c, a, b, by=(handle, weight if to_norm else None, residual): c.gemv(
                            by[0], a, b, norm=by[1], eps=EPS, residual=bool(by[2])
                        ),
                    )
                    x64 = normed if to_norm else x
                    r = reference.gemv(w64, x64)
                    bound = reference.gemv_bound(w64, x64, r) + 1e-6 * np.linalg.norm(r)
                    close_to(got, r + y if residual else r, bound + 1e-7 * np.linalg.norm(y))


@every_format
def test_every_variant_of_swiglu_matches_the_definition(device, graph, name):
    k = 3 * block(name)
    x = activations(k)
    for n_rows in ROWS:
        q = random_weight(name, 2 * n_rows, k)
        expected, bound = swiglu_with_bound(dense(q), x)
        with upload(graph, q) as handle:
            for _ in each_variant(device, "swiglu", on_device(name), 2 * n_rows, k):
                got = run(
                    device,
                    x,
                    np.full(n_rows, SENTINEL),
                    lambda c, a, b, by=handle: c.gate_up_swiglu(by, a, b),
                )
                close_to(got, expected, bound)


def check_vectors(device, graph, op, name, n_rows, n_vectors):
    """Hold every variant of a product of several vectors to the definition."""
    k = 2 * block(name)
    q, x = random_weight(name, n_rows, k), activations(n_vectors * k).reshape(n_vectors, k)
    w64, swiglu = dense(q), op == "swiglu_gemm"
    n_out = n_rows // 2 if swiglu else n_rows
    with upload(graph, q) as handle:
        for _ in each_variant(device, op, on_device(name), n_rows, k, n_vectors=n_vectors):
            got = run(
                device,
                x,
                np.full((n_vectors, n_out), SENTINEL),
                lambda c, a, b: (c.gate_up_swiglu if swiglu else c.gemv)(
                    handle, a, b, n_vectors=n_vectors
                ),
            )
            for vector, y in zip(x, got, strict=True):
                if swiglu:
                    close_to(y, *swiglu_with_bound(w64, vector))
                else:
                    r = reference.gemv(w64, vector)
                    close_to(y, r, reference.gemv_bound(w64, vector, r))


@pytest.mark.parametrize("n_vectors", [7, 9, 33])
@pytest.mark.parametrize("op", ["gemm", "swiglu_gemm"])
@pytest.mark.parametrize("name", DENSE_FORMATS)
def test_every_variant_of_a_dense_gemm_matches_the_definition(device, graph, name, op, n_vectors):
    for n_rows in (2, 66):
        check_vectors(device, graph, op, name, n_rows, n_vectors)


@pytest.mark.parametrize("n_vectors", [3, 9, 17])
@pytest.mark.parametrize("name", CODED)
def test_every_variant_of_a_product_of_halves_matches_the_definition(
    device, graph, name, n_vectors
):
    for n_rows in (1, 33, 130):
        check_vectors(device, graph, "gemm_halves", name, n_rows, n_vectors)


@pytest.mark.parametrize("odd", [np.inf, np.nan, 1e-42])
@pytest.mark.parametrize("name", CODED)
def test_every_variant_of_gemv_keeps_infinities_and_nan_in_their_place(device, graph, name, odd):
    n_rows, k = 48, 2 * block(name)
    q, x = random_weight(name, n_rows, k), activations(k)
    x[5] = odd
    w64 = dense(q)
    with np.errstate(invalid="ignore"):
        r = reference.gemv(w64, x)
    with upload(graph, q) as handle:
        for _ in each_variant(device, "gemv", on_device(name), n_rows, k):
            y = np.full(n_rows, SENTINEL)
            got = run(device, x, y, lambda c, a, b: c.gemv(handle, a, b))
            finite = same_non_finite(got, r)
            if finite.any():
                bound = reference.gemv_bound(w64[finite], x, r[finite])
                close_to(got[finite], r[finite], bound)


def test_a_weight_in_the_plain_layout_is_right_whatever_was_chosen(device, graph):
    q, x = random_weight("Q1_0", 48, 256), activations(256)
    w64 = dense(q)
    r = reference.gemv(w64, x)
    with upload(graph, q, plain=True) as handle:
        for _ in each_variant(device, "gemv", "q1_g128", 48, 256):
            y = np.full(48, SENTINEL)
            got = run(device, x, y, lambda c, a, b: c.gemv(handle, a, b, 48, 256))
            close_to(got, r, reference.gemv_bound(w64, x, r))


def test_deterministic_recordings_take_the_default(device, graph):
    q = random_weight("Q1_0", 130, 256)
    names = device.kernel_variants("gemv", "q1_g128", 130, 256)
    with upload(graph, q) as handle, device.buffer(1024) as x, device.buffer(1024) as y:

        def described(**options):
            with device.commands(**options) as commands:
                commands.gemv(handle, x, y)
                return commands.describe()

        default = described()
        descriptions = []
        for name in names:
            with chosen(device, "gemv", "q1_g128", 130, 256, name=name):
                descriptions.append(described())
                assert described(deterministic=True) == default
        assert descriptions[:1] in ([], [default])
        assert len(set(descriptions)) == len(names)
