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
from oxibonsai.model import Model, Session
from oxibonsai.model.chunks import ChunkSize
from oxibonsai.model.engine.worker import Worker

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


def stand_in(rate: float, work: int, *, unified: bool = True) -> Any:
    return SimpleNamespace(
        device=SimpleNamespace(
            stats=SimpleNamespace(work_per_second=rate),
            info=SimpleNamespace(unified_memory=unified),
        ),
        weights=SimpleNamespace(work_per_token=work),
    )


@pytest.mark.parametrize(
    ("tokens", "chunk"),
    [(0, 128), (1e9, 128), (128, 128), (127.9, 64), (64, 64), (63.9, 32), (32, 32), (0.01, 32)],
)
def test_a_chunk_takes_at_most_a_second(tokens: float, chunk: int) -> None:
    size = ChunkSize(stand_in(tokens * 1e9, 10**9), None)
    assert (size.next(), size.most) == (chunk, 128)


@pytest.mark.parametrize(
    ("tokens", "chunk"), [(0, 512), (1e9, 512), (512, 512), (511.9, 128), (127.9, 64), (0.01, 32)]
)
def test_a_gpu_with_memory_of_its_own_takes_larger_chunks(tokens: float, chunk: int) -> None:
    model = stand_in(tokens * 1e9, 10**9, unified=False)
    assert (ChunkSize(model, None).next(), ChunkSize(model, None).most) == (chunk, 512)
    assert ChunkSize(model, None, deterministic=True).next() == 128
    assert ChunkSize(model, 7).next() == 7


def test_the_chunk_of_an_8b_on_an_m1_is_64() -> None:
    # 6.95e9 multiply-adds of a token, at half of the peak: 128 tokens take 1.4 s.
    assert ChunkSize(stand_in(0.65e12, 6_950_000_000), None).next() == 64


@given(chunk=st.integers(1, 4096), tokens=st.floats(0, 1e3))
def test_a_chunk_that_is_given_is_taken(chunk: int, tokens: float) -> None:
    size = ChunkSize(stand_in(tokens * 1e9, 10**9), chunk)
    assert (size.next(), size.most) == (chunk, chunk)


@given(tokens=st.floats(0, 1e3))
def test_a_deterministic_chunk_does_not_depend_on_the_rate(tokens: float) -> None:
    assert ChunkSize(stand_in(tokens * 1e9, 10**9), None, deterministic=True).next() == 128


def test_the_work_of_a_token_is_that_of_the_matrices(model: Model) -> None:
    t = TINY
    q, kv = t.n_heads * t.head_dim, 2 * t.n_kv_heads * t.head_dim
    matrices = t.n_layers * t.hidden * (q + kv + q + 3 * t.inter)
    assert matrices <= model.weights.work_per_token <= 1.01 * matrices  # norms are so small


RATES = (0, 100, 40, 1000)  # tokens a second before each chunk
ENDS = [128, 192, 224, 352]


def slower_and_faster(fault: Fault, model: Model) -> Iterator[None]:
    """Set the next rate at each step of the iterator, the first one at once."""
    for tokens in RATES:
        tokens_a_second(fault, model, tokens)
        yield


def fed_in(feed: Any, fault: Fault, model: Model) -> list[int]:
    """Return where the chunks end that `feed` runs with a `progress`, while the rate changes."""
    ends: list[int] = []
    rates = slower_and_faster(fault, model)
    next(rates)

    def progress(n: int, _: int) -> None:
        ends.append(n)
        next(rates, None)

    feed(progress=progress)
    return ends


def test_a_session_chooses_before_each_chunk(fault: Fault, model: Model) -> None:
    ids = [i % TINY.vocab for i in range(ENDS[-1])]
    with model.session() as made:
        for feed in (
            lambda **options: made.forward(ids, logits=None, **options),
            lambda **options: made.log_probabilities(ids, **options),
            lambda **options: made.verify(ids, **options),
        ):
            made.rewind(0)
            assert fed_in(feed, fault, model) == ENDS
        for tokens, chunk in ((0, 128), (100, 64), (40, 32), (1000, 128)):
            tokens_a_second(fault, model, tokens)
            assert made.chunk == chunk
        made.rewind(0)
        given = fed_in(
            lambda **options: made.forward(ids, logits=None, chunk=100, **options), fault, model
        )
        assert given == [100, 200, 300, 352]


def test_a_session_keeps_a_chunk_that_is_given(fault: Fault, model: Model) -> None:
    ids = [i % TINY.vocab for i in range(ENDS[-1])]
    with model.session(chunk=100) as made:
        ends = fed_in(lambda **more: made.forward(ids, logits=None, **more), fault, model)
        assert ends == [100, 200, 300, 352]
        assert made.chunk == 100


def test_what_is_deterministic_does_not_choose(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ChunkSize] = []
    make = ChunkSize.__init__

    def spy(self: ChunkSize, model: Any, *more: Any, **options: Any) -> None:
        make(self, stand_in(1, 1), *more, **options)  # a device that would take 32
        made.append(self)

    monkeypatch.setattr(ChunkSize, "__init__", spy)
    with (
        Model.load(path, device="cpu") as model,
        model.session(deterministic=True) as session,
        model.session() as other,
        model.engine(2, deterministic=True) as engine,
    ):
        assert (session.chunk, other.chunk, engine.chunk) == (128, 32, 128)
        ends: list[int] = []
        session.forward([1] * 200, logits=None, progress=lambda n, _: ends.append(n))
        assert ends == [128, 200]
    assert len(made) == 3


def engine_chunks(
    fault: Fault, model: Model, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[int]:
    """Return where an engine's chunks of a prompt end, while the rate changes."""
    ends: list[int] = []
    rates = slower_and_faster(fault, model)
    next(rates)
    submit = Worker._submit

    def spy(self: Worker, plan: Any) -> None:
        submit(self, plan)
        if plan.chunk is not None:
            ends.append(plan.chunk.stop)
            next(rates, None)

    with monkeypatch.context() as patch, model.engine(2, max_seq=512, **options) as engine:
        patch.setattr(Worker, "_submit", spy)
        engine.submit([i % TINY.vocab for i in range(ENDS[-1])], 1).result(60)
    return ends


def test_an_engine_chooses_before_each_chunk(
    fault: Fault, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_chunks(fault, model, monkeypatch) == [128, 192, 224, 256, 352]
    with model.engine(2) as engine, model.engine(2, chunk=200) as given:
        for tokens, chunk in ((0, 128), (100, 64), (40, 32), (1000, 128)):
            tokens_a_second(fault, model, tokens)
            assert (engine.chunk, given.chunk) == (chunk, 200)


def test_an_engine_keeps_a_chunk_that_is_given(
    fault: Fault, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_chunks(fault, model, monkeypatch, chunk=200) == [200, 352]


def test_a_copy_and_a_restored_session_choose_where_the_first_one_did(
    fault: Fault, model: Model, tmp_path: Path
) -> None:
    tokens_a_second(fault, model, 100)
    with model.session() as made, model.session(chunk=64) as given:
        for one, name in ((made, "chosen"), (given, "given")):
            one.forward([1, 2, 3], logits=None)
            one.save(tmp_path / name)
        tokens_a_second(fault, model, 40)
        with made.copy() as twin, given.copy() as given_twin:
            assert (twin.chunk, given_twin.chunk) == (32, 64)
    for name, chunk in (("chosen", 32), ("given", 64)):
        with model.restore_session(tmp_path / name) as restored:
            assert restored.chunk == chunk
        with model.restore_session(tmp_path / name, chunk=9) as restored:
            assert restored.chunk == 9


def test_a_file_that_does_not_say_whether_its_chunk_was_given_keeps_it(
    fault: Fault, model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "text"
    with model.session() as made:
        made.forward([1, 2, 3], logits=None)
        made.save(path)
    data = path.read_bytes()
    added = b'"chunk_given": "0", '
    at, length = data.index(added), int.from_bytes(data[:8], "little")
    kept = data[8:at] + data[at + len(added) : 8 + length] + b" " * len(added)
    path.write_bytes(data[:8] + kept + data[8 + length :])
    tokens_a_second(fault, model, 40)
    with model.restore_session(path) as restored:
        assert restored.chunk == 128


def test_perplexity_and_the_command_line_leave_the_choice_to_the_session(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int | None] = []
    make = Session.__init__

    def made(self: Session, model: Any, max_seq: int, kv_dtype: Any, *more: Any, **o: Any) -> None:
        make(self, model, max_seq, kv_dtype, *more, **o)
        asked.append(self._chunks.given)

    monkeypatch.setattr(Session, "__init__", made)
    with Model.load(path, device="cpu") as model:
        model.perplexity([1, 2, 3])
        found = measuring.measure(model, prompt_tokens=4, tokens=2, repeat=1)
        assert found["settings"]["chunk"] == 128
        model.perplexity([1, 2, 3], chunk=6)
        found = measuring.measure(model, prompt_tokens=4, tokens=2, repeat=1, chunk=7)
        assert found["settings"]["chunk"] == 7
    options = ["--prompt", "Alice", "--max-tokens", "1", "--device", "cpu"]
    for more in ([], ["--chunk", "5"]):
        assert main(["generate", *options, *more]) == 0
    capsys.readouterr()
    assert asked == [None, None, 6, 7, None, 5]
