"""Filters of Jinja that keep the origin of each character."""

from __future__ import annotations

import re
import textwrap
from typing import Any, Final

from jinja2.filters import do_indent, do_wordcount, do_wordwrap
from jinja2.utils import pass_environment
from markupsafe import Markup

from oxibonsai.chat.origins import LITERAL, UNKNOWN, number
from oxibonsai.chat.printing import shown
from oxibonsai.chat.provenance import Traced, common_origin, join, mark, plain

__all__ = ["indent", "length", "string", "title", "wordcount", "wordwrap"]

_GAPS: Final = re.compile(r"([-\s({\[<]+)")  # between words, as the filter `title` sees them


def string(value: Any) -> str:
    """Return text as it is, and the text of other values."""
    return value if isinstance(value, str) else shown(value)


def title(value: Any) -> Traced:
    """Return text with a capital at each beginning of a word, as Jinja sees them."""
    text = shown(value)
    pieces, place = [], 0
    for gap in _GAPS.finditer(plain(text)):
        pieces += [text[place : gap.start()], text[gap.start() : gap.end()]]
        place = gap.end()
    pieces.append(text[place:])
    return join(piece[:1].upper() + piece[1:].lower() for piece in pieces)


def indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Any:
    """Return text with its lines indented."""
    if isinstance(s, Markup) or isinstance(width, Markup) or not isinstance(s, str):
        return do_indent(s, width, first, blank)
    margin = shown(width) if isinstance(width, str) else mark(" " * width, LITERAL)
    text = Traced(s)
    pieces: list[str] = [margin] if first else []
    # A line break is of whoever broke the line; behind the last one Jinja sees one more line.
    whole = text.splitlines(True)
    if not whole or plain(whole[-1]).splitlines() != [plain(whole[-1])]:
        whole.append(mark("", LITERAL))
    for i, line in enumerate(whole):
        bare = line.splitlines()[0] if line else line
        if i:
            pieces += [margin, bare] if bare or blank else [bare]
        else:
            pieces.append(bare)
        if i < len(whole) - 1:
            pieces.append(mark("\n", line.runs[-1][1]))
    found = join(pieces)
    expected = do_indent(plain(text), plain(margin), first, blank)
    return found if found == expected else mark(expected, UNKNOWN)


@pass_environment
def wordwrap(
    environment: Any,
    s: Any,
    width: int = 79,
    break_long_words: bool = True,
    wrapstring: str | None = None,
    break_on_hyphens: bool = True,
) -> Any:
    """Return text with long lines broken."""
    options = (width, break_long_words, wrapstring, break_on_hyphens)
    if type(s) is not Traced or isinstance(wrapstring, Markup):
        return do_wordwrap(environment, s, *options)
    end = environment.newline_sequence if wrapstring is None else wrapstring
    between = mark(end, common_origin(s)) if wrapstring is None else shown(end)
    lines = []
    for line in s.splitlines():
        pieces, place = [], 0
        for piece in textwrap.wrap(
            plain(line),
            width=width,
            expand_tabs=False,
            replace_whitespace=False,
            break_long_words=break_long_words,
            break_on_hyphens=break_on_hyphens,
        ):
            place = plain(line).find(piece, place)  # only white space lies before it
            pieces.append(line[place : place + len(piece)])
            place += len(piece)
        lines.append(between.join(pieces))
    found = between.join(lines)
    expected = do_wordwrap(environment, plain(s), *options)
    return found if found == expected else mark(expected, UNKNOWN)


def length(value: Any) -> Any:
    """Return how many there are; only how long a text is may be somebody else's choice."""
    return number(len(value), _counted(value))


def wordcount(value: Any) -> Any:
    """Return the number of words."""
    return number(do_wordcount(value), _counted(value))


def _counted(value: Any) -> int:
    own = not isinstance(value, str) or common_origin(value) == LITERAL
    return LITERAL if own else UNKNOWN
