"""Where the messages of a conversation come from: a pipe, a plain terminal, or an editor in it."""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TextIO

from oxibonsai.cli.inputs import InputLines, decoded
from oxibonsai.cli.terminal import is_dumb

__all__ = ["LineReader", "Reader", "terminal_reader"]

PROMPT = "> "
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_SET_BACK = b"\x1b[?2004l\x1b[?25h\x1b[0m\r\n"  # pastes without marks, the cursor, no attributes


class Reader(Protocol):
    """Gives one message after the other."""

    def read(self) -> str:
        """Return the next message.

        Raises
        ------
        EOFError
            At the end of the input, such as Ctrl-D.
        KeyboardInterrupt
            After Ctrl-C; the next call reads on.
        ValueError
            For one that is no text; the next call reads on.
        """


class LineReader:
    """A message for each line of standard input.

    Parameters
    ----------
    out : TextIO, optional
        A terminal that shows when a line is expected, and where the keyboard's echo appears.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._lines = InputLines()
        self._out = out

    @property
    def place(self) -> str:
        """Where the last message stood, such as "line 3"."""
        return self._lines.place

    def read(self) -> str:
        """Return the next message; raises as of Reader."""
        try:
            self._show(PROMPT)
            line = self._lines.read()
        except KeyboardInterrupt:
            self._show("\n")
            raise
        if line is None:
            self._show("\n")
            raise EOFError
        return line

    def _show(self, text: str) -> None:
        if self._out is not None:
            self._out.write(text)
            self._out.flush()


class _ReadlineReader:
    """Lines that Python's input() reads, with the library readline where Python has it."""

    def __init__(self) -> None:
        with suppress(ImportError):
            import readline

            if "libedit" not in (readline.__doc__ or ""):  # which has its own words
                readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self) -> str:
        """Return the next message; raises as of Reader."""
        try:
            return _text(input(PROMPT))
        except (EOFError, KeyboardInterrupt):
            print()
            raise


class _EditorReader:
    """Messages from an editor with a history, in which a paste of several lines is one message."""

    def __init__(self, out: TextIO) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.output.vt100 import Vt100_Output

        output = Vt100_Output.from_pty(out, term=os.environ.get("TERM"))
        # Some terminals never answer when they are asked where the cursor is.
        output.enable_cpr = False
        bindings = KeyBindings()

        def begin_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        bindings.add("escape", "enter")(begin_line)
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            history=InMemoryHistory(),
            key_bindings=bindings,
            # Before the lines of one message, and not where a line is wrapped.
            prompt_continuation=lambda width, line, wrapped: "" if wrapped else " " * width,
            reserve_space_for_menu=0,
            enable_suspend=True,
            output=output,
        )

    def read(self) -> str:
        """Return the next message; raises as of Reader."""
        with _set_back_by_signals():
            return _text(self._session.prompt())


def _text(typed: str) -> str:
    # A byte that is not UTF-8 is a surrogate in what a terminal gives.
    return decoded(typed.encode("utf-8", "surrogateescape"), "the message")


@contextmanager
def _set_back_by_signals() -> Iterator[None]:
    """Set the terminal back, which an editor has changed, before a signal ends the process."""
    terminal = sys.stdin.fileno()
    settings = termios.tcgetattr(terminal)

    def end(number: int, frame: object) -> None:
        with suppress(OSError, termios.error):  # the terminal may be what has gone
            termios.tcsetattr(terminal, termios.TCSANOW, settings)
            # Past Python's buffers, in the middle of whose writing the signal may have come.
            os.write(terminal, _SET_BACK)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    # One that is ignored, as by nohup, stays so.
    taken = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def terminal_reader(out: TextIO) -> tuple[Reader, str | None]:
    """Return what reads from the terminal, and what the user should know of it.

    Parameters
    ----------
    out : TextIO
        The same terminal.

    Returns
    -------
    reader : Reader
        The best that the terminal and the installation have.
    advice : str or None
        What is missing, with the way out.
    """
    if is_dumb():
        return LineReader(out), None
    try:
        return _EditorReader(out), None
    except ImportError:
        return _ReadlineReader(), (
            "pip install prompt_toolkit brings an editor that takes a paste of several lines as "
            "one message"
        )
