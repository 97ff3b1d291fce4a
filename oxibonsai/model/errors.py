"""Errors of texts on a model."""

from __future__ import annotations

__all__ = ["EngineClosedError", "EngineFullError", "SessionFileError", "SessionFullError"]


class SessionFullError(ValueError):
    """The session has no room for the tokens; it is as it was before the call."""


class SessionFileError(ValueError):
    """A file holds no session of this model, or is damaged."""


class EngineFullError(RuntimeError):
    """As many requests wait for the engine as may; the one that came was not taken."""


class EngineClosedError(RuntimeError):
    """The engine, or its model, was closed before the request had ended."""
