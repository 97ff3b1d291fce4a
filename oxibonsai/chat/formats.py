"""``str.format`` in a template's sandbox, with the origin of each character."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from jinja2.sandbox import SandboxedFormatter

from oxibonsai.chat.origins import LITERAL, UNKNOWN
from oxibonsai.chat.printing import shown
from oxibonsai.chat.provenance import Traced, common_origin, join, mark, plain

__all__ = ["formatted"]

_OF_TEXT: Final = re.compile(
    r"(?:(?P<fill>.)?(?P<side>[<>^]))?(?P<width>\d*)(?:\.(?P<precision>\d+))?s?", re.DOTALL
)


def formatted(
    environment: Any, template: Traced, args: Sequence[Any], by_name: Mapping[str, Any]
) -> Traced:
    """Return the text of a format, in pieces that may not join to it where a form is unknown.

    Parameters
    ----------
    environment : jinja2.Environment
        The sandbox.
    template : Traced
        The format.
    args : sequence
        Values by number.
    by_name : mapping
        Values by name.

    Returns
    -------
    Traced
        The text.
    """
    formatter = _Formatter(environment, template)
    formatter.vformat(template, args, by_name)
    return join(formatter.pieces)


class _Formatter(SandboxedFormatter):
    """Formats as the sandbox does, and notes the pieces."""

    def __init__(self, environment: Any, template: Traced) -> None:
        super().__init__(environment)
        self.pieces: list[str] = []
        self._template = template
        self._place = 0  # up to where the template is used
        self._field = template[:0]
        self._depth = 0
        self._nested = False  # whether the format of the field at hand has fields itself

    def parse(self, format_string: Any) -> Iterator[Any]:
        """Yield the parts of a format; one within a field is parsed while the outer one waits."""
        self._depth += 1
        for part in super().parse(format_string):
            if self._depth == 1:
                self._take(*part)
                self._nested = False
            yield part
        self._depth -= 1

    def _take(self, text: str, field: str | None, spec: str | None, conversion: str | None) -> None:
        """Take a text and the field behind it out of the template."""
        start = self._place
        self.pieces.append(self._template[start : start + len(text)])
        self._place += len(text)
        base = plain(self._template)
        if field is None:  # a brace that stands twice for one, or the end
            doubled = text[-1:] in ("{", "}") and base[self._place : self._place + 1] == text[-1]
            self._place += doubled
            return
        start, self._place = self._place, self._place + 1 + len(field)
        if conversion is not None:
            self._place += 1 + len(conversion)
        if base[self._place : self._place + 1] == ":":
            self._place += 1 + len(spec or "")
        self._place += 1
        self._field = self._template[start : self._place]

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Return the text of a field."""
        text = super().format_field(value, format_spec)
        if self._depth > 1:  # a field within the format of another, which may fill with any text
            self._nested = True
            return text
        exact = self._padded(value, format_spec) if isinstance(value, Traced) else None
        if exact is not None and exact == text:
            self.pieces.append(exact)
        elif self._nested:
            self.pieces.append(mark(text, UNKNOWN))
        else:
            self.pieces.append(mark(text, self._made_of(value)))
        return text

    def _made_of(self, value: Any) -> int:
        # What a field that is not the template's own makes of a value is not the value's alone.
        origin = common_origin(self._field)
        return common_origin(value, *([] if origin == LITERAL else [self._field]))

    def _padded(self, value: Traced, format_spec: str) -> Traced | None:
        """Return a text cut and padded as its format says, if it says no more than that."""
        form = _OF_TEXT.fullmatch(plain(format_spec))
        if form is None:
            return None
        text = value if form["precision"] is None else value[: int(form["precision"])]
        missing = max(int(form["width"] or 0) - len(text), 0)
        left = {"<": 0, ">": missing, "^": missing // 2}[form["side"] or "<"]
        of_nobody = self._nested and form["fill"] is not None
        fill = mark(form["fill"] or " ", UNKNOWN if of_nobody else common_origin(self._field))
        return join([fill * left, text, fill * (missing - left)])

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Return the text of a value that is printed before it is formatted."""
        text = super().convert_field(value, conversion)
        if conversion is None or isinstance(text, Traced):
            return text
        return shown(value) if conversion == "s" else mark(text, self._made_of(value))
