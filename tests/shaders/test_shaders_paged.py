"""The kernels of shaders/ over caches of pages and batches of sequences, every access checked."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import reference
from cases import activations, relative_error
from kv_caches import KvCache, held, representable, tables_of
from shader_heads import Heads, every_cache
from shader_runs import SENTINEL, Placed, every_order, run, tiles_for

HEADS = Heads(4, 2, 32, 200, layer=1)
N_PAGES, PAGE_SIZE, N_LAYERS = 7, 64, 3
IDLE = 2**32 - 1
# Position and pages of each sequence: those with a place, and those without.
PLACED = [(0, [5]), (63, [2]), (64, [0, 6]), (131, [4, 1, 3])]
LOST = [
    (IDLE, []),
    (200, [5, 5, 5, 5]),  # max_seq
    (3, [N_PAGES]),
    (70, [5, IDLE]),
]


def sequences(texts, outside=0):
    """Return the states of sequences and their tables, those of `outside` more past the end."""
    tables, starts = tables_of([pages for _, pages in texts], gap=2)
    states = [(position, 99, start, 99) for (position, _), start in zip(texts, starts, strict=True)]
    states += [(3, 99, len(tables), 99), (3, 99, IDLE, 99)][:outside]
    return np.array(states, np.uint32), tables


def new_caches(cache, fills=(0x5A, 0xA5)):
    return [
        KvCache(
            cache,
            HEADS.n_kv_heads,
            HEADS.head_dim,
            PAGE_SIZE,
            n_layers=N_LAYERS,
            n_pages=N_PAGES,
            fill=fill,
            keys=i == 0,
        )
        for i, fill in enumerate(fills)
    ]


def cache_args(caches, tables):
    return caches[0].args(HEADS.layer, HEADS.max_seq, len(tables))


def qkv_of(n_tokens):
    return activations(n_tokens * HEADS.n_qkv * HEADS.head_dim).reshape(n_tokens, HEADS.n_qkv, -1)


def store(kernel, caches, qkv, states, tables, batch, order="random"):
    """Run kv_store or qkv_to_cache; return qkv and the caches as they are after it."""
    n_tokens = len(qkv)
    counts = struct.pack("<2I12x", n_tokens, batch)
    if kernel.startswith("kv_store"):
        arrays, groups = [], (HEADS.n_kv_heads, n_tokens)
        form = struct.pack("<3I", *HEADS[:3])
    else:
        none = np.full(1, np.nan, np.float32)
        rope = np.zeros((HEADS.max_seq, 2, HEADS.head_dim // 2), np.float32)
        rope[:, 0] = 1  # no angle: keys go to the caches as they are
        arrays = [none, none, rope]
        groups = (tiles_for(HEADS.n_qkv, 2), n_tokens)
        form = struct.pack("<6If", *HEADS[:3], HEADS.head_dim, 0, 0, 0.0)
    after = run(
        kernel,
        [qkv, *arrays, *(c.raw for c in caches), states, tables],
        cache_args(caches, tables) + form + counts,
        groups=groups,
        threads=64,
        order=order,
    )
    return after[0], after[len(arrays) + 1 : len(arrays) + 3]


every_store = pytest.mark.parametrize("op", ["kv_store", "qkv_to_cache"])


@every_store
@every_cache
@every_order
def test_each_sequence_of_a_batch_stores_in_its_own_page(op, cache, order):
    states, tables = sequences([*LOST, *PLACED], outside=2)
    qkv = qkv_of(len(states))
    expected = new_caches(cache)
    left, after = store(f"{op}_{cache}", expected, qkv, states, tables, 1, order)
    for t, (position, pages) in enumerate([*LOST, *PLACED]):
        if t >= len(LOST):
            place = (pages[position // PAGE_SIZE], HEADS.layer, position % PAGE_SIZE)
            expected[0].store(*place, qkv[t, 4:6])
            expected[1].store(*place, qkv[t, 6:8])
    for got, e in zip(after, expected, strict=True):
        np.testing.assert_array_equal(got, e.raw)
    lost = [*range(len(LOST)), len(states) - 2, len(states) - 1]
    np.testing.assert_array_equal(left[lost], qkv[lost])


@every_store
@every_cache
@every_order
def test_a_prompt_goes_on_in_the_next_page(op, cache, order):
    # Positions 125..130: the last three are on page 3; then over the end of the sequence.
    for first, pages in ((125, [4, 1, 3]), (198, [4, 1, 3, 6])):
        states, tables = sequences([(first, pages)])
        qkv = qkv_of(6)
        expected = new_caches(cache)
        _, after = store(f"{op}_{cache}", expected, qkv, states, tables, 0, order)
        for t in range(6):
            position = first + t
            if position < HEADS.max_seq:
                place = (pages[position // PAGE_SIZE], HEADS.layer, position % PAGE_SIZE)
                expected[0].store(*place, qkv[t, 4:6])
                expected[1].store(*place, qkv[t, 6:8])
        for got, e in zip(after, expected, strict=True):
            np.testing.assert_array_equal(got, e.raw)


@every_order
def test_heads_of_a_batch_turn_to_the_position_of_their_sequence(order):
    states = np.array([(5, 9, 9, 9), (IDLE, 9, 9, 9), (0, 9, 9, 9), (6, 9, 9, 9)], np.uint32)
    qkv = qkv_of(4)
    angle = np.arange(6)[:, None] * 1e6 ** (-np.arange(16) / 16)
    none = np.full(1, np.nan, np.float32)
    y = run(
        "qk_norm_rope",
        [qkv, none, none, np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32), states],
        struct.pack("<6If3I8x", *HEADS[:3], 32, 0, 0, 0.0, 6, 4, 1),
        groups=(tiles_for(6, 2), 4),
        threads=64,
        order=order,
    )[0]
    for t, position in ((0, 5), (2, 0)):
        expected = reference.rope_neox(qkv[t, :6], position, 1e6)
        assert relative_error(y[t, :6], expected) < 1e-6
        np.testing.assert_array_equal(y[t, 6:], qkv[t, 6:])
    np.testing.assert_array_equal(y[[1, 3]], qkv[[1, 3]])


def attention(cache, caches, q, states, tables, batch, order="random", tile=(2, 1), splits=1):
    """Attend from q [tokens, heads, dim]; return [tokens, heads, dim]."""
    n_tokens, n = len(q), HEADS.head_dim
    qkv = np.full((n_tokens, HEADS.n_qkv, n), np.nan, np.float32)
    qkv[:, : HEADS.n_heads] = q
    width = n if splits == 1 else splits * (n + 2)
    counts = (n_tokens, splits, *tile, batch)
    out = run(
        f"attention_{cache}",
        [
            qkv,
            *(c.raw for c in caches),
            states,
            tables,
            np.full((n_tokens, HEADS.n_heads, width), SENTINEL),
        ],
        caches[0].args(HEADS.layer, HEADS.max_seq, len(tables) if len(caches[0].raw) > 1 else 0)
        + struct.pack("<3If5I12x", *HEADS[:3], n**-0.5, *counts),
        groups=(HEADS.n_heads // tile[0], tiles_for(n_tokens, tile[1]), splits),
        threads=64,
        constants={0: tile[0] * tile[1], 1: 4, 2: 0},
        order=order,
    )[5]
    if splits == 1:
        return out
    return run(
        "attention_combine",
        [out, np.full((n_tokens, HEADS.n_heads, n), SENTINEL)],
        struct.pack("<QII", n_tokens * HEADS.n_heads, n, splits),
        groups=n_tokens * HEADS.n_heads,
        threads=64,
        order=order,
    )[1]


def text(cache, length, seed):
    """Return keys and values [length, key-value heads, dim] that the caches can hold."""
    rng = np.random.default_rng([seed, length])
    shape = (length, HEADS.n_kv_heads, HEADS.head_dim)
    return [representable(cache, rng.standard_normal(shape), keys=keys) for keys in (True, False)]


def unpaged(cache, k, v, q, position, **options):
    """Attend with the sequence in a page of its own, its positions in their order."""
    caches = HEADS.caches(cache)
    for to, rows in zip(caches, (k, v), strict=True):
        to.write([0], HEADS.layer, rows)
    states = np.array([[position, 99, 99, 99]], np.uint32)
    return attention(cache, caches, q, states, states, 0, **options)


@every_cache
@every_order
@pytest.mark.parametrize("splits", [1, 2])
def test_each_sequence_of_a_batch_attends_to_its_own_pages(cache, order, splits):
    states, tables = sequences([*LOST, *PLACED], outside=2)
    caches = new_caches(cache, (0xFF, 0xFF))
    q = activations(len(states) * 4 * 32).reshape(-1, 4, 32)
    texts = [text(cache, position + 1, position) for position, _ in PLACED]
    for (_, pages), rows in zip(PLACED, texts, strict=True):
        for to, part in zip(caches, rows, strict=True):
            to.write(pages, HEADS.layer, part)
    y = attention(cache, caches, q, states, tables, 1, order, splits=splits)
    found = range(len(LOST), len(LOST) + len(PLACED))
    for t, (position, _), (k, v) in zip(found, PLACED, texts, strict=True):
        expected = reference.attention(q[t : t + 1], k, v)
        assert relative_error(y[t : t + 1], expected) < 1e-6
        alone = unpaged(cache, k, v, q[t : t + 1], position, splits=splits)
        np.testing.assert_array_equal(y[t : t + 1], alone)
    lost = [t for t in range(len(states)) if t not in found]
    assert np.isnan(y[lost]).all()


@every_cache
@every_order
def test_tokens_of_a_prompt_before_a_page_that_is_missing_are_not_nan(cache, order):
    # Tokens at 126..129 in one tile: the last two are on a page that is not there.
    caches = new_caches(cache, (0xFF, 0xFF))
    k, v = text(cache, 130, 1)
    q = activations(4 * 4 * 32).reshape(4, 4, 32)
    for to, rows in zip(caches, (k, v), strict=True):
        to.write([4, 1, 3], HEADS.layer, rows)
    for missing in (N_PAGES, IDLE):
        states, tables = sequences([(126, [4, 1, missing])])
        y = attention(cache, caches, q, states, tables, 0, order, tile=(1, 4))
        assert relative_error(y[:2], reference.attention(q[:2], k[:128], v[:128])) < 1e-6
        assert np.isnan(y[2:]).all()
    states, tables = sequences([(126, [4, 1, 3])])
    y = attention(cache, caches, q, states, tables, 0, order, tile=(1, 4))
    assert relative_error(y, reference.attention(q, k, v)) < 1e-6
    np.testing.assert_array_equal(y, unpaged(cache, k, v, q, 126, tile=(1, 4)))


@every_cache
def test_a_page_that_is_missing_early_reaches_all_that_come_after_it(cache):
    caches = new_caches(cache, (0x00, 0x00))
    q = activations(4 * 32).reshape(1, 4, 32)
    for splits in (1, 2):
        for pages in ([N_PAGES, 1, 3], [4, N_PAGES, 3], [4, 1, N_PAGES]):
            states, tables = sequences([(150, pages)])
            y = attention(cache, caches, q, states, tables, 1, splits=splits)
            assert np.isnan(y).all()


@every_cache
def test_pages_past_32_bits_are_found(cache):
    # Page 5 of strides of 2^31 elements is past 2^32 of them; only it is in memory.
    own, values = (KvCache(cache, 2, 32, PAGE_SIZE, keys=keys) for keys in (True, False))
    stride, before = 2**31, 5 * 2**31 * own.elements.itemsize
    args = struct.pack("<3Q6I", stride, 0, own.head_stride, PAGE_SIZE, 6, 1, 64, 0, 0)
    placed = [Placed(own.raw, before=before), Placed(own.raw.copy(), before=before)]
    states, table = np.array([[0, 9, 0, 9]], np.uint32), np.array([5], np.uint32)
    qkv = qkv_of(1)
    after = run(
        f"kv_store_{cache}",
        [qkv, *placed, states, table],
        args + struct.pack("<5I12x", *HEADS[:3], 1, 1),
        groups=(2, 1),
        threads=64,
        mode="fast",
    )
    for i, (to, rows) in enumerate(((own, qkv[0, 4:6]), (values, qkv[0, 6:8])), start=1):
        to.store(0, 0, 0, rows)
        np.testing.assert_array_equal(after[i], to.raw)
    y = run(
        f"attention_{cache}",
        [
            qkv,
            *(Placed(a, before=before) for a in after[1:3]),
            states,
            table,
            np.zeros((4, 32), np.float32),
        ],
        args + struct.pack("<3If5I12x", *HEADS[:3], 1.0, 1, 1, 1, 1, 1),
        groups=(4, 1, 1),
        threads=32,
        constants={0: 1, 1: 4, 2: 0},
        mode="fast",
    )[5]
    expected = held(cache, qkv[0, 6:8]).repeat(2, axis=0)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
