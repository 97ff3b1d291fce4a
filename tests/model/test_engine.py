"""Many texts on one model: each is the text of a session, whatever else runs."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import Tiny

from oxibonsai.model import (
    Engine,
    EngineClosedError,
    EngineFullError,
    Model,
    Request,
    Session,
)
from oxibonsai.model.engine.scheduler import Plan, Scheduler

TINY = Tiny(context=2048)
SAMPLED: dict[str, Any] = {
    "temperature": 0.9, "top_k": 20, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2,
    "presence_penalty": 0.1, "frequency_penalty": 0.2, "penalty_window": 16, "seed": 5,
    "logit_bias": {3: 1.5, 70: -2.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    return tiny_models.write(folder / "tiny.gguf", TINY, tiny_models.random_tensors(TINY))


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model.load(path, device="cpu") as found:
        yield found


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Return a model with a token for each byte, which says ABCDEFG after A."""
    path = tmp_path_factory.mktemp("engine") / "chain.gguf"
    tiny_models.write_chain(path, tiny_models.chain("ABCDEFGHéIJ"))
    with Model.load(path, device="cpu") as found:
        yield found


def alone(model: Model, prompt: list[int], max_tokens: int, **options: Any) -> list[int]:
    with model.session(2048, "f32") as session:
        session.forward(prompt, logits=None)
        return list(session.generate(max_tokens, **options))


def prompt_of(seed: int, n: int) -> list[int]:
    return random.Random(seed).choices(range(TINY.vocab), k=n)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.001)


def test_texts_are_those_of_sessions(model: Model) -> None:
    options: list[dict[str, Any]] = [{}, SAMPLED, {**SAMPLED, "seed": 6}, {"temperature": 1.0}]
    options[3]["seed"] = 1
    prompts = [prompt_of(i, n) for i, n in enumerate((1, 65, 130, 300))]
    with model.engine(kv_dtype="f32", deterministic=True) as engine:
        requests = [engine.submit(p, 80, **o) for p, o in zip(prompts, options, strict=True)]
        for p, o, request in zip(prompts, options, requests, strict=True):
            found = request.result(20)
            assert found.error is None
            assert found.tokens == alone(model, p, 80, **o)
            assert (found.finish_reason, found.n_prompt) == ("length", len(p))


def test_texts_are_those_of_sessions_on_every_device(path: Path, device: Any) -> None:
    with Model.load(path, device=device) as model:
        prompts = [prompt_of(i, n) for i, n in enumerate((3, 70, 20))]
        options: list[dict[str, Any]] = [{}, SAMPLED, {}]
        with model.engine(2, kv_dtype="f32", chunk=64, deterministic=True, max_seq=128) as engine:
            requests = [engine.submit(p, 6, **o) for p, o in zip(prompts, options, strict=True)]
            found = [request.result(120) for request in requests]
            assert [f.error for f in found] == [None] * 3
            assert engine.statistics().pages_used == 0
        for p, o, f in zip(prompts, options, found, strict=True):
            with model.session(128, "f32", chunk=64, deterministic=True) as session:
                session.forward(p, logits=None)
                assert f.tokens == list(session.generate(6, **o))


one = st.tuples(
    st.integers(0, 1),  # which beginning
    st.integers(1, 150),  # tokens of the prompt
    st.integers(1, 60),  # max_tokens
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
}


def check_schedule(
    model: Model, known: dict[Any, list[int]], requests: list[Any], n_pages: int,
    max_sequences: int, chunk: int,
) -> None:  # fmt: skip
    settings = {"max_seq": 256, "kv_dtype": "f32", "n_pages": n_pages, "chunk": chunk}
    with model.engine(max_sequences, **settings, deterministic=True) as engine:
        made: list[tuple[Request, list[int], bool]] = []
        for beginning, n, max_tokens, sampled, priority, after, cancel in requests:
            key = (beginning, n, sampled, chunk)
            if key not in known:
                with model.session(2048, "f32", chunk=chunk) as session:
                    session.forward(prompt_of(beginning, n), logits=None)
                    known[key] = list(session.generate(60, **(SAMPLED if sampled else {})))
            if made:
                before = made[-1][0]
                wait_for(lambda r=before, m=after: r.done or len(r.tokens) >= m)  # type: ignore[misc]
            request = engine.submit(
                prompt_of(beginning, n), max_tokens, priority=priority,
                **(SAMPLED if sampled else {}),
            )  # fmt: skip
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
        assert engine.statistics().pages_used == 0


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


class Plans:
    """The steps of an engine: none is planned before go(), and each is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most_active = self.most_aside = 0
        self._gate = threading.Event()
        plan = Scheduler.plan

        def noted(scheduler: Scheduler) -> Plan | None:
            assert self._gate.wait(60)
            found = plan(scheduler)
            self.most_active = max(self.most_active, scheduler.n_active)
            self.most_aside = max(self.most_aside, scheduler.n_aside)
            return found

        monkeypatch.setattr(Scheduler, "plan", noted)

    def go(self) -> None:
        self._gate.set()


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plans]:
    found = Plans(monkeypatch)
    yield found
    found.go()  # where the test has failed before


def test_pages_run_out_and_the_youngest_text_is_unchanged(model: Model, plans: Plans) -> None:
    prompts = [prompt_of(i, 100) for i in range(3)]
    with model.engine(max_seq=256, kv_dtype="f32", n_pages=5, deterministic=True) as engine:
        requests = [engine.submit(p, 100) for p in prompts]
        plans.go()
        for p, request in zip(prompts, requests, strict=True):
            assert request.result(60).tokens == alone(model, p, 100)
        assert plans.most_aside >= 1
        assert engine.statistics().pages_used == 0


def test_a_shared_beginning_of_1000_tokens_is_computed_once(model: Model) -> None:
    beginning = prompt_of(0, 1000)
    with model.engine(kv_dtype="f32") as engine:
        requests = [engine.submit([*beginning, i], 5) for i in range(6)]
        found = [request.result(20) for request in requests]
        statistics = engine.statistics()
        assert statistics.prompt_tokens_computed == 1001 + 5 * (1001 % 64)
        assert statistics.prompt_tokens_shared == 5 * 960
        assert [f.n_cached for f in found] == [0] + [960] * 5
        for i, f in enumerate(found):
            assert f.tokens == alone(model, [*beginning, i], 5)


def test_a_second_turn_computes_what_is_new_up_to_a_page(model: Model) -> None:
    with model.engine(kv_dtype="f32") as engine:
        first = engine.submit(prompt_of(0, 100), 101).result(20)
        text = [*prompt_of(0, 100), *first.tokens, 1, 2, 3]
        second = engine.submit(text, 10).result(20)
        assert second.n_cached == 192
        assert engine.statistics().prompt_tokens_computed == 100 + 204 - 192


def test_a_long_prompt_does_not_stop_the_others(model: Model) -> None:
    with model.engine(2, kv_dtype="f32", chunk=64) as engine:
        running = engine.submit([1], 1500)
        wait_for(lambda: len(running.tokens) > 0)
        before = len(running.tokens)
        late = engine.submit(prompt_of(1, 1000), 1)
        late.result(20)
        assert len(running.tokens) - before >= 1000 // 64
        running.cancel()
        assert running.result(20).finish_reason == "cancelled"


def test_as_many_run_as_the_engine_was_made_for(model: Model, plans: Plans) -> None:
    # The pages that are there by default hold max_sequences texts of max_seq tokens.
    with model.engine(8, max_seq=106) as engine:
        requests = [engine.submit(prompt_of(i, 64), 42) for i in range(8)]
        plans.go()
        assert all(len(request.result(60).tokens) == 42 for request in requests)
        assert plans.most_active == 8


@pytest.mark.parametrize("add_bos", [True, False])
def test_text_begins_as_the_file_says_and_tokens_are_taken_as_they_are(
    tmp_path: Path, add_bos: bool
) -> None:
    words = tiny_models.byte_vocabulary()
    words["tokenizer.ggml.tokens"].append("<s>")
    words["tokenizer.ggml.token_type"].append(3)
    bos = len(words["tokenizer.ggml.tokens"]) - 1
    words |= {"tokenizer.ggml.bos_token_id": bos, "tokenizer.ggml.add_bos_token": add_bos}
    # Only after the token of the beginning does the model say anything.
    path = tiny_models.write_chain(tmp_path / "m.gguf", {bos: ord("b")}, vocabulary=words)
    with Model.load(path, "cpu") as model, model.engine(2, max_seq=64) as engine:
        ids = [*[bos] * add_bos, ord("a")]
        assert engine.submit("a", 1).result(20).n_prompt == len(ids)
        assert engine.submit([ord("a")], 1).result(20).n_prompt == 1
        if add_bos:
            assert engine.submit("", 1).result(20).text == "b"
            assert engine.generate_batch(["", [bos]], 1) == ["b", "b"]

            async def streamed() -> str:
                return "".join([piece async for piece in engine.stream("", 1)])

            assert asyncio.run(streamed()) == "b"
        else:
            with pytest.raises(ValueError, match="no tokens"):
                engine.submit("", 1)


def test_what_can_never_fit_is_refused_at_once(model: Model) -> None:
    with model.engine(max_seq=256, n_pages=2) as engine:
        with pytest.raises(ValueError, match="pass max_seq = 256"):
            engine.submit([1] * 250, 7)
        with pytest.raises(ValueError, match="need 3 pages, the engine has 2"):
            engine.submit([1] * 120, 20)
        assert len(engine.submit([1] * 120, 9).result(20).tokens) == 9


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "no tokens"),
        ([77], {}, "token 77 at 0 is outside the vocabulary"),
        ([1], {"max_tokens": 0}, "max_tokens = 0"),
        ([1], {"temperature": -1.0}, "temperature"),
        ([1], {"n_best": 33}, r"n_best = 33 must lie in 0\.\.32"),
        ([1], {"allowed": np.ones(5, bool)}, r"a mask of shape \(5,\)"),
        ([1], {"stop": "x"}, "no tokenizer"),
        ([1], {"stop": [""]}, "empty"),
    ],
)
def test_a_wrong_argument_is_refused(
    model: Model, prompt: list[int], options: dict[str, Any], message: str
) -> None:
    with model.engine(1, max_seq=128) as engine:
        with pytest.raises(ValueError, match=message):
            engine.submit(prompt, **options)
        assert engine.statistics().waiting == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_sequences": 0}, "max_sequences = 0"),
        ({"max_seq": 4096}, "max_seq = 4096 .* context_length"),
        ({"n_pages": 0}, "n_pages = 0"),
        ({"kv_dtype": "bf16"}, "kv_dtype = 'bf16'"),
        ({"chunk": 0}, "chunk = 0"),
        ({"chunk": 100, "deterministic": True}, "multiple of 64"),
        ({"max_waiting": 0}, "max_waiting = 0"),
    ],
)
def test_a_wrong_setting_is_refused(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.engine(**options)


def test_a_request_can_be_cancelled_while_its_prompt_is_read_or_waits(model: Model) -> None:
    with model.engine(1, kv_dtype="f32", chunk=1) as engine:
        reading = engine.submit(prompt_of(0, 1500), 5)
        waiting = engine.submit([1], 5)
        wait_for(lambda: engine.statistics().prompt_tokens_computed > 10)
        assert engine.statistics().waiting == 1
        waiting.cancel()
        reading.cancel()
        reading.cancel()
        for request in (reading, waiting):
            found = request.result(20)
            assert (found.finish_reason, found.tokens, found.text) == ("cancelled", [], "")
            assert list(request) == []
            assert found.time_to_first_token is None
        assert engine.submit([1], 3).result(20).tokens == alone(model, [1], 3)
        assert engine.statistics().pages_used == 0


def test_a_callback_that_raises_ends_its_request_alone(model: Model) -> None:
    class MineError(Exception):
        pass

    def fail(logits: Any) -> None:
        raise MineError("no")

    with model.engine(kv_dtype="f32") as engine:
        other = engine.submit([1, 2], 40)
        bad = engine.submit([3], 40, logits_callback=fail)
        with pytest.raises(MineError):
            bad.text(20)
        with pytest.raises(MineError):
            list(bad)
        assert bad.result().finish_reason == "error"
        assert other.result(20).tokens == alone(model, [1, 2], 40)


def test_a_callback_changes_the_logits_of_its_own_request(model: Model) -> None:
    def only_nine(logits: Any) -> None:
        assert logits.shape == (TINY.vocab,)
        logits[9] = 1e9

    with model.engine(kv_dtype="f32") as engine:
        other = engine.submit([1, 2], 30)
        forced = engine.submit([3] * 70, 10, logits_callback=only_nine)
        assert forced.result(20).tokens == [9] * 10
        assert other.result(20).tokens == alone(model, [1, 2], 30)


def test_masks_decide_which_tokens_may_come(model: Model) -> None:
    even = np.arange(TINY.vocab) % 2 == 0

    def in_turn(tokens: Any) -> Any:
        return even if len(tokens) % 2 else ~even

    with model.engine(kv_dtype="f32") as engine:
        free = engine.submit([1], 30, temperature=1.0, seed=1)
        masked = engine.submit([1], 30, temperature=1.0, seed=1, allowed=even)
        turns = engine.submit([1], 30, temperature=1.0, seed=1, allowed=in_turn)
        assert all(token % 2 == 0 for token in masked.result(20).tokens)
        assert [token % 2 for token in turns.result(20).tokens] == [0, 1] * 15
        assert any(token % 2 for token in free.result(20).tokens)
        with pytest.raises(ValueError, match="none could be drawn; allow at least one"):
            engine.submit([1], 3, allowed=np.zeros(TINY.vocab, bool))
        nothing = engine.submit([1], 3, allowed=lambda tokens: [])
        assert "none could be drawn" in str(nothing.result(20).error)


def test_log_probabilities_are_those_of_the_logits(model: Model) -> None:
    with model.engine(kv_dtype="f32") as engine:
        plain = engine.submit([4], 20)
        scored = engine.submit([1, 2, 3], 20, **SAMPLED, log_probabilities=True, n_best=4)
        found = scored.result(20)
        assert plain.result(20).log_probabilities == []
    assert [s.token for s in found.log_probabilities] == found.tokens
    with model.session(kv_dtype="f32") as session:
        logits = session.forward([1, 2, 3, *found.tokens])
    assert logits is not None
    rows = logits[2:-1].astype(np.float64)
    logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    for row, scored_token in zip(logs, found.log_probabilities, strict=True):
        assert scored_token.log_probability == pytest.approx(row[scored_token.token], abs=1e-5)
        order = np.argsort(-row, kind="stable")[:4]
        assert [token for token, _ in scored_token.best] == order.tolist()
        assert [p for _, p in scored_token.best] == pytest.approx(row[order].tolist(), abs=1e-5)


def test_text_comes_in_whole_characters_and_ends_before_a_stop_text(bytes_model: Model) -> None:
    with bytes_model.engine(4) as engine:
        whole = engine.submit("A", 50)
        pieces = list(whole)
        assert "".join(pieces) == "BCDEFGHéIJ" == whole.text()
        assert "é" in pieces
        assert whole.result().finish_reason == "stop"
        assert list(whole) == []
        short = engine.submit("A", 3).result(20)
        assert (short.text, short.finish_reason) == ("BCD", "length")
        stopped = engine.submit("A", 50, stop=["XY", "EF"]).result(20)
        assert (stopped.text, stopped.finish_reason) == ("BCD", "stop")
        assert stopped.tokens == list(b"BCD")
        listed = engine.submit("A", 50, stop=[list(b"GH")]).result(20)
        assert listed.text == "BCDEF"
        on = engine.submit("J", 5, ignore_eos=True).result(20)
        assert (len(on.tokens), on.finish_reason) == (5, "length")


def test_a_batch_keeps_the_order_of_its_prompts(bytes_model: Model) -> None:
    with bytes_model.engine(2, max_waiting=1) as engine:
        assert engine.generate_batch(["A", "F", list(b"D"), "H"], max_tokens=2) == [
            "BC", "GH", "EF", "é",
        ]  # fmt: skip
        assert engine.generate_batch([]) == []
        with pytest.raises(TypeError, match="one text"):
            engine.generate_batch("A")
        with pytest.raises(ValueError, match="no tokens"):
            engine.generate_batch(["A", ""])
        wait_for(lambda: engine.statistics().running == 0)
        assert engine.statistics().pages_used == 0


def test_requests_beyond_max_waiting_are_refused_or_wait(model: Model) -> None:
    with model.engine(1, max_waiting=1, chunk=1) as engine:
        running = engine.submit(prompt_of(0, 1000), 500)
        wait_for(lambda: engine.statistics().running == 1)
        engine.submit([1], 1)
        with pytest.raises(EngineFullError, match="max_waiting = 1"):
            engine.submit([2], 1, block=False)
        with pytest.raises(EngineFullError):
            engine.submit([2], 1, timeout=0.01)
        running.cancel()
        assert len(engine.submit([2], 1).result(20).tokens) == 1


def test_a_result_that_does_not_come_in_time_is_an_error_and_it_goes_on(model: Model) -> None:
    with model.engine(1, chunk=1) as engine:
        request = engine.submit(prompt_of(0, 500), 2)
        with pytest.raises(TimeoutError, match="goes on"):
            request.result(0.001)
        assert len(request.result(20).tokens) == 2


def test_many_threads_submit_at_once(model: Model) -> None:
    expected = [alone(model, prompt_of(i, 20), 10) for i in range(8)]
    found: dict[int, list[int]] = {}
    with model.engine(4, kv_dtype="f32") as engine:

        def use(i: int) -> None:
            found[i] = engine.submit(prompt_of(i, 20), 10).result(20).tokens

        threads = [threading.Thread(target=use, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[i] for i in range(8)] == expected


def test_statistics_add_up(model: Model) -> None:
    with model.engine(3, max_seq=256) as engine:
        before = engine.statistics()
        assert (before.running, before.waiting, before.aside, before.steps) == (0, 0, 0, 0)
        assert (before.pages_total, before.pages_used, before.pages_cached) == (12, 0, 0)
        for request in [engine.submit(prompt_of(i, 70), 10) for i in range(5)]:
            request.result(20)
        after = engine.statistics()
        assert after.generated_tokens == 50
        assert after.tokens_per_second > 0
        assert len(after.times_to_first_token) == 5
        assert after.prompt_tokens_computed == 350
        assert (after.pages_used, after.pages_cached) == (0, 5)


# Asynchronous use


def test_streams_run_side_by_side_and_never_block_the_loop(bytes_model: Model) -> None:
    async def use(engine: Engine, prompt: str) -> str:
        return "".join([piece async for piece in engine.stream(prompt, max_tokens=50)])

    async def main() -> tuple[list[str], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        with bytes_model.engine(2, max_waiting=1) as engine:
            ticking = asyncio.create_task(tick())
            texts = await asyncio.gather(*(use(engine, p) for p in "AFDHA"))
            ticking.cancel()
        return texts, ticks

    texts, ticks = asyncio.run(main())
    assert texts == ["BCDEFGHéIJ", "GHéIJ", "EFGHéIJ", "éIJ", "BCDEFGHéIJ"]
    assert ticks > 10


def test_a_cancelled_task_cancels_its_request(model: Model) -> None:
    async def main() -> None:
        with model.engine(1) as engine:

            async def use() -> None:
                async for _ in engine.stream([1], 1500, ignore_eos=True):
                    pass

            task = asyncio.create_task(use())
            while engine.statistics().generated_tokens < 3:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while engine.statistics().running:
                await asyncio.sleep(0.001)
            assert engine.statistics().generated_tokens < 1500
            assert engine.statistics().pages_used == 0

    asyncio.run(main())


def test_an_error_reaches_the_asynchronous_iterator(model: Model) -> None:
    def fail(tokens: Any) -> Any:
        raise KeyError("mine")

    async def main() -> None:
        with model.engine(1) as engine:
            with pytest.raises(KeyError, match="mine"):
                async for _ in engine.stream([1], 5, allowed=fail):
                    pass
            with pytest.raises(ValueError, match="pass max_seq"):
                async for _ in engine.stream([1], 5000):
                    pass

    asyncio.run(main())


# Ends


def test_closing_fails_what_has_not_ended(model: Model) -> None:
    engine = model.engine(1)
    requests = [engine.submit([i], 1500, ignore_eos=True) for i in range(3)]
    wait_for(lambda: len(requests[0].tokens) > 2)
    engine.close()
    engine.close()
    for request in requests:
        with pytest.raises(EngineClosedError, match="closed"):
            request.text(1)
        request.cancel()
    assert engine.closed
    with pytest.raises(EngineClosedError):
        engine.submit([1])
    with pytest.raises(EngineClosedError):
        engine.__enter__()
    assert repr(engine) == "<Engine closed>"
    after = engine.statistics()
    assert (after.running, after.waiting, after.pages_used) == (0, 0, 0)


def test_a_closed_model_ends_its_engine(path: Path) -> None:
    model = Model.load(path, device="cpu")
    engine = model.engine(1)
    request = engine.submit([1], 1500, ignore_eos=True)
    model.close()
    assert isinstance(request.result(20).error, EngineClosedError)
    assert engine.closed
    engine.close()


def test_an_engine_that_nobody_holds_ends_its_thread(model: Model) -> None:
    def threads() -> int:
        return sum(t.name == "oxibonsai-engine" for t in threading.enumerate())

    before = threads()
    request = model.engine(1).submit([1], 3)
    assert len(request.result(20).tokens) == 3  # the request holds it
    del request
    gc.collect()
    wait_for(lambda: threads() == before)


def test_an_interpreter_exits_with_an_engine_at_work(path: Path) -> None:
    script = f"""
        from oxibonsai.model import Model
        engine = Model.load({str(path)!r}, device="cpu").engine(1)
        request = engine.submit([1], 2000, ignore_eos=True)
        while not request.tokens and not request.done:
            pass
        print("bye")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")


def test_a_forked_process_is_told_to_make_its_own_engine(path: Path) -> None:
    script = f"""
        import os, warnings
        from oxibonsai.model import Model
        warnings.simplefilter("ignore")
        engine = Model.load({str(path)!r}, device="cpu").engine(1)
        engine.submit([1], 2).result()
        if os.fork() == 0:
            try:
                engine.submit([1], 2)
            except RuntimeError as error:
                print(error, flush=True)
            engine.close()
            raise SystemExit
        os.wait()
        print(len(engine.submit([1], 2).result().tokens))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "a forked one has to make its own" in done.stdout
    assert done.stdout.endswith("\n2\n")


def test_an_engine_and_sessions_share_a_model(model: Model) -> None:
    with model.engine(1, kv_dtype="f32") as engine, model.session(kv_dtype="f32") as session:
        request = engine.submit([5, 6], 30)
        assert isinstance(session, Session)
        session.forward([5, 6], logits=None)
        assert list(session.generate(30)) == request.result(20).tokens


def test_a_mask_that_comes_and_goes_holds_where_it_is_given(model: Model) -> None:
    def late(tokens: Any) -> Any:
        return None if len(tokens) < 4 else [3, 4]

    def early(tokens: Any) -> Any:
        return [3, 4] if len(tokens) < 4 else None

    for allowed in (late, early):
        with model.session(256, "f32", deterministic=True) as session:
            session.forward([1, 2], logits=None)
            expected = list(session.generate(9, ignore_eos=True, allowed=allowed))
        with model.engine(2, kv_dtype="f32", deterministic=True) as engine:
            found = engine.submit([1, 2], 9, ignore_eos=True, allowed=allowed).result(20)
        assert found.tokens == expected


@pytest.mark.parametrize("how", ["result", "submit"])
def test_a_callback_that_waits_for_its_engine_is_an_error_of_its_request(
    model: Model, how: str
) -> None:
    with model.engine(1, max_seq=128, max_waiting=1) as engine:

        def callback(logits: Any) -> None:
            if how == "result":
                engine.submit([1], 1).result()
            else:
                engine.submit([1], 1)
                engine.submit([1], 1)

        error = engine.submit([1], 3, logits_callback=callback).result(20).error
        expected = (RuntimeError, "wait in another thread") if how == "result" else (
            EngineFullError, "max_waiting = 1"
        )  # fmt: skip
        assert isinstance(error, expected[0])
        assert expected[1] in str(error)


def test_no_more_tokens_are_scored_than_there_are(model: Model) -> None:
    def leave_three(logits: Any) -> None:
        logits[3:] = np.nan

    with model.engine(1, max_seq=128) as engine:
        found = engine.submit([1], 2, logits_callback=leave_three, n_best=5).result(20)
    assert [sorted(t for t, _ in s.best) for s in found.log_probabilities] == [[0, 1, 2]] * 2


def test_an_engine_that_nobody_holds_ends(model: Model) -> None:
    request = model.engine(1, max_seq=1024).submit([1], 1000, allowed=lambda tokens: None)
    while not request.tokens:
        time.sleep(0.001)
    thread = next(t for t in threading.enumerate() if t.name == "oxibonsai-engine")
    del request
    thread.join(20)
    assert not thread.is_alive()


def test_an_iterator_of_allowed_tokens_serves_every_prompt(model: Model) -> None:
    with model.engine(2, max_seq=128) as engine:
        texts = engine.generate_batch([[1], [2]], 3, allowed=iter([5, 6]))
    assert len(texts) == 2


def test_names_that_are_no_options_and_too_many_pages_are_refused(model: Model) -> None:
    with model.engine(1, max_seq=128) as engine, pytest.raises(TypeError, match="'foo' is no opt"):
        engine.submit([1], 1, foo=None)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="n_pages = 2147483648 must lie in"):
        model.engine(1, max_seq=128, n_pages=2**31)
