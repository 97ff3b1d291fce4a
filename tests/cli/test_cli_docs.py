"""docs/command-line.md has every option and command."""

from __future__ import annotations

import argparse
import re

from places import ROOT

from oxibonsai.cli.app import _parser
from oxibonsai.cli.conversation import HELP

PAGE = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")


def options() -> dict[str, set[str]]:
    """Return the options of each command."""
    (commands,) = (
        action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return {
        name: {o for action in parser._actions for o in action.option_strings} - {"-h", "--help"}
        for name, parser in commands.choices.items()
    }


def test_every_option_is_in_a_table_and_no_other():
    cells = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| `-")]
    found = {option for cell in cells for option in re.findall(r"`(--?[a-z][a-z0-9-]*)", cell)}
    assert found == set().union(*options().values())


def test_every_command_of_the_program_and_of_a_chat_is_there():
    for name in options():
        assert f"oxibonsai {name} " in PAGE
        assert f"\n## {name}\n" in PAGE
    for name in re.findall(r"^(/[a-z]+)", HELP, re.MULTILINE):
        assert f"`{name}" in PAGE


def test_exit_statuses_are_there():
    assert re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE) == ["0", "1", "2", "130"]
