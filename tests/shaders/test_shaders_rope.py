"""The kernels of shaders/ that normalise and rotate heads, each run alone, every access checked."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import pytest
import reference
from cases import activations, relative_error
from kv_caches import ALIGNED
from shader_heads import Heads, every_cache_and_shape, every_shape
from shader_runs import every_order, run, state, tiles_for


def rope_table(positions, dim):
    angle = np.arange(positions)[:, None] * 1e6 ** (-2 * np.arange(dim // 2) / dim)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


class Options(NamedTuple):
    """What is done with a head."""

    rotary_dim: int = 0  # 0: all of it
    interleaved: bool = False
    has_norm: bool = True

    def rows(self, heads):
        """Return the columns of the rope table."""
        return self.rotary_dim or heads.head_dim

    def pack(self, heads, eps):
        return struct.pack(
            "<6If", *heads[:3], self.rows(heads), self.interleaved, self.has_norm, eps
        )

    def weights(self, heads):
        """Return the norms of q and k; without norms, what must not be read."""
        if not self.has_norm:
            return np.full(1, np.nan, np.float32), np.full(1, np.nan, np.float32)
        return 1 + activations(heads.head_dim, 4) / 4, 1 + activations(heads.head_dim, 5) / 4

    def expected(self, rows, norm, position, eps):
        style = "interleaved" if self.interleaved else "neox"
        rows = reference.rmsnorm(rows, norm, eps) if self.has_norm else rows
        return reference.rope(rows, position, 1e6, rotary_dim=self.rotary_dim, style=style)


PLAIN = Options()


def qk_norm_rope(heads, qkv, position, order="random", eps=1e-5, simdgroups=4, options=PLAIN):
    norms = options.weights(heads)
    n_tokens = len(qkv) // heads.n_qkv
    y = run(
        "qk_norm_rope",
        [qkv, *norms, rope_table(heads.max_seq, options.rows(heads)), state(position)],
        options.pack(heads, eps) + struct.pack("<3I8x", heads.max_seq, n_tokens, 0),
        groups=(tiles_for(heads.n_heads + heads.n_kv_heads, simdgroups), n_tokens),
        threads=32 * simdgroups,
        order=order,
    )[0]
    return y, *norms


@every_shape
@every_order
@pytest.mark.parametrize("size", [1e-30, 2, 1e30])
def test_qk_norm_rope_matches_the_definition(shape, order, size):
    heads = Heads(*shape, 6)
    n_q, n_qk = heads.n_heads, heads.n_heads + heads.n_kv_heads
    qkv = activations(heads.n_qkv * heads.head_dim).reshape(-1, heads.head_dim) * np.float32(size)
    eps = 0.0 if size < 1 else 1e-5
    y, q_norm, k_norm = qk_norm_rope(heads, qkv, 5, order, eps)
    for got, rows, norm in (
        (y[:n_q], qkv[:n_q], q_norm),
        (y[n_q:n_qk], qkv[n_q:n_qk], k_norm),
    ):
        expected = reference.rope_neox(reference.rmsnorm(rows, norm, eps), 5, 1e6)
        assert relative_error(got, expected) < 1e-6
    np.testing.assert_array_equal(y[n_qk:], qkv[n_qk:])


@every_order
def test_qk_norm_rope_of_a_batch_takes_each_token_to_its_position(order):
    heads = Heads(4, 2, 64, 6)
    qkv = activations(4 * 8 * 64).reshape(-1, 64)
    y = qk_norm_rope(heads, qkv, 3, order)[0].reshape(4, 8, 64)
    for t in range(3):
        alone = qk_norm_rope(heads, qkv.reshape(4, 8, 64)[t].copy(), 3 + t)[0]
        np.testing.assert_array_equal(y[t], alone)
    np.testing.assert_array_equal(y[3], qkv.reshape(4, 8, 64)[3])  # past the last position


@pytest.mark.parametrize("position", [6, 7, 2**32 - 1])
def test_qk_norm_rope_past_the_last_position_does_nothing(position):
    qkv = activations(8 * 64).reshape(8, 64)
    y = qk_norm_rope(Heads(4, 2, 64, 6), qkv, position)[0]
    np.testing.assert_array_equal(y, qkv)


ROTATIONS = [
    ((1, 1, 2), 2),
    ((4, 2, 64), 2),
    ((4, 2, 64), 64),
    ((3, 1, 68), 30),
    ((2, 2, 130), 66),  # more pairs, and more elements beside them, than lanes
    ((1, 1, 512), 258),
]


@pytest.mark.parametrize(("shape", "rotary_dim"), ROTATIONS, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("has_norm", [False, True])
@every_order
def test_qk_norm_rope_with_options_matches_the_definition(
    shape, rotary_dim, interleaved, has_norm, order
):
    heads, options = Heads(*shape, 6), Options(rotary_dim, interleaved, has_norm)
    n_q, n_qk = heads.n_heads, heads.n_heads + heads.n_kv_heads
    qkv = activations(2 * heads.n_qkv * heads.head_dim).reshape(2, -1, heads.head_dim)
    flat = qkv.reshape(-1, heads.head_dim)
    y, q_norm, k_norm = qk_norm_rope(heads, flat, 4, order, options=options)
    for t, got in enumerate(y.reshape(qkv.shape)):
        for part, norm in ((slice(n_q), q_norm), (slice(n_q, n_qk), k_norm)):
            expected = options.expected(qkv[t, part], norm, 4 + t, 1e-5)
            assert relative_error(got[part], expected) < 1e-6
            if not has_norm:
                rest = qkv[t, part, rotary_dim:]
                np.testing.assert_array_equal(got[part, rotary_dim:], rest)
        np.testing.assert_array_equal(got[n_qk:], qkv[t, n_qk:])


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [2, 30, 68])
def test_squares_of_every_part_of_a_head_count_when_they_leave_the_range(
    size, interleaved, rotary_dim
):
    # One element that decides the norm, in each place of the head in turn.
    heads, options = Heads(1, 1, 68, 6), Options(rotary_dim, interleaved)
    for place in (0, 1, rotary_dim // 2, rotary_dim - 1, 66, 67):
        qkv = activations(3 * 68).reshape(3, 68) * np.float32(size)
        qkv[:2, place] *= 100
        y, q_norm, k_norm = qk_norm_rope(heads, qkv, 5, eps=0.0, options=options)
        for row, norm in enumerate((q_norm, k_norm)):
            expected = options.expected(qkv[row : row + 1], norm, 5, 0.0)[0]
            assert relative_error(y[row], expected) < 1e-6


@pytest.mark.parametrize("interleaved", [False, True])
def test_without_a_norm_every_float_is_rotated_as_it_is(interleaved):
    heads, options = Heads(1, 1, 8, 6), Options(4, interleaved, has_norm=False)
    odd = [0.0, -0.0, 1e-45, -1e-40, np.inf, -np.inf, np.nan, 3.4e38]
    for shift in range(8):
        qkv = np.array([np.roll(odd, shift), activations(8), activations(8)], np.float32)
        y = qk_norm_rope(heads, qkv, 3, options=options)[0]
        expected = options.expected(qkv[:2], None, 3, 0.0)
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(y[:2], expected.astype(np.float32), rtol=1e-6, atol=3e-45)
        np.testing.assert_array_equal(y[0, 4:], qkv[0, 4:])


def qkv_to_cache(heads, cache, qkv, position, order="random", simdgroups=3, options=PLAIN):
    n_tokens = len(qkv) // heads.n_qkv
    caches = heads.caches(cache, (0x5A, 0xA5), layers_after=1)
    at = state(position)
    after = run(
        f"qkv_to_cache_{cache}",
        [
            qkv,
            *options.weights(heads),
            rope_table(heads.max_seq, options.rows(heads)),
            *(c.raw for c in caches),
            at,
            at,
        ],
        caches[0].args(heads.layer, heads.max_seq)
        + options.pack(heads, 1e-5)
        + struct.pack("<2I12x", n_tokens, 0),
        groups=(tiles_for(heads.n_qkv, simdgroups), n_tokens),
        threads=32 * simdgroups,
        order=order,
    )
    return caches, after


def check_qkv_to_cache(heads, cache, order, n_tokens, options):
    """Compare with qk_norm_rope, then a store."""
    n_q, n_qk = heads.n_heads, heads.n_heads + heads.n_kv_heads
    qkv = activations(n_tokens * heads.n_qkv * heads.head_dim).reshape(-1, heads.head_dim)
    expected, after = qkv_to_cache(heads, cache, qkv, 5, order, options=options)
    turned = qk_norm_rope(heads, qkv, 5, options=options)[0].reshape(
        n_tokens, heads.n_qkv, heads.head_dim
    )
    queries = after[0].reshape(turned.shape)[:, :n_q]
    np.testing.assert_array_equal(queries, turned[:, :n_q])
    for t in range(min(n_tokens, 2)):  # a third has no place
        expected[0].store(0, 1, 5 + t, turned[t, n_q:n_qk])
        expected[1].store(0, 1, 5 + t, turned[t, n_qk:])
    for got, e in zip(after[4:6], expected, strict=True):
        np.testing.assert_array_equal(got, e.raw)


@every_cache_and_shape
@every_order
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_qkv_to_cache_is_norm_rope_and_store(cache, order, shape, n_tokens):
    check_qkv_to_cache(Heads(*shape, 7, layer=1), cache, order, n_tokens, PLAIN)


@pytest.mark.parametrize(
    ("cache", "shape", "rotary_dim"),
    [(c, s, r) for c in ALIGNED for s, r in ROTATIONS if s[2] % ALIGNED[c] == 0],
    ids=str,
)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("has_norm", [False, True])
def test_qkv_to_cache_with_options_is_norm_rope_and_store(
    cache, shape, rotary_dim, interleaved, has_norm
):
    options = Options(rotary_dim, interleaved, has_norm)
    check_qkv_to_cache(Heads(*shape, 7, layer=1), cache, "random", 3, options)
