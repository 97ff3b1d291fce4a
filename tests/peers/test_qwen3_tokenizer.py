"""Qwen3's ids and texts, as llama.cpp's, Hugging Face tokenizers' and transformers'.

llama.cpp does not normalise text; Hugging Face's tokenizer of Qwen3 brings it into the form NFC.
"""

from __future__ import annotations

import ctypes
import json
import random
from collections.abc import Iterable
from typing import Any

import pytest
import qwen3
import qwen3_texts
from peers import import_peer

from oxibonsai.model.tokenizer import Tokenizer

KINDS = list(qwen3_texts.COUNTS)
ANY = range(qwen3.VOCAB)


def llama_ids(llama: Any, text: str, *, special: bool = False) -> list[int]:
    found: list[int] = llama.tokenize(text.encode(), add_bos=False, special=special)
    return found


def llama_piece(llama: Any, token: int, *, special: bool) -> bytes:
    """Return the bytes of a token; llama_cpp's own detokenize() has room for 32."""
    llama_cpp = import_peer("llama_cpp")
    room = ctypes.create_string_buffer(4096)
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    n = llama_cpp.llama_token_to_piece(vocab, token, room, len(room), 0, special)
    assert n >= 0
    return room.raw[:n]


def their_ids(hugging_face: Any, text: str) -> list[int]:
    found: list[int] = hugging_face.encode(text, add_special_tokens=False).ids
    return found


def differing(texts: Iterable[str], ours: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    """Return the texts of which the two say different things, with what they say."""
    return [(text, a, b) for text in texts if (a := ours(text)) != (b := theirs(text))]


def test_there_are_600_texts_and_none_comes_twice():
    found = [text for kind in KINDS for text in qwen3_texts.texts(kind)]
    assert len(found) == len(set(found)) == 600


@pytest.mark.parametrize("kind", KINDS)
def test_without_nfc_ids_are_those_of_llama_cpp(ours: Tokenizer, llama: Any, kind: str) -> None:
    texts = qwen3_texts.texts(kind)
    assert differing(texts, ours.encode, lambda text: llama_ids(llama, text)) == []
    assert differing(texts, lambda text: ours.decode(ours.encode(text)), str) == []


@pytest.mark.parametrize("kind", KINDS)
def test_with_nfc_ids_are_those_of_hugging_face(
    ours_nfc: Tokenizer, hugging_face: Any, transformers_tokenizer: Any, kind: str
) -> None:
    texts = qwen3_texts.texts(kind)
    assert differing(texts, ours_nfc.encode, lambda text: their_ids(hugging_face, text)) == []
    assert differing(texts, ours_nfc.encode, transformers_tokenizer.encode) == []


def test_nfc_is_what_the_texts_differ_by(ours: Tokenizer, ours_nfc: Tokenizer) -> None:
    changed = {
        kind: sum(ours.encode(text) != ours_nfc.encode(text) for text in qwen3_texts.texts(kind))
        for kind in KINDS
    }
    assert changed["combining"] >= 50
    assert changed["code"] == changed["numbers"] == 0


def test_ids_of_every_16th_code_point_between_others(
    ours: Tokenizer, ours_nfc: Tokenizer, llama: Any, hugging_face: Any
) -> None:
    # Every one below U+3100, where most rules are; no surrogates.
    points = [*range(0x3100), *range(0x3100, 0xD800, 16), *range(0xE000, 0x20000, 16)]
    points += range(0x20000, 0x110000, 997)
    texts = ["a%s1%s %s!%s\n%s'%s" % ((chr(c),) * 6) for c in points]
    assert differing(texts, ours.encode, lambda text: llama_ids(llama, text)) == []
    assert differing(texts, ours_nfc.encode, lambda text: their_ids(hugging_face, text)) == []


@pytest.fixture(scope="module")
def named() -> list[str]:
    """Texts with names of special tokens in them."""
    found = qwen3_texts.special_texts(qwen3.special_names())
    assert len(found) == 60
    return found


def test_names_read_as_tokens_they_are_llama_cpps(ours, llama, named):
    def read(text: str) -> list[int]:
        return ours.encode(text, parse_special=True)

    assert differing(named, read, lambda text: llama_ids(llama, text, special=True)) == []


def test_names_read_as_tokens_they_are_hugging_faces(
    ours_nfc, hugging_face, transformers_tokenizer, named
):
    def read(text: str) -> list[int]:
        return ours_nfc.encode(text, parse_special=True)

    assert differing(named, read, lambda text: their_ids(hugging_face, text)) == []
    assert differing(named, read, transformers_tokenizer.encode) == []


def test_names_read_as_text_they_are_hugging_faces_without_added_tokens(ours_nfc, named):
    data = json.loads(json.dumps(qwen3.tokenizer_json()))
    data["added_tokens"] = []
    plain = import_peer("tokenizers").Tokenizer.from_str(json.dumps(data))
    assert differing(named, ours_nfc.encode, lambda text: their_ids(plain, text)) == []


def test_read_as_text_names_of_control_tokens_are_llama_cpps(ours, llama, named):
    # It takes the others, such as <think>, for tokens all the same.
    others = [name for name in qwen3.special_names() if not qwen3.looks_special(name)]
    assert len(others) == 6
    without = [text for text in named if not any(name in text for name in others)]
    assert len(without) > 30
    assert differing(without, ours.encode, lambda text: llama_ids(llama, text)) == []


def test_the_name_that_is_a_token_to_llama_cpp_alone(ours, llama, hugging_face):
    # An ordinary token of this vocabulary by its type; the words of a text never come to it.
    strike = qwen3.tokenizer_json()["model"]["vocab"]["</s>"]
    assert ours.encode("</s>", parse_special=True) == [strike]
    assert llama_ids(llama, "</s>", special=True) == [strike]
    assert ours.encode("</s>") == their_ids(hugging_face, "</s>") == llama_ids(llama, "</s>")
    assert len(ours.encode("</s>")) == 3


@pytest.fixture(scope="module")
def sequences() -> list[list[int]]:
    """Random tokens: half characters, special tokens, and rows without a name."""
    rng = random.Random(6)
    names = range(151_643, 151_700)
    return [
        [rng.choice(names) if rng.random() < 0.2 else rng.choice(ANY) for _ in range(20)]
        if i % 2
        else rng.choices(range(256), k=20)
        for i in range(200)
    ]


def test_random_tokens_give_the_text_of_hugging_face(ours_nfc, hugging_face, sequences):
    # What the converter makes a control token, and Hugging Face does not skip.
    unlike = {
        added["id"]
        for added in qwen3.tokenizer_json()["added_tokens"]
        if not added["special"] and qwen3.looks_special(added["content"])
    }
    assert len(unlike) == 6
    for ids in sequences:
        assert ours_nfc.decode(ids, skip_special=False) == hugging_face.decode(
            ids, skip_special_tokens=False
        )
        ids = [i for i in ids if i not in unlike]
        expected = hugging_face.decode(ids, skip_special_tokens=True)
        assert ours_nfc.decode(ids) == expected
        stream = ours_nfc.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == expected


def test_random_tokens_give_the_bytes_of_llama_cpp(ours, llama, sequences):
    for ids in sequences:
        for special in (False, True):
            found = b"".join(ours.token_bytes(i, skip_special=not special) for i in ids)
            assert found == b"".join(llama_piece(llama, i, special=special) for i in ids)


def test_each_of_151936_tokens_gives_the_bytes_of_llama_cpp(ours, llama):
    unlike = [
        (i, special)
        for i in ANY
        for special in (False, True)
        if ours.token_bytes(i, skip_special=not special) != llama_piece(llama, i, special=special)
    ]
    assert unlike == []
