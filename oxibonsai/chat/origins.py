"""Where what a template prints came from, and numbers that know it."""

# mypy: disable-error-code="misc"

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

__all__ = ["DATA", "LITERAL", "UNKNOWN", "Range", "number", "number_origin"]

LITERAL: Final = 0
"""Written in the template, or a name that the model's file gives to it."""
DATA: Final = 1
"""Given by messages, tools, documents and variables, or printed from their values."""
UNKNOWN: Final = 2
"""Made by an operation that does not say where its characters came from."""

_TWO: Final = ("add", "sub", "mul", "floordiv", "mod", "truediv")
_TWO_INTS: Final = ("and", "or", "xor", "lshift", "rshift")
_ONE: Final = ("neg", "pos", "abs", "round", "trunc", "floor", "ceil")


def number(value: Any, origin: int) -> Any:
    """Return a number with its origin; UNKNOWN is that of numbers without any.

    It equals the plain number, has its hash and looks like it. What is calculated from it has an
    origin as well: DATA if any operand has, and LITERAL if all have.
    """
    if origin == UNKNOWN:
        return value
    return _CLASSES[int if isinstance(value, int) else float, origin](value)


def number_origin(value: Any) -> int:
    """Return the origin of a number."""
    return _ORIGINS.get(type(value), UNKNOWN)


def _kept(result: Any, *operands: Any) -> Any:
    if type(result) is not int and type(result) is not float:
        return result
    return number(result, _common(*operands))


def _common(*numbers: Any) -> int:
    found = {number_origin(value) for value in numbers}
    return DATA if DATA in found else max(found)


def _keeping(base: type, name: str) -> Callable[..., Any]:
    method = getattr(base, name)

    def call(self: Any, *others: Any) -> Any:
        # Digits to round to, and a third operand of pow(), are operands too.
        return _kept(method(self, *others), self, *others)

    return call


def _class(base: type) -> type:
    names = [f"__{name}__" for name in _ONE]
    for two in (*_TWO, "pow", *(_TWO_INTS if base is int else ())):
        names += [f"__{two}__", f"__r{two}__"]
    methods = {name: _keeping(base, name) for name in names}
    # The name is in messages of errors.
    return type(base.__name__, (base,), {"__slots__": (), **methods})


_CLASSES: Final[dict[tuple[type, int], Any]] = {
    (base, origin): _class(base) for base in (int, float) for origin in (LITERAL, DATA)
}
_ORIGINS: Final = {made: origin for (_, origin), made in _CLASSES.items()}


class Range:
    """The numbers of a range, with the origin of the numbers that it was made from.

    Parameters
    ----------
    numbers : range
        The numbers.
    origin : int
        Their origin.
    """

    def __init__(self, numbers: range, origin: int) -> None:
        self._numbers = numbers
        self._origin = origin
        self.start = number(numbers.start, origin)
        self.stop = number(numbers.stop, origin)
        self.step = number(numbers.step, origin)

    @classmethod
    def of(cls, numbers: range, *given: Any) -> Range:
        """Return the range that was made from given numbers."""
        return cls(numbers, _common(*given))

    def __repr__(self) -> str:
        return repr(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Any]:
        return (number(value, self._origin) for value in self._numbers)

    def __reversed__(self) -> Iterator[Any]:
        return (number(value, self._origin) for value in reversed(self._numbers))

    def __contains__(self, value: Any) -> bool:
        return value in self._numbers

    def __getitem__(self, key: Any) -> Any:
        found = self._numbers[key]
        if isinstance(key, slice):
            ends = [end for end in (key.start, key.stop, key.step) if end is not None]
            return Range(found, _common(self.start, *ends))
        return number(found, _common(self.start, key))

    def __eq__(self, other: object) -> bool:
        return self._numbers == (other._numbers if isinstance(other, Range) else other)

    def __hash__(self) -> int:
        return hash(self._numbers)

    def index(self, value: Any) -> int:
        """Return what range.index does."""
        return self._numbers.index(value)

    def count(self, value: Any) -> int:
        """Return what range.count does."""
        return self._numbers.count(value)


Range.__name__ = "range"  # as errors name it
