"""Files that are a tokenizer of bytes and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oxibonsai import gguf
from oxibonsai.model.tokenizer import Tokenizer


def byte_tokens() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def file_with(tmp_path: Path, **changes: Any) -> Path:
    """Write the file, with further metadata or without what is None; `__` stands for a point."""
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": byte_tokens(),
        "tokenizer.ggml.merges": gguf.ValueType.STRING([]),
    }
    metadata |= {f"tokenizer.{k.replace('__', '.')}": v for k, v in changes.items()}
    path = tmp_path / "m.gguf"
    gguf.write(path, {k: v for k, v in metadata.items() if v is not None}, [])
    return path


def read(tmp_path: Path, **changes: Any) -> Tokenizer:
    with gguf.open(file_with(tmp_path, **changes)) as file:
        return Tokenizer.from_gguf(file)
