"""``oxibonsai chat``: a conversation in the terminal, or over a pipe line by line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, TextIO

from oxibonsai.chat import Chat
from oxibonsai.cli.options import add_model, add_session, load
from oxibonsai.cli.sampling import add_sampling, sampling, score_line
from oxibonsai.model import Model, ScoredToken, Session, SessionFullError

__all__ = ["add_options", "run"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
HELP = """\
/reset    forget the conversation
/undo     forget the last message and its answer
/history  show the conversation
/help     show this
/exit     end, as Ctrl-D does
//text    send a message that begins with /
Ctrl-C stops an answer; the conversation goes on."""


class _Screen:
    """Where lines come from and answers go; in a terminal with colours and a prompt."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.interactive = sys.stdin.isatty() and out.isatty()
        self._console: Any = None
        if self.interactive:
            try:
                from rich.console import Console
            except ImportError as e:
                raise ImportError(
                    "chat in a terminal needs the package rich: pip install tokenizers jinja2 rich"
                ) from e
            self._console = Console(file=out, highlight=False)
            with suppress(ImportError):  # a Python built without it
                import readline  # noqa: F401  # edits the lines that input() reads

    def read(self) -> str:
        """Return a line; EOFError at the end."""
        if self._console is not None:
            return input("> ")  # readline has to know the prompt: it draws the line again
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def piece(self, text: str) -> None:
        """Write a part of an answer at once."""
        if self._console is not None:
            # A model must not steer the terminal.
            text = _CONTROL.sub("?", text)
            self._console.print(text, end="", markup=False, soft_wrap=True)
        else:
            self._out.write(text)
        self._out.flush()

    def note(self, text: str) -> None:
        """Write what is no part of the conversation: over a pipe to standard error."""
        if self._console is not None:
            self._console.print(text, style="dim", markup=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="a message that comes before all others")
    parser.add_argument(
        "--max-tokens", type=int, default=1024, metavar="N", help="the most of an answer (1024)"
    )
    add_sampling(parser, temperature=0.7)
    add_session(parser)


def run(args: argparse.Namespace, out: TextIO) -> int:
    """Run the command and return its exit status."""
    with (
        load(args) as model,
        model.session(args.max_seq, args.kv_dtype, chunk=args.chunk) as session,
    ):
        return _converse(args, model, session, out)


def _converse(args: argparse.Namespace, model: Model, session: Session, out: TextIO) -> int:
    chat = Chat(session, system=args.system)
    screen = _Screen(out)
    options = sampling(args, model)
    session.check_options(args.max_tokens, n_best=args.logprobs or 0, **options)
    if screen.interactive:
        screen.note(f"{model.name} on {model.device.name}; /help says what can be typed")
    while True:
        try:
            line = screen.read()
        except EOFError:
            if screen.interactive:
                screen.note("")
            return 0
        except KeyboardInterrupt:
            if not screen.interactive:
                raise
            screen.note("\n(Ctrl-D ends)")
            continue
        if line.startswith("/") and not line.startswith("//"):
            if line.strip() == "/exit":
                return 0
            _run_command(line.strip(), chat, screen)
        elif line.strip():
            _answer(args, chat, line[1:] if line.startswith("//") else line, screen, options)


def _run_command(line: str, chat: Chat, screen: _Screen) -> None:
    def undo() -> None:
        screen.note("undone" if chat.undo() else "there is nothing to undo")

    def reset() -> None:
        chat.reset()
        screen.note("the conversation is forgotten")

    def history() -> None:
        for message in chat.messages:
            screen.note(f"{message['role']}: {message['content']}")

    commands: dict[str, Callable[[], None]] = {
        "/reset": reset,
        "/undo": undo,
        "/history": history,
        "/help": lambda: screen.note(HELP),
    }
    if line in commands:
        commands[line]()
    else:
        screen.note(f"no command {line!r}; there are {', '.join(commands)} and /exit")


def _answer(
    args: argparse.Namespace, chat: Chat, text: str, screen: _Screen, options: dict[str, Any]
) -> None:
    scores: list[ScoredToken] = []
    if args.logprobs is not None:
        options = {**options, "on_token": scores.append, "n_best": args.logprobs}
    try:
        pieces = chat.send(text, args.max_tokens, **options)
        with closing(pieces):
            for piece in pieces:
                screen.piece(piece)
        screen.piece("\n")
    except KeyboardInterrupt:
        screen.piece("\n")
        screen.note("(stopped)")
    except SessionFullError as error:
        screen.piece("\n")
        screen.note(f"{error} (/reset or /undo makes room)")
    for scored in scores:
        screen.note(score_line(scored, chat.session.model.tokenizer))
