"""Text that knows where each of its characters came from.

A chat template mixes text of its own with what users wrote, and only the first may name a special
token. `Traced` is a str like any other to whoever looks at it (a template's tests, filters and
slices see no difference), and carries runs of origins through every operation on strings.
"""

# mypy: disable-error-code="override"
# typeshed types the methods of str as overloads for LiteralString, which no subclass can follow.

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, SupportsIndex, TypeAlias

from oxibonsai.chat.origins import DATA, LITERAL, UNKNOWN, Range, number_origin

__all__ = [
    "DATA",
    "LITERAL",
    "UNKNOWN",
    "Runs",
    "Traced",
    "common_origin",
    "join",
    "mark",
    "plain",
    "runs_of",
    "settle",
    "with_runs",
]

Runs: TypeAlias = tuple[tuple[int, int], ...]
"""The number of characters and the origin of each run; neighbours differ in origin."""

_SPEC: Final = re.compile(
    r"%(?:\((?P<key>[^()]*)\))?(?P<flags>[#0\- +]*)(?P<width>\*|\d*)"
    r"(?:\.(?P<precision>\*|\d*))?[hlL]?"
    r"(?P<kind>.)",
    re.DOTALL,
)
_CONTAINERS: Final[tuple[Any, ...]] = (
    dict,
    list,
    tuple,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
_TEXTLESS: Final = (bool, type(None), slice)
_NUMBERS: Final = (int, float, complex)


class Traced(str):
    """Text with the origin of each character.

    It equals the plain text and has its hash.

    Parameters
    ----------
    text : str
        The text. A `Traced` keeps its runs.
    origin : int
        The origin of text that has none yet.
    """

    __slots__ = ("runs",)
    runs: Runs

    def __new__(cls, text: str = "", origin: int = UNKNOWN) -> Traced:
        """Return `text` with the runs that it has, else of one origin."""
        return with_runs(text, runs_of(text, origin))

    def __str__(self) -> str:
        return self

    def __reduce__(self) -> Any:
        return with_runs, (plain(self), self.runs)

    def __getitem__(self, key: Any) -> Traced:
        text = str.__getitem__(self, key)
        runs = self.runs
        if len(runs) < 2:
            return with_runs(text, ((len(text), runs[0][1]),) if text else ())
        if not isinstance(key, slice):
            index = key.__index__()
            index += len(self) if index < 0 else 0
            return with_runs(text, _cut(runs, index, index + 1))
        places = range(*key.indices(len(self)))
        if places.step == 1:
            return with_runs(text, _cut(runs, places.start, places.stop))
        return with_runs(text, _stride(runs, places))

    def __iter__(self) -> Iterator[Traced]:
        characters = str.__iter__(self)
        for length, origin in self.runs:
            for _ in range(length):
                yield _single(next(characters), origin)

    def __add__(self, other: str) -> Traced:
        if not isinstance(other, Traced) and hasattr(other, "__html__"):
            return NotImplemented  # what is escaped for HTML escapes what it is added to
        text = str.__add__(self, other)
        return with_runs(text, _chain(self.runs, runs_of(other)))

    def __radd__(self, other: str) -> Traced:
        if not isinstance(other, str):
            return NotImplemented
        return with_runs(str.__add__(plain(other), self), _chain(runs_of(other), self.runs))

    def __mul__(self, count: SupportsIndex) -> Traced:
        text = str.__mul__(self, count)
        if len(self.runs) < 2:
            return with_runs(text, ((len(text), self.runs[0][1]),) if text else ())
        return with_runs(text, _joined_runs([self.runs] * max(count.__index__(), 0)))

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> Traced:
        text = str.__mod__(self, values)
        try:
            found = join(_percent(self, values))
        except (TypeError, LookupError, ValueError, StopIteration):
            found = with_runs("", ())
        return found if found == text else mark(text, UNKNOWN)

    def join(self, parts: Iterable[str], /) -> Traced:
        """Join as str.join does."""
        parts = list(parts)
        text = str.join(self, parts)
        runs: list[Runs] = []
        for part in parts:
            runs += [self.runs, runs_of(part)]
        return with_runs(text, _joined_runs(runs[1:]))

    def replace(self, old: str, new: str, /, *args: Any, **kw: Any) -> Traced:
        """Replace as str.replace does."""
        text = str.replace(self, old, new, *args, **kw)
        if old not in self:
            return self
        both = _joined_runs([self.runs, runs_of(new)])
        if len(both) == 1:
            return mark(text, both[0][1])
        left = next(iter((*args, *kw.values())), -1)
        between: list[tuple[int, int]] = []
        held, base = 0, plain(self)
        place = base.find(old)
        # An empty `old` stands before each character and at the end.
        while place >= 0 and left != 0:
            between.append((held, place))
            held = place + len(old)
            left -= 1
            place = base.find(old, held if old else held + 1)
        return Traced(new).join(self._cuts([*between, (held, len(self))]))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Traced]:
        """Split as str.split does."""
        return self._pieces(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Traced]:
        """Split as str.rsplit does."""
        return self._pieces(str.rsplit(self, sep, maxsplit), sep)

    def _pieces(self, texts: list[str], sep: str | None) -> list[Traced]:
        if len(self.runs) < 2:
            origin = self.runs[0][1] if self.runs else DATA
            return [mark(text, origin) for text in texts]
        found, place, base = [], 0, plain(self)
        for text in texts:
            if sep is None:  # only white space lies before it
                place = base.find(text, place)
            found.append((place, place + len(text)))
            place += len(text) + len(sep or "")
        return self._cuts(found)

    def _cuts(self, places: Iterable[tuple[int, int]]) -> list[Traced]:
        """Return the parts at places that rise, in one walk over the runs."""
        base, found = plain(self), []
        walk = iter(self.runs)
        end = origin = 0
        for a, b in places:
            runs: list[tuple[int, int]] = []
            at = a
            while at < b:
                while end <= at:
                    length, origin = next(walk)
                    end += length
                taken = min(b, end) - at
                runs.append((taken, origin))
                at += taken
            found.append(with_runs(base[a:b], tuple(runs)))
        return found

    def splitlines(self, keepends: bool = False) -> list[Traced]:
        """Split as str.splitlines does."""
        found, place = [], 0
        whole = str.splitlines(self, True)
        for line, with_end in zip(str.splitlines(self, keepends), whole, strict=True):
            found.append((place, place + len(line)))
            place += len(with_end)
        return self._cuts(found)

    def partition(self, sep: str, /) -> tuple[Traced, Traced, Traced]:
        """Split as str.partition does."""
        head, middle, _ = str.partition(self, sep)
        a, b = len(head), len(head) + len(middle)
        return self[:a], self[a:b], self[b:]

    def rpartition(self, sep: str, /) -> tuple[Traced, Traced, Traced]:
        """Split as str.rpartition does."""
        head, middle, _ = str.rpartition(self, sep)
        a, b = len(head), len(head) + len(middle)
        return self[:a], self[a:b], self[b:]

    def strip(self, chars: str | None = None, /) -> Traced:
        """Strip as str.strip does."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Traced:
        """Strip as str.lstrip does."""
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> Traced:
        """Strip as str.rstrip does."""
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix: str, /) -> Traced:
        """Cut off as str.removeprefix does."""
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str, /) -> Traced:
        """Cut off as str.removesuffix does."""
        return self[: len(str.removesuffix(self, suffix))]

    def upper(self) -> Traced:
        """Return what str.upper does."""
        return self._by_runs(str.upper)

    def lower(self) -> Traced:
        """Return what str.lower does."""
        return self._by_runs(str.lower)

    def swapcase(self) -> Traced:
        """Return what str.swapcase does."""
        return self._by_runs(str.swapcase)

    def casefold(self) -> Traced:
        """Return what str.casefold does."""
        return self._by_runs(str.casefold)

    def title(self) -> Traced:
        """Return what str.title does."""
        return self._by_runs(str.title, before=1)

    def capitalize(self) -> Traced:
        """Return what str.capitalize does."""
        return self._by_runs(str.capitalize, before=1)

    def expandtabs(self, tabsize: SupportsIndex = 8) -> Traced:
        """Return what str.expandtabs does."""
        return self._by_runs(lambda text: str.expandtabs(text, tabsize), before=None)

    def _by_runs(self, change: Callable[[str], str], before: int | None = 0) -> Traced:
        """Apply what may change the length of a run, by what is in it and some characters before.

        `before` is their number, or None for all back to the beginning of the line.
        """
        text, runs = change(plain(self)), self.runs
        if len(text) == len(self) or len(runs) < 2:
            # No change of case makes a text shorter: where it is as long, each character gave one.
            return with_runs(text, runs) if len(text) == len(self) else mark(text, runs[0][1])
        found, place, base = [], 0, plain(self)
        for length, origin in runs:
            start = place - (before or 0)
            if before is None:
                start = max(base.rfind("\n", 0, place), base.rfind("\r", 0, place)) + 1
            known = base[max(start, 0) : place]
            place += length
            run = base[place - length : place]
            found.append(((len(change(known + run)) - len(change(known)), origin),))
        return with_runs(text, _joined_runs(found))

    def center(self, width: SupportsIndex, /, *fill: str) -> Traced:
        """Pad as str.center does."""
        text = str.center(self, width, *fill)
        # Where the padding is odd, whether the left has more depends on the width.
        left = (len(text) - len(self)) // 2
        left += (len(text) - len(self)) & width.__index__() & 1
        return self._padded(text, left, fill)

    def ljust(self, width: SupportsIndex, /, *fill: str) -> Traced:
        """Pad as str.ljust does."""
        return self._padded(str.ljust(self, width, *fill), 0, fill)

    def rjust(self, width: SupportsIndex, /, *fill: str) -> Traced:
        """Pad as str.rjust does."""
        text = str.rjust(self, width, *fill)
        return self._padded(text, len(text) - len(self), fill)

    def zfill(self, width: SupportsIndex, /) -> Traced:
        """Pad as str.zfill does."""
        text = str.zfill(self, width)
        sign = 1 if self[:1] in ("+", "-") else 0
        padding = mark("0" * (len(text) - len(self)), common_origin(self))
        return join([self[:sign], padding, self[sign:]])

    def _padded(self, text: str, left: int, fill: tuple[str, ...]) -> Traced:
        origin = common_origin(*(fill or [self]))
        right = left + len(self)
        return join([mark(text[:left], origin), self, mark(text[right:], origin)])

    def translate(self, table: Any, /) -> Traced:
        """Replace as str.translate does."""
        text = str.translate(self, table)
        pieces: list[str] = []
        for character in self:
            try:
                new = table[ord(character)]
            except LookupError:
                new = ord(character)
            if isinstance(new, str):
                pieces.append(new)
            elif new == ord(character):
                pieces.append(character)
            elif new is not None:  # a number does not tell who chose it
                pieces.append(mark(chr(new), UNKNOWN))
        found = join(pieces)
        return found if found == text else mark(text, UNKNOWN)


def with_runs(text: str, runs: Runs) -> Traced:
    """Return text with the given runs, which are as long as it."""
    new = str.__new__(Traced, text)
    new.runs = runs
    return new


def plain(text: str) -> str:
    """Return text without its origins."""
    return str.__str__(text)


def mark(text: str, origin: int) -> Traced:
    """Return text that is all of one origin."""
    return with_runs(text, ((len(text), origin),) if text else ())


def settle(text: str, origin: int) -> Traced:
    """Return text in which `origin` takes the place of UNKNOWN."""
    runs = (((length, origin if o == UNKNOWN else o),) for length, o in runs_of(text))
    return with_runs(text, _joined_runs(runs))


def join(parts: Iterable[str]) -> Traced:
    """Return texts joined, each with the origins it has, or UNKNOWN."""
    parts = list(parts)
    return with_runs("".join(parts), _joined_runs(map(runs_of, parts)))


def runs_of(text: str, origin: int = UNKNOWN) -> Runs:
    """Return the runs of any str, which are of `origin` where it carries none."""
    runs: Runs | None = getattr(text, "runs", None)
    if runs is None:
        return ((len(text), origin),) if text else ()
    return runs


def common_origin(*values: Any) -> int:
    """Return the origin that all text within values has, or UNKNOWN where they differ.

    Numbers of the template are no text, unless there is nothing else. Where there is nothing at
    all it is DATA.
    """
    found: set[int] = set()
    own_number = False
    waiting = list(values)
    seen: dict[int, Any] = {}  # the objects live on, so that no other one has their id
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found |= {origin for _, origin in runs_of(value)}
        elif isinstance(value, _CONTAINERS):
            if id(value) not in seen:
                seen[id(value)] = value
                waiting += value
                waiting += value.values() if isinstance(value, dict) else ()
        elif isinstance(value, _TEXTLESS):
            continue
        elif isinstance(value, Range):
            waiting.append(value.start)
        elif isinstance(value, _NUMBERS) and number_origin(value) == LITERAL:
            own_number = True
        else:  # of numbers that have no origin, and of text within other objects, nothing is known
            found.add(number_origin(value))
        if len(found) > 1:
            return UNKNOWN
    if found:
        return found.pop()
    return LITERAL if own_number else DATA


@lru_cache(maxsize=2048)
def _single(character: str, origin: int) -> Traced:
    return with_runs(character, ((1, origin),))


def _chain(left: Runs, right: Runs) -> Runs:
    if left and right and left[-1][1] == right[0][1]:
        return (*left[:-1], (left[-1][0] + right[0][0], right[0][1]), *right[1:])
    return left + right


def _joined_runs(parts: Iterable[Runs]) -> Runs:
    found: list[tuple[int, int]] = []
    total, last = 0, -1
    for runs in parts:
        for length, origin in runs:
            if origin == last:
                total += length
            elif length:
                if total:
                    found.append((total, last))
                total, last = length, origin
    if total:
        found.append((total, last))
    return tuple(found)


def _cut(runs: Runs, start: int, stop: int) -> Runs:
    found, place = [], 0
    for length, origin in runs:
        a, b = max(place, start), min(place + length, stop)
        if a < b:
            found.append((b - a, origin))
        place += length
        if place >= stop:
            break
    return tuple(found)


def _stride(runs: Runs, places: range) -> Runs:
    """Return the runs of the characters at places."""
    rising = places if places.step > 0 else places[::-1]
    found, place, taken = [], 0, 0
    for length, origin in runs:
        place += length
        # How many of the places lie before the end of the run.
        before = len(range(rising.start, min(place, rising.stop), rising.step)) if rising else 0
        found.append(((max(before - taken, 0), origin),))
        taken = max(before, taken)
    return _joined_runs(found if places.step > 0 else found[::-1])


def _percent(template: Traced, values: Any) -> Iterator[str]:
    """Yield the pieces of ``template % values``; they do not join to it where a form is unknown."""
    by_key = isinstance(values, Mapping)
    waiting = iter(values if isinstance(values, tuple) else (values,))
    place = 0
    for spec in _SPEC.finditer(plain(template)):
        yield template[place : spec.start()]
        place = spec.end()
        kind, key = spec["kind"], spec["key"]
        if kind == "%":
            yield template[spec.start() : spec.start() + 1]
            continue
        written = template[spec.start() : place]
        width, precision = (
            next(waiting) if size == "*" else size for size in spec.group("width", "precision")
        )
        value = values[key] if by_key and key is not None else next(waiting)
        rule = f"%{spec['flags']}{width}" + ("" if precision is None else f".{precision}")
        # What a form that is not the template's own makes of a value is not the value's alone.
        origin = common_origin(written)
        if kind != "s" or not isinstance(value, str):
            made = (rule + kind) % (value,)
            yield mark(made, common_origin(value, *([] if origin == LITERAL else [written])))
            continue
        text = Traced(value)
        if precision is not None:
            text = text[: max(int(precision or 0), 0)]
        size, fill = int(width or 0), mark(" ", origin)
        left = "-" in spec["flags"] or size < 0
        yield text.ljust(abs(size), fill) if left else text.rjust(size, fill)
    yield template[place:]
