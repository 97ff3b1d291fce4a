"""One file of a model: its header, metadata and tensor descriptions, bounded by its size."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from dataclasses import dataclass
from typing import BinaryIO, Final

from oxibonsai.gguf.cursor import Cursor
from oxibonsai.gguf.errors import GGUFError
from oxibonsai.gguf.foreign import HEAD_BYTES, describe, describe_folder
from oxibonsai.gguf.metadata import Metadata, read_metadata
from oxibonsai.gguf.missing import explain_missing
from oxibonsai.gguf.types import ValueType

__all__ = ["Described", "Part"]

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_DEFAULT_ALIGNMENT: Final = 32
_MAX_DIMS: Final = 4
_LITTLE: Final = "only little-endian files are read: convert it with gguf-py's gguf_convert_endian"
_MIN_TENSOR_BYTES: Final = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class Described:
    """A tensor description as it stands in a file, its offset counted from the file's start.

    Attributes
    ----------
    name : str
        The tensor's name.
    ne : tuple of int
        Dimensions, the length of a row first.
    weights : int
        Their product.
    ggml_type, offset : int
        Type id, and first byte of the data.
    """

    name: str
    ne: tuple[int, ...]
    weights: int
    ggml_type: int
    offset: int


class Part:
    """A GGUF file, mapped read-only, up to its tensor descriptions.

    Parameters
    ----------
    path : str
        The file.

    Attributes
    ----------
    path : str
        As given.
    size, version, alignment : int
        Bytes of the file, GGUF version, and alignment of tensor data.
    metadata : Metadata
        Keys and values.
    described : list of Described
        Tensors in the file's order.

    Raises
    ------
    GGUFError
        For a file that is no complete GGUF; the message says what it is where that is known.
    FileNotFoundError, PermissionError
        From the operating system.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        with _open_regular(path) as f:
            self.size = os.fstat(f.fileno()).st_size
            if self.size == 0:
                raise GGUFError(
                    f"{path} is empty (0 bytes); a GGUF file has at least 24: download it again"
                )
            self._map = mmap.mmap(f.fileno(), self.size, access=mmap.ACCESS_READ)
        try:
            cursor = Cursor(self._map, self.size, path)
            self.version, n_tensors, n_kv = _read_header(cursor, self._map[:HEAD_BYTES])
            self.metadata: Metadata = read_metadata(cursor, n_kv)
            self.alignment = _alignment(cursor, self.metadata)
            self.described = _read_descriptions(cursor, n_tensors, self.alignment)
            self.release(0, cursor.pos)  # all of it is copied by now
        except BaseException:
            self.close()
            raise

    @property
    def data(self) -> mmap.mmap:
        """The file's bytes; ValueError where the part is closed."""
        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        return self._map

    def release(self, first: int, end: int) -> None:
        """Drop the whole pages inside bytes [first, end) from memory, where the system can."""
        page = mmap.PAGESIZE
        start = -(-first // page) * page
        length = end // page * page - start
        if length > 0 and hasattr(mmap.mmap, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED, start, length)

    def close(self) -> None:
        """Give the mapping up; idempotent."""
        mapping, self._map = self._map, None
        if mapping is not None:
            # Raises BufferError while a view exists; the memory is unmapped when the last one goes.
            with contextlib.suppress(BufferError):
                mapping.close()


def _open_regular(path: str) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        explained = explain_missing(path)
        if explained is not None:
            raise explained from None
        raise
    if stat.S_ISDIR(mode):
        raise GGUFError(f"{path} is a directory; a GGUF file is needed{describe_folder(path)}")
    if not stat.S_ISREG(mode):
        raise GGUFError(f"{path} is not a regular file; a GGUF file is needed")
    return open(path, "rb")


def _read_header(cursor: Cursor, head: bytes) -> tuple[int, int, int]:
    """Return the version and the numbers of tensors and of metadata pairs."""
    if not head.startswith((_MAGIC, _MAGIC[::-1])):
        found = describe(head, cursor.size, cursor.path)
        if found is not None:
            raise cursor.error(f"is not a GGUF file: it is {found}")
    magic = cursor.take(4, "the magic")
    if magic == _MAGIC[::-1]:
        raise cursor.error(f"is a big-endian GGUF; {_LITTLE}")
    if magic != _MAGIC:
        raise cursor.error(f"is not a GGUF file: it starts with {magic!r}, not {_MAGIC!r}")
    version = cursor.u32("the version")
    if version not in _VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *_VERSIONS):
            raise cursor.error(f"is a big-endian GGUF (version reads as {version:#x}); {_LITTLE}")
        raise cursor.error(
            f"has GGUF version {version}; versions 2 and 3 are read: convert the model again"
        )
    return version, cursor.u64("the tensor count"), cursor.u64("the metadata count")


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    if "general.alignment" not in metadata:
        return _DEFAULT_ALIGNMENT
    typed = metadata.typed("general.alignment")
    value = typed.value
    if typed.type not in (ValueType.U32, ValueType.U64) or not isinstance(value, int):
        raise cursor.error(
            f"general.alignment is {value!r} of type {typed.type.name}; it must be a U32"
        )
    if value < 8 or value & (value - 1):
        raise cursor.error(
            f"general.alignment is {value}; it must be a power of two and a multiple of 8"
        )
    return value


def _read_descriptions(cursor: Cursor, count: int, alignment: int) -> list[Described]:
    """Read `count` tensor descriptions and make their offsets count from the file's start."""
    cursor.need(count, _MIN_TENSOR_BYTES, "the tensor descriptions")
    raw: list[tuple[str, tuple[int, ...], int, int, int]] = []
    seen: set[str] = set()
    for i in range(count):
        name = cursor.name(f"tensor name {i}")
        what = f"tensor {name!r}"
        if name in seen:
            raise cursor.error(f"{what} appears twice, the second time as tensor {i}")
        seen.add(name)
        n_dims = cursor.u32(f"the dimension count of {what}")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise cursor.error(f"{what} has {n_dims} dimensions; 1 to {_MAX_DIMS} are allowed")
        ne = tuple(cursor.u64(f"dimension {d} of {what}") for d in range(n_dims))
        weights = 1
        for d, n in enumerate(ne):
            if n == 0:
                raise cursor.error(f"{what} has dimension {d} of 0; every dimension is at least 1")
            weights *= n
        if weights >= 2**63:
            raise cursor.error(
                f"{what} has dimensions {ne} with a product of {weights}; the limit is 2**63 - 1"
            )
        ggml_type = cursor.u32(f"the type of {what}")
        offset = cursor.u64(f"the offset of {what}")
        if offset % alignment:
            raise cursor.error(
                f"{what} has offset {offset}, not a multiple of the alignment {alignment}"
            )
        raw.append((name, ne, weights, ggml_type, offset))
    start = -(-cursor.pos // alignment) * alignment
    for name, _, _, _, offset in raw:
        if start + offset >= cursor.size:
            raise cursor.error(
                f"tensor {name!r} starts at byte {start + offset} (offset {offset} in data that "
                f"begins at {start}), past the end of the file of {cursor.size} bytes: it is "
                "cut short, download it again"
            )
    return [
        Described(name, ne, weights, ggml_type, start + offset)
        for name, ne, weights, ggml_type, offset in raw
    ]
