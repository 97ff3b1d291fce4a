"""The settings of a choice: what is refused, and what the device is told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling_reference import SAMPLING

from oxibonsai.model import Sampler
from oxibonsai.model.choices import NO_TOKEN, SAMPLING_DTYPE
from oxibonsai.model.generation.filedefaults import NAMES, FileSampling, recommended
from oxibonsai.model.generation.settings import GREEDY, SamplingSettings, mask_words

NAN, INF = float("nan"), float("inf")


def test_layout_is_that_of_the_header():
    assert SAMPLING_DTYPE.itemsize == SAMPLING.itemsize == 64
    for name in SAMPLING.names:
        assert SAMPLING_DTYPE.fields[name] == SAMPLING.fields[name]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-1e-9, NAN, INF]),
        ("top_k", [-1]),
        ("top_p", [0.0, -0.5, 1.0001, NAN]),
        ("min_p", [-0.1, 1.1, NAN]),
        ("repetition_penalty", [0.0, -1.0, INF, NAN]),
        ("presence_penalty", [INF, -INF, NAN, 1e39]),
        ("frequency_penalty", [INF, NAN, -1e39]),
        ("penalty_window", [-2, 2**32]),
        ("seed", [-1, 2**64]),
        ("choice", [-1, 2**32]),
    ],
)
def test_value_out_of_its_range_is_refused_with_the_range(name, values):
    for value in values:
        with pytest.raises(
            ValueError, match=rf"{name} = {value} must be (in|finite|0 or)".replace("+", r"\+")
        ):
            SamplingSettings.resolve({name: value})


@pytest.mark.parametrize("name", ["top_k", "penalty_window", "seed", "choice"])
def test_numbers_of_things_are_integers(name):
    with pytest.raises(TypeError):
        SamplingSettings.resolve({name: 1.5})


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({7: NAN}, "token 7 = nan must be a number"),
        ({7: 1e39}, r"token 7 = 1e\+39 must be a number"),
        ({-1: 1.0}, "token -1: ids are 0 or more"),
        ({1: 0.0, 9: 1.0}, "token 9: it is outside the vocabulary, ids are 0 to 8"),
    ],
)
def test_bias_that_means_nothing_is_refused(bias, message):
    with pytest.raises(ValueError, match=f"logit_bias of {message}"):
        SamplingSettings.resolve({"logit_bias": bias}, 9)


def test_what_is_left_out_is_off_and_the_seed_is_drawn():
    settings = SamplingSettings.resolve({"top_k": None, "seed": None})
    assert settings == SamplingSettings(seed=settings.seed)
    assert settings.seed != SamplingSettings.resolve({}).seed
    assert settings.rule() == GREEDY


@given(
    temperature=st.floats(0, 1e300, exclude_min=True),
    top_k=st.integers(0, 2**40),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition=st.floats(0, 1e300, exclude_min=True),
    presence=st.floats(-1e38, 1e38),
    window=st.integers(-1, NO_TOKEN),
    seed=st.integers(0, 2**64 - 1),
)
def test_device_is_told_what_the_definition_says(
    temperature, top_k, top_p, min_p, repetition, presence, window, seed
):
    settings = SamplingSettings(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition,
        presence_penalty=presence,
        penalty_window=window,
        seed=seed,
        choice=3,
    )
    one = settings.packed()
    # 2^20 log2(e) / T, kept from the values that mean greedy and that make 0 * inf.
    with np.errstate(over="ignore"):
        scale = np.float32(2**20 / math.log(2)) / np.float64(temperature)
    assert 0 < one["scale"] < np.inf
    assert one["scale"] == pytest.approx(np.clip(scale, 1.18e-38, 3.4e38), rel=1e-2)
    assert one["top_k"] == (top_k if top_k < 2**32 else 0)
    assert one["top_p"] == 0 if top_p == 1 else one["top_p"] == max(1, int(top_p * 2**32))
    u = int(one["least"])
    if min_p == 0:
        assert u == NO_TOKEN
    else:
        assert 2.0 ** (-u / 2**20) >= min_p > 2.0 ** (-(u + 1) / 2**20)
    assert int(one["seed"][0]) + 2**32 * int(one["seed"][1]) == seed
    assert one["choice"] == 3
    off = (repetition == 1 and presence == 0) or window == 0
    assert one["window"] == (0 if off else window % 2**32)
    if not off:
        assert 0 < one["repetition"] < np.inf
        assert 0 < one["inverse_repetition"] < np.inf
        if 1e-37 < repetition < 1e37:
            assert one["repetition"] * one["inverse_repetition"] == pytest.approx(1, rel=1e-6)
        assert one["presence"] == np.float32(presence)
    assert (one["mask"], one["n_biases"], one["first_bias"]) == (NO_TOKEN, 0, 0)


def test_exact_shares_are_kept_exactly():
    for power in (0, 1, 5, 100):
        assert SamplingSettings(temperature=1, min_p=2.0**-power).packed()["least"] == power << 20
    assert SamplingSettings(temperature=1, top_p=0.25).packed()["top_p"] == 1 << 30
    assert SamplingSettings(temperature=1, top_p=1e-12).packed()["top_p"] == 1


def test_what_changes_no_choice_makes_no_other_rule():
    same = SamplingSettings(
        seed=5, choice=2, top_k=3, top_p=0.5, min_p=0.5, penalty_window=7, frequency_penalty=0.0
    )
    assert same.rule() == GREEDY
    for other in (
        SamplingSettings(temperature=1),
        SamplingSettings(frequency_penalty=1),
        SamplingSettings(logit_bias={3: 1.0}),
    ):
        assert other.rule() != GREEDY


def test_biases_lie_in_the_order_of_their_tokens():
    settings = SamplingSettings(logit_bias={9: 1.5, 2: -INF})
    assert settings.packed()["n_biases"] == 2
    found = np.frombuffer(settings.biases(), [("token", "<u4"), ("value", "<f4")])
    assert found.tolist() == [(2, -INF), (9, 1.5)]


@given(
    st.integers(1, 100).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))
    )
)
def test_mask_has_a_bit_for_each_token(case):
    n, tokens = case
    words = mask_words(tokens, n)
    assert words.dtype == np.uint32
    assert words.size == (n + 31) // 32
    bits = [int(words[i // 32]) >> i % 32 & 1 for i in range(32 * words.size)]
    assert {i for i, bit in enumerate(bits) if bit} == tokens
    mask = np.zeros(n, np.bool_)
    mask[list(tokens)] = True
    np.testing.assert_array_equal(mask_words(mask, n), words)
    np.testing.assert_array_equal(mask_words(mask.tolist(), n), words)


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        ([], "no token is"),
        (np.zeros(5, np.bool_), "no token is"),
        (np.ones(4, np.bool_), r"a mask of shape \(4,\), where the vocabulary needs \(5,\)"),
        ([5], "token 5 is outside the vocabulary, ids are 0 to 4"),
        ([-1], "token -1 is outside"),
    ],
    ids=str,
)
def test_mask_that_means_nothing_is_refused(allowed, message):
    with pytest.raises(ValueError, match=f"allowed: {message}"):
        mask_words(allowed, 5)
    with pytest.raises(ValueError, match=f"allowed: {message}"):
        Sampler().sample(np.zeros(5, np.float32), allowed=allowed)


# What a file recommends


def file_options(metadata, path):
    return FileSampling(metadata, path).options()


def test_file_recommends_in_the_words_of_llama_cpp():
    metadata = {
        "general.sampling.temp": float(np.float32(0.7)),
        "general.sampling.top_k": 20,
        "general.sampling.top_p": float(np.float32(0.95)),
        "general.sampling.min_p": float(np.float32(0.05)),
        "general.sampling.penalty_repeat": float(np.float32(1.1)),
        "general.sampling.penalty_last_n": -1,
        "general.sampling.xtc_threshold": 0.1,
    }
    assert file_options(metadata, "f") == {
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "penalty_window": -1,
    }
    off = {"general.sampling.temp": -1.0, "general.sampling.top_k": -5}
    assert file_options(off, "f") == {"temperature": 0.0, "top_k": 0}
    assert file_options({}, "f") == {}


@pytest.mark.parametrize(
    ("name", "value", "option", "expected"),
    [
        ("temp", -0.5, "temperature", 0.0),
        ("temp", 1, "temperature", 1.0),
        ("top_k", -1, "top_k", 0),
        ("top_k", 40.0, "top_k", 40),
        ("top_k", -1.0, "top_k", 0),
        ("top_p", 0.0, "top_p", 1.0),
        ("top_p", -1, "top_p", 1.0),
        ("top_p", 7, "top_p", 1.0),
        ("top_p", INF, "top_p", 1.0),
        ("top_p", 1, "top_p", 1.0),
        ("min_p", -1, "min_p", 0.0),
        ("min_p", -INF, "min_p", 0.0),
        ("min_p", 0, "min_p", 0.0),
        ("min_p", 1, "min_p", 1.0),
        ("penalty_repeat", 1, "repetition_penalty", 1.0),
        ("penalty_last_n", 64.0, "penalty_window", 64),
        ("penalty_last_n", -1.0, "penalty_window", -1),
        ("penalty_last_n", 0, "penalty_window", 0),
    ],
)
def test_file_may_say_off_as_in_llama_cpp_and_whole_numbers_as_floats(
    name, value, option, expected, caplog
):
    found = file_options({f"general.sampling.{name}": value}, "x.gguf")
    assert found == {option: expected}
    assert type(found[option]) is type(expected)
    assert not caplog.records


class Recommending:
    def __init__(self, **values: Any) -> None:
        metadata = {f"general.sampling.{name}": value for name, value in values.items()}
        self.file_sampling = FileSampling(metadata, "x.gguf")


WRONG = [
    ("temp", NAN, "temperature", "it is no number"),
    ("temp", INF, "temperature", "temperature = inf must be finite"),
    ("temp", "warm", "temperature", "it is no number"),
    ("temp", [0.5], "temperature", "it is no number"),
    ("temp", np.array([0.5, 0.7]), "temperature", "it is no number"),
    ("top_k", 2.5, "top_k", "it is no whole number"),
    ("top_k", INF, "top_k", "it is no whole number"),
    ("top_k", NAN, "top_k", "it is no number"),
    ("top_k", True, "top_k", "it is no number"),
    ("top_k", "40", "top_k", "it is no number"),
    ("top_p", NAN, "top_p", "it is no number"),
    ("top_p", "0.9", "top_p", "it is no number"),
    ("min_p", 1.5, "min_p", "min_p = 1.5 must be in"),
    ("min_p", INF, "min_p", "min_p = inf must be in"),
    ("penalty_repeat", 0.0, "repetition_penalty", "finite and above 0"),
    ("penalty_repeat", -1, "repetition_penalty", "finite and above 0"),
    ("penalty_last_n", -2, "penalty_window", "penalty_window = -2 must be in -1"),
    ("penalty_last_n", 1e30, "penalty_window", "must be in -1"),
]


@pytest.mark.parametrize(("name", "value", "option", "why"), WRONG)
def test_what_a_file_recommends_that_cannot_be_is_ignored_with_one_warning(
    name, value, option, why, caplog
):
    model = Recommending(**{"temp": 0.5, "top_k": 20, name: value})
    plain = {"temperature": 0.5, "top_k": 20}
    plain.pop(option, None)
    for _ in range(3):
        assert recommended(model, {}) == plain
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"x.gguf: general.sampling.{name} = ")
    assert " is ignored: " in record.getMessage()
    assert why in record.getMessage()


@pytest.mark.parametrize(("name", "value", "option", "why"), WRONG)
def test_what_the_user_gave_is_never_looked_at(name, value, option, why, caplog):
    model = Recommending(**{"temp": 0.5, "top_k": 20, name: value})
    assert option not in recommended(model, {option: 1})
    assert recommended(model, dict.fromkeys(NAMES, 1)) == {}
    assert not caplog.records
    told: list[str] = []
    recommended(model, {}, told.append)
    recommended(model, {}, told.append)
    assert len(told) == 1
    assert not caplog.records


@given(
    st.dictionaries(
        st.sampled_from(
            ["temp", "top_k", "top_p", "min_p", "penalty_repeat", "penalty_last_n", "other"]
        ),
        st.floats() | st.integers(-(2**63), 2**64) | st.text() | st.booleans(),
    )
)
def test_what_is_left_of_any_recommendation_can_be_used(values):
    told: list[str] = []
    found = recommended(Recommending(**values), {}, told.append)
    SamplingSettings.resolve(found)
    assert len(found) + len(told) == len(values) - ("other" in values)
