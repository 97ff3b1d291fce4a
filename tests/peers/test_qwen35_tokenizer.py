"""Qwen3.5's ids and texts, as llama.cpp's, tiktoken's and transformers'.

llama.cpp does not normalise text; the others bring it into the form NFC.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import qwen3_texts
import qwen35
from peers import import_peer

from oxibonsai import gguf
from oxibonsai.model.tokenizer import Tokenizer

KINDS = list(qwen3_texts.COUNTS)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen35.write_qwen35(tmp_path_factory.mktemp("qwen35") / "qwen35.gguf")


@pytest.fixture(scope="module")
def plain(path: Path) -> Tokenizer:
    with gguf.open(path) as file:
        return Tokenizer.from_gguf(file, n_rows=qwen35.VOCAB)


@pytest.fixture(scope="module")
def composing(path: Path) -> Tokenizer:
    with gguf.open(path) as file:
        return Tokenizer.from_gguf(file, nfc=True, n_rows=qwen35.VOCAB)


@pytest.fixture(scope="module")
def llama_ids(path: Path) -> Iterator[Callable[[str], list[int]]]:
    model = import_peer("llama_cpp").Llama(str(path), vocab_only=True, verbose=False)
    yield lambda text: model.tokenize(text.encode(), add_bos=False, special=False)
    model.close()


def tiktoken_ids(text: str, *, special: bool = False) -> list[int]:
    found: list[int] = qwen35.tiktoken_peer().encode(
        text, allowed_special="all" if special else set()
    )
    return found


def differing(texts: Iterable[str], ours: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    """Return the texts of which the two say different things, with what they say."""
    return [(text, a, b) for text in texts if (a := ours(text)) != (b := theirs(text))]


@pytest.mark.parametrize("kind", KINDS)
def test_without_nfc_ids_are_those_of_llama_cpp(plain, llama_ids, kind):
    texts = qwen3_texts.texts(kind)
    assert differing(texts, plain.encode, llama_ids) == []
    assert differing(texts, lambda text: plain.decode(plain.encode(text)), str) == []


@pytest.mark.parametrize("kind", KINDS)
def test_with_nfc_ids_are_those_of_tiktoken(composing, kind):
    assert differing(qwen3_texts.texts(kind), composing.encode, tiktoken_ids) == []


def test_with_nfc_ids_are_those_of_transformers(composing):
    qwen3_5 = import_peer("transformers.models.qwen3_5.tokenization_qwen3_5")
    data = qwen35.vocabulary()
    named = {
        text: i
        for i, text in enumerate(data["tokenizer.ggml.tokens"])
        if data["tokenizer.ggml.token_type"][i] == qwen35.NORMAL
    }
    merges = [tuple(merge.split(" ")) for merge in data["tokenizer.ggml.merges"]]
    theirs = qwen3_5.Qwen3_5Tokenizer(vocab=named, merges=merges)
    texts = [text for kind in KINDS for text in qwen3_texts.texts(kind)]
    # It has no other special token than the end, which none of the texts names.
    assert differing(texts, composing.encode, theirs.encode) == []


def test_ids_of_code_points_between_others(plain, composing, llama_ids):
    # Every one below U+3100, where most marks are; no surrogates.
    points = [*range(0x3100), *range(0x3100, 0xD800, 16), *range(0xE000, 0x20000, 16)]
    points += range(0x20000, 0x110000, 997)
    texts = ["a%s1%s %s!%s\n%s'%s" % ((chr(c),) * 6) for c in points]
    assert differing(texts, plain.encode, llama_ids) == []
    assert differing(texts, composing.encode, tiktoken_ids) == []


def test_ends_and_names(path, plain, composing):
    specials = qwen35.special_tokens()
    assert specials["<|im_end|>"] == 248_046 == plain.eos_id
    ends = {"<|im_end|>", "<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"}
    model = import_peer("llama_cpp").Llama(str(path), vocab_only=True, verbose=False)
    llama_cpp = import_peer("llama_cpp")
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    theirs = {i for i in range(qwen35.VOCAB) if llama_cpp.llama_vocab_is_eog(vocab, i)}
    model.close()
    assert plain.eos_ids == theirs >= {specials[name] for name in ends}
    for text in qwen3_texts.special_texts(list(specials)):
        assert composing.encode(text, parse_special=True) == tiktoken_ids(text, special=True)
        assert not set(composing.encode(text)) & set(specials.values())


def test_random_tokens_give_the_text_of_tiktoken(composing):
    rng = random.Random(35)
    n_tokens = max(qwen35.special_tokens().values()) + 1
    for _ in range(200):
        ids = rng.choices(range(n_tokens), k=20)
        expected = qwen35.tiktoken_peer().decode(ids)
        assert composing.decode(ids, skip_special=False) == expected
        stream = composing.stream(skip_special=False)
        assert "".join(map(stream.push, ids)) + stream.flush() == expected
