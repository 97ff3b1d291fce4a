"""Generation that verifies drafts: its text, its steps, and what it leaves, are the plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import Tiny, random_tensors, write

from oxibonsai import demo_model, metal
from oxibonsai.model import Model, Session
from oxibonsai.model.generation.speculation import Speculation
from oxibonsai.model.generation.speculative import row_cost

TINY = Tiny(context=256)


class Eager(Speculation):
    """Verifies a draft of the greatest length wherever there is a match, and counts."""

    def __init__(self, draft_tokens: int) -> None:
        super().__init__(draft_tokens, row_cost=1)
        self.steps: list[tuple[int, int]] = []  # rows, and tokens that they gave

    def draft(self, most_rows: int) -> list[int]:
        n_rows = max((n for n in self._costs if n <= most_rows), default=1)
        return self._lookup.draft(n_rows - 1)

    def ran(self, n_rows: int, n_tokens: int, seconds: float) -> None:
        self.steps.append((n_rows, n_tokens))


@pytest.fixture
def tiny(device: metal.Device, tmp_path: Path) -> Iterator[Model]:
    with Model.load(write(tmp_path / "t.gguf", TINY, random_tensors(TINY)), device) as model:
        yield model


def prompt(seed: int, *, repeats: bool) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, TINY.vocab, 20).tolist()
    return 2 * ids if repeats else ids


def eager(session: Session, draft_tokens: int) -> Eager:
    """Make a session verify wherever it can."""
    speculation = session._speculations[draft_tokens] = Eager(draft_tokens)
    return speculation


def texts(model: Model, ids: list[int], n: int, draft_tokens: int, **options: Any) -> Any:
    """Return a plain text, the same with drafts, and the steps that verified."""
    found = []
    for drafts in (0, draft_tokens):
        with model.session() as session:
            session.forward(ids, logits=None)
            speculation = eager(session, draft_tokens)
            found.append(list(session.generate(n, draft_tokens=drafts, **options)))
            assert session.tokens == ids + found[-1]
    return *found, speculation.steps


@pytest.mark.large
@pytest.mark.parametrize("draft_tokens", [1, 3, 8, 31])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("repeats", [False, True])
def test_text_is_that_of_plain_steps(tiny, seed, repeats, draft_tokens):
    ids = prompt(seed, repeats=repeats)
    plain, drafted, steps = texts(tiny, ids, 120, draft_tokens)
    assert drafted == plain
    assert len(plain) == 120
    # A random model soon repeats itself: drafts were confirmed, and others were not.
    assert any(n_tokens > 1 for _, n_tokens in steps)
    assert any(n_tokens < n_rows for n_rows, n_tokens in steps)
    assert max(n_rows for n_rows, _ in steps) <= draft_tokens + 1


@pytest.mark.device("cpu")
@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_demo_model_says_the_same(device, activations):
    with Model.load(demo_model(), device, activations=activations) as model:
        ids = model.tokenizer.encode("The Queen said: off with his head! The Queen said")
        plain, drafted, steps = texts(model, ids, 150, 8)
        assert drafted == plain
        assert steps


@pytest.mark.parametrize("n", range(1, 12))
def test_no_more_tokens_come_than_were_asked_for(tiny, n):
    ids = prompt(1, repeats=True)
    plain, drafted, _ = texts(tiny, ids, n, 8)
    assert drafted == plain
    assert len(drafted) == n


@pytest.mark.parametrize("n", [2, 3, 10])
def test_generation_may_be_left_in_the_middle_of_a_draft(tiny, n):
    ids = prompt(2, repeats=True)
    plain, _, _ = texts(tiny, ids, 60, 8)
    with tiny.session() as session:
        session.forward(ids, logits=None)
        speculation = eager(session, 8)
        kept: list[int] = []
        while len(kept) < 50:
            generation = session.generate(60, draft_tokens=8)
            kept += [next(generation) for _ in range(n)]
            assert session.tokens == ids + kept
        assert kept == plain[: len(kept)]
        # What a step of its own gives at the end, whatever ran behind it.
        assert session.generate(1).__next__() == plain[len(kept)]
        assert speculation.steps


def test_two_generations_take_turns(tiny):
    ids = prompt(2, repeats=True)
    plain, _, _ = texts(tiny, ids, 40, 8)
    with tiny.session() as session:
        session.forward(ids, logits=None)
        eager(session, 8)
        drafting, steady = session.generate(60, draft_tokens=8), session.generate(60)
        turns = [drafting, drafting, drafting, steady, drafting, steady, steady, drafting]
        assert [next(turn) for turn in 5 * turns] == plain


def test_stop_sequence_in_a_draft_ends_the_text_before_it(tiny):
    ids = prompt(2, repeats=True)
    plain, _, _ = texts(tiny, ids, 80, 8)
    for at in (5, 20, 33):
        stopped, drafted, _ = texts(tiny, ids, 80, 8, stop=[plain[at : at + 3]])
        assert drafted == stopped
        assert len(stopped) <= at


def test_full_session_ends_after_its_last_token(tiny):
    ids = prompt(2, repeats=True)
    for drafts in (0, 8):
        with tiny.session(64) as session:
            session.forward(ids, logits=None)
            eager(session, 8)
            list(session.generate(60, draft_tokens=drafts))
            assert session.finish_reason == "context"
            assert session.position == 64
            tokens = session.tokens
        if not drafts:
            plain = tokens
    assert tokens == plain


def test_logits_behind_a_draft_are_those_of_the_text(tiny):
    ids = prompt(2, repeats=True)
    with tiny.session() as session:
        session.forward(ids, logits=None)
        speculation = eager(session, 8)
        generation = session.generate(60, draft_tokens=8)
        for _ in range(30):
            next(generation)
        assert speculation.steps
        tokens = session.tokens
        follows = next(session.generate(1, logits_callback=lambda logits: None))
        with tiny.session() as other:
            other.forward(tokens, logits=None)
            assert next(other.generate(1)) == follows


SAMPLED: list[dict[str, Any]] = [
    {"temperature": 0.05},
    {"temperature": 0.3, "top_k": 3, "min_p": 0.1},
    {"temperature": 0.2, "top_p": 0.8, "repetition_penalty": 1.05, "penalty_window": 5},
    {"temperature": 0.0, "frequency_penalty": 0.02, "presence_penalty": -0.5},
    {"temperature": 0.4, "logit_bias": {3: 0.5, 70: float("-inf")}, "allowed": range(1, 77)},
]


@pytest.mark.large
@pytest.mark.parametrize("options", SAMPLED, ids=str)
@pytest.mark.parametrize("draft_tokens", [1, 8, 31])
def test_sampled_text_is_that_of_plain_steps(tiny, options, draft_tokens):
    confirmed = rejected = 0
    for seed in range(4):
        plain, drafted, steps = texts(
            tiny, prompt(seed, repeats=True), 100, draft_tokens, seed=seed, **options
        )
        assert drafted == plain
        confirmed += sum(n_tokens - 1 for _, n_tokens in steps)
        rejected += sum(n_tokens < n_rows for n_rows, n_tokens in steps)
    assert confirmed
    assert rejected


def test_scores_of_a_draft_are_those_of_plain_steps(tiny):
    found = []
    for drafts in (0, 8):
        with tiny.session() as session:
            session.forward(prompt(2, repeats=True), logits=None)
            speculation = eager(session, 8)
            scored = session.generate_scored(60, 0.05, seed=1, n_best=3, draft_tokens=drafts)
            found.append(list(scored))
    assert any(n_tokens > 1 for _, n_tokens in speculation.steps)
    for plain, drafted in zip(*found, strict=True):
        assert drafted.token == plain.token
        assert drafted.log_probability == pytest.approx(plain.log_probability, abs=1e-5)
        assert [t for t, _ in drafted.best] == [t for t, _ in plain.best]


@pytest.mark.parametrize(
    "options", [{"allowed": lambda x: None}, {"logits_callback": lambda x: None}]
)
def test_choices_in_which_the_host_has_a_say_are_not_drafted(tiny, options):
    plain, drafted, steps = texts(tiny, prompt(2, repeats=True), 40, 8, seed=5, **options)
    assert drafted == plain
    assert steps == []


def test_session_remembers_what_steps_cost(tiny):
    with tiny.session() as session:
        session.forward(prompt(0, repeats=False), logits=None)
        list(session.generate(5, draft_tokens=4))
        first = session._speculations[4]
        list(session.generate(5, draft_tokens=4))
        assert session._speculations == {4: first}


@pytest.mark.parametrize("draft_tokens", [-1, 32])
def test_length_of_a_draft_is_checked_at_once(tiny, draft_tokens):
    with tiny.session() as session:
        session.forward([1], logits=None)
        with pytest.raises(ValueError, match=rf"draft_tokens = {draft_tokens} must lie in 1..31"):
            session.generate(5, draft_tokens=draft_tokens)
        assert session._speculations == {}


def test_rows_are_taken_for_dear_on_the_threads_of_the_host():
    assert row_cost(threads=2) > 1 > row_cost(threads=0)
