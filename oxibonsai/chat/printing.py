"""What values look like in a template's output, with the origins of the text inside them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any, Final

from oxibonsai.chat.provenance import (
    DATA,
    UNKNOWN,
    Traced,
    common_origin,
    join,
    mark,
    plain,
    runs_of,
)

__all__ = ["shown", "to_json"]

_QUOTE: Final = re.compile("['\"]")
_LISTS: Final[tuple[Any, ...]] = (
    list,
    tuple,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)


def shown(value: Any) -> Traced:
    """Return a value as ``{{ value }}`` prints it."""
    if type(value) is Traced:
        return value
    text = str(value)
    if isinstance(text, Traced):
        return text
    if isinstance(value, str):
        return mark(text, UNKNOWN)
    origin = common_origin(value)
    if origin != UNKNOWN or not isinstance(value, (dict, *_LISTS)):
        return mark(text, origin)
    pieces, place = [], 0
    for part in _strings(value):
        # Outside the texts a container prints no quotes.
        quote = _QUOTE.search(text, place)
        token = repr(part)
        if quote is None or not text.startswith(token, quote.start()):
            return mark(text, UNKNOWN)
        pieces += [mark(text[place : quote.start()], DATA), _within(part, token, _length_in_python)]
        place = quote.start() + len(token)
    if _QUOTE.search(text, place):
        return mark(text, UNKNOWN)
    return join([*pieces, mark(text[place:], DATA)])


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> Traced:
    """Return JSON as the filter ``tojson`` of transformers writes it, not escaped for HTML."""
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    gaps = [gap for gap in (indent, *(separators or ())) if isinstance(gap, str)]
    origin = common_origin(value, *gaps)
    if origin != UNKNOWN:
        return mark(text, origin)
    found = join(_JSON(ensure_ascii, indent, separators, sort_keys).pieces(value, 0))
    return found if found == text else mark(text, UNKNOWN)


class _JSON:
    """Writes JSON in pieces that have their origins.

    Parameters are those of json.dumps.
    """

    def __init__(
        self,
        ensure_ascii: bool,
        indent: int | str | None,
        separators: tuple[str, str] | None,
        sort_keys: bool,
    ) -> None:
        self._quoted = encode_basestring_ascii if ensure_ascii else encode_basestring
        self._indent = mark(" " * indent, DATA) if isinstance(indent, int) else indent
        own = (mark(", " if indent is None else ",", DATA), mark(": ", DATA))
        self._comma, self._colon = own if separators is None else separators
        self._sort_keys = sort_keys

    def pieces(self, value: Any, depth: int) -> Iterator[str]:
        """Yield the pieces of a value."""
        if isinstance(value, str):
            yield _within(value, self._quoted(value), lambda run, _: len(self._quoted(run)) - 2)
        elif isinstance(value, dict):
            items = sorted(value.items()) if self._sort_keys else value.items()
            lines = ([*self._key(key), self._colon, *self.pieces(v, depth + 1)] for key, v in items)
            yield from self._bracketed("{}", lines, depth)
        elif isinstance(value, (list, tuple)):
            yield from self._bracketed("[]", (self.pieces(v, depth + 1) for v in value), depth)
        else:
            yield mark(json.dumps(value), common_origin(value))

    def _key(self, key: Any) -> list[str]:
        if isinstance(key, str):
            return list(self.pieces(key, 0))
        quote = mark('"', DATA)
        return [quote, *self.pieces(key, 0), quote]

    def _bracketed(
        self, brackets: str, lines: Iterable[Iterable[str]], depth: int
    ) -> Iterator[str]:
        yield mark(brackets[0], DATA)
        n = 0
        for n, line in enumerate(lines, 1):
            if n > 1:
                yield self._comma
            yield from self._line(depth + 1)
            yield from line
        if n:
            yield from self._line(depth)
        yield mark(brackets[1], DATA)

    def _line(self, depth: int) -> Iterator[str]:
        if self._indent is not None:
            yield mark("\n", DATA)
            yield self._indent * depth


def _strings(value: Any) -> Iterator[str]:
    """Yield the texts within a value in the order in which Python prints them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, _LISTS):
        for item in value:
            yield from _strings(item)


def _within(part: str, token: str, length: Callable[[str, str], int]) -> Traced:
    """Return the quoted form of a text with the text's origins."""
    runs = runs_of(part)
    if len(runs) < 2:
        return mark(token, runs[0][1] if runs else DATA)
    pieces, place, at = [mark(token[:1], runs[0][1])], 1, 0
    for count, origin in runs:
        written = length(plain(part)[at : at + count], token)
        pieces.append(mark(token[place : place + written], origin))
        place, at = place + written, at + count
    return join([*pieces, mark(token[place:], runs[-1][1])])


def _length_in_python(run: str, token: str) -> int:
    # Python chooses the quotes by the whole text, and escapes only the ones that it chose.
    return sum(1 + (c == token[0]) if c in "'\"" else len(repr(c)) - 2 for c in run)
