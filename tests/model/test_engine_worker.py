"""The engine's thread on texts in pages: each text is what it would be alone."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paged_texts import SETTINGS, PagedTexts, continuation, next_token

from oxibonsai.model.engine.request import Outbox, RequestResult
from oxibonsai.model.engine.scheduler import Scheduler, Sequence
from oxibonsai.model.engine.task import Task
from oxibonsai.model.engine.worker import Worker
from oxibonsai.model.errors import EngineClosedError, EngineFullError
from oxibonsai.model.generation.stopping import StopScanner
from oxibonsai.model.runtime.checkpointpool import CheckpointPool
from oxibonsai.model.runtime.pages import PagePool

VOCAB = 50
ids = itertools.count()


class Bench:
    """A worker on PagedTexts."""

    def __init__(
        self, n_pages: int = 64, max_sequences: int = 4, chunk: int = 64, *, lookahead: int = 2,
        max_waiting: int = 100, deterministic: bool = False, n_checkpoints: int | None = None,
        spacing: int = 64,
    ) -> None:  # fmt: skip
        self.runner = PagedTexts(max_sequences, n_pages, VOCAB, n_checkpoints)
        self.checkpoints = None if n_checkpoints is None else CheckpointPool(n_checkpoints, spacing)
        self.pool = PagePool(n_pages, self.checkpoints.drop if self.checkpoints else None)
        self.scheduler = Scheduler(
            self.pool, max_sequences, chunk, deterministic=deterministic,
            checkpoints=self.checkpoints,
        )  # fmt: skip
        self.worker = Worker(
            self.runner, self.pool, self.scheduler, max_waiting, lookahead,  # type: ignore[arg-type]
            self.checkpoints,
        )  # fmt: skip

    def task(self, prompt: list[int], max_tokens: int, **settings: Any) -> Task:
        priority = settings.pop("priority", 0)
        sequence = Sequence(
            list(prompt), len(prompt), len(prompt) + max_tokens - 1, (-priority, next(ids))
        )
        ends = settings.pop("ends", frozenset())
        scanner = StopScanner([], settings.pop("stop", []), lambda token: b"%d " % token)
        return Task(sequence, max_tokens, SETTINGS, ends, scanner, Outbox(len(prompt)), **settings)

    def submit(self, prompt: list[int], max_tokens: int, **settings: Any) -> Task:
        task = self.task(prompt, max_tokens, **settings)
        self.worker.submit(task, block=False, timeout=None)
        return task


@contextmanager
def bench(**settings: Any) -> Iterator[Bench]:
    made = Bench(**settings)
    try:
        yield made
    finally:
        made.worker.stop(10)
    assert made.runner.closed


def result(task: Task) -> RequestResult:
    assert task.outbox.wait(20), "it hangs"
    found = task.outbox.result
    assert found is not None
    return found


def prompt_of(seed: int, n: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=n)


def wait_for(condition: Callable[[], bool]) -> None:
    event = threading.Event()
    for _ in range(2000):
        if condition():
            return
        event.wait(0.005)
    raise AssertionError("it does not come")


def test_texts_are_those_of_sequences_alone_and_steps_stay_in_flight() -> None:
    with bench() as b:
        prompts = [prompt_of(i, n) for i, n in enumerate((1, 63, 64, 65, 200))]
        tasks = [b.submit(p, 70) for p in prompts]
        for p, task in zip(prompts, tasks, strict=True):
            found = result(task)
            assert found.tokens == continuation(p, 70, VOCAB)
            assert found.finish_reason == "length"
            assert found.text == "".join(f"{t} " for t in found.tokens)
        assert b.runner.most_in_flight == 3
        assert b.pool.n_used == 0


request = st.tuples(
    st.integers(0, 2),  # which beginning
    st.integers(1, 150),  # tokens of the prompt
    st.integers(1, 90),  # max_tokens
    st.integers(0, 1),  # priority
    st.sampled_from(["", "", "", "cancel", "stop", "end"]),
)


@given(
    requests=st.lists(request, min_size=1, max_size=8),
    n_pages=st.integers(4, 10),
    max_sequences=st.integers(1, 4),
    chunk=st.sampled_from([1, 64, 100]),
    lookahead=st.integers(0, 2),
    deterministic=st.booleans(),
    n_checkpoints=st.sampled_from([None, 0, 1, 3]),
    spacing=st.sampled_from([64, 128]),
)
def test_any_schedule_gives_the_texts_of_sequences_alone(
    requests: list[tuple[int, int, int, int, str]], n_pages: int, max_sequences: int, chunk: int,
    lookahead: int, deterministic: bool, n_checkpoints: int | None, spacing: int,
) -> None:  # fmt: skip
    settings = {
        "n_pages": n_pages, "max_sequences": max_sequences, "chunk": chunk, "lookahead": lookahead,
        "deterministic": deterministic, "n_checkpoints": n_checkpoints, "spacing": spacing,
    }  # fmt: skip
    with bench(**settings) as b:
        tasks = []
        for beginning, n, max_tokens, priority, what in requests:
            prompt = prompt_of(beginning, n)
            alone = continuation(prompt, max_tokens, VOCAB)
            keywords: dict[str, Any] = {"priority": priority}
            expected, reason = alone, "length"
            if what == "end":
                keywords["ends"] = frozenset([alone[len(alone) // 2]])
                expected, reason = alone[: alone.index(alone[len(alone) // 2])], "stop"
            elif what == "stop":
                stop = alone[len(alone) // 2 :][:2]
                keywords["stop"] = [stop]
                at = next(i for i in range(len(alone)) if alone[i : i + len(stop)] == stop)
                expected, reason = alone[:at], "stop"
            task = b.submit(prompt, max_tokens, **keywords)
            tasks.append((task, expected, reason, what))
            if what == "cancel":
                b.worker.cancel(task)
        for task, expected, reason, what in tasks:
            found = result(task)
            assert found.error is None
            if what == "cancel" and found.finish_reason == "cancelled":
                assert found.tokens == expected[: len(found.tokens)]
            else:
                assert (found.tokens, found.finish_reason) == (expected, reason)
        wait_for(lambda: not b.scheduler.busy)
        assert b.pool.n_used == 0


def test_pages_run_out_and_the_youngest_waits() -> None:
    with bench(n_pages=5, lookahead=0) as b:
        prompts = [prompt_of(i, 100) for i in range(3)]
        tasks = [b.submit(p, 120) for p in prompts]
        for p, task in zip(prompts, tasks, strict=True):
            assert result(task).tokens == continuation(p, 120, VOCAB)
        assert b.runner.n_swapped > 0
        assert b.pool.n_used == 0


def test_a_beginning_with_a_state_that_is_kept_runs_once() -> None:
    with bench(n_checkpoints=4, spacing=128, lookahead=1) as b:
        beginning = prompt_of(0, 300)
        tasks = [b.submit([*beginning, i], 20) for i in range(4)]
        for i, task in enumerate(tasks):
            found = result(task)
            assert found.tokens == continuation([*beginning, i], 20, VOCAB)
            assert found.n_cached == (256 if i else 0)
        assert b.runner.n_run == 301 + 3 * 45
        statistics = b.worker.statistics()
        assert (statistics.prompt_tokens_computed, statistics.prompt_tokens_shared) == (436, 768)
        assert (statistics.checkpoints_total, statistics.checkpoints_kept) == (4, 2)


def test_a_text_with_a_state_that_is_put_aside_goes_on_where_it_was() -> None:
    with bench(n_pages=5, lookahead=0, n_checkpoints=2) as b:
        prompts = [prompt_of(i, 100) for i in range(3)]
        tasks = [b.submit(p, 120) for p in prompts]
        for p, task in zip(prompts, tasks, strict=True):
            assert result(task).tokens == continuation(p, 120, VOCAB)
        assert b.runner.n_swapped > 0
        assert b.pool.n_used == 0


def test_a_failing_device_leaves_no_state_that_is_kept() -> None:
    with bench(n_checkpoints=4) as b:
        prompt = prompt_of(0, 200)
        assert result(b.submit(prompt, 1)).n_cached == 0
        assert result(b.submit(prompt, 1)).n_cached == 192
        b.runner.fail_at = b.runner.n_steps
        assert result(b.submit(prompt, 5)).finish_reason == "error"
        wait_for(lambda: b.worker.statistics().checkpoints_kept == 0)
        found = result(b.submit(prompt, 70))
        assert (found.n_cached, found.tokens) == (0, continuation(prompt, 70, VOCAB))


def test_a_failing_device_fails_what_it_held_and_the_rest_goes_on() -> None:
    with bench(max_sequences=2) as b:
        b.runner.fail_at = 5
        tasks = [b.submit(prompt_of(i, 10), 20) for i in range(4)]
        found = [result(task) for task in tasks]
        assert [f.finish_reason for f in found] == ["error", "error", "length", "length"]
        assert "the device has failed" in str(found[0].error)
        for i in (2, 3):
            assert found[i].tokens == continuation(prompt_of(i, 10), 20, VOCAB)
        assert (b.pool.n_used, b.runner.in_flight) == (0, 0)


def test_too_many_waiting_requests_are_refused_or_wait_for_room() -> None:
    gate = threading.Event()
    with bench(max_sequences=1, max_waiting=1) as b:

        def hold(tokens: Any) -> Any:
            gate.wait(20)
            raise ValueError("enough")

        held = b.submit([1], 5, make_mask=hold)
        wait_for(lambda: not b.worker._mail)
        with pytest.raises(EngineFullError, match="max_waiting = 1"):
            b.submit([2], 5)
        late = b.task([2], 5)
        with pytest.raises(EngineFullError):
            b.worker.submit(late, block=True, timeout=0.01)
        gate.set()
        b.worker.submit(late, block=True, timeout=20)
        assert result(held).finish_reason == "error"
        assert result(late).tokens == continuation([2], 5, VOCAB)


def test_stopping_fails_what_has_not_ended_and_refuses_what_comes() -> None:
    with bench(max_sequences=1) as b:
        tasks = [b.submit(prompt_of(i, 300), 400) for i in range(3)]
        b.worker.stop(10)
        for task in tasks:
            error = result(task).error
            assert isinstance(error, EngineClosedError)
        with pytest.raises(EngineClosedError, match="closed"):
            b.submit([1], 1)
        b.worker.cancel(tasks[0])
        b.worker.stop(10)


def test_a_step_waits_for_the_host_where_a_function_has_a_say() -> None:
    seen = []

    class Mask:
        def __call__(self, tokens: Any) -> Any:
            seen.append(list(tokens))
            return None

    with bench() as b:
        task = b.submit([1, 2], 6, make_mask=Mask())
        tokens = result(task).tokens
        assert b.runner.most_in_flight == 1
    assert seen == [[1, 2, *tokens[:n]] for n in range(6)]


def test_an_error_of_a_callers_function_ends_its_request_alone() -> None:
    def refuse(tokens: Any) -> Any:
        if len(tokens) == 4:
            raise KeyError("mine")

    with bench() as b:
        other = b.submit([5], 30)
        bad = b.submit([1, 2], 30, make_mask=refuse)
        found = result(bad)
        assert found.finish_reason == "error"
        assert isinstance(found.error, KeyError)
        assert len(found.tokens) == 2
        assert result(other).tokens == continuation([5], 30, VOCAB)


def test_a_closed_model_ends_everything_with_the_reason() -> None:
    with bench() as b:
        b.runner.model.closed = True
        task = b.submit([1], 500)
        assert "the model is closed" in str(result(task).error)


def test_the_next_token_depends_on_all_before_it() -> None:
    assert next_token([1, 2, 3], 50) != next_token([1, 3, 2], 50)
