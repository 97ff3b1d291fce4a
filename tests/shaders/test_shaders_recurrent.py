"""The kernels of shaders/recurrent.metal, each executed alone with every access checked."""

from __future__ import annotations

import numpy as np
import pytest
import recurrent_reference as reference
from cases import activations, relative_error
from shader_recurrent import (
    IDLE,
    Slots,
    conv,
    delta,
    random_delta,
    states,
)
from shader_runs import every_order

BOUND = 2e-6  # of the norm of what is computed
TINY = 1e-37  # what a float's exponent does not reach

# The convolution


def inputs(n_tokens, n_channels, width, seed=0):
    """Return tokens and a weight."""
    x = activations(n_tokens * n_channels, seed).reshape(n_tokens, n_channels)
    return x, activations(n_channels * width, seed + 1).reshape(n_channels, width)


def check_conv(x, weight, place, slots, before=None, **options):
    """Run one sequence and compare with the definition; return the slots after it."""
    n_tokens, n_channels = x.shape
    size = (weight.shape[1] - 1) * n_channels
    recurrent = slots.empty(size)
    position, first = place
    ring = slots.ring
    if before is not None:
        slots.part(recurrent, first + position % ring, size)[:] = before.ravel()
    else:
        before = np.zeros((weight.shape[1] - 1, n_channels))
    y, after = conv(x, weight, states(place), recurrent, slots, **options)
    expected, kept = reference.conv(x, weight, before)
    assert relative_error(y, expected) < BOUND
    to = first + (position + n_tokens) % ring
    np.testing.assert_array_equal(slots.part(after, to, size), kept.ravel())
    slots.part(recurrent, to, size)[:] = kept.ravel()
    np.testing.assert_array_equal(after, recurrent)  # and nothing else
    return y, after


@every_order
@pytest.mark.parametrize("width", range(2, 9))
def test_conv_matches_the_definition_at_every_edge(order, width):
    for n_tokens in (1, width - 1, 15, 16, 17, 33):
        for n_channels in (1, 64, 70):
            x, weight = inputs(n_tokens, n_channels, width)
            before = activations((width - 1) * n_channels, 3).reshape(width - 1, n_channels)
            slots = Slots(n_slots=3, ring=2, before=5)
            place = (5, 1)
            check_conv(x, weight, place, slots, before, order=order, gap=n_tokens % 3)


@pytest.mark.parametrize("n_tokens", [1, 3, 20])
@pytest.mark.parametrize("threads", [32, 256])
def test_conv_of_the_first_tokens_reads_no_state(n_tokens, threads):
    x, weight = inputs(n_tokens, 40, 4)
    check_conv(x, weight, (0, 2), Slots(), threads=threads)


@every_order
def test_conv_has_the_same_bits_in_chunks_of_any_size(order):
    x, weight = inputs(40, 33, 4)
    size, slots = 3 * 33, Slots(n_slots=2, ring=2)
    whole, end = conv(x, weight, states((0, 0)), slots.empty(size), slots, order=order)
    for chunks in ([1] * 40, [17, 1, 2, 20], [3, 37]):
        recurrent, rows, at = slots.empty(size), [], 0
        for n in chunks:
            y, recurrent = conv(
                x[at : at + n], weight, states((at, 0)), recurrent, slots, order=order
            )
            rows.append(y)
            at += n
        np.testing.assert_array_equal(np.concatenate(rows), whole)
        np.testing.assert_array_equal(recurrent[40 % 2], end[40 % 2])


@every_order
def test_conv_of_a_batch_takes_each_sequence_by_itself(order):
    n_channels, width = 70, 4
    x, weight = inputs(5, n_channels, width)
    size, slots = (width - 1) * n_channels, Slots(n_slots=7, ring=2)
    recurrent = slots.empty(size)
    before = activations(size, 9)
    recurrent[3] = before  # of position 7 in the ring from 2 on
    at = states((0, 0), (7, 2), (IDLE, 4), (6, 6), (8, IDLE))
    y, after = conv(x, weight, at, recurrent, slots, batch=True, order=order)
    zeros = np.zeros((width - 1, n_channels))
    first, kept_first = reference.conv(x[:1], weight, zeros)
    second, kept_second = reference.conv(x[1:2], weight, before.reshape(width - 1, n_channels))
    assert relative_error(y[:2], np.concatenate([first, second])) < BOUND
    assert (y[2:] == 0).all()  # idle, and two rings that pass the end of the buffer
    recurrent[1], recurrent[2] = kept_first.ravel(), kept_second.ravel()
    np.testing.assert_array_equal(after, recurrent)


@pytest.mark.parametrize("n_tokens", [1, 2, 20])
def test_conv_up_to_the_last_position(n_tokens):
    x, weight = inputs(n_tokens, 8, 3)
    slots, before = Slots(n_slots=1), activations(16).reshape(2, 8)
    check_conv(x, weight, (IDLE - n_tokens, 0), slots, before)
    recurrent = slots.empty(16)
    y, after = conv(x, weight, states((IDLE - n_tokens + 1, 0)), recurrent, slots)
    assert (y == 0).all()
    np.testing.assert_array_equal(after, recurrent)


def test_conv_keeps_infinities_and_nan_in_their_channel_and_window():
    x, weight = inputs(24, 6, 4)
    x[3, 1], x[4, 2], x[18, 3] = np.inf, np.nan, -np.inf
    slots = Slots(n_slots=1)
    y, after = conv(x, weight, states((0, 0)), slots.empty(18), slots)
    with np.errstate(invalid="ignore"):
        expected, kept = reference.conv(x, weight, np.zeros((3, 6)))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after[0], kept.ravel())


def test_conv_of_large_and_small_sums_is_the_limit_of_silu():
    x = np.array([[90, -90, 1e4, -1e4, 3e38, -3e38, 1e-30, 0]], np.float32)
    weight = np.zeros((8, 2), np.float32)
    weight[:, 1] = 1
    slots = Slots(n_slots=1)
    y, _ = conv(x, weight, states((0, 0)), slots.empty(8), slots)
    np.testing.assert_allclose(y, reference.silu(x), rtol=1e-5, atol=1e-37)


# The delta rule


def tokens_of(shape, n_tokens, seed=0, size=1.0):
    """Return queries, keys and values, and alpha and beta."""
    qkv = activations(n_tokens * shape.width, seed).reshape(n_tokens, -1) * np.float32(size)
    heads = 2 * shape.n_value_heads
    return qkv, 2 * activations(n_tokens * heads, seed + 1).reshape(n_tokens, heads)


def expected_delta(shape, qkv, alpha_beta, before=None):
    sizes = (shape.n_value_heads, shape.key_dim, shape.value_dim)
    before = np.zeros(sizes) if before is None else before.reshape(sizes)
    return reference.delta(
        qkv,
        alpha_beta,
        shape.a,
        shape.dt_bias,
        before,
        n_key_heads=shape.n_key_heads,
        eps=shape.eps,
        scale=shape.scale,
    )


def check_delta(shape, n_tokens, place, slots, before=None, seed=0, **options):
    """Run one sequence and compare with the definition."""
    qkv, alpha_beta = tokens_of(shape, n_tokens, seed)
    recurrent = slots.empty(shape.size)
    position, first = place
    if before is not None:
        slots.part(recurrent, first + position % slots.ring, shape.size)[:] = before
    y, after = delta(shape, qkv, alpha_beta, states(place), recurrent, slots, **options)
    expected, state = expected_delta(shape, qkv, alpha_beta, before)
    assert relative_error(y, expected) < BOUND
    to = first + (position + n_tokens) % slots.ring
    kept = slots.part(after, to, shape.size)
    assert relative_error(kept, state.ravel()) < BOUND
    slots.part(recurrent, to, shape.size)[:] = kept
    np.testing.assert_array_equal(after, recurrent)  # and nothing else


@every_order
@pytest.mark.parametrize("key_dim", range(32, 257, 32))
def test_delta_matches_the_definition_for_every_key(order, key_dim):
    shape = random_delta(2, 4, key_dim, 32)
    before = activations(shape.size, 5)
    for n_tokens in (1, 2, 5):
        check_delta(shape, n_tokens, (3, 1), Slots(before=3), before, n_tokens, order=order, gap=1)


@pytest.mark.parametrize("value_dim", range(32, 257, 32))
@pytest.mark.parametrize("heads", [(1, 1), (2, 6)])
def test_delta_matches_the_definition_for_every_value(value_dim, heads):
    shape = random_delta(*heads, 64, value_dim)
    check_delta(shape, 3, (7, 0), Slots(ring=2), activations(shape.size, 5))


@every_order
@pytest.mark.parametrize("simdgroups", [1, 2, 4])
@pytest.mark.parametrize("key_dim", [64, 128, 192, 256])
def test_delta_takes_tokens_in_blocks_of_every_size(order, simdgroups, key_dim):
    shape = random_delta(1, 1, key_dim, 32)
    for n_tokens in (1, simdgroups, simdgroups + 1, 9):
        check_delta(shape, n_tokens, (0, 2), Slots(), order=order, simdgroups=simdgroups)


def test_delta_takes_keys_of_128_where_no_constant_says_otherwise():
    check_delta(random_delta(1, 1, 128, 32), 2, (0, 0), Slots(), constants={})


@every_order
def test_delta_has_the_same_bits_in_chunks_of_any_size(order):
    shape, slots = random_delta(1, 2, 64, 32), Slots(n_slots=3, ring=3)
    qkv, alpha_beta = tokens_of(shape, 20)
    whole, end = delta(
        shape, qkv, alpha_beta, states((0, 0)), slots.empty(shape.size), slots, order=order
    )
    for chunks in ([1] * 20, [5, 1, 14], [3, 17]):
        recurrent, rows, at = slots.empty(shape.size), [], 0
        for n in chunks:
            part = slice(at, at + n)
            y, recurrent = delta(
                shape,
                qkv[part],
                alpha_beta[part],
                states((at, 0)),
                recurrent,
                slots,
                order=order,
                simdgroups=4 if n > 1 else 2,
            )
            rows.append(y)
            at += n
        np.testing.assert_array_equal(np.concatenate(rows), whole)
        np.testing.assert_array_equal(recurrent[20 % 3], end[20 % 3])


@every_order
def test_delta_of_a_batch_takes_each_sequence_by_itself(order):
    shape, slots = random_delta(1, 2, 64, 64), Slots(n_slots=7, ring=2, before=1)
    qkv, alpha_beta = tokens_of(shape, 5)
    recurrent, before = slots.empty(shape.size), activations(shape.size, 9)
    slots.part(recurrent, 3, shape.size)[:] = before  # of position 7 in the ring from 2 on
    at = states((0, 0), (7, 2), (IDLE, 4), (6, 6), (8, IDLE))
    y, after = delta(shape, qkv, alpha_beta, at, recurrent, slots, batch=True, order=order)
    for t, (slot, own) in enumerate([(1, None), (2, before)]):
        expected, state = expected_delta(shape, qkv[t : t + 1], alpha_beta[t : t + 1], own)
        assert relative_error(y[t], expected[0]) < BOUND
        kept = slots.part(after, slot, shape.size)
        assert relative_error(kept, state.ravel()) < BOUND
        slots.part(recurrent, slot, shape.size)[:] = kept
    assert (y[2:] == 0).all()  # idle, and two rings that pass the end of the buffer
    np.testing.assert_array_equal(after, recurrent)


@every_order
def test_an_idle_sequence_of_several_tokens_has_zeros(order):
    shape, slots = random_delta(1, 1, 64, 64), Slots(n_slots=1)
    qkv, alpha_beta = tokens_of(shape, 6)
    recurrent = slots.empty(shape.size)
    for place in ((IDLE, 0), (IDLE - 5, 0), (3, 1)):
        y, after = delta(shape, qkv, alpha_beta, states(place), recurrent, slots, order=order)
        assert (y == 0).all()
        np.testing.assert_array_equal(after, recurrent)
    check_delta(shape, 6, (IDLE - 6, 0), slots, activations(shape.size))


@pytest.mark.parametrize("size", [0, 1e-30, 1e-22, 1e-4, 1e18, 1e25])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_delta_of_queries_and_keys_whose_squares_leave_the_range(size, eps):
    shape = random_delta(1, 1, 64, 32)._replace(eps=eps)
    if size == eps == 0:
        return
    qkv, alpha_beta = tokens_of(shape, 3)
    qkv[:, :128] *= np.float32(size)
    slots = Slots(n_slots=1)
    y, _ = delta(shape, qkv, alpha_beta, states((0, 0)), slots.empty(shape.size), slots)
    expected, _ = expected_delta(shape, qkv, alpha_beta)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=BOUND * abs(expected).max() + TINY)


@pytest.mark.parametrize("alpha", [-200, -50, -17, -16, -1, 0, 1, 19.5, 20.5, 100, 1e30])
@pytest.mark.parametrize("beta", [-200, -3, 0, 200])
def test_delta_of_rates_of_every_size(alpha, beta):
    shape, slots = random_delta(1, 1, 32, 32), Slots(n_slots=1)
    shape.dt_bias[:], shape.a[:] = 0, -0.3
    before = activations(shape.size)
    recurrent = before[None].copy()
    qkv, alpha_beta = tokens_of(shape, 2)
    alpha_beta[:, 0], alpha_beta[:, 1] = alpha, beta
    y, after = delta(shape, qkv, alpha_beta, states((1, 0)), recurrent, slots)
    expected, state = expected_delta(shape, qkv, alpha_beta, before)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=BOUND * abs(expected).max() + TINY)
    np.testing.assert_allclose(
        after[0], state.ravel(), rtol=1e-5, atol=BOUND * abs(state).max() + TINY
    )


@pytest.mark.parametrize("alpha", [-30, -17, -10, -3])
def test_delta_forgets_as_slowly_as_it_is_told(alpha):
    # What log(1 + x) loses of a small x shows after many tokens, or with a large a.
    shape, slots = random_delta(1, 1, 32, 32), Slots(n_slots=1)
    shape.dt_bias[:], shape.a[:] = 0, -0.5 / np.exp(alpha)
    before = activations(shape.size)
    qkv, alpha_beta = tokens_of(shape, 1, size=0.0)
    alpha_beta[:, 0] = alpha
    _, after = delta(shape, qkv, alpha_beta, states((1, 0)), before[None].copy(), slots)
    _, state = expected_delta(shape, qkv, alpha_beta, before)
    np.testing.assert_allclose(after[0], state.ravel(), rtol=1e-6)


def test_delta_keeps_infinities_and_nan_in_their_head_and_column():
    shape, slots = random_delta(2, 4, 32, 64), Slots(n_slots=1)
    qkv, alpha_beta = tokens_of(shape, 5)
    values = qkv[:, 128:]
    values[1, 3], values[2, 64 + 9] = np.inf, np.nan  # of heads 0 and 1
    qkv[3, 32 + 5] = np.nan  # the query of head 1, which heads 1 and 3 share
    y, _ = delta(shape, qkv, alpha_beta, states((0, 0)), slots.empty(shape.size), slots)
    with np.errstate(invalid="ignore"):
        expected, _ = expected_delta(shape, qkv, alpha_beta)
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(expected))
    finite = np.isfinite(expected)
    assert relative_error(y[finite], expected[finite]) < BOUND
