"""The command line, run in a process of its own or in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from oxibonsai.cli import main


def environment(**changes: str | None) -> dict[str, str]:
    """Return this environment with the package on the path and `changes` made; None removes."""
    unset = (
        "PYTHONIOENCODING",
        "PYTHONUTF8",
        "PYTHONUNBUFFERED",
        "LC_ALL",
        "LC_CTYPE",
        "OXIBONSAI_DEVICE",
    )
    found = {key: value for key, value in os.environ.items() if key not in unset}
    # The driver that every machine has: what is tested here lies above it.
    found |= {"PYTHONPATH": str(ROOT), "OXIBONSAI_DEVICE": "cpu"}
    for key, value in changes.items():
        found.pop(key, None)
        if value is not None:
            found[key] = value
    return found


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "oxibonsai", *map(str, arguments)]


def run(
    *arguments: Any, status: int = 0, cwd: Path | None = None, **env: str | None
) -> tuple[str, str]:
    """Run the command and return what it printed, read as UTF-8 without mercy."""
    done = subprocess.run(
        command(*arguments), capture_output=True, cwd=cwd, env=environment(**env), timeout=120
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == status, err
    return out, err


def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Run and return the message: one line on standard error, nothing on standard output."""
    assert main([*map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("oxibonsai: ")
    assert err.count("\n") == 1
    return err
