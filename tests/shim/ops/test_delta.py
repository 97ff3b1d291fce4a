"""The gated delta rule, on every device, against float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from op_runs import SENTINEL, run
from recurrent_runs import IDLE, Delta, Slots, in_chunks, random, same_bits, sized

from oxibonsai.metal import EncodingError

BOUND = 3e-6  # relative, of the output and of the state


def close(delta, y, after, before):
    """Fail where the output or the state after it is not the definition's."""
    expected, state = delta.expected(before)
    for found, right in ((y, expected), (after, state)):
        if np.linalg.norm(right) > 0:
            assert relative_error(found, right) < BOUND
        else:
            assert (found == 0).all()


def check(device, delta, states, fill=SENTINEL):
    """Run one sequence from slots that hold `states`, of which only the last one's changes."""
    slots = delta.slots
    ((position, first),) = delta.states
    begin = slots.filled(delta.part, states, fill)
    y, after = delta.run(device, begin)
    before = states[slots.before(first, position)] if position else np.zeros(delta.shape)
    at = slots.after(first, position, len(delta.q))
    close(delta, y, slots.part(after, at, delta.shape), before)
    expected = begin.copy()
    slots.part(expected, at, delta.shape)[:] = slots.part(after, at, delta.shape)
    assert same_bits(after, expected)
    return y, after


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize(
    ("heads", "key_heads", "key_dim", "value_dim"),
    [(1, 1, 32, 32), (6, 2, 32, 64), (3, 1, 64, 32), (2, 2, 96, 160), (3, 3, 128, 128),
     (1, 1, 256, 256)],
)  # fmt: skip
def test_the_delta_rule_matches_the_definition(
    device, heads, key_heads, key_dim, value_dim, tokens
):
    slots = Slots(offset=3, behind=2)
    delta = Delta.random(
        tokens, heads, key_heads, key_dim, value_dim, slots=slots, states=((7, 0),)
    )
    check(device, delta, {0: random(*delta.shape, seed=9)})


@pytest.mark.parametrize("ring", [1, 3])
@pytest.mark.parametrize("fill", [np.nan, np.inf, 1.0])
def test_at_position_0_the_state_is_zero_whatever_the_slot_holds(device, ring, fill):
    delta = Delta.random(2, 3, 1, 32, 64, slots=Slots(4, ring, 1), states=((0, 1),))
    check(device, delta, {}, fill=fill)


@pytest.mark.parametrize("position", [1, 5, 2**31, 2**32 - 4])
@pytest.mark.parametrize(("n_slots", "first", "ring"), [(1, 0, 1), (5, 2, 3), (3, 0, 3)])
def test_the_state_goes_from_slot_to_slot(device, position, n_slots, first, ring):
    slots = Slots(n_slots, ring, 2, 3)
    delta = Delta.random(3, 2, 1, 64, 32, slots=slots, states=((position, first),))
    check(device, delta, {s: random(*delta.shape, seed=s) for s in range(n_slots)})


@pytest.mark.parametrize("ring", [1, 3])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(32, 96), (128, 128)])
def test_chunks_of_any_size_give_the_same_bits(device, ring, key_dim, value_dim):
    slots = Slots(4, ring, 5)
    all_tokens = Delta.random(9, 2, 1, key_dim, value_dim, slots=slots)

    def make(start, end, position):
        return all_tokens.tokens(start, end, states=((position, 1),))

    start = slots.filled(all_tokens.part, {}, np.nan)
    whole, slots_whole = in_chunks(device, make, start, [9])
    at = slots.after(1, 0, 9)
    for sizes in ([1] * 9, [2, 3, 4], [8, 1], [3, 3, 3]):
        y, after = in_chunks(device, make, start, sizes)
        assert same_bits(y, whole)
        assert same_bits(after[at], slots_whole[at])


def test_many_tokens_match_the_definition_and_chunks_of_them_bit_for_bit(device):
    slots = Slots(2, 2)
    all_tokens = Delta.random(70, 2, 1, 64, 64, slots=slots)

    def make(start, end, position):
        return all_tokens.tokens(start, end, states=((position, 0),))

    start = slots.filled(all_tokens.part, {}, np.nan)
    whole, after = in_chunks(device, make, start, [70])
    close(all_tokens, whole, slots.part(after, 0, all_tokens.shape), np.zeros(all_tokens.shape))
    parts, after_parts = in_chunks(device, make, start, [33, 1, 36])
    assert same_bits(parts, whole)
    assert same_bits(after_parts[0], after[0])


def test_two_runs_give_the_same_bits(device):
    delta = Delta.random(4, 4, 2, 64, 96, states=((3, 0),))
    begin = Slots().filled(delta.part, {0: random(*delta.shape)})
    first, second = (delta.run(device, begin) for _ in range(2))
    assert same_bits(first[0], second[0])
    assert same_bits(first[1], second[1])


def test_a_batch_gives_each_sequence_what_it_has_alone(device):
    slots = Slots(9, 2, 1)
    states = ((5, 0), (0, 2), (IDLE, 4), (8, 8), (2**32 - 2, 6))  # slots 8 and 9 are not all there
    batch = Delta.random(5, 4, 2, 32, 64, slots=slots, states=states, batch=True)
    begin = slots.filled(batch.part, {s: random(*batch.shape, seed=s) for s in range(9)})
    y, after = batch.run(device, begin)
    expected = begin
    for row, (position, first) in enumerate(states):
        if row in (2, 3):
            assert (y[row] == 0).all()
            continue
        alone = batch.tokens(row, row + 1, states=((position, first),), batch=False)
        one, expected = alone.run(device, expected)
        assert same_bits(y[row : row + 1], one)
    assert same_bits(after, expected)


@pytest.mark.parametrize(("position", "first"), [(IDLE, 0), (2**32 - 3, 0), (3, 1), (3, 2**32 - 1)])
def test_a_sequence_without_a_place_leaves_zeros_and_writes_no_state(device, position, first):
    slots = Slots(3, 3)
    delta = Delta.random(3, 2, 1, 32, 32, slots=slots, states=((position, first),))
    begin = slots.filled(delta.part, {})
    y, after = delta.run(device, begin)
    assert (y == 0).all()
    assert same_bits(after, begin)


@settings(max_examples=12)
@given(
    tokens=st.integers(1, 4), key_heads=st.integers(1, 3), ratio=st.integers(1, 3),
    key_dim=st.sampled_from([32, 64, 96]), value_dim=st.sampled_from([32, 64, 96]),
    ring=st.integers(1, 3), position=st.integers(0, 50),
    gaps=st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)),
    offset=st.integers(0, 4), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape_matches_the_definition(
    device, tokens, key_heads, ratio, key_dim, value_dim, ring, position, gaps, offset, seed
):
    slots = Slots(ring + 1, ring, offset, behind=1)
    delta = Delta.random(
        tokens, key_heads * ratio, key_heads, key_dim, value_dim, seed,
        slots=slots, states=((position, 1),), gaps=gaps,
    )  # fmt: skip
    check(device, delta, {s: random(*delta.shape, seed=seed + s) for s in range(ring + 1)})


@pytest.mark.parametrize("more", [{"eps": 0.0}, {"eps": 0.5}, {"scale": 1.0}, {"scale": -0.25}])
def test_eps_and_scale_are_those_that_are_given(device, more):
    delta = Delta.random(2, 2, 1, 32, 32, states=((1, 0),), more=more)
    check(device, delta, {0: random(*delta.shape)})


@pytest.mark.parametrize("size", [1e-44, 1e-40, 1e-30, 1e-18, 1e18, 1e38, 3e38])
@pytest.mark.parametrize("key_dim", [32, 256])
def test_queries_and_keys_of_any_length_become_unit_vectors(device, size, key_dim):
    delta = Delta.random(2, 2, 1, key_dim, 64, states=((1, 0),), more={"eps": 0.0})
    delta = replace(delta, q=sized(delta.q, size), k=sized(delta.k, size))
    check(device, delta, {0: random(*delta.shape)})


def test_zeros_leave_a_state_that_fades(device):
    delta = Delta.random(3, 2, 1, 32, 32, states=((1, 0),))
    delta = replace(delta, q=0 * delta.q, k=0 * delta.k)
    check(device, delta, {0: random(*delta.shape)})


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [(30, 0), (20.5, 1), (-30, 2), (1e4, -3), (-1e4, 100), (0, -100), (np.inf, 1), (-np.inf, 1),
     (1, np.inf), (1, -np.inf)],
)  # fmt: skip
def test_the_decay_and_the_rate_at_their_ends(device, alpha, beta):
    delta = Delta.random(2, 2, 1, 32, 32, states=((1, 0),))
    delta = replace(
        delta,
        alpha=np.full_like(delta.alpha, alpha),
        beta=np.full_like(delta.beta, beta),
        dt_bias=np.array([0, -0.5], np.float32),
        a=np.array([-1, -0.01], np.float32),
    )
    check(device, delta, {0: random(*delta.shape)})


def test_nan_stays_in_its_column_or_its_head(device):
    delta = Delta.random(3, 4, 2, 32, 32, states=((1, 0),))
    before = random(*delta.shape)
    clean, after_clean = delta.run(device, Slots().filled(delta.part, {0: before}))
    v = delta.v.copy()
    v[1, 2, 5] = np.nan
    y, after = replace(delta, v=v).run(device, Slots().filled(delta.part, {0: before}))
    assert np.isnan(y[1:, 2, 5]).all()
    y[1:, 2, 5] = clean[1:, 2, 5]
    assert same_bits(y, clean)
    state = after.reshape(delta.shape)
    assert np.isnan(state[2, :, 5]).all()
    state[2, :, 5] = after_clean.reshape(delta.shape)[2, :, 5]
    assert same_bits(state, after_clean.reshape(delta.shape))
    k, alpha = delta.k.copy(), delta.alpha.copy()
    k[1, 0, 7], alpha[2, 1] = np.nan, np.nan  # of heads 0 and 2, and of head 1
    y, after = replace(delta, k=k, alpha=alpha).run(device, Slots().filled(delta.part, {0: before}))
    assert np.isnan(y[1:, [0, 2]]).all()
    assert np.isnan(y[2, 1]).all()
    assert same_bits(y[:, 3], clean[:, 3])
    assert same_bits(y[:2, 1], clean[:2, 1])
    assert np.isnan(after.reshape(delta.shape)[:3]).all()


def test_an_infinite_value_is_not_finite_in_its_column(device):
    delta = Delta.random(2, 2, 1, 32, 32, states=((1, 0),))
    v = delta.v.copy()
    v[0, 1, 3] = np.inf
    y, after = replace(delta, v=v).run(device, Slots().filled(delta.part, {0: 0 * delta.part}))
    state = np.isfinite(after.reshape(delta.shape))
    assert not np.isfinite(y[:, 1, 3]).any()
    assert np.isfinite(y).sum() == y.size - 2
    assert not state[1, :, 3].any()
    assert state.sum() == state.size - 32


def test_a_state_of_subnormal_elements_stays_small(device):
    delta = Delta.random(2, 2, 1, 32, 32, states=((1, 0),))
    before = random(*delta.shape) * np.float32(1e-40)
    delta = replace(delta, v=delta.v * np.float32(1e-40))
    y, after = delta.run(device, Slots().filled(delta.part, {0: before}))
    expected, state = delta.expected(before)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-38)
    np.testing.assert_allclose(after.reshape(delta.shape), state, rtol=0, atol=2e-38)


def test_operands_may_begin_anywhere_and_be_weight_handles(device, graph):
    delta = Delta.random(2, 2, 1, 32, 32, states=((4, 0),))
    before = random(*delta.shape)
    qkv, ab, a, dt_bias, states, recurrent, y = delta.arrays(
        Slots().filled(delta.part, {0: before})
    )
    parts = (qkv, ab, recurrent, y)
    moved = [np.concatenate([np.full(3, SENTINEL), part.ravel()]) for part in parts]
    with graph.upload_f32_weight(a) as one, graph.upload_f32_weight(dt_bias) as other:

        def record(c, bqkv, bab, br, by, bs):
            c.delta((bqkv, 12), (bab, 12), one, other, bs, (br, 12), (by, 12), **delta.options())

        after = run(device, record, *moved, states)
    assert all((part[:3] == SENTINEL).all() for part in after[:4])
    close(delta, after[3][3:-64].reshape(delta.v.shape), after[2][3:].reshape(delta.shape), before)


# Errors

GOOD = {
    "n_key_heads": 1, "n_value_heads": 2, "key_dim": 32, "value_dim": 32, "slot_size": 2060,
    "offset": 6, "ring": 2, "n_tokens": 3,
}  # fmt: skip
WRONG = [
    ({"n_key_heads": 0}, r"n_key_heads = 0 must lie in 1\.\.4096"),
    ({"n_key_heads": 4097}, r"n_key_heads = 4097 must lie in 1\.\.4096"),
    ({"n_value_heads": 0}, r"n_value_heads = 0 must lie in 1\.\.4096"),
    ({"n_value_heads": 4097}, r"n_value_heads = 4097 must lie in 1\.\.4096"),
    ({"n_key_heads": 2, "n_value_heads": 3}, "3 value heads do not divide among 2 key heads"),
    ({"key_dim": 0}, r"key_dim = 0 must be a multiple of 32 in 32\.\.256"),
    ({"key_dim": 48}, r"key_dim = 48 must be a multiple of 32 in 32\.\.256"),
    ({"key_dim": 288}, r"key_dim = 288 must be a multiple of 32 in 32\.\.256"),
    ({"value_dim": 16}, r"value_dim = 16 must be a multiple of 32 in 32\.\.256"),
    ({"value_dim": 2**32 - 32}, r"value_dim = 4294967264 must be a multiple of 32 in 32\.\.256"),
    ({"eps": -1e-6}, "eps = -1e-06 must be finite and not negative"),
    ({"eps": float("nan")}, "eps = nan must be finite"),
    ({"slot_size": 0}, r"slot_size = 0 must lie in 1\.\."),
    ({"slot_size": 2053}, "2048 elements from offset = 6 on passes the end of the slot"),
    ({"offset": 13}, "offset = 13 on passes the end of the slot: slot_size = 2060"),
    ({"ring": 0}, r"ring = 0 must lie in 1\.\.2, the slots of recurrent"),
    ({"ring": 3}, r"ring = 3 must lie in 1\.\.2, the slots of recurrent"),
    ({"slot_size": 5000}, "recurrent too short: need 20000 bytes, got 16480"),
    ({"n_tokens": 0}, r"n_tokens = 0 must lie in 1\.\."),
    ({"n_tokens": 2**20 + 1}, r"n_tokens = 1048577 must lie in 1\.\."),
    ({"n_tokens": 4}, "qkv too short: need 2048 bytes, got 1536"),
    ({"batch": True}, "state too short: need 48 bytes, got 16"),
    ({"qkv_stride": 127}, r"qkv_stride = 127 must lie in 128\.\."),
    ({"ab_stride": 3}, r"ab_stride = 3 must lie in 4\.\."),
    ({"y_stride": 63}, r"y_stride = 63 must lie in 64\.\."),
    ({"y_stride": 0}, "y_stride = 0 must be as long as a row"),
    ({"qkv_stride": 129}, "qkv too short: need 1544 bytes, got 1536"),
    ({"ab_stride": 5}, "alpha_beta too short: need 56 bytes, got 48"),
    ({"y_stride": 65}, "output too short: need 776 bytes, got 768"),
    ({"n_value_heads": 1, "ab_stride": 2**31}, r"ab_stride = 2147483648 must lie in 2\.\."),
]
SIZES = {
    "qkv": 1536, "alpha_beta": 48, "a": 8, "dt_bias": 8, "state": 16, "recurrent": 16480, "y": 768,
}  # fmt: skip


@pytest.fixture
def operands(device):
    buffers = {name: device.buffer(size) for name, size in SIZES.items()}
    yield buffers
    for buffer in buffers.values():
        buffer.close()


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_shape_is_refused(device, operands, change, message):
    with device.commands() as commands:
        commands.delta(**operands, **GOOD)
        with pytest.raises(EncodingError, match=message):
            commands.delta(**operands, **{**GOOD, **change})
        assert len(commands) == 1


@pytest.mark.parametrize("name", SIZES)
def test_an_operand_that_is_none_or_starts_at_odd_bytes_is_refused(device, operands, name):
    with device.commands() as commands:
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            commands.delta(**{**operands, name: None}, **GOOD)
        with device.buffer(20000) as b, pytest.raises(EncodingError, match="starts at byte 2"):
            commands.delta(**{**operands, name: (b, 2)}, **GOOD)
        with pytest.raises(
            EncodingError, match=r"too short|ring = 2 must lie in 1\.\.1, the slots"
        ):
            commands.delta(**{**operands, name: (operands[name], 4)}, **GOOD)
        assert len(commands) == 0


@pytest.mark.parametrize(
    ("written", "other"),
    [(w, o) for w in ("recurrent", "y") for o in SIZES if o != w],
)
def test_operands_that_overlap_what_is_written_are_refused(device, operands, written, other):
    with device.buffer(32768) as b, device.commands() as commands:
        if written == "recurrent":  # which takes what the buffer has left
            at = 32768 - SIZES[written]
            apart, step = at - SIZES[other], 4
        else:
            at, apart, step = 0, SIZES[written], -4
        shared = {written: (b, at)}
        with pytest.raises(EncodingError, match="overlap in one buffer: use two") as caught:
            commands.delta(**{**operands, **shared, other: (b, apart + step)}, **GOOD)
        assert all({"y": "output"}.get(n, n) in str(caught.value) for n in (written, other))
        commands.delta(**{**operands, **shared, other: (b, apart)}, **GOOD)
