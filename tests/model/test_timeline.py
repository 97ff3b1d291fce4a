"""The invariant of a text, on a runner made of lists: what it says is held after every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxibonsai.model import SessionFullError
from oxibonsai.model.timeline import Timeline

VOCAB = 11
MAX_SEQ = 12


def choice_after(tokens: Sequence[int]) -> int:
    """Return what the runner chooses behind tokens: it depends on all of them."""
    return sum((i + 1) * (token + 1) for i, token in enumerate(tokens)) % VOCAB


class Failure(Exception):
    pass


class ListRunner:
    """A runner whose device memory is two lists, and whose calls fail on demand.

    keys[i] is the token whose step has run at position i, so that choices come from it alone.
    """

    def __init__(self) -> None:
        self.keys: list[int] = [-1] * (MAX_SEQ + 1)
        self.buffer: list[int] = [-1] * (MAX_SEQ + 2)
        self.position = 0
        self.logits_end = -1
        self.closed = False
        self.flying = 0
        self.fail_in = 0  # calls until one fails; 0: none does
        self.fail_seek = False

    def _may_fail(self) -> None:
        if self.fail_in:
            self.fail_in -= 1
            if not self.fail_in:
                self.position = -1
                self.logits_end = -1
                self.flying = 0
                raise Failure

    def _run(self) -> None:
        at = self.position
        assert 0 <= at < MAX_SEQ
        self.keys[at] = self.buffer[at]
        self.position = at + 1
        self.buffer[at + 1] = choice_after(self.keys[: at + 1])

    def reserve(self, n_positions: int) -> None:
        assert n_positions <= MAX_SEQ
        self._may_fail()

    def seek(self, position: int) -> None:
        if self.fail_seek:
            self.position = -1
            raise Failure
        self.flying = 0
        self.position = position

    def feed(self, ids: Sequence[int], rows: int) -> None:
        self._may_fail()
        for token in ids:  # each in the place of what the step before it chose
            self.write_tokens([token], self.position)
            self._run()
        if rows:
            self.logits_end = self.position

    def submit(self) -> None:
        self._may_fail()
        self._run()
        self.logits_end = -1
        self.flying += 1

    def verify(self, ids: Sequence[int]) -> list[int]:
        assert self.flying == 0
        first = self.position
        self.feed(ids, len(ids))
        return [choice_after(self.keys[: at + 1]) for at in range(first, self.position)]

    def finish(self, keep: int = 0) -> None:
        self._may_fail()
        if self.flying > keep:
            self.flying = keep
            if not keep:
                self.logits_end = self.position

    def rerun(self, position: int) -> None:
        assert position > 0
        self.seek(position - 1)
        self.submit()
        self.finish()

    def token(self, at: int) -> int:
        return self.buffer[at]

    def write_tokens(self, ids: Sequence[int], at: int) -> None:
        self.buffer[at : at + len(ids)] = ids

    def logits(self) -> Any:
        found = np.zeros(VOCAB, np.float32)
        found[choice_after(self.keys[: self.logits_end])] = 1
        return found

    def logit(self, token: int) -> float:
        return float(self.logits()[token])

    def set_logits(self, logits: Any) -> None:
        self.logits_end = self.position
        self.buffer[self.position] = int(np.argmax(logits))

    def copy_from(self, other: ListRunner, n_positions: int) -> None:
        other.finish()
        self.keys[:n_positions] = other.keys[:n_positions]
        self.buffer[: n_positions + 1] = other.buffer[: n_positions + 1]
        self.seek(n_positions)
        self.logits_end = other.logits_end


def check(timeline: Timeline, runner: ListRunner, text: list[int]) -> None:
    """Assert the invariant, and that the text is the one that is expected."""
    tokens = timeline.tokens
    assert tokens == text
    assert timeline.position == len(text) <= timeline.cursor <= MAX_SEQ
    assert timeline.cursor - timeline.position == len(timeline.held)
    assert list(timeline.history()) == text + timeline.held
    assert runner.keys[: len(text)] == text
    if timeline.chosen:
        for at in range(timeline.position, timeline.cursor + 1):
            assert at == 0 or runner.buffer[at] == choice_after(runner.keys[:at])


OPERATIONS = st.one_of(
    st.tuples(
        st.just("feed"), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5),
        st.integers(1, 3), st.booleans(), st.booleans(),
    ),
    st.tuples(st.just("choose"), st.integers(1, 6)),
    st.tuples(st.just("verify"), st.integers(0, 4), st.integers(0, 4)),
    st.tuples(st.just("take"), st.integers(0, VOCAB - 1)),
    st.tuples(st.just("commit"), st.just(0)),
    st.tuples(st.just("settle"), st.just(0)),
    st.tuples(st.just("rewind"), st.integers(0, MAX_SEQ)),
    st.tuples(st.just("copy"), st.just(0)),
    st.tuples(st.just("restore"), st.booleans()),
    st.tuples(st.just("fail"), st.integers(1, 4)),
)  # fmt: skip


@given(st.lists(OPERATIONS, max_size=30))
def test_invariant_holds_after_every_call(operations):
    runner = ListRunner()
    timeline = Timeline(runner, MAX_SEQ)
    text: list[int] = []
    lost = False  # after a failed step the text has to be settled first, as every caller does
    for operation, *arguments in operations:
        epoch = timeline.epoch
        try:
            if operation in ("choose", "verify", "take") and (lost or not text):
                timeline.settle()
                lost = False
            match operation:
                case "feed":
                    ids, chunk, all_rows, interrupted = arguments
                    if len(text) + len(ids) > MAX_SEQ:
                        with pytest.raises(SessionFullError):
                            timeline.check_room(len(ids))
                        continue
                    with timeline.feeding(ids, chunk, all_rows=all_rows) as batches:
                        bounds = list(batches)
                        if interrupted:
                            raise Failure
                    assert [i for start, stop in bounds for i in ids[start:stop]] == ids
                    text += ids
                    lost = False
                    assert timeline.chosen
                    assert timeline.epoch != epoch
                case "choose" if text:
                    chosen = timeline.choice()
                    assert chosen == choice_after(text + timeline.held)
                    timeline.take_choice(chosen, arguments[0])
                    assert runner.position <= MAX_SEQ
                case "verify" if text and timeline.ahead == 0:
                    drafted = text + timeline.held
                    chosen = timeline.choice()
                    drafted.append(chosen)
                    right = min(arguments[0], timeline.room - 1)
                    for _ in range(right):
                        drafted.append(choice_after(drafted))
                    wrong = max(0, min(arguments[1], timeline.room - 1 - right))
                    drafted += [(choice_after(drafted) + 1) % VOCAB] * wrong
                    n_kept = timeline.verify(chosen, drafted[timeline.cursor + 1 :])
                    assert n_kept == timeline.ahead == right + 1
                    assert runner.buffer[runner.position] == choice_after(
                        runner.keys[: runner.position]
                    )
                    timeline.take_choice(chosen, 1)
                case "take" if text:
                    assert int(np.argmax(timeline.logits())) == choice_after(text + timeline.held)
                    timeline.take(arguments[0])
                case "commit" if timeline.held:
                    text.append(timeline.held[0])
                    assert timeline.commit() == text[-1]
                    assert timeline.epoch == epoch
                case "commit":
                    with pytest.raises(ValueError, match="no token is held"):
                        timeline.commit()
                case "settle":
                    assert timeline.settle() == timeline.epoch != epoch
                    assert timeline.cursor == timeline.position == runner.position
                    assert runner.flying == 0
                    lost = False
                case "rewind" if arguments[0] > len(text):
                    with pytest.raises(ValueError, match=rf"cannot rewind to {arguments[0]}"):
                        timeline.rewind(arguments[0])
                case "rewind":
                    timeline.rewind(arguments[0])
                    del text[arguments[0] :]
                case "copy":
                    timeline.settle()
                    twin_runner = ListRunner()
                    twin = Timeline(twin_runner, MAX_SEQ)
                    twin.copy_from(timeline)
                    check(twin, twin_runner, text)
                    timeline, runner, lost = twin, twin_runner, False
                case "restore":
                    timeline.settle()
                    logits = timeline.known_logits() if arguments[0] else None
                    twin_runner = ListRunner()
                    twin_runner.keys = list(runner.keys)
                    twin = Timeline(twin_runner, MAX_SEQ)
                    twin.restore(text, logits)
                    check(twin, twin_runner, text)
                    timeline, runner, lost = twin, twin_runner, False
                case "fail":
                    runner.fail_in = arguments[0]
        except Failure:
            lost = True
        except SessionFullError:
            assert timeline.cursor == MAX_SEQ
        check(timeline, runner, text)


def test_closed_text_is_refused_by_every_verb_that_moves_it():
    runner = ListRunner()
    timeline = Timeline(runner, MAX_SEQ)
    runner.closed = True
    for call in (
        timeline.check_open,
        timeline.settle,
        lambda: timeline.rewind(0),
        lambda: timeline.feeding([1], 1, all_rows=False).__enter__(),
    ):
        with pytest.raises(ValueError, match="the session is closed"):
            call()


def test_full_text_takes_no_token_and_says_how_full_it_is():
    timeline = Timeline(ListRunner(), MAX_SEQ)
    with timeline.feeding([1] * MAX_SEQ, 4, all_rows=False) as batches:
        assert list(batches) == [(0, 4), (4, 8), (8, 12)]
    for call in (
        lambda: timeline.take(1),
        lambda: timeline.take_choice(timeline.choice(), 3),
        lambda: timeline.check_room(1),
    ):
        with pytest.raises(SessionFullError, match="1 tokens do not fit: the session holds 12 of"):
            call()
        assert timeline.position == timeline.cursor == MAX_SEQ


def test_choices_in_flight_are_dropped_with_what_is_held():
    runner = ListRunner()
    timeline = Timeline(runner, MAX_SEQ)
    with timeline.feeding([3, 4], 2, all_rows=False) as batches:
        list(batches)
    chosen = timeline.choice()
    timeline.take_choice(chosen, 5)
    assert (timeline.position, timeline.cursor, runner.position) == (2, 3, 7)
    assert timeline.held == [chosen]
    assert runner.flying == 4
    timeline.settle()
    assert (timeline.position, timeline.cursor, runner.position) == (2, 2, 2)
    assert timeline.choice() == chosen


def test_nothing_but_nan_is_no_choice():
    class Blind(ListRunner):
        def logits(self) -> Any:
            return np.full(VOCAB, np.nan, np.float32)

    timeline = Timeline(Blind(), MAX_SEQ)
    with timeline.feeding([0], 1, all_rows=False) as batches:
        list(batches)
    with pytest.raises(ValueError, match="every logit is NaN or -inf"):
        timeline.choice()


def fed(ids: list[int], runner: ListRunner | None = None) -> Timeline:
    """Return a timeline whose text is `ids`."""
    timeline = Timeline(runner or ListRunner(), MAX_SEQ)
    with timeline.feeding(ids, 4, all_rows=False) as chunks:
        list(chunks)
    return timeline


def test_nothing_else_moves_a_text_that_is_being_fed():
    timeline = fed([1, 2, 3])
    with timeline.feeding([4, 5], 1, all_rows=False) as chunks:
        next(chunks)
        for call in (timeline.settle, lambda: timeline.rewind(1)):
            with pytest.raises(RuntimeError, match="being fed"):
                call()
        for _ in chunks:
            pass
    assert timeline.tokens == [1, 2, 3, 4, 5]
    assert timeline.choice() == choice_after([1, 2, 3, 4, 5])


def test_failed_settle_gives_a_new_epoch_and_drops_what_was_held():
    runner = ListRunner()
    timeline = fed([1, 2], runner)
    timeline.take_choice(timeline.choice(), 3)
    epoch = timeline.epoch
    runner.fail_seek = True
    with pytest.raises(Failure):
        timeline.settle()
    runner.fail_seek = False
    assert timeline.epoch != epoch
    assert timeline.held == []
    timeline.settle()
    assert runner.position == timeline.position == 2


def test_failed_rewind_forgets_nothing():
    runner = ListRunner()
    timeline = fed([1, 2, 3], runner)
    runner.fail_seek = True
    with pytest.raises(Failure):
        timeline.rewind(1)
    runner.fail_seek = False
    assert timeline.tokens == [1, 2, 3]
    timeline.rewind(1)
    assert timeline.tokens == [1]


def test_confirmed_draft_is_there_without_a_further_step():
    runner = ListRunner()
    timeline = fed([3, 4], runner)
    expected = [3, 4]
    for _ in range(5):
        expected.append(choice_after(expected))
    first, *draft = expected[2:5]
    wrong = (expected[5] + 1) % VOCAB
    assert timeline.verify(first, [*draft, wrong, 0]) == 3
    assert (timeline.ahead, timeline.room) == (3, MAX_SEQ - 2)
    timeline.take_choice(first, 1)
    for token in draft:
        assert timeline.choice() == token
        timeline.take_choice(token, 1)
    assert runner.position == 5
    assert timeline.choice() == expected[5]
    for token in expected[2:5]:
        assert timeline.commit() == token
    check(timeline, runner, expected[:5])


def test_draft_that_does_not_fit_runs_nothing():
    timeline = fed([1] * (MAX_SEQ - 2))
    with pytest.raises(SessionFullError, match="3 tokens do not fit"):
        timeline.verify(timeline.choice(), [0, 0])
    assert timeline.ahead == 0


@pytest.mark.parametrize("fail_in", [1, 2])
def test_failed_verification_leaves_the_text(fail_in):
    runner = ListRunner()
    timeline = fed([3, 4], runner)
    chosen = timeline.choice()
    runner.fail_in = fail_in
    with pytest.raises(Failure):
        timeline.verify(chosen, [1, 2])
    timeline.settle()
    check(timeline, runner, [3, 4])
    assert timeline.choice() == chosen
