"""Every name of a split into words that files may have: the ids of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import qwen3_texts
from model_files import Q1_MODEL
from peers import import_peer
from tiny_models import Tiny, random_tensors, write

from oxibonsai import gguf
from oxibonsai.model.splits import SPLITS
from oxibonsai.model.tokenizer import Tokenizer

MISSING = "no name"


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, Any]:
    """The demo model's, which has merges of words and spaces."""
    with gguf.open(Q1_MODEL) as file:
        keys = [key for key in file.metadata if key.startswith("tokenizer.")]
        return {key: file.metadata.typed(key) for key in keys}


@pytest.mark.parametrize("pre", [*SPLITS, MISSING])
def test_600_texts_have_the_ids_of_llama_cpp(tmp_path: Path, vocabulary: Any, pre: str) -> None:
    llama_cpp = import_peer("llama_cpp")
    given = {**vocabulary, "tokenizer.ggml.pre": None if pre == MISSING else pre}
    with gguf.open(Q1_MODEL) as file:
        n_tokens = len(file.metadata["tokenizer.ggml.tokens"])
    tiny = Tiny(n_layers=1, vocab=n_tokens)
    path = write(tmp_path / "model.gguf", tiny, random_tensors(tiny), given)
    with gguf.open(path) as file:
        ours = Tokenizer.from_gguf(file)
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    unlike = [
        text
        for kind in qwen3_texts.COUNTS
        for text in qwen3_texts.texts(kind)
        if ours.encode(text) != theirs.tokenize(text.encode(), add_bos=False, special=False)
    ]
    theirs.close()
    assert unlike == []
