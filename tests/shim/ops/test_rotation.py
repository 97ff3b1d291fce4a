"""The Walsh-Hadamard transform of activations, and copies, on every device."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from cases import relative_error
from hypothesis import given
from hypothesis import strategies as st
from op_runs import SENTINEL, run
from recurrent_runs import random, same_bits, sized

from oxibonsai.metal import EncodingError


def signs_of(k, seed=1):
    return np.where(random(k, seed=seed) < 0, -1, 1).astype(np.float32)


def hadamard(device, x, signs, block, norm=None, **more):
    """Return y [n, k], after a check of what is left alone."""
    n, k = x.shape
    out = np.full((n + 1, k), SENTINEL)

    def record(c, bx, bs, by, *norms):
        c.hadamard(
            bx, bs, by, k, block=block, n_vectors=n, norm=norms[0] if norms else None, **more
        )

    after = run(device, record, x, signs, out, *([] if norm is None else [norm]))
    assert same_bits(after[0], x)
    assert (after[2][-1] == SENTINEL).all()
    return after[2][:-1]


def close(y, expected):
    for row, right in zip(y, expected, strict=True):
        assert relative_error(row, right) < 1e-6


def test_the_definition_by_hand():
    h = reference.hadamard_matrix(4) * 2
    assert h.tolist() == [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    x = np.arange(12)
    moved = reference.rotate(x, np.ones(12), 1, head_size=2, n_groups=3)
    assert moved.tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]  # head r * 2 + j to j * 3 + r


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize(("blocks", "n_vectors"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("inverse", [False, True])
def test_the_transform_matches_the_definition(device, block, blocks, n_vectors, inverse):
    k = block * blocks
    x, signs = random(n_vectors, k), signs_of(k)
    y = hadamard(device, x, signs, block, inverse=inverse)
    close(y, reference.rotate(x, signs, block, inverse=inverse))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("place", [0, 1, 37, 63])
def test_one_element_becomes_a_row_of_the_matrix_exactly(device, place, inverse):
    x, signs = np.zeros((1, 128), np.float32), signs_of(128)
    x[0, 64 + place] = 3
    y = hadamard(device, x, signs, 64, inverse=inverse)
    np.testing.assert_array_equal(y, reference.rotate(x, signs, 64, inverse=inverse))


def test_the_inverse_gives_back_the_bits_of_whole_numbers(device):
    x = np.random.default_rng(0).integers(-99, 99, (2, 512)).astype(np.float32)
    signs = signs_of(512)
    y = hadamard(device, x, signs, 256)
    np.testing.assert_array_equal(hadamard(device, y, signs, 256, inverse=True), x)


@pytest.mark.parametrize(("head_size", "n_groups"), [(128, 3), (16, 2), (1, 6), (64, 12), (7, 1)])
@pytest.mark.parametrize("normed", [False, True])
def test_heads_move_before_the_signs(device, head_size, n_groups, normed):
    x, signs = random(2, 768), signs_of(768)
    norm = 1 + random(768, seed=3) / 4 if normed else None
    heads = {"head_size": head_size, "n_groups": n_groups}
    y = hadamard(device, x, signs, 256, norm, **heads)
    before = reference.rmsnorm(x, norm, 1e-6) if normed else x
    close(y, reference.rotate(before, signs, 256, **heads))


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.25])
@pytest.mark.parametrize(("k", "block"), [(16, 16), (640, 128), (5120, 1024)])
def test_the_norm_is_that_of_the_whole_vector(device, k, block, eps):
    x, signs, norm = random(3, k) * np.float32(2), signs_of(k), random(k, seed=3)
    x[1, : k // 2] *= np.float32(50)
    y = hadamard(device, x, signs, block, norm, eps=eps)
    close(y, reference.rotate(reference.rmsnorm(x, norm, eps), signs, block))


@pytest.mark.parametrize("size", [1e-44, 1e-40, 1e-38, 1e-30, 1e30, 1e38, 3e38])
@pytest.mark.parametrize(("k", "block"), [(48, 16), (640, 128)])
def test_a_norm_of_large_and_of_small_vectors(device, k, block, size):
    x, signs, norm = sized(random(2, k), size), signs_of(k), random(k, seed=3)
    y = hadamard(device, x, signs, block, norm, eps=0.0)
    close(y, reference.rotate(reference.rmsnorm(x, norm, 0.0), signs, block))


@pytest.mark.parametrize("inverse", [False, True])
def test_the_transform_in_place(device, inverse):
    x, signs = random(3, 384), signs_of(384)

    def record(c, bx, bs):
        c.hadamard(bx, bs, bx, 384, block=128, n_vectors=3, inverse=inverse)

    y = run(device, record, x, signs)[0]
    assert same_bits(y, hadamard(device, x, signs, 128, inverse=inverse))


def test_a_vector_has_the_bits_that_it_has_alone(device):
    x, signs, norm = random(5, 512), signs_of(512), random(512, seed=3)
    more = {"head_size": 64, "n_groups": 2}
    y = hadamard(device, x, signs, 128, norm, **more)
    for i in range(5):
        assert same_bits(hadamard(device, x[i : i + 1], signs, 128, norm, **more), y[i : i + 1])


def test_zeros_infinities_and_nan_stay_in_their_block(device):
    x, signs = random(2, 256), signs_of(256)
    x[0, :64], x[0, 70], x[0, 130], x[1, 3], x[1, 200] = 0, np.nan, np.inf, 1e-41, -3e38
    for inverse in (False, True):
        y = hadamard(device, x, signs, 64, inverse=inverse)
        expected = reference.rotate(x, signs, 64, inverse=inverse)
        assert (y[0, :64] == 0).all()
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_subnormal_elements_stay_small(device):
    x, signs = random(1, 64) * np.float32(1e-40), signs_of(64)
    y = hadamard(device, x, signs, 64)
    np.testing.assert_allclose(y, reference.rotate(x, signs, 64), rtol=0, atol=2e-38)


@given(
    log_block=st.integers(4, 8), blocks=st.integers(1, 5), n_vectors=st.integers(1, 4),
    normed=st.booleans(), inverse=st.booleans(), seed=st.integers(0, 2**31), data=st.data(),
)  # fmt: skip
def test_any_shape_matches_the_definition(
    device, log_block, blocks, n_vectors, normed, inverse, seed, data
):
    block = 2**log_block
    k = block * blocks
    x, signs = random(n_vectors, k, seed=seed), signs_of(k, seed + 1)
    norm = random(k, seed=seed + 2) if normed and not inverse else None
    n_groups = data.draw(st.sampled_from([1, 2, 4, *([blocks] if blocks > 1 else [])]))
    heads = {} if inverse else {"head_size": k // n_groups // 4 or 1, "n_groups": n_groups}
    y = hadamard(device, x, signs, block, norm, inverse=inverse, **heads)
    before = x if norm is None else reference.rmsnorm(x, norm, 1e-6)
    close(y, reference.rotate(before, signs, block, inverse=inverse, **heads))


def test_operands_may_begin_anywhere_and_be_weight_handles(device, graph):
    x, signs, norm = random(1, 64), signs_of(64), random(64, seed=3)
    moved = np.concatenate([np.full(3, SENTINEL), x.ravel()])
    with graph.upload_f32_weight(signs) as s, graph.upload_f32_weight(norm) as n:

        def record(c, bx, by):
            c.hadamard((bx, 12), s, (by, 12), 64, block=32, norm=n)

        y = run(device, record, moved, np.full_like(moved, SENTINEL))[1]
    assert (y[:3] == SENTINEL).all()
    close(y[None, 3:], reference.rotate(reference.rmsnorm(x, norm, 1e-6), signs, 32))


# Copies


@pytest.mark.parametrize("n", [1, 3, 4095, 4096, 4097, 10000, 70001])
def test_a_copy_keeps_every_bit(device, n):
    words = np.random.default_rng(n).integers(0, 2**32, n, np.uint32)
    words[: min(n, 3)] = [0x7FC01234, 0xFF812345, 0x00000001][: min(n, 3)]  # NaN, NaN, subnormal
    out = np.full(n + 5, 7, np.uint32)
    source, target = run(device, lambda c, bx, by: c.copy(bx, by, n), words, out)
    np.testing.assert_array_equal(source, words)
    np.testing.assert_array_equal(target[:n], words)
    assert (target[n:] == 7).all()


def test_a_copy_within_a_buffer(device):
    words = np.arange(30, dtype=np.uint32)
    (after,) = run(device, lambda c, b: c.copy((b, 4), (b, 60), 14), words)
    expected = words.copy()
    expected[15:29] = words[1:15]
    np.testing.assert_array_equal(after, expected)


# Errors

GOOD = {"k": 96, "block": 32, "n_vectors": 2}
WRONG = [
    ({"k": 0}, r"k = 0 must lie in 1\.\."),
    ({"k": 2**31}, r"k = 2147483648 must lie in 1\.\."),
    ({"n_vectors": 0}, r"n_vectors = 0 must lie in 1\.\."),
    ({"n_vectors": 2**31}, r"n_vectors = 2147483648 must lie in 1\.\."),
    ({"block": 8}, r"block = 8 must be a power of two in 16\.\.4096"),
    ({"block": 8192}, r"block = 8192 must be a power of two in 16\.\.4096"),
    ({"block": 48}, r"block = 48 must be a power of two in 16\.\.4096"),
    ({"block": 0}, r"block = 0 must be a power of two in 16\.\.4096"),
    ({"block": 64}, "k = 96 must be a multiple of block = 64"),
    ({"n_groups": 0}, r"n_groups = 0 must lie in 1\.\.96"),
    ({"n_groups": 97}, r"n_groups = 97 must lie in 1\.\.96"),
    ({"n_groups": 2}, "k = 96 must be a multiple of n_groups = 2 times head_size = 0"),
    ({"n_groups": 5, "head_size": 4}, "k = 96 .* of n_groups = 5 times head_size = 4"),
    ({"n_groups": 2, "head_size": 2**31}, "k = 96 must be a multiple of n_groups = 2 times"),
    ({"n_groups": 2, "head_size": 4, "inverse": True}, "the inverse takes neither a norm nor"),
    ({"n_vectors": 3}, "input too short: need 1152 bytes, got 768"),
    ({"k": 192, "n_vectors": 1}, "signs too short: need 768 bytes, got 384"),
]  # fmt: skip


@pytest.fixture
def operands(device):
    buffers = {name: device.buffer(n) for name, n in (("x", 768), ("signs", 384), ("y", 768))}
    yield buffers
    for buffer in buffers.values():
        buffer.close()


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_shape_is_refused(device, operands, change, message):
    with device.commands() as commands:
        commands.hadamard(**operands, **GOOD)
        with pytest.raises(EncodingError, match=message):
            commands.hadamard(**operands, **{**GOOD, **change})
        assert len(commands) == 1


@pytest.mark.parametrize("eps", [-1e-6, math.nan, math.inf])
def test_a_wrong_norm_is_refused(device, operands, eps):
    with device.buffer(384) as norm, device.buffer(380) as short, device.commands() as commands:
        with pytest.raises(EncodingError, match=r"eps = .* must be finite and not negative"):
            commands.hadamard(**operands, **GOOD, norm=norm, eps=eps)
        with pytest.raises(EncodingError, match="norm too short: need 384 bytes, got 380"):
            commands.hadamard(**operands, **GOOD, norm=short)
        with pytest.raises(EncodingError, match="the inverse takes neither a norm nor groups"):
            commands.hadamard(**operands, **GOOD, norm=norm, inverse=True)
        with pytest.raises(EncodingError, match="norm and output overlap"):
            commands.hadamard(**operands, **GOOD, norm=operands["y"])
        assert len(commands) == 0
        commands.hadamard(**operands, **GOOD, eps=eps)  # of no concern without one


def test_in_place_is_refused_where_a_block_needs_others(device, operands):
    with device.buffer(2048) as b, device.buffer(384) as norm, device.commands() as commands:
        same = {**operands, "x": b, "y": b}
        commands.hadamard(**same, **GOOD)
        for more in ({"norm": norm}, {"n_groups": 3, "head_size": 16}):
            with pytest.raises(EncodingError, match="input and output overlap in one buffer"):
                commands.hadamard(**same, **GOOD, **more)
        with pytest.raises(EncodingError, match="input and output overlap in one buffer"):
            commands.hadamard(**{**same, "y": (b, 764)}, **GOOD)
        with pytest.raises(EncodingError, match="signs and output overlap in one buffer"):
            commands.hadamard(**{**same, "signs": (b, 764)}, **GOOD)
        commands.hadamard(**{**same, "signs": (b, 768), "y": (b, 1152)}, **GOOD)


@pytest.mark.parametrize("name", ["x", "signs", "y"])
def test_an_operand_that_is_none_or_starts_at_odd_bytes_is_refused(device, operands, name):
    with device.commands() as commands:
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            commands.hadamard(**{**operands, name: None}, **GOOD)
        with device.buffer(1024) as b, pytest.raises(EncodingError, match="starts at byte 2"):
            commands.hadamard(**{**operands, name: (b, 2)}, **GOOD)
        assert len(commands) == 0


def test_a_wrong_copy_is_refused(device):
    with device.buffer(64) as x, device.buffer(64) as y, device.commands() as commands:
        for call, message in [
            (lambda: commands.copy(x, y, 0), r"n = 0 must lie in 1\.\."),
            (lambda: commands.copy(x, y, 2**40 + 1), r"n = 1099511627777 must lie in 1\.\."),
            (lambda: commands.copy(x, y, 17), "copy: input too short: need 68 bytes, got 64"),
            (lambda: commands.copy(x, (y, 8), 16), "output too short: need 64 bytes, got 56"),
            (lambda: commands.copy((x, 2), y, 4), "input starts at byte 2"),
            (lambda: commands.copy(x, x, 16), "input and output overlap in one buffer"),
            (lambda: commands.copy(x, (x, 28), 8), "input and output overlap in one buffer"),
        ]:
            with pytest.raises(EncodingError, match=message):
                call()
        assert len(commands) == 0
        commands.copy(x, (x, 32), 8)
        with pytest.raises(TypeError, match="source"):
            commands.copy(None, y, 4)
