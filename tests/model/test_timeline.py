"""The invariant of a text, on a runner made of lists: what it says is held after every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxibonsai.model import SessionFullError
from oxibonsai.model.choices import NO_TOKEN, Rule, ScoredToken
from oxibonsai.model.timeline import Timeline

VOCAB = 11
MAX_SEQ = 12
N_SLOTS = 5  # fewer than what may be in flight: the runner forgets some before they are read
RULES = [Rule(b"0"), Rule(b"1"), Rule(b"2", mask=b"", stepwise=True)]


def choice_after(tokens: Sequence[int], rule: Rule = RULES[0]) -> int:
    """Return what the runner chooses behind tokens: it depends on all of them, and on the rule."""
    return (
        sum((i + 1) * (token + 1) for i, token in enumerate(tokens)) + int(rule.settings)
    ) % VOCAB


class Failure(Exception):
    pass


class ListRunner:
    """A runner whose device memory is a few lists, and whose calls fail on demand.

    keys[i] is the token whose step has run at position i, so that choices come from it alone.
    """

    def __init__(self) -> None:
        self.keys: list[int] = [-1] * (MAX_SEQ + 1)
        self.buffer: list[int] = [-1] * (MAX_SEQ + 2)
        self.slots = [(-1, -1)] * N_SLOTS  # place and token of the choices
        self.rule = RULES[0]
        self.mask = 0
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

    def _choose(self, token: int) -> None:
        self.buffer[self.position] = token
        self.slots[self.position % N_SLOTS] = (self.position, token)

    def choose_by(self, rule: Rule) -> None:
        assert self.flying == 0
        self._may_fail()
        self.rule = rule

    def write_mask(self, mask: Any) -> None:
        assert self.rule.mask is not None
        self.mask = int(mask)

    def choose(self, logits: Any = None) -> None:
        assert self.flying == 0
        assert logits is not None or self.logits_end == self.position
        self._may_fail()
        if logits is not None:
            self.logits_end = -1
            self._choose(int(np.argmax(logits)))
        else:
            masked = 0 if self.rule.mask is None else self.mask
            self._choose((choice_after(self.keys[: self.position], self.rule) + masked) % VOCAB)

    def choice(self, place: int) -> ScoredToken | None:
        at, token = self.slots[place % N_SLOTS]
        return ScoredToken(token, 0.0) if at == place else None

    def put_choices(self, choices: Sequence[ScoredToken], place: int) -> None:
        for at, choice in enumerate(choices, place):
            self.slots[at % N_SLOTS] = (at, choice.token)
        self.buffer[at] = choice.token

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
        if not self.rule.stepwise:
            self._choose(choice_after(self.keys[: self.position], self.rule))
        self.logits_end = -1
        self.flying += 1

    def verify(self, ids: Sequence[int]) -> list[ScoredToken]:
        assert self.flying == 0
        first = self.position
        self.feed(ids, len(ids))
        self.logits_end = -1
        ends = range(first + 1, self.position + 1)
        return [ScoredToken(choice_after(self.keys[:end], self.rule), 0.0) for end in ends]

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

    def write_tokens(self, ids: Sequence[int], at: int) -> None:
        self.buffer[at : at + len(ids)] = ids

    def logits(self) -> Any:
        found = np.zeros(VOCAB, np.float32)
        found[choice_after(self.keys[: self.logits_end])] = 1
        return found

    def set_logits(self, logits: Any) -> None:
        self.logits_end = self.position

    def copy_from(self, other: ListRunner, n_positions: int) -> None:
        other.finish()
        self.keys[:n_positions] = other.keys[:n_positions]
        self.buffer[:n_positions] = other.buffer[:n_positions]
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
    for at in range(max(timeline.position, timeline.chosen_from), timeline.cursor + 1):
        found = runner.choice(at)
        assert found is None or found.token == choice_after(runner.keys[:at], runner.rule)


OPERATIONS = st.one_of(
    st.tuples(
        st.just("feed"), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5),
        st.integers(1, 3), st.booleans(), st.booleans(),
    ),
    st.tuples(st.just("choose"), st.integers(1, 6)),
    st.tuples(st.just("verify"), st.integers(0, 4), st.integers(0, 4)),
    st.tuples(st.just("say"), st.integers(0, VOCAB - 1), st.booleans()),
    st.tuples(st.just("rule"), st.sampled_from(RULES)),
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
    timeline.choose_by(RULES[0])
    rule = RULES[0]
    text: list[int] = []
    lost = False  # after a failed step the text has to be settled first, as every caller does
    for operation, *arguments in operations:
        epoch = timeline.epoch
        try:
            if operation in ("choose", "verify", "say") and lost:
                timeline.choose_by(rule)
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
                    assert timeline.epoch != epoch
                case "rule":
                    rule = arguments[0]
                    timeline.choose_by(rule)
                    lost = False
                    assert timeline.epoch != epoch
                case "choose" if text and not rule.stepwise:
                    chosen = timeline.choice().token
                    assert chosen == choice_after(text + timeline.held, rule)
                    timeline.take_choice(chosen, arguments[0])
                    assert runner.position <= MAX_SEQ
                case "verify" if text and timeline.ahead == 0 and not rule.stepwise:
                    drafted = text + timeline.held
                    chosen = timeline.choice().token
                    drafted.append(chosen)
                    right = min(arguments[0], timeline.room - 1)
                    for _ in range(right):
                        drafted.append(choice_after(drafted, rule))
                    wrong = max(0, min(arguments[1], timeline.room - 1 - right))
                    drafted += [(choice_after(drafted, rule) + 1) % VOCAB] * wrong
                    n_kept = timeline.verify(chosen, drafted[timeline.cursor + 1 :])
                    assert n_kept == timeline.ahead == right + 1
                    assert runner.buffer[runner.position] == choice_after(
                        runner.keys[: runner.position], rule
                    )
                    timeline.take_choice(chosen, 1)
                case "say" if text and rule.stepwise:
                    said, masks = arguments
                    logits = timeline.logits()
                    assert int(np.argmax(logits)) == choice_after(text + timeline.held)
                    if masks:
                        expected = (choice_after(text + timeline.held, rule) + said) % VOCAB
                        chosen = timeline.choice(mask=np.uint32(said)).token
                    else:
                        expected, logits[said] = said, 9
                        chosen = timeline.choice(logits=logits).token
                    assert chosen == expected
                    timeline.take_choice(chosen, 1)
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
                    twin.choose_by(rule)
                    check(twin, twin_runner, text)
                    timeline, runner, lost = twin, twin_runner, False
                case "restore":
                    timeline.settle()
                    logits = timeline.known_logits() if arguments[0] else None
                    twin_runner = ListRunner()
                    twin_runner.keys = list(runner.keys)
                    twin = Timeline(twin_runner, MAX_SEQ)
                    twin.restore(text, logits)
                    twin.choose_by(rule)
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
    timeline.choose_by(RULES[0])
    with timeline.feeding([1] * MAX_SEQ, 4, all_rows=False) as batches:
        assert list(batches) == [(0, 4), (4, 8), (8, 12)]
    for call in (
        lambda: timeline.take_choice(timeline.choice().token, 3),
        lambda: timeline.check_room(1),
    ):
        with pytest.raises(SessionFullError, match="1 tokens do not fit: the session holds 12 of"):
            call()
        assert timeline.position == timeline.cursor == MAX_SEQ


def test_sizes_of_chunks_are_asked_for_before_each():
    runner = ListRunner()
    timeline = Timeline(runner, MAX_SEQ)
    ends, sizes = [], iter([4, 1, 3, 8])

    def size():
        ends.append(runner.position)
        return next(sizes)

    with timeline.feeding([1] * 10, size, all_rows=False) as batches:
        assert list(batches) == [(0, 4), (4, 5), (5, 8), (8, 10)]
    assert ends == [0, 4, 5, 8]


def test_choices_in_flight_are_dropped_with_what_is_held():
    runner = ListRunner()
    timeline = Timeline(runner, MAX_SEQ)
    timeline.choose_by(RULES[0])
    with timeline.feeding([3, 4], 2, all_rows=False) as batches:
        list(batches)
    chosen = timeline.choice().token
    timeline.take_choice(chosen, 5)
    assert (timeline.position, timeline.cursor, runner.position) == (2, 3, 7)
    assert timeline.held == [chosen]
    assert runner.flying == 4
    timeline.settle()
    assert (timeline.position, timeline.cursor, runner.position) == (2, 2, 2)
    assert timeline.choice().token == chosen


@pytest.mark.parametrize(("rule", "masked"), [(RULES[0], ""), (RULES[2], " or not allowed")])
def test_nothing_but_nan_is_no_choice(rule, masked):
    class Blind(ListRunner):
        def _choose(self, token: int) -> None:
            super()._choose(NO_TOKEN)

    timeline = fed([0], Blind())
    timeline.choose_by(rule)
    with pytest.raises(ValueError, match=f"every logit is NaN or -inf{masked}$"):
        timeline.choice()


def test_choice_without_a_rule_is_a_mistake():
    timeline = Timeline(ListRunner(), MAX_SEQ)
    with pytest.raises(ValueError, match="choose_by"):
        timeline.choice()


def test_another_rule_chooses_again_and_an_equal_one_does_not():
    runner = ListRunner()
    timeline = fed([3, 4], runner)
    chosen = timeline.choice().token
    runner.choose = lambda logits=None: pytest.fail("chose again")  # type: ignore[method-assign]
    timeline.choose_by(Rule(b"0"))
    assert timeline.choice().token == chosen
    del runner.choose
    timeline.choose_by(RULES[1])
    assert timeline.choice().token == (chosen + 1) % VOCAB


def test_choices_of_steps_in_flight_are_not_those_behind_tokens_that_are_fed():
    timeline = fed([3, 4])
    timeline.take_choice(timeline.choice().token, 4)  # chooses for the places up to 6
    with timeline.feeding([8, 9], 2, all_rows=False) as chunks:
        list(chunks)
    assert timeline.choice().token == choice_after([3, 4, 8, 9])


def test_failed_rule_is_told_again():
    runner = ListRunner()
    timeline = fed([3, 4], runner)
    runner.fail_in = 1
    with pytest.raises(Failure):
        timeline.choose_by(RULES[1])
    timeline.choose_by(RULES[0])
    assert timeline.choice().token == choice_after([3, 4])


def fed(ids: list[int], runner: ListRunner | None = None) -> Timeline:
    """Return a timeline whose text is `ids`."""
    timeline = Timeline(runner or ListRunner(), MAX_SEQ)
    timeline.choose_by(RULES[0])
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
    assert timeline.choice().token == choice_after([1, 2, 3, 4, 5])


def test_failed_settle_gives_a_new_epoch_and_drops_what_was_held():
    runner = ListRunner()
    timeline = fed([1, 2], runner)
    timeline.take_choice(timeline.choice().token, 3)
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
    assert timeline.choice().token == choice_after(expected)
    for _ in range(5):
        expected.append(choice_after(expected))
    first, *draft = expected[2:5]
    wrong = (expected[5] + 1) % VOCAB
    assert timeline.verify(first, [*draft, wrong, 0]) == 3
    assert (timeline.ahead, timeline.room) == (3, MAX_SEQ - 2)
    timeline.take_choice(first, 1)
    for token in draft:
        assert timeline.choice().token == token
        timeline.take_choice(token, 1)
    assert runner.position == 5
    assert timeline.choice().token == expected[5]
    for token in expected[2:5]:
        assert timeline.commit() == token
    check(timeline, runner, expected[:5])


def test_draft_that_does_not_fit_runs_nothing():
    timeline = fed([1] * (MAX_SEQ - 2))
    with pytest.raises(SessionFullError, match="3 tokens do not fit"):
        timeline.verify(timeline.choice().token, [0, 0])
    assert timeline.ahead == 0


@pytest.mark.parametrize("fail_in", [1, 2])
def test_failed_verification_leaves_the_text(fail_in):
    runner = ListRunner()
    timeline = fed([3, 4], runner)
    chosen = timeline.choice().token
    runner.fail_in = fail_in
    with pytest.raises(Failure):
        timeline.verify(chosen, [1, 2])
    timeline.settle()
    check(timeline, runner, [3, 4])
    assert timeline.choice().token == chosen
