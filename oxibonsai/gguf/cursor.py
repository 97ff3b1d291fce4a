"""A bounded cursor over the bytes of a GGUF file.

Every length and count is compared with the bytes left in the file before memory is allocated, so
reading takes at most a small multiple of the file's size.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, overload

import numpy as np

from oxibonsai.gguf.errors import GGUFError
from oxibonsai.gguf.types import NUMPY_TYPES, ValueType

__all__ = ["Cursor", "Strings"]

_CUT: Final = "it is cut short or damaged, download it again"

_MAX_DEPTH: Final = 4
_SCALARS: Final = {
    kind: struct.Struct("<" + char)
    for kind, char in {
        ValueType.U8: "B",
        ValueType.I8: "b",
        ValueType.U16: "H",
        ValueType.I16: "h",
        ValueType.U32: "I",
        ValueType.I32: "i",
        ValueType.F32: "f",
        ValueType.BOOL: "?",
        ValueType.U64: "Q",
        ValueType.I64: "q",
        ValueType.F64: "d",
    }.items()
}
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


class Strings(Sequence[str]):
    """The strings of a metadata array, decoded on access.

    Bytes that are not UTF-8 become lone surrogates (``errors="surrogateescape"``), so encoding a
    string the same way gives its bytes back; `raw` returns them directly.

    Parameters
    ----------
    raw : bytes
        The strings as a file holds them, each after its length in 8 bytes.
    bounds : array of int
        Byte offset in `raw` of each string's length, then the length of `raw`.
    """

    __slots__ = ("_bounds", "_list", "_raw")

    def __init__(self, raw: bytes, bounds: array[int]) -> None:
        # String i is raw[bounds[i] + 8 : bounds[i + 1]], after its length of 8 bytes.
        self._raw = raw
        self._bounds = bounds
        self._list: list[str] | None = None

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def raw(self, index: int) -> bytes:
        """Return the bytes of a string.

        Parameters
        ----------
        index : int
            Number of the string, from 0; negative numbers are not taken.

        Returns
        -------
        bytes
            As the file holds them.

        Raises
        ------
        IndexError
            If there is no string `index`.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"string {index} of an array of {len(self)}")
        return self._raw[self._bounds[index] + 8 : self._bounds[index + 1]]

    @property
    def packed(self) -> bytes:
        """All strings, each after its length in 8 bytes: what the file holds (bytes)."""
        return self._raw

    def tolist(self) -> list[str]:
        """Return all strings.

        Returns
        -------
        list of str
            A new list.
        """
        if self._list is None:
            raw, bounds = self._raw, self._bounds
            self._list = [
                raw[a + 8 : b].decode("utf-8", "surrogateescape") for a, b in pairwise(bounds)
            ]
        return self._list.copy()

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.raw(index + len(self) if index < 0 else index).decode(
            "utf-8", "surrogateescape"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return self._raw == other._raw
        if isinstance(other, (list, tuple)):
            return len(self) == len(other) and self.tolist() == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} strings: {', '.join(map(repr, self[:3]))}{', ...' * (len(self) > 3)}>"


class Cursor:
    """Read little-endian values in order from a buffer, never past its end.

    Each method that reads takes `what`, the name of the thing in error texts, moves `pos` past what
    it returns, and raises GGUFError where the file ends before it or holds no valid value.

    Parameters
    ----------
    buffer : mmap or bytes
        The whole file.
    size : int
        Bytes of the file.
    path : str
        The file's name, for error texts.

    Attributes
    ----------
    size : int
        Bytes of the file.
    path : str
        The file's name.
    pos : int
        Byte offset of the next value.
    """

    def __init__(self, buffer: Any, size: int, path: str) -> None:
        self._buffer = buffer
        self.size = size
        self.path = path
        self.pos = 0

    def error(self, text: str) -> GGUFError:
        """Return a GGUFError with `text` after the file's name."""
        return GGUFError(f"{self.path}: {text}")

    def need(self, count: int, item_bytes: int, what: str) -> None:
        """Check that items fit in the rest of the file.

        Parameters
        ----------
        count, item_bytes : int
            How many items there are, and the least bytes that one takes.
        what : str
            Name of the items in the error text.

        Raises
        ------
        GGUFError
            If fewer than ``count * item_bytes`` bytes are left.
        """
        left = self.size - self.pos
        if count * item_bytes > left:
            raise self.error(
                f"{what} at offset {self.pos} needs {count * item_bytes} bytes "
                f"({count} x {item_bytes}), but the file of {self.size} bytes has {left} left: "
                f"{_CUT}"
            )

    def take(self, count: int, what: str) -> bytes:
        """Return a copy of the next `count` bytes (bytes)."""
        self.need(count, 1, what)
        self.pos += count
        return bytes(self._buffer[self.pos - count : self.pos])

    def u32(self, what: str) -> int:
        """Return the next 32-bit unsigned integer."""
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        """Return the next 64-bit unsigned integer."""
        return int(_U64.unpack(self.take(8, what))[0])

    def name(self, what: str) -> str:
        """Return the next string: a key or the name of a tensor, which must be UTF-8."""
        raw = self.take(self.u64(f"the length of {what}"), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as e:
            raise self.error(
                f"{what} is not UTF-8: byte 0x{raw[e.start]:02x} at {e.start} of {raw[:64]!r}"
            ) from None

    def value_type(self, what: str) -> ValueType:
        """Return the next 32-bit integer as a value type."""
        number = self.u32(f"the type of {what}")
        try:
            return ValueType(number)
        except ValueError:
            raise self.error(
                f"{what} has value type {number}; types are 0 to {max(ValueType).value}"
            ) from None

    def value(self, kind: ValueType, what: str) -> Any:
        """Return the next value of type `kind`, which is not ARRAY, as bool, int, float or str."""
        if kind is ValueType.STRING:
            raw = self.take(self.u64(f"the length of {what}"), what)
            return raw.decode("utf-8", "surrogateescape")
        scalar = _SCALARS[kind]
        raw = self.take(scalar.size, what)
        if kind is ValueType.BOOL and raw[0] > 1:
            raise self.error(f"{what} is a bool of value {raw[0]}; it must be 0 or 1")
        return scalar.unpack(raw)[0]

    def array(self, what: str, depth: int = 1) -> tuple[ValueType, Any]:
        """Return the next array.

        Parameters
        ----------
        what : str
            Name of the array in error texts.
        depth : int
            1 for an array that is in no other, 2 for its elements, and so on.

        Returns
        -------
        kind : ValueType
            Type of the elements.
        elements : Strings, ndarray or list
            Strings as `Strings`, numbers and bools as a read-only 1-D array, arrays as a list.

        Raises
        ------
        GGUFError
            If the file ends before the array does, a bool is neither 0 nor 1, or arrays nest too
            deep.
        """
        if depth > _MAX_DEPTH:
            raise self.error(f"{what} nests arrays deeper than {_MAX_DEPTH}")
        kind = self.value_type(f"the elements of {what}")
        count = self.u64(f"the element count of {what}")
        if kind is ValueType.STRING:
            return kind, self._strings(count, what)
        if kind is ValueType.ARRAY:
            self.need(count, 12, what)
            return kind, [self.array(f"{what}[{i}]", depth + 1)[1] for i in range(count)]
        dtype = NUMPY_TYPES[kind]
        self.need(count, dtype.itemsize, what)
        raw = self.take(count * dtype.itemsize, what)
        if kind is ValueType.BOOL:
            bad = np.flatnonzero(np.frombuffer(raw, np.uint8) > 1)
            if bad.size:
                i = int(bad[0])
                raise self.error(f"{what}[{i}] is a bool of value {raw[i]}; it must be 0 or 1")
        return kind, np.frombuffer(raw, dtype)

    def _strings(self, count: int, what: str) -> Strings:
        self.need(count, 8, what)
        buffer, size, start = self._buffer, self.size, self.pos
        unpack = _U64.unpack_from
        pos = start
        bounds = array("Q", [0])
        append = bounds.append
        for i in range(count):
            if pos + 8 > size:
                raise self.error(
                    f"{what} has {count} strings, but the file of {size} bytes ends before string "
                    f"{i} at offset {pos}: {_CUT}"
                )
            (length,) = unpack(buffer, pos)
            pos += 8 + length
            if pos > size:
                raise self.error(
                    f"{what}[{i}] at offset {pos - length} needs {length} bytes, but the file of "
                    f"{size} bytes has {size - pos + length} left: {_CUT}"
                )
            append(pos - start)
        self.pos = pos
        return Strings(bytes(buffer[start:pos]), bounds)
