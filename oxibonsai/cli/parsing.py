"""Parsers of arguments that name what was meant, and take values that begin with a dash."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from oxibonsai.cli.terminal import escaped

__all__ = ["Parser", "file_name", "model_name"]


class Parser(argparse.ArgumentParser):
    """A parser whose messages never steer a terminal, and name what is alike."""

    def error(self, message: str) -> NoReturn:
        """Write the usage and a message to standard error, and exit with 2."""
        if message.endswith("expected one argument"):
            option = message.split()[1].rstrip(":").split("/")[-1]
            message += f"; one that is the name of an option is given as {option}=VALUE"
        super().error(escaped(message))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and refuse what is left: the parser of a command has the usage that helps."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error("; ".join(self._unknown(rest)))
        return found, rest

    def joined(self, argv: Sequence[str]) -> list[str]:
        """Return arguments in which a value that begins with a dash is behind its option's "=".

        Without, argparse takes it for an option. The name of one of the options is no value.

        Parameters
        ----------
        argv : sequence of str
            The arguments.

        Returns
        -------
        list of str
            The arguments.
        """
        actions = self._option_string_actions
        found: list[str] = []
        rest = list(argv)
        while rest:
            option = rest.pop(0)
            if option == "--":
                return [*found, option, *rest]
            alike = [name for name in actions if name.startswith(option)]
            name = option if option in actions else alike[0] if len(alike) == 1 else None
            value = rest[0] if rest else ""
            is_value = len(value) > 1 and value[0] == "-" and value.split("=")[0] not in actions
            if name is not None and actions[name].nargs is None and is_value:
                rest.pop(0)
                option += f"={value}" if option.startswith("--") else value
            found.append(option)
        return found

    def _unknown(self, rest: Sequence[str]) -> list[str]:
        found = []
        for text in rest:
            name = text.partition("=")[0]
            if not name.startswith("-"):
                continue
            alike = difflib.get_close_matches(name, self._option_string_actions, 1)
            found.append(
                f"there is no option {name}" + (f": did you mean {alike[0]}?" if alike else "")
            )
        return found or [f"unrecognized arguments: {' '.join(rest)}"]

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # argparse leaves a value of "--" out, also where it is the text of an option.
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            return self._get_value(action, "--")
        return super()._get_values(action, arg_strings)

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse passes over a stream that cannot be written; a full disk is an error.
        if message and file is sys.stdout and file is not None:
            file.write(message)
        elif message:
            super()._print_message(message, file)


def file_name(text: str) -> Path:
    """Return the path that an argument names.

    Parameters
    ----------
    text : str
        The argument.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    ArgumentTypeError
        For no name.
    """
    if not text:
        raise argparse.ArgumentTypeError("the name is empty: name a file")
    return Path(text)


def model_name(text: str) -> Path:
    """Return the path of a file that standard input cannot stand for.

    Parameters
    ----------
    text : str
        The argument.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    ArgumentTypeError
        For no name, and for "-".
    """
    if text == "-":
        raise argparse.ArgumentTypeError(
            '"-" is standard input, which cannot be read in any order: name a file, or "./-"'
        )
    return file_name(text)
