"""Caches of pages and batches of sequences on every device."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import activations, relative_error, upload
from hypothesis import given
from hypothesis import strategies as st
from kv_caches import ALIGNED, ELEMENTS
from op_runs import Heads, rope_table, run
from paged_runs import IDLE, attention, caches_of, queries, states_of, store, text

from oxibonsai import metal, quant

every_dtype = pytest.mark.parametrize("kv_dtype", ELEMENTS)
every_store = pytest.mark.parametrize("op", ["kv_store", "qkv_to_cache"])


def alone(device, heads, rows, qkv, position, **options):
    """Attend with a sequence in caches of one page."""
    caches = caches_of(heads)
    for cache, part in zip(caches, rows, strict=True):
        cache.write([0], heads.layer, part)
    states, _ = states_of([position], [[]])
    return attention(device, heads, caches, qkv, states, **options)


def paged(heads, page_size, texts, n_layers=0, spare=2, seed=0):
    """Return caches with each of some texts on pages in no order, and the pages of each."""
    counts = [-(-rows.shape[1] // page_size) for rows in texts]
    n_pages = sum(counts) + spare
    order = np.random.default_rng(seed).permutation(n_pages).tolist()
    tables = [[order.pop() for _ in range(count)] for count in counts]
    caches = caches_of(heads, page_size, n_pages, n_layers)
    for rows, table in zip(texts, tables, strict=True):
        for cache, part in zip(caches, rows, strict=True):
            cache.write(table, heads.layer, part)
    return caches, tables


def small(kv_dtype):
    """Return a small head_dim."""
    return max(8, ALIGNED[kv_dtype])


# Attention


@every_dtype
@pytest.mark.parametrize("page_size", [64, 128])
def test_a_batch_over_pages_has_the_bits_of_each_sequence_alone(device, kv_dtype, page_size):
    heads = Heads(4, 2, small(kv_dtype), 8256, 1, kv_dtype)
    lengths = [65, 1, 8193, 64, 63, 200]
    texts = [text(heads, length) for length in lengths]
    caches, pages = paged(heads, page_size, texts, n_layers=3)
    positions = [length - 1 for length in lengths]
    positions[5], pages[5] = IDLE, []
    states, tables = states_of(positions, pages)
    qkv = queries(heads, len(lengths))
    y = attention(device, heads, caches, qkv, states, tables, batch=True)
    for t, (rows, position) in enumerate(zip(texts[:5], positions, strict=False)):
        row = slice(t, t + 1)
        assert relative_error(y[row], reference.attention(qkv[row, :4], *rows)) < 1e-6
        np.testing.assert_array_equal(y[row], alone(device, heads, rows, qkv[row], position))
        one = attention(device, heads, caches, qkv[row], states[row], tables)
        np.testing.assert_array_equal(y[row], one)
    assert np.isnan(y[5]).all()


@every_dtype
def test_a_prompt_over_pages_has_the_bits_of_one_page(device, kv_dtype):
    heads = Heads(6, 2, 96 if kv_dtype == "q8" else 36, 300, 0, kv_dtype)
    rows = text(heads, 131)
    caches, pages = paged(heads, 64, [rows])
    for first, n_tokens in ((0, 131), (126, 5), (62, 3)):
        seen = rows[:, : first + n_tokens]
        qkv = queries(heads, n_tokens)
        states, tables = states_of([first], pages)
        y = attention(device, heads, caches, qkv, states, tables)
        assert relative_error(y, reference.attention(qkv[:, :6], *seen)) < 1e-6
        np.testing.assert_array_equal(y, alone(device, heads, seen, qkv, first))


@every_dtype
@pytest.mark.parametrize("length", [1, 100, 127, 128, 129, 512, 513, 1000])
def test_bits_do_not_depend_on_the_length_that_was_recorded(device, kv_dtype, length):
    heads = Heads(2, 1, small(kv_dtype), 20000, 0, kv_dtype)
    rows, qkv = text(heads, length), queries(heads, 1)
    wanted = alone(device, heads, rows, qkv, length - 1, max_length=length)
    assert relative_error(wanted, reference.attention(qkv[:, :2], *rows)) < 1e-6
    for max_length in (length + 1, 2 * length + 1, 9000, None):
        y = alone(device, heads, rows, qkv, length - 1, max_length=max_length)
        np.testing.assert_array_equal(y, wanted)


def test_a_text_longer_than_what_was_recorded_is_attended_to_as_a_whole(device):
    heads = Heads(2, 1, 8, 1200)
    rows, qkv = text(heads, 1100), queries(heads, 1)
    for max_length in (1, 600):
        y = alone(device, heads, rows, qkv, 1099, max_length=max_length)
        assert relative_error(y, reference.attention(qkv[:, :2], *rows)) < 1e-6


@every_dtype
@pytest.mark.parametrize("wrong", [4, 2**31, IDLE])
def test_a_page_that_is_not_there_reaches_its_sequence_alone(device, kv_dtype, wrong):
    heads = Heads(4, 2, max(16, small(kv_dtype)), 1000, 0, kv_dtype)
    texts = [text(heads, length) for length in (64, 128)]
    caches, pages = paged(heads, 64, texts, spare=1)
    qkv = queries(heads, 6)
    states, tables = states_of(
        [63, 127, 127, 127, 700, 5],
        [pages[0], pages[1], [wrong, pages[1][1]], [pages[1][0], wrong], [], pages[0]],
    )
    states[5, 2] = wrong if wrong > 4 else len(tables)  # a table outside the tables
    # The tables end where the pages of the sequence at 700 would begin.
    states[4, 2] = len(tables) - 1
    y = attention(device, heads, caches, qkv, states, tables, batch=True)
    assert np.isnan(y[2:]).all()
    for t in range(2):
        row = slice(t, t + 1)
        got = alone(device, heads, texts[t], qkv[row], 64 * t + 63)
        np.testing.assert_array_equal(y[row], got)


@st.composite
def batches(draw):
    """Draw a shape of heads, pages and the lengths of some sequences, 0 for an idle one."""
    kv_dtype = draw(st.sampled_from(list(ELEMENTS)))
    kv_heads, ratio = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    most = 80 // ALIGNED[kv_dtype]
    head_dim = ALIGNED[kv_dtype] * draw(st.integers(1, most))
    layer = draw(st.integers(0, 2))
    heads = Heads(kv_heads * ratio, kv_heads, head_dim, draw(st.integers(1, 200)), layer, kv_dtype)
    lengths = draw(st.lists(st.integers(0, heads.max_seq), min_size=1, max_size=4))
    return heads, 64 * draw(st.integers(1, 3)), lengths, draw(st.integers(0, 2))


@given(batch=batches(), seed=st.integers(0, 99))
def test_any_batch_over_pages_matches_the_definition(device, batch, seed):
    heads, page_size, lengths, layers_after = batch
    texts = [text(heads, length, seed) for length in lengths]
    caches, pages = paged(
        heads, page_size, texts, heads.layer + 1 + layers_after, spare=1, seed=seed
    )
    states, tables = states_of([(n or 2**32) - 1 for n in lengths], pages)
    qkv = queries(heads, len(lengths), seed)
    y = attention(device, heads, caches, qkv, states, tables, batch=True)
    for t, length in enumerate(lengths):
        row = slice(t, t + 1)
        if length == 0:
            assert np.isnan(y[row]).all()
            continue
        expected = reference.attention(qkv[row, : heads.n_heads], *texts[t])
        assert relative_error(y[row], expected) < 1e-6
        np.testing.assert_array_equal(
            y[row], alone(device, heads, texts[t], qkv[row], length - 1, max_length=length)
        )


# Stores


def fresh(heads, page_size, n_pages, n_layers=0):
    return caches_of(heads, page_size, n_pages, n_layers, (0x5A, 0xA5))


@every_store
@every_dtype
def test_a_batch_is_stored_in_the_pages_of_its_sequences(device, op, kv_dtype):
    n = small(kv_dtype)
    heads = Heads(4, 2, n, 200, 1, kv_dtype)
    positions = [0, 63, 64, 131, IDLE, 200, 3, 70]
    pages = [[5], [2], [0, 6], [4, 1, 3], [], [5, 5, 5, 5], [7], [5, IDLE]]
    states, tables = states_of(positions, pages)
    qkv = activations(8 * 8 * n).reshape(8, 8, n)
    expected = fresh(heads, 64, 7, 3)
    left, after = store(device, op, heads, expected, qkv, states, tables, batch=True)
    for t in range(4):
        # What a sequence alone stores in a cache of one page.
        single, _ = states_of(positions[t : t + 1], [[]])
        one = fresh(heads, 0, 1)
        query, raw = store(device, op, heads, one, qkv[t : t + 1], single)
        np.testing.assert_array_equal(left[t, :4], query[0, :4])
        for i in range(2):
            one[i].raw[:] = raw[i]
            page, slot = pages[t][positions[t] // 64], positions[t] % 64
            rows = one[i].elements[0, 1, :, positions[t]]
            expected[i].elements[page, 1, :, slot] = rows
            if kv_dtype == "q8":
                expected[i].words[page, 1, :, slot] = one[i].words[0, 1, :, positions[t]]
            if i == 1 or op == "kv_store":
                check = fresh(heads, 0, 1)[i]
                check.store(0, 1, positions[t], qkv[t, 4 + 2 * i : 6 + 2 * i])
                np.testing.assert_array_equal(check.raw, raw[i])
    for got, e in zip(after, expected, strict=True):
        np.testing.assert_array_equal(got, e.raw)
    np.testing.assert_array_equal(left[4:6], qkv[4:6])


@every_dtype
def test_a_prompt_is_stored_over_the_edge_of_a_page(device, kv_dtype):
    n = small(kv_dtype)
    heads = Heads(2, 1, n, 130, 0, kv_dtype)
    qkv = activations(9 * 4 * n).reshape(9, 4, n)
    expected = fresh(heads, 64, 4)
    states, tables = states_of([124], [[3, 0, 2]])
    _, after = store(device, "kv_store", heads, expected, qkv, states, tables)
    for t in range(6):  # three more have no place
        page, slot = (0, 60 + t) if t < 4 else (2, t - 4)
        expected[0].store(page, 0, slot, qkv[t, 2:3])
        expected[1].store(page, 0, slot, qkv[t, 3:4])
    for got, e in zip(after, expected, strict=True):
        np.testing.assert_array_equal(got, e.raw)


# What has no cache


def test_heads_of_a_batch_turn_to_the_positions_of_their_sequences(device):
    heads = Heads(4, 2, 8, 50)
    positions = [49, 0, IDLE, 50, 7]
    qkv = activations(5 * 64).reshape(5, 8, 8)
    states, _ = states_of(positions, [[]] * 5)

    def turned(qkv_, states_, batch):
        return run(
            device,
            lambda c, q, r, s: c.qk_norm_rope(
                q, None, None, r, s, n_tokens=len(qkv_), batch=batch, **heads.shape
            ),
            qkv_,
            rope_table(50, 8),
            states_,
        )[0]

    y = turned(qkv, states, True)
    for t in (0, 1, 4):
        expected = reference.rope_neox(qkv[t, :6], positions[t], 1e6)
        assert relative_error(y[t, :6], expected) < 1e-6
        np.testing.assert_array_equal(
            y[t : t + 1], turned(qkv[t : t + 1], states[t : t + 1], False)
        )
    np.testing.assert_array_equal(y[2:4], qkv[2:4])


def test_a_batch_embeds_the_token_of_each_sequence(device, graph):
    q = quant.quantize(activations(9 * 128).reshape(9, 128), "F32")
    tokens = np.array([5, 0, 8, 3, 7, 9], np.uint32)
    states = [(1, 2), (0, 0), (IDLE, 1), (1, 4), (4, 2), (2**31, 2**31 + 1), (0, 4)]
    states = np.array([(*s, 99, 99) for s in states], np.uint32)
    with upload(graph, q) as weight:
        y = run(
            device,
            lambda c, t, s, out: c.embed(weight, t, s, out, n_tokens=7, batch=True),
            tokens,
            states,
            np.zeros((7, 128), np.float32),
        )[2]
    rows = reference.dequantize_blocks(q.data, "F32", (9, 128))
    for t, token in ((0, 3), (1, 5), (6, 7)):
        np.testing.assert_array_equal(y[t], rows[token])
    assert np.isnan(y[2:6]).all()


# Misuse

SHAPE = {"n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "max_seq": 128, "layer": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"page_size": 63}, "page_size = 63 must be a multiple of 64 in 64..16777216"),
        ({"page_size": 0}, "pages without a page_size: give both, or neither"),
        ({"page_size": 2**24 + 64}, "page_size = 16777280 must be a multiple of 64"),
        ({"pages": None}, "page_size = 64 without pages: give both, or neither"),
        ({"n_pages": 0}, r"n_pages = 0 must lie in 1\.\.16777216"),
        ({"n_layers": 0}, r"n_layers = 0 must lie in 1\.\.4096"),
        ({"layer": 2}, r"layer = 2 must lie in 0\.\.1, the n_layers"),
        ({"n_pages": 4}, "k_cache too short: need 8192 bytes, got 6144"),
        ({"n_pages": 2**24, "page_size": 2**24, "n_layers": 4096}, "k_cache too short"),
        ({"n_tokens": 5, "batch": True}, "state too short: need 80 bytes, got 64"),
        ({"kv_dtype": "q8", "head_dim": 4}, "head_dim = 4 must be a multiple of 32 for .* q8"),
        ({"batch": True, "n_tokens": 2**20 + 1}, r"n_tokens = 1048577 must lie in 1\.\.1048576"),
    ],
)
def test_pages_that_fit_no_cache_are_refused(device, change, message):
    cache = np.zeros(3 * 2 * 64 * 4, np.float32)
    qkv, out = np.zeros((5, 4, 4), np.float32), np.zeros((5, 2, 4), np.float32)
    states = np.zeros((4, 4), np.uint32)
    with device.commands() as c:
        b = [device.upload(a) for a in (qkv, cache, cache, states, out)]
        pages = device.upload(np.zeros(2, np.uint32))
        given = {"pages": pages, "page_size": 64, "n_layers": 2, "n_pages": 3}
        given |= {"kv_dtype": "f32", **SHAPE, **change}
        for record in (lambda: c.attention(*b, **given), lambda: c.kv_store(*b[:4], **given)):
            with pytest.raises(metal.EncodingError, match=message):
                record()
        assert len(c) == 0


@pytest.mark.parametrize("shared", ["state", "pages"])
def test_what_is_written_lies_apart_from_states_and_pages(device, shared):
    # A page that changes between its check and its use would be read outside the cache.
    given = {**SHAPE, "kv_dtype": "f32", "page_size": 64, "n_layers": 2, "n_pages": 3}
    with device.commands() as c:
        cache = np.zeros(3 * 2 * 64 * 4, np.float32)
        one, qkv = device.upload(cache), device.upload(np.zeros((4, 4), np.float32))
        other = device.upload(cache)
        place = {"state": device.upload(np.zeros(4, np.uint32)), "pages": other, shared: one}
        given["pages"] = place["pages"]
        for record in (
            lambda: c.attention(qkv, other, other, place["state"], one, **given),
            lambda: c.kv_store(qkv, one, other, place["state"], **given),
            lambda: c.qkv_to_cache(
                qkv, None, None, device.upload(np.zeros(512, np.float32)), other, one,
                place["state"], **given
            ),
            lambda: c.qkv_attention(
                qkv, None, None, device.upload(np.zeros(512, np.float32)), other, one,
                place["state"], device.upload(cache), **given
            ),
        ):  # fmt: skip
            with pytest.raises(metal.EncodingError, match="overlap"):
                record()
        assert len(c) == 0
