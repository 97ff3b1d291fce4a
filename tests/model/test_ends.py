"""What ends a text: known names, stop texts that name control tokens, and a full context."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import EOS, Tiny, byte_vocabulary, chain, random_tensors, write, write_chain

from oxibonsai import metal
from oxibonsai.model import Model, Session, SessionFullError
from oxibonsai.model.generation.stopping import Piece, StopScanner

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
EXTRA = EOS + 1  # the token behind the byte vocabulary's own end
TYPES = {"NORMAL": 1, "UNKNOWN": 2, "CONTROL": 3, "USER_DEFINED": 4, "UNUSED": 5}


def vocabulary(*extra: tuple[str, int], **metadata: Any) -> dict[str, Any]:
    """Return the byte vocabulary with more tokens behind it, each with its type."""
    found = byte_vocabulary()
    found["tokenizer.ggml.tokens"] += [name for name, _ in extra]
    found["tokenizer.ggml.token_type"] += [kind for _, kind in extra]
    return found | {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}


@pytest.fixture
def say(device: metal.Device, tmp_path: Path) -> Iterator[Callable[..., Session]]:
    """Return sessions behind "a" of models that say what comes in a chain of tokens."""
    made: list[Model] = []

    def make(
        tokens: list[int], words: dict[str, Any] | None = None, max_seq: int | None = None
    ) -> Session:
        follows = dict(itertools.pairwise(tokens))
        path = write_chain(tmp_path / f"{len(made)}.gguf", follows, vocabulary=words)
        made.append(Model.load(path, device))
        session = made[-1].session(max_seq)
        session.forward(tokens[:1], logits=None)
        return session

    yield make
    for model in made:
        model.close()


# Ends of text


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>"])
def test_known_end_of_turn_ends_the_text_whatever_its_type(say, name, kind):
    session = say([*b"abc", EXTRA, *b"xyz"], vocabulary((name, TYPES[kind])))
    assert bytes(session.generate(20)) == b"bc"
    assert session.finish_reason == "stop"
    session.rewind(1)
    assert "".join(session.stream(20)) == "bc"
    session.rewind(1)
    assert list(session.generate(20, ignore_eos=True)) == [*b"bc", EXTRA, *b"xyz"] + 14 * [EOS]
    session.rewind(1)
    assert "".join(session.stream(6, ignore_eos=True)) == "bcxyz"  # its name is no text


def test_name_that_is_no_end_goes_on(say):
    session = say([*b"abc", EXTRA, *b"xyz"], vocabulary(("<|start|>", 3)))
    assert list(session.generate(20)) == [*b"bc", EXTRA, *b"xyz"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"eos_token_ids": np.array([EXTRA], np.int32)},
        {"eos_token_ids": np.array([EOS, EXTRA, 2**32 - 1], np.uint32)},
        {"eos_token_id": np.array([EXTRA], np.uint64)},
        {"eot_token_id": EXTRA},
        {"eom_token_id": EXTRA},
    ],
    ids=str,
)
def test_every_id_that_the_file_names_as_an_end_is_one(say, metadata):
    session = say([*b"abc", EXTRA, *b"xyz"], vocabulary(("done", 1), **metadata))
    assert bytes(session.generate(20)) == b"bc"


def test_end_of_turn_ends_an_engine_s_text(say):
    model = say([*b"abc", EXTRA, *b"xyz"], vocabulary(("<|im_end|>", 1))).model
    with model.engine(2, max_seq=64) as engine:
        result = engine.submit([ord("a")], 20).result(20)
        assert (result.text, result.finish_reason) == ("bc", "stop")


# Stop texts


@pytest.mark.parametrize("kind", ["UNKNOWN", "CONTROL", "UNUSED"])
@pytest.mark.parametrize(
    "stop", ["<|im_start|>", ["never", "<|im_start|>"], ("<|im_start|>", [1, 2])], ids=str
)
def test_stop_text_that_names_a_token_without_text_stops_at_it(say, stop, kind):
    session = say([*b"abc", EXTRA, *b"xyz"], vocabulary(("<|im_start|>", TYPES[kind])))
    for draft_tokens in (0, 4):
        assert bytes(session.generate(20, stop=stop, draft_tokens=draft_tokens)) == b"bc"
        assert session.finish_reason == "stop"
        assert session.tokens == [*b"abc"]
        session.rewind(1)
    assert "".join(session.stream(20, stop=stop)) == "bc"
    with session.model.engine(1, max_seq=64) as engine:
        result = engine.submit([ord("a")], 20, stop=stop).result(20)
        assert (result.text, result.tokens, result.finish_reason) == ("bc", [*b"bc"], "stop")


def test_stop_text_that_names_a_control_token_is_a_text_as_well(say):
    raw = list(b"<|x>")
    session = say([*b"a", *raw, *b"yz"], vocabulary(("<|x>", 3)))
    assert "".join(session.stream(20, stop="<|x>")) == ""
    assert session.finish_reason == "stop"


def test_stop_at_an_end_of_text_that_is_ignored(say):
    session = say([*b"abc", EXTRA, *b"xyz"], vocabulary(("<|im_end|>", 3)))
    options: Any = {"ignore_eos": True, "stop": "<|im_end|>"}
    assert bytes(session.generate(20, **options)) == b"bc"


@pytest.mark.parametrize("stop", [None, (), [], iter(())], ids=lambda stop: type(stop).__name__)
def test_no_stop_is_none(say, stop):
    session = say(list(ALPHABET.encode()))
    assert bytes(session.generate(60, stop=stop)).decode() == ALPHABET[1:]
    with session.model.engine(1, max_seq=64) as engine:
        assert engine.submit([ord("a")], 30, stop=stop).text(20) == ALPHABET[1:]


@pytest.mark.parametrize(
    "stop",
    [
        ["xyz", [ord("c"), ord("d")]],
        ([np.int64(99), np.uint8(100)], "xyz"),
        np.array([[99, 100]]),
        {"cd"},
        (text for text in ["cd"]),
        iter(["cd", [1]]),
    ],
    ids=lambda stop: type(stop).__name__,
)
def test_stop_takes_texts_and_tokens_in_any_iterable(say, stop):
    session = say(list(ALPHABET.encode()))
    assert bytes(session.generate(60, stop=stop)) == b"b"


def test_an_iterator_of_stops_serves_every_prompt_of_a_batch(say):
    model = say(list(ALPHABET.encode())).model
    with model.engine(2, max_seq=64) as engine:
        assert engine.generate_batch(["a", "f"], 30, stop=iter(["de", "ij"])) == ["bc", "gh"]


NAMED_STOPS = [
    ("c<|x|>", [*b"b"]),
    ("bc<|x|>", []),
    ("<|x|>d", [*b"bc"]),
    ("<|x|>\u00e9", [*b"bc", EXTRA, *b"defgh"]),  # which never comes
    ("c<|x|>d", [*b"b"]),
    ("c<|x|>def", [*b"b"]),
    ("|>d", [*b"bc", EXTRA, *b"defgh"]),  # holds no name
    ("never<|x|>", [*b"bc", EXTRA, *b"defgh"]),
    ("c<|x|>e", [*b"bc", EXTRA, *b"defgh"]),
    ("f<|y|>", [*b"bc", EXTRA, *b"defgh"]),
    (["c<|x|>e", "ef"], [*b"bc", EXTRA, *b"d"]),
    (["ef", "d<|x|>"], [*b"bc", EXTRA, *b"d"]),
    (["<|x|>de", [ord("c"), EXTRA]], [*b"b"]),
    (["<|x|>de", "c<|x|>x", "<|x|>"], [*b"bc"]),
]


@pytest.mark.parametrize("kind", ["UNKNOWN", "CONTROL", "UNUSED"])
@pytest.mark.parametrize(("stop", "said"), NAMED_STOPS, ids=str)
def test_stop_text_that_holds_the_name_of_a_control_token_stops_where_it_is_spelt(
    say, stop, said, kind
):
    extra = [("<|x|>", TYPES[kind]), ("<|y|>", TYPES[kind])]
    session = say([*b"abc", EXTRA, *b"defgh"], vocabulary(*extra))
    text = bytes(token for token in said if token < 256).decode()
    scored: list[int] = []
    for draft_tokens in (0, 4):
        assert list(session.generate(20, stop=stop, draft_tokens=draft_tokens)) == said
        assert session.finish_reason == "stop"
        assert session.tokens == [ord("a"), *said]
        session.rewind(1)
        assert "".join(session.stream(20, stop=stop, draft_tokens=draft_tokens)) == text
        session.rewind(1)
    stream = session.stream(20, stop=stop, on_token=lambda one: scored.append(one.token))
    assert "".join(stream) == text
    assert scored == said
    with session.model.engine(1, max_seq=64) as engine:
        result = engine.submit([ord("a")], 20, stop=stop, log_probabilities=True).result(20)
        assert (result.text, result.tokens, result.finish_reason) == (text, said, "stop")
        assert [one.token for one in result.log_probabilities] == said


@pytest.mark.parametrize(
    ("stop", "said", "text"),
    [
        ("c<|im_end|>", "b", "b"),
        ("c<|im_end|>\n", "bc", "bc"),
        ("<|im_end|>\n", "bc", "bc"),
        ([[ord("c"), EXTRA]], "b", "b"),
        (["c<|im_end|>\n", "bc<|im_end|>"], "", ""),
        ("cx", "bc", "bc"),
    ],
    ids=str,
)
def test_what_belongs_to_a_stop_is_not_given_out_before_an_end_of_text(say, stop, said, text):
    session = say([*b"abc", EXTRA, *b"xyz"], vocabulary(("<|im_end|>", 3)))
    assert bytes(session.generate(20, stop=stop)).decode() == said
    assert session.finish_reason == "stop"
    assert bytes(session.tokens).decode() == "a" + said
    session.rewind(1)
    assert "".join(session.stream(20, stop=stop)) == text
    with session.model.engine(1, max_seq=64) as engine:
        result = engine.submit([ord("a")], 20, stop=stop).result(20)
        assert (result.text, bytes(result.tokens).decode()) == (text, said)
        assert result.finish_reason == "stop"


def test_stop_text_with_an_end_of_text_that_is_ignored(say):
    session = say([*b"abc", EXTRA, *b"\nxyz"], vocabulary(("<|im_end|>", 3)))
    options: Any = {"ignore_eos": True, "stop": "<|im_end|>\n"}
    assert bytes(session.generate(20, **options)) == b"bc"
    session.rewind(1)
    assert "".join(session.stream(20, **(options | {"stop": "<|im_end|>\nz"}))) == "bc\nxyz"


def test_part_of_a_stop_text_with_a_name_comes_out_where_the_text_ends(say):
    session = say([*b"abc", EXTRA, *b"def"], vocabulary(("<|x|>", 3)))
    for max_tokens, text in ((2, "bc"), (3, "bc"), (4, "bcd"), (9, "bcdef")):
        assert "".join(session.stream(max_tokens, stop="c<|x|>dx")) == text
        session.rewind(1)
    small = session.model.session(4)
    small.forward([ord("a")], logits=None)
    assert "".join(small.stream(9, stop="c<|x|>de")) == "bc"
    assert small.finish_reason == "context"
    small.rewind(1)
    assert "".join(small.stream(9, stop="c<|x|>d")) == "b"
    assert small.finish_reason == "stop"


def test_stop_text_with_a_name_that_is_written_in_letters_stops_as_any(say):
    session = say([*b"ac<|x>d", EXTRA], vocabulary(("<|x>", 3)))
    assert "".join(session.stream(20, stop="c<|x>")) == ""
    assert session.finish_reason == "stop"


VIEW = [b"a", b"b", b"ab", b"bc", b"", b"<a", b"c<b>"]  # tokens, of which 7 and 8 are control ones
NAMES = {7: b"<a>", 8: b"<b>"}


@given(
    tokens=st.lists(st.integers(0, 8), max_size=12),
    texts=st.lists(
        st.lists(st.sampled_from(["a", "b", "c", "<a>", "<b>", "<a"]), min_size=1, max_size=4)
        .map("".join)
        .map(str.encode),
        max_size=3,
    ),
    end=st.sampled_from([None, 7, 0]),
)
@settings(deadline=None, max_examples=500)
def test_scanner_finds_names_beside_text(tokens, texts, end):
    def text_of(token: int) -> bytes:
        return b"" if token in NAMES else VIEW[token]

    def name_of(token: int) -> bytes:
        return NAMES.get(token) or VIEW[token]

    named = [text for text in texts if any(name in text for name in NAMES.values())]
    scanner = StopScanner(texts, [], text_of, named, name_of)
    pieces: list[Piece] = []
    seen: list[int] = []
    for token in tokens:
        seen.append(token)
        pieces += scanner.push(token)
        if scanner.stopped:
            break
    else:
        if end is None:
            pieces += scanner.flush()
        else:
            held = sum(len(text_of(t)) for t in seen) - sum(len(p.text) for p in pieces)
            last = scanner.end(end)
            assert sum(len(piece.text) for piece in last) <= held
            pieces += last
            if scanner.stopped:
                seen.append(end)
    plain = b"".join(map(text_of, seen))
    view = b"".join(map(name_of, seen))
    # The earliest place that a stop has in either view, as tokens and bytes of text before it.
    places: list[tuple[int, int]] = []
    for found, of in ((texts, text_of), (named, name_of)):
        whole = b"".join(map(of, seen))
        for at in (whole.find(text) for text in found):
            if at < 0:
                continue
            n = n_bytes = 0
            while at >= len(of(seen[n])):
                at -= len(of(seen[n]))
                n_bytes += len(text_of(seen[n]))
                n += 1
            places.append((n, n_bytes + (0 if seen[n] in NAMES else at)))
    tokens_out = [piece.token for piece in pieces if piece.token is not None]
    out = b"".join(piece.text for piece in pieces)
    assert scanner.stopped == bool(places), (plain, view)
    if not places:
        assert tokens_out == seen
        assert out == plain
    elif len(seen) > len(tokens):
        assert plain.startswith(out)
        assert len(out) <= min(n_bytes for _, n_bytes in places)
    else:
        assert out == plain[: min(n_bytes for _, n_bytes in places)]
        assert tokens_out == seen[: len(tokens_out)]
        assert len(tokens_out) <= min(n for n, _ in places)


# Why a text ended


def test_finish_reason_says_how_the_last_generation_ended(say):
    session = say(list(ALPHABET.encode()), max_seq=60)
    assert session.finish_reason is None
    generation = session.generate(3)
    assert session.finish_reason is None
    assert bytes(generation) == b"bcd"
    assert session.finish_reason == "length"
    list(session.generate(30, stop="gh"))
    assert session.finish_reason == "stop"
    session.forward([ord("f")], logits=None)
    assert session.finish_reason == "stop"
    left = session.stream(9)
    next(left)
    assert session.finish_reason is None  # it runs
    assert list(session.generate(0)) == []
    assert session.finish_reason == "length"
    with pytest.raises(ValueError, match="top_k"):
        session.generate(top_k=-1)
    session.check_options(5)
    assert session.finish_reason == "length"
    assert len(list(session.generate_scored(60))) == len("hijklmnopqrstuvwxyz")
    assert session.finish_reason == "stop"
    list(session.generate(100, ignore_eos=True))
    assert session.finish_reason == "context"
    assert session.position == 60


def test_generation_that_fails_has_no_finish_reason(say):
    session = say(list(ALPHABET.encode()))
    list(session.generate(2))

    def fail(logits: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(session.generate(2, logits_callback=fail))
    assert session.finish_reason is None


# A full context


@pytest.mark.parametrize("draft_tokens", [0, 6])
@pytest.mark.parametrize("lookahead", [1, 3, 16])
@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_full_context_ends_every_form_of_generation(say, draft_tokens, lookahead, temperature):
    session = say(list(ALPHABET.encode()), max_seq=12)
    options: Any = {"lookahead": lookahead, "draft_tokens": draft_tokens, "seed": 1}
    expected = "bcdefghijkl"

    async def collect() -> str:
        found = session.agenerate(60, temperature, **options)
        return bytes([token async for token in found]).decode()

    for call in (
        lambda: bytes(session.generate(60, temperature, **options)).decode(),
        lambda: "".join(session.stream(60, temperature, **options)),
        lambda: bytes(
            s.token for s in session.generate_scored(60, temperature, **options)
        ).decode(),
        lambda: asyncio.run(collect()),
        lambda: bytes(session.generate(60, logits_callback=lambda logits: None)).decode(),
        lambda: bytes(session.generate(60, allowed=lambda tokens: None)).decode(),
    ):
        assert call() == expected
        assert session.finish_reason == "context"
        assert session.position == session.max_seq == 12
        session.rewind(1)


@pytest.mark.parametrize(
    ("stop", "said", "reason"),
    [
        ("klmn", "bcdefghijkl", "context"),  # "kl" is held back where the context is full
        (["lmn", "jklx"], "bcdefghijkl", "context"),
        ([[ord("l"), ord("m"), ord("n")]], "bcdefghijkl", "context"),
        ("klm", "bcdefghij", "stop"),  # "m" needs no place to be known
        ([[ord("l"), ord("m")]], "bcdefghijk", "stop"),
        ("m", "bcdefghijkl", "stop"),
        ("mn", "bcdefghijkl", "context"),
    ],
    ids=str,
)
def test_text_held_back_in_a_full_context_comes_out(say, stop, said, reason):
    session = say(list(ALPHABET.encode()), max_seq=12)
    seen: list[int] = []
    for take in (None, lambda one: seen.append(one.token)):
        assert "".join(session.stream(60, stop=stop, on_token=take)) == said
        assert session.finish_reason == reason
        assert bytes(session.tokens).decode() == "a" + said
        session.rewind(1)
    assert bytes(seen).decode() == said
    assert bytes(session.generate(60, stop=stop)).decode() == said
    assert session.finish_reason == reason


def test_end_of_text_behind_the_last_place_is_an_end(say):
    session = say(list(b"abcd"), max_seq=4)
    assert bytes(session.generate(60)) == b"bcd"
    assert session.finish_reason == "stop"


def test_character_cut_by_a_full_context_ends_as_by_max_tokens(say):
    session = say(list("aé".encode()), max_seq=2)
    assert "".join(session.stream(60)) == "\ufffd"
    assert session.finish_reason == "context"


def test_generation_is_refused_in_a_session_that_is_full_already(say):
    session = say(list(ALPHABET.encode()), max_seq=4)
    list(session.generate(3))
    assert session.finish_reason == "length"
    for call in (session.generate, session.stream, session.generate_scored, session.agenerate):
        with pytest.raises(SessionFullError, match="4 of 4"):
            call(5)
    assert list(session.generate(0)) == []  # none is asked for
    session.rewind(3)
    waiting = session.generate(5)
    session.forward([1], logits=None)
    with pytest.raises(SessionFullError, match="4 of 4"):
        next(waiting)


def test_generation_whose_session_was_filled_meanwhile_ends(say):
    session = say(list(ALPHABET.encode()), max_seq=8)
    generation = session.generate(60)
    assert next(generation) == ord("b")
    session.forward([ord("c")] * 6, logits=None)
    assert list(generation) == []
    assert session.finish_reason == "context"


@given(
    room=st.integers(1, 12),
    stop=st.lists(st.sampled_from(["cd", "e", "gh", "hij", "jkl", "lmno"]), max_size=3),
    max_tokens=st.integers(0, 14),
)
@settings(deadline=None, max_examples=60)
def test_a_text_in_a_small_context_is_the_beginning_of_that_in_a_large_one(
    alphabet, room, stop, max_tokens
):
    with alphabet.session() as large, alphabet.session(1 + room) as small:
        for session in (large, small):
            session.forward([ord("a")], logits=None)
        whole = "".join(large.stream(max_tokens, stop=stop))
        part = "".join(small.stream(max_tokens, stop=stop))
        if small.finish_reason == large.finish_reason:
            assert part == whole
        else:
            assert small.finish_reason == "context"
            assert small.position == 1 + room
            plain = ALPHABET[1 : 1 + room]
            assert part == plain
            assert plain.startswith(whole) or whole.startswith(plain)


@pytest.fixture(scope="module")
def alphabet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_chain(tmp_path_factory.mktemp("a") / "a.gguf", chain(ALPHABET))
    with Model.load(path, "cpu") as model:
        yield model


# Rows of the embedding without a token


def test_tokens_without_a_row_are_refused_at_load(device, tmp_path):
    words = vocabulary(("more", 1))
    tiny = Tiny(n_layers=1, vocab=257)
    path = write(tmp_path / "m.gguf", tiny, random_tensors(tiny), words)
    with pytest.raises(
        Exception, match=r"tokenizer\.ggml\.tokens has 258 tokens, .* 257 rows"
    ) as caught:
        Model.load(path, device)
    assert isinstance(caught.value, ValueError)
    assert str(path) in str(caught.value)


def test_rows_without_a_token_have_no_text(device, tmp_path):
    words = byte_vocabulary()
    tiny = replace(Tiny(n_layers=1), vocab=300)
    path = write(tmp_path / "m.gguf", tiny, random_tensors(tiny), words)
    with Model.load(path, device) as model, model.session() as session:
        session.forward([1], logits=None)
        bare = list(range(257, 300))
        assert "".join(session.stream(5, allowed=bare, stop=["x", [1, 2]])) == ""
        assert all(token in bare for token in session.tokens[1:])
        assert model.tokenizer.vocab_size == 257
        assert model.tokenizer.decode([97, *bare, 98]) == "ab"
        assert model.tokenizer.unused_ids == set(bare)
        with pytest.raises(ValueError, match=r"token id 300 .* 0 to 299"):
            model.tokenizer.decode([300])
        with model.engine(1, max_seq=32) as engine:
            result = engine.submit([1], 5, allowed=bare).result(20)
            assert (result.text, len(result.tokens)) == ("", 5)
