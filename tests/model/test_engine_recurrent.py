"""Many texts on a model with recurrent layers: each is the text of a session, beside others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tiny_hybrids
import tiny_models
from hybrid_texts import assert_same, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from places import DATA

from oxibonsai.metal import BufferCreationError
from oxibonsai.model import Engine, EngineClosedError, Model, Request
from oxibonsai.model.engine.scheduler import Plan, Scheduler
from oxibonsai.model.engine.worker import Worker
from oxibonsai.model.runtime.batch import BatchRunner
from oxibonsai.model.runtime.recurrent import RecurrentStates

# The last layer is a recurrent one: of a prompt's tokens it runs for the state alone.
HYBRID = tiny_hybrids.Hybrid(n_layers=3, inter=128, n_heads=2, n_kv_heads=1, context=2048)
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_k": 20, "seed": 5, "repetition_penalty": 1.2}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "hybrid.gguf"
    return tiny_hybrids.write(path, HYBRID, tiny_hybrids.random_tensors(HYBRID))


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model.load(path, device="cpu") as found:
        yield found


def alone(model: Model, prompt: list[int], max_tokens: int, **options: Any) -> list[int]:
    settings = {"kv_dtype": "f32", "chunk": 128, **options.pop("settings", {})}
    with model.session(1024, deterministic=True, **settings) as session:
        session.forward(prompt, logits=None)
        return list(session.generate(max_tokens, **options))


def prompt_of(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, HYBRID.vocab, n).tolist()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.001)


def test_texts_are_those_of_sessions(model: Model) -> None:
    prompts = [prompt_of(i, n) for i, n in enumerate((1, 65, 130, 300, 7))]
    options: list[dict[str, Any]] = [{}, SAMPLED, {}, {**SAMPLED, "seed": 6}, {}]
    with model.engine(3, kv_dtype="f32", deterministic=True) as engine:
        requests = [engine.submit(p, 50, **o) for p, o in zip(prompts, options, strict=True)]
        for p, o, request in zip(prompts, options, requests, strict=True):
            found = request.result(60)
            assert found.error is None
            assert found.tokens == alone(model, p, 50, **o)
        assert engine.statistics().pages_used == 0


def test_texts_are_those_of_sessions_on_every_device(path: Path, device: Any) -> None:
    with Model.load(path, device=device) as model:
        prompts = [prompt_of(i, n) for i, n in enumerate((3, 70, 20))]
        settings = {"kv_dtype": "f32", "chunk": 64, "max_seq": 128, "checkpoint_every": 64}
        with model.engine(2, **settings, deterministic=True) as engine:
            requests = [engine.submit(p, 4) for p in prompts]
            found = [request.result(300) for request in requests]
            assert [f.error for f in found] == [None] * 3
            again = engine.submit(prompts[1], 4).result(300)
            assert (again.n_cached, again.tokens) == (64, found[1].tokens)
            assert engine.statistics().pages_used == 0
        for p, f in zip(prompts, found, strict=True):
            assert f.tokens == alone(model, p, 4, settings={"chunk": 64})


@pytest.mark.parametrize("kv_dtype", ["f32", "q8"])
def test_logits_have_the_bits_of_a_session_beside_others_and_behind_a_checkpoint(
    model: Model, kv_dtype: str
) -> None:
    prompt = prompt_of(0, 300)
    with model.session(512, kv_dtype, chunk=128, deterministic=True) as session:
        session.forward(prompt, logits=None)
        expected = rows_of(session, 6)
    with model.engine(3, kv_dtype=kv_dtype, max_seq=512, deterministic=True) as engine:
        for n_cached in (0, 256):
            seen: list[Any] = []
            others = [engine.submit(prompt_of(i, 20 + i), 30) for i in (1, 2)]
            wait_for(lambda: all(len(other.tokens) > 1 for other in others))  # noqa: B023
            found = engine.submit(
                prompt,
                6,
                ignore_eos=True,
                logits_callback=lambda row: seen.append(row.copy()),  # noqa: B023
            ).result(20)
            assert found.n_cached == n_cached
            assert_same(seen, expected)


@pytest.mark.parametrize(
    ("name", "n"), [("small-q2_0", 256), ("small-q1_0-tied", 256), ("rotated-v1-q2_0", 128)]
)
def test_logits_behind_a_checkpoint_are_those_of_float64(name: str, n: int) -> None:
    golden = np.load(DATA / "hybrid" / f"{name}-golden.npz")
    ids, seen = golden["ids"].tolist(), []
    expected = golden["logits"][golden["positions"].tolist().index(n)]
    with (
        Model.load(DATA / "hybrid" / f"{name}.gguf", "cpu") as model,
        model.engine(2, max_seq=512, kv_dtype="f32", checkpoint_every=128) as engine,
    ):
        options: dict[str, Any] = {"ignore_eos": True, "logits_callback": seen.append}
        other = engine.submit(ids[100:150], 200, ignore_eos=True)
        assert engine.submit(ids[:n], 2, **options).result(60).n_cached == 0
        assert engine.submit(ids[: n + 1], 1, **options).result(60).n_cached == n
        other.cancel()
    error = np.linalg.norm(seen[-1] - expected) / np.linalg.norm(expected)
    assert error < 1e-5


one = st.tuples(
    st.integers(0, 1),  # which beginning
    st.integers(1, 200),  # tokens of the prompt
    st.integers(1, 50),  # max_tokens
    st.booleans(),  # sampled
    st.integers(0, 1),  # priority
    st.integers(0, 20),  # tokens of the one before to wait for
    st.one_of(st.none(), st.none(), st.integers(0, 30)),  # tokens to cancel after
)
schedules = {
    "requests": st.lists(one, min_size=1, max_size=7),
    "n_pages": st.integers(4, 9),
    "max_sequences": st.integers(1, 4),
    "chunk": st.sampled_from([64, 128]),
    "max_checkpoints": st.integers(0, 3),
    "lookahead": st.integers(0, 2),  # a device with its own processor has 2
}


def check_schedule(
    model: Model, known: dict[Any, list[int]], requests: list[Any], chunk: int, lookahead: int,
    **sizes: int,
) -> None:  # fmt: skip
    engine_settings: dict[str, Any] = {
        "max_seq": 256, "kv_dtype": "f32", "chunk": chunk, "checkpoint_every": chunk, **sizes,
    }  # fmt: skip

    def worker(*args: Any) -> Worker:
        return Worker(*args[:4], lookahead, *args[5:])

    with (
        patch("oxibonsai.model.engine.engine.Worker", worker),
        model.engine(**engine_settings, deterministic=True) as engine,
    ):
        made: list[tuple[Request, list[int], bool]] = []
        for beginning, n, max_tokens, sampled, priority, after, cancel in requests:
            key = (beginning, n, sampled, chunk)
            options = SAMPLED if sampled else {}
            if key not in known:
                known[key] = alone(
                    model, prompt_of(beginning, n), 50, settings={"chunk": chunk}, **options
                )
            if made:
                before = made[-1][0]
                wait_for(lambda r=before, m=after: r.done or len(r.tokens) >= m)  # type: ignore[misc]
            request = engine.submit(
                prompt_of(beginning, n), max_tokens, priority=priority, **options
            )
            made.append((request, known[key][:max_tokens], cancel is not None))
            if cancel is not None:
                wait_for(lambda r=request, m=cancel: r.done or len(r.tokens) >= m)  # type: ignore[misc]
                request.cancel()
        for request, expected, cancelled in made:
            found = request.result(60)
            assert found.error is None
            if found.finish_reason == "cancelled":
                assert cancelled
                expected = expected[: len(found.tokens)]
            assert found.tokens == expected
        statistics = engine.statistics()
        assert statistics.pages_used == 0
        assert statistics.checkpoints_kept <= sizes["max_checkpoints"]
    assert engine.statistics().checkpoints_kept == 0


@pytest.fixture(scope="module")
def known() -> dict[Any, list[int]]:
    return {}


@given(**schedules)
@settings(max_examples=12)
def test_a_schedule_gives_the_texts_of_sessions(
    model: Model, known: dict[Any, list[int]], **schedule: Any
) -> None:
    check_schedule(model, known, **schedule)


@pytest.mark.slow
@given(**schedules)
@settings(max_examples=200)
def test_200_schedules_give_the_texts_of_sessions(
    model: Model, known: dict[Any, list[int]], **schedule: Any
) -> None:
    check_schedule(model, known, **schedule)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let no step be planned before it is set."""
    opened = threading.Event()
    plan = Scheduler.plan

    def planned(scheduler: Scheduler) -> Plan | None:
        assert opened.wait(60)
        return plan(scheduler)

    monkeypatch.setattr(Scheduler, "plan", planned)
    yield opened
    opened.set()


@pytest.mark.parametrize("kv_dtype", ["f32", "q8"])
def test_pages_run_out_and_the_youngest_text_takes_its_state_along(
    model: Model, gate: threading.Event, monkeypatch: pytest.MonkeyPatch, kv_dtype: str
) -> None:
    read: list[int] = []
    read_state = BatchRunner.read_state

    def noted(runner: BatchRunner, slot: int) -> Any:
        read.append(slot)
        return read_state(runner, slot)

    monkeypatch.setattr(BatchRunner, "read_state", noted)
    prompts = [prompt_of(i, 100) for i in range(3)]
    with model.engine(max_seq=256, kv_dtype=kv_dtype, n_pages=5, deterministic=True) as engine:
        requests = [engine.submit(p, 100) for p in prompts]
        gate.set()
        for p, request in zip(prompts, requests, strict=True):
            found = request.result(60)
            assert found.error is None
            assert found.tokens == alone(model, p, 100, settings={"kv_dtype": kv_dtype})
        assert engine.statistics().pages_used == 0
    assert read


def test_a_beginning_is_computed_once_up_to_the_last_checkpoint(model: Model) -> None:
    beginning = prompt_of(0, 500)
    with model.engine(kv_dtype="f32", checkpoint_every=64, deterministic=False) as engine:
        requests = [engine.submit([*beginning, i], 5) for i in range(4)]
        found = [request.result(20) for request in requests]
        statistics = engine.statistics()
        assert [f.n_cached for f in found] == [0] + [448] * 3
        assert statistics.prompt_tokens_computed == 501 + 3 * 53
        assert statistics.prompt_tokens_shared == 3 * 448
        assert (statistics.checkpoints_total, statistics.checkpoints_kept) == (8, 7)
        for i, f in enumerate(found):
            assert f.tokens == alone(model, [*beginning, i], 5)


def test_a_second_turn_computes_what_is_new_up_to_a_checkpoint(model: Model) -> None:
    with model.engine(kv_dtype="f32", checkpoint_every=64) as engine:
        first = engine.submit(prompt_of(0, 100), 101).result(20)
        text = [*prompt_of(0, 100), *first.tokens, 1, 2, 3]
        second = engine.submit(text, 10).result(20)
        assert second.n_cached == 192
        assert engine.statistics().prompt_tokens_computed == 100 + 204 - 192
        assert second.tokens == alone(model, text, 10)


def test_without_checkpoints_every_prompt_is_computed(model: Model) -> None:
    with model.engine(kv_dtype="f32", max_checkpoints=0) as engine:
        for _ in range(2):
            found = engine.submit(prompt_of(0, 300), 5).result(20)
            assert (found.n_cached, found.tokens) == (0, alone(model, prompt_of(0, 300), 5))
        assert engine.statistics().checkpoints_total == 0


def test_many_rows_and_idle_ones_change_no_state_but_their_own(model: Model) -> None:
    prompts = [prompt_of(i, 5 + i) for i in range(10)]
    with model.engine(10, max_seq=128, kv_dtype="f32", deterministic=True) as engine:
        requests = [engine.submit(p, 20 + 3 * i) for i, p in enumerate(prompts)]
        for i, (p, request) in enumerate(zip(prompts, requests, strict=True)):
            assert request.result(60).tokens == alone(model, p, 20 + 3 * i)


def test_an_error_of_the_device_leaves_no_state(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = threading.Event()
    finish = BatchRunner.finish

    def fail(runner: BatchRunner) -> Any:
        if failing.is_set():
            failing.clear()
            raise RuntimeError("the device has failed")
        return finish(runner)

    monkeypatch.setattr(BatchRunner, "finish", fail)
    prompt = prompt_of(0, 200)
    with model.engine(2, kv_dtype="f32", checkpoint_every=64) as engine:
        assert engine.submit(prompt, 3).result(20).n_cached == 0
        assert engine.submit(prompt, 3).result(20).n_cached == 192
        failing.set()
        assert "has failed" in str(engine.submit(prompt, 30).result(20).error)
        wait_for(lambda: engine.statistics().checkpoints_kept == 0)
        found = engine.submit(prompt, 30).result(20)
        assert (found.n_cached, found.tokens) == (0, alone(model, prompt, 30))


def test_closing_ends_what_runs_and_a_cancelled_slot_is_clean(model: Model) -> None:
    engine = model.engine(1, kv_dtype="f32")
    running = engine.submit(prompt_of(1, 40), 1500, ignore_eos=True)
    wait_for(lambda: len(running.tokens) > 2)
    running.cancel()
    assert engine.submit(prompt_of(2, 40), 20).result(20).tokens == alone(
        model, prompt_of(2, 40), 20
    )
    last = engine.submit([1], 1500, ignore_eos=True)
    wait_for(lambda: len(last.tokens) > 2)
    engine.close()
    with pytest.raises(EngineClosedError):
        last.text(1)
    statistics = engine.statistics()
    assert (statistics.running, statistics.pages_used, statistics.checkpoints_kept) == (0, 0, 0)


def test_what_can_never_fit_is_refused_at_once(model: Model) -> None:
    with model.engine(max_seq=256, n_pages=2) as engine:
        with pytest.raises(ValueError, match="pass max_seq = 256"):
            engine.submit([1] * 250, 7)
        with pytest.raises(ValueError, match="need 3 pages, the engine has 2"):
            engine.submit([1] * 120, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_every": 100}, "checkpoint_every = 100 must be a multiple of 64"),
        ({"checkpoint_every": 0}, "checkpoint_every = 0"),
        (
            {"checkpoint_every": 192, "deterministic": True},
            "checkpoint_every = 192 must be a multiple of 128, the chunk",
        ),
        ({"max_checkpoints": -1}, "max_checkpoints = -1"),
        ({"max_checkpoints": 2**31}, "max_checkpoints = 2147483648 .* fill a buffer"),
    ],
)
def test_a_wrong_setting_is_refused(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.engine(**options)


def test_states_that_do_not_fit_are_refused_and_nothing_is_left(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = model.device.info.max_buffer_length
    monkeypatch.setattr(
        RecurrentStates, "nbytes_of", staticmethod(lambda config, n: n * (limit // 4))
    )
    with pytest.raises(ValueError, match=r"max_checkpoints = 1 must lie in 0\.\.0, .* 4 texts"):
        model.engine(4, max_seq=128, max_checkpoints=1)
    before = model.device.stats.allocated_bytes
    with pytest.raises(BufferCreationError, match=r"5 recurrent states .* run fewer texts"):
        model.engine(5, max_seq=128)
    assert model.device.stats.allocated_bytes == before


def test_a_model_without_states_has_no_checkpoints(tmp_path: Path) -> None:
    tiny = tiny_models.Tiny()
    path = tiny_models.write(tmp_path / "m.gguf", tiny, tiny_models.random_tensors(tiny))
    settings = {"checkpoint_every": 64, "max_checkpoints": 3}
    with Model.load(path, device="cpu") as model, model.engine(1, **settings) as engine:
        assert (engine.checkpoint_every, engine.max_checkpoints) == (0, 0)
        assert engine.statistics().checkpoints_total == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (256, 8)),
        ({"max_seq": 256}, (64, 8)),
        ({"max_sequences": 1, "max_seq": 1024}, (256, 4)),
        ({"max_sequences": 20}, (256, 20)),
        ({"chunk": 1024, "deterministic": True}, (1024, 8)),
        ({"max_checkpoints": 3, "checkpoint_every": 128}, (128, 3)),
    ],
)
def test_checkpoints_are_as_many_as_texts_or_eight(
    model: Model, settings: dict[str, Any], expected: tuple[int, int]
) -> None:
    with model.engine(**settings) as engine:
        assert isinstance(engine, Engine)
        assert (engine.checkpoint_every, engine.max_checkpoints) == expected
