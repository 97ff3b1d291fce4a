"""What a chat is given, checked before anything is done with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from oxibonsai.chat.template import ChatTemplate, ChatTemplateError, Message

__all__ = [
    "NO_VARIABLES",
    "Options",
    "check_answerable",
    "check_callback",
    "check_messages",
    "check_options",
]

NO_VARIABLES: Final = frozenset({"self", "messages", "tools", "documents", "add_generation_prompt"})
"""Names that cannot be a template's variables: it gets them otherwise."""


class Options(Protocol):
    """What can be wrong with a `Chat`; attributes as of it."""

    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    thinking: bool | None
    show_thinking: bool
    on_drop: Callable[[int], object] | None
    variables: dict[str, Any]


def check_options(given: Options, template: object) -> None:
    """Raise TypeError or ValueError unless these are what `Chat` takes."""
    if template is not None and not isinstance(template, (ChatTemplate, str)):
        raise TypeError(
            f"template is a {type(template).__name__}, not a ChatTemplate or the text of one"
        )
    _check_objects(given.tools, "tools", "the tools as JSON schemas")
    _check_objects(given.documents, "documents", "the documents as mappings")
    thinking: object = given.thinking
    if thinking is not None and not isinstance(thinking, bool):
        raise TypeError(f"thinking = {thinking!r}: True, False or None")
    shown: object = given.show_thinking
    if not isinstance(shown, bool):
        raise TypeError(f"show_thinking = {shown!r}: True or False")
    check_callback("on_drop", given.on_drop)
    variables: object = given.variables
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables is a {type(variables).__name__}, not a dict")
    if thinking is not None and "enable_thinking" in variables:
        raise ValueError("thinking and enable_thinking say the same: give one of them")
    for name in variables:
        if name in NO_VARIABLES:
            raise TypeError(f"{name} is no variable of a template: the chat gives it otherwise")


def _check_objects(value: object, name: str, way_out: str) -> None:
    if value is None:
        return
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} is a {type(value).__name__}, not a list of dicts")
    for i, one in enumerate(value):
        if not isinstance(one, Mapping):
            raise TypeError(f"{name}[{i}] is a {type(one).__name__}, not a dict: give {way_out}")


def check_callback(name: str, value: object) -> None:
    """Raise TypeError unless a value is None, or can be called."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} = {value!r} is a {type(value).__name__}, not a function or None")


def check_messages(messages: object) -> None:
    """Raise ChatTemplateError unless a history is made of messages, and their calls are mappings.

    What else a message has to be, the template says.
    """
    if not isinstance(messages, list):
        raise ChatTemplateError(f"messages is a {type(messages).__name__}, not a list of dicts")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ChatTemplateError(
                f"message {i} is a {type(message).__name__}; a mapping with a role and a content "
                "is needed"
            )
        calls = message.get("tool_calls")
        if calls is None:
            continue
        if not isinstance(calls, (list, tuple)):
            raise ChatTemplateError(
                f"the tool_calls of message {i} are a {type(calls).__name__}; a list of mappings, "
                "or None, is needed"
            )
        for j, call in enumerate(calls):
            if not isinstance(call, Mapping):
                raise ChatTemplateError(
                    f"tool_calls[{j}] of message {i} is a {type(call).__name__}; a mapping is "
                    "needed"
                )


def check_answerable(history: Sequence[Message]) -> None:
    """Raise ValueError unless a history ends with something to answer."""
    if not history:
        raise ValueError("the history is empty: send() a message, or append one to messages, first")
    if history[-1].get("role") == "assistant":
        how = "add_tool_result()" if history[-1].get("tool_calls") else "send() a message"
        raise ValueError(
            f"the history ends with an answer: {how} first, or take the answer out of messages to "
            "have another one"
        )
