"""Synthetic vocabularies of real sizes, with as many merges."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from oxibonsai import gguf

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
ENDOFTEXT, IM_START, IM_END = CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def vocabulary(size: int, specials: Sequence[str], n_unused: int) -> tuple[list[str], list[str]]:
    """Return `size` tokens, and the merges that make all but bytes, special and unused ones.

    The special tokens come behind all others, then those that no text uses.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    pairs = [(a, b) for a in characters for b in characters]
    triples = ((a + b, c) for a, b in pairs for c in characters)
    made = size - len(characters) - len(specials) - n_unused
    if made < 0:
        raise SystemExit(f"--vocab {size} is too small: at least {size - made} are needed")
    merges = list(itertools.islice(itertools.chain(pairs, triples), made))
    tokens = characters + [a + b for a, b in merges] + list(specials)
    tokens += [f"[PAD{i}]" for i in range(len(tokens), size)]
    return tokens, [f"{a} {b}" for a, b in merges]


def tokenizer(
    size: int,
    pre: str,
    *,
    controls: Sequence[str] = CHATML,
    user_defined: Sequence[str] = (),
    n_unused: int = 0,
) -> dict[str, Any]:
    """Return the metadata of a byte-level tokenizer whose turns end with ``<|im_end|>``."""
    tokens, merges = vocabulary(size, [*controls, *user_defined], n_unused)
    types = [NORMAL] * (size - len(controls) - len(user_defined) - n_unused)
    types += [CONTROL] * len(controls) + [USER_DEFINED] * len(user_defined) + [UNUSED] * n_unused
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": merges or gguf.ValueType.STRING([]),
        "tokenizer.ggml.bos_token_id": tokens.index(ENDOFTEXT),
        "tokenizer.ggml.eos_token_id": tokens.index(IM_END),
        "tokenizer.ggml.padding_token_id": tokens.index(ENDOFTEXT),
        "tokenizer.ggml.add_bos_token": False,
    }
