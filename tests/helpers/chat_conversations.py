"""Random conversations with names of tokens anywhere, and the tokens they should become.

The oracle knows nothing of how the package follows text through a template: it renders twice. In
the second conversation every character that could be part of a name is replaced by a twin of the
same length, so where the two texts are equal the template wrote them.
"""

from __future__ import annotations

import copy
import functools
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jinja2
from chat_templates import CONTROL, USER_DEFINED
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROLES = ("system", "user", "assistant", "tool")
# What the templates ask for by name; every other key is text.
KEYS = {"role", "content", "reasoning_content", "tool_calls", "function", "name", "arguments"} | {
    "type",
    "parameters",
    "title",
    "text",
    "description",
    "properties",
}
PIECES = (
    *CONTROL,
    *USER_DEFINED,
    *(
        "<|",
        "|>",
        "im_",
        "end",
        "<|im_",
        "end|>",
        "[IN",
        "ST]",
        "[inst]",
        "<s",
        ">",
        "user",
        "<\uff5c",
    ),
    *("\n", " ", "  ", "\t", "\r\n", "\n\n", "a", "the", "{", "}", '"', "'", "\\", "%s", "{}", "0"),
    *(
        "\u00df",
        "\u0130",
        "\u03a3",
        "\ue001",
        "\u6f22",
        "\U0001f333",
        "the user",
        "Hello. ",
        "1 + 2",
    ),
)
_TWINS = {c: 0xF0000 + c for c in range(0x21, 0x7F) if chr(c) not in '"\\'} | {
    ord(c): 0xF1000 + ord(c) % 0x1000 for c in "\uff5c\u2581"
}
_KEPT = re.compile(f"({'|'.join(map(re.escape, USER_DEFINED))})")
_LONGEST_FIRST = sorted((*CONTROL, *USER_DEFINED), key=len, reverse=True)
_NAMES = re.compile("|".join(map(re.escape, _LONGEST_FIRST)))


@dataclass
class Conversation:
    """What a template is given."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    documents: list[dict[str, Any]] | None
    add_generation_prompt: bool
    variables: dict[str, Any]

    def given(self) -> dict[str, Any]:
        """Return the arguments behind the messages."""
        return {
            "tools": self.tools,
            "documents": self.documents,
            "add_generation_prompt": self.add_generation_prompt,
            **self.variables,
        }

    def plain(self) -> Conversation:
        """Return it with each content as one text."""
        other = copy.deepcopy(self)
        for message in other.messages:
            content = message.get("content")
            if isinstance(content, list):
                content = "".join(part["text"] for part in content)
            message["content"] = content or ""
        return other

    def twin(self) -> Conversation:
        """Return it with all text replaced that could be part of a control token's name."""
        messages = [
            {k: v if k == "role" and v in ROLES else twin(v) for k, v in message.items()}
            for message in self.messages
        ]
        other = copy.deepcopy(self)
        other.messages, other.tools, other.documents = (
            messages,
            twin(self.tools),
            twin(self.documents),
        )
        return other


def twin(value: Any) -> Any:
    """Return a value with twins of what could be part of a control token's name."""
    if isinstance(value, str):
        parts = _KEPT.split(value)
        return "".join(p if i % 2 else p.translate(_TWINS) for i, p in enumerate(parts))
    if isinstance(value, list):
        return [twin(item) for item in value]
    if isinstance(value, dict):
        return {k if k in KEYS else twin(k): twin(v) for k, v in value.items()}
    return value


def conversation(rng: random.Random, roles: tuple[str, ...] = ROLES) -> Conversation:
    """Return a conversation; half of them have no name of a token in them."""
    pieces = PIECES if rng.random() < 0.7 else PIECES[len(CONTROL) + len(USER_DEFINED) :]

    def text(most: int = 6) -> str:
        return "".join(rng.choice(pieces) for _ in range(rng.randrange(most + 1)))

    def value(depth: int = 2) -> Any:
        kind = rng.randrange(8)
        if kind < 2 and depth:
            return {text(2): value(depth - 1) for _ in range(rng.randrange(3))}
        if kind == 2 and depth:
            return [value(depth - 1) for _ in range(rng.randrange(3))]
        return (text(3), text(3), text(3), rng.randrange(99), None, True, 0.5, text(3))[kind]

    def call() -> dict[str, Any]:
        arguments = {text(2): value() for _ in range(rng.randrange(3))}
        found: Any = json.dumps(arguments) if rng.random() < 0.3 else arguments
        return {"type": "function", "function": {"name": text(2), "arguments": found}}

    def message(role: str) -> dict[str, Any]:
        content: Any = text()
        if role == "user" and rng.random() < 0.1:
            content = f"<tool_response>\n{content}\n</tool_response>"
        if role == "assistant" and rng.random() < 0.3:
            content = f"<think>\n{text()}\n</think>\n\n{content}"
        form = rng.randrange(8)
        if form == 0:
            content = [{"type": "text", "text": text()} for _ in range(rng.randrange(3))]
        found: dict[str, Any] = {"role": role, "content": None if form == 1 else content}
        if form == 2:
            del found["content"]
        if role == "assistant" and rng.random() < 0.2:
            found["reasoning_content"] = text()
        if role == "assistant" and rng.random() < 0.3:
            found["tool_calls"] = [call() for _ in range(rng.randrange(1, 3))]
        if role == "tool" and rng.random() < 0.5:
            found["name"] = text(2)
        return found

    def tool() -> dict[str, Any]:
        parameters = {"type": "object", "properties": {text(2): {"description": text()}}}
        function = {"name": text(2), "description": text(), "parameters": parameters}
        return {"type": "function", "function": function}

    def some(make: Callable[[], Any], chance: float) -> list[Any] | None:
        return [make() for _ in range(rng.randrange(3))] if rng.random() < chance else None

    return Conversation(
        [message(rng.choice(roles)) for _ in range(rng.randrange(1, 5))],
        some(tool, 0.3),
        some(lambda: {"title": text(2), "text": text()}, 0.2),
        rng.random() < 0.7,
        {} if rng.random() < 0.5 else {"enable_thinking": rng.random() < 0.5},
    )


def rendered_by_jinja(source: str, given: Conversation, special_tokens: dict[str, str]) -> str:
    """Return the text as transformers makes it, without transformers."""
    values = {**special_tokens, **given.given(), "messages": given.messages}
    text = plain_template(source).render(values)
    assert type(text) is str
    return text


@functools.cache
def plain_template(source: str) -> jinja2.Template:
    """Return a template in Jinja's own sandbox."""

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = to_json
    return environment.from_string(source)


def spans(text: str, twin_text: str) -> tuple[list[tuple[int, int, str]], bool]:
    """Return the names that are tokens, and whether there are others that are text."""
    assert len(text) == len(twin_text)
    found, place, others = [], 0, False
    while match := _NAMES.search(text, place):
        start = match.start()
        for name in _LONGEST_FIRST:
            if not text.startswith(name, start):
                continue
            if name in USER_DEFINED or twin_text.startswith(name, start):
                found.append((start, start + len(name), name))
                place = start + len(name)
                break
            others = True
        else:
            place = start + 1
    return found, others


def expected_ids(
    text: str, twin_text: str, ids: dict[str, int], encode: Callable[[str], list[int]]
) -> tuple[list[int], bool]:
    """Return the ids of a text, and whether names of control tokens in it are text."""
    tokens, others = spans(text, twin_text)
    found: list[int] = []
    end = 0
    for start, stop, name in tokens:
        found += [*(encode(text[end:start]) if end < start else []), ids[name]]
        end = stop
    return found + (encode(text[end:]) if end < len(text) else []), others
