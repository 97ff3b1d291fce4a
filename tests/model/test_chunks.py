"""The chunk that is chosen for a device that measures its rate: by a fake one."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
from fault_driver import Fault, loaded
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import Tiny

from oxibonsai.cli import main, measuring
from oxibonsai.model import Model, session
from oxibonsai.model import model as model_module
from oxibonsai.model.chunks import choose_chunk

TINY = Tiny(context=512)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chunks")
    return tiny_models.write(folder / "tiny.gguf", TINY, tiny_models.random_tensors(TINY))


@pytest.fixture
def fault() -> Iterator[Fault]:
    """The driver of faults: it runs no kernel, and has the rate that it is told."""
    fault = Fault(loaded())
    fault.reset()
    fault.present = 1
    yield fault
    gc.collect()
    fault.reset()
    fault.present = 0


@pytest.fixture
def model(fault: Fault, path: Path) -> Iterator[Model]:
    with Model.load(path, device="fault") as found:
        yield found


def tokens_a_second(fault: Fault, model: Model, n: float) -> None:
    fault.set_work_rate(n * model.weights.work_per_token)


def stand_in(rate: float, work: int) -> Any:
    return SimpleNamespace(
        device=SimpleNamespace(stats=SimpleNamespace(work_per_second=rate)),
        weights=SimpleNamespace(work_per_token=work),
    )


@pytest.mark.parametrize(
    ("tokens", "chunk"),
    [(0, 128), (1e9, 128), (128, 128), (127.9, 64), (64, 64), (63.9, 32), (32, 32), (0.01, 32)],
)
def test_a_chunk_takes_at_most_a_second(tokens: float, chunk: int) -> None:
    assert choose_chunk(stand_in(tokens * 1e9, 10**9), None) == chunk


def test_the_chunk_of_an_8b_on_an_m1_is_64() -> None:
    # 6.95e9 multiply-adds of a token, at half of the peak: 128 tokens take 1.4 s.
    assert choose_chunk(stand_in(0.65e12, 6_950_000_000), None) == 64


@given(chunk=st.integers(1, 4096), tokens=st.floats(0, 1e3))
def test_a_chunk_that_is_given_is_taken(chunk: int, tokens: float) -> None:
    assert choose_chunk(stand_in(tokens * 1e9, 10**9), chunk, multiple_of=64) == chunk


def test_the_work_of_a_token_is_that_of_the_matrices(model: Model) -> None:
    t = TINY
    q, kv = t.n_heads * t.head_dim, 2 * t.n_kv_heads * t.head_dim
    matrices = t.n_layers * t.hidden * (q + kv + q + 3 * t.inter)
    assert matrices <= model.weights.work_per_token <= 1.01 * matrices  # norms are so small


def test_sessions_and_engines_choose_when_they_are_made(fault: Fault, model: Model) -> None:
    for tokens, chunk in ((0, 128), (100, 64), (40, 32), (1000, 128)):
        tokens_a_second(fault, model, tokens)
        with model.session() as made, model.engine(2) as engine:
            assert (made.chunk, engine.chunk) == (chunk, chunk)
            tokens_a_second(fault, model, 70)
            assert (made.chunk, engine.chunk) == (chunk, chunk)
        with model.session(chunk=7) as given, model.engine(2, chunk=200) as engine:
            assert (given.chunk, engine.chunk) == (7, 200)


def test_a_deterministic_engine_keeps_to_whole_pages(fault: Fault, model: Model) -> None:
    for tokens, chunk in ((0, 128), (100, 64), (40, 64), (1, 64)):
        tokens_a_second(fault, model, tokens)
        with model.engine(2, deterministic=True) as engine:
            assert engine.chunk == chunk


def test_prompts_and_scores_run_in_the_chosen_chunk(fault: Fault, model: Model) -> None:
    tokens_a_second(fault, model, 100)
    ids = [i % TINY.vocab for i in range(150)]
    with model.session() as made:
        fed: list[int] = []
        made.forward(ids, logits=None, progress=lambda n, _: fed.append(n))
        assert fed == [64, 128, 150]
        made.rewind(0)
        fed.clear()
        made.log_probabilities(ids, progress=lambda n, _: fed.append(n))
        assert fed == [64, 128, 150]


def test_a_saved_session_and_a_copy_keep_the_chunk(
    fault: Fault, model: Model, tmp_path: Path
) -> None:
    tokens_a_second(fault, model, 100)
    with model.session() as made:
        made.forward([1, 2, 3], logits=None)
        made.save(tmp_path / "text")
        tokens_a_second(fault, model, 40)
        with made.copy() as twin:
            assert twin.chunk == 64
    with model.restore_session(tmp_path / "text") as restored:
        assert restored.chunk == 64
    with model.restore_session(tmp_path / "text", chunk=9) as restored:
        assert restored.chunk == 9


def test_perplexity_and_the_command_line_leave_the_choice_to_the_model(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int | None] = []

    def choose(model: Any, chunk: int | None) -> int:
        asked.append(chunk)
        return 33

    for module in (model_module, session, measuring):
        monkeypatch.setattr(module, "choose_chunk", choose)
    with Model.load(path, device="cpu") as model:
        model.perplexity([1, 2, 3])
        found = measuring.measure(model, prompt_tokens=4, tokens=2, repeat=1)
    assert found["settings"]["chunk"] == 33
    options = ["--prompt", "Alice", "--max-tokens", "1", "--device", "cpu"]
    for more in ([], ["--chunk", "5"]):
        assert main(["generate", *options, *more]) == 0
    capsys.readouterr()
    # What perplexity() and measure() chose is given to their sessions.
    assert asked == [None, 33, None, 33, None, 5]
