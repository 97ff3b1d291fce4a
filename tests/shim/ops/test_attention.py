"""Attention of several tokens: by which kernel, how exact, and with which bits."""

from __future__ import annotations

import numpy as np
import paged_runs
import pytest
import reference
from cases import activations, contents, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from op_runs import SENTINEL, Heads, state
from paged_runs import caches_of

from oxibonsai import metal

HALF_BOUND = 5e-4  # of queries, weights and values as halves, on normal random data


def attend(device, heads, q, k, v, first=0, *, offset=0, activations="float32", **options):
    """Attend from q [tokens, heads, dim], the last of the positions of k and v; also describe it.

    `offset`: bytes of the output's buffer before it.
    """
    n_tokens, length = len(q), len(k)
    caches = caches_of(heads)
    for cache, rows in zip(caches, (k, v), strict=True):
        cache.write([0], heads.layer, rows)
    qkv = np.full((n_tokens, heads.n_qkv, heads.head_dim), np.nan, np.float32)
    qkv[:, : heads.n_heads] = q
    out = np.full(q.size + offset // 4, SENTINEL)
    with (
        device.commands(activations=activations, **options) as c,
        device.upload(qkv) as b,
        device.upload(caches[0].raw) as bk,
        device.upload(caches[1].raw) as bv,
        device.upload(state(length - n_tokens)) as bs,
        device.upload(out) as bo,
    ):
        c.attention(b, bk, bv, bs, (bo, offset), n_tokens=n_tokens, **heads.shape)
        c.replay()
        y = contents(bo)
        described = c.describe()
    assert (y[: offset // 4] == SENTINEL).all()
    return y[offset // 4 :].reshape(q.shape), described


def text(heads, length, n_tokens, seed=0):
    k, v = paged_runs.text(heads, length, seed)
    n = n_tokens * heads.n_heads * heads.head_dim
    return activations(n, seed).reshape(n_tokens, heads.n_heads, heads.head_dim), k, v


@pytest.fixture
def halves(device):
    """Skip where a device's recordings are never in half."""
    try:
        device.commands(activations="half").close()
    except metal.EncodingError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("halves")
@pytest.mark.parametrize(
    "counts", [(4, 1, 64), (8, 8, 128), (6, 2, 128), (5, 1, 64), (16, 1, 64)], ids=str
)
@pytest.mark.parametrize(("n_tokens", "length"), [(64, 64), (97, 97), (70, 75), (65, 130)])
def test_a_prompt_in_half_matches_the_definition(device, counts, n_tokens, length):
    heads = Heads(*counts, 130, 1, "f16")
    q, k, v = text(heads, length, n_tokens)
    y, described = attend(device, heads, q, k, v, activations="half")
    assert "attention_f16_prompt" in described
    assert relative_error(y, reference.attention(q, k, v)) < HALF_BOUND


@pytest.mark.usefixtures("halves")
@given(
    n_tokens=st.integers(64, 100),
    before=st.integers(0, 40),
    kv=st.integers(1, 2),
    per=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_a_prompt_in_half_of_any_shape(device, n_tokens, before, kv, per, seed):
    heads = Heads(kv * per, kv, (64, 128)[seed % 2], 140, kv_dtype="f16")
    q, k, v = text(heads, n_tokens + before, n_tokens, seed)
    y, _ = attend(device, heads, q, k, v, activations="half")
    assert relative_error(y, reference.attention(q, k, v)) < HALF_BOUND


@pytest.mark.usefixtures("halves")
@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"kv_dtype": "f32"}, {}),
        ({"head_dim": 32}, {}),
        ({}, {"activations": "float32"}),
        ({}, {"deterministic": True}),
        ({}, {"offset": 4}),
    ],
    ids=["f32", "head_dim", "float32", "deterministic", "offset"],
)
def test_a_prompt_is_exact_where_halves_are_not_for_it(device, change, options):
    heads = Heads(4, 2, 64, 80, 0, "f16")._replace(**change)
    q, k, v = text(heads, 80, 70)
    y, described = attend(device, heads, q, k, v, **{"activations": "half"} | options)
    assert "_prompt" not in described
    assert relative_error(y, reference.attention(q, k, v)) < 1e-6


@pytest.mark.usefixtures("halves")
@pytest.mark.parametrize("n_tokens", [1, 16, 20, 63])
def test_fewer_tokens_than_a_product_in_half_takes_attend_as_in_float32(device, n_tokens):
    heads = Heads(4, 2, 64, 80, 0, "f16")
    q, k, v = text(heads, 80, n_tokens)
    y, described = attend(device, heads, q, k, v, activations="half")
    exact, _ = attend(device, heads, q, k, v)
    assert "_prompt" not in described
    np.testing.assert_array_equal(y, exact)


@settings(max_examples=10)
@given(
    n_tokens=st.integers(1, 15),
    before=st.integers(0, 290),
    kv=st.integers(1, 2),
    per=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_a_few_tokens_of_any_shape(device, n_tokens, before, kv, per, seed):
    heads = Heads(kv * per, kv, (64, 128)[seed % 2], 305, kv_dtype="f16")
    q, k, v = text(heads, n_tokens + before, n_tokens, seed)
    y, _ = attend(device, heads, q, k, v)
    assert relative_error(y, reference.attention(q, k, v)) < 1e-6


@pytest.mark.parametrize("n_tokens", [2, 7, 15])
@pytest.mark.parametrize("length", [15, 130, 300])
def test_a_few_tokens_have_the_bits_that_each_has_alone_on_a_gpu(device, n_tokens, length):
    heads = Heads(6, 2, 64, 300, 1, "f16")
    q, k, v = text(heads, length, n_tokens)
    y, described = attend(device, heads, q, k, v)
    assert relative_error(y, reference.attention(q, k, v)) < 1e-6
    if "_step" not in described:
        pytest.skip(f"{device.info.driver} has one kernel of attention")
    for t in range(n_tokens):
        seen = length - n_tokens + t + 1
        alone, _ = attend(device, heads, q[t : t + 1], k[:seen], v[:seen])
        np.testing.assert_array_equal(y[t], alone[0])


@pytest.mark.parametrize(
    ("head_dim", "kv_dtype"), [(64, "f16"), (96, "f16"), (64, "f32"), (128, "q8"), (96, "q8")]
)
def test_a_token_of_a_deterministic_prompt_has_the_bits_that_it_has_alone(
    device, head_dim, kv_dtype
):
    heads = Heads(4, 2, head_dim, 300, 1, kv_dtype)
    q, k, v = text(heads, 300, 50)
    y, _ = attend(device, heads, q, k, v, deterministic=True)
    for t in (0, 7, 49):
        alone, _ = attend(device, heads, q[t : t + 1], k[: 251 + t], v[: 251 + t])
        np.testing.assert_array_equal(y[t], alone[0])


@pytest.mark.parametrize("options", [{}, {"deterministic": True}], ids=str)
def test_where_the_output_starts_does_not_show_in_the_bits(device, options):
    heads = Heads(4, 2, 64, 300, 1, "f16")
    q, k, v = text(heads, 300, 3)
    y, _ = attend(device, heads, q, k, v, **options)
    moved, _ = attend(device, heads, q, k, v, offset=4, **options)
    np.testing.assert_array_equal(moved, y)


def test_caches_that_start_at_an_odd_place_are_read_as_well(device):
    # No load of 16 bytes: the heads of a layer begin 2 bytes further on.
    heads = Heads(2, 1, 64, 40, 0, "f16")
    q, k, v = text(heads, 30, 1)
    y = np.full((2, 64), SENTINEL)
    qkv = np.zeros((4, 64), np.float32)
    qkv[:2] = q[0]
    moved = [np.concatenate([np.zeros(2, np.float16), c.ravel()]) for c in (k, v)]
    whole = np.zeros(2 + 40 * 64, np.float16)
    with device.commands() as c, device.upload(qkv) as b, device.upload(state(29)) as bs:
        caches = []
        for rows in moved:
            whole[: len(rows)] = rows
            caches.append(device.upload(whole))
        with device.upload(y) as bo:
            c.attention(b, (caches[0], 4), (caches[1], 4), bs, bo, **heads.shape)
            c.replay()
            y = contents(bo).reshape(y.shape)
            assert "_step" not in c.describe()
        for cache in caches:
            cache.close()
    assert relative_error(y, reference.attention(q, k, v)[0]) < 1e-6
