"""qkv_attention: the bits of qkv_to_cache and attention, in one dispatch where a GPU can."""

from __future__ import annotations

import numpy as np
import pytest
from cases import activations
from hypothesis import given, settings
from hypothesis import strategies as st
from op_runs import SENTINEL, Heads, random_heads, rope_table, run, state

from oxibonsai.metal import EncodingError


def arrays_of(heads, states, n_tokens=1, caches=None):
    """Return what both ways are given: qkv, norms, angles, caches, states, output."""
    dim = heads.head_dim
    return [
        activations(n_tokens * heads.n_qkv * dim).reshape(n_tokens, heads.n_qkv, dim),
        1 + activations(dim, 4) / 4,
        1 + activations(dim, 5) / 4,
        rope_table(heads.max_seq, dim),
        *(caches or (heads.cache(2, 0.5), heads.cache(2, -0.25))),
        states,
        np.full((n_tokens, heads.n_heads, dim), SENTINEL),
    ]


def both_ways(device, heads, arrays, pages=None, **more):
    """Return caches and output of two ops and of one, and whether that was one dispatch."""
    n_tokens, dispatches = len(arrays[0]), []
    more |= {"n_tokens": n_tokens, **heads.shape}

    def apart(c, q, a, b, r, k, v, s, o, *table):
        own = more | ({"pages": table[0]} if table else {})
        c.qkv_to_cache(q, a, b, r, k, v, s, eps=1e-5, **own)
        c.attention(q, k, v, s, o, **own)
        dispatches.append(len(c))

    def together(c, q, a, b, r, k, v, s, o, *table):
        own = more | ({"pages": table[0]} if table else {})
        c.qkv_attention(q, a, b, r, k, v, s, o, eps=1e-5, **own)
        dispatches.append(len(c))
        if "qkv_attention" not in c.describe():
            assert dispatches[0] == dispatches[1]

    arrays = [*arrays, *([pages] if pages is not None else [])]
    expected, got = (run(device, record, *arrays) for record in (apart, together))
    for i in (4, 5, 7):
        np.testing.assert_array_equal(got[i], expected[i])
    return got[7], dispatches[1] < dispatches[0]


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize(
    "counts",
    [(4, 2, 64), (8, 1, 128), (5, 5, 30), (9, 1, 64), (2, 2, 128), (12, 2, 256)],
    ids=str,
)
@pytest.mark.parametrize("position", [0, 15, 299])
def test_one_op_has_the_bits_of_two(device, counts, kv_dtype, position):
    heads = Heads(*counts, 300, 1, kv_dtype)
    y, fewer = both_ways(device, heads, arrays_of(heads, state(position)))
    assert np.isfinite(y).all()
    per, dim = heads.n_heads // heads.n_kv_heads, heads.head_dim
    takes = kv_dtype == "f16" and dim in (64, 128) and per <= 8
    assert fewer == (takes and device.info.driver in ("metal", "cuda"))


@settings(max_examples=10)
@given(
    kv=st.integers(1, 3),
    per=st.integers(1, 8),
    position=st.integers(0, 599),
    seed=st.integers(0, 9),
)
def test_one_op_of_any_shape_has_the_bits_of_two(device, kv, per, position, seed):
    heads = Heads(kv * per, kv, (64, 128)[seed % 2], 600, 1, "f16")
    caches = [np.full_like(heads.cache(2), np.nan) for _ in range(2)]
    for cache, rows in zip(caches, random_heads(heads, 600, seed)[1:], strict=True):
        cache[1, :, :position] = rows[:position].transpose(1, 0, 2)
    y, _ = both_ways(device, heads, arrays_of(heads, state(position), caches=caches))
    assert np.isfinite(y).all()


def test_several_tokens_of_a_sequence_attend_to_one_another(device):
    heads = Heads(4, 2, 64, 300, 1, "f16")
    _, fewer = both_ways(device, heads, arrays_of(heads, state(290), 5))
    assert not fewer


def test_each_token_of_a_batch_goes_to_its_own_pages(device):
    heads = Heads(4, 2, 64, 256, 1, "f16")
    positions, tables = (0, 70, 200, 2**32 - 1), [[3, 9, 9, 9], [0, 5, 9, 9], [1, 2, 6, 4], [9] * 4]
    states = np.array([state(p, 0, 4 * i) for i, p in enumerate(positions)])
    rng = np.random.default_rng(3)
    shape = (7, 2, 2, 64, 64)  # pages, layers, key-value heads, positions, elements
    caches = [rng.standard_normal(shape).astype(np.float16) for _ in range(2)]
    arrays = arrays_of(heads, states, 4, caches)
    pages = np.array(tables, np.uint32).ravel()
    y, fewer = both_ways(
        device, heads, arrays, pages, batch=True, page_size=64, n_layers=2, n_pages=7
    )
    assert np.isfinite(y[:3]).all()
    assert np.isnan(y[3]).all()
    assert fewer == (device.info.driver in ("metal", "cuda"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"n_tokens": 0}, "n_tokens = 0 must lie in"),
        ({"head_dim": 63}, "head_dim = 63 must be even"),
        ({"rotary_dim": 3}, "rotary_dim = 3 must be even"),
        ({"eps": -1.0}, "eps = -1 must be finite"),
        ({"max_length": 11}, "max_length = 11"),
        ({"k_norm": None}, "q_norm without k_norm"),
        ({"n_tokens": 2}, "qkv too short"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(device, change, text):
    heads = Heads(4, 2, 64, 10, 0, "f16")
    buffers = [device.upload(a) for a in arrays_of(heads, state(3))]
    names = ("qkv", "q_norm", "k_norm", "rope", "k_cache", "v_cache", "state", "out")
    with device.commands() as c:
        with pytest.raises(EncodingError, match=text):
            c.qkv_attention(**dict(zip(names, buffers, strict=True)) | heads.shape | change)
        assert len(c) == 0


@pytest.mark.parametrize("name", ["qkv", "q_norm", "rope", "k_cache", "state"])
def test_the_output_lies_apart_from_all_that_is_read(device, name):
    heads = Heads(4, 2, 64, 10, 0, "f16")
    buffers = [device.upload(a) for a in arrays_of(heads, state(3))]
    names = ("qkv", "q_norm", "k_norm", "rope", "k_cache", "v_cache", "state")
    operands = dict(zip(names, buffers, strict=False))
    large = device.buffer(1 << 16)
    with device.commands() as c:
        with pytest.raises(EncodingError, match="overlap"):
            c.qkv_attention(**operands | {name: large, "out": large} | heads.shape)
        assert len(c) == 0
