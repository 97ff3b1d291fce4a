"""The kernels of attention on matrix units, each run alone with every access checked."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import reference
from attention_runs import Tile, attend, combine, written
from cases import activations, relative_error, same_non_finite
from kv_caches import KvCache, tables_of
from shader_heads import Heads
from shader_runs import SENTINEL, Placed, every_order, run, state, tiles_for

PROMPT_BOUND = 5e-4  # of queries, weights and values as halves, on normal random data
STEP_BOUND = 1e-6
N_PAGES, PAGE_SIZE = 7, 64
# Orders of the threads, and whether keys and values are asked for ahead of their use.
either_load = pytest.mark.parametrize(
    ("order", "ahead"), [("forward", True), ("reverse", False), ("random", True)], ids=str
)
IDLE = 2**32 - 1


def text(heads, length, seed=0):
    """Return keys and values [length, n_kv_heads, head_dim] as halves."""
    rng = np.random.default_rng([seed, length, *heads[:3]])
    shape = (2, length, heads.n_kv_heads, heads.head_dim)
    return rng.standard_normal(shape).astype(np.float16)


def queries(heads, n_tokens=1, seed=0):
    n = n_tokens * heads.n_heads * heads.head_dim
    return activations(n, seed).reshape(n_tokens, heads.n_heads, heads.head_dim)


def prompt(heads, k, v, q, tile, **options):
    """Attend with the last tokens of a text in a cache of one page."""
    at = state(len(k) - len(q))
    return attend("prompt", heads, written(heads, [([0], k, v)]), q, at, None, tile, **options)


def step(heads, k, v, q, tile, splits=1, **options):
    """The same with one token."""
    caches, at = written(heads, [([0], k, v)]), state(len(k) - 1)
    y = attend("step", heads, caches, q, at, None, tile, splits=splits, **options)
    return y if splits == 1 else combine(y)


# Prompts


@either_load
@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((4, 1, 64), Tile(4, 16, 4)),
        ((4, 2, 64), Tile(2, 8, 1)),
        ((2, 2, 128), Tile(1, 64, 4)),
        ((3, 1, 64), Tile(3, 21, 4)),  # one row of the tile has no query
        ((12, 1, 128), Tile(6, 10, 4)),
    ],
    ids=str,
)
def test_a_prompt_matches_the_definition(order, shape, tile, ahead):
    heads = Heads(*shape, 80, layer=1)
    for n_tokens, length in ((1, 1), (1, 80), (15, 16), (23, 23), (22, 49)):
        k, v = text(heads, length)
        q = queries(heads, n_tokens)
        y = prompt(heads, k, v, q, tile, order=order, ahead=ahead)
        assert relative_error(y, reference.attention(q, k, v)) < PROMPT_BOUND


def test_a_piece_of_a_prompt_writes_its_own_tokens():
    heads = Heads(4, 2, 64, 60)
    k, v = text(heads, 50)
    q = queries(heads, 40)
    whole = prompt(heads, k, v, q, Tile(2, 8, 1))
    y = prompt(heads, k, v, q, Tile(2, 8, 1), first_token=24)
    np.testing.assert_array_equal(y[:24], SENTINEL)
    np.testing.assert_array_equal(y[24:], whole[24:])


def test_a_token_of_a_prompt_has_the_bits_of_any_tile_and_chunk():
    heads = Heads(4, 2, 64, 60)
    k, v = text(heads, 50)
    q = queries(heads, 40)
    whole = prompt(heads, k, v, q, Tile(2, 32, 4))
    np.testing.assert_array_equal(prompt(heads, k, v, q, Tile(1, 16, 1)), whole)
    np.testing.assert_array_equal(prompt(heads, k, v, q[7:], Tile(2, 8, 1)), whole[7:])


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-20, 1e-6, 30.0, 3e4, 1e30])
def test_queries_of_any_size_keep_the_error_of_halves(size):
    # From 3e4 on one key has all the weight: the error is that of its value.
    heads = Heads(1, 1, 64, 40)
    k, v = text(heads, 40)
    q = queries(heads, 20) * np.float32(size)
    y = prompt(heads, k, v, q, Tile(1, 16, 1))
    assert np.isfinite(y).all()
    bound = 5e-3 if size == 30.0 else PROMPT_BOUND  # scores near 400, and half of a unit of them
    assert relative_error(y, reference.attention(q, k, v)) < bound


def test_many_small_weights_beside_a_large_one_are_not_lost():
    # 2000 positions of a weight of e^-12 beside one of 1: a hundredth of the sum.
    heads = Heads(1, 1, 64, 2001)
    k, v = text(heads, 2001)
    q = np.zeros((1, 1, 64), np.float32)
    q[..., 0], k[..., 0], k[7, 0, 0], v[7] = 8.0, -12, 0, 0
    v[:, 0, 0] = 1
    y = prompt(heads, k, v, q, Tile(1, 16, 1), mode="fast")
    assert relative_error(y, reference.attention(q, k, v)) < PROMPT_BOUND


def beside_a_sink(score):
    """Return keys, values and a query: the first position has all the weight and the value 0."""
    heads = Heads(1, 1, 64, 140)
    k, v = text(heads, 140)
    q = np.zeros((1, 1, 64), np.float32)
    q[..., 0], k[:, 0, 0], k[0, 0, 0], v[0] = 8.0, score + k[:, 0, 0] / 4, 0, 0
    return heads, k, v, q


sinks = pytest.mark.parametrize("score", [-4, -12, -20])


@sinks
def test_what_a_sink_of_value_zero_leaves_keeps_the_error_of_halves_in_a_prompt(score):
    heads, k, v, q = beside_a_sink(score)
    y = prompt(heads, k, v, q, Tile(1, 16, 1))
    assert relative_error(y, reference.attention(q, k, v)) < PROMPT_BOUND


@sinks
def test_what_a_sink_of_value_zero_leaves_is_exact_in_a_step(score):
    heads, k, v, q = beside_a_sink(score)
    y = step(heads, k, v, q, Tile(1))
    assert relative_error(y, reference.attention(q, k, v)) < STEP_BOUND


@every_order
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_comes_later_does_not_reach_a_token_of_a_prompt(order, value):
    heads = Heads(2, 2, 64, 40)
    k, v = text(heads, 37)
    q = np.abs(queries(heads, 9))
    k[36, :, 5] = v[36, :, 7] = value
    y = prompt(heads, k, v, q, Tile(1, 16, 1), order=order)
    expected = reference.attention(q[:8], k[:36], v[:36])
    assert relative_error(y[:8], expected) < PROMPT_BOUND
    assert np.isnan(y[8, :, 7]).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("n", [64, 128])
def test_odd_queries_keys_and_values_of_a_prompt_follow_ieee(n):
    heads = Heads(1, 1, n, 40)
    k, v = text(heads, 30)
    q = np.abs(queries(heads, 12))
    v[20, 0, 3], v[22, 0, 4], v[24, 0, 5] = np.inf, -np.inf, np.nan
    k[23, 0, 0] = -np.inf  # a weight of 0
    q[10, 0, 9] = np.nan
    y = prompt(heads, k, v, q, Tile(1, 16, 1))
    expected = reference.attention(q, k, v)
    finite = same_non_finite(y, expected)
    assert np.isposinf(y[2:10, 0, 3]).all()
    assert relative_error(y[finite], expected[finite]) < PROMPT_BOUND


def test_tokens_of_a_prompt_past_max_seq_are_nan_and_the_others_are_not():
    heads = Heads(2, 1, 64, 40)
    k, v = text(heads, 40)
    q = queries(heads, 24)
    caches = written(heads, [([0], k, v)])
    for position, there in ((20, 20), (40, 0), (IDLE, 0)):
        y = attend("prompt", heads, caches, q, state(position), None, Tile(2, 8, 1))
        expected = reference.attention(q[:there], k, v) if there else np.empty((0, 2, 64))
        assert relative_error(y[:there], expected) < PROMPT_BOUND
        assert np.isnan(y[there:]).all()


@either_load
def test_a_prompt_reads_the_pages_of_its_table(order, ahead):
    heads, how = Heads(4, 2, 64, 200, layer=1), {"order": order, "ahead": ahead}
    k, v = text(heads, 150)
    q = queries(heads, 40)
    pages = [4, 1, 3]
    caches = written(heads, [(pages, k, v)], PAGE_SIZE, N_PAGES)
    tables, starts = tables_of([pages], gap=2)
    states = np.array([(110, 99, starts[0], 99)], np.uint32)
    y = attend("prompt", heads, caches, q, states, tables, Tile(2, 8, 1), **how)
    np.testing.assert_array_equal(y, prompt(heads, k, v, q, Tile(2, 8, 1)))
    unreachable = []
    for missing in (N_PAGES, IDLE):
        unreachable.append(tables.copy())
        unreachable[-1][starts[0] + 2] = missing
    for lost in (*unreachable, tables[:-1]):
        after = attend("prompt", heads, caches, q, states, lost, Tile(2, 8, 1), **how)
        # Tokens that share their rows with one that is lost may be computed by the definition.
        np.testing.assert_array_equal(after[:16], y[:16])
        assert relative_error(after[16:18], y[16:18]) < PROMPT_BOUND
        assert np.isnan(after[18:]).all()


# Single tokens


@either_load
@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((4, 1, 64), Tile(4)),
        ((4, 2, 128), Tile(2, simdgroups=3)),
        ((3, 1, 64), Tile(3, simdgroups=1)),
        ((6, 1, 128), Tile(6)),
        ((16, 1, 64), Tile(8, simdgroups=5)),
    ],
    ids=str,
)
def test_a_step_matches_the_definition(order, shape, tile, ahead):
    heads = Heads(*shape, 150, layer=1)
    for length in (1, 16, 17, 130, 150):
        k, v = text(heads, length)
        q = queries(heads)
        y = step(heads, k, v, q, tile, order=order, ahead=ahead)
        assert relative_error(y, reference.attention(q, k, v)) < STEP_BOUND


@every_order
@pytest.mark.parametrize("splits", [2, 3, 9])
def test_splits_of_a_step_are_added_up(order, splits):
    # More splits than the positions have, too, and fewer: the last has the rest.
    heads = Heads(4, 2, 64, 520)
    for length in (1, 256, 257, 520):
        k, v = text(heads, length)
        q = queries(heads)
        y = step(heads, k, v, q, Tile(2), splits, order=order, mode="fast")
        assert relative_error(y, reference.attention(q, k, v)) < STEP_BOUND


@pytest.mark.parametrize("length", [1, 255, 256, 257, 384, 2048, 2049, 2700])
def test_where_a_split_of_a_step_ends_depends_on_the_position_alone(length):
    heads = Heads(1, 1, 64, 2700)
    k, v = text(heads, length)
    q = queries(heads)
    enough = 1 if length <= 256 else tiles_for(length, 128 * tiles_for(length, 16 * 128))
    first, *others = (
        step(heads, k, v, q, Tile(1), splits, mode="fast") for splits in (enough, enough + 1, 16)
    )
    for y in others:
        np.testing.assert_array_equal(y, first)
    assert relative_error(first, reference.attention(q, k, v)) < STEP_BOUND


@every_order
def test_an_empty_split_of_a_step_is_marked_and_nothing_else(order):
    heads = Heads(8, 1, 64, 300)
    k, v = text(heads, 257)
    y = attend(
        "step",
        heads,
        written(heads, [([0], k, v)]),
        queries(heads),
        state(256),
        None,
        Tile(8, simdgroups=2),
        splits=4,
        order=order,
    )
    assert np.isfinite(y[:, :, :3]).all()
    np.testing.assert_array_equal(y[:, :, 3, :-2], SENTINEL)
    np.testing.assert_array_equal(y[:, :, 3, -2], -np.inf)
    np.testing.assert_array_equal(y[:, :, 3, -1], -1)


def test_a_piece_of_several_tokens_takes_a_step_for_its_own():
    heads = Heads(4, 2, 64, 60)
    k, v = text(heads, 50)
    q = queries(heads, 5)
    caches = written(heads, [([0], k, v)])
    y = attend("step", heads, caches, q, state(45), None, Tile(2), first_token=3)
    np.testing.assert_array_equal(y[:3], SENTINEL)
    for t in (3, 4):
        alone = step(heads, k[: 46 + t], v[: 46 + t], q[t : t + 1], Tile(2))
        np.testing.assert_array_equal(y[t], alone[0])


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-20, 1e-3, 10.0, 1e10])
def test_queries_of_any_size_are_exact_in_a_step(size):
    heads = Heads(2, 1, 64, 140)
    k, v = text(heads, 140)
    q = queries(heads) * np.float32(size)
    y = step(heads, k, v, q, Tile(2))
    # Scores of up to 40, whose rounding a weight multiplies.
    bound = 1e-5 if size == 10.0 else STEP_BOUND
    assert relative_error(y, reference.attention(q, k, v)) < bound


def test_subnormal_and_small_keys_and_values_are_exact_in_a_step():
    heads = Heads(2, 1, 64, 140)
    k, v = text(heads, 140)
    k, v = (k * 2.0**-20).astype(np.float16), (v * 2.0**-18).astype(np.float16)
    q = queries(heads) * np.float32(2**20)
    y = step(heads, k, v, q, Tile(2))
    assert relative_error(y, reference.attention(q, k, v)) < STEP_BOUND


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@every_order
@pytest.mark.parametrize("splits", [1, 3])
def test_odd_queries_keys_and_values_of_a_step_follow_ieee(order, splits):
    heads = Heads(6, 1, 64, 300)
    k, v = text(heads, 290)
    q = np.abs(queries(heads))
    v[100, 0, 3], v[130, 0, 4], v[280, 0, 5] = np.inf, -np.inf, np.nan
    k[23, 0, 0] = -np.inf  # a weight of 0
    q[0, 5, 9] = np.nan
    y = step(heads, k, v, q, Tile(6), splits, order=order)
    expected = reference.attention(q, k, v)
    finite = same_non_finite(y, expected)
    assert relative_error(y[finite], expected[finite]) < STEP_BOUND
    assert finite.sum() == 5 * 61


@either_load
@pytest.mark.parametrize("splits", [1, 2])
def test_each_sequence_of_a_batch_takes_a_step_in_its_own_pages(order, splits, ahead):
    heads = Heads(4, 2, 64, 400, layer=1)
    placed = [(0, [5]), (63, [2]), (64, [0, 6]), (131, [4, 1, 3])]
    lost = [(IDLE, []), (400, [5] * 7), (3, [N_PAGES]), (70, [5, IDLE])]
    texts = [text(heads, position + 1, position) for position, _ in placed]
    caches = written(
        heads,
        [(pages, *kv) for (_, pages), kv in zip(placed, texts, strict=True)],
        PAGE_SIZE,
        N_PAGES,
    )
    both = [*lost, *placed]
    tables, starts = tables_of([pages for _, pages in both], gap=2)
    states = [(position, 99, start, 99) for (position, _), start in zip(both, starts, strict=True)]
    states += [(3, 99, len(tables), 99), (3, 99, IDLE, 99)]
    q = queries(heads, len(states))
    y = attend(
        "step",
        heads,
        caches,
        q,
        np.array(states, np.uint32),
        tables,
        Tile(2),
        splits=splits,
        batch=1,
        order=order,
        ahead=ahead,
    )
    y = y if splits == 1 else combine(y)
    for t, (k, v) in enumerate(texts, start=len(lost)):
        alone = step(heads, k, v, q[t : t + 1], Tile(2))
        np.testing.assert_array_equal(y[t], alone[0])
        assert relative_error(y[t], reference.attention(q[t : t + 1], k, v)[0]) < STEP_BOUND
    assert np.isnan(np.delete(y, range(len(lost), len(both)), axis=0)).all()


@pytest.mark.parametrize(("kind", "tile"), [("prompt", Tile(2, 8, 1)), ("step", Tile(2))])
def test_pages_past_32_bits_are_found(kind, tile):
    # Page 5 of strides of 2^31 elements is past 2^32 of them; only it is in memory.
    heads = Heads(2, 1, 64, 64)
    k, v = text(heads, 1)
    stride, before = 2**31, 5 * 2**32
    placed = []
    for rows in (k, v):
        own = KvCache("f16", 1, 64, PAGE_SIZE)
        own.write([0], 0, rows)
        placed.append(Placed(own.raw, before=before))
    qkv = np.zeros((1, 4, 64), np.float32)
    qkv[:, :2] = queries(heads)
    y = run(
        f"attention_f16_{kind}",
        [
            qkv,
            *placed,
            np.array([[0, 9, 0, 9]], np.uint32),
            np.array([5], np.uint32),
            np.zeros((2, 64), np.float32),
        ],
        struct.pack("<3Q6I", stride, 0, PAGE_SIZE * 64, PAGE_SIZE, 6, 1, 64, 0, 0)
        + struct.pack("<3If6I8x", 2, 1, 64, 1.0, 1, 1, tile.heads, tile.tokens, 0, 0),
        groups=(1, 1, 1),
        threads=32 * tile.simdgroups,
        constants={0: 64, 1: 1} | ({2: 16} if kind == "step" else {}),
        mode="fast",
    )[5]
    expected = v[0].astype(np.float32).repeat(2, axis=0)  # halves would make a tolerance of 0
    np.testing.assert_allclose(y, expected, rtol=1e-6)
