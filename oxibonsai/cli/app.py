"""The parser of the command line, and its exit status."""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import sys
from collections.abc import Sequence

from oxibonsai import __version__, metal
from oxibonsai.cli import bench, chat, devices, generate, info, tune
from oxibonsai.cli.inputs import argument
from oxibonsai.cli.naming import as_typed
from oxibonsai.cli.parsing import Parser
from oxibonsai.cli.terminal import is_terminal, note, settled

__all__ = ["main"]

HUNG_UP = 129
EPILOG = (
    "exit status: 0; 1 for an error, told in one line on standard error; 2 for wrong usage; 130 "
    "after Ctrl-C. docs/command-line.md has every option."
)


_COMMANDS = {
    "generate": (generate, "continue a text with a model"),
    "chat": (chat, "talk with a model that has a chat template"),
    "bench": (bench, "measure the speed of a model"),
    "info": (info, "say what is in a GGUF file"),
    "devices": (devices, "list the devices, the default first"),
    "tune": (tune, "choose the fastest kernels for a device"),
}


def _parser() -> Parser:
    return _parsers()[0]


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the whole line, and those of the commands."""
    parser = Parser(
        prog="oxibonsai", description="Run 1-bit and ternary language models.", epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=f"oxibonsai {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    found = {}
    for name, (module, help) in _COMMANDS.items():
        found[name] = commands.add_parser(name, help=help)
        module.add_options(found[name])
        found[name].set_defaults(run=module.run)
    return parser, found


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments, with texts as the bytes that the user gave."""
    parser, commands = _parsers()
    given = list(sys.argv[1:] if argv is None else argv)
    if given and not given[0].startswith("-"):
        name = given[0]
        if name not in commands:
            alike = difflib.get_close_matches(name, commands, 1)
            known = f"there is no command {name!r}; there are {', '.join(commands)}"
            parser.error(known + (f": did you mean {alike[0]}?" if alike else ""))
        given = [name, *commands[name].joined(given[1:])]
    args = parser.parse_args(given)
    for name, value in vars(args).items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, str):
            setattr(args, name, argument(option, value))
        elif isinstance(value, list):
            texts = [argument(option, x) if isinstance(x, str) else x for x in value]
            setattr(args, name, texts)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process where left out.

    Returns
    -------
    int
        0, 1 for an error, 130 after Ctrl-C, 129 where the terminal has gone.

    Raises
    ------
    SystemExit
        After ``--help`` and ``--version``, and with 2 for wrong usage.
    """
    out = sys.stdout
    if out is None:
        note("oxibonsai: standard output is closed: there is nowhere to write to")
        return 1
    if isinstance(out, io.TextIOWrapper):
        # A character that the terminal's encoding lacks must not end a text.
        out.reconfigure(errors="replace")
    args = None
    in_terminal = is_terminal(out) or is_terminal(sys.stdin)
    try:
        try:
            args = _parse(argv)
        except SystemExit:
            out.flush()
            raise
        status: int = args.run(args, out)
        out.flush()
        return status
    except KeyboardInterrupt:
        settled(out)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone; nothing can be told to it.
        settled(out)
        return 1
    except MemoryError as error:
        message = str(error)
        note(f"oxibonsai: out of memory{': ' if message else ''}{message}")
    except RecursionError as error:
        note(f"oxibonsai: the input is nested too deeply: {error}")
    except (metal.MetalGraphError, ValueError, OSError, ImportError, OverflowError) as error:
        note(f"oxibonsai: {as_typed(error, args)}")
        if isinstance(error, OSError) and error.errno == errno.EIO and error.filename is None:
            # As the signal ends a process that does not ignore it.
            status = HUNG_UP if in_terminal else 1
            settled(out)
            return status
    settled(out)
    return 1
