"""The kernels of shaders/recurrent.metal, each executed alone with every access checked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
from cases import relative_error
from recurrent_runs import IDLE, Conv, Delta, Slots, random, sized
from shader_recurrent import conv, delta
from shader_runs import every_order

BOUND = 2e-6  # of the norm of what is computed
TINY = 1e-37  # what a float's exponent does not reach


def check(run, case, before=None, **options):
    """Run a kernel for one sequence, whose state before is that or zero; nothing else changes."""
    ((position, first),) = case.states
    n_tokens, slots = len(case.arrays(np.zeros(1))[0]), case.slots
    given = {} if before is None else {slots.before(first, position): before}
    recurrent = slots.filled(case.part, given, np.nan)  # of which a product would show
    y, after = run(case, recurrent, **options)
    expected, state = case.expected(np.zeros(case.shape) if before is None else before)
    assert relative_error(y, expected) < BOUND
    to = slots.after(first, position, n_tokens)
    kept = slots.part(after, to, case.shape)
    assert relative_error(kept, state) < BOUND
    slots.part(recurrent, to, case.shape)[:] = kept
    np.testing.assert_array_equal(after, recurrent)
    return y, kept


def check_batch(run, case, before, **options):
    """Run a batch of five, which has its own states; `before` is of position 7."""
    states = ((0, 0), (7, 2), (IDLE, 4), (6, 6), (8, IDLE))
    case = replace(case, slots=Slots(7, 2, offset=1), states=states, batch=True)
    recurrent = case.slots.filled(case.part, {3: before}, np.nan)
    y, after = run(case, recurrent, **options)
    for t, (slot, own) in enumerate([(1, np.zeros(case.shape)), (2, before)]):
        expected, state = case.tokens(t, t + 1).expected(own)
        assert relative_error(y[t], expected[0]) < BOUND
        kept = case.slots.part(after, slot, case.shape)
        assert relative_error(kept, state) < BOUND
        case.slots.part(recurrent, slot, case.shape)[:] = kept
    assert (y[2:] == 0).all()  # idle, and two rings that pass the end of the buffer
    np.testing.assert_array_equal(after, recurrent)


def check_chunks(run, case, chunks, **options):
    """Run the tokens from position 0 on in chunks and compare bits with those of one run."""
    recurrent = case.slots.filled(case.part, {}, np.nan)
    whole, end = run(case, recurrent, **options)
    rows, at = [], 0
    for n in chunks:
        part = case.tokens(at, at + n, states=((at, 0),))
        y, recurrent = run(part, recurrent, **options)
        rows.append(y)
        at += n
    np.testing.assert_array_equal(np.concatenate(rows), whole)
    last = case.slots.after(0, 0, at)
    np.testing.assert_array_equal(recurrent[last], end[last])


# The convolution


def random_conv(n_tokens, n_channels, width, **more):
    return Conv(random(n_tokens, n_channels), random(n_channels, width, seed=1), **more)


@every_order
@pytest.mark.parametrize("width", range(2, 9))
def test_conv_matches_the_definition_at_every_edge(order, width):
    slots = Slots(3, 2, offset=5, behind=2)
    for n_tokens in (1, width - 1, 15, 16, 17, 33):
        for n_channels in (1, 64, 70):
            case = random_conv(n_tokens, n_channels, width, slots=slots, states=((5, 1),))
            if n_tokens % 2:
                case = replace(case, x_stride=n_channels + 1, y_stride=n_channels + 2)
            check(conv, case, random(*case.shape, seed=3), order=order)


@pytest.mark.parametrize("n_tokens", [1, 3, 20])
@pytest.mark.parametrize("threads", [32, 256])
def test_conv_of_the_first_tokens_reads_no_state(n_tokens, threads):
    check(conv, random_conv(n_tokens, 40, 4, slots=Slots(3), states=((0, 2),)), threads=threads)


@every_order
@pytest.mark.parametrize("chunks", [[1] * 40, [17, 1, 2, 20], [3, 37]])
def test_conv_has_the_same_bits_in_chunks_of_any_size(order, chunks):
    check_chunks(conv, random_conv(40, 33, 4, slots=Slots(2, 2)), chunks, order=order)


@every_order
def test_conv_of_a_batch_takes_each_sequence_by_itself(order):
    case = random_conv(5, 70, 4)
    check_batch(conv, case, random(*case.shape, seed=9), order=order)


@pytest.mark.parametrize("n_tokens", [1, 2, 20])
def test_conv_up_to_the_last_position(n_tokens):
    case = random_conv(n_tokens, 8, 3, states=((IDLE - n_tokens, 0),))
    check(conv, case, random(2, 8, seed=3))
    recurrent = case.slots.filled(case.part, {})
    y, after = conv(replace(case, states=((IDLE - n_tokens + 1, 0),)), recurrent)
    assert (y == 0).all()
    np.testing.assert_array_equal(after, recurrent)


def test_conv_keeps_infinities_and_nan_in_their_channel_and_window():
    case = random_conv(24, 6, 4)
    case.x[3, 1], case.x[4, 2], case.x[18, 3] = np.inf, np.nan, -np.inf
    y, after = conv(case, case.slots.filled(case.part, {}))
    expected, kept = case.expected(np.zeros((3, 6)))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after[0], kept.ravel())


def test_conv_of_large_and_small_sums_is_the_limit_of_silu():
    x = np.array([[90, -90, 1e4, -1e4, 3e38, -3e38, 1e-30, 0]], np.float32)
    weight = np.zeros((8, 2), np.float32)
    weight[:, 1] = 1
    case = Conv(x, weight)
    y, _ = conv(case, case.slots.filled(case.part, {}))
    np.testing.assert_allclose(y, reference.silu(x.astype(np.float64)), rtol=1e-5, atol=TINY)


# The delta rule


@every_order
@pytest.mark.parametrize("key_dim", range(32, 257, 32))
def test_delta_matches_the_definition_for_every_key(order, key_dim):
    for n_tokens in (1, 2, 5):
        case = Delta.random(n_tokens, 4, 2, key_dim, 32, n_tokens, gaps=(1, 2, 3))
        case = replace(case, slots=Slots(3, 1, 3, 2), states=((3, 1),))
        check(delta, case, random(*case.shape, seed=8), order=order)


@pytest.mark.parametrize("value_dim", range(32, 257, 32))
@pytest.mark.parametrize("heads", [(1, 1), (6, 2)])
def test_delta_matches_the_definition_for_every_value(value_dim, heads):
    case = Delta.random(3, *heads, 64, value_dim, slots=Slots(2, 2), states=((7, 0),))
    check(delta, case, random(*case.shape, seed=8))


@every_order
@pytest.mark.parametrize("simdgroups", [1, 2, 4])
@pytest.mark.parametrize("key_dim", [64, 128, 192, 256])
def test_delta_takes_tokens_in_blocks_of_every_size(order, simdgroups, key_dim):
    for n_tokens in (1, simdgroups, simdgroups + 1, 9):
        case = Delta.random(n_tokens, 1, 1, key_dim, 32, slots=Slots(3), states=((0, 2),))
        check(delta, case, order=order, simdgroups=simdgroups)


def test_delta_takes_keys_of_128_where_no_constant_says_otherwise():
    check(delta, Delta.random(2, 1, 1, 128, 32), constants={})


@every_order
@pytest.mark.parametrize("chunks", [[1] * 20, [5, 1, 14], [3, 17]])
def test_delta_has_the_same_bits_in_chunks_of_any_size(order, chunks):
    check_chunks(delta, Delta.random(20, 2, 1, 64, 32, slots=Slots(3, 3)), chunks, order=order)


def test_delta_has_the_same_bits_for_every_grid():
    case = Delta.random(9, 1, 1, 96, 64)
    runs = [delta(case, case.slots.filled(case.part, {}), simdgroups=n) for n in (1, 2, 4)]
    for y, after in runs[1:]:
        np.testing.assert_array_equal(y, runs[0][0])
        np.testing.assert_array_equal(after, runs[0][1])


@pytest.mark.parametrize("batch", [False, True])
def test_delta_has_the_same_bits_whatever_heads_a_dispatch_has(batch):
    states = ((5, 0), (0, 1), (IDLE, 2)) if batch else ((5, 2),)
    case = Delta.random(3, 5, 5, 32, 64, slots=Slots(3), states=states, batch=batch)
    recurrent = case.slots.filled(case.part, {s: random(case.part, seed=s) for s in range(3)})
    y, after = delta(case, recurrent)
    for piece in (1, 2, 4):
        for part, whole in zip(delta(case, recurrent, piece=piece), (y, after), strict=True):
            np.testing.assert_array_equal(part, whole)


@every_order
def test_delta_of_a_batch_takes_each_sequence_by_itself(order):
    case = Delta.random(5, 2, 1, 64, 64)
    check_batch(delta, case, random(*case.shape, seed=9), order=order)


@every_order
def test_an_idle_sequence_of_several_tokens_has_zeros(order):
    case = Delta.random(6, 1, 1, 64, 64)
    recurrent = case.slots.filled(case.part, {})
    for place in ((IDLE, 0), (IDLE - 5, 0), (3, 1)):
        y, after = delta(replace(case, states=(place,)), recurrent, order=order)
        assert (y == 0).all()
        np.testing.assert_array_equal(after, recurrent)
    check(delta, replace(case, states=((IDLE - 6, 0),)), random(*case.shape), order=order)


@pytest.mark.parametrize("size", [1e-44, 1e-40, 1e-30, 1e-22, 1e-4, 1e18, 1e38, 3e38])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_delta_of_queries_and_keys_whose_squares_leave_the_range(size, eps):
    case = Delta.random(3, 1, 1, 64, 32, more={"eps": eps})
    case = replace(case, q=sized(case.q, size), k=sized(case.k, size))
    y, _ = delta(case, case.slots.filled(case.part, {}))
    expected, _ = case.expected(np.zeros(case.shape))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=BOUND * abs(expected).max() + TINY)


def test_delta_of_zeros_adds_nothing():
    case = Delta.random(2, 1, 1, 32, 32, states=((4, 0),))
    case = replace(case, q=case.q * 0, k=case.k * 0)
    y, _ = check(delta, replace(case, k=case.k, q=case.q + 1), random(*case.shape))
    assert y.any()
    y, _ = delta(case, case.slots.filled(case.part, {0: random(*case.shape)}))
    assert (y == 0).all()


@pytest.mark.parametrize("alpha", [-200, -50, -17, -16, -1, 0, 1, 19.5, 20.5, 100, 1e30])
@pytest.mark.parametrize("beta", [-200, -3, 0, 200])
def test_delta_of_rates_of_every_size(alpha, beta):
    case = Delta.random(2, 1, 1, 32, 32, states=((1, 0),))
    case.dt_bias[:], case.a[:], case.alpha[:], case.beta[:] = 0, -0.3, alpha, beta
    before = random(*case.shape)
    y, after = delta(case, case.slots.filled(case.part, {0: before}))
    for got, expected in zip((y, after.reshape(case.shape)), case.expected(before), strict=True):
        bound = BOUND * abs(expected).max() + TINY
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=bound)


@pytest.mark.parametrize("alpha", [-30, -17, -10, -3])
def test_delta_forgets_as_slowly_as_it_is_told(alpha):
    # What log(1 + x) loses of a small x shows after many tokens, or with a large a.
    case = Delta.random(1, 1, 1, 32, 32, states=((1, 0),))
    case.dt_bias[:], case.a[:], case.alpha[:], case.v[:] = 0, -0.5 / np.exp(alpha), alpha, 0
    case.k[:] = 0
    before = random(*case.shape)
    _, after = delta(case, case.slots.filled(case.part, {0: before}))
    _, state = case.expected(before)
    np.testing.assert_allclose(after.reshape(case.shape), state, rtol=1e-6)


def test_delta_keeps_infinities_and_nan_in_their_head_and_column():
    case = Delta.random(5, 4, 2, 32, 64)
    case.v[1, 0, 3], case.v[2, 1, 9] = np.inf, np.nan
    case.q[3, 1, 5] = np.nan  # which heads 1 and 3 share
    y, _ = delta(case, case.slots.filled(case.part, {}))
    expected, _ = case.expected(np.zeros(case.shape))
    finite = np.isfinite(expected)
    assert 0 < finite.sum() < finite.size
    np.testing.assert_array_equal(np.isfinite(y), finite)
    assert relative_error(y[finite], expected[finite]) < BOUND
