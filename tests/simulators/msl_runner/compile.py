"""Compile MSL from the command line; msl_runtime.h describes the interface."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .build import MODES, Options, build
from .errors import CompileError, MslError
from .toolchain import runtime_library


def _constant(text: str) -> tuple[int, str, str]:
    index, _, rest = text.partition(":")
    type_name, equals, value = rest.partition("=")
    if not index.isdecimal() or not type_name or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not INDEX:TYPE=VALUE")
    return int(index), type_name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m msl_runner.compile", description=__doc__)
    parser.add_argument("source", nargs="?", metavar="SOURCE", type=Path)
    parser.add_argument("--runtime", action="store_true", help="print the runtime's path alone")
    parser.add_argument("--name", help="what errors call the source")
    parser.add_argument("--mode", choices=MODES, default="fast")
    parser.add_argument("--version", default="2.4", help="language version")
    parser.add_argument("--kernel", action="append", default=[], metavar="NAME")
    parser.add_argument(
        "--constant", action="append", default=[], type=_constant, metavar="INDEX:TYPE=VALUE"
    )
    parser.add_argument("--include", action="append", default=[], metavar="DIR")
    parser.add_argument("--fast-math", action="store_true")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print what msl_runtime.h says, and give the exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if (given.source is None) != given.runtime:
        parser.error("give a SOURCE or --runtime")
    try:
        if given.runtime:
            print("runtime", runtime_library())
            return 0
        options = Options(
            mode=given.mode,
            version=given.version,
            values=tuple(sorted(given.constant)),
            kernels=tuple(sorted(given.kernel)),
            include=tuple(given.include),
            fast_math=given.fast_math,
        )
        source = given.source.read_text()
        result = build(source, given.name or str(given.source), options)
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    except (MslError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for warning in result.warnings:
        print(warning, file=sys.stderr)
    print("runtime", result.runtime)
    print("library", result.library)
    return 0


if __name__ == "__main__":
    sys.exit(main())
