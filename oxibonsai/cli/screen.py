"""What a conversation shows: answers to standard output, notes beside them."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from oxibonsai.cli.readers import LineReader, Reader, terminal_reader
from oxibonsai.cli.terminal import Tamer, is_terminal, tame, tell

__all__ = ["Screen"]


class Screen:
    """Where messages come from and answers go.

    Parameters
    ----------
    out : TextIO
        Standard output. In a terminal, thinking and notes are dim, and nothing steers it.

    Attributes
    ----------
    interactive : bool
        Whether somebody types: standard input and `out` are terminals.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.interactive = is_terminal(sys.stdin) and is_terminal(out)
        self._reader: Reader | None = None
        self._console: Any = None
        self._tamer = Tamer()
        if is_terminal(out):
            try:
                from rich.console import Console
            except ImportError as e:
                raise ImportError(
                    "chat in a terminal needs the package rich: pip install tokenizers jinja2 rich"
                ) from e
            self._console = Console(file=out, highlight=False)

    def open(self, greeting: str) -> None:
        """Prepare to read; in a terminal, greet.

        Parameters
        ----------
        greeting : str
            The first line that somebody in a terminal sees.

        Raises
        ------
        ValueError
            If standard input is closed.
        """
        if not self.interactive:
            self._reader = LineReader()
            return
        self._reader, advice = terminal_reader(self._out)
        self.note(greeting)
        if advice is not None:
            self.note(f"({advice})")

    def read(self) -> str:
        """Return the next message; raises as of Reader."""
        assert self._reader is not None, "open() comes first"
        return self._reader.read()

    @property
    def place(self) -> str:
        """Where the last message came from, for people."""
        return self._reader.place if isinstance(self._reader, LineReader) else "the message"

    def piece(self, text: str, *, thinking: bool = False) -> None:
        """Write a part of an answer at once.

        Parameters
        ----------
        text : str
            The part.
        thinking : bool
            Whether the model thinks it, and does not say it.
        """
        if self._console is None:
            self._out.write(text)
            self._out.flush()
        else:
            self._print(self._tamer.push(text), end="", dim=thinking)

    def note(self, text: str) -> None:
        """Write what is no part of the conversation: over a pipe to standard error.

        Parameters
        ----------
        text : str
            One line or several.
        """
        if self.interactive:
            self._print(tame(text), end="\n", dim=True)
        else:
            tell(text)

    def _print(self, text: str, *, end: str, dim: bool) -> None:
        # out() prints a text as it is: print() makes emojis of names between colons, and blanks of
        # tabs.
        style = "dim" if dim and not self._console.no_color else None
        self._console.out(text, end=end, style=style, highlight=False)
        self._out.flush()
