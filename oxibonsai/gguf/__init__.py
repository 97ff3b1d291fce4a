"""Read and write GGUF files: a bounded, memory-mapped reader and a streaming writer.

>>> with gguf.open("alice-q1_0.gguf") as file:
...     file.metadata["general.architecture"], file.tensors["output_norm.weight"].shape
('qwen3', (512,))
"""

from __future__ import annotations

from oxibonsai.gguf.cursor import Strings
from oxibonsai.gguf.errors import GGUFError
from oxibonsai.gguf.metadata import Metadata
from oxibonsai.gguf.missing import GGUFNotFoundError
from oxibonsai.gguf.reader import GGUFFile, check_supported, hadamard_keys
from oxibonsai.gguf.tensors import TensorInfo
from oxibonsai.gguf.type42 import FORMATS_OF_42
from oxibonsai.gguf.types import Typed, ValueType
from oxibonsai.gguf.writer import write

open = GGUFFile

__all__ = [
    "FORMATS_OF_42",
    "GGUFError",
    "GGUFFile",
    "GGUFNotFoundError",
    "Metadata",
    "Strings",
    "TensorInfo",
    "Typed",
    "ValueType",
    "check_supported",
    "hadamard_keys",
    "open",
    "write",
]
