"""Random conversations, made of what has a meaning to a template or a tokenizer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import qwen3_texts
from qwen3_chats import Conversation, Message, assistant, call, schema, system, tool, user

_BITS = (
    *("", " ", "\n", "\n\n", "a", "42", "'s", "e\u0301", "\u0301", "<", "|>", "<|im_", "end|>"),
    *("<think>", "</think>", "<tool_response>", "</tool_response>", "think>", "</thin"),
)
_NUMBERS = (1, 0, -2.5, 1e30, None, True, False)


class RandomChats:
    """Draws conversations with the names of special tokens in any of their texts."""

    def __init__(self, seed: int, names: Sequence[str]) -> None:
        self._rng = random.Random(seed)
        # Characters for private use mark names in the expectation.
        texts = [
            text
            for kind in qwen3_texts.COUNTS
            if kind != "long"
            for text in qwen3_texts.texts(kind)
            if not any("\ue000" <= c <= "\uf8ff" for c in text)
        ]
        self._pools = (_BITS, _BITS, names, names, texts)

    def draw(self) -> Conversation:
        rng = self._rng
        messages = [system(self._text())] if rng.random() < 0.4 else []
        messages += [self._message() for _ in range(rng.randrange(1, 6))]
        options: dict[str, Any] = {}
        if rng.random() < 0.4:
            properties = {self._text(): self._value(), "x": {"type": self._text()}}
            options["tools"] = [schema(self._text(), self._text(), **properties)]
        if rng.random() < 0.3:
            options["enable_thinking"] = rng.random() < 0.5
        if rng.random() < 0.3:
            options["add_generation_prompt"] = False
        return Conversation(messages, options)

    def _message(self) -> Message:
        rng = self._rng
        role = rng.choice(("user", "user", "result", "assistant", "assistant", "assistant", "tool"))
        if role == "user":
            return user(self._text())
        if role == "result":
            return user(f"<tool_response>{self._text()}</tool_response>")
        if role == "tool":
            return tool(self._text())
        thought = f"<think>{self._text()}</think>" if rng.random() < 0.4 else ""
        message = assistant(thought + self._text())
        if rng.random() < 0.3:
            message["reasoning_content"] = self._text()
        if rng.random() < 0.4:
            message["tool_calls"] = [self._call() for _ in range(rng.randrange(1, 3))]
        return message

    def _call(self) -> dict[str, Any]:
        arguments: Any = self._text()
        if self._rng.random() < 0.5:
            arguments = {self._text(): self._value()}
        return call(self._text(), arguments, bare=self._rng.random() < 0.3)

    def _text(self) -> str:
        rng = self._rng
        return "".join(rng.choice(rng.choice(self._pools)) for _ in range(rng.randrange(6)))

    def _value(self, depth: int = 0) -> Any:
        rng = self._rng
        kind = rng.choice(("text", "text", "number", "list", "object"))
        if kind == "text" or depth > 2:
            return self._text()
        if kind == "number":
            return rng.choice(_NUMBERS)
        inner = [self._value(depth + 1) for _ in range(rng.randrange(3))]
        return inner if kind == "list" else {self._text(): value for value in inner}
