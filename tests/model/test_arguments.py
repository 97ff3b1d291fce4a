"""Arguments of generation: refused at the call, by name, the same wherever they are given."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from refusals import refused, shown
from tiny_models import Tiny, byte_vocabulary, random_tensors, write

from oxibonsai.model import Engine, Model, Sampler, Session
from oxibonsai.model.arguments import integer, number, token_ids

TINY = Tiny(n_layers=1, vocab=257)
HUGE = 10**400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    with Model.load(write(path, TINY, random_tensors(TINY), byte_vocabulary()), "cpu") as model:
        yield model


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    with model.session() as session:
        session.forward([1, 2], logits=None)
        yield session


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    with model.engine(1, max_seq=64) as engine:
        yield engine


# What both a session and an engine take, with what they refuse.
SAMPLING: list[tuple[str, Any, type[Exception]]] = [
    ("temperature", "hot", TypeError),
    ("temperature", True, TypeError),
    ("temperature", 1j, TypeError),
    ("temperature", [1.0], TypeError),
    ("temperature", Decimal("0.5"), TypeError),
    ("temperature", HUGE, ValueError),
    ("temperature", -0.5, ValueError),
    ("temperature", np.float32("nan"), ValueError),
    ("top_k", 2.5, TypeError),
    ("top_k", 2.0, TypeError),
    ("top_k", np.float64(2), TypeError),
    ("top_k", "40", TypeError),
    ("top_k", True, TypeError),
    ("top_k", np.True_, TypeError),
    ("top_k", [40], TypeError),
    ("top_k", np.int64(-1), ValueError),
    ("top_p", "0.9", TypeError),
    ("top_p", 0, ValueError),
    ("min_p", b"0.1", TypeError),
    ("min_p", 1.5, ValueError),
    ("repetition_penalty", (1.1,), TypeError),
    ("presence_penalty", {}, TypeError),
    ("frequency_penalty", object(), TypeError),
    ("frequency_penalty", -HUGE, ValueError),
    ("penalty_window", 64.0, TypeError),
    ("penalty_window", -2, ValueError),
    ("seed", "x", TypeError),
    ("seed", 1.0, TypeError),
    ("seed", False, TypeError),
    ("seed", -1, ValueError),
    ("seed", 2**64, ValueError),
    ("choice", "0", TypeError),
    ("choice", -1, ValueError),
    ("logit_bias", [(1, 2.0)], TypeError),
    ("logit_bias", 3, TypeError),
    ("logit_bias", {"a": 1.0}, TypeError),
    ("logit_bias", {1.5: 1.0}, TypeError),
    ("logit_bias", {1: "x"}, TypeError),
    ("logit_bias", {1: None}, TypeError),
    ("logit_bias", {257: 1.0}, ValueError),
    ("logit_bias", {1: HUGE}, ValueError),
]
COMMON: list[tuple[str, Any, type[Exception]]] = [
    *SAMPLING,
    ("max_tokens", 1.5, TypeError),
    ("max_tokens", 2.0, TypeError),
    ("max_tokens", "5", TypeError),
    ("max_tokens", None, TypeError),
    ("max_tokens", True, TypeError),
    ("max_tokens", -1, ValueError),
    ("stop", 3, TypeError),
    ("stop", b"x", TypeError),
    ("stop", {"x": 1}, TypeError),
    ("stop", [3.5], TypeError),
    ("stop", [13], TypeError),
    ("stop", [None], TypeError),
    ("stop", ["x", b"y"], TypeError),
    ("stop", [[3.5]], TypeError),
    ("stop", [["x"]], TypeError),
    ("stop", [[True]], TypeError),
    ("stop", "", ValueError),
    ("stop", ["a", []], ValueError),
    ("stop", "a\ud800", ValueError),
    ("stop", [[257]], ValueError),
    ("stop", ["x", [1, 99999]], ValueError),
    ("stop", [[-1]], ValueError),
    ("ignore_eos", "no", TypeError),
    ("ignore_eos", None, TypeError),
    ("ignore_eos", 1, TypeError),
    ("logits_callback", 5, TypeError),
    ("logits_callback", "f", TypeError),
    ("allowed", 5, TypeError),
    ("allowed", "abc", TypeError),
    ("allowed", [1.5], TypeError),
    ("allowed", ["a"], TypeError),
    ("allowed", [257], ValueError),
    ("allowed", [], ValueError),
]
OF_SESSIONS: list[tuple[str, Any, type[Exception]]] = [
    ("lookahead", 1.0, TypeError),
    ("lookahead", True, TypeError),
    ("lookahead", "4", TypeError),
    ("lookahead", 0, ValueError),
    ("lookahead", 17, ValueError),
    ("draft_tokens", 2.5, TypeError),
    ("draft_tokens", None, TypeError),
    ("draft_tokens", True, TypeError),
    ("draft_tokens", -1, ValueError),
    ("draft_tokens", 32, ValueError),
]
SCORED: list[tuple[str, Any, type[Exception]]] = [
    ("n_best", 1.0, TypeError),
    ("n_best", "3", TypeError),
    ("n_best", True, TypeError),
    ("n_best", None, TypeError),
    ("n_best", 33, ValueError),
    ("n_best", -1, ValueError),
]
OF_ENGINES: list[tuple[str, Any, type[Exception]]] = [
    *SCORED,
    ("max_tokens", 0, ValueError),
    ("priority", 1.5, TypeError),
    ("priority", "high", TypeError),
    ("priority", True, TypeError),
    ("log_probabilities", 1, TypeError),
    ("log_probabilities", "yes", TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), [*COMMON, *OF_SESSIONS], ids=shown)
def test_every_form_of_generation_refuses_an_argument_at_the_call(session, name, value, error):
    for call in (session.generate, session.stream, session.generate_scored, session.agenerate):
        refused(call, name, value, error)
    if name != "max_tokens":
        refused(lambda **given: session.check_options(5, **given), name, value, error)
    else:
        refused(session.check_options, name, value, error)
    assert session.tokens == [1, 2]
    assert session.finish_reason is None


@pytest.mark.parametrize(("name", "value", "error"), SCORED, ids=shown)
def test_number_of_scores_is_checked_at_the_call(session, name, value, error):
    for call in (session.stream, session.generate_scored):
        refused(call, name, value, error)


def test_on_token_has_to_be_a_function(session):
    refused(session.stream, "on_token", 5, TypeError)


@pytest.mark.parametrize(("name", "value", "error"), SAMPLING, ids=shown)
def test_sampler_refuses_an_argument_at_the_call(name, value, error):
    if value == {257: 1.0}:  # it learns the vocabulary from the logits
        sampler = Sampler(logit_bias=value)
        refused(lambda **_: sampler.sample(np.zeros(257)), name, value, error)
        return
    refused(Sampler, name, value, error)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("position", 2.5, TypeError),
        ("position", True, TypeError),
        ("position", 0, ValueError),
        ("context", "abc", TypeError),
        ("context", 5, TypeError),
        ("context", [1.5], TypeError),
        ("context", [9], ValueError),
        ("context", [-1], ValueError),
        ("context", [np.float64(0.5)], TypeError),
        ("allowed", 5, TypeError),
        ("allowed", [0.5], TypeError),
    ],
    ids=shown,
)
def test_sample_refuses_an_argument_by_name(name, value, error):
    for sampler in (Sampler(presence_penalty=1.0), Sampler(), Sampler(0.5, penalty_window=0)):
        sample = partial(sampler.sample, np.zeros(5, np.float32))
        refused(sample, name, value, error)


@pytest.mark.parametrize(
    "logits",
    [
        [1j, 2],
        np.zeros(5, np.complex64),
        [True, False],
        np.ones(5, np.bool_),
        np.array([1.0, None]),
        [object()],
        "abc",
        ["1", "2"],
        b"abc",
        {},
        {1: 2.0},
        None,
        [[1.0], [1.0, 2.0]],
        np.array(["2026-01-01"], "datetime64[D]"),
    ],
    ids=shown,
)
def test_sample_refuses_logits_that_are_no_numbers(logits):
    for sampler in (Sampler(), Sampler(0.5)):
        with pytest.raises(TypeError, match=r"logits = .* is a \w+ of .*not a row of real numbers"):
            sampler.sample(logits)


@pytest.mark.parametrize("logits", [[1, 3, 2], np.array([1, 3, 2], np.float64), (1.0, 3, 2)])
def test_sample_takes_all_real_numbers(logits):
    assert Sampler().sample(logits, [0, 1, 2]) == 1


@pytest.mark.parametrize(("name", "value", "error"), [*COMMON, *OF_ENGINES], ids=shown)
def test_engine_refuses_an_argument_at_the_call(engine, name, value, error):
    refused(lambda **given: engine.submit([1], **given), name, value, error)
    refused(lambda **given: engine.stream([1], **given), name, value, error)
    refused(lambda **given: engine.generate_batch([[1]], **given), name, value, error)
    assert engine.statistics().waiting == 0
    assert engine.submit([1], 2, ignore_eos=True).result(20).finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        (None, TypeError),
        (5, TypeError),
        (b"abc", TypeError),
        ([1.5], TypeError),
        (["a"], TypeError),
        ([None], TypeError),
        ([257], ValueError),
    ],
    ids=shown,
)
def test_engine_refuses_a_prompt_by_name(engine, prompt, error):
    with pytest.raises(error, match=r"prompt|token 257 at 0"):
        engine.submit(prompt, 1)
    with pytest.raises(error, match=r"prompt|token 257 at 0"):
        engine.generate_batch([[1], prompt], 1)

    async def main() -> None:
        async for _ in engine.stream(prompt, 1):
            pass

    with pytest.raises(error, match=r"prompt|token 257 at 0"):
        asyncio.run(main())


def test_engine_refuses_prompts_that_are_none(engine):
    for prompts in (None, 5, "one text", b"x", bytearray(b"x"), {"a": 1}):
        with pytest.raises(TypeError, match="prompts is"):
            engine.generate_batch(prompts)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [("x", TypeError), (True, TypeError), (float("nan"), ValueError), (1e30, ValueError)],
    ids=shown,
)
def test_timeout_is_a_number_of_seconds(engine, timeout, error):
    with pytest.raises(error, match="timeout"):
        engine.submit([1], 1, timeout=timeout)
    request = engine.submit([1], 1, timeout=np.float32(5))
    for call in (request.result, request.text):
        with pytest.raises(error, match="timeout"):
            call(timeout)
        call(20)
    with pytest.raises(TypeError, match="block"):
        engine.submit([1], 1, block="no")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("max_seq", 2.5, TypeError),
        ("max_seq", True, TypeError),
        ("max_seq", "64", TypeError),
        ("chunk", 2.5, TypeError),
        ("chunk", "8", TypeError),
        ("chunk", 0, ValueError),
        ("kv_dtype", 5, ValueError),
        ("kv_dtype", None, ValueError),
        ("kv_dtype", np.zeros(3), ValueError),
        ("kv_dtype", ["f16"], ValueError),
        ("kv_dtype", "f64", ValueError),
        ("deterministic", 1, TypeError),
        ("deterministic", "no", TypeError),
        ("deterministic", None, TypeError),
        ("deterministic", np.zeros(3), TypeError),
    ],
    ids=shown,
)
def test_session_and_engine_refuse_a_size_by_name(model, name, value, error):
    refused(model.session, name, value, error)
    refused(model.engine, name, value, error)


@pytest.mark.parametrize("name", ["max_sequences", "n_pages", "max_waiting"])
def test_engine_refuses_a_number_that_is_none(model, name):
    refused(model.engine, name, 2.5, TypeError)
    refused(model.engine, name, True, TypeError)


def test_numbers_of_numpy_are_numbers(session):
    given: dict[str, Any] = {
        "temperature": np.float32(0.5),
        "top_k": np.uint8(40),
        "top_p": np.float64(0.9),
        "min_p": np.float16(0.125),
        "penalty_window": np.int32(-1),
        "repetition_penalty": Fraction(11, 10),
        "presence_penalty": np.int64(1),
        "seed": np.uint64(2**64 - 1),
        "choice": np.int16(1),
        "logit_bias": OrderedDict({np.int64(5): np.float32(2)}),
        "ignore_eos": np.True_,
        "lookahead": np.int8(2),
        "draft_tokens": np.int8(0),
        "stop": [[np.int64(1), 2]],
    }
    plain = {
        **given,
        "temperature": 0.5,
        "top_k": 40,
        "seed": 2**64 - 1,
        "logit_bias": {5: 2.0},
        "presence_penalty": 1.0,
        "repetition_penalty": 1.1,
    }
    found = list(session.generate(np.int64(6), **given))
    session.rewind(2)
    assert list(session.generate(6, **plain)) == found
    assert len(found) == 6


def test_equal_numbers_of_other_types_make_equal_rules():
    exact = Sampler(0.5, top_p=0.75, min_p=0.25, seed=1)
    other = Sampler(np.float32(0.5), top_p=Fraction(3, 4), min_p=np.float16(0.25), seed=np.int8(1))
    assert other.settings == exact.settings
    assert type(Sampler(np.float32(0.5)).settings.temperature) is float
    assert type(Sampler(top_k=np.int64(3)).settings.top_k) is int


@pytest.mark.parametrize("value", [0, -(2**70), np.int8(5), np.uint64(2**63), np.array(7)])
def test_integers_come_back_as_integers(value):
    assert integer("n", value) == int(value)
    assert type(integer("n", value)) is int
    assert token_ids("ids", [value] if 0 <= value < 9 else [], 9) in ([int(value)], [])


@pytest.mark.parametrize("value", [1, 1.5, np.float16(2), np.int32(3), Fraction(1, 3), -np.inf])
def test_real_numbers_come_back_as_they_are(value):
    assert number("x", value) is value


def test_prompt_of_a_session_is_refused_by_name(session):
    for ids in ("abc", 5, None, b"ab", [1, 2.5], [1, "2"]):
        for call in (session.forward, session.verify, session.log_probabilities):
            with pytest.raises(TypeError, match="ids"):
                call(ids)
    with pytest.raises(TypeError, match="position"):
        session.rewind(1.0)
    assert session.tokens == [1, 2]


def test_a_path_is_no_number(session):
    with pytest.raises(TypeError):
        session.save(1)
