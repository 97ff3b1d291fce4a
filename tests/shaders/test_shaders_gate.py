"""The kernels that gate, rotate and copy vectors, each executed alone with every access checked."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import reference
from cases import activations, relative_error
from recurrent_runs import sized, spaced
from shader_runs import SENTINEL, every_order, run, tiles_for

EPS = 1e-6
SIZES = [1e-45, 1e-44, 1e-40, 1e38, 3e38]  # at the ends of float32

# The gate


def gate(x, z, activation, norm=None, eps=EPS, order="random", simdgroups=3, gap=0, in_place=False):
    n_tokens, n_heads, head_dim = x.shape
    row = n_heads * head_dim
    args = struct.pack("<3Q", row + gap, row + 2 * gap, row + gap)
    args += struct.pack("<4I", n_heads, head_dim, n_tokens, activation == "silu")
    args += struct.pack("<fI", eps, norm is not None)
    x, z = spaced(x, row + gap), spaced(z, row + 2 * gap)
    y = x if in_place else np.full_like(x, SENTINEL)
    after = run(
        "gate",
        [x, z, x if norm is None else norm, y],
        args,
        groups=(tiles_for(n_heads, simdgroups), n_tokens),
        threads=32 * simdgroups,
        order=order,
    )[3]
    assert (after[:, row:] == SENTINEL).all()
    return after[:, :row].reshape(n_tokens, n_heads, head_dim)


def heads(*shape, seed=0):
    return activations(int(np.prod(shape)), seed).reshape(shape)


@every_order
@pytest.mark.parametrize("activation", ["sigmoid", "silu"])
@pytest.mark.parametrize("has_norm", [False, True])
def test_gate_matches_the_definition_at_every_edge(order, activation, has_norm):
    for head_dim in (1, 31, 32, 33, 128, 256):
        for n_heads in (1, 3, 4, 7):
            x, z = heads(2, n_heads, head_dim), 3 * heads(2, n_heads, head_dim, seed=1)
            norm = activations(head_dim, 2) if has_norm else None
            y = gate(x, z, activation, norm, order=order, gap=n_heads % 3)
            expected = reference.gate(x, z, activation, norm, EPS)
            np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-37)


@every_order
@pytest.mark.parametrize("has_norm", [False, True])
def test_gate_in_place(order, has_norm):
    x, z = heads(3, 5, 40), heads(3, 5, 40, seed=1)
    norm = activations(40, 2) if has_norm else None
    y = gate(x, z, "silu", norm, order=order, in_place=True)
    np.testing.assert_allclose(y, reference.gate(x, z, "silu", norm, EPS), rtol=2e-6)


@pytest.mark.parametrize("size", [*SIZES, 1e-38, 1e-30, 1e-13, 1e18, 1e25])
@pytest.mark.parametrize("eps", [0.0, EPS])
def test_gate_of_heads_whose_squares_leave_the_range(size, eps):
    x, z, norm = sized(heads(2, 2, 50), size), heads(2, 2, 50, seed=1), activations(50, 2)
    y = gate(x, z, "sigmoid", norm, eps)
    np.testing.assert_allclose(y, reference.gate(x, z, "sigmoid", norm, eps), rtol=2e-6, atol=1e-44)


@pytest.mark.parametrize("activation", ["sigmoid", "silu"])
def test_gate_of_large_numbers_is_their_limit(activation):
    z = np.array([[[90, -90, 1e4, -1e4, 3e38, -3e38, 0, -0.0]]], np.float32)
    y = gate(np.ones_like(z), z, activation)
    np.testing.assert_allclose(y, reference.gate(np.ones(8), z, activation), rtol=1e-5, atol=1e-37)


def test_gate_keeps_nan_and_infinity_in_their_head():
    x, z, norm = heads(1, 4, 33), heads(1, 4, 33, seed=1), np.ones(33, np.float32)
    x[0, 1, 5], x[0, 2, 6], z[0, 3, 7] = np.inf, np.nan, np.nan
    y = gate(x, z, "sigmoid", norm)
    expected = reference.gate(x, z, "sigmoid", norm, EPS)
    np.testing.assert_allclose(y, expected, rtol=2e-6)


# Rotations


def hadamard(
    x,
    signs,
    block,
    *,
    norm=None,
    eps=EPS,
    inverse=False,
    head_size=0,
    n_groups=1,
    order="random",
    threads=256,
    in_place=False,
):
    n_vectors, k = x.shape
    args = struct.pack("<6I", k, n_vectors, block, head_size or k, n_groups, inverse)
    args += struct.pack("<fI", eps, norm is not None)
    return run(
        "hadamard",
        [x, signs if norm is None else norm, signs, x if in_place else np.full_like(x, SENTINEL)],
        args,
        groups=(tiles_for(k, max(block, threads)), n_vectors),
        threads=threads,
        order=order,
    )[3]


def random_signs(k, seed=0):
    return np.random.default_rng([seed, k]).choice([-1, 1], k).astype(np.float32)


BLOCKS = [2**n for n in range(4, 13)]


def rotated(x, signs, block, norm=None, eps=EPS, **how):
    """Return the definition's result."""
    normed = x if norm is None else reference.rmsnorm(x, norm, eps)
    return reference.rotate(normed, signs, block, **how)


def check(y, expected):
    """Compare block by block of a vector as small as any: 12 additions round 12 times at most."""
    assert relative_error(y, expected) < 5e-7
    np.testing.assert_allclose(y, expected, atol=2e-6 * abs(expected).max())


@every_order
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("inverse", [False, True])
def test_hadamard_matches_the_definition_for_every_block(order, block, inverse):
    for blocks in (1, 3, 17) if block < 256 else (1, 2):
        k = blocks * block
        x, signs = activations(2 * k).reshape(2, k), random_signs(k)
        y = hadamard(x, signs, block, inverse=inverse, order=order)
        check(y, rotated(x, signs, block, inverse=inverse))


@every_order
@pytest.mark.parametrize("form", [(16, 32), (64, 32), (128, 64), (512, 32), (256, 128)])
def test_hadamard_takes_other_threadgroups(order, form):
    block, threads = form
    k = 3 * block
    x, signs = activations(2 * k).reshape(2, k), random_signs(k)
    y = hadamard(x, signs, block, order=order, threads=threads)
    check(y, rotated(x, signs, block))


@pytest.mark.parametrize("block", BLOCKS)
def test_hadamard_of_unit_vectors_is_the_matrix(block):
    ones = np.ones(block, np.float32)
    at = [0, 1, block // 2, block - 1]
    x = np.zeros((4, block), np.float32)
    x[range(4), at] = 1
    y = hadamard(x, ones, block)
    np.testing.assert_array_equal(y, reference.hadamard_matrix(block)[at].astype(np.float32))


@every_order
@pytest.mark.parametrize(("k", "block"), [(48, 16), (1024, 128), (1024, 512)])
def test_hadamard_in_place_and_back(order, k, block):
    x, signs = activations(2 * k).reshape(2, k), random_signs(k)
    y = hadamard(x, signs, block, in_place=True, order=order)
    np.testing.assert_array_equal(y, hadamard(x, signs, block))
    back = hadamard(y, signs, block, inverse=True, in_place=True, order=order)
    np.testing.assert_allclose(back, x, atol=2e-6)


@every_order
@pytest.mark.parametrize(("k", "block"), [(48, 16), (768, 128), (1536, 512), (4096, 4096)])
def test_hadamard_of_a_norm_matches_the_definition(order, k, block):
    x, norm = activations(2 * k).reshape(2, k), activations(k, 1)
    signs = random_signs(k)
    y = hadamard(x, signs, block, norm=norm, order=order)
    check(y, rotated(x, signs, block, norm=norm))


@pytest.mark.parametrize(("k", "block"), [(48, 16), (1536, 512)])
@pytest.mark.parametrize("size", [*SIZES, 1e-30, 1e-38, 1e30])
@pytest.mark.parametrize("eps", [0.0, EPS])
def test_hadamard_of_vectors_whose_squares_leave_the_range(k, block, size, eps):
    x, norm = sized(activations(2 * k).reshape(2, k), size), activations(k, 1)
    signs = random_signs(k)
    y = hadamard(x, signs, block, norm=norm, eps=eps)
    expected = rotated(x, signs, block, norm=norm, eps=eps)
    if abs(expected).max() > 1e-36:
        check(y, expected)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * abs(expected).max() + 1e-43)


@every_order
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(("head_size", "n_groups", "each"), [(32, 3, 4), (8, 2, 16), (16, 12, 2)])
def test_hadamard_permutes_heads(order, has_norm, head_size, n_groups, each):
    k = head_size * n_groups * each
    x, signs = activations(2 * k).reshape(2, k), random_signs(k)
    norm = activations(k, 1) if has_norm else None
    how = {"norm": norm, "head_size": head_size, "n_groups": n_groups}
    for block in (16, 128):
        y = hadamard(x, signs, block, order=order, **how)
        check(y, rotated(x, signs, block, **how))


def test_hadamard_keeps_infinities_and_nan_in_their_block():
    x, signs = activations(512).reshape(1, 512), random_signs(512)
    x[0, 3], x[0, 200] = np.inf, np.nan
    y = hadamard(x, signs, 64)
    finite = np.isfinite(y[0]).reshape(8, 64)
    assert finite.all(1).tolist() == [False, True, True, False, True, True, True, True]
    expected = rotated(x, signs, 64)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(y[0, :64], expected[0, :64])


# Copies


@every_order
@pytest.mark.parametrize("n", [1, 31, 255, 256, 257, 1000])
def test_copy_keeps_every_bit_for_any_grid(order, n):
    x = np.random.default_rng(n).integers(0, 2**32, n, np.uint32)
    x[0] = 0x7F800001  # a signalling NaN
    for groups, threads in ((1, 32), (3, 32), (1, 64)):
        y = np.zeros(n, np.uint32)
        args = struct.pack("<QQ", n, 0)
        after = run("copy", [x, y], args, groups=groups, threads=threads, order=order)
        np.testing.assert_array_equal(after[1], x)
