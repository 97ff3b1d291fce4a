"""Conversations by a template in the form of Qwen3.5's: its text, its calls, what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qwen35_chat import QWEN35
from talkers import plain_tokenizer, says, write_talker

from oxibonsai import metal
from oxibonsai.chat import Chat, ChatTemplate
from oxibonsai.model import Model

PROPERTIES = {
    "count": {"type": "integer"},
    "share": {"type": "number"},
    "exact": {"type": "boolean"},
    "limit": {"type": ["integer", "null"]},
    "tags": {"type": "array", "items": {"type": "string"}},
    "where": {"type": "object"},
    "text": {"type": "string"},
}
FIND = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Find things.",
        "parameters": {"type": "object", "properties": PROPERTIES},
    },
}
VALUES = {
    "count": 3,
    "share": 0.5,
    "exact": True,
    "limit": None,
    "tags": ["a", "b <c>"],
    "where": {"at": {"x": 1}},
    "text": "12\n  <b>&amp; </parameter> 3",
}
WRITTEN = {
    "count": "3",
    "share": "0.5",
    "exact": "True",
    "limit": "None",
    "tags": '["a", "b <c>"]',
    "where": '{"at": {"x": 1}}',
    "text": "12\n  <b>&amp; </parameter> 3",
}


def call(values: dict[str, str]) -> str:
    """Return a call as the model writes it."""
    parts = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    return f"<tool_call>\n<function=find>\n{parts}</function>\n</tool_call>"


@pytest.fixture
def chat(device: metal.Device, tmp_path: Path) -> Iterator[Chat]:
    path = write_talker(tmp_path / "talker.gguf", QWEN35)
    with Model.load(path, device) as model, model.session() as session:
        yield Chat(session, system="  Be brief.\n", tools=[FIND])


def tell(chat: Chat, answer: str, text: str | None = None) -> list[str]:
    """Have a model say something, to a text or to the history, and return the pieces."""
    allowed = says(chat.session.model.tokenizer, answer)
    pieces = chat.respond(allowed=allowed) if text is None else chat.send(text, allowed=allowed)
    return list(pieces)


def prompt(chat: Chat) -> str:
    return chat.session.model.tokenizer.decode(chat.session.tokens, skip_special=False)


def test_text_of_a_conversation_with_tools() -> None:
    template = ChatTemplate(QWEN35, plain_tokenizer())
    function = {"name": "find", "arguments": {"count": 3, "exact": True}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "old"},
        {"role": "user", "content": "Two?"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "new",
            "tool_calls": [{"type": "function", "function": function}] * 2,
        },
        {"role": "tool", "content": "a"},
        {"role": "tool", "content": "b"},
    ]
    written = (
        "<tool_call>\n<function=find>\n<parameter=count>\n3\n</parameter>\n<parameter=exact>\nTrue\n"
        "</parameter>\n</function>\n</tool_call>"
    )
    text = template.render(messages, tools=[FIND])
    system, _, rest = text.partition("<|im_end|>\n")
    assert f"<tools>\n{json.dumps(FIND)}\n</tools>" in system
    assert system.endswith("\n</tool_call>\n\nBe brief.")
    assert rest == (
        "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        "<|im_start|>user\nTwo?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nnew\n</think>\n\nI look.\n\n"
        f"{written}\n{written}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\na\n</tool_response>\n<tool_response>\nb\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    without = template.render(messages[:2], enable_thinking=False)
    assert without.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_values_have_the_types_of_the_schema_and_come_back_as_they_were_written(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = call(WRITTEN)
    pieces = tell(chat, f"I look.\n</think>\n\nSo:\n\n{said}", "?")
    assert "".join(pieces) == "I look.\n</think>\n\nSo:\n\n"
    assert not any(
        piece.endswith(tag[:n])
        for piece in pieces
        for tag in ("<tool_call>", "</think>")
        for n in range(1, len(tag))
    )
    (made,) = chat.tool_calls
    assert made["function"]["name"] == "find"
    assert json.loads(made["function"]["arguments"]) == VALUES
    assert chat.messages[-1]["reasoning_content"] == "I look."
    assert chat.messages[-1]["content"] == "So:"
    assert chat.finish_reason == "tool_calls"

    held = chat.session.position
    fed: list[int] = []
    forward = chat.session.forward

    def counted(ids: list[int], **kw: Any) -> Any:
        fed.append(len(ids))
        return forward(ids, **kw)

    monkeypatch.setattr(chat.session, "forward", counted)
    chat.add_tool_result("nothing", tool_call_id=made["id"])
    assert "".join(tell(chat, "x\n</think>\n\nNothing.")) == "x\n</think>\n\nNothing."
    assert f"<think>\nI look.\n</think>\n\nSo:\n\n{said}<|im_end|>\n" in prompt(chat)
    # What the model wrote was in the session already.
    assert fed[0] < held / 2


def test_a_call_before_the_thinking_is_closed(chat: Chat) -> None:
    said = f"I think.\n{call({'count': '1'})}"
    assert "".join(tell(chat, said, "?")) == said
    assert [json.loads(c["function"]["arguments"]) for c in chat.tool_calls] == [{"count": 1}]
    assert chat.messages[-1]["reasoning_content"] == "I think."


@pytest.mark.parametrize(
    "broken",
    [
        "<tool_call>\n<function=find>\n<parameter=count>\n1\n</parameter>\n</function>",
        "<tool_call>\n<function=>\n</function>\n</tool_call>",
        "<tool_call>\n<function=find>\n1\n</function>\n</tool_call>",
        "<tool_call>\n<parameter=count>\n1\n</parameter>\n</tool_call>",
        "<tool_call>\nfind(count=1)\n</tool_call>",
        "<function=find>\n<parameter=count>\n1\n</parameter>\n</function>",
    ],
)
def test_what_is_no_call_is_text(chat: Chat, broken: str) -> None:
    assert "".join(tell(chat, f"x</think>{broken}", "?")) == f"x</think>{broken}"
    assert (chat.tool_calls, chat.finish_reason) == ([], "stop")
    assert chat.messages[-1]["content"] == broken


def test_without_thinking_the_answer_is_content(chat: Chat) -> None:
    chat.thinking = False
    assert "".join(tell(chat, "It is so.", "?")) == "It is so."
    assert chat.messages[-1] == {"role": "assistant", "content": "It is so."}
    assert "<think>\n\n</think>\n\nIt is so." in prompt(chat)
