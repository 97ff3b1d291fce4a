"""Errors of the MSL runner."""

from __future__ import annotations

from oxibonsai.msl.errors import CompileError, MslError

__all__ = ["CompileError", "CompilerMissingError", "LaunchError", "MslError"]


class CompilerMissingError(MslError):
    """No clang that the runner can use; the message says how to get one."""


class LaunchError(MslError):
    """A kernel could not be launched, or did what it must not."""
