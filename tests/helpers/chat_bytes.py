"""Chat templates for a vocabulary of bytes with a few special tokens, and what they are given."""

from __future__ import annotations

from typing import Any

from chat_templates import byte_tokenizer

from oxibonsai.chat import ChatTemplate

NAME = "<|im_end|>"
BYTES = byte_tokenizer([NAME, "<|im_start|>"], ["<think>", "</think>"])
END, START, THINK, END_THINK = 256, 257, 258, 259


def template(source: str, **kw: Any) -> ChatTemplate:
    """Return a template for these bytes."""
    return ChatTemplate(source, BYTES, name="'test'", **kw)


def user(content: Any = "", **more: Any) -> list[dict[str, Any]]:
    """Return the messages of a conversation with one."""
    return [{"role": "user", "content": content, **more}]


def encoded(text: str, *tokens: int | str) -> list[int]:
    """Return the ids of a text and what follows it."""
    return [*text.encode(), *(i for t in tokens for i in (t.encode() if type(t) is str else [t]))]
