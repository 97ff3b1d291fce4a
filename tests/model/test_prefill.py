"""Prompts fed in batches: the logits within the bounds of the model, whatever the sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import PROMPTS, Q1_GOLDEN, Q1_MODEL, TERNARY_GOLDEN, TERNARY_MODEL
from tiny_models import Tiny, random_tensors, reference_logits, write

from oxibonsai import metal
from oxibonsai.model import Model, Session, SessionFullError
from oxibonsai.model.runtime.recordings import Recordings

LIMIT = {"f32": 1e-5, "f16": 1e-3}
TINY = Tiny(context=1200)
IDS = np.random.default_rng(5).integers(1, TINY.vocab, 40).tolist()
CHUNKS = (1, 2, 3, 7, 32, 40)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    return random_tensors(TINY)


@pytest.fixture(scope="module")
def expected(tensors: dict[str, Any]) -> Any:
    return reference_logits(TINY, tensors, IDS)


@pytest.fixture
def tiny(device: metal.Device, tmp_path: Path, tensors: dict[str, Any]) -> Iterator[Model]:
    with Model.load(write(tmp_path / "tiny.gguf", TINY, tensors), device) as model:
        yield model


def worst(y: Any, expected: Any) -> float:
    return max(relative_error(a, r) for a, r in zip(y, expected, strict=True))


@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_any_size_of_batch_is_within_the_bounds(tiny, expected, chunk, kv_dtype):
    with tiny.session(kv_dtype=kv_dtype, chunk=chunk) as session:
        y = session.forward(IDS)
        assert worst(y, expected) <= LIMIT[kv_dtype]
        session.rewind(0)
        last = session.forward(IDS, logits="last")
        assert relative_error(last, expected[-1]) <= LIMIT[kv_dtype]
        session.rewind(20)
        assert session.forward(IDS[20:], logits=None, chunk=5) is None
        # The next token is chosen by the logits of the last one.
        assert next(session.generate(1)) == np.argmax(expected[-1])


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_verify_gives_the_largest_of_the_logits(tiny, expected, chunk):
    with tiny.session(kv_dtype="f32") as session:
        choices = session.verify(IDS, chunk=chunk)
        assert choices.dtype == np.int64
        assert choices.tolist() == np.argmax(expected, axis=1).tolist()
        assert session.tokens == IDS
        assert next(session.generate(1)) == choices[-1]
        session.rewind(len(IDS) - 3)
        assert session.verify(IDS[-3:]).tolist() == choices[-3:].tolist()


def split(total: int, draw: Any) -> list[int]:
    sizes = []
    while total:
        sizes.append(draw(st.integers(1, min(total, 24))))
        total -= sizes[-1]
    return sizes


@settings(max_examples=12)
@given(data=st.data())
def test_any_mix_is_within_the_bounds(device, tmp_path_factory, data, tensors, expected):
    path = tmp_path_factory.getbasetemp() / "mixed.gguf"
    if not path.exists():
        write(path, TINY, tensors)
    with Model.load(path, device) as model, model.session(kv_dtype="f32") as session:
        for size in split(len(IDS), data.draw):
            at = session.position
            piece, r = IDS[at : at + size], expected[at : at + size]
            match data.draw(st.sampled_from(["all", "last", "none", "verify", "rewind"])):
                case "all":
                    y = session.forward(piece, chunk=data.draw(st.integers(1, 24)))
                    assert worst(y, r) <= LIMIT["f32"]
                case "last":
                    y = session.forward(piece, logits="last", chunk=data.draw(st.integers(1, 24)))
                    assert relative_error(y, r[-1]) <= LIMIT["f32"]
                case "none":
                    session.forward(piece, logits=None)
                case "verify":
                    assert session.verify(piece).tolist() == np.argmax(r, axis=1).tolist()
                case "rewind":
                    session.forward([3, 1, 4, 1, 5], logits=None)
                    session.rewind(at)
                    session.forward(piece, logits=None)
            assert session.tokens == IDS[: at + size]
        session.rewind(len(IDS) - 1)
        assert relative_error(session.forward(IDS[-1:])[0], expected[-1]) <= LIMIT["f32"]


DEMOS = {"Q1_0": (Q1_MODEL, Q1_GOLDEN), "TQ2_0_g128": (TERNARY_MODEL, TERNARY_GOLDEN)}
FAST = {("Q1_0", "f16", 7), ("Q1_0", "f32", 128)}


def batch_marks(demo: str, kv_dtype: str, chunk: int) -> list[pytest.MarkDecorator]:
    """Return the marks of a case: few rows are 7, and ternary codes are new to products alone."""
    repeated = chunk in (2, 3) or (demo != "Q1_0" and (kv_dtype == "f32" or chunk == 32))
    marks = [] if (demo, kv_dtype, chunk) in FAST else [pytest.mark.slow]
    return [*marks, pytest.mark.same_kernels] if repeated else marks


@pytest.mark.large
@pytest.mark.parametrize(
    ("demo", "kv_dtype", "chunk"),
    [
        pytest.param(*case, marks=batch_marks(*case))
        for case in itertools.product(DEMOS, ("f32", "f16"), (1, 2, 3, 7, 32, 128))
    ],
)
def test_demo_model_fed_in_any_batches_gives_the_golden(device, demo, kv_dtype, chunk):
    model_path, golden_path = DEMOS[demo]
    with Model.load(model_path, device) as model, np.load(golden_path) as golden:
        for i in range(len(PROMPTS)):
            ids, greedy = golden[f"p{i}.ids"].tolist(), golden[f"p{i}.greedy"].tolist()
            with model.session(kv_dtype=kv_dtype, chunk=chunk) as session:
                assert worst(session.forward(ids), golden[f"p{i}.logits"]) <= LIMIT[kv_dtype]
                session.rewind(0)
                session.forward(ids, logits=None)
                assert list(session.generate(64)) == greedy
                if i == 0:  # and the generated text as a prompt
                    session.rewind(0)
                    choices = session.verify(ids + greedy)
                    assert choices[len(ids) - 1 : -1].tolist() == greedy


# The cache grows, and the steps are recorded for the length


@pytest.mark.large
@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
def test_text_that_outgrows_the_cache_stays_itself(tiny, tensors, kv_dtype):
    ids = np.random.default_rng(6).integers(1, TINY.vocab, 1100).tolist()
    r = reference_logits(TINY, tensors, ids)
    # Where prompts are in half, the activations of 64 tokens or more are rounded as K and V are.
    limit = LIMIT[kv_dtype] * (2 if kv_dtype == "f16" and tiny.activations == "half" else 1)
    with tiny.session(1200, kv_dtype) as session:
        held = []
        for start, stop in ((0, 250), (250, 259), (259, 511), (511, 514), (514, 1100)):
            y = session.forward(ids[start:stop])
            assert worst(y, r[start:stop]) <= limit
            # Not the device's bytes: the workspace of a shorter chunk gives some back.
            held.append(session._decoder.cache.capacity)
        assert held == [256, 512, 512, 1024, 1200]
        for at in (1025, 513, 512, 511, 257, 256, 255, 2):
            session.rewind(at)
            assert relative_error(session.forward(ids[at : at + 1])[0], r[at]) <= limit


@pytest.mark.large
def test_generation_across_the_length_of_a_recording_is_that_of_one_length(tiny):
    with tiny.session(400) as grown, tiny.session(1200) as long:
        long.forward([1] * 300, logits=None)  # the cache has its later size from the start
        long.rewind(0)
        for session in (grown, long):
            session.forward(IDS * 6, logits=None)
        text = list(grown.generate(60, lookahead=16))
        assert text == list(long.generate(60, lookahead=5))
        assert grown.tokens == long.tokens == IDS * 6 + text


def test_long_cache_costs_nothing_until_it_is_used(device, tmp_path, tensors):
    path = write(tmp_path / "long.gguf", Tiny(context=1 << 22), tensors)
    with Model.load(path, device) as model:
        before = device.stats.allocated_bytes
        with model.session(1 << 22) as session:
            session.forward(IDS, logits=None)
            # Keys and values of that length would be 4 GiB.
            assert device.stats.allocated_bytes - before < 4 << 20


def test_memory_that_runs_out_while_growing_loses_nothing(tiny, monkeypatch):
    import oxibonsai.model.runtime.decoder as decoder

    real = decoder.rope_table
    with tiny.session() as session:
        session.forward(IDS, logits=None)
        text = list(session.generate(5))
        before = tiny.device.stats.buffers

        def fail(*args: Any) -> Any:
            raise MemoryError("no room for the angles")

        monkeypatch.setattr(decoder, "rope_table", fail)
        with pytest.raises(MemoryError):
            session.forward([1] * 300)
        assert tiny.device.stats.buffers == before
        monkeypatch.setattr(decoder, "rope_table", real)
        assert session.tokens == IDS + text
        session.rewind(len(IDS))
        assert list(session.generate(5)) == text


# Progress, and calls that end early


def test_progress_counts_the_tokens_after_each_batch(tiny):
    seen: list[tuple[int, int]] = []
    for call in ("forward", "verify", "log_probabilities"):
        with tiny.session(chunk=16) as session:
            getattr(session, call)(IDS, progress=lambda *args: seen.append(args))
        assert seen == [(16, 40), (32, 40), (40, 40)]
        seen.clear()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("logits", ["all", "last"])
def test_call_that_is_interrupted_is_taken_back_whole(tiny, error, logits):
    def stop(done: int, total: int) -> None:
        if done > 10:
            raise error

    with tiny.session() as session, tiny.session() as fresh:
        for one in (session, fresh):
            one.forward(IDS[:5], logits=None)
        for _ in range(2):
            with pytest.raises(error):
                session.forward(IDS[5:], logits=logits, chunk=8, progress=stop)
            assert session.tokens == IDS[:5]
        assert list(session.generate(3)) == list(fresh.generate(3))


@pytest.mark.parametrize("call", ["forward", "rewind", "generate", "copy"])
def test_progress_must_not_move_the_session(tiny, call):
    calls = {
        "forward": lambda session: session.forward([7, 8, 9], logits=None),
        "rewind": lambda session: session.rewind(2),
        "generate": lambda session: list(session.generate(1)),
        "copy": lambda session: session.copy(),
    }
    with tiny.session() as session, tiny.session() as fresh:
        for one in (session, fresh):
            one.forward(IDS[:5], logits=None)
        with pytest.raises(RuntimeError, match="the session is being fed"):
            session.forward(IDS[5:], chunk=8, progress=lambda *args: calls[call](session))
        assert session.tokens == IDS[:5]
        assert list(session.generate(3)) == list(fresh.generate(3))


@pytest.mark.parametrize("chunk", [0, -1, 4097])
def test_chunk_out_of_range_is_refused(tiny, chunk):
    with pytest.raises(ValueError, match=rf"chunk = {chunk} must lie in 1\.\.4096"):
        tiny.session(chunk=chunk)
    with tiny.session() as session:
        with pytest.raises(ValueError, match=f"chunk = {chunk}"):
            session.forward(IDS, chunk=chunk)
        assert session.position == 0


def test_full_session_refuses_every_way_of_feeding(tiny):
    with tiny.session(max_seq=41) as session:
        session.forward(IDS, logits=None)
        for call in (session.forward, session.verify, session.log_probabilities):
            with pytest.raises(SessionFullError, match=r"2 tokens do not fit: .* 40 of 41"):
                call([1, 2])
            with pytest.raises(ValueError, match="token 77 at 0"):
                call([77])
        session.verify([1])
        assert session.position == 41


def dispatches(session: Session, ids: Sequence[int], **kw: Any) -> list[int]:
    assert session.profile is not None
    session.profile.clear()
    session.forward(ids, **kw)
    return [run.dispatches for run in session.profile.runs]


def test_batch_runs_each_operation_once_and_the_last_layer_for_one_token(tiny):
    with tiny.session(profile=True) as session:
        single = dispatches(session, [1], logits=None)
        (batch,) = dispatches(session, IDS, logits=None)
        inner, last = dispatches(session, IDS, logits=None, chunk=39)
        assert last == single[0]
        # For the last token alone: position, attention and projection, FFN, head, the largest logit
        # of each part. A norm is one dispatch more where the device does not fuse it.
        assert 6 <= batch - inner <= 9
        (longer,) = dispatches(session, IDS + IDS, logits=None)
        assert longer == batch


def test_recordings_that_were_used_long_ago_go(device):
    kept = Recordings(limit=2)
    made = []

    def make() -> metal.Commands:
        made.append(device.commands())
        return made[-1]

    a, b = kept.get("a", make), kept.get("b", make)
    assert kept.get("a", make) is a
    kept.get("c", make)
    assert b.closed
    assert not a.closed
    assert kept.get("a", make) is a
    assert kept.get("b", make) is not b
    kept.clear()
    assert all(commands.closed for commands in made)
