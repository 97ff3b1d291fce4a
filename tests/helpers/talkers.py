"""Models that say what a test tells them, and templates in the forms of Qwen3 and Qwen3.5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tiny_models import IM_END, THINK, chat_vocabulary, write_chain

from oxibonsai.model.tokenizer import Tokenizer

TAGS = ["</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]

_TURNS_BEFORE = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- (messages[0].content + '\\n' if messages[0].role == 'system' else '') }}
    {%- for tool in tools %}{{ tool | tojson }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last_query = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last_query and message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content }}
        {%- for call in message.tool_calls %}
            {{- '\\n' if message.content or not loop.first }}"""
_JSON_CALL = """
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {%- if call.function.arguments is string %}{{ call.function.arguments }}
            {%- else %}{{ call.function.arguments | tojson }}{% endif %}
            {{- '}\\n</tool_call>' }}"""
_TAGS_CALL = """
            {{- '<tool_call>\\n<function=' + call.function.name + '>\\n' }}
            {%- for name, value in call.function.arguments | items %}
                {{- '<parameter=' + name + '>\\n' }}
                {{- value if value is string else value | tojson }}
                {{- '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>\\n</tool_call>' }}"""
_TURNS_AFTER = """
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}"""
_MAY_THINK = """
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
_THINKS = """
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}{{ '<think>\\n' }}{% endif %}
{%- endif %}"""

JSON_TEMPLATE = _TURNS_BEFORE + _JSON_CALL + _TURNS_AFTER + _MAY_THINK
"""Calls are JSON, and the model opens its thinking itself, as Qwen3's does."""

TAGS_TEMPLATE = _TURNS_BEFORE + _TAGS_CALL + _TURNS_AFTER + _THINKS
"""Calls are tags, whose arguments have to be a mapping; the prompt opens the thinking."""


def vocabulary(template: str, *, tags: int = 4) -> dict[str, Any]:
    """Return the byte vocabulary with a template and tags as tokens of a GGUF type; 0: no tokens.

    `<think>` is there in any case.
    """
    found = chat_vocabulary(template)
    if tags:
        found["tokenizer.ggml.tokens"] += TAGS
        found["tokenizer.ggml.token_type"][THINK] = tags
        found["tokenizer.ggml.token_type"] += [tags] * len(TAGS)
    return found


def plain_tokenizer(template: str = "") -> Tokenizer:
    """Return the tokenizer of that vocabulary, without a model."""
    found = vocabulary(template)
    return Tokenizer(
        found["tokenizer.ggml.tokens"],
        [],
        pre="qwen2",
        token_types=found["tokenizer.ggml.token_type"],
    )


def write_talker(path: Path, template: str, *, tags: int = 4, context: int = 4096) -> Path:
    """Write a model that says nothing unless it is told to, see says(); `tags` as above."""
    return write_chain(path, {}, context=context, vocabulary=vocabulary(template, tags=tags))


def says(
    tokenizer: Tokenizer, text: str, *, end: int | None = IM_END
) -> Callable[[Sequence[int]], list[int]]:
    """Return the option `allowed` that makes a model say a text and end its turn."""
    ids = iter([*tokenizer.encode(text, parse_special=True), *([] if end is None else [end])])
    return lambda tokens: [next(ids)]
