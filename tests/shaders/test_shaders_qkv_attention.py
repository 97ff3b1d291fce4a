"""Attention of single tokens that makes their heads, against the two kernels that it stands for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from attention_runs import Making, combine, make_and_attend, make_then_attend, written
from cases import activations
from kv_caches import tables_of
from shader_heads import Heads
from shader_runs import state

N_PAGES, PAGE_SIZE = 8, 64
IDLE = 2**32 - 1


def history(heads, length, seed=0):
    """Return keys and values [length, n_kv_heads, head_dim] as halves."""
    rng = np.random.default_rng([seed, length, *heads[:3]])
    return rng.standard_normal((2, length, heads.n_kv_heads, heads.head_dim)).astype(np.float16)


def token(heads, n_tokens=1, seed=0):
    n = n_tokens * heads.n_qkv * heads.head_dim
    return activations(n, seed).reshape(n_tokens, heads.n_qkv, heads.head_dim)


def check(heads, caches, qkv, states, tables, making, *, order="random", ahead=True, **options):
    """Both ways leave the same bits."""
    got = make_and_attend(
        heads, copy.deepcopy(caches), qkv, states, tables, making, order=order, ahead=ahead,
        **options,
    )  # fmt: skip
    expected = make_then_attend(heads, caches, qkv, states, tables, making, **options)
    for a, b in zip(got[:2], expected[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    y, same = (a if options.get("splits", 1) == 1 else combine(a) for a in (got[2], expected[2]))
    np.testing.assert_array_equal(y, same)
    return y


def check_one(heads, length, making, qkv=None, **options):
    """The token at position `length` of a text alone."""
    caches = written(heads, [([0], *history(heads, length))])
    qkv = token(heads) if qkv is None else qkv
    return check(heads, caches, qkv, state(length), None, making, **options)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize("shape", [(4, 2, 64), (8, 1, 128), (3, 3, 128)], ids=str)
def test_heads_that_are_made_have_the_bits_of_two_dispatches(order, shape, ahead):
    heads = Heads(*shape, 150, layer=1)
    for length in (0, 1, 15, 16, 31, 140):
        y = check_one(heads, length, Making(shape[2]), order=order, ahead=ahead)
        assert np.isfinite(y).all()


@pytest.mark.parametrize("simdgroups", [1, 2, 3])
def test_heads_are_made_by_any_number_of_simdgroups(simdgroups):
    for length in (0, 20, 47):
        check_one(Heads(6, 2, 64, 60), length, Making(64), simdgroups=simdgroups)


@pytest.mark.parametrize("splits", [2, 3])
@pytest.mark.parametrize("length", [100, 256, 300, 383])
def test_the_split_of_the_tokens_position_makes_its_key_and_value(splits, length):
    assert np.isfinite(check_one(Heads(2, 1, 64, 400), length, Making(64), splits=splits)).all()


@pytest.mark.parametrize("n", [64, 128])
@pytest.mark.parametrize(("rotary", "interleaved"), [(1, False), (1, True), (2, False)])
@pytest.mark.parametrize("has_norm", [False, True])
def test_heads_are_made_with_any_options(n, rotary, interleaved, has_norm):
    making = Making(n // rotary, interleaved, has_norm)
    check_one(Heads(4, 2, n, 60), 33, making)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("odd", [np.inf, np.nan, 1e30, 1e-30, 0.0])
@pytest.mark.parametrize("head", [0, 3, 4, 6], ids=["query", "query 3", "key", "value"])
def test_odd_heads_have_the_bits_of_two_dispatches(odd, head):
    heads = Heads(4, 2, 64, 60)
    for has_norm in (True, False):
        qkv = token(heads)
        qkv[0, head, 5] = odd
        check_one(heads, 30, Making(64, has_norm=has_norm), qkv)
        qkv[0, head] = odd
        check_one(heads, 30, Making(64, has_norm=has_norm), qkv)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("splits", [1, 2])
def test_heads_of_a_batch_go_to_their_own_pages_or_nowhere(splits, ahead):
    heads = Heads(4, 2, 64, 400, layer=1)
    # Nobody's own page is read for the lost, whose result does not depend on it.
    placed = [(0, [5]), (63, [2]), (64, [0, 6]), (131, [4, 1, 3])]
    lost = [(IDLE, []), (400, [7] * 7), (3, [N_PAGES]), (70, [7, IDLE])]
    texts = [(pages, *history(heads, position, position)) for position, pages in placed]
    caches = written(heads, texts, PAGE_SIZE, N_PAGES)
    both = [*lost, *placed]
    tables, starts = tables_of([pages for _, pages in both], gap=2)
    states = [(position, 99, start, 99) for (position, _), start in zip(both, starts, strict=True)]
    y = check(
        heads,
        caches,
        token(heads, len(states)),
        np.array(states, np.uint32),
        tables,
        Making(64),
        splits=splits,
        batch=1,
        ahead=ahead,
    )
    assert np.isfinite(y[len(lost) :]).all()
    assert np.isnan(y[: len(lost)]).all()
