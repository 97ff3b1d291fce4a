"""What can be typed in a conversation."""

from __future__ import annotations

import textwrap

__all__ = ["ALIASES", "HELP", "help_text"]

ALIASES = {"/quit": "/exit", "/?": "/help"}
"""Other names of commands."""

_ROWS = (
    ("/reset", "forget the conversation"),
    ("/undo", "forget the last message and its answer"),
    ("/history", "show the conversation"),
    ("/result R", "give the model the result R of its call"),
    ("/save F", "save the conversation in the file F, for --session F"),
    ("/help", "show this; also /?"),
    ("/exit", "end, as Ctrl-D does; also /quit"),
    ("//text", "send a message that begins with /"),
)
_KEYS = (
    "Ctrl-C stops an answer; the conversation goes on. In a terminal, Alt-Enter begins a new line, "
    "and a paste of several lines is one message."
)


def help_text(width: int) -> str:
    """Return the commands and keys, in lines no longer than a terminal's.

    Parameters
    ----------
    width : int
        Columns of the terminal.

    Returns
    -------
    str
        The lines.
    """
    width = max(width, 20)
    rows = [
        textwrap.fill(f"{name:<9} {text}", width, subsequent_indent=" " * 10)
        for name, text in _ROWS
    ]
    return "\n".join([*rows, textwrap.fill(_KEYS, width)])


HELP = help_text(100)
