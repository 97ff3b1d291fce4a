"""Errors of the Metal Shading Language front end."""

from __future__ import annotations


class MslError(Exception):
    """Any failure to read or run Metal Shading Language."""


class CompileError(MslError):
    """The source was refused; the message is the log, FILE:LINE[:COLUMN]: error: TEXT."""
