"""Conversations by the chat template of a model's file.

::

    chat = Chat(model.session(), system="Answer briefly.")
    for piece in chat.send("Who is Alice?"): print(piece, end="")
"""

from __future__ import annotations

from oxibonsai.chat.answer import Answer, AnswerParser, parse_answer
from oxibonsai.chat.conversation import Chat
from oxibonsai.chat.saved import ChatFileError
from oxibonsai.chat.template import ChatTemplate, ChatTemplateError, Message
from oxibonsai.chat.toolcalls import Tool, ToolCall

__all__ = [
    "Answer",
    "AnswerParser",
    "Chat",
    "ChatFileError",
    "ChatTemplate",
    "ChatTemplateError",
    "Message",
    "Tool",
    "ToolCall",
    "parse_answer",
]
