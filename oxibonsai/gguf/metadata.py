"""The metadata of a GGUF file as a mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from oxibonsai.gguf.cursor import Cursor
from oxibonsai.gguf.types import Typed, ValueType

__all__ = ["Metadata"]

_MIN_PAIR_BYTES = 8 + 4 + 1
_SHOWN = 96


class Metadata(Mapping[str, Any]):
    """Keys and values of a file, in the file's order.

    Values are bool, int, float or str; an array is a `Strings` sequence, a read-only NumPy array,
    or a list of those where arrays nest. They stay valid after the file is closed.

    Parameters
    ----------
    values : dict of str to value
        The value of each key.
    types : dict of str to ValueType
        The type of each value in the file; for an array, that of its elements.
    """

    def __init__(self, values: dict[str, Any], types: dict[str, ValueType]) -> None:
        self._values = values
        self._types = types

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Metadata({self._values!r})"

    def typed(self, key: str) -> Typed:
        """Return a value with its type in the file, as `write` takes it.

        Parameters
        ----------
        key : str
            A key of the mapping.

        Returns
        -------
        Typed
            The value and its type.

        Raises
        ------
        KeyError
            If there is no such key.
        """
        return Typed(self._types[key], self._values[key])


def read_metadata(cursor: Cursor, count: int) -> Metadata:
    """Read the metadata of a file.

    Parameters
    ----------
    cursor : Cursor
        At the first key; it is left after the last value.
    count : int
        Pairs of key and value in the file.

    Returns
    -------
    Metadata
        All pairs.

    Raises
    ------
    GGUFError
        If the file ends before the metadata does, a key comes twice, or a value is not valid.
    """
    cursor.need(count, _MIN_PAIR_BYTES, "the metadata")
    values: dict[str, Any] = {}
    types: dict[str, ValueType] = {}
    for i in range(count):
        key = cursor.name(f"metadata key {i}")
        # Shortened: an array of arrays makes a name from it for each.
        what = f"metadata {key if len(key) <= _SHOWN else key[:_SHOWN] + '...'!r}"
        if key in values:
            raise cursor.error(f"{what} appears twice, the second time as key {i}")
        kind = cursor.value_type(what)
        if kind is ValueType.ARRAY:
            kind, values[key] = cursor.array(what)
        else:
            values[key] = cursor.value(kind, what)
        types[key] = kind
    return Metadata(values, types)
