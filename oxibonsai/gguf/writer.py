"""Write GGUF files, version 3, little-endian, streaming the tensor data."""

from __future__ import annotations

import math
import operator
import os
import reprlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np

from oxibonsai import formats
from oxibonsai.formats import ConvertedType, Format
from oxibonsai.gguf.cursor import Strings
from oxibonsai.gguf.errors import GGUFError
from oxibonsai.gguf.types import NUMPY_TYPES, Typed, ValueType
from oxibonsai.writing import written_whole

__all__ = ["write"]

_MAX_DIMS: Final = 4
_MAX_NAME_BYTES: Final = 63  # ggml's GGML_MAX_NAME is 64, with the zero at the end.
_BY_DTYPE: Final = {dtype: kind for kind, dtype in NUMPY_TYPES.items()}
_FLOAT_FORMATS: Final = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}


@dataclass(frozen=True)
class _Entry:
    name: str
    shape: tuple[int, ...]
    format: Format | ConvertedType
    nbytes: int
    data: Any


def write(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, Any]],
    *,
    alignment: int = 32,
) -> None:
    """Write a GGUF file, through a temporary file in the same folder that is renamed at the end.

    Parameters
    ----------
    path : str or path-like
        The file; an existing one is replaced once the new one is complete.
    metadata : mapping of str to value
        bool, str or bytes, int (as U32), float (as F32), or a list, tuple, `Strings` or NumPy
        array of them (ints in a list as I32, a NumPy array by its dtype). ``ValueType.U64(5)`` and
        ``file.metadata.typed(key)`` give other types.
    tensors : iterable of (name, tensor)
        A tensor is an object with ``.data`` (uint8), ``.shape`` and ``.format``, such as a
        ``quant.QTensor``; a float32 or float16 array; or a tuple ``(data, shape, format)``, where
        data is a bytes-like object, an iterable of such chunks, or a callable that returns either.
        Shapes are rows first; formats are named as ``oxibonsai.formats.file_type`` knows them.
        Chunks are written as they come, so a large file needs little memory.
    alignment : int
        Alignment of tensor data in bytes, a power of two and at least 8.

    Raises
    ------
    GGUFError
        If GGUF cannot hold a value, a format is unknown, a tensor has no name, or data has another
        size than its shape and format give.
    TypeError
        For an argument, a key or a tensor's name of another type.
    OSError
        If the file cannot be written; a file that was at `path` is unchanged.
    """
    alignment = _checked_alignment(alignment)
    pairs = _checked_pairs(metadata)
    named = pairs.get("general.alignment", alignment)
    told = named.value if isinstance(named, Typed) else named
    if not isinstance(told, (int, np.integer)) or told != alignment:
        raise GGUFError(f"general.alignment is {named!r}, but the file is written with {alignment}")
    if alignment != 32:
        pairs["general.alignment"] = ValueType.U32(alignment)
    entries = [_entry(*named) for named in _checked_tensors(tensors)]
    names = [e.name for e in entries]
    if len(set(names)) != len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise GGUFError(f"tensor {twice!r} is given twice")

    header = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(pairs)))
    for key, value in pairs.items():
        header += _string(key, f"metadata key {key!r}") + _value(value, f"metadata {key!r}")
    offset = 0
    for e in entries:
        header += _string(e.name, f"tensor name {e.name!r}")
        header += struct.pack(f"<I{len(e.shape)}Q", len(e.shape), *e.shape[::-1])
        header += struct.pack("<IQ", e.format.ggml_type, offset)
        offset += e.nbytes + -e.nbytes % alignment
    header += bytes(-len(header) % alignment)

    with written_whole(path) as f:
        f.write(header)
        for e in entries:
            _write_data(f, e)
            f.write(bytes(-e.nbytes % alignment))


def _checked_alignment(alignment: Any) -> int:
    if isinstance(alignment, (bool, np.bool_)) or not hasattr(alignment, "__index__"):
        raise TypeError(
            f"alignment = {reprlib.repr(alignment)} is a {type(alignment).__name__}, not an integer"
        )
    found = operator.index(alignment)
    if found < 8 or found & (found - 1):
        raise GGUFError(f"alignment is {found}; it must be a power of two and at least 8")
    return found


def _checked_pairs(metadata: Any) -> dict[str, Any]:
    if not isinstance(metadata, Mapping):
        raise TypeError(
            f"metadata = {reprlib.repr(metadata)} is a {type(metadata).__name__}, not a mapping of "
            "keys to values"
        )
    for key in metadata:
        if not isinstance(key, str):
            raise TypeError(
                f"metadata: the key {reprlib.repr(key)} is a {type(key).__name__}, not a str"
            )
    return dict(metadata)


def _checked_tensors(tensors: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tensors, (str, bytes, Mapping)) or not isinstance(tensors, Iterable):
        way = "; give its items()" if isinstance(tensors, Mapping) else ""
        raise TypeError(
            f"tensors = {reprlib.repr(tensors)} is a {type(tensors).__name__}, not an iterable of "
            f"(name, tensor){way}"
        )
    for at, named in enumerate(tensors):
        if not isinstance(named, (tuple, list)) or len(named) != 2:
            raise TypeError(f"tensors[{at}] is {reprlib.repr(named)}, not a pair (name, tensor)")
        name, value = named
        if not isinstance(name, str):
            raise TypeError(
                f"tensors[{at}]: the name {reprlib.repr(name)} is a {type(name).__name__}, "
                "not a str"
            )
        if not name:
            raise GGUFError(f"tensors[{at}]: the name is empty; give the tensor one")
        yield name, value


def _entry(name: str, value: Any) -> _Entry:
    what = f"tensor {name!r}"
    length = len(_string(name, what)) - 8
    if length > _MAX_NAME_BYTES:
        raise GGUFError(
            f"{what} has a name of {length} bytes; ggml's readers take {_MAX_NAME_BYTES}: "
            "shorten it"
        )
    if isinstance(value, tuple):
        if len(value) != 3:
            raise GGUFError(f"{what} is a tuple of {len(value)}; (data, shape, format) is needed")
        data, shape, format_name = value
    elif isinstance(value, np.ndarray):
        if value.dtype not in _FLOAT_FORMATS:
            raise GGUFError(
                f"{what} is an array of {value.dtype}; float32 and float16 are written as they "
                "are, packed bytes as (data, shape, format)"
            )
        data, shape, format_name = value, value.shape, _FLOAT_FORMATS[value.dtype]
        data = data.astype(data.dtype.newbyteorder("<"), copy=False)
    elif all(hasattr(value, a) for a in ("data", "shape", "format")):
        data, shape, format_name = value.data, value.shape, value.format
    else:
        raise GGUFError(
            f"{what} is a {type(value).__name__}; a QTensor, a float32 array or "
            "(data, shape, format) is needed"
        )
    try:
        fmt = formats.file_type(format_name)
    except ValueError as e:
        raise GGUFError(f"{what}: {e}") from None
    try:
        shape = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(
            f"{what} has shape {reprlib.repr(shape)}; a tuple of integers is needed"
        ) from None
    if not 1 <= len(shape) <= _MAX_DIMS or min(shape) < 1 or math.prod(shape) >= 2**63:
        raise GGUFError(
            f"{what} has shape {shape}; 1 to {_MAX_DIMS} dimensions of at least 1 with a product "
            "under 2**63 are needed"
        )
    if shape[-1] % fmt.block_weights:
        raise GGUFError(
            f"{what} has rows of {shape[-1]} weights, which do not fill blocks of "
            f"{fmt.block_weights} ({fmt.name})"
        )
    nbytes = math.prod(shape[:-1]) * fmt.row_bytes(shape[-1])
    return _Entry(name, shape, fmt, nbytes, data)


def _write_data(f: BinaryIO, e: _Entry) -> None:
    data = e.data() if callable(e.data) else e.data
    written = 0
    if not _is_bytes(data) and not isinstance(data, Iterable):
        raise TypeError(
            f"tensor {e.name!r} has data of type {type(data).__name__}; bytes, an array or an "
            "iterable of them is needed"
        )
    for chunk in [data] if _is_bytes(data) else data:
        if isinstance(chunk, np.ndarray):
            view = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
        else:
            view = memoryview(chunk).cast("B")
        written += view.nbytes
        if written > e.nbytes:
            break
        f.write(view)
    if written != e.nbytes:
        more = "at least " if written > e.nbytes else ""
        raise GGUFError(
            f"tensor {e.name!r} has {more}{written} bytes of data; shape {e.shape} in "
            f"{e.format.name} is {e.nbytes}"
        )


def _is_bytes(data: Any) -> bool:
    if isinstance(data, np.ndarray):
        return True
    try:
        memoryview(data)
    except TypeError:
        return False
    return True


def _string(text: str | bytes, what: str) -> bytes:
    try:
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as e:
        raise GGUFError(
            f"{what} holds the surrogate U+{ord(e.object[e.start]):04X} at {e.start}, which UTF-8 "
            "cannot hold"
        ) from None
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any, what: str) -> bytes:
    """Return a metadata value as a file holds it: the type id, then the bytes."""
    kind: ValueType | None = None
    if isinstance(value, Typed):
        kind, value = value.type, value.value
    if isinstance(value, (list, tuple, np.ndarray, Strings)):
        return struct.pack("<I", ValueType.ARRAY) + _array(value, kind, what)
    if kind is None:
        kind = _scalar_type(value, what)
    return struct.pack("<I", kind) + _scalar(value, kind, what)


def _scalar_type(value: Any, what: str) -> ValueType:
    if isinstance(value, np.generic) and value.dtype in _BY_DTYPE:
        return _BY_DTYPE[value.dtype]
    for cls, kind in (
        (bool, ValueType.BOOL),
        (int, ValueType.U32),
        (float, ValueType.F32),
        ((str, bytes), ValueType.STRING),
    ):
        if isinstance(value, cls):
            return kind
    raise GGUFError(f"{what} is a {type(value).__name__}; bool, int, float, str or a list of them")


def _scalar(value: Any, kind: ValueType, what: str) -> bytes:
    if kind is ValueType.STRING:
        if not isinstance(value, (str, bytes)):
            raise GGUFError(f"{what} is a {type(value).__name__}; a str is needed")
        return _string(value, what)
    return _numbers([value], kind, what)


def _array(value: Any, kind: ValueType | None, what: str) -> bytes:
    if isinstance(value, Strings):
        return struct.pack("<IQ", ValueType.STRING, len(value)) + value.packed
    if kind is None:
        kind = _element_type(value, what)
    head = struct.pack("<IQ", kind, len(value))
    if kind is ValueType.STRING:
        return head + b"".join(_scalar(s, kind, f"{what}[{i}]") for i, s in enumerate(value))
    if kind is ValueType.ARRAY:
        return head + b"".join(_array(a, None, f"{what}[{i}]") for i, a in enumerate(value))
    return head + _numbers(value, kind, what)


def _element_type(value: Any, what: str) -> ValueType:
    if isinstance(value, np.ndarray):
        if value.ndim == 1 and value.dtype in _BY_DTYPE:
            return _BY_DTYPE[value.dtype]
        raise GGUFError(f"{what} is an array of {value.dtype}, {value.ndim} dimensions")
    if not value:
        raise GGUFError(f"{what} is an empty list; give its type, such as ValueType.STRING([])")
    if all(isinstance(v, (list, tuple, np.ndarray, Strings)) for v in value):
        return ValueType.ARRAY
    kinds = {_scalar_type(v, f"{what}[{i}]") for i, v in enumerate(value)}
    if len(kinds) != 1:
        names = ", ".join(sorted(k.name for k in kinds))
        raise GGUFError(f"{what} mixes {names}; the elements of an array have one type")
    kind = kinds.pop()
    return ValueType.I32 if kind is ValueType.U32 else kind


def _numbers(values: Any, kind: ValueType, what: str) -> bytes:
    dtype = NUMPY_TYPES.get(kind)
    if dtype is None:
        raise GGUFError(f"{what} cannot be written as {kind.name}")
    try:
        given = np.asarray(values)
    except ValueError:  # lists of other lengths in a list
        raise GGUFError(f"{what} cannot be written as {kind.name}") from None
    same_kind = {"b": "b", "i": "iu", "u": "iu", "f": "fiu"}[dtype.kind]
    if given.size and given.dtype.kind not in same_kind:
        raise GGUFError(f"{what} holds {given.dtype}, not {kind.name}")
    if given.size and dtype.kind in "iu":
        limit = np.iinfo(dtype)
        low, high = int(given.min()), int(given.max())
        if low < limit.min or high > limit.max:
            raise GGUFError(
                f"{what} is {low if low < limit.min else high}; {kind.name} holds {limit.min} to "
                f"{limit.max}: name a wider type, such as ValueType.I64(...)"
            )
    return given.astype(dtype).tobytes()
