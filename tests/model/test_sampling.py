"""The sampler: what it keeps, what it never draws, and in which shares it draws the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sampling_reference import expected_race

from oxibonsai.model import Sampler

F32 = NDArray[np.float32]
HALF, QUARTER, EIGHTH = (float(np.log(p)) for p in (0.5, 0.25, 0.125))
# Probabilities 1/8, 1/2, 1/8, 1/4.
LOGITS = np.array([EIGHTH, HALF, EIGHTH, QUARTER], np.float32)

FINITE = hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(-50, 50, width=32))
ANY = hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(width=32))


def draws(
    logits: Any, n: int = 400, context: Any = (), allowed: Any = None, **kw: Any
) -> list[int]:
    sampler = Sampler(kw.pop("temperature", 1.0), seed=kw.pop("seed", 0), **kw)
    row = np.asarray(logits, np.float32)
    return [sampler.sample(row, context, allowed=allowed) for _ in range(n)]


def kept(logits: Any, **kw: Any) -> set[int]:
    """Return every token drawn in so many draws that one of probability 0.05 is among them."""
    return set(draws(logits, **kw))


@given(FINITE)
def test_greedy_takes_the_largest_and_of_equal_ones_the_first(logits):
    assert Sampler().sample(logits) == int(np.argmax(logits))


def test_greedy_takes_the_lowest_id_of_equal_logits():
    assert Sampler().sample(np.array([1, 3, 2, 3, 3], np.float32)) == 1
    assert Sampler().sample(np.zeros(7, np.float32)) == 0
    assert Sampler().sample(np.array([-0.0, 0.0], np.float32)) == 0


def test_greedy_says_whether_the_device_can_choose():
    assert Sampler().greedy
    assert Sampler(0.0, top_k=5, top_p=0.5, min_p=0.1, seed=1).greedy
    assert not Sampler(0.5).greedy
    assert not Sampler(0.0, repetition_penalty=1.1).greedy


@given(FINITE, st.integers(0, 2**32 - 1))
def test_seed_repeats_the_draws(logits, seed):
    assert draws(logits, 20, seed=seed) == draws(logits, 20, seed=seed)


def test_other_seeds_give_other_draws():
    found = {tuple(draws(LOGITS, 30, seed=seed)) for seed in range(20)}
    assert len(found) == 20
    assert draws(LOGITS, 30, seed=None) != draws(LOGITS, 30, seed=None)


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [
        (0, {0, 1, 2, 3}),
        (1, {1}),
        (2, {1, 3}),
        (3, {0, 1, 3}),
        (4, {0, 1, 2, 3}),
        (99, {0, 1, 2, 3}),
    ],
)
def test_top_k_keeps_the_k_largest_and_of_equal_ones_the_first(top_k, expected):
    assert kept(LOGITS, top_k=top_k) == expected


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1e-9, {1}),
        (0.49, {1}),
        (0.51, {1, 3}),
        (0.74, {1, 3}),
        (0.76, {0, 1, 3}),
        (0.87, {0, 1, 3}),
        (0.88, {0, 1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, expected):
    assert kept(LOGITS, top_p=top_p) == expected


@pytest.mark.parametrize(
    ("min_p", "expected"),
    [
        (0.0, {0, 1, 2, 3}),
        (0.24, {0, 1, 2, 3}),
        (0.26, {1, 3}),
        (0.49, {1, 3}),
        (0.51, {1}),
        (1.0, {1}),
    ],
)
def test_min_p_keeps_what_is_probable_enough_beside_the_best(min_p, expected):
    assert kept(LOGITS, min_p=min_p) == expected


def test_min_p_of_one_keeps_all_that_equal_the_best():
    assert kept([2, 1, 2, 2], min_p=1.0) == {0, 2, 3}


def test_filters_hold_together():
    # Of the three best, 4/7 and 6/7 are reached by one and by two.
    assert kept(LOGITS, top_k=3, top_p=0.6) == {1, 3}
    assert kept(LOGITS, top_k=3, top_p=0.56) == {1}
    assert kept(LOGITS, top_k=3, min_p=0.4) == {1, 3}
    assert kept(LOGITS, top_p=0.8, min_p=0.6) == {1}


def test_temperature_comes_before_the_filters():
    # At 1/2 the probabilities are 1, 16, 1, 4 of 22; at 2 they are 1, 2, 1, sqrt 2 of 5.41.
    assert kept(LOGITS, temperature=0.5, top_p=0.7) == {1}
    assert kept(LOGITS, temperature=2.0, top_p=0.5) == {1, 3}
    assert kept(LOGITS, temperature=0.5, min_p=0.2) == {1, 3}
    assert kept(LOGITS, temperature=2.0, min_p=0.45) == {0, 1, 2, 3}


@given(FINITE, st.floats(0.05, 5), st.integers(0, 12), st.floats(0.01, 1), st.floats(0, 1))
def test_draws_lie_in_the_set_that_the_filters_define(logits, temperature, top_k, top_p, min_p):
    p = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    # By the logits: their probabilities can round to ties.
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if top_k:
        order = order[:top_k]
    total = sum(p[i] for i in order)
    allowed, share = set(), 0.0
    for i in order:
        # A hair of room: sums in another order differ in the last bit.
        if share / total < top_p + 1e-9 and p[i] >= min_p * p[order[0]] * (1 - 1e-9):
            allowed.add(i)
        share += p[i]
    found = draws(
        logits, 20, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=4
    )
    assert set(found) <= allowed


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_shares_of_softmax(temperature):
    n = 4000
    p = np.array([0.125, 0.5, 0.125, 0.25]) ** (1 / temperature)
    p /= p.sum()
    counts = np.bincount(draws(LOGITS, n, temperature=temperature, seed=7), minlength=4)
    # Four standard deviations.
    assert (np.abs(counts - n * p) <= 4 * np.sqrt(n * p * (1 - p))).all()


def test_draws_have_the_shares_of_what_is_kept():
    n = 3000
    counts = np.bincount(draws(LOGITS, n, top_k=2, seed=8), minlength=4)
    assert counts[0] == counts[2] == 0
    assert abs(counts[1] - n * 2 / 3) <= 4 * (n * 2 / 9) ** 0.5


def test_tiny_temperature_is_greedy_and_huge_is_uniform():
    assert kept(LOGITS, temperature=1e-6) == {1}
    assert kept(LOGITS, temperature=1e-300) == {1}
    counts = np.bincount(draws(LOGITS, 4000, temperature=1e9), minlength=4)
    assert (np.abs(counts - 1000) <= 4 * 750**0.5).all()


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = np.array([4, 3, -1, -1.5], np.float32)
    sampler = Sampler(repetition_penalty=2.0)
    assert sampler.sample(logits) == 0
    assert sampler.sample(logits, []) == 0
    assert sampler.sample(logits, [0]) == 1  # 2 and 3
    assert sampler.sample(logits, [0, 1]) == 0  # 2 and 1.5
    assert sampler.sample(logits[2:], [0]) == 1  # -2 and -1.5
    assert Sampler(repetition_penalty=0.5).sample(logits, [1]) == 1  # 4 and 6


def test_repetition_penalty_counts_a_token_once():
    logits = np.array([4, 1.5], np.float32)
    assert Sampler(repetition_penalty=2.0).sample(logits, [0] * 50) == 0


def test_repetition_penalty_changes_the_shares():
    # ln 4 / 2 = ln 2: probabilities 2 and 1 instead of 4 and 1.
    logits = [float(np.log(4)), 0.0]
    n = 3000
    plain = draws(logits, n).count(0)
    damped = draws(logits, n, context=[0], repetition_penalty=2.0).count(0)
    assert abs(plain - n * 4 / 5) <= 4 * (n * 4 / 25) ** 0.5
    assert abs(damped - n * 2 / 3) <= 4 * (n * 2 / 9) ** 0.5


def test_context_may_be_an_iterator_or_an_array():
    logits = np.array([4, 3], np.float32)
    for context in (iter([0]), np.array([0], np.int32), (0,), {0}):
        assert Sampler(repetition_penalty=2.0).sample(logits, context) == 1


@given(ANY, st.sampled_from([0.0, 0.7]), st.sampled_from([1.0, 1.3]))
def test_nan_and_minus_infinity_are_never_drawn(logits, temperature, penalty):
    sampler = Sampler(temperature, repetition_penalty=penalty, seed=0)
    if not (logits > -np.inf).any():
        with pytest.raises(ValueError, match="every logit is NaN or -inf"):
            sampler.sample(logits, [0])
        return
    for _ in range(5):
        assert logits[sampler.sample(logits, [0])] > -np.inf


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "logits", [[np.nan], [np.nan] * 5, [-np.inf] * 3, [-np.inf, np.nan]], ids=str
)
def test_logits_without_any_number_are_an_error(logits, temperature):
    with pytest.raises(ValueError, match="every logit is NaN or -inf"):
        Sampler(temperature).sample(np.array(logits, np.float32))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_infinite_logit_wins(temperature):
    assert kept([1, np.inf, 5, np.nan], temperature=temperature) == {1}


def test_logits_are_left_as_they_are():
    logits = np.array([1, np.nan, -np.inf, 2], np.float32)
    before = logits.copy()
    Sampler(1.0, top_k=2, repetition_penalty=1.5, seed=0).sample(logits, [0, 3])
    np.testing.assert_array_equal(logits, before)
    logits.flags.writeable = False
    Sampler(1.0, repetition_penalty=1.5).sample(logits, [0])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-1e-9, float("nan"), float("inf")]),
        ("top_k", [-1]),
        ("top_p", [0, -0.5, 1.0001, float("nan")]),
        ("min_p", [-0.1, 1.1, float("nan")]),
        ("repetition_penalty", [0, -1, float("inf"), float("nan")]),
    ],
)
def test_value_out_of_its_range_is_refused_with_the_range(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{name} = {value} must be"):
            Sampler(**{name: value})


# What came with the op


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_what_is_allowed_is_drawn(temperature):
    for allowed in ([0, 2], np.array([True, False, True, False])):
        assert set(draws(LOGITS, 60, temperature=temperature, allowed=allowed)) <= {0, 2}
    with pytest.raises(ValueError, match="every logit is NaN or -inf or not allowed"):
        Sampler(temperature).sample(np.array([1, -np.inf], np.float32), allowed=[1])


def test_bias_is_added_and_forbids():
    assert Sampler(logit_bias={2: 5.0}).sample(LOGITS) == 2
    assert kept(LOGITS, logit_bias={1: -float("inf"), 0: float("-inf")}) == {2, 3}
    with pytest.raises(ValueError, match="logit_bias of token 4"):
        Sampler(logit_bias={4: 1.0}).sample(LOGITS)


def test_penalties_count_the_last_tokens_of_the_context():
    logits = np.array([4, 3, 1], np.float32)
    assert Sampler(presence_penalty=2.0).sample(logits, [0] * 9) == 1
    assert Sampler(frequency_penalty=0.4).sample(logits, [0, 0]) == 0
    assert Sampler(frequency_penalty=0.4).sample(logits, [0, 0, 0]) == 1
    long = [0, *[2] * 64]
    assert Sampler(presence_penalty=2.0).sample(logits, long) == 0
    assert Sampler(presence_penalty=2.0, penalty_window=-1).sample(logits, long) == 1
    assert Sampler(presence_penalty=2.0, penalty_window=0).sample(logits, [0]) == 0
    with pytest.raises(ValueError, match="token 3 is outside the vocabulary of 3"):
        Sampler(presence_penalty=2.0).sample(logits, [3])


def test_noise_belongs_to_a_place():
    logits = np.zeros(1000, np.float32)
    sampler = Sampler(1.0, seed=3)
    at_place = [sampler.sample(logits, position=p) for p in range(1, 30)]
    assert len(set(at_place)) > 20
    assert at_place == [Sampler(1.0, seed=3).sample(logits, position=p) for p in range(1, 30)]
    # Draws without a place have noise of their own, with a context that grows and without one.
    growing = Sampler(1.0, seed=3, presence_penalty=1e-6)
    assert [growing.sample(logits, range(p)) for p in range(1, 30)] == at_place
    for position in (0, -1, 2**31):
        with pytest.raises(ValueError, match=f"position = {position} must lie in 1..2147483647"):
            sampler.sample(logits, position=position)
    with pytest.raises(ValueError, match="position = 2 lies before the end of the 3 tokens"):
        growing.sample(logits, [1, 2, 3], position=2)


@pytest.mark.parametrize("shape", [(0,), (2, 3), ()])
def test_logits_are_one_row(shape):
    with pytest.raises(ValueError, match="logits of shape"):
        Sampler().sample(np.zeros(shape, np.float32))


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
    {"temperature": 2.0, "top_p": 0.6, "min_p": 0.02},
    {"temperature": 0.3, "min_p": 0.2},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_draws_are_those_of_the_definition(options):
    rng = np.random.default_rng(2)
    for place in range(1, 40):
        logits = rng.normal(0, 3, 300).astype(np.float32)
        token = Sampler(seed=11, **options).sample(logits, position=place)
        race = expected_race(logits, place, seed=11, **options)
        assert race[token] <= min(race.values()) + 4  # the logarithms' error
