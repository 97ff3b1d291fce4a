"""The parser of the command line, and its exit status."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from oxibonsai import __version__, metal
from oxibonsai.cli import bench, chat, devices, generate, info

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="oxibonsai", description="Run 1-bit and ternary language models."
    )
    parser.add_argument("--version", action="version", version=f"oxibonsai {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, module, help in (
        ("generate", generate, "continue a text with a model"),
        ("chat", chat, "talk with a model that has a chat template"),
        ("bench", bench, "measure the speed of a model"),
        ("info", info, "say what is in a GGUF file"),
        ("devices", devices, "list the devices, the default first"),
    ):
        command = commands.add_parser(name, help=help)
        module.add_options(command)
        command.set_defaults(run=module.run)
    return parser


def _settle(out: TextIO) -> None:
    """Flush `out`, or where that fails send the rest nowhere: Python flushes again at its end."""
    try:
        out.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C.
    """
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal's encoding lacks must not end a text.
        sys.stdout.reconfigure(errors="replace")
    try:
        status: int = args.run(args, sys.stdout)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone; nothing can be told to it.
        _settle(sys.stdout)
        return 1
    except (metal.MetalGraphError, ValueError, OSError, ImportError) as error:
        print(f"oxibonsai: {error}", file=sys.stderr)
        _settle(sys.stdout)
        return 1
