"""Calls on models and sessions that are wrong: the message, and that nothing is lost or left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import held_by
from tiny_models import CHAIN, Tensors, Tiny, random_tensors, write, write_chain

from oxibonsai import metal
from oxibonsai.gguf import GGUFError
from oxibonsai.model import Model, Session, SessionFullError
from oxibonsai.model.runtime.cache import KVCache

TINY = Tiny(hidden=256, context=48)
IDS = [5, 17, 76, 0, 33]


@pytest.fixture
def model(device: metal.Device, tmp_path: Path) -> Iterator[Model]:
    path = write(tmp_path / "tiny.gguf", TINY, random_tensors(TINY))
    with Model.load(path, device) as model:
        yield model


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    # Token by token, so that a text has the same bits however it came about.
    with model.session(max_seq=8, chunk=1) as session:
        yield session


def last(session: Session, ids: list[int]) -> Any:
    return session.forward(ids, logits="last")


def unchanged(session: Session, ids: list[int]) -> None:
    """Check that the session holds `ids` and goes on as if nothing had happened."""
    assert session.position == len(ids)
    assert session.tokens == ids
    with session.model.session(max_seq=session.max_seq, chunk=session.chunk) as fresh:
        fresh.forward(ids, logits=None)
        expected = list(fresh.generate(2))
        again = last(fresh, [1])
    assert list(session.generate(2)) == expected
    np.testing.assert_array_equal(last(session, [1]), again)


@pytest.mark.parametrize("value", [0, -1, 49, 2**40])
def test_cache_longer_than_the_context_is_refused(model, value):
    with pytest.raises(ValueError, match=rf"max_seq = {value} must lie in 1\.\.48"):
        model.session(max_seq=value)


def test_unknown_kind_of_cache_is_refused(model):
    with pytest.raises(ValueError, match="kv_dtype = 'bf16': 'f16', 'f32' or 'q8'"):
        model.session(kv_dtype="bf16")


def test_default_cache_may_grow_to_the_context(model, device, tmp_path):
    with model.session() as session:
        assert session.max_seq == 48
    long = replace(TINY, n_layers=1, context=100_000)
    path = write(tmp_path / "long.gguf", long, random_tensors(long))
    with Model.load(path, device) as other, other.session() as session:
        assert session.max_seq == 100_000


def test_a_long_context_costs_nothing_until_it_is_used(device, tmp_path):
    held = []
    for context in (300, 1_000_000):
        tiny = replace(TINY, n_layers=1, context=context)
        path = write(tmp_path / f"{context}.gguf", tiny, random_tensors(tiny))
        with Model.load(path, device) as other:
            before = held_by(device)
            with other.session() as session:
                session.forward([1, 2], logits=None)
                text = list(session.generate(5))
                after = held_by(device)
                held.append(({name: after[name] - before[name] for name in after}, text))
                assert session.max_seq == context
    assert held[0] == held[1]


def test_default_cache_that_does_not_fit_the_device_is_what_fits(device, tmp_path):
    # 2**24 positions of a head of 64 halves take 2 GiB, and of 128 heads of 512 halves 2 TiB.
    for tiny in (
        Tiny(n_layers=1, n_heads=2, n_kv_heads=1, context=2**24),
        Tiny(n_layers=1, n_heads=128, n_kv_heads=128, head_dim=512, context=2**24),
    ):
        tensors: dict[str, Any] = {
            name: np.ones(shape, np.float32)
            if len(shape) == 1
            else (np.zeros(shape[0] * shape[1] // 128 * 18, np.uint8), shape, "Q1_0")
            for name, shape in tiny.shapes.items()
        }
        path = write(tmp_path / "wide.gguf", tiny, tensors)
        most = device.info.max_buffer_length
        memory = device.info.recommended_working_set
        with Model.load(path, device) as model:
            for kv_dtype, nbytes in (("f32", 4), ("f16", 2)):
                with model.session(kv_dtype=kv_dtype) as session:
                    each = tiny.n_kv_heads * tiny.head_dim * nbytes
                    rope = 4 * tiny.head_dim
                    fits = min(most // max(each, rope), memory // (2 * each))
                    assert session.max_seq == min(tiny.context, fits)
                    session.forward([1], logits=None)
                    assert len(list(session.generate(3))) == 3
                assert tiny.n_kv_heads == 1 or session.max_seq < tiny.context
                if session.max_seq < tiny.context:
                    with pytest.raises(metal.BufferCreationError, match="smaller max_seq"):
                        model.session(most // each + 1, kv_dtype)
            with model.session(4) as session:
                assert session.max_seq == 4
            assert model.perplexity([1, 2, 3]).n_tokens == 2  # in windows of 2048 still
            with model.engine(1, n_pages=1) as engine:
                assert engine.max_seq == 2048


@pytest.mark.parametrize(
    ("buffer", "memory", "kv_dtype", "positions"),
    [
        (2**40, 2**40, "f16", 48),
        (512 * 20 + 511, 2**40, "f16", 20),  # 2 layers of 2 heads of 64 halves
        (512 * 20 + 511, 2**40, "f32", 10),
        (2**40, 1024 * 20 - 1, "f16", 19),  # keys and values
        (5, 2**40, "f16", 1),
        (2**40, 0, "f16", 1),
    ],
)
def test_positions_that_fit_a_device_are_counted(
    model, device, buffer, memory, kv_dtype, positions
):
    config = replace(model.config, n_layers=2, n_kv_heads=2, head_dim=64)
    info = device.info._replace(max_buffer_length=buffer, recommended_working_set=memory)
    assert KVCache.most_positions(config, kv_dtype, info) == positions


def test_cache_that_does_not_fit_the_device_is_an_error_and_leaves_nothing(device, tmp_path):
    # 2**24 positions of 128 x 512 halves are 2 TiB.
    wide = Tiny(n_layers=1, n_heads=128, n_kv_heads=128, head_dim=512, context=2**24)
    tensors: dict[str, Any] = {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else (np.zeros(shape[0] * shape[1] // 128 * 18, np.uint8), shape, "Q1_0")
        for name, shape in wide.shapes.items()
    }
    path = write(tmp_path / "wide.gguf", wide, tensors)
    with Model.load(path, device) as model:
        before = held_by(device)
        with pytest.raises(metal.BufferCreationError, match=r"\d"):
            model.session(max_seq=2**24)
        assert held_by(device) == before
        with model.session(max_seq=4) as session:
            session.forward([1])


@pytest.mark.parametrize("token", [77, -1, 2**31, 2**32 + 5, -(2**40)])
@pytest.mark.parametrize("at", [0, 3])
def test_token_outside_the_vocabulary_is_refused(session, token, at):
    session.forward([1, 2])
    ids = [3, 4, 5, 6]
    ids[at] = token
    for logits in ("all", "last", None):
        with pytest.raises(ValueError, match=rf"token {token} at {at} .* ids are 0 to 76"):
            session.forward(ids, logits=logits)
    unchanged(session, [1, 2])


@pytest.mark.parametrize("ids", [[], np.empty(0, np.int32)], ids=["list", "array"])
def test_no_tokens_are_refused(session, ids):
    session.forward([1, 2])
    with pytest.raises(ValueError, match="at least one"):
        session.forward(ids)
    unchanged(session, [1, 2])


@pytest.mark.parametrize("ids", ["12", [1.5], np.array([1.0]), [None], 3], ids=repr)
def test_ids_that_are_no_integers_are_refused(session, ids):
    session.forward([1, 2])
    with pytest.raises(TypeError):
        session.forward(ids)
    unchanged(session, [1, 2])


def test_unknown_kind_of_logits_is_refused(session):
    with pytest.raises(ValueError, match="logits = 'none': 'all', 'last' or None"):
        session.forward([1], logits="none")
    assert session.position == 0


def test_ids_of_numpy_are_tokens(session):
    expected = session.forward([1, 2, 76])
    for dtype in (np.int32, np.int64, np.uint16):
        session.rewind(0)
        np.testing.assert_array_equal(session.forward(np.array([1, 2, 76], dtype)), expected)
    assert all(type(token) is int for token in session.tokens)


def test_full_session_says_how_full_and_loses_nothing(session):
    session.forward([1, 2, 3, 4, 5, 6], logits=None)
    for logits in ("all", "last", None):
        with pytest.raises(SessionFullError, match=r"3 tokens do not fit: .* 6 of 8"):
            session.forward([7, 8, 9], logits=logits)
        assert session.position == 6
    assert issubclass(SessionFullError, ValueError)
    text = list(session.generate(2))
    assert session.position == 8
    with pytest.raises(SessionFullError, match=r"1 tokens do not fit: .* 8 of 8"):
        session.forward([1])
    session.rewind(6)
    assert list(session.generate(2)) == text
    session.rewind(5)
    unchanged(session, [1, 2, 3, 4, 5])


def test_generation_into_a_full_session_gives_what_fits(session):
    session.forward([1, 2, 3, 4, 5], logits=None)
    text = list(session.generate(10))
    assert session.finish_reason == "context"
    assert len(text) == 3
    with pytest.raises(SessionFullError, match="8 of 8"):
        session.generate(10)
    assert session.tokens == [1, 2, 3, 4, 5, *text]
    # What follows is still known, and there is room for it after a rewind.
    with session.model.session() as longer:
        longer.forward([1, 2, 3, 4, 5], logits=None)
        assert list(longer.generate(3)) == text
    session.rewind(2)
    unchanged(session, [1, 2])


def test_session_can_be_filled_to_the_last_position(model):
    with model.session() as long, model.session(max_seq=5) as exact:
        np.testing.assert_array_equal(long.forward(IDS), exact.forward(IDS))
        assert exact.position == exact.max_seq
    with model.session(max_seq=1) as one:
        one.forward([3])
        with pytest.raises(SessionFullError):
            next(one.generate(1))
        assert one.tokens == [3]


@pytest.mark.parametrize("position", [4, 100, -1])
def test_rewind_out_of_range_is_refused(session, position):
    session.forward([1, 2, 3])
    with pytest.raises(ValueError, match=rf"{position}: the session is at 3"):
        session.rewind(position)
    unchanged(session, [1, 2, 3])


@pytest.mark.parametrize("position", [1.5, "1", None])
def test_rewind_to_what_is_no_integer_is_refused(session, position):
    session.forward([1, 2, 3])
    with pytest.raises(TypeError):
        session.rewind(position)
    unchanged(session, [1, 2, 3])


def test_generate_before_forward_is_refused(session):
    with pytest.raises(ValueError, match="feed a prompt with forward"):
        session.generate()
    session.forward([1])
    session.rewind(0)
    with pytest.raises(ValueError, match="feed a prompt with forward"):
        session.generate()


def test_generation_whose_session_was_rewound_to_nothing_is_refused(session):
    session.forward([1, 2])
    generation = session.generate(4)
    next(generation)
    session.rewind(0)
    with pytest.raises(ValueError, match="feed a prompt with forward"):
        next(generation)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_tokens": -1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
    ],
    ids=str,
)
def test_argument_of_generate_out_of_range_is_refused_at_the_call(session, arguments):
    session.forward([1])
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name} = {value} must be"):
        session.generate(**arguments)
    unchanged(session, [1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_logits_without_any_number_are_an_error_not_a_token(device, tmp_path, value, temperature):
    tensors: Tensors = random_tensors(TINY, tied=False)
    # The final norm times one row of ones: every logit is `value` or NaN.
    tensors["output.weight"] = np.full((TINY.vocab, TINY.hidden), value, np.float32)
    path = write(tmp_path / "broken.gguf", TINY, tensors)
    with Model.load(path, device) as model, model.session() as session:
        logits = last(session, IDS)
        assert np.isnan(logits).all()
        with pytest.raises(ValueError, match="every logit is NaN"):
            next(session.generate(4, temperature))
        assert session.tokens == IDS


def test_nan_logit_is_never_generated(device, tmp_path):
    tensors = random_tensors(TINY, tied=False, formats={"output": "F32"})
    head = np.asarray(tensors["output.weight"].data).view(np.float32)
    head[::2] = np.nan
    path = write(tmp_path / "half.gguf", TINY, tensors)
    with Model.load(path, device) as model, model.session() as session:
        logits = last(session, IDS)
        assert np.isnan(logits[::2]).all()
        greedy = next(session.generate(1))
        assert greedy == np.nanargmax(logits)
        assert all(token % 2 for token in session.generate(10, 1.0, seed=0))


def use(session: Session) -> dict[str, Callable[[], Any]]:
    return {
        "forward": lambda: session.forward([1]),
        "rewind": lambda: session.rewind(0),
        "generate": lambda: session.generate(),
        "enter": session.__enter__,
    }


@pytest.mark.parametrize("call", ["forward", "rewind", "generate", "enter"])
@pytest.mark.parametrize("closed", ["session", "model"])
def test_closed_session_says_so(model, call, closed):
    session = model.session()
    session.forward([1])
    running = session.generate(3)
    next(running)
    assert "closed" not in repr(session)
    (session if closed == "session" else model).close()
    assert session.closed
    with pytest.raises(ValueError, match="the session is closed"):
        use(session)[call]()
    with pytest.raises(ValueError, match="the session is closed"):
        next(running)
    assert "closed" in repr(session)
    session.close()
    session.close()


@pytest.mark.parametrize("read", [True, False], ids=["read before", "first read"])
@pytest.mark.parametrize("name", ["tokenizer", "fingerprint"])
def test_closed_model_has_no_tokenizer_and_no_fingerprint(device, tmp_path, name, read):
    model = Model.load(write_chain(tmp_path / "m.gguf", {}), device)
    found = getattr(model, name) if read else None
    assert not read or getattr(model, name) is found
    model.close()
    with pytest.raises(ValueError, match="the model is closed: load it again"):
        getattr(model, name)


def test_closed_model_says_so_and_gives_everything_back(device, tmp_path):
    path = write(tmp_path / "tiny.gguf", TINY, random_tensors(TINY))
    before = held_by(device)
    model = Model.load(path, device)
    assert held_by(device)["buffers"] > before["buffers"]
    assert "closed" not in repr(model)
    session = model.session()
    session.forward([1])
    session.close()
    model.close()
    assert model.closed
    assert held_by(device) == before
    for call in (model.session, model.__enter__):
        with pytest.raises(ValueError, match="the model is closed"):
            call()
    assert "closed" in repr(model)
    model.close()


def test_sessions_open_and_close_without_leaving_anything(model, device):
    before = held_by(device)
    for _ in range(3):
        with model.session() as session:
            session.forward(IDS)
        assert held_by(device) == before


def test_model_without_a_tokenizer_runs_and_says_what_it_lacks(model):
    assert model.end_ids == frozenset()
    with model.session() as session:
        session.forward(IDS)
        assert len(list(session.generate(3))) == 3
    with pytest.raises(GGUFError, match=r"tokenizer\.ggml\.model is None"):
        _ = model.tokenizer


def test_generation_stops_before_the_end_of_text_unless_told_not_to(device, tmp_path):
    path = write_chain(tmp_path / "chain.gguf", {10: 11, 11: 12})
    with Model.load(path, device) as model, model.session() as session:
        session.forward([10])
        assert list(session.generate(9)) == [11, 12]
        assert session.tokens == [10, 11, 12]
        assert list(session.generate(9)) == []
        assert list(session.generate(2, ignore_eos=True)) == [256, 256]
        assert model.end_ids == {256}


def test_no_tokens_asked_for_are_none(session):
    session.forward([1])
    assert list(session.generate(0)) == []
    assert session.position == 1


def test_config_holds_the_files_shape(device, tmp_path):
    path = write_chain(tmp_path / "chain.gguf", {})
    with Model.load(path, device) as model:
        c = model.config
        assert (c.n_layers, c.hidden_size, c.intermediate_size) == (1, CHAIN.hidden, CHAIN.inter)
        assert (c.n_heads, c.n_kv_heads, c.head_dim, c.vocab_size) == (1, 1, 64, 257)
        assert (c.q_size, c.qkv_size) == (64, 192)
        assert not model.weights.tied
        assert model.name == "tiny"


@pytest.mark.parametrize("owner", ["session", "model"])
@pytest.mark.parametrize("call", ["forward", "verify", "log_probabilities"])
def test_progress_that_closes_the_session_is_told_that_it_is_closed(device, tmp_path, owner, call):
    path = write(tmp_path / "closing.gguf", TINY, random_tensors(TINY))
    for last_chunk in (False, True):
        with Model.load(path, device) as model, model.session() as session:
            closing = {"session": session, "model": model}[owner]

            def close(fed: int, n: int, closing: Any = closing, end: bool = last_chunk) -> None:
                if fed == n or not end:
                    closing.close()

            with pytest.raises(ValueError, match="the session is closed"):
                getattr(session, call)(IDS, chunk=2, progress=close)
            assert session.closed
            assert session.tokens == []


def test_two_agenerate_at_once_say_that_the_session_is_in_use(model):
    with model.session() as session:
        session.forward(IDS, logits=None)
        expected = list(session.generate(6, ignore_eos=True))
        session.rewind(len(IDS))

        async def text() -> list[int]:
            return [token async for token in session.agenerate(6, ignore_eos=True)]

        async def both() -> list[Any]:
            return await asyncio.gather(text(), text(), return_exceptions=True)

        one, other = asyncio.run(both())
        assert one == expected
        assert type(other) is RuntimeError
        assert str(other).startswith("the session is in use: ")
        # One behind the other is fine, also where the first was left or cancelled.
        session.rewind(len(IDS))

        async def in_turn() -> list[int]:
            task = asyncio.create_task(text())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            session.rewind(len(IDS))
            left = session.agenerate(6, ignore_eos=True)
            assert [await anext(left), await anext(left)] == expected[:2]
            session.rewind(len(IDS))
            return await text()

        assert asyncio.run(in_turn()) == expected
