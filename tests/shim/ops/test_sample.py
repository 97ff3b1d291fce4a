"""The op sample on every device, against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from cases import held_by
from op_runs import run
from sampling_cases import FILTERS, rows_of
from sampling_reference import (
    BIAS,
    CHOICE,
    NONE,
    SCORED,
    adjusted,
    best,
    draw_errors,
    settings,
)

from oxibonsai import metal
from oxibonsai.metal import EncodingError

STATE = np.dtype([("position", "u4"), ("tokens", "u4"), ("pages", "u4"), ("recurrent", "u4")])
UNTOUCHED = 0xDDDDDDDD


def states_at(*positions, tokens=0):
    states = np.zeros(len(positions), STATE)
    states["position"], states["tokens"] = positions, tokens
    states["pages"], states["recurrent"] = 0xBBBB, 0xCCCC
    return states


class Sampled:
    """What an op left, by operand: states, tokens, choices [row][slot], best [row][slot]."""

    def __init__(self, device, logits, one, states, tokens=None, n_best=0, n_slots=1, **options):
        logits = np.atleast_2d(np.asarray(logits, np.float32))
        v, n = logits.shape
        tokens = np.zeros(8, np.uint32) if tokens is None else np.asarray(tokens, np.uint32)
        choices = np.full((v, n_slots, 4), UNTOUCHED, np.uint32).view(CHOICE)[..., 0]
        scored = np.full((v, n_slots, max(n_best, 1), 2), UNTOUCHED, np.uint32).view(SCORED)[..., 0]
        extra = {name: options.pop(name) for name in ("biases", "masks") if name in options}
        counts = {f"n_{name}": len(array) for name, array in extra.items()}
        # The logits start 4 bytes into their buffer: more alignment is not promised.
        padded = np.concatenate([np.float32([np.inf]), logits.ravel()])
        arrays = [padded, one, states, tokens, choices, scored, *extra.values()]

        def record(c, logits, settings, state, tokens, choices, scored, *more):
            c.sample(
                (logits, 4),
                settings,
                state,
                tokens,
                choices,
                n,
                len(arrays[3]),
                n_vectors=v,
                n_best=n_best,
                best=scored if n_best else None,
                n_slots=n_slots,
                **dict(zip(extra, more, strict=True)),
                **counts,
                **options,
            )

        left = run(device, record, *arrays)
        for before, after in zip(arrays[:2], left[:2], strict=True):
            np.testing.assert_array_equal(before.view(np.uint32), after.view(np.uint32))
        self.states, self.tokens, self.choices, self.best = left[2:6]


def check_rows(device, rows, one, position=0, scored=5):
    """Hold the draws of several rows of one sequence to the definition."""
    after = Sampled(
        device,
        rows,
        one,
        states_at(position),
        n_best=scored,
        log_probabilities=True,
        advance=False,
    )
    for v, row in enumerate(rows):
        choice = after.choices[v, 0]
        assert choice["position"] == position + v + 1
        error = draw_errors(row, one[0], position + v + 1, choice["token"])
        assert not error, f"row {v}: {error}"
        tokens, scores, own = best(row, scored, choice["token"])
        np.testing.assert_array_equal(after.best["token"][v, 0], tokens)
        np.testing.assert_allclose(after.best["log_probability"][v, 0], scores, atol=1e-5)
        np.testing.assert_allclose(choice["log_probability"], own, atol=1e-5)
    return after


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("n", [1, 2, 31, 1030, 4096, 4097, 9001])
def test_the_choice_wins_the_race_of_what_the_filters_keep(device, n, filters):
    check_rows(device, rows_of(n), settings(**FILTERS[filters]), position=n)


@pytest.mark.parametrize("seed", [(0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (123, 0)])
@pytest.mark.parametrize("choice", [0, 5, 0xFFFFFFFF])
def test_seed_and_choice_are_of_the_noise(device, seed, choice):
    rows = np.zeros((6, 500), np.float32)
    check_rows(device, rows, settings(seed=seed, choice=choice, top_p=1 << 31), position=2**31 - 9)


@pytest.mark.parametrize("top_k", [0, 3, 4, 5, 6, 200, 100_000])
@pytest.mark.parametrize("top_p", [0, 1, 3 << 30, 0xFFFFFFFF])
@pytest.mark.parametrize("least", [0, 1 << 20, NONE])
def test_filters_at_their_limits(device, top_k, top_p, least):
    rng = np.random.default_rng(top_k)
    rows = np.float32([rng.integers(0, 3, 300), rng.normal(0, 4, 300), np.arange(300) == 7])
    check_rows(device, rows, settings(top_k=top_k, top_p=top_p, least=least))


def test_no_temperature_takes_the_first_of_the_largest_and_advances(device):
    after = Sampled(device, [1, 5, np.nan, 5, -np.inf], settings(scale=0), states_at(2))
    assert after.tokens.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert after.states.tolist() == [(3, 0, 0xBBBB, 0xCCCC)]
    for logits, scale, token in (
        ([np.nan, -np.inf], 2**20, NONE),
        ([np.nan, -np.inf], 0, NONE),
        ([0, np.inf, np.inf], 2**20, 1),
        ([-0.0, 0.0], 0, 0),
        ([0.0, 1e-45, 3e-45, 1e-45], 0, 2),
        ([-3e-45, -1e-45], 0, 1),
        ([-np.inf, -3e38], 2**20, 1),
    ):
        after = Sampled(device, logits, settings(scale=scale), states_at(0))
        assert after.choices["token"] == token


def test_a_choice_of_none_is_stored_as_token_0(device):
    after = Sampled(
        device, [np.nan, -np.inf], settings(), states_at(2), np.full(5, 9), log_probabilities=True
    )
    assert after.tokens.tolist() == [9, 9, 9, 0, 9]
    assert after.choices.tolist() == [[(NONE, 3, -np.inf, 0)]]


def test_logits_of_the_largest_numbers(device):
    rows = np.float32([[3e38, -3e38, 3e38], [-3e38, -3.2e38, -3e38], [1e30, 1e-30, -1e30]])
    for scale in (1e-30, 2**20, 2**60, 3e38):
        one = settings(scale=scale)
        after = Sampled(device, rows, one, states_at(0), advance=False)
        for v, row in enumerate(rows):
            assert not draw_errors(row, one[0], v + 1, after.choices["token"][v, 0])


def test_masks(device):
    rng = np.random.default_rng(3)
    n = 4130
    rows = rng.normal(0, 2, (3, n)).astype(np.float32)
    masks = np.zeros((4, (n + 31) // 32), np.uint32)
    masks[1, 4129 // 32] = 1 << 4129 % 32
    masks[2] = 0xFFFFFFFF
    masks[3] = rng.integers(0, 2**32, masks.shape[1], np.uint32)
    for mask, filters in ((0, {}), (1, {}), (2, {}), (3, {}), (3, {"top_k": 4}), (4, {})):
        one = settings(mask=mask, **filters)
        after = Sampled(device, rows, one, states_at(5), masks=masks, n_best=2, advance=False)
        for v, row in enumerate(rows):
            w = adjusted(row, one[0], [], [], masks)
            assert not draw_errors(w, one[0], 6 + v, after.choices["token"][v, 0])
            np.testing.assert_array_equal(after.best["token"][v, 0], best(row, 2, 0)[0])


def test_biases_add_in_their_order(device):
    biases = np.array(
        [(3, 9), (0, np.inf), (1, -np.inf), (9000, 1), (NONE, 1), (2, np.nan), (4, 1e8), (4, -1e8)],
        BIAS,
    )
    row = np.float32([0, 1, 2, 3, 4.3, 5, 6] + [-1] * 5000)
    row[5000] = 11
    for first, count in ((0, 1), (0, 3), (2, 99), (4, 4), (6, 2), (7, 1), (8, 1), (NONE, NONE)):
        for scale in (0, 2**20):
            one = settings(first_bias=first, n_biases=count, scale=scale)
            after = Sampled(device, row, one, states_at(0), biases=biases, log_probabilities=True)
            w = adjusted(row, one[0], [], biases, [])
            token = after.choices["token"][0, 0]
            assert not draw_errors(w, one[0], 1, token)
            np.testing.assert_allclose(
                after.choices["log_probability"][0, 0], best(row, 0, token)[2], atol=1e-5
            )


def test_penalties_count_the_tokens_of_the_window_alone(device):
    tokens = [0, 1, 1, 2, 0, 0, 0, 0]
    for window, token in ((3, 0), (4, 3), (99, 3)):
        one = settings(scale=0, presence=1, frequency=2, window=window)
        after = Sampled(device, [3, 5.5, 2.5, 1.1], one, states_at(3), tokens, advance=False)
        assert after.choices["token"] == token


@pytest.mark.parametrize("window", [0, 1, 7, 2**31, NONE])
def test_penalties_of_every_kind(device, window):
    rng = np.random.default_rng(8)
    n = 4200
    rows = rng.normal(0, 3, (4, n)).astype(np.float32)
    rows[:, 7:9] = 0.0, -0.0
    text = np.concatenate([rng.integers(0, 10, 20), [n, NONE, n - 1], rng.integers(0, 9, 9)])
    shifted = np.concatenate([[3, 3, 3, 3, 3], text])  # another sequence's tokens before them
    for values in (
        {"presence": 1.5, "frequency": 0.3, "repetition": 1.3, "inverse_repetition": 1 / 1.3},
        {"repetition": np.inf, "inverse_repetition": 0},
        {"presence": -2, "frequency": np.nan},
        {"frequency": np.inf},
    ):
        one = settings(window=window, scale=2**19, **values)
        after = Sampled(device, rows, one, states_at(20, tokens=5), shifted, advance=False)
        for v, row in enumerate(rows):
            w = adjusted(row, one[0], text[: 21 + v].astype(np.uint32), [], [])
            assert not draw_errors(w, one[0], 21 + v, after.choices["token"][v, 0])


def test_penalties_past_the_end_of_the_tokens_count_what_is_there(device):
    one = settings(scale=0, presence=9, window=50)
    after = Sampled(device, [3, 2, 1], one, states_at(30), [0, 0, 1], advance=False)
    assert after.choices["token"] == 2


def test_a_batch_has_its_own_settings_states_and_idle_rows(device):
    rng = np.random.default_rng(4)
    rows = rng.normal(0, 2, (7, 700)).astype(np.float32)
    one = np.concatenate(
        [settings(seed=(v, 1), top_k=v, window=v % 2 * 4, presence=v) for v in range(7)]
    )
    # Idle: the last place that is one, and the first and the last that are not.
    states = states_at(2**31 - 2, 2**31 - 1, 4, 5, 2**32 - 1, 3, 2**31)
    states["tokens"] = [0, 0, 0, 10, 0, 20, 0]
    tokens = rng.integers(0, 50, 30).astype(np.uint32)
    after = Sampled(device, rows, one, states, tokens, n_best=2, n_slots=3, batch=True)
    expected_tokens, expected_states = tokens.copy(), states.copy()
    for v, row in enumerate(rows):
        choices, scored = after.choices[v], after.best[v].view(np.uint32)
        place = int(states["position"][v]) + 1
        used = place % 3 if place < 2**31 else None
        for slot in range(3):
            if slot != used:
                assert choices[slot : slot + 1].view(np.uint32).tolist() == [UNTOUCHED] * 4
                assert (scored[slot] == UNTOUCHED).all()
        if used is None:
            continue
        start = int(states["tokens"][v])
        w = adjusted(row, one[v], tokens[start : start + place], [], [])
        token = choices["token"][used]
        assert not draw_errors(w, one[v], place, token)
        assert choices["position"][used] == place
        np.testing.assert_array_equal(after.best["token"][v, used], best(row, 2, 0)[0])
        expected_states["position"][v] = place
        if start + place < len(tokens):
            expected_tokens[start + place] = token
    np.testing.assert_array_equal(after.states, expected_states)
    np.testing.assert_array_equal(after.tokens, expected_tokens)


@pytest.mark.parametrize("n_best", [1, 32])
@pytest.mark.parametrize("n", [1, 20, 5000])
def test_the_best_of_more_than_there_are(device, n_best, n):
    rows = rows_of(n)
    rows = np.concatenate([rows, np.full((2, n), np.nan)]).astype(np.float32)
    rows[-1, n // 2] = np.inf
    check_rows(device, rows, settings(scale=0), scored=n_best)


def test_a_choice_goes_to_the_slot_of_its_place(device):
    for place in (5, 6, 7, 8):
        after = Sampled(device, [0, 1], settings(scale=0), states_at(place - 1), n_slots=4)
        written = after.choices["token"][0] != UNTOUCHED
        assert written.tolist() == [slot == place % 4 for slot in range(4)]


def test_equal_logits_have_equal_choices_on_the_cpu(device):
    rng = np.random.default_rng(5)
    n = 2000
    rows = rng.normal(0, 3, (12, n)).astype(np.float32)
    with metal.Device("cpu") as cpu:
        for _ in range(15):
            one = settings(
                seed=rng.integers(0, 2**32, 2),
                scale=2**20 * 1.4427 / rng.choice([0.1, 0.7, 1, 3]),
                top_k=rng.choice([0, 1, 40, 700]),
                top_p=rng.choice([0, 1 << 31, 0xF3333333]),
                least=rng.choice([NONE, 4 << 20]),
            )
            found = [
                Sampled(d, rows, one, states_at(17), advance=False).choices.view(np.uint32)
                for d in (device, cpu)
            ]
            np.testing.assert_array_equal(*found)


@pytest.mark.large
@pytest.mark.parametrize("filters", ["none", "p", "hot", "many", "all", "least"])
def test_a_large_vocabulary_has_the_choices_of_the_cpu(device, filters):
    rng = np.random.default_rng(6)
    n = 151_936
    rows = rng.normal(0, 3, (2, n)).astype(np.float32)
    rows[1] = np.round(rows[1])
    one = settings(**FILTERS[filters])
    with metal.Device("cpu") as cpu:
        found = [Sampled(d, rows, one, states_at(17), advance=False) for d in (device, cpu)]
    np.testing.assert_array_equal(*(f.choices.view(np.uint32) for f in found))
    for v, row in enumerate(rows):
        assert not draw_errors(row, one[0], 18 + v, found[0].choices["token"][v, 0])


@pytest.mark.parametrize("scale", [-(2.0**20), np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("filters", [{}, {"top_k": 5, "top_p": 1 << 31}])
def test_a_scale_that_is_no_positive_number_takes_the_largest(device, scale, filters):
    rows = np.random.default_rng(1).normal(0, 3, (3, 300)).astype(np.float32)
    after = Sampled(device, rows, settings(scale=scale, **filters), states_at(7), advance=False)
    assert after.choices["token"][:, 0].tolist() == rows.argmax(axis=1).tolist()


@pytest.mark.parametrize("value", [1e12, 1e17, -1e17, 3e38])
def test_large_logits_keep_their_log_probabilities(device, value):
    after = Sampled(
        device, np.full(4, value), settings(), states_at(0), n_best=4, log_probabilities=True
    )
    np.testing.assert_allclose(after.choices["log_probability"], -np.log(4), atol=1e-5)
    np.testing.assert_allclose(after.best["log_probability"], -np.log(4), atol=1e-5)


def test_misuse_records_nothing(device):
    with device.commands() as c:
        b = [device.upload(np.zeros(64, np.float32)) for _ in range(5)]
        for wrong in ({"n_vectors": 2}, {"n_slots": 0}, {"n_best": 1}, {"n_slots": 99}):
            with pytest.raises(EncodingError):
                c.sample(*b, 4, 8, **wrong)
        with pytest.raises(EncodingError, match="overlap"):
            c.sample(*b[:4], b[0], 4, 8)
        for name in ("biases", "masks"):
            with pytest.raises(EncodingError, match=f"n_{name} = 3 without {name}"):
                c.sample(*b, 4, 8, **{f"n_{name}": 3})
        assert c.describe().startswith("0 dispatches")
        for buffer in b:
            buffer.close()
    assert not any(held_by(device).values())
