"""A terminal in which a command runs: its keyboard, and its screen as an emulator draws it."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
import time
from typing import Any

import pyte
from commands import environment
from places import ROOT

SECONDS = 60.0
AGAIN = 5.0  # when a key is pressed again that had no effect
# The process makes the terminal its controlling one, from which Ctrl-C comes.
CONTROLLED = "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
# What starts this suite may ignore SIGINT, which a process inherits.
CHILD = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from oxibonsai.__main__ import run
sys.exit(run())
"""


class Terminal:
    """A command in a pseudo-terminal of its own, which is its controlling terminal."""

    def __init__(
        self,
        *arguments: Any,
        columns: int = 80,
        rows: int = 24,
        code: str = CHILD,
        **env: str | None,
    ) -> None:
        self.raw = b""
        self._screen = pyte.Screen(columns or 80, rows or 24)
        self._stream = pyte.ByteStream(self._screen)
        self._outer, inner = os.openpty()
        self._set_size(columns, rows)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLED + code, *map(str, arguments)],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=environment(**{"TERM": "xterm-256color", "LANG": "C.UTF-8", **env}),
            cwd=ROOT,
            start_new_session=True,
        )
        os.close(inner)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._outer)

    def hang_up(self) -> None:
        """Close the terminal's window."""
        os.close(self._outer)

    def _set_size(self, columns: int, rows: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._outer, termios.TIOCSWINSZ, size)  # the kernel sends SIGWINCH

    def resize(self, columns: int, rows: int) -> None:
        self._set_size(columns, rows)
        self._screen.resize(rows, columns)

    def send(self, text: str | bytes) -> None:
        """Press keys."""
        os.write(self._outer, text.encode() if isinstance(text, str) else text)

    def interrupt(self, *wanted: str) -> None:
        """Press Ctrl-C until the last lines of the screen are these, as somebody would.

        A signal that comes after the prompt is written and before the process waits for a key is
        seen by Python's input() at the next key only.
        """
        end = time.monotonic() + SECONDS
        while True:
            self.send("\x03")
            try:
                return self.until(*wanted, seconds=AGAIN)
            except AssertionError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise

    def paste(self, text: str) -> None:
        """Paste as a terminal does in which the program asked for marks around it."""
        assert self.raw.rfind(b"\x1b[?2004h") > self.raw.rfind(b"\x1b[?2004l"), "not asked for"
        self.send("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~")

    @property
    def lines(self) -> list[str]:
        """The lines of the screen without the blanks behind them, up to the last that has text.

        The kernel's echo of Ctrl-C, which comes before or after what the process writes, is left
        out.
        """
        found = [line.replace("^C", "").rstrip() for line in self._screen.display]
        while found and not found[-1]:
            found.pop()
        return found

    @property
    def cursor(self) -> tuple[int, int]:
        """Column and row of the cursor."""
        return self._screen.cursor.x, self._screen.cursor.y

    def read(self, seconds: float) -> bool:
        """Draw what comes within a time, or return False where nothing does."""
        if not select.select([self._outer], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._outer, 65536)
        except OSError:  # on Linux: the process has ended
            data = b""
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def until(self, *wanted: str, seconds: float = SECONDS) -> None:
        """Draw until the last lines of the screen are these."""
        self.wait_for(lambda: self.lines[-len(wanted) :] == list(wanted), f"{wanted}", seconds)

    def wait_for(self, condition: Any, what: str = "", seconds: float = SECONDS) -> None:
        end = time.monotonic() + seconds
        while not condition():
            left = end - time.monotonic()
            if left <= 0 or (not self.read(min(left, 1.0)) and self.process.poll() is not None):
                if condition():
                    return
                raise AssertionError(f"waited for {what}; the screen:\n" + "\n".join(self.lines))

    def ends(self, status: int = 0) -> None:
        """Draw until the process has ended, with this status."""
        end = time.monotonic() + SECONDS
        while self.process.poll() is None and time.monotonic() < end:
            self.read(0.1)
        while self.read(0.1):
            pass
        assert self.process.poll() == status, "\n".join(self.lines)

    def settings(self) -> list[Any]:
        """The settings of the line: echo, and who edits it."""
        return termios.tcgetattr(self._outer)
