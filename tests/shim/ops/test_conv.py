"""The convolution along the tokens, on every device, against float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from op_runs import SENTINEL, run, state
from recurrent_runs import IDLE, Conv, Slots, in_chunks, random, same_bits, spaced

from oxibonsai.metal import EncodingError


def close(conv, y, before):
    """Fail where y is not the definition's, or the state after it has not the last inputs' bits."""
    expected, after = conv.expected(before)
    inputs = np.concatenate([np.asarray(before), conv.x]).astype(np.float64)
    width = conv.weight.shape[1]
    size = sum(
        np.abs(conv.weight[:, j] * inputs[j : j + len(conv.x)].astype(np.float64))
        for j in range(width)
    )
    assert (np.abs(y - expected) <= 2e-6 * size + 1e-36).all()
    return after.astype(np.float32)


@pytest.mark.parametrize("width", [2, 3, 4, 8])
@pytest.mark.parametrize(("tokens", "channels"), [(1, 1), (2, 33), (5, 64), (9, 257), (20, 5)])
def test_the_convolution_matches_the_definition(device, tokens, channels, width):
    slots = Slots(offset=3, behind=2)
    conv = Conv(random(tokens, channels), random(channels, width, seed=1), slots, ((7, 0),))
    before = random(*conv.shape, seed=2)
    y, after = conv.run(device, slots.filled(conv.part, {0: before}))
    expected = slots.filled(conv.part, {0: close(conv, y, before)})
    assert same_bits(after, expected)


@pytest.mark.parametrize("ring", [1, 3])
@pytest.mark.parametrize("fill", [np.nan, np.inf, 1.0])
def test_at_position_0_the_state_is_zero_whatever_the_slot_holds(device, ring, fill):
    slots = Slots(n_slots=4, ring=ring, offset=1)
    conv = Conv(random(2, 40), random(40, 4, seed=1), slots, ((0, 1),))
    y, after = conv.run(device, slots.filled(conv.part, {s: np.full(120, fill) for s in range(4)}))
    expected = slots.filled(conv.part, {s: np.full(120, fill) for s in range(4)})
    expected[1 + 2 % ring, 1:] = close(conv, y, np.zeros(conv.shape)).ravel()
    assert same_bits(after, expected)


@pytest.mark.parametrize("position", [1, 5, 2**31, 2**32 - 5])
@pytest.mark.parametrize(("n_slots", "first", "ring"), [(1, 0, 1), (5, 2, 3), (4, 0, 4)])
def test_the_state_goes_from_slot_to_slot(device, position, n_slots, first, ring):
    slots = Slots(n_slots, ring, offset=2, behind=3)
    conv = Conv(random(4, 48), random(48, 3, seed=1), slots, ((position, first),))
    states = {s: random(*conv.shape, seed=3 + s) for s in range(n_slots)}
    before = slots.filled(conv.part, states)
    y, after = conv.run(device, before)
    left = close(conv, y, states[slots.before(first, position)])
    expected = slots.filled(conv.part, states | {slots.after(first, position, 4): left})
    assert same_bits(after, expected)


@pytest.mark.parametrize("ring", [1, 3])
def test_chunks_of_any_size_give_the_same_bits(device, ring):
    slots = Slots(4, ring, offset=5)
    x, weight = random(12, 70), random(70, 4, seed=1)

    def make(start, end, position):
        return Conv(x[start:end], weight, slots, ((position, 1),))

    start = slots.filled(3 * 70, {s: np.full(210, np.nan) for s in range(4)})
    whole, slots_whole = in_chunks(device, make, start, [12])
    at = slots.after(1, 0, 12)
    for sizes in ([1] * 12, [2, 3, 7], [11, 1], [4, 4, 4]):
        y, after = in_chunks(device, make, start, sizes)
        assert same_bits(y, whole)
        assert same_bits(after[at], slots_whole[at])


def test_a_batch_gives_each_sequence_what_it_has_alone(device):
    slots = Slots(n_slots=9, ring=2, offset=1)
    states = ((5, 0), (0, 2), (IDLE, 4), (8, 8), (2**32 - 2, 6))  # slots 8 and 9 are not all there
    x, weight = random(5, 50), random(50, 4, seed=1)
    batch = Conv(x, weight, slots, states, batch=True)
    begin = slots.filled(150, {s: random(150, seed=s) for s in range(9)})
    y, after = batch.run(device, begin)
    expected = begin
    for row, (position, first) in enumerate(states):
        if row in (2, 3):
            assert (y[row] == 0).all()
            continue
        alone = replace(batch, x=x[row : row + 1], states=((position, first),), batch=False)
        one, expected = alone.run(device, expected)
        assert same_bits(y[row : row + 1], one)
    assert same_bits(after, expected)


@pytest.mark.parametrize(("position", "first"), [(IDLE, 0), (2**32 - 3, 0), (3, 1), (3, 2**32 - 1)])
def test_a_sequence_without_a_place_leaves_zeros_and_writes_no_state(device, position, first):
    slots = Slots(n_slots=3, ring=3)
    conv = Conv(random(3, 20), random(20, 4, seed=1), slots, ((position, first),))
    begin = slots.filled(conv.part, {})
    y, after = conv.run(device, begin)
    assert (y == 0).all()
    assert same_bits(after, begin)


@given(
    tokens=st.integers(1, 6), channels=st.integers(1, 80), width=st.integers(2, 8),
    ring=st.integers(1, 4), position=st.integers(0, 100), x_gap=st.integers(0, 5),
    y_gap=st.integers(0, 5), offset=st.integers(0, 4), batch=st.booleans(),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape_matches_the_definition(
    device, tokens, channels, width, ring, position, x_gap, y_gap, offset, batch, seed
):
    n = tokens if batch else 1
    slots = Slots(n * ring, ring, offset, behind=1)
    conv = Conv(
        random(tokens, channels, seed=seed), random(channels, width, seed=seed + 1), slots,
        tuple((position + i, i * ring) for i in range(n)), batch,
        channels + x_gap, channels + y_gap,
    )  # fmt: skip
    states = {s: random(*conv.shape, seed=seed + 2 + s) for s in range(n * ring)}
    y, after = conv.run(device, slots.filled(conv.part, states))
    expected = dict(states)
    for i, (at, first) in enumerate(conv.states):
        one = replace(conv, x=conv.x[i : i + 1]) if batch else conv
        before = states[slots.before(first, at)] if at else np.zeros(conv.shape)
        left = close(one, y[i : i + 1] if batch else y, before)
        expected[slots.after(first, at, len(one.x))] = left
    assert same_bits(after, slots.filled(conv.part, expected))


def test_zeros_infinities_and_nan_stay_in_their_channel(device):
    x, weight = random(6, 40), random(40, 4, seed=1)
    x[:, 3], x[2, 5], x[1, 7], x[1, 9] = 0, np.inf, -np.inf, np.nan
    x[3, 11], x[3, 12] = 3e38, -3e38
    weight[11:13] = 2
    conv = Conv(x, weight, Slots(), ((1, 0),))
    before = np.zeros(conv.shape, np.float32)
    before[0, 20] = np.nan
    y, _ = conv.run(device, Slots().filled(conv.part, {0: before}))
    with np.errstate(all="ignore"):
        expected = reference.conv_silu(x, weight, before)[0].astype(np.float32)
    assert (y[:, 3] == 0).all()
    finite = np.isfinite(expected)
    finite[:, 11:13] = False  # beyond the largest float
    np.testing.assert_allclose(y[finite], expected[finite], rtol=1e-5, atol=1e-6)
    assert np.isnan(y[np.isnan(expected)]).all()
    assert (y[3:, 11] == np.inf).all()
    assert np.isfinite(y[1:, 20]).all()
    assert np.isnan(y[0, 20])


def test_subnormal_inputs_stay_small(device):
    conv = Conv(random(3, 30) * np.float32(1e-40), random(30, 4, seed=1), Slots(), ((0, 0),))
    y, _ = conv.run(device, Slots().filled(conv.part, {}))
    np.testing.assert_allclose(y, conv.expected(np.zeros(conv.shape))[0], rtol=0, atol=2e-38)


def test_large_sums_have_their_limits(device):
    x = np.array([[30, 90, 200, 1e4]], np.float32) * np.array([[1], [-1]], np.float32)
    weight = np.tile(np.array([0, 1], np.float32), (4, 1))
    conv = Conv(x, weight, Slots(), ((0, 0),))
    y, _ = conv.run(device, Slots().filled(conv.part, {}))
    np.testing.assert_allclose(y[0], x[0], rtol=1e-6)
    np.testing.assert_allclose(y[1], conv.expected(np.zeros((1, 4)))[0][1], rtol=2e-6, atol=1e-37)


def test_operands_may_begin_anywhere_and_be_weight_handles(device, graph):
    conv = Conv(random(2, 24), random(24, 4, seed=1), Slots(), ((4, 0),))
    before = random(*conv.shape, seed=2)
    x, _, states, recurrent, y = conv.arrays(Slots().filled(conv.part, {0: before}))
    moved = [np.concatenate([np.full(3, SENTINEL), part.ravel()]) for part in (x, recurrent, y)]
    with graph.upload_f32_weight(conv.weight.ravel()) as weight:

        def record(c, bx, br, by, bs):
            c.conv((bx, 12), weight, bs, (br, 12), (by, 12), **conv.options())

        after = run(device, record, *moved, states)
    assert all((part[:3] == SENTINEL).all() for part in after[:3])
    left = close(conv, after[2][3:-24].reshape(2, 24), before)
    assert same_bits(after[1][3:], left.ravel())


# Errors

GOOD = {"n_channels": 8, "width": 4, "slot_size": 30, "offset": 2, "ring": 2, "n_tokens": 3}
WRONG = [
    ({"n_channels": 0}, r"n_channels = 0 must lie in 1\.\."),
    ({"n_channels": 2**25}, r"n_channels = 33554432 must lie in 1\.\."),
    ({"n_channels": 2**32}, "n_channels = 4294967296 must fit 32 bits"),
    ({"width": 1}, r"width = 1 must lie in 2\.\.8"),
    ({"width": 9}, r"width = 9 must lie in 2\.\.8"),
    ({"slot_size": 0}, r"slot_size = 0 must lie in 1\.\."),
    (
        {"slot_size": 25},
        "24 elements from offset = 2 on passes the end of the slot: slot_size = 25",
    ),
    ({"offset": 2**40}, "offset = 1099511627776 on passes the end"),
    ({"ring": 0}, r"ring = 0 must lie in 1\.\.2, the slots of recurrent"),
    ({"ring": 3}, r"ring = 3 must lie in 1\.\.2, the slots of recurrent"),
    ({"n_tokens": 0}, r"n_tokens = 0 must lie in 1\.\."),
    ({"n_tokens": 2**20 + 1}, r"n_tokens = 1048577 must lie in 1\.\."),
    ({"n_tokens": 4}, "input too short: need 128 bytes, got 96"),
    ({"x_stride": 7}, r"x_stride = 7 must lie in 8\.\."),
    ({"y_stride": 7}, r"y_stride = 7 must lie in 8\.\."),
    ({"x_stride": 0}, "x_stride = 0 must be as long as a row"),
    ({"x_stride": 9}, "input too short: need 104 bytes, got 96"),
    ({"y_stride": 9}, "output too short: need 104 bytes, got 96"),
    ({"batch": True}, "state too short: need 48 bytes, got 16"),
    ({"slot_size": 61}, "recurrent too short: need 244 bytes, got 240"),
]


SIZES = {"x": 96, "weight": 128, "state": 16, "recurrent": 240, "y": 96}


@pytest.fixture
def operands(device):
    buffers = {name: device.buffer(size) for name, size in SIZES.items()}
    yield buffers
    for buffer in buffers.values():
        buffer.close()


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_shape_is_refused(device, operands, change, message):
    with device.commands() as commands:
        commands.conv(**operands, **GOOD)
        with pytest.raises(EncodingError, match=message):
            commands.conv(**operands, **{**GOOD, **change})
        assert len(commands) == 1


@pytest.mark.parametrize("name", SIZES)
def test_an_operand_that_is_none_or_starts_at_odd_bytes_is_refused(device, operands, name):
    with device.commands() as commands:
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            commands.conv(**{**operands, name: None}, **GOOD)
        with device.buffer(512) as b, pytest.raises(EncodingError, match="starts at byte 2"):
            commands.conv(**{**operands, name: (b, 2)}, **GOOD)
        with pytest.raises(
            EncodingError, match=r"too short|ring = 2 must lie in 1\.\.1, the slots"
        ):
            commands.conv(**{**operands, name: (operands[name], 4)}, **GOOD)
        assert len(commands) == 0


@pytest.mark.parametrize(
    ("written", "other"),
    [(w, o) for w in ("recurrent", "y") for o in SIZES if o != w],
)
def test_operands_that_overlap_what_is_written_are_refused(device, operands, written, other):
    with device.buffer(1024) as b, device.commands() as commands:
        if written == "recurrent":  # which takes what the buffer has left
            at = 1024 - SIZES[written]
            apart, step = at - SIZES[other], 4
        else:
            at, apart, step = 0, SIZES[written], -4
        shared = {written: (b, at)}
        with pytest.raises(EncodingError, match="overlap in one buffer: use two") as caught:
            commands.conv(**{**operands, **shared, other: (b, apart + step)}, **GOOD)
        names = {"x": "input", "y": "output"}
        assert all(names.get(name, name) in str(caught.value) for name in (written, other))
        commands.conv(**{**operands, **shared, other: (b, apart)}, **GOOD)


def test_spaced_rows_of_the_helper_are_where_strides_say():
    assert spaced(np.ones((2, 3), np.float32), 4).tolist() == [[1, 1, 1, SENTINEL]] * 2


def test_a_state_has_its_first_slot_last():
    assert state(1, recurrent=5).tolist() == [1, 0, 0, 5]
