"""Products of recordings in half: which they are, and how far from float64."""

from __future__ import annotations

import re

import numpy as np
import pytest
import reference
from cases import (
    activations,
    close_to,
    contents,
    dense,
    random_weight,
    relative_error,
    upload,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_variants import each_variant
from op_runs import SENTINEL

from oxibonsai import formats, metal

KERNEL = re.compile(r"^\d+ (?!dispatch)(\w+)", re.M)
CODED = ("Q1_0", "TQ2_0_g128", "Q2_0")  # one file format for each device format
FEWEST = 64  # vectors of a product in half
EPS = 1e-6
every_code = pytest.mark.parametrize("name", CODED)


@pytest.fixture
def halves(graph):
    """The graph of a device with products in half."""
    try:
        graph.commands(activations="half").close()
    except metal.EncodingError:
        pytest.skip("no half products on this device")
    return graph


def products(graph, handle, x, y, *, swiglu=False, activations="half", norm=None, **options):
    """Return what a product makes of y [n_vectors, n], and the kernels that it took."""
    device = graph.device
    with (
        device.upload(x) as bx,
        device.upload(y) as by,
        graph.commands(activations=activations) as commands,
    ):
        if norm is not None:
            options |= {"norm": device.upload(norm), "eps": EPS}
        op = commands.gate_up_swiglu if swiglu else commands.gemv
        op(handle, bx, by, n_vectors=len(x), **options)
        kernels = KERNEL.findall(commands.describe())
        commands.replay()
        return contents(by).reshape(y.shape), kernels


def check(got, w64, x, start=0.0):
    """Hold each vector to 1e-3, in the terms of the bound of a GEMV."""
    for y, vector, before in zip(got, x, np.broadcast_to(start, got.shape), strict=True):
        r = reference.gemv(w64, vector)
        bound = 1000 * reference.gemv_bound(w64, vector, r)
        close_to(y, r + before, bound + 1e-7 * np.linalg.norm(before))


@every_code
@pytest.mark.parametrize("n_rows", [1, 130])
def test_every_variant_is_within_a_thousandth(halves, name, n_rows):
    k, n = 512, FEWEST + 3
    q, x = random_weight(name, n_rows, k), activations(n * k).reshape(n, k)
    w64, start = dense(q), activations(n * n_rows, 3).reshape(n, n_rows)
    norm = 1 + activations(k, 2) / 4
    product = ("gemm_half", formats.get(name).device_format, n_rows, k)
    with upload(halves, q) as handle:
        for _ in each_variant(halves.device, *product, n_vectors=n):
            y, kernels = products(halves, handle, x, np.full((n, n_rows), SENTINEL))
            assert [kernel.rpartition("_")[2] for kernel in kernels] == ["half", "half"]
            check(y, w64, x)
            y, _ = products(halves, handle, x, start, residual=True)
            check(y, w64, x, start)
            y, _ = products(halves, handle, x, np.full((n, n_rows), SENTINEL), norm=norm)
            check(y, w64, reference.rmsnorm(x, norm, EPS))


@every_code
def test_every_variant_of_gate_up_swiglu_is_within_a_thousandth(halves, name):
    k, n, n_rows = 256, FEWEST, 140
    q, x = random_weight(name, n_rows, k), activations(n * k).reshape(n, k)
    product = ("gemm_half", formats.get(name).device_format, n_rows, k)
    with upload(halves, q) as handle:
        for _ in each_variant(halves.device, *product, n_vectors=n):
            s, kernels = products(
                halves, handle, x, np.full((n, n_rows // 2), SENTINEL), swiglu=True
            )
            assert kernels[-1].endswith("_half")
            for got, vector in zip(s, x, strict=True):
                gate, up = np.split(reference.gemv(dense(q), vector), 2)
                assert relative_error(got, reference.swiglu(gate, up)) < 1e-3


@pytest.mark.parametrize("name", [*CODED, "F16", "Q8_0"])
def test_few_vectors_and_dense_matrices_stay_exact(halves, name):
    k = 256
    for n in (1, FEWEST - 1) if name in CODED else (FEWEST,):
        q, x = random_weight(name, 40, k), activations(n * k).reshape(n, k)
        with upload(halves, q) as handle:
            y, kernels = products(halves, handle, x, np.full((n, 40), SENTINEL))
        assert not kernels[-1].endswith("_half")
        for got, vector in zip(y, x, strict=True):
            r = reference.gemv(dense(q), vector)
            close_to(got, r, reference.gemv_bound(dense(q), vector, r))


def test_deterministic_recordings_are_not_in_half(halves):
    q, x = random_weight("Q1_0", 40, 256), activations(FEWEST * 256).reshape(FEWEST, 256)
    device = halves.device
    with (
        upload(halves, q) as handle,
        device.upload(x) as bx,
        device.buffer(4 * 40 * FEWEST) as by,
    ):

        def described(**options):
            with halves.commands(**options) as commands:
                commands.gemv(handle, bx, by, n_vectors=FEWEST)
                return commands.describe()

        exact = described(deterministic=True)
        assert described(activations="half", deterministic=True) == exact
        assert described(activations="half") != described()


def test_a_device_without_half_products_refuses_a_recording_in_half(device):
    if device.driver in ("cuda", "metal"):
        device.commands(activations="half").close()
        return
    with pytest.raises(metal.EncodingError, match=r"do not take half.*float32, or take a GPU"):
        device.commands(activations="half")


@every_code
@settings(max_examples=10)
@given(
    n_rows=st.integers(1, 200),
    blocks=st.integers(1, 6),
    n=st.integers(FEWEST, FEWEST + 80),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_any_shape_is_within_a_thousandth(opened_device, name, n_rows, blocks, n, scale):
    k = 128 * blocks
    with metal.MetalGraph(opened_device) as graph:
        try:
            graph.commands(activations="half").close()
        except metal.EncodingError:
            pytest.skip("no half products on this device")
        q = random_weight(name, n_rows, k)
        x = (activations(n * k) * np.float32(scale)).reshape(n, k)
        with upload(graph, q) as handle:
            y, _ = products(graph, handle, x, np.full((n, n_rows), SENTINEL))
        w64 = dense(q)
        for got, vector in zip(y, x, strict=True):
            # Of few rows the norm of the result may be small beside that of the terms.
            r, terms = reference.gemv(w64, vector), np.abs(w64) @ np.abs(vector.astype(np.float64))
            assert np.linalg.norm(got - r) <= 2.0**-11 * np.linalg.norm(terms)
