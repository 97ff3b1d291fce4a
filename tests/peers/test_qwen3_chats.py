"""Qwen3's chat template: the texts and ids of transformers' apply_chat_template."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import qwen3
from peers import import_peer
from qwen3_chats import AS_NAMES, CONVERSATIONS, READ_HERE, Conversation
from qwen3_random_chats import RandomChats

from oxibonsai.chat import ChatTemplate
from oxibonsai.model import Model


@pytest.fixture(scope="session")
def template(qwen3_model: Model) -> ChatTemplate:
    return ChatTemplate.of(qwen3_model)


def their_text(transformers_tokenizer: Any, conversation: Conversation) -> str:
    options = {"add_generation_prompt": True, **conversation.options}
    found: str = transformers_tokenizer.apply_chat_template(
        conversation.messages, tokenize=False, **options
    )
    return found


def their_ids(transformers_tokenizer: Any, conversation: Conversation) -> list[int]:
    options = {"add_generation_prompt": True, **conversation.options}
    found: list[int] = transformers_tokenizer.apply_chat_template(
        conversation.messages, tokenize=True, return_dict=False, **options
    )
    return found


def test_there_are_60_conversations():
    assert len(CONVERSATIONS) == 60


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_text_and_ids_are_those_of_transformers(template, transformers_tokenizer, name):
    conversation = CONVERSATIONS[name]
    text = template.render(conversation.messages, **conversation.options)
    assert text == their_text(transformers_tokenizer, conversation)
    ids = template.encode(conversation.messages, **conversation.options)
    assert ids == their_ids(transformers_tokenizer, conversation)


def control_names() -> list[str]:
    return [name for name in qwen3.special_names() if qwen3.looks_special(name)]


@functools.cache
def without_control_tokens() -> Any:
    """Return Hugging Face's tokenizer with the control tokens under names that nobody writes."""
    data = json.loads(json.dumps(qwen3.tokenizer_json()))
    for added in data["added_tokens"]:
        if qwen3.looks_special(added["content"]):
            added["content"] = f"\uf000{added['id']}\uf001"
    return import_peer("tokenizers").Tokenizer.from_str(json.dumps(data))


def marked(value: Any) -> Any:
    """Return a value in which other characters stand for the names of control tokens."""
    if isinstance(value, str):
        for i, name in enumerate(control_names()):
            value = value.replace(name, f"\ue000{i}\ue001")
        return value
    if isinstance(value, Mapping):
        return {marked(key): marked(inner) for key, inner in value.items()}
    return [marked(inner) for inner in value] if isinstance(value, list) else value


def ids_with_names_as_text(transformers_tokenizer: Any, conversation: Conversation) -> list[int]:
    """Return the ids where only the template's own names are control tokens."""
    names = control_names()
    text = their_text(
        transformers_tokenizer,
        Conversation(marked(conversation.messages), marked(conversation.options)),
    )
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, names))})", text):
        if part in names:
            ids.append(transformers_tokenizer.convert_tokens_to_ids(part))
        else:
            part = re.sub("\ue000([0-9]+)\ue001", lambda m: names[int(m[1])], part)
            ids += without_control_tokens().encode(part, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_expected_ids_are_transformers_where_no_text_has_names(transformers_tokenizer, name):
    """The expectation of the next test is tried where transformers gives one too."""
    conversation = CONVERSATIONS[name]
    if name != "controls and private use":  # it has what marks a name
        expected = their_ids(transformers_tokenizer, conversation)
        assert ids_with_names_as_text(transformers_tokenizer, conversation) == expected


@pytest.mark.parametrize("name", AS_NAMES)
def test_names_of_control_tokens_in_texts_stay_text(template, transformers_tokenizer, name):
    conversation = AS_NAMES[name]
    text = template.render(conversation.messages, **conversation.options)
    assert text == their_text(transformers_tokenizer, conversation)
    ids = template.encode(conversation.messages, **conversation.options)
    assert ids == ids_with_names_as_text(transformers_tokenizer, conversation)


@pytest.mark.parametrize("name", READ_HERE)
def test_what_transformers_refuses_is_read(template, transformers_tokenizer, name):
    given, same = READ_HERE[name]
    with pytest.raises((TypeError, import_peer("jinja2").TemplateError)):
        their_text(transformers_tokenizer, given)
    text = template.render(given.messages, **given.options)
    assert text == their_text(transformers_tokenizer, same)
    ids = template.encode(given.messages, **given.options)
    assert ids == their_ids(transformers_tokenizer, same)


@pytest.mark.parametrize("seed", range(8))
def test_random_conversations_have_the_text_and_ids(template, transformers_tokenizer, seed):
    chats = RandomChats(seed, qwen3.special_names())
    for _ in range(50):
        conversation = chats.draw()
        text = template.render(conversation.messages, **conversation.options)
        assert text == their_text(transformers_tokenizer, conversation)
        ids = template.encode(conversation.messages, **conversation.options)
        assert ids == ids_with_names_as_text(transformers_tokenizer, conversation), conversation
