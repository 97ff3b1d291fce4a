"""Qwen3's vocabulary in a file, and those who read it, made once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import qwen3
from peers import import_peer

from oxibonsai import gguf
from oxibonsai.model import Model
from oxibonsai.model.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def qwen3_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    qwen3.require_qwen3()
    return qwen3.write_qwen3(tmp_path_factory.mktemp("qwen3") / "qwen3.gguf")


@pytest.fixture(scope="session")
def qwen3_model(qwen3_file: Path) -> Iterator[Model]:
    with Model.load(qwen3_file, "cpu", nfc=True) as model:
        yield model


@pytest.fixture(scope="session")
def ours(qwen3_file: Path) -> Tokenizer:
    """As the other programs that read these files do: text is not normalised."""
    with gguf.open(qwen3_file) as file:
        return Tokenizer.from_gguf(file)


@pytest.fixture(scope="session")
def ours_nfc(qwen3_file: Path) -> Tokenizer:
    with gguf.open(qwen3_file) as file:
        return Tokenizer.from_gguf(file, nfc=True)


@pytest.fixture(scope="session")
def llama(qwen3_file: Path) -> Iterator[Any]:
    """llama.cpp with the vocabulary alone."""
    llama_cpp = import_peer("llama_cpp")
    model = llama_cpp.Llama(str(qwen3_file), vocab_only=True, verbose=False)
    yield model
    model.close()


@pytest.fixture(scope="session")
def hugging_face() -> Any:
    """Hugging Face's tokenizers."""
    return import_peer("tokenizers").Tokenizer.from_file(
        str(qwen3.require_qwen3() / "tokenizer.json")
    )


@pytest.fixture(scope="session")
def transformers_tokenizer() -> Any:
    return import_peer("transformers").AutoTokenizer.from_pretrained(qwen3.require_qwen3())
