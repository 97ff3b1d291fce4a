"""Caches of 8-bit keys and values on every device."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import activations, relative_error
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from op_runs import SENTINEL, Heads, run
from paged_runs import attention, caches_of, queries, states_of, store, text

from oxibonsai import metal

TINY = np.float32(1e-45)  # the smallest subnormal
N = 32
HEADS = Heads(2, 2, N, 70, 1, "q8")


def stored(device, op, rows, position=5):
    """Store rows [2, key-value heads, dim] as key and value; return what should be there and is."""
    qkv = np.concatenate([activations(2 * N).reshape(2, N), *rows])[None].astype(np.float32)
    expected = caches_of(HEADS, n_layers=3, fills=(0x5A, 0xA5))
    states, _ = states_of([position], [[]])
    _, after = store(device, op, HEADS, expected, qkv, states)
    for cache, part in zip(expected, rows, strict=True):
        cache.store(0, HEADS.layer, position, part)
    return [cache.raw for cache in expected], after


ROWS = {
    "ties go to even": np.array([255, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 254.5]) * 4,
    "zeros": [0, -0.0, 0, 0, -0.0, 0, 0, 0],
    "the largest is negative": [1, -2, 3, -100, 5, 99.9, -7, 8],
    "one element": [0, 0, 0, -1e-20, 0, 0, 0, 0],
    "the largest floats": [3.4028235e38, -3.4028235e38, 1e38, -1e37, 1, 0, -1e30, 2e38],
    "large floats whose sums are finite": np.array([255, 64, -1, 100, 0, 3, -50, 127]) * 1e35,
    "subnormal units": np.array([255, 64, -1, 100, 0, 3, -50, 127]) * (1 << 16) * TINY,
    "a unit that is coarse": np.array([190, -190, 150, 128, 127, -126, 1, 0]) * TINY,
    "a unit of zero": np.array([3, -3, 1, 0, 5, 7, 0, -1]) * TINY,
    "infinity": [1, 2, np.inf, 4, 5, 6, 7, 8],
    "minus infinity": [1, 2, -np.inf, 4, 5, 6, 7, 8],
    "nan": [np.nan, 2, 3, 4, 5, 6, 7, 8],
    "infinity and nan, last": [1, 2, 3, 4, 5, 6, np.inf, np.nan],
}


def placed(values, at):
    """Return a row with eight values from element `at` on."""
    row = np.zeros(N, np.float32)
    row[at : at + 8] = values
    return row


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("op", ["kv_store", "qkv_to_cache"])
@pytest.mark.parametrize("at", [0, N - 8])  # the last 16 have no low bits
def test_bytes_that_are_stored_equal_the_definition(device, op, name, at):
    # Position 0 of qkv_to_cache is turned by no angle. Each row is a key and a value once.
    row = placed(ROWS[name], at)
    other = activations(N)
    for rows in ([[row, other], [other, row]], [[other, row], [row, other]]):
        expected, after = stored(device, op, np.array(rows), 0)
        for got, e in zip(after, expected, strict=True):
            assert_same(got, e)


def assert_same(got, expected):
    """Compare caches byte for byte."""
    np.testing.assert_array_equal(got, expected)


ANY = hnp.arrays(np.float32, (2, 2, N), elements=st.floats(width=32, allow_subnormal=True))
ORDINARY = hnp.arrays(np.float32, (2, 2, N), elements=st.floats(-100, 100, width=32))


@given(rows=st.one_of(ANY, ORDINARY), position=st.sampled_from([0, 31, 69]))
def test_bytes_of_any_floats_equal_the_definition(device, rows, position):
    expected, after = stored(device, "kv_store", rows, position)
    for got, e in zip(after, expected, strict=True):
        assert_same(got, e)


@pytest.mark.parametrize("shape", [(4, 2, 64), (6, 2, 128), (3, 1, 32), (2, 2, 96), (1, 1, 512)])
def test_keys_are_rounded_after_they_are_turned(device, shape):
    heads = Heads(*shape, 9, 1, "q8")
    qkv = activations(3 * heads.n_qkv * heads.head_dim).reshape(3, heads.n_qkv, -1)
    states, _ = states_of([5], [[]])
    # What a cache of float32 holds is what a cache of q8 rounds.
    exact = caches_of(heads._replace(kv_dtype="f32"), n_layers=3)
    left, raw = store(device, "qkv_to_cache", heads._replace(kv_dtype="f32"), exact, qkv, states)
    expected = caches_of(heads, n_layers=3)
    same, after = store(device, "qkv_to_cache", heads, expected, qkv, states)
    np.testing.assert_array_equal(same[:, : heads.n_heads], left[:, : heads.n_heads])
    for i in range(2):
        exact[i].raw[:] = raw[i]
        for position in range(5, 8):
            expected[i].store(0, 1, position, exact[i].elements[0, 1, :, position])
        np.testing.assert_array_equal(after[i], expected[i].raw)


def attended(device, heads, rows, qkv, first=None, **options):
    """Attend to keys and values, n_tokens the last of them."""
    caches = caches_of(heads)
    for cache, part in zip(caches, rows, strict=True):
        cache.write([0], heads.layer, part)
    states, _ = states_of([len(rows[0]) - len(qkv) if first is None else first], [[]])
    return attention(device, heads, caches, qkv, states, **options)


@pytest.mark.parametrize("shape", [(4, 2, 64), (6, 2, 128), (3, 1, 32), (2, 2, 96), (1, 1, 512)])
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_attention_is_that_of_the_values_that_are_held(device, shape, n_tokens):
    heads = Heads(*shape, 301, 2, "q8")
    for length in (5, 33, 64, 301):
        rows, qkv = text(heads, length), queries(heads, n_tokens)
        expected = reference.attention(qkv[:, : heads.n_heads], *rows)
        assert relative_error(attended(device, heads, rows, qkv), expected) < 1e-6


@st.composite
def problems(draw):
    kv_heads, ratio = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    head_dim, length = 32 * draw(st.integers(1, 5)), draw(st.integers(1, 200))
    heads = Heads(kv_heads * ratio, kv_heads, head_dim, length + draw(st.integers(0, 40)))
    return heads._replace(kv_dtype="q8"), length, draw(st.integers(1, min(length, 6)))


@given(problem=problems(), seed=st.integers(0, 99))
def test_attention_of_any_shape_is_that_of_the_values_that_are_held(device, problem, seed):
    heads, length, n_tokens = problem
    rows, qkv = text(heads, length, seed), queries(heads, n_tokens, seed)
    expected = reference.attention(qkv[:, : heads.n_heads], *rows)
    assert relative_error(attended(device, heads, rows, qkv), expected) < 1e-6


def test_attention_over_8_bits_is_close_to_that_of_what_was_rounded(device):
    # Half a step of 255 to the largest of a head, in keys and in values; a whole one in a few.
    heads = Heads(8, 2, 128, 500, 0, "q8")
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((2, 500, 2, 128)).astype(np.float32)
    qkv = queries(heads, 1)
    expected = reference.attention(qkv[:, :8], *rows)
    error = relative_error(attended(device, heads, rows, qkv), expected)
    step = np.abs(rows).max(axis=-1).mean() / 255
    assert 1e-4 < error < step * 2


def test_units_of_any_size_are_exact(device):
    heads = Heads(2, 2, 32, 40, 0, "q8")
    rows, qkv = text(heads, 40), queries(heads, 1)
    keys, values = rows
    sizes = np.float32(2.0) ** np.arange(-20, 20)
    rows = np.stack([keys * sizes[:, None, None] / 2**18, values * sizes[::-1, None, None]])
    expected = reference.attention(qkv[:, :2], *rows)
    assert relative_error(attended(device, heads, rows, qkv), expected) < 1e-6


@pytest.mark.parametrize("kind", [0, 1])
def test_a_head_with_a_unit_of_nan_is_nan_where_it_is_seen(device, kind):
    heads = Heads(4, 2, 32, 100, 0, "q8")
    rows, qkv = text(heads, 80), queries(heads, 4)
    expected = reference.attention(qkv[:, :4], *rows)
    rows[kind, 77, 1, 3] = np.inf
    y = attended(device, heads, rows, qkv)
    assert relative_error(y[:, :2], expected[:, :2]) < 1e-6
    assert relative_error(y[0, 2:], expected[0, 2:]) < 1e-6  # token 76
    assert np.isnan(y[1:, 2:]).all()


def test_what_was_never_stored_is_not_read(device):
    # Beside the places of the sequence everything is NaN: in its layer, its head and its block.
    heads = Heads(4, 2, 32, 100, 1, "q8")
    rows, qkv = text(heads, 35), queries(heads, 1)
    y = attended(device, heads, rows, qkv)
    assert relative_error(y, reference.attention(qkv[:, :4], *rows)) < 1e-6


@pytest.mark.parametrize("place", [0, 40, 127])
def test_an_element_far_larger_than_the_others_leaves_them_their_accuracy(device, place):
    # A key is spread over its row; its unit is that of the norm, not of the largest element.
    heads = Heads(4, 1, 128, 64, 0, "q8")
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((2, 64, 1, 128)).astype(np.float32)
    plain = rows.copy()
    rows[0, :, :, place] = 20
    qkv = queries(heads, 1)
    qkv[:, :, place] = 0
    errors = []
    for each in (plain, rows):
        expected = reference.attention(qkv[:, :4], *each)
        errors.append(relative_error(attended(device, heads, each, qkv), expected))
    assert errors[1] < 3 * errors[0]


@pytest.mark.parametrize("shape", [(4, 1, 128), (2, 2, 128), (2, 1, 96)])
def test_bits_do_not_depend_on_where_the_caches_lie(device, shape):
    heads = Heads(*shape, 301, 0, "q8")
    rows, qkv = text(heads, 301), queries(heads, 3)
    caches = caches_of(heads)
    for cache, part in zip(caches, rows, strict=True):
        cache.write([0], 0, part)
    states, _ = states_of([298], [[]])
    expected = attention(device, heads, caches, qkv, states)
    for start in (4, 8, 16):

        def record(commands, qkv_, k, v, state, out, start=start):
            commands.attention(
                qkv_, (k, start), (v, 16), state, out, n_tokens=len(qkv), **heads.shape
            )

        moved = [
            np.concatenate([np.full(by, 0xFF, np.uint8), np.ravel(cache.raw).view(np.uint8)])
            for by, cache in zip((start, 16), caches, strict=True)
        ]
        out = np.full((len(qkv), heads.n_heads, heads.head_dim), SENTINEL)
        y = run(device, record, qkv, *moved, states, out)[4]
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("head_dim", [16, 36, 80])
def test_a_head_that_is_no_multiple_of_32_is_refused(device, head_dim):
    heads = Heads(2, 1, head_dim, 64, 0, "q8")
    message = f"head_dim = {head_dim} must be a multiple of 32 for caches of q8: use f16"
    with device.commands() as c:
        qkv = device.upload(np.zeros((1, heads.n_qkv, head_dim), np.float32))
        k, v = (device.upload(np.zeros(2 * 64 * head_dim, np.int8)) for _ in range(2))
        rope, out = (device.upload(np.zeros((64, heads.n_qkv * head_dim))) for _ in range(2))
        state = device.upload(np.zeros(4, np.uint32))
        given = {"n_tokens": 1, **heads.shape}
        for record in (
            lambda: c.kv_store(qkv, k, v, state, **given),
            lambda: c.qkv_to_cache(qkv, None, None, rope, k, v, state, **given),
            lambda: c.attention(qkv, k, v, state, out, **given),
        ):
            with pytest.raises(metal.EncodingError, match=message):
                record()
        assert len(c) == 0
