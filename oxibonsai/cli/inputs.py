"""Text that users give: in arguments, in files and on standard input."""

from __future__ import annotations

import codecs
import os
import stat
import sys
from pathlib import Path

__all__ = [
    "InputLines",
    "argument",
    "decoded",
    "has_input",
    "read_file",
    "read_input",
    "without_last_newline",
]

_CLOSED = "standard input is closed: there is nothing to read"


def argument(option: str, text: str) -> str:
    """Return the text of an argument.

    Parameters
    ----------
    option : str
        Its name.
    text : str
        As Python gives it: a byte that its encoding lacks stands in it as a surrogate.

    Returns
    -------
    str
        The text, where the bytes are UTF-8 after all, as those are that a C locale hides.

    Raises
    ------
    ValueError
        If they are not.
    """
    if text.isascii():
        return text
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{option} is no text: character {error.start}, U+{ord(text[error.start]):04X}, is a "
            "lone surrogate"
        ) from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{_not_text(option, data, error, 'utf-8')} (to Python, a surrogate)"
        ) from None


def decoded(data: bytes, name: str, encoding: str = "utf-8") -> str:
    """Return the text that bytes stand for, without a byte order mark.

    Parameters
    ----------
    data : bytes
        The bytes.
    name : str
        Of where they are from, for the message.
    encoding : str
        Theirs.

    Returns
    -------
    str
        The text.

    Raises
    ------
    ValueError
        For bytes that are none, with the position of the first.
    """
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(_not_text(name, data, error, encoding)) from None


def _not_text(name: str, data: bytes, error: UnicodeDecodeError, encoding: str) -> str:
    return f"{name} is not {encoding.upper()}: byte 0x{data[error.start]:02x} at {error.start}"


def _whole(data: bytes, name: str, encoding: str = "utf-8") -> str:
    """Return the text of a whole file."""
    if encoding == "utf-8" and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(
            f"{name} is not UTF-8: byte 0x{data[0]:02x} at 0, with which UTF-16 begins: convert it "
            "to UTF-8"
        )
    return decoded(data, name, encoding)


def read_file(path: Path, option: str) -> str:
    """Return the text of a file that is UTF-8.

    Parameters
    ----------
    path : Path
        The file.
    option : str
        The option that names it.

    Returns
    -------
    str
        Its text, with the ends of lines as they are.

    Raises
    ------
    ValueError
        If it is not UTF-8.
    OSError
        If it cannot be read.
    """
    return _whole(path.read_bytes(), f"{option} {path}")


def has_input() -> bool:
    """Return whether somebody gives text on standard input: over a pipe, or from a file.

    A terminal waits for somebody to type, and devices such as /dev/null are what a program without
    input is given.
    """
    stream = sys.stdin
    if stream is None or stream.closed:
        return False
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        # A stream that a program put in the place of standard input.
        return stream.readable()
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def read_input() -> str:
    """Return all text of standard input.

    Returns
    -------
    str
        The text, with the ends of lines as they are.

    Raises
    ------
    ValueError
        If it is closed, or no text.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise ValueError(_CLOSED)
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        return sys.stdin.read()
    return _whole(buffer.read(), "standard input", _encoding())


class InputLines:
    """The lines of standard input, each read when it is asked for.

    Raises
    ------
    ValueError
        If standard input is closed.
    """

    def __init__(self) -> None:
        if sys.stdin is None or sys.stdin.closed:
            raise ValueError(_CLOSED)
        self._encoding = _encoding()
        self._number = 0

    @property
    def place(self) -> str:
        """The number of the last line, such as "line 3"."""
        return f"line {self._number}"

    def read(self) -> str | None:
        """Return the next line without its end, or None where there is no more.

        Raises
        ------
        ValueError
            If the line is no text. The next call reads the one after it.
        """
        buffer = getattr(sys.stdin, "buffer", None)
        line = sys.stdin.readline() if buffer is None else buffer.readline()
        if not line:
            return None
        self._number += 1
        if isinstance(line, bytes):
            line = decoded(line, self.place, self._encoding)
        return str(line).rstrip("\r\n")


def _encoding() -> str:
    """Return the encoding of standard input: UTF-8, of which ASCII is a part, or what is set."""
    try:
        name = codecs.lookup(sys.stdin.encoding or "utf-8").name
    except (LookupError, AttributeError):
        return "utf-8"
    return "utf-8" if name == "ascii" else name


def without_last_newline(text: str) -> str:
    """Return a text without the end of its last line, which editors and shells put there.

    Parameters
    ----------
    text : str
        The text.

    Returns
    -------
    str
        The text, shorter by one LF or CR LF if it ends with one.
    """
    return text[:-1].removesuffix("\r") if text.endswith("\n") else text
