"""Vocabularies whose parts do not agree: the ids and texts of llama.cpp."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import import_peer
from tiny_models import Tiny

from oxibonsai import gguf
from oxibonsai.model.tokenizer import Tokenizer, byte_characters

CHARACTERS = list(byte_characters())
Both = Callable[..., tuple[Any, Tokenizer]]


@pytest.fixture(scope="module")
def llama() -> Any:
    return import_peer("llama_cpp")


@pytest.fixture
def both(llama: Any, tmp_path: Path) -> Both:
    """Return llama.cpp's vocabulary of a file, and ours."""

    def load(tokens: list[str], merges: list[str], types: list[int]) -> tuple[Any, Tokenizer]:
        path = tmp_path / "v.gguf"
        metadata: dict[str, Any] = {
            **Tiny().metadata,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.token_type": np.array(types, np.int32),
        }
        gguf.write(path, metadata, [])
        with gguf.open(path) as file:
            tokenizer = Tokenizer.from_gguf(file)
        return llama.Llama(str(path), vocab_only=True, verbose=False), tokenizer

    return load


def texts(alphabet: str, seed: int, count: int = 1500) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(alphabet, k=rng.randrange(30))) for _ in range(count)]


def test_merges_through_texts_that_are_no_tokens_give_the_ids_of_llama_cpp(both: Both) -> None:
    merges = ["a b", "ab c", "q yz", "x y", "xy q", "z z", "q zz"]
    tokens = [*CHARACTERS, "abc", "zz", "xyz"]
    peer, tokenizer = both(tokens, merges, [1] * len(tokens))
    for text in texts("abcxyzq ", 2):
        assert tokenizer.encode(text) == peer.tokenize(text.encode(), add_bos=False), text


@pytest.mark.parametrize("kind", range(1, 6))
@pytest.mark.parametrize("name", ["<|im_end|>", "</s>", "[e~[", "<unk>", "[PAD151669]", "plain"])
def test_texts_of_tokens_are_those_of_llama_cpp(
    both: Both, llama: Any, name: str, kind: int
) -> None:
    peer, tokenizer = both([*CHARACTERS, name], ["a b"], [1] * 256 + [kind])
    buffer = ctypes.create_string_buffer(99)
    vocabulary = llama.llama_model_get_vocab(peer._model.model)
    n = llama.llama_token_to_piece(vocabulary, 256, buffer, len(buffer), 0, False)
    assert tokenizer.decode([256]).encode() == buffer.raw[:n]


@pytest.mark.parametrize("kind", range(1, 6))
@pytest.mark.parametrize("byte", "!aĠ")
def test_bytes_of_any_type_have_the_ids_of_llama_cpp(both: Both, byte: str, kind: int) -> None:
    tokens = [*CHARACTERS, "!!", "ab", "Ġa", "Ġ!"]
    types = [kind if token == byte else 1 for token in tokens]
    peer, tokenizer = both(tokens, ["! !", "a b", "Ġ a", "Ġ !"], types)
    for text in texts("!ab ", 3, 300):
        if kind != 4:  # names of user-defined tokens are read in every text there
            expected = peer.tokenize(text.encode(), add_bos=False, special=False)
            assert tokenizer.encode(text) == expected, text
        if byte != "Ġ":  # which is read where its name stands, and not for the space it is
            expected = peer.tokenize(text.encode(), add_bos=False, special=True)
            assert tokenizer.encode(text, parse_special=True) == expected, text


@pytest.mark.parametrize("kind", [1, 4, 5])
def test_results_of_merges_of_any_type_have_the_ids_of_llama_cpp(both: Both, kind: int) -> None:
    tokens = [*CHARACTERS, "!!", "ab", "Ġa", "aba"]
    peer, tokenizer = both(tokens, ["! !", "a b", "Ġ a", "ab a"], [1] * 256 + 4 * [kind])
    for text in texts("!ab ", 4, 300):
        if kind != 4:
            assert tokenizer.encode(text) == peer.tokenize(text.encode(), add_bos=False), text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_missing_bytes_of_no_text_change_no_ids(both: Both) -> None:
    alphabet = byte_characters()
    absent = {0xC0, 0xC1, *range(0xF5, 0x100)}
    tokens = [c for c in CHARACTERS if alphabet[c] not in absent]
    peer, tokenizer = both(tokens, ["a b"], [1] * len(tokens))
    for text in texts("aé中 \U0001f333\u00ff", 5, 300):
        assert tokenizer.encode(text) == peer.tokenize(text.encode(), add_bos=False), text
