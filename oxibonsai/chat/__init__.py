"""Conversations by the chat template of a model's file.

::

    chat = Chat(model.session(), system="Answer briefly.")
    for piece in chat.send("Who is Alice?"): print(piece, end="")
"""

from __future__ import annotations

from oxibonsai.chat.conversation import Chat
from oxibonsai.chat.template import ChatTemplate, ChatTemplateError, Message

__all__ = ["Chat", "ChatTemplate", "ChatTemplateError", "Message"]
