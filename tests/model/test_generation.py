"""Generation: steps in flight, stop sequences, text, and what a generation that ends leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import Tensors, Tiny, chain, random_tensors, write, write_chain

from oxibonsai import metal
from oxibonsai.model import Model, Session, SessionFullError
from oxibonsai.model.generation.stopping import StopScanner, stop_sequences

TINY = Tiny(context=128)
IDS = [5, 17, 76, 0, 33]


@pytest.fixture
def tiny(device: metal.Device, tmp_path: Path) -> Iterator[Model]:
    with Model.load(write(tmp_path / "t.gguf", TINY, random_tensors(TINY)), device) as model:
        yield model


@pytest.fixture
def speaker(device: metal.Device, tmp_path: Path) -> Iterator[Model]:
    """A model that continues "a" with the alphabet, and then ends the text."""
    path = write_chain(tmp_path / "abc.gguf", chain("abcdefghijklmnopqrstuvwxyz"))
    with Model.load(path, device) as model:
        yield model


@pytest.fixture
def session(speaker: Model) -> Iterator[Session]:
    with speaker.session() as session:
        session.forward([ord("a")], logits=None)
        yield session


def text(session: Session) -> str:
    return bytes(session.tokens).decode()


# Steps in flight


@pytest.mark.parametrize("lookahead", [1, 2, 3, 16, None])
def test_steps_in_flight_do_not_change_the_text(tiny, lookahead):
    with tiny.session() as session:
        session.forward(IDS, logits=None)
        # What each step chooses by its own logits.
        chosen = []
        for _ in range(40):
            last = session.tokens[-1]
            session.rewind(session.position - 1)
            chosen.append(int(np.argmax(session.forward([last])[0])))
            session.forward(chosen[-1:], logits=None)
        session.rewind(len(IDS))
        assert list(session.generate(40, lookahead=lookahead)) == chosen
        assert session.tokens == IDS + chosen


def test_first_token_waits_for_its_own_step_and_then_up_to_16_run_ahead(session):
    flying = [
        session._decoder.position - session.position for _ in session.generate(25, lookahead=16)
    ]
    # 1, 2, 4, 8, 16 in flight, of which one was waited for; no more than are left to generate.
    assert flying[:5] == [0, 1, 3, 7, 15]
    assert flying[5:10] == [15, 15, 15, 15, 15]
    assert flying[-3:] == [2, 1, 0]
    assert text(session) == "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("lookahead", [1, 4, 16])
def test_end_of_text_in_flight_is_not_in_the_context(session, lookahead):
    assert bytes(session.generate(100, lookahead=lookahead)).decode() == "bcdefghijklmnopqrstuvwxyz"
    assert text(session) == "abcdefghijklmnopqrstuvwxyz"
    assert session._decoder.position == session.position
    # The text goes on as if nothing had run past its end.
    assert list(session.generate(5, lookahead=lookahead)) == []
    session.forward([ord("x")], logits=None)
    assert bytes(session.generate(5, lookahead=lookahead)) == b"yz"


@pytest.mark.parametrize("left_after", [1, 2, 6, 11])
@pytest.mark.parametrize("kept", [False, True])
def test_generation_that_is_left_leaves_what_it_yielded(session, left_after, kept):
    generation = session.generate(25, lookahead=16)
    got = bytes(next(generation) for _ in range(left_after))
    if not kept:
        generation.close()
    assert text(session) == "a" + got.decode()
    assert session._decoder.position > session.position or left_after == 1
    # Whatever comes next finds the context, not what ran ahead.
    logits = session.forward([ord("p")], logits="last")
    assert np.argmax(logits) == ord("q")
    assert text(session) == "a" + got.decode() + "p"
    assert bytes(session.generate(3)) == b"qrs"
    if kept:  # it goes on from where the text is now
        assert bytes(next(generation) for _ in range(3)) == b"tuv"


def test_two_generations_by_turns_share_the_context(session):
    a, b = session.generate(20, lookahead=16), session.generate(20, lookahead=8)
    got = bytes(next(one) for _ in range(6) for one in (a, b))
    assert got == b"bcdefghijklm"
    assert text(session) == "a" + got.decode()


def test_full_session_gives_what_was_held_back_for_a_stop(speaker):
    with speaker.session(max_seq=12) as session:
        session.forward([1, 2], logits=None)
        plain = list(session.generate(11, ignore_eos=True))
        assert session.finish_reason == "context"
    with speaker.session(max_seq=12) as session:
        session.forward([1, 2], logits=None)
        held = list(
            session.generate(11, ignore_eos=True, stop=[[plain[-1], (plain[-1] + 1) % 257]])
        )
        assert session.finish_reason == "context"
    assert len(plain) == 10
    assert held == plain


@pytest.mark.parametrize("lookahead", [1, 16])
def test_full_session_gives_what_fits_with_steps_in_flight(speaker, lookahead):
    with speaker.session(max_seq=20) as session:
        session.forward([ord("a")], logits=None)
        got = list(session.generate(50, lookahead=lookahead))
        assert session.finish_reason == "context"
        assert session._decoder.position == session.position
        assert bytes(got) == b"bcdefghijklmnopqrst"
        assert text(session) == "a" + bytes(got).decode()
        session.rewind(10)
        assert bytes(session.generate(10, lookahead=lookahead)) == b"klmnopqrst"


def test_close_in_the_middle_leaves_nothing_in_flight(speaker, device):
    session = speaker.session()
    session.forward([ord("a")], logits=None)
    generation = session.generate(20, lookahead=16)
    for _ in range(6):
        next(generation)
    session.close()
    assert device.stats.in_flight == 0
    with pytest.raises(ValueError, match="the session is closed"):
        next(generation)


@pytest.mark.parametrize("lookahead", [1, 16])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_logits_that_turn_to_no_number_in_the_middle_are_an_error(
    device, tmp_path, lookahead, value
):
    """After "f" every logit is NaN; what came before stays."""
    path = write_chain(tmp_path / "abc.gguf", chain("abcdefghij"))
    from oxibonsai import gguf

    with gguf.open(path) as file:
        tensors: Tensors = {
            name: file.tensor_data(name).view("<f4").reshape(info.shape).copy()
            for name, info in file.tensors.items()
        }
        metadata = dict(file.metadata)
    tensors["token_embd.weight"][ord("f")] = value
    broken = tmp_path / "broken.gguf"
    gguf.write(broken, metadata, tensors.items())
    with Model.load(broken, device) as model, model.session() as session:
        session.forward([ord("a")], logits=None)
        got: list[int] = []
        with pytest.raises(ValueError, match="every logit is NaN"):
            got.extend(session.generate(9, lookahead=lookahead))
        assert bytes(got) == b"bcdef"
        assert text(session) == "abcdef"
        session.rewind(3)
        assert bytes(session.generate(2)) == b"de"


@pytest.mark.threads
def test_sessions_in_several_threads_have_steps_in_flight_at_once(speaker, fast_switches):
    found: dict[int, bytes] = {}

    def run(i: int) -> None:
        with speaker.session() as session:
            for _ in range(3):
                session.forward([ord("a") + i], logits=None)
                found[i] = bytes(session.generate(40, lookahead=16))
                session.rewind(0)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: bytes(range(ord("b") + i, ord("z") + 1)) for i in range(4)}


@pytest.mark.parametrize("lookahead", [1, 16])
@pytest.mark.parametrize("call", ["submit", "finish"])
def test_interrupt_between_steps_leaves_what_was_yielded(session, monkeypatch, lookahead, call):
    decoder = session._decoder
    real = getattr(decoder, call)
    calls = 0

    def interrupted(*args: Any, **kw: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return real(*args, **kw)

    got: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(decoder, call, interrupted)
        with pytest.raises(KeyboardInterrupt):
            got.extend(session.generate(25, lookahead=lookahead))
    assert bytes(got) == b"bcdefghijklmnopqrstuvwxyz"[: len(got)]
    assert text(session) == "a" + bytes(got).decode()
    assert bytes(session.generate(3))[0] == ord("a") + len(got) + 1


@pytest.mark.parametrize("lookahead", [0, 17, -1])
def test_lookahead_out_of_range_is_refused(session, lookahead):
    with pytest.raises(ValueError, match=rf"lookahead = {lookahead} must lie in 1\.\.16"):
        session.generate(lookahead=lookahead)


# Logits on request


def test_callback_sees_the_logits_of_every_choice_and_may_change_them(session):
    seen = []

    def forbid(logits: Any) -> None:
        assert logits.dtype == np.float32
        seen.append(int(np.argmax(logits)))
        logits[ord("d")] = -np.inf
        if not logits.any() or np.argmax(logits) == 0:
            logits[ord("m")] = 1

    got = bytes(session.generate(4, logits_callback=lambda logits: seen.append(np.argmax(logits))))
    assert got == b"bcde"
    assert bytes(seen) == got
    session.rewind(1)
    seen.clear()
    got = bytes(session.generate(4, logits_callback=forbid))
    assert seen[2] == ord("d")
    assert got[2] != ord("d")
    assert text(session) == "a" + got.decode("latin-1")


def test_what_a_callback_raises_ends_the_generation_and_leaves_its_tokens(session):
    def stop(logits: Any) -> None:
        if np.argmax(logits) == ord("e"):
            raise LookupError("enough")

    got: list[int] = []
    with pytest.raises(LookupError, match="enough"):
        got.extend(session.generate(9, logits_callback=stop))
    assert bytes(got) == b"bcd"
    assert text(session) == "abcd"
    assert bytes(session.generate(2)) == b"ef"


# Stop sequences


@pytest.mark.parametrize("options", [{}, {"temperature": 0.1, "seed": 1}], ids=["greedy", "drawn"])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("f", "bcde"),
        ("fgh", "bcde"),
        (["xyz", "ghi"], "bcdef"),
        ([[ord("f"), ord("g")]], "bcde"),
        (["hi", [ord("g"), ord("h"), ord("i")]], "bcdef"),
        (["gi", "ac", [ord("e"), ord("g")]], "bcdefghijklmnopqrstuvwxyz"),
        ("b", ""),
        ("yz!", "bcdefghijklmnopqrstuvwxyz"),
        ((), "bcdefghijklmnopqrstuvwxyz"),
    ],
    ids=str,
)
def test_generation_stops_before_a_stop_sequence(session, stop, expected, options):
    got = bytes(session.generate(60, stop=stop, **options)).decode()
    assert got == expected
    assert text(session) == "a" + expected
    session.rewind(1)
    assert "".join(session.stream(60, stop=stop, **options)) == expected
    assert text(session) == "a" + expected
    if len(expected) < 25:  # the next tokens are those that were cut off
        assert bytes(session.generate(1))[0] == ord("a") + len(expected) + 1


def test_context_never_runs_ahead_of_what_was_yielded(session):
    for n, token in enumerate(session.generate(60, stop="efgx", lookahead=16), 1):
        assert session.position == 1 + n
        assert session.tokens[-1] == token


def test_generation_left_while_tokens_are_held_back_drops_them(session):
    generation = session.generate(60, stop=["defX"])
    assert bytes(next(generation) for _ in range(2)) == b"bc"
    assert bytes(next(generation) for _ in range(1)) == b"d"  # "def" was held, and let go by "g"
    assert text(session) == "abcd"
    assert bytes(session.generate(2)) == b"ef"


def test_text_moved_between_pieces_that_came_together_is_gone_on_from(session):
    generation = session.generate(60, stop=["defX"])
    assert bytes(next(generation) for _ in range(3)) == b"bcd"  # "g" has let "ef" go, too
    session.forward([ord("p")], logits=None)
    assert bytes(next(generation) for _ in range(2)) == b"qr"
    assert text(session) == "abcdpqr"


@pytest.mark.parametrize("stop", ["", [""], [[]], ["a", []]], ids=repr)
def test_empty_stop_sequence_is_refused(session, stop):
    if stop == "":
        with pytest.raises(ValueError, match="stop sequence is empty"):
            session.generate(stop=stop)
    else:
        with pytest.raises(ValueError, match="stop sequence is empty"):
            session.stream(stop=stop)


TOKENS = [b"a", b"b", b"ab", b"ba", b"aab", b"", b"\xc3", b"\xa9"]


@given(
    tokens=st.lists(st.integers(0, len(TOKENS) - 1), max_size=14),
    texts=st.lists(st.sampled_from([b"ab", b"bba", b"aabb", b"\xc3\xa9", b"b"]), max_size=2),
    lists=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=3), max_size=2),
)
def test_scanner_gives_exactly_what_comes_before_the_first_stop(tokens, texts, lists):
    scanner = StopScanner(texts, lists, TOKENS.__getitem__)
    pieces = []
    seen: list[int] = []
    while len(seen) < len(tokens) and not scanner.stopped:
        seen.append(tokens[len(seen)])
        pieces += scanner.push(seen[-1])
    if not scanner.stopped:
        pieces += scanner.flush()
    whole = b"".join(TOKENS[t] for t in seen)
    out = b"".join(p.text for p in pieces)
    given_out = [p.token for p in pieces if p.token is not None]
    assert given_out == seen[: len(given_out)]
    assert whole.startswith(out)
    starts = [at for stop in texts if (at := whole.find(stop)) >= 0]
    starts += [
        len(b"".join(TOKENS[t] for t in seen[: -len(stop)]))
        for stop in lists
        if seen[-len(stop) :] == stop
    ]
    assert scanner.stopped == bool(starts)
    if starts:
        assert len(out) == min(starts)
        # No stop sequence came earlier.
        before = b"".join(TOKENS[t] for t in seen[:-1])
        assert not any(stop in before for stop in texts)
    else:
        assert given_out == seen
        assert out == whole


def test_stop_sequences_are_told_apart():
    assert stop_sequences("ab") == ([b"ab"], [])
    assert stop_sequences(["\u00e9", (1, np.int64(2))]) == (["\u00e9".encode()], [[1, 2]])
    with pytest.raises(TypeError):
        stop_sequences([[1.5]])


# Text


def test_stream_gives_whole_characters(device, tmp_path):
    wanted = "x \u00e9\u4e2d\U0001f333."
    with (
        Model.load(write_chain(tmp_path / "u.gguf", chain(wanted)), device) as model,
        model.session() as session,
    ):
        session.forward([ord("x")], logits=None)
        pieces = list(session.stream(60))
        assert pieces == list(wanted[1:])
        session.rewind(1)
        # Cut in the middle of a character: what is left of it is no text.
        assert "".join(session.stream(2)) == " \ufffd"
        session.rewind(1)
        assert "".join(session.stream(60, stop="\u4e2d")) == " \u00e9"


def test_model_without_a_tokenizer_generates_with_token_stops_alone(tiny):
    with tiny.session() as session:
        session.forward(IDS, logits=None)
        free = list(session.generate(8))
        session.rewind(len(IDS))
        at = next(i for i in range(1, 8) if free[i] not in free[:i])
        assert list(session.generate(8, stop=[[free[at]]])) == free[:at]
        with pytest.raises(ValueError, match=r"tokenizer\.ggml\.model"):
            session.stream(3)
        # In the words of an engine.
        told = r"has no tokenizer \(.*\): stop with lists of tokens"
        with tiny.engine(1, max_seq=32) as engine:
            for call in (session.generate, session.stream, partial(engine.submit, IDS)):
                for stop in ("x", [[1], "x"]):
                    with pytest.raises(ValueError, match=told):
                        call(3, stop=stop)
            with pytest.raises(ValueError, match=r"has no tokenizer \(.*\): give tokens"):
                engine.submit("a")
        with pytest.raises(ValueError, match=r"has no tokenizer \(.*\): generate\(\) gives tokens"):
            session.stream(3)


# Asynchronous


def test_asynchronous_generation_gives_the_same_text_and_lets_others_run(session):
    async def main() -> tuple[bytes, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        clock = asyncio.create_task(tick())
        got = bytearray()
        async for token in session.agenerate(30, stop="x"):
            got.append(token)
        clock.cancel()
        return bytes(got), ticks

    got, ticks = asyncio.run(main())
    assert got == b"bcdefghijklmnopqrstuvw"
    assert ticks >= len(got)
    assert text(session) == "a" + got.decode()
    with pytest.raises(ValueError, match="max_tokens"):
        session.agenerate(-1)


@pytest.mark.threads
def test_cancelled_task_leaves_a_session_that_goes_on(session):
    release, running = threading.Event(), threading.Event()

    def slow(logits: Any) -> None:
        if np.argmax(logits) == ord("e"):
            running.set()
            assert release.wait(20)

    async def main() -> list[int]:
        got: list[int] = []

        async def run() -> None:
            async for token in session.agenerate(20, logits_callback=slow):
                got.append(token)  # noqa: PERF401  # one by one: the task is cancelled in between

        task = asyncio.create_task(run())
        while not running.is_set():
            await asyncio.sleep(0.001)  # the loop is free while a step runs
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, release.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        return got

    assert bytes(asyncio.run(main())) == b"bcd"
    # The step that ran when the task was cancelled may have ended.
    assert text(session) in ("abcd", "abcde")
    session.rewind(4)
    assert bytes(session.generate(2)) == b"ef"


def test_asynchronous_generation_can_be_left(session):
    async def main() -> None:
        tokens = session.agenerate(20)
        async for token in tokens:
            if token == ord("d"):
                break
        await tokens.aclose()

    asyncio.run(main())
    assert text(session) == "abcd"
    assert bytes(session.generate(2)) == b"ef"


def test_error_in_the_thread_reaches_the_task(session):
    got = bytearray()

    def count(logits: np.ndarray) -> None:
        if session.position == 4:
            raise ZeroDivisionError

    async def main() -> None:
        async for token in session.agenerate(20, logits_callback=count):
            got.append(token)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    assert got == b"bcd"
    assert session.finish_reason is None


def test_full_context_ends_the_asynchronous_form(speaker):
    async def main(session: Session) -> bytes:
        return bytes([token async for token in session.agenerate(20)])

    with speaker.session(max_seq=4) as session:
        session.forward([ord("a")], logits=None)
        assert asyncio.run(main(session)) == b"bcd"
        assert session.finish_reason == "context"
        with pytest.raises(SessionFullError, match="4 of 4"):
            session.agenerate(20)
