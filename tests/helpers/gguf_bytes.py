"""Build GGUF files byte by byte, so that tests can write what no writer would."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

U32, BOOL, STRING, ARRAY = 4, 7, 8, 9


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, elements: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + elements


@dataclass
class Tensor:
    name: str | bytes
    ne: tuple[int, ...]
    type: int
    data: bytes = b""
    offset: int | None = None
    n_dims: int | None = None


@dataclass
class Raw:
    """A file in parts; whatever is set is written as it is, right or wrong."""

    pairs: list[bytes] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_pairs: int | None = None
    alignment: int = 32
    pad_last: bool = True

    def build(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_pairs = len(self.pairs) if self.n_pairs is None else self.n_pairs
        out = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_pairs)
        out += b"".join(self.pairs)
        data = b""
        for t in self.tensors:
            data += bytes(-len(data) % self.alignment)
            offset = len(data) if t.offset is None else t.offset
            n_dims = len(t.ne) if t.n_dims is None else t.n_dims
            out += string(t.name) + struct.pack(f"<I{len(t.ne)}Q", n_dims, *t.ne)
            out += struct.pack("<IQ", t.type, offset)
            data += t.data
        if self.pad_last:
            data += bytes(-len(data) % self.alignment)
        return out + bytes(-len(out) % self.alignment) + data
