"""How far a long prompt has been read, in a terminal."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

from oxibonsai.cli.terminal import is_dumb, is_terminal

__all__ = ["Progress"]

_PATIENCE = 0.5  # seconds before the first note
_PAUSE = 0.1
# The cursor stays where it is, and a note that is too long is cut off by the edge of the screen.
_BEGIN, _END, _ERASE = "\x1b7\x1b[?7l", "\x1b[?7h\x1b8", "\x1b[K"


class Progress:
    """A note behind the cursor while a prompt is read, on standard error if it is a terminal.

    It comes for prompts that take a while alone. It is given to ``Session.forward``, and erased by
    close().
    """

    def __init__(self) -> None:
        self._shows = is_terminal(sys.stderr) and not is_dumb()
        self._next = time.monotonic() + _PATIENCE
        self._is_shown = False

    def __call__(self, done: int, total: int) -> None:
        """Tell that `done` of `total` tokens have been read."""
        if done >= total:
            self.close()
        elif self._shows and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PAUSE
            self._is_shown = True
            self._write(f"{_BEGIN} [reading the prompt: {done:,} of {total:,} tokens]{_END}")

    def close(self) -> None:
        """Erase the note."""
        if self._is_shown:
            self._is_shown = False
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # there is nobody to be told
            sys.stderr.write(text)
            sys.stderr.flush()
