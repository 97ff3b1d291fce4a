"""Errors of texts on a model."""

from __future__ import annotations

__all__ = ["SessionFileError", "SessionFullError"]


class SessionFullError(ValueError):
    """The session has no room for the tokens; it is as it was before the call."""


class SessionFileError(ValueError):
    """A file holds no session of this model, or is damaged."""
