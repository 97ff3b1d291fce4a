"""Text is never lost: bytes whose tokens are special or missing, and tokens of any type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oxibonsai.gguf import GGUFError
from oxibonsai.model.tokenizer import Tokenizer, byte_characters

CHARACTERS = {number: c for c, number in byte_characters().items()}
BYTES = [CHARACTERS[number] for number in range(256)]  # the id of a byte is its number
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
TYPES = {"normal": 1, "unknown": 2, "control": 3, "user-defined": 4, "unused": 5, "byte": 6}


def of(*extra: str, merges: tuple[str, ...] = (), types: Any = None, **rest: Any) -> Tokenizer:
    """Return a tokenizer of bytes and more; types by id, 1 where left out."""
    tokens = [*BYTES, *extra]
    kinds = None
    if types is not None:
        kinds = [types.get(i, 1) for i in range(len(tokens))]
    return Tokenizer(tokens, merges, pre="qwen2", token_types=kinds, **rest)


# Bytes whose tokens have a type


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("text", ["Stop! No!", "a b", "é", "\n\n", "!", "\U0001f333", "Ġ Ċ é!"])
def test_byte_stays_text_whatever_the_type_of_its_token(kind, text):
    tokenizer = of(types=dict.fromkeys(text.encode(), kind))
    ids = list(text.encode())
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode(text, parse_special=True) == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special=False) == text
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) == text
    assert tokenizer.special_ids == (set(ids) if kind in (2, 3) else set())
    assert not tokenizer.unused_ids
    assert not any(map(tokenizer.textless_ids, BYTES))


@pytest.mark.parametrize("role", ["bos_id", "eos_id"])
def test_byte_that_begins_or_ends_a_text_stays_text(role):
    tokenizer = of(**{role: ord("!")})
    assert tokenizer.encode("Stop! No!") == list(b"Stop! No!")
    assert tokenizer.decode(tokenizer.encode("Stop! No!")) == "Stop! No!"
    assert tokenizer.eos_ids == ({ord("!")} if role == "eos_id" else set())


def test_merges_of_a_special_byte_are_made():
    tokenizer = of("!!", merges=("! !",), types={ord("!"): 3})
    assert tokenizer.encode("a!!!") == [97, 256, 33]
    assert tokenizer.decode([97, 256, 33]) == "a!!!"
    # Read as a special token it stays apart, as in llama.cpp.
    assert tokenizer.encode("a!!", parse_special=True) == [97, 33, 33]


@pytest.mark.parametrize("kind", [1, 4, 5])
@pytest.mark.parametrize(("name", "merge", "text"), [("Ġa", "Ġ a", " a"), ("ab", "a b", "ab")])
def test_result_of_a_merge_decodes_to_its_bytes_whatever_its_type(kind, name, merge, text):
    tokenizer = of(name, merges=(merge,), types={256: kind})
    assert tokenizer.encode(f"x{text}") == [ord("x"), 256]
    assert tokenizer.decode([ord("x"), 256]) == f"x{text}"
    assert not tokenizer.unused_ids
    assert tokenizer.decode(tokenizer.encode(name, parse_special=True)) == name


def test_unused_token_that_no_text_gives_decodes_to_nothing():
    tokenizer = of(
        "[PAD1]", "ab", "\u4e2d", merges=("a c", "b [PAD1]"), types={256: 5, 257: 5, 258: 5}
    )
    assert tokenizer.unused_ids == {256, 257, 258}
    assert tokenizer.decode([256, 97, 257, 258]) == "a"


@given(
    text=TEXT,
    types=st.dictionaries(st.integers(0, 270), st.integers(1, 6), max_size=60),
    merges=st.lists(st.tuples(*2 * [st.sampled_from([*"abc!Ġ", "ab", "Ġa", "!!"])]), max_size=14),
    ends=st.tuples(*2 * [st.none() | st.integers(0, 255)]),
)
@settings(deadline=None, max_examples=200)
def test_any_text_comes_back_for_any_types(text, types, merges, ends):
    pairs = list(dict.fromkeys(merges))
    extra = list(dict.fromkeys(a + b for a, b in pairs))
    tokenizer = of(
        *extra,
        merges=tuple(f"{a} {b}" for a, b in pairs),
        types=types,
        bos_id=ends[0],
        eos_id=ends[1],
    )
    text = f"ab!! a{text}ab  abc"
    for parse_special in (False, True):
        ids = tokenizer.encode(text, parse_special=parse_special)
        assert tokenizer.decode(ids, skip_special=False) == text
    assert tokenizer.decode(tokenizer.encode(text)) == text


# Bytes that have no token


def without(*missing: int, extra: tuple[str, ...] = (), merges: tuple[str, ...] = ()) -> Tokenizer:
    tokens = [c for number, c in CHARACTERS.items() if number not in missing]
    return Tokenizer([*sorted(tokens), *extra], merges, pre="qwen2", source="m.gguf")


def test_vocabulary_needs_no_bytes_that_utf8_has_not():
    tokenizer = without(0xC0, 0xC1, *range(0xF5, 0x100))
    text = "aé中\U0001f333\U0010ffff\0\x7f"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("byte", "text"), [(0x61, "ba"), (0x20, "b b"), (0x0A, "\n"), (0xC3, "é"), (0xAD, "\u00ed")]
)
def test_byte_without_a_token_is_an_error_of_the_texts_that_need_it(byte, text):
    tokenizer = without(byte)
    assert tokenizer.decode(tokenizer.encode("Stop!")) == "Stop!"
    for parse_special in (False, True):
        with pytest.raises(GGUFError, match=rf"m\.gguf: .* none for the byte 0x{byte:02x}"):
            tokenizer.encode(text, parse_special=parse_special)
    assert tokenizer.decode(tokenizer.encode("Stop!")) == "Stop!"


def test_byte_without_a_token_may_come_in_a_merge():
    tokenizer = without(ord("a"), extra=("ab",), merges=("a b", "ab a"))
    assert tokenizer.decode(tokenizer.encode("abbab")) == "abbab"
    for text in ("a", "aab", "aba"):
        with pytest.raises(GGUFError, match="byte 0x61"):
            tokenizer.encode(text)


@given(text=TEXT, missing=st.sets(st.integers(0, 255), max_size=20))
@settings(deadline=None, max_examples=100)
def test_text_comes_back_or_is_refused(text, missing):
    tokenizer = without(*missing)
    needed = set(text.encode()) & missing
    if needed:
        with pytest.raises(GGUFError) as caught:
            tokenizer.encode(text)
        assert any(f"byte 0x{byte:02x}," in str(caught.value) for byte in needed)
    else:
        assert tokenizer.decode(tokenizer.encode(text)) == text


# Tokens that are no UTF-8


@pytest.mark.parametrize("kind", [1, 3, 4, 5])
@pytest.mark.parametrize("raw", [b"\xff", b"ab\xc3", b"\xed\xa0\x80", b"\x80 \x81"])
def test_token_that_is_no_utf8_comes_from_no_text(kind, raw):
    name = raw.decode("utf-8", "surrogateescape")
    tokenizer = of(name, "ab", merges=("a b", f"a {name.replace(' ', '')}"), types={256: kind})
    assert tokenizer.encode("xab") == [ord("x"), 257]
    assert tokenizer.encode("xab", parse_special=True) == [ord("x"), 257]
    assert tokenizer.token_bytes(256) == (b"" if kind == 5 else raw)


# What is no id, text or flag


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return of("<end>", types={256: 3})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("97", "ids = '97' is a str"),
        (b"97", "ids = b'97' is a bytes"),
        (bytearray(b"97"), "ids = .* is a bytearray"),
        ({97: 1}, "ids = .* is a dict"),
        (5, "ids = 5 is a int"),
        (None, "ids = None is a NoneType"),
        (np.array(5), r"ids = array\(5\) is a ndarray"),
        ([1.7], r"ids\[0\] = 1\.7 is a float"),
        ([97, True], r"ids\[1\] = True is a bool"),
        ([97, np.True_], r"ids\[1\] = np\.True_ is a bool|ids\[1\] = True is a bool_"),
        (["97"], r"ids\[0\] = '97' is a str"),
        ([None], r"ids\[0\] = None is a NoneType"),
        (np.array([1.0]), r"ids\[0\] = 1\.0 is a float"),
        (np.array([True]), r"ids\[0\] = True is a bool"),
        (np.array([[1]]), r"ids\[0\] = \[1\] is a list"),
    ],
    ids=str,
)
def test_what_are_no_ids_is_a_type_error(plain, ids, message):
    with pytest.raises(TypeError, match=message):
        plain.decode(ids)


@pytest.mark.parametrize("token", ["9", b"9", 1.0, True, np.True_, None, np.float32(1), [1]])
def test_what_is_no_id_is_a_type_error(plain, token):
    for call in (plain.token_bytes, plain.stream().push):
        with pytest.raises(TypeError, match=r"token = .* not an integer"):
            call(token)


@pytest.mark.parametrize("value", ["no", 0, 1, None, "", []])
def test_what_is_no_flag_is_a_type_error(plain, value):
    with pytest.raises(TypeError, match=r"parse_special = .* not a bool"):
        plain.encode("a", parse_special=value)
    with pytest.raises(TypeError, match=r"parse_special = .* not a bool"):
        plain.prompt_ids("a", parse_special=value)
    for call in (
        lambda: plain.decode([], skip_special=value),
        lambda: plain.token_bytes(1, skip_special=value),
        lambda: plain.stream(skip_special=value),
    ):
        with pytest.raises(TypeError, match=r"skip_special = .* not a bool"):
            call()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_ids_are_integers_of_python_and_numpy_in_any_iterable(plain, dtype):
    array = np.frombuffer(b"abc", np.uint8).astype(dtype)
    for ids in (array, list(array), tuple(array.tolist()), iter(array), range(97, 100)):
        assert plain.decode(ids) == "abc"
    assert plain.token_bytes(array[0], skip_special=np.True_) == b"a"
    assert plain.encode("<end>", parse_special=np.True_) == [256]
    stream = plain.stream(skip_special=np.False_)
    assert [*map(stream.push, array), stream.push(256)] == [*"abc", "<end>"]


# What a model continues


@pytest.mark.parametrize("add_bos", [True, False])
def test_prompt_begins_as_the_file_says(add_bos):
    tokenizer = of("<s>", types={256: 3}, bos_id=256, add_bos=add_bos)
    first = [256] if add_bos else []
    assert tokenizer.prompt_ids("ab") == [*first, 97, 98]
    assert tokenizer.prompt_ids("") == first
    assert tokenizer.prompt_ids("<s>") == [*first, *b"<s>"]
    assert tokenizer.prompt_ids("<s>a", parse_special=True) == [256, 97]
    assert tokenizer.prompt_ids("a<s>", parse_special=True) == [*first, 97, 256]
    assert tokenizer.encode("ab") == [97, 98]


def test_prompt_begins_with_the_token_also_where_that_is_a_byte():
    tokenizer = of(bos_id=ord("!"), add_bos=True)
    assert tokenizer.prompt_ids("!a") == list(b"!!a")
