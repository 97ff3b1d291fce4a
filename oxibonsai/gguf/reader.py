"""Read GGUF files, trusting nothing in them.

Source: docs/gguf.md in https://github.com/ggml-org/ggml, versions 2 and 3, little-endian. A file
holds a header, metadata, tensor descriptions and the aligned tensor data, which is only mapped.
Every count, length and offset is compared with the file's size before memory is allocated.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import stat
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt

from oxibonsai.formats import FORMATS, Format
from oxibonsai.gguf.cursor import Cursor
from oxibonsai.gguf.errors import GGUFError
from oxibonsai.gguf.metadata import Metadata, read_metadata
from oxibonsai.gguf.type42 import Tensor42, parse_override, resolve
from oxibonsai.gguf.types import TYPE_42, TensorType, ValueType, tensor_type

__all__ = ["GGUFFile", "TensorInfo", "check_supported", "hadamard_keys"]

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_DEFAULT_ALIGNMENT: Final = 32
_MAX_DIMS: Final = 4
_MIN_TENSOR_BYTES: Final = 8 + 4 + 8 + 4 + 8
_HADAMARD: Final = "prism.hadamard."


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file and what it holds.

    Attributes
    ----------
    name : str
        The tensor's name.
    shape : tuple of int
        Rows first, GGUF's ``ne`` reversed: ``(n_rows, k)`` for a matrix, ``(k,)`` for a vector.
    ggml_type : int
        Type id in the file.
    type_name : str
        Name of the type, for error texts; known for more types than `format`.
    format : str or None
        Canonical name in ``oxibonsai.formats``; None where this package cannot compute with it.
    offset : int
        Bytes from the start of the file.
    nbytes : int
        Bytes of the data, without padding; for an unknown type id, bytes up to the next tensor.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    type_name: str
    format: str | None
    offset: int
    nbytes: int


@dataclass(frozen=True)
class _Described:
    """A tensor description as it stands in the file, its offset counted from the file's start."""

    name: str
    ne: tuple[int, ...]
    weights: int
    ggml_type: int
    offset: int


class GGUFFile:
    """A GGUF file, mapped read-only.

    Opening reads the metadata and the tensor descriptions. Tensor data is read only to decide which
    format type 42 stands for, a few kilobytes per tensor. If another process truncates the file
    while it is mapped, access ends this process with SIGBUS, as with any mapping.

    Parameters
    ----------
    path : str or path-like
        The file.
    type42 : {"Q2_0", "Q2_0_g128", "TQ2_0_g128"}, optional
        The format that tensor type 42 stands for in this file, for files whose data fit several;
        a name that ``oxibonsai.formats.get`` knows.

    Attributes
    ----------
    path : str
        The path as given.
    size : int
        Bytes of the file.
    version : int
        GGUF version, 2 or 3.
    alignment : int
        Alignment of tensor data in bytes.
    metadata : Metadata
        Mapping of key to value.
    tensors : dict of str to TensorInfo
        All tensors in the file's order.

    Raises
    ------
    GGUFError
        If the file is not a complete, consistent GGUF, or `type42` contradicts its data.
    ValueError
        If `type42` is no format of type 42.
    FileNotFoundError, PermissionError
        From the operating system.
    """

    def __init__(self, path: str | os.PathLike[str], *, type42: str | Format | None = None) -> None:
        self.path = os.fspath(path)
        self._map: mmap.mmap | None = None
        override = parse_override(type42)
        mode = os.stat(self.path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise GGUFError(f"{self.path} is {kind}; a GGUF file is needed")
        with open(self.path, "rb") as f:
            self.size = os.fstat(f.fileno()).st_size
            if self.size == 0:
                raise GGUFError(f"{self.path} is empty (0 bytes); a GGUF file has at least 24")
            mapping = mmap.mmap(f.fileno(), self.size, access=mmap.ACCESS_READ)
        self._map = mapping
        try:
            cursor = Cursor(mapping, self.size, self.path)
            self.version, n_tensors, n_kv = _read_header(cursor)
            self.metadata: Metadata = read_metadata(cursor, n_kv)
            self.alignment = _alignment(cursor, self.metadata)
            described = _read_descriptions(cursor, n_tensors, self.alignment)
            self.tensors = _measure(cursor, described, mapping, self.alignment, override)
            _drop_pages(mapping, 0, cursor.pos)  # all of it is copied by now
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed " if self.closed else ""
        return f"<{state}GGUFFile {self.path!r}: {len(self.tensors)} tensors, {self.size} bytes>"

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._map is None

    def close(self) -> None:
        """Give the mapping up; idempotent. Metadata and tensor descriptions stay readable.

        Views from `tensor_data` stay valid: the memory is unmapped when the last of them goes.
        """
        mapping, self._map = self._map, None
        if mapping is not None:
            # Raises BufferError while a view exists; the memory is unmapped when the last one goes.
            with contextlib.suppress(BufferError):
                mapping.close()

    def _open_map(self) -> mmap.mmap:
        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        return self._map

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise KeyError(
                f"{self.path} has no tensor {name!r} among its {len(self.tensors)}"
            ) from None

    def tensor_data(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the bytes of a tensor, without a copy.

        Parameters
        ----------
        name : str
            A key of `tensors`.

        Returns
        -------
        ndarray of uint8, shape [nbytes]
            A read-only view of the mapped file.

        Raises
        ------
        KeyError
            If the file has no such tensor.
        ValueError
            If the file is closed.
        """
        mapping = self._open_map()
        info = self._info(name)
        return np.frombuffer(mapping, np.uint8, info.nbytes, info.offset)

    def joined_data(self, name: str, *others: str) -> npt.NDArray[np.uint8]:
        """Return the bytes of tensors, one after another.

        Parameters
        ----------
        name, *others : str
            Keys of `tensors`, in the order of the result.

        Returns
        -------
        ndarray of uint8, shape [sum of nbytes]
            Read-only: a view of the mapped file where it holds the tensors in this order without
            gaps, else a copy.

        Raises
        ------
        KeyError
            If the file has no such tensor.
        ValueError
            If the file is closed.
        """
        names = (name, *others)
        infos = [self._info(name) for name in names]
        if all(a.offset + a.nbytes == b.offset for a, b in itertools.pairwise(infos)):
            nbytes = sum(info.nbytes for info in infos)
            return np.frombuffer(self._open_map(), np.uint8, nbytes, infos[0].offset)
        joined = np.concatenate([self.tensor_data(name) for name in names])
        joined.flags.writeable = False
        return joined

    def release(self, name: str) -> None:
        """Drop the pages of a tensor from memory; the next access reads them from the file again.

        Only whole pages inside the tensor are dropped. Does nothing on systems without ``madvise``.

        Parameters
        ----------
        name : str
            A key of `tensors`.

        Raises
        ------
        KeyError
            If the file has no such tensor.
        ValueError
            If the file is closed.
        """
        mapping = self._open_map()
        info = self._info(name)
        _drop_pages(mapping, info.offset, info.offset + info.nbytes)


def _drop_pages(mapping: mmap.mmap, first: int, end: int) -> None:
    """Drop the whole pages inside bytes [first, end) from memory, where the system can."""
    page = mmap.PAGESIZE
    start = -(-first // page) * page
    length = end // page * page - start
    if length > 0 and hasattr(mapping, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED, start, length)


def hadamard_keys(file: GGUFFile) -> list[str]:
    """Return the metadata keys that describe an activation transform.

    Parameters
    ----------
    file : GGUFFile
        May be closed.

    Returns
    -------
    list of str
        Keys that start with ``prism.hadamard.``; empty where the file needs no transform.
    """
    return [key for key in file.metadata if key.startswith(_HADAMARD)]


def check_supported(file: GGUFFile) -> None:
    """Check that this package can compute with the weights of a file.

    Parameters
    ----------
    file : GGUFFile
        May be closed.

    Raises
    ------
    GGUFError
        If the file needs an activation transform (`hadamard_keys`), without which its weights give
        fluent nonsense, or a tensor has a type that is not in ``oxibonsai.formats``.
    """
    keys = hadamard_keys(file)
    if keys:
        raise GGUFError(
            f"{file.path} needs an activation transform that is not built here: metadata "
            f"{', '.join(keys)}"
        )
    for info in file.tensors.values():
        if info.format is None:
            raise GGUFError(
                f"{file.path}: tensor {info.name!r} has type {info.type_name} "
                f"({info.ggml_type}); supported are {', '.join(FORMATS)}. llama-quantize gives "
                "embedding and head one of these with --token-embedding-type q8_0 "
                "--output-tensor-type q8_0"
            )


def _read_header(cursor: Cursor) -> tuple[int, int, int]:
    """Return the version and the numbers of tensors and of metadata pairs."""
    magic = cursor.take(4, "the magic")
    if magic == _MAGIC[::-1]:
        raise cursor.error("is a big-endian GGUF; only little-endian files are read")
    if magic != _MAGIC:
        raise cursor.error(f"is not a GGUF file: it starts with {magic!r}, not {_MAGIC!r}")
    version = cursor.u32("the version")
    if version not in _VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *_VERSIONS):
            raise cursor.error(
                f"is a big-endian GGUF (version reads as {version:#x}); only little-endian files "
                "are read"
            )
        raise cursor.error(f"has GGUF version {version}; versions 2 and 3 are read")
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


def _read_descriptions(cursor: Cursor, count: int, alignment: int) -> list[_Described]:
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
                f"begins at {start}), past the end of the file of {cursor.size} bytes"
            )
    return [
        _Described(name, ne, weights, ggml_type, start + offset)
        for name, ne, weights, ggml_type, offset in raw
    ]


def _measure(
    cursor: Cursor,
    described: list[_Described],
    data: mmap.mmap,
    alignment: int,
    override: Format | None,
) -> dict[str, TensorInfo]:
    """Give every tensor its format and size, and check that none overlaps or is cut off."""
    if not described:
        return {}
    order = sorted(described, key=lambda d: d.offset)
    ends = [d.offset for d in order[1:]] + [cursor.size]
    followed_by = [f"tensor {d.name!r}" for d in order[1:]] + ["the end of the file"]
    span = {d.name: end - d.offset for d, end in zip(order, ends, strict=True)}

    types: dict[str, TensorType | None] = {}
    for d in described:
        kind = tensor_type(d.ggml_type)
        smallest = 64 if d.ggml_type == TYPE_42 else kind.block_weights if kind else 1
        if d.ne[0] % smallest:
            type_name = kind.name if kind else f"{d.ggml_type}"
            raise cursor.error(
                f"tensor {d.name!r} has rows of {d.ne[0]} weights, which do not fill blocks of "
                f"{smallest} (type {type_name})"
            )
        types[d.name] = kind

    of_42 = [
        Tensor42(d.name, d.ne[0], d.weights, d.offset, span[d.name])
        for d in described
        if d.ggml_type == TYPE_42
    ]
    if of_42:
        format_of_42 = TensorType.of(resolve(of_42, data, alignment, cursor.path, override))
        types.update((t.name, format_of_42) for t in of_42)

    # The size of an unknown type is its span, at least 1 so that overlapping tensors are found.
    sizes = {
        d.name: d.weights // t.block_weights * t.block_bytes
        if (t := types[d.name])
        else max(span[d.name], 1)
        for d in described
    }
    for d, limit in zip(order, followed_by, strict=True):
        if sizes[d.name] > span[d.name]:
            raise cursor.error(
                f"tensor {d.name!r} needs {sizes[d.name]} bytes from byte {d.offset}, but {limit} "
                f"is at {d.offset + span[d.name]}, {span[d.name]} bytes on"
            )
    return {
        d.name: TensorInfo(
            name=d.name,
            shape=d.ne[::-1],
            ggml_type=d.ggml_type,
            type_name=t.name if (t := types[d.name]) else f"unknown type {d.ggml_type}",
            format=t.format if t else None,
            offset=d.offset,
            nbytes=sizes[d.name],
        )
        for d in described
    }
