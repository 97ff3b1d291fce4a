"""Text for terminals, which never steers them, and notes to standard error."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import TextIO

__all__ = [
    "Tamer",
    "abandon",
    "escaped",
    "is_dumb",
    "is_terminal",
    "note",
    "settled",
    "tame",
    "tell",
]

# Without the tab and the end of a line; the C1 controls are escape sequences of one character.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def escaped(text: object) -> str:
    """Return a text on one line, in which what is not printable is written as Python writes it.

    For names and values out of files, and for messages that have them.

    Parameters
    ----------
    text : object
        The text, or what str() makes one of.

    Returns
    -------
    str
        The text; an escape sequence begins with x1b behind a backslash.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown
    )


def tame(text: str) -> str:
    """Return a text of several lines with a question mark for each control character.

    For text that was typed or generated; tabs and ends of lines stay, and CR LF is one.

    Parameters
    ----------
    text : str
        The text.

    Returns
    -------
    str
        The text without controls.
    """
    return _STEERING.sub("?", text.replace("\r\n", "\n"))


class Tamer:
    """Tames a text that comes in pieces, also where an end of a line is in two of them."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, piece: str) -> str:
        """Return what can be shown now.

        Parameters
        ----------
        piece : str
            The next part of the text.

        Returns
        -------
        str
            The text without controls; a CR at its end waits for what follows.
        """
        text = self._held + piece
        self._held = "\r" if text.endswith("\r") else ""
        return tame(text.removesuffix("\r"))


def is_terminal(stream: object) -> bool:
    """Return whether a stream is a terminal; one that is closed or missing is none.

    Parameters
    ----------
    stream : object
        Such as sys.stdout.

    Returns
    -------
    bool
        Whether it is one.
    """
    isatty = getattr(stream, "isatty", None)
    try:
        return isatty is not None and bool(isatty())
    except ValueError:  # a closed stream
        return False


def is_dumb() -> bool:
    """Return whether the terminal has no cursor to move, by what TERM says."""
    return os.environ.get("TERM", "").lower() in ("", "dumb", "unknown")


def note(text: str) -> None:
    """Write a line to standard error.

    Parameters
    ----------
    text : str
        The line. What is not printable in it is escaped.
    """
    _tell(escaped(text))


def tell(text: str) -> None:
    """Write lines to standard error as they are, to a terminal without what steers it.

    Parameters
    ----------
    text : str
        The lines.
    """
    _tell(tame(text) if is_terminal(sys.stderr) else text)


def _tell(text: str) -> None:
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # there is nobody to be told
        abandon(sys.stderr)


def abandon(stream: TextIO) -> None:
    """Send nowhere what a stream holds and what comes: Python writes it at its end otherwise.

    Parameters
    ----------
    stream : TextIO
        A stream that cannot be written.
    """
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def settled(stream: TextIO) -> bool:
    """Write out what a stream holds, or where that fails send it nowhere.

    Parameters
    ----------
    stream : TextIO
        The stream.

    Returns
    -------
    bool
        Whether it was written.
    """
    try:
        stream.flush()
    except (OSError, ValueError):
        abandon(stream)
        return False
    return True
