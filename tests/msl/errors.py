"""Errors of the MSL runner."""

from __future__ import annotations


class MslError(Exception):
    """Any failure of the runner."""


class CompilerMissingError(MslError):
    """No clang that the runner can use; the message says how to get one."""


class CompileError(MslError):
    """The source was refused; the message is the log, FILE:LINE[:COLUMN]: error: TEXT."""


class LaunchError(MslError):
    """A kernel could not be launched, or did what it must not."""
