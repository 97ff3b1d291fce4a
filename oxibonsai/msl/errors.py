"""Errors of the Metal Shading Language front end."""

from __future__ import annotations


class MslError(Exception):
    """Base of every failure to read or run Metal Shading Language."""


class CompileError(MslError):
    """A source was refused; the message is the log, lines of FILE:LINE[:COLUMN]: error: TEXT."""
