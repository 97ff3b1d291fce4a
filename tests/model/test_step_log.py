"""The log of steps against a list of where each step ends."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxibonsai.model.runtime.steplog import StepLog

SIZES = st.lists(st.integers(1, 5), max_size=30)


def sizes_of(log: StepLog, start: int = 0) -> list[int]:
    return [size for size, count in log.runs_from(start) for _ in range(count)]


def log_of(sizes: list[int]) -> StepLog:
    log = StepLog()
    for size in sizes:
        log.add(size)
    return log


@given(SIZES)
def test_sizes_come_back_from_the_end_of_any_step(sizes):
    log = log_of(sizes)
    ends = [0, *itertools.accumulate(sizes)]
    assert log.length == ends[-1]
    assert log.last == (sizes[-1] if sizes else 0)
    for i, end in enumerate(ends):
        assert sizes_of(log, end) == sizes[i:]
    assert all(a != b for (a, _), (b, _) in itertools.pairwise(log.runs))
    assert StepLog(log.runs).runs == log.runs


@given(SIZES, st.integers(0, 150), SIZES)
def test_a_step_that_is_cut_ends_there(sizes, position, more):
    log = log_of(sizes)
    position = min(position, log.length)
    ends = list(itertools.accumulate(sizes))
    kept = [end for end in ends if end < position]
    expected = [*kept, position] if position else []
    log.truncate(position)
    assert log.length == position
    for size in more:
        log.add(size)
        expected.append((expected[-1] if expected else 0) + size)
    assert list(itertools.accumulate(sizes_of(log))) == expected


def test_places_that_are_no_ends_are_refused():
    log = StepLog([(4, 3), (1, 2)])
    assert log.length == 14
    with pytest.raises(ValueError, match="no step ends at position 6"):
        list(log.runs_from(6))
    with pytest.raises(ValueError, match="position 15 is outside the 14"):
        log.truncate(15)
    with pytest.raises(ValueError, match="position -1 is outside"):
        log.truncate(-1)


@pytest.mark.parametrize("position", [0, 3, 8, 12, 13])
def test_an_interrupt_leaves_the_log_as_it_was(monkeypatch, position):
    log = StepLog([(4, 3), (1, 2)])
    runs = log.runs

    def stop(*args: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "add", stop)
        with contextlib.suppress(KeyboardInterrupt):
            log.truncate(position)
    if log.length != position:
        assert (log.length, log.runs) == (14, runs)
    log.truncate(position)
    assert log.length == position == sum(sizes_of(log))
