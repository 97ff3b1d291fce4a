"""Messages, tools, documents and variables as a template gets them.

As in Hugging Face transformers a template sees plain values only: texts, numbers, lists and
mappings, without the objects that a program put there. All text among them is DATA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np

from oxibonsai.chat.errors import ChatTemplateError
from oxibonsai.chat.origins import DATA, LITERAL, number
from oxibonsai.chat.printing import to_json
from oxibonsai.chat.provenance import Traced, mark, plain

__all__ = ["listed", "messages_of", "parts_of", "traced"]

_ROLES: Final = frozenset(
    (
        "system",
        "developer",
        "user",
        "assistant",
        "model",
        "tool",
        "function",
        "ipython",
        "observation",
        "context",
    )
)
"""Roles that programs give to turns. Their names are words of the template's language, from which
some templates make names of tokens, such as ``<|user|>``; any other role is text."""
_REASONING: Final = ("reasoning_content", "thinking", "reasoning")


def traced(value: Any) -> Any:
    """Return a value with all text in it marked as DATA, the keys of mappings too."""
    if isinstance(value, str):
        return mark(plain(value), DATA)
    if value is None or type(value) is bool:
        return value
    if isinstance(value, int):
        return number(int(value), DATA)
    if isinstance(value, float):
        return number(float(value), DATA)
    if isinstance(value, Mapping):
        return {traced(key): traced(item) for key, item in value.items()}
    if isinstance(value, list):
        return [traced(item) for item in value]
    if isinstance(value, tuple):
        return tuple(traced(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {traced(field.name): traced(getattr(value, field.name)) for field in fields}
    if isinstance(value, np.generic):
        return traced(value.item())
    if callable(getattr(value, "model_dump", None)):  # of pydantic
        return traced(value.model_dump())
    return mark(f"<{type(value).__name__}>", DATA)


def parts_of(texts: Iterable[str]) -> list[dict[str, str]]:
    """Return texts as parts of a content.

    Parameters
    ----------
    texts : iterable of str
        The texts.

    Returns
    -------
    list of dict
        The parts.
    """
    return [{"type": "text", "text": text} for text in texts]


def messages_of(
    messages: Iterable[Any],
    *,
    as_parts: Callable[[str], bool] = lambda role: False,
    without_content: Callable[[], bool] = lambda: False,
    text_arguments: Callable[[], bool] = lambda: False,
) -> list[dict[Any, Any]]:
    """Return the messages of a conversation.

    Parameters
    ----------
    messages : iterable of mapping
        Each has a role. Content that is None or missing becomes "", and a list of parts with text
        becomes their text; other keys without a value are left out.
    as_parts : callable
        Returns of a role whether its content shall be a list of parts, whatever it was.
    without_content : callable
        Returns whether the content of tool calls without any text shall be None.
    text_arguments : callable
        Returns whether the arguments of those calls shall be JSON text where they are mappings.

    Returns
    -------
    list of dict
        The messages, with all text marked.

    Raises
    ------
    ChatTemplateError
        For what is no message, with its index and role.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise ChatTemplateError(
            f"messages is a {type(messages).__name__}; a list of messages is needed, such as "
            '[{"role": "user", "content": "Hello"}]'
        )
    found = []
    for i, message in enumerate(messages):
        values, texts = _message(i, message)
        role = plain(values["role"])
        if role == "assistant" and values.get("tool_calls") and not any(texts):
            if without_content():
                values["content"] = None
                if text_arguments():
                    values["tool_calls"] = [_with_text(call) for call in values["tool_calls"]]
        elif any(texts) and as_parts(role):
            values["content"] = traced(parts_of(texts))
        found.append(values)
    return found


def _message(index: int, message: Any) -> tuple[dict[Any, Any], list[str]]:
    """Return a message with its content as text, and the texts that this is of."""
    values = traced(message)
    if not isinstance(values, dict):
        raise ChatTemplateError(
            f"message {index} is a {type(message).__name__}; a mapping with a role and a content "
            "is needed"
        )
    role = values.get("role")
    if not isinstance(role, Traced):
        what = "has no role" if role is None else f"has {role!r} as its role"
        raise ChatTemplateError(f"message {index} {what}; a text such as 'user' is needed")
    if role in _ROLES:
        values["role"] = mark(plain(role), LITERAL)
    given = message if isinstance(message, Mapping) else values
    texts = _content(index, plain(role), given.get("content"))
    values["content"] = mark("".join(texts), DATA)
    found = {key: value for key, value in values.items() if value is not None}
    # The names under which reasoning is passed stand for one another.
    reasoning = next((found[key] for key in _REASONING if key in found), None)
    if reasoning is not None:
        found = {"thinking": reasoning, **found, "reasoning_content": reasoning}
    return found, texts


def _with_text(call: Any) -> Any:
    """Return a tool call with its arguments as JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    return {**call, "function": {**function, "arguments": to_json(function["arguments"])}}


def _content(index: int, role: str, content: Any) -> list[str]:
    where = f"the content of message {index} (role {role!r})"
    if content is None:
        return []
    if isinstance(content, str):
        return [plain(content)]
    if not isinstance(content, (list, tuple)):
        raise ChatTemplateError(
            f"{where} is a {type(content).__name__}; a text, None or a list of parts with text is "
            "needed"
        )
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, Mapping):
            raise ChatTemplateError(
                f"part {i} of {where} is a {type(part).__name__}; "
                'a mapping {"type": "text", "text": ...} is needed'
            )
        if part.get("type") != "text":
            raise ChatTemplateError(
                f"part {i} of {where} is of type {part.get('type')!r}; this model reads parts of "
                "type 'text' only"
            )
        if not isinstance(part.get("text"), str):
            raise ChatTemplateError(
                f"part {i} of {where} has a {type(part.get('text')).__name__} as its text; a str "
                "is needed"
            )
        texts.append(plain(part["text"]))
    return texts


def listed(name: str, values: Any) -> list[Any] | None:
    """Return tools or documents, a list of mappings, with all text marked.

    Parameters
    ----------
    name : str
        What they are, for messages.
    values : iterable of mapping or None
        They.

    Returns
    -------
    list of dict or None
        The mappings.

    Raises
    ------
    ChatTemplateError
        For anything else.
    """
    if values is None:
        return None
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise ChatTemplateError(
            f"{name} is a {type(values).__name__}; a list of mappings is needed, or None"
        )
    found = []
    for i, value in enumerate(values):
        item = traced(value)
        if not isinstance(item, dict):
            raise ChatTemplateError(f"{name}[{i}] is a {type(value).__name__}; a mapping is needed")
        found.append(item)
    return found
