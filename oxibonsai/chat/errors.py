"""What goes wrong with chats."""

from __future__ import annotations

__all__ = ["ChatTemplateError"]


class ChatTemplateError(ValueError):
    """There is no chat template, or it does not take these messages."""
