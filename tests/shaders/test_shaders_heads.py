"""The kernels of shaders/ that normalise, add, store and attend, each run alone.

Every access is checked. The threads of a dispatch run in three orders, and threadgroups are of
other sizes than the op layer's.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
import reference
from cases import activations, relative_error
from kv_caches import ALIGNED, held, representable
from shader_heads import Heads, every_cache, every_cache_and_shape
from shader_runs import SENTINEL, Placed, every_order, run, state, tiles_for

EPS = 1e-6

# Norms and sums


def rmsnorm(x, weight, eps=EPS, order="random", threads=96):
    n_vectors, n = x.shape
    return run(
        "rmsnorm",
        [x, weight, np.full((n_vectors, n), SENTINEL)],
        struct.pack("<IIfI", n, n_vectors, eps, 0),
        groups=n_vectors,
        threads=threads,
        order=order,
    )[2]


@every_order
@pytest.mark.parametrize("n", [1, 31, 96, 97, 700])
def test_rmsnorm_matches_the_definition(order, n):
    x, weight = activations(3 * n).reshape(3, n) * np.float32(3), activations(n, 1)
    for threads in (32, 96, 256):
        y = rmsnorm(x, weight, order=order, threads=threads)
        np.testing.assert_allclose(y, reference.rmsnorm(x, weight, EPS), rtol=1e-6)


@every_order
def test_rmsnorm_in_place(order):
    x, weight = activations(200).reshape(2, 100), activations(100, 1)
    expected = reference.rmsnorm(x, weight, EPS)
    args = struct.pack("<IIfI", 100, 2, EPS, 0)
    y = run("rmsnorm", [x, weight, x], args, groups=2, threads=64, order=order)[0]
    np.testing.assert_allclose(y, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-13, 1e-3, 1e18, 1e25, 1e37])
@pytest.mark.parametrize("eps", [0.0, EPS])
def test_rmsnorm_of_numbers_whose_squares_leave_the_range(size, eps):
    x, weight = activations(300).reshape(2, 150) * np.float32(size), np.ones(150, np.float32)
    y = rmsnorm(x, weight, eps)
    np.testing.assert_allclose(y, reference.rmsnorm(x, weight, eps), rtol=1e-6, atol=1e-44)


def test_rmsnorm_of_infinities_and_nan_follows_ieee():
    x = np.ones((4, 40), np.float32)
    x[0, 7], x[1, 8], x[2] = np.inf, np.nan, 0
    y = rmsnorm(x, np.ones(40, np.float32))
    np.testing.assert_allclose(y, reference.rmsnorm(x, np.ones(40), EPS), rtol=1e-6)


@every_order
@pytest.mark.parametrize("n", [1, 63, 64, 65, 500])
def test_residual_add_is_exact_for_any_grid(order, n):
    x, y = activations(n), activations(n, 1)
    for groups in (1, 3):
        args = struct.pack("<QQ", n, 0)
        after = run("residual_add", [x, y], args, groups=groups, threads=32, order=order)
        np.testing.assert_array_equal(after[1], x + y)


def test_residual_add_of_a_buffer_to_itself_doubles_it():
    x = activations(50)
    (y, _) = run("residual_add", [x, x], struct.pack("<QQ", 50, 0), groups=1, threads=32)
    np.testing.assert_array_equal(y, x + x)


@every_order
@pytest.mark.parametrize("n", [1, 63, 64, 65, 500])
@pytest.mark.parametrize(("n_vectors", "stride"), [(1, 0), (3, 0), (3, 7)])
def test_bias_add_is_exact_for_any_grid(order, n, n_vectors, stride):
    bias, y = activations(n), activations(n_vectors * (n + stride)).reshape(n_vectors, -1)
    bias[0], y[-1, n - 1] = np.inf, np.nan
    args = struct.pack("<QII", n + stride, n, n_vectors)
    expected = y.copy()
    expected[:, :n] = reference.add_bias(y[:, :n], bias)
    for groups in ((1, 1), (3, 1), (1, 2), (2, 3)):
        after = run("bias_add", [bias, y], args, groups=groups, threads=32, order=order)
        np.testing.assert_array_equal(after[0], bias)
        np.testing.assert_array_equal(after[1], expected)


# Heads


def kv_store(heads, cache, qkv, position, order="random"):
    caches = heads.caches(cache, (0x5A, 0xA5), layers_after=1)
    n_tokens = len(qkv) // heads.n_qkv
    at = state(position)
    after = run(
        f"kv_store_{cache}",
        [qkv, *(c.raw for c in caches), at, at],
        caches[0].args(heads.layer, heads.max_seq) + struct.pack("<5I12x", *heads[:3], n_tokens, 0),
        groups=(heads.n_kv_heads, n_tokens),
        threads=64,
        order=order,
    )
    return caches, after[1:3]


@every_cache_and_shape
@every_order
def test_kv_store_writes_its_layer_and_position_only(cache, order, shape):
    heads = Heads(*shape, 7, layer=1)
    qkv = activations(heads.n_qkv * heads.head_dim).reshape(-1, heads.head_dim)
    qkv[-1, :2] = [1e6, 1e-9]  # past the range of half on both sides
    n_q, n_qk = heads.n_heads, heads.n_heads + heads.n_kv_heads
    for position in (0, 6):
        expected, after = kv_store(heads, cache, qkv, position, order)
        expected[0].store(0, 1, position, qkv[n_q:n_qk])
        expected[1].store(0, 1, position, qkv[n_qk:])
        for got, e in zip(after, expected, strict=True):
            np.testing.assert_array_equal(got, e.raw)


@every_cache
@every_order
def test_kv_store_of_a_batch_fills_neighbouring_positions(cache, order):
    heads = Heads(4, 2, 64, 7, layer=1)
    qkv = activations(3 * 8 * 64).reshape(-1, 64)
    expected, after = kv_store(heads, cache, qkv, 5, order)
    for t in range(2):  # the third has no place
        expected[0].store(0, 1, 5 + t, qkv.reshape(3, 8, 64)[t, 4:6])
        expected[1].store(0, 1, 5 + t, qkv.reshape(3, 8, 64)[t, 6:8])
    for got, e in zip(after, expected, strict=True):
        np.testing.assert_array_equal(got, e.raw)


@every_cache
@pytest.mark.parametrize("position", [7, 8, 2**32 - 1])
def test_kv_store_past_max_seq_writes_nothing(cache, position):
    before, after = kv_store(Heads(4, 2, 64, 7), cache, activations(512).reshape(8, 64), position)
    for got, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(got, b.raw)


@every_order
def test_odd_heads_are_rounded_to_8_bits_as_defined(order):
    n = 32
    tiny = np.float32(1e-45)
    odd = [
        [0, -0.0, 0, 0],
        [255, 0.5, 1.5, -2.5],  # ties
        [1, np.nan, 2, 3],
        [1, 2, np.inf, 3],
        [-np.inf, 1, 2, 3],
        np.array([190, -190, 127, -1]) * tiny,  # a coarse unit
        np.array([3, -3, 1, 0]) * tiny,  # a unit of 0
        [3.4e38, -3.4e38, 1, 1e37],
        [1e-30, -2e-30, 0, 1.5e-30],
        [1e-14, -2e-14, 0, 1.5e-14],
    ]
    heads = Heads(1, len(odd), n, 3)
    qkv = np.zeros((1 + 2 * len(odd), n), np.float32)
    keys, values = qkv[1 : 1 + len(odd)], qkv[1 + len(odd) :]
    keys[:, :4], values[:, -4:] = odd, odd[::-1]
    expected, after = kv_store(heads, "q8", qkv, 1, order)
    expected[0].store(0, 0, 1, keys)
    expected[1].store(0, 0, 1, values)
    for got, e in zip(after, expected, strict=True):
        np.testing.assert_array_equal(got, e.raw)


@every_order
@pytest.mark.parametrize("head_dim", [96, 160, 224])
def test_words_of_q8_are_as_defined_where_lanes_do_not_share_them_evenly(order, head_dim):
    heads = Heads(2, 2, head_dim, 3)
    qkv = activations(heads.n_qkv * head_dim, seed=head_dim).reshape(-1, head_dim)
    for position in (0, 2):
        expected, after = kv_store(heads, "q8", qkv, position, order)
        expected[0].store(0, 0, position, qkv[2:4])
        expected[1].store(0, 0, position, qkv[4:])
        for got, e in zip(after, expected, strict=True):
            np.testing.assert_array_equal(got, e.raw)


def attention_args(heads, n_tokens=1, splits=1, tile_heads=1, tokens=1):
    """Return what comes after struct oxb_cache."""
    scale = heads.head_dim**-0.5
    return struct.pack("<3If5I12x", *heads[:3], scale, n_tokens, splits, tile_heads, tokens, 0)


def attention(
    heads,
    cache,
    q,
    k,
    v,
    position,
    order="random",
    simdgroups=3,
    mode="check",
    queries=1,
    tile_heads=1,
    splits=1,
    width=None,
    combined=True,
):
    """Run attention over k and v [length, n_kv_heads, head_dim]; the rest of the cache is NaN.

    q: [n_heads, head_dim] of one token, or [tokens, n_heads, head_dim], the first at `position`.
    Not combined, return [tokens, n_heads, splits, head_dim + 2].
    """
    caches = heads.caches(cache)
    for to, rows in zip(caches, (k, v), strict=True):
        to.write([0], heads.layer, rows)
    batch = q.reshape(-1, heads.n_heads, heads.head_dim)
    n_tokens, n = len(batch), heads.head_dim
    width = (2 if n % 4 else 4) if width is None else width
    qkv = np.full((n_tokens, heads.n_qkv, n), np.nan, np.float32)
    qkv[:, : heads.n_heads] = batch
    out_width = n if splits == 1 else splits * (n + 2)
    at = state(position)
    out = run(
        f"attention_{cache}",
        [
            qkv,
            *(c.raw for c in caches),
            at,
            at,
            np.full((n_tokens, heads.n_heads, out_width), SENTINEL),
        ],
        caches[0].args(heads.layer, heads.max_seq)
        + attention_args(heads, n_tokens, splits, tile_heads, queries // tile_heads),
        groups=(
            heads.n_heads // tile_heads,
            tiles_for(n_tokens, queries // tile_heads),
            splits,
        ),
        threads=32 * simdgroups,
        constants={0: queries, 1: width, 2: 0 if n <= 128 else 2 if n <= 256 else 1},
        order=order,
        mode=mode,
    )[5]
    if splits > 1 and combined:
        rows = n_tokens * heads.n_heads
        out = run(
            "attention_combine",
            [out, np.full((n_tokens, heads.n_heads, n), SENTINEL)],
            struct.pack("<QII", rows, n, splits),
            groups=rows,
            threads=32 * simdgroups,
            order=order,
            mode=mode,
        )[1]
    return out.reshape(q.shape) if combined else out.reshape(n_tokens, heads.n_heads, splits, -1)


@every_cache
def test_caches_past_32_bits_are_found(cache):
    # Layers of 2^33 elements lie before the caches, without memory for them.
    heads = Heads(2, 1, 64, 3)
    qkv = activations(4 * 64).reshape(4, 64)
    caches = heads.caches(cache)
    before = 2**33 * caches[0].elements.itemsize
    cache_args = caches[0].args(0, 3, layer_offset=2**33)
    at = state(2)
    after = run(
        f"kv_store_{cache}",
        [qkv, *(Placed(c.raw, before=before) for c in caches), at, at],
        cache_args + struct.pack("<5I12x", *heads[:3], 1, 0),
        groups=1,
        threads=32,
        mode="fast",
    )
    for got, c, row in zip(after[1:3], caches, qkv[2:], strict=True):
        c.store(0, 0, 2, row[None])
        np.testing.assert_array_equal(got, c.raw)
        for slot in range(2):
            c.store(0, 0, slot, row[None] * 0)
    y = run(
        f"attention_{cache}",
        [
            qkv,
            *(Placed(c.raw, before=before) for c in caches),
            at,
            at,
            np.zeros((2, 64), np.float32),
        ],
        cache_args + attention_args(heads),
        groups=(2, 1),
        threads=32,
        constants={0: 1, 1: 4, 2: 0},
        mode="fast",
    )[5]
    k, v = (np.zeros((3, 1, 64)) for _ in range(2))
    k[2], v[2] = held(cache, qkv[2:3], keys=True), held(cache, qkv[3:])
    assert relative_error(y, reference.attention(qkv[None, :2], k, v)[0]) < 1e-6


def random_heads(heads, cache, length, size=1.0):
    rng = np.random.default_rng([length, *heads[:3]])
    kv = (length, heads.n_kv_heads, heads.head_dim)
    q = (rng.standard_normal((heads.n_heads, heads.head_dim)) * size).astype(np.float32)
    k = representable(cache, rng.standard_normal(kv) * size, keys=True)
    return q, k, representable(cache, rng.standard_normal(kv))


@every_cache_and_shape
@every_order
def test_attention_matches_the_definition(cache, order, shape):
    heads = Heads(*shape, 130, layer=1)
    for length in (1, 32, 33, 97, 130):
        q, k, v = random_heads(heads, cache, length)
        y = attention(heads, cache, q, k, v, length - 1, order)
        assert relative_error(y, reference.attention(q[None], k, v)[0]) < 1e-6


@every_cache
@every_order
@pytest.mark.parametrize(
    ("queries", "tile_heads", "dim"),
    [
        *(
            (*tile, dim)
            for tile in [(2, 2), (2, 1), (4, 4), (4, 2), (4, 1)]
            for dim in (64, 128, 36)
        ),
        *((*tile, dim) for tile in [(2, 2), (2, 1)] for dim in (160, 256)),
    ],
)
def test_queries_that_share_the_caches_match_the_definition(cache, order, queries, tile_heads, dim):
    if dim % ALIGNED[cache]:
        dim = 96
    heads = Heads(8, 2, dim, 80, layer=1)
    for n_tokens, length in ((1, 1), (1, 70), (3, 3), (5, 34), (5, 70)):
        _, k, v = random_heads(heads, cache, length)
        q = activations(n_tokens * 8 * dim).reshape(n_tokens, 8, dim)
        expected = reference.attention(q, k, v)
        for width in (4,) if cache == "q8" else (2, 4):
            y = attention(
                heads,
                cache,
                q,
                k,
                v,
                length - n_tokens,
                order,
                queries=queries,
                tile_heads=tile_heads,
                width=width,
            )
            assert relative_error(y, expected) < 1e-6


@every_cache
@every_order
@pytest.mark.parametrize("splits", [2, 3, 33])
def test_splits_of_the_positions_are_added_up(cache, order, splits):
    # More splits than there are parts of 128 positions, too, and fewer: the last has the rest.
    heads = Heads(4, 2, 64, 400, layer=1)
    for length in (1, 128, 129, 400):
        q, k, v = random_heads(heads, cache, length)
        y = attention(
            heads, cache, q, k, v, length - 1, order, queries=2, tile_heads=2, splits=splits
        )
        assert relative_error(y, reference.attention(q[None], k, v)[0]) < 1e-6


@every_cache
@pytest.mark.parametrize("length", [1, 127, 128, 129, 300, 8192, 8193, 16385])
def test_where_a_split_ends_depends_on_the_position_alone(cache, length):
    heads = Heads(2, 1, max(4, ALIGNED[cache]), 16400)
    q, k, v = random_heads(heads, cache, length)
    expected = reference.attention(q[None], k, v)[0]
    enough = tiles_for(length, 128 * 2 ** max(0, int(np.ceil(np.log2(length / 8192)))))
    first = None
    for splits in (enough, enough + 1, 64):
        y = attention(heads, cache, q, k, v, length - 1, splits=splits, mode="fast")
        first = y if first is None else first
        np.testing.assert_array_equal(y, first)
    assert relative_error(first, expected) < 1e-6


def test_the_sign_of_zero_outlives_the_splits():
    # Values that underflow: a sum of one split is not changed, even where it is -0.
    heads = Heads(1, 1, 4, 100)
    q, k, v = random_heads(heads, "f32", 100)
    v[:] = np.float32(-1e-45) * np.array([1, 0, -1, 0], np.float32)
    alone, split = (attention(heads, "f32", q * 0, k, v, 99, splits=s) for s in (1, 3))
    np.testing.assert_array_equal(split.view(np.uint32), alone.view(np.uint32))


@every_order
def test_an_empty_split_is_marked_and_nothing_else(order):
    heads = Heads(4, 2, 64, 300)
    _, k, v = random_heads(heads, "f32", 130)
    q = activations(3 * 4 * 64).reshape(3, 4, 64)
    out = attention(
        heads, "f32", q, k, v, 127, order, queries=4, tile_heads=2, splits=4, combined=False
    )
    assert np.isfinite(out[:, :, 0]).all()
    assert (out[:2, :, 1, -1] > 0)[1].all()  # token 1 is in a tile with token 0, at 127
    np.testing.assert_array_equal(out[:, :, 2:, :-2], SENTINEL)
    np.testing.assert_array_equal(out[:, :, 2:, -2], -np.inf)
    np.testing.assert_array_equal(out[:, :, 2:, -1], -1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_comes_later_does_not_reach_a_token(value):
    # The last of three tokens has odd keys and values: the two before it do not see them.
    heads = Heads(2, 2, 64, 40)
    _, k, v = random_heads(heads, "f32", 37)
    q = np.abs(activations(3 * 2 * 64)).reshape(3, 2, 64)
    k[36, :, 5] = v[36, :, 7] = value
    y = attention(heads, "f32", q, k, v, 34, queries=4)
    assert relative_error(y[:2], reference.attention(q[:2], k[:36], v[:36])) < 1e-6
    assert np.isnan(y[2, :, 7]).all()


def test_tokens_of_a_batch_past_max_seq_are_nan_and_the_others_are_not():
    heads = Heads(2, 1, 64, 40)
    _, k, v = random_heads(heads, "f32", 40)
    q = activations(4 * 2 * 64).reshape(4, 2, 64)
    y = attention(heads, "f32", q, k, v, 38, queries=4, tile_heads=2)
    assert relative_error(y[:2], reference.attention(q[:2], k, v)) < 1e-6
    assert np.isnan(y[2:]).all()


@every_cache
def test_attention_over_a_long_sequence(cache):
    heads = Heads(4, 2, 128, 3000)
    q, k, v = random_heads(heads, cache, 3000)
    expected = reference.attention(q[None], k, v)[0]
    for simdgroups, splits in ((1, 1), (4, 1), (4, 12)):
        y = attention(
            heads, cache, q, k, v, 2999, simdgroups=simdgroups, splits=splits, mode="fast"
        )
        assert relative_error(y, expected) < 1e-6


@every_cache
def test_attention_of_large_scores_neither_overflows_nor_loses_the_maximum(cache):
    heads = Heads(4, 2, 64, 140)
    q, k, v = random_heads(heads, cache, 140, size=30)
    scores = np.abs(np.einsum("hd,nhd->hn", q.astype(float), k.repeat(2, axis=1))) / 8
    y = attention(heads, cache, q, k, v, 139)
    # A score's own rounding in float32 shows in its weight.
    error = relative_error(y, reference.attention(q[None], k, v)[0])
    assert error < 1e-6 + 2.0**-22 * scores.max()


def test_scores_of_minus_infinity_weigh_nothing_until_all_are():
    heads = Heads(1, 1, 4, 100)
    q, k, v = random_heads(heads, "f32", 100)
    q[:] = 1
    for masked in (slice(0, 40), slice(40, 100), slice(0, 99)):
        odd = k.copy()
        odd[masked, 0, 0] = -np.inf
        y = attention(heads, "f32", q, odd, v, 99)
        assert relative_error(y, reference.attention(q[None], odd, v)[0]) < 1e-6
    k[:, 0, 0] = -np.inf
    assert np.isnan(attention(heads, "f32", q, k, v, 99)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinite_scores_reach_their_own_heads_only(value):
    heads = Heads(4, 2, 64, 70)
    q, k, v = random_heads(heads, "f32", 70)
    q = np.abs(q)
    k[50, 1, 3] = value
    y = attention(heads, "f32", q, k, v, 69)
    assert np.isfinite(y[:2]).all()
    assert np.isnan(y[2:]).all()


@every_cache
@pytest.mark.parametrize("position", [40, 41, 2**32 - 1])
@pytest.mark.parametrize("splits", [1, 3])
def test_attention_past_max_seq_is_nan(cache, position, splits):
    heads = Heads(4, 2, 64, 40)
    q, k, v = random_heads(heads, cache, 40)
    assert np.isnan(attention(heads, cache, q, k, v, position, splits=splits)).all()
