"""The ``oxibonsai`` command, a file for each of its commands."""

from __future__ import annotations

from oxibonsai.cli.app import main

__all__ = ["main"]
