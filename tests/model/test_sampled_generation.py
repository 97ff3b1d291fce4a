"""Sampled text: the definition's, whatever is in flight; masks, scores, and what misuse leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling_reference import adjusted_by_options, expected_race
from tiny_models import Tiny, chain, random_tensors, write, write_chain

from oxibonsai import demo_model, metal
from oxibonsai.model import Model, Sampler, Session
from oxibonsai.model.runtime import decoder

TINY = Tiny(context=128)
IDS = [5, 17, 76, 0, 33]
INF = float("inf")
WARM: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.02}
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.5, "top_p": 0.7},
    {"temperature": 2.0, "min_p": 0.05, "choice": 3},
    {**WARM, "repetition_penalty": 1.3, "penalty_window": 9},
    {"temperature": 0.6, "presence_penalty": 0.7, "frequency_penalty": 0.3, "penalty_window": -1},
    {"temperature": 0.9, "logit_bias": {4: 3.0, 12: -INF, 31: -2.5}, "penalty_window": 0},
]


@pytest.fixture
def tiny(device: metal.Device, tmp_path: Path) -> Iterator[Model]:
    with Model.load(write(tmp_path / "t.gguf", TINY, random_tensors(TINY)), device) as model:
        yield model


@pytest.fixture
def session(tiny: Model) -> Iterator[Session]:
    with tiny.session() as session:
        session.forward(IDS, logits=None)
        yield session


def text(model: Model, n: int = 40, ids: Any = IDS, **options: Any) -> list[int]:
    with model.session() as session:
        session.forward(ids, logits=None)
        return list(session.generate(n, ignore_eos=True, **options))


# The definition


@pytest.mark.device("cpu")
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_text_of_a_seed_is_the_one_of_the_definition(device, options):
    seed = 2**40 + 17
    with Model.load(demo_model(), device) as model, model.session() as session:
        ids = model.tokenizer.encode("The Queen of Hearts")
        session.forward(ids, logits=None)
        tokens = list(session.generate(40, seed=seed, ignore_eos=True, **options))
        session.rewind(0)
        logits = session.forward(ids + tokens, chunk=1)
        for place in range(len(ids), len(ids) + len(tokens)):
            context = (ids + tokens)[:place]
            race = expected_race(logits[place - 1], place, seed=seed, context=context, **options)
            token = (ids + tokens)[place]
            assert race[token] <= min(race.values()) + 4  # the logarithms' error
            if "choice" not in options:
                sampler = Sampler(seed=seed, **options)
                assert sampler.sample(logits[place - 1], context, position=place) == token


@pytest.mark.parametrize("lookahead", [1, 2, 5, 16])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_steps_in_flight_do_not_change_the_text(tiny, options, lookahead):
    expected = text(tiny, seed=3, **options)
    assert len(set(expected)) > 3
    assert text(tiny, seed=3, lookahead=lookahead, **options) == expected


def test_chunks_of_the_prompt_do_not_change_the_text(tiny):
    with tiny.session(kv_dtype="f32") as session:
        found = []
        for chunk in (1, 2, 128):
            session.rewind(0)
            session.forward(IDS, logits="last", chunk=chunk)
            found.append(list(session.generate(30, seed=5, **WARM)))
    assert found[0] == found[1] == found[2]


def test_text_of_a_seed_goes_on_as_if_it_had_not_stopped(tiny):
    expected = text(tiny, 30, seed=9, **SETTINGS[4])
    with tiny.session() as session:
        session.forward(IDS, logits=None)
        found: list[int] = []
        for n in (1, 4, 25):
            found += session.generate(n, seed=9, ignore_eos=True, **SETTINGS[4])
        assert found == expected
        # Rewound, it says the same again.
        session.rewind(len(IDS) + 12)
        assert list(session.generate(18, seed=9, ignore_eos=True, **SETTINGS[4])) == expected[12:]
        with session.copy() as twin:
            session.rewind(len(IDS) + 5)
            twin.rewind(len(IDS) + 5)
            rest = {"seed": 9, "ignore_eos": True, **SETTINGS[4]}
            assert list(twin.generate(9, **rest)) == expected[5:14]
            assert list(session.generate(9, **rest)) == expected[5:14]


@pytest.mark.large
@pytest.mark.parametrize("lookahead", [1, 16])
def test_cache_that_grows_does_not_change_the_text(device, tmp_path, lookahead):
    long = Tiny(n_layers=1, context=600)
    options: Any = {**SETTINGS[5], "seed": 5, "lookahead": lookahead, "ignore_eos": True}
    with Model.load(write(tmp_path / "l.gguf", long, random_tensors(long)), device) as model:
        found = []
        for fed in (5, 540):
            with model.session() as session:
                session.forward((IDS * 108)[:fed], logits=None)  # holds 256 positions, or 600
                session.rewind(5)
                found.append(list(session.generate(530, **options)))
    assert len(set(found[0][250:])) > 20
    assert found[0] == found[1]


def test_restored_session_goes_on_with_the_text_of_its_seed(tiny, tmp_path):
    options: Any = {**SETTINGS[4], "seed": 5, "ignore_eos": True}
    with tiny.session() as session:
        session.forward(IDS, logits=None)
        list(session.generate(8, **options))
        session.save(tmp_path / "text")
        expected = list(session.generate(8, **options))
    with tiny.restore_session(tmp_path / "text") as restored:
        assert list(restored.generate(8, **options)) == expected


def test_seeds_and_choices_are_texts_of_their_own(tiny):
    found = {tuple(text(tiny, 20, temperature=1.0, seed=seed)) for seed in range(8)}
    found |= {tuple(text(tiny, 20, temperature=1.0, seed=0, choice=c)) for c in range(1, 8)}
    assert len(found) == 15
    assert text(tiny, 20, temperature=1.0) != text(tiny, 20, temperature=1.0)


def test_one_recording_serves_every_setting(session, monkeypatch):
    list(session.generate(3))
    monkeypatch.setattr(decoder, "record", lambda *arguments: pytest.fail("recorded anew"))
    for options in SETTINGS:
        list(session.generate(3, seed=1, **options))
    list(session.generate(3, allowed=[1, 2]))


def test_many_biases_are_one_setting(session):
    forbidden = {token: -INF for token in range(77) if token != 40}
    assert list(session.generate(5, 1.0, logit_bias=forbidden)) == [40] * 5
    assert list(session.generate(5, 1.0, logit_bias={41: INF})) == [41] * 5
    assert session.tokens == [*IDS, *[40] * 5, *[41] * 5]


# What may come


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 2}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("kind", ["tokens", "mask", "callable"])
def test_only_what_is_allowed_comes(session, kind, options):
    few = {3, 50, 76}
    mask = np.isin(np.arange(77), list(few))
    allowed: Any = {"tokens": few, "mask": mask, "callable": lambda tokens: mask}[kind]
    found = list(session.generate(30, allowed=allowed, **options))
    assert set(found) <= few
    session.rewind(len(IDS))
    logits = session.forward(found, chunk=1)
    best = [int(np.argmax(np.where(mask, row, -np.inf))) for row in logits[:-1]]
    if not options:
        assert found[1:] == best


def test_callable_is_given_the_tokens_and_has_its_say_at_each_choice(session):
    seen = []

    def alternate(tokens: list[int]) -> Any:
        seen.append(list(tokens))
        return None if len(tokens) % 4 == 0 else range(40) if len(tokens) % 2 else range(40, 77)

    found = list(session.generate(20, 1.0, seed=4, allowed=alternate))
    assert seen == [IDS + found[:i] for i in range(20)]
    for place, token in enumerate(found, len(IDS)):
        assert place % 4 == 0 or (token < 40) == bool(place % 2)
    assert session._decoder.position == session.position


def test_mask_and_logits_callback_hold_together(session):
    def prefer(logits: Any) -> None:
        logits[5], logits[6] = 99, 98

    found = session.generate(4, logits_callback=prefer, allowed=lambda tokens: [6, 7])
    assert list(found) == [6] * 4


def test_changed_logits_are_not_taken_for_the_steps_own(session):
    expected = session.log_probabilities([8])[0]
    session.rewind(len(IDS))

    def change(logits: Any) -> None:
        logits[:] = 0
        logits[9] = 50

    generation = session.generate(5, logits_callback=change)
    assert next(generation) == 9
    session.rewind(len(IDS))
    with pytest.raises(ValueError, match="no token can be drawn"):
        list(session.generate(5, logits_callback=lambda logits: logits.fill(np.nan)))
    assert session.tokens == IDS
    assert session.log_probabilities([8])[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        ([77], "token 77 is outside the vocabulary"),
        ([], "no token is"),
        (np.ones(76, np.bool_), "a mask of shape"),
    ],
    ids=str,
)
def test_mask_that_means_nothing_is_an_error_and_leaves_the_text(session, allowed, message):
    with pytest.raises(ValueError, match=message):
        session.generate(3, allowed=allowed)
    generation = session.generate(3, allowed=lambda tokens: allowed if len(tokens) > 6 else None)
    first = next(generation)
    second = next(generation)
    with pytest.raises(ValueError, match=message):
        next(generation)
    assert session.tokens == [*IDS, first, second]
    assert list(generation) == []
    assert len(list(session.generate(3))) == 3


# Log probabilities


@pytest.mark.parametrize("n_best", [0, 1, 5, 32])
@pytest.mark.parametrize("options", [{}, SETTINGS[4]], ids=["greedy", "drawn"])
def test_scores_are_of_the_logits_as_they_came(session, options, n_best):
    session.rewind(0)
    session.forward(IDS, logits=None, chunk=1)  # a chunk of all would round keys in other places
    found = list(session.generate_scored(12, seed=1, n_best=n_best, **options))
    tokens = [scored.token for scored in found]
    assert session.tokens == IDS + tokens
    session.rewind(0)
    logits = session.forward(IDS + tokens, chunk=1).astype(np.float64)[len(IDS) - 1 : -1]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for row, scored in zip(log_p, found, strict=True):
        assert scored.log_probability == pytest.approx(row[scored.token], abs=1e-4)
        order = np.argsort(-row, kind="stable")[:n_best].tolist()
        assert [token for token, _ in scored.best] == order
        assert [p for _, p in scored.best] == pytest.approx(row[order], abs=1e-4)
    session.rewind(len(IDS))
    assert list(session.generate(12, seed=1, **options)) == tokens


@pytest.mark.parametrize("n_best", [-1, 33])
def test_number_of_the_best_is_checked(session, n_best):
    with pytest.raises(ValueError, match=rf"n_best = {n_best} must lie in 0\.\.32"):
        session.generate_scored(3, n_best=n_best)


def test_stream_tells_each_token_of_its_text(device, tmp_path):
    path = write_chain(tmp_path / "abc.gguf", chain("abcdefghij"))
    with Model.load(path, device) as model, model.session() as session:
        session.forward([ord("a")], logits=None)
        told: list[Any] = []
        pieces = session.stream(9, stop="fg", on_token=told.append, n_best=1)
        assert "".join(pieces) == "bcde"
        assert bytes(scored.token for scored in told) == b"bcde"
        assert all(scored.best[0][0] == scored.token for scored in told)
        assert all(-0.1 < scored.log_probability <= 0 for scored in told)


# What misuse leaves


@pytest.mark.parametrize("left_after", [0, 1, 5])
@pytest.mark.parametrize("options", [SETTINGS[0], SETTINGS[4]], ids=str)
def test_generation_that_is_closed_early_leaves_what_it_yielded(tiny, options, left_after):
    expected = text(tiny, 20, seed=6, **options)
    with tiny.session() as session:
        session.forward(IDS, logits=None)
        generation = session.generate(20, seed=6, ignore_eos=True, lookahead=16, **options)
        found = [next(generation) for _ in range(left_after)]
        generation.close()
        assert session.tokens == IDS + found
        found += session.generate(20 - left_after, seed=6, ignore_eos=True, **options)
        assert found == expected


@pytest.mark.parametrize("lookahead", [1, 16])
def test_generations_of_several_settings_take_turns(tiny, lookahead):
    kinds = [{"temperature": 0.0}, {**SETTINGS[0], "seed": 1}, {**SETTINGS[4], "seed": 2}]
    with tiny.session() as session:
        session.forward(IDS, logits=None)
        turns = [session.generate(20, ignore_eos=True, lookahead=lookahead, **k) for k in kinds]
        found = [next(turn) for _ in range(6) for turn in turns]
        tokens = session.tokens
        assert tokens == IDS + found
        # Each token is the one that its own settings choose there.
        for place in range(len(IDS), len(tokens)):
            session.rewind(place)
            kind = kinds[(place - len(IDS)) % 3]
            assert next(session.generate(1, ignore_eos=True, **kind)) == tokens[place]


def test_generation_goes_on_from_a_text_that_was_moved(tiny):
    with tiny.session() as session:
        session.forward(IDS, logits=None)
        generation = session.generate(20, 1.0, seed=8, ignore_eos=True, lookahead=16)
        first = [next(generation) for _ in range(5)]  # with others in flight behind them
        session.forward([1, 2, 3], logits=None)
        rest = [next(generation) for _ in range(4)]
        moved = [*IDS, *first, 1, 2, 3]
        assert session.tokens == moved + rest
    assert rest == text(tiny, 4, moved, temperature=1.0, seed=8)


@pytest.mark.parametrize("name", ["allowed", "logits_callback", "on_token"])
def test_what_a_callable_raises_ends_the_generation_alone(device, tmp_path, name):
    path = write_chain(tmp_path / "abc.gguf", chain("abcdefghij"))
    calls = 0

    def fail(_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise LookupError("enough")

    with Model.load(path, device) as model, model.session() as session:
        session.forward([ord("a")], logits=None)
        options: Any = {name: fail}
        with pytest.raises(LookupError, match="enough"):
            list(session.stream(9, **options))
        assert bytes(session.tokens) == (b"abcd" if name == "on_token" else b"abc")
        session.rewind(3)
        assert bytes(session.generate(2)) == b"de"


@pytest.mark.parametrize("name", ["allowed", "logits_callback"])
def test_callable_that_moves_its_own_text_is_told(session, name):
    calls = 0

    def meddle(_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            assert len(list(session.generate(2))) == 2

    options: Any = {name: meddle}
    found: list[int] = []
    with pytest.raises(RuntimeError, match="moved the text"):
        found.extend(session.generate(6, **options))
    assert len(found) == 2
    assert session.tokens[: len(IDS) + 2] == IDS + found
    assert session.position == len(IDS) + 4
    assert len(list(session.generate(3))) == 3


@pytest.mark.parametrize("lookahead", [1, 16])
def test_full_session_keeps_what_fits(tiny, lookahead):
    expected = text(tiny, 40, seed=1, **WARM)
    with tiny.session(max_seq=20) as session:
        session.forward(IDS, logits=None)
        found = list(session.generate(40, seed=1, lookahead=lookahead, ignore_eos=True, **WARM))
        assert session.finish_reason == "context"
        assert found == expected[: len(found)]
        assert len(found) == 15


def test_other_forms_give_the_same_text(device, tmp_path):
    path = write_chain(tmp_path / "abc.gguf", chain("abcdefghijklmnop"))
    with Model.load(path, device) as model, model.session() as session:
        options: Any = {"temperature": 3.0, "seed": 4, "ignore_eos": True}
        session.forward([ord("a")], logits=None)
        tokens = list(session.generate(12, **options))
        session.rewind(1)
        assert [scored.token for scored in session.generate_scored(12, **options)] == tokens
        session.rewind(1)
        joined = "".join(session.stream(12, **options))
        assert joined.encode(errors="replace")[:1] == model.tokenizer.decode(tokens).encode()[:1]
        session.rewind(1)

        async def main() -> list[int]:
            return [token async for token in session.agenerate(12, **options)]

        assert asyncio.run(main()) == tokens


@given(
    top_k=st.integers(0, 80),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    temperature=st.floats(0, 3),
    window=st.integers(-1, 40),
    repetition=st.floats(0.5, 2),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_settings_choose_what_their_filters_keep(
    tiny, top_k, top_p, min_p, temperature, window, repetition, seed
):
    with tiny.session() as session:
        session.forward(IDS, logits=None)
        options: Any = {
            "top_k": top_k, "top_p": top_p, "min_p": min_p, "penalty_window": window,
            "repetition_penalty": repetition,
        }  # fmt: skip
        tokens = list(session.generate(6, temperature, seed=seed, **options))
        session.rewind(0)
        logits = session.forward(IDS + tokens, chunk=1)
    for i, token in enumerate(tokens):
        row = adjusted_by_options(logits[len(IDS) - 1 + i], (IDS + tokens)[: len(IDS) + i], options)
        above = (row > row[token]).sum()
        if temperature == 0:
            assert above == 0
        if top_k:
            assert above < top_k
        if temperature > 0:
            # A hair of room: the device's probabilities are integers.
            with np.errstate(over="ignore"):
                p = np.exp((row.astype(np.float64) - row.max()) / temperature)
            assert p[token] >= min_p * (1 - 1e-4)
            largest = np.sort(p)[::-1][: top_k or None]
            assert p[row > row[token]].sum() < top_p * largest.sum() * (1 + 1e-4) + 1e-6
