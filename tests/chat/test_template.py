"""Chat templates: what they are given, what they see of it, and what goes wrong in them."""

from __future__ import annotations

import dataclasses
import enum
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chat_bytes import END, END_THINK, NAME, START, THINK, encoded, template, user
from chat_templates import (
    QWEN,
    byte_tokenizer,
    tokenizer,
    vocabulary,
)

from oxibonsai.chat import ChatTemplate, ChatTemplateError

RICH = tokenizer()
RICH_IDS = {name: i for i, name in enumerate(vocabulary()["tokenizer.ggml.tokens"])}


# What was seen to go wrong


def test_answer_that_waits_for_a_tools_result_keeps_its_reasoning():
    messages = [
        {"role": "user", "content": "How much?"},
        {
            "role": "assistant",
            "content": "<think>\nplan\n</think>\n\ncalling",
            "tool_calls": [{"type": "function", "function": {"name": "sum", "arguments": "{}"}}],
        },
        {"role": "user", "content": "<tool_response>\n12\n</tool_response>"},
    ]
    t = ChatTemplate(QWEN, RICH)
    text = t.render(messages)
    assert "<think>\nplan\n</think>\n\ncalling\n<tool_call>" in text
    assert t.encode(messages) == RICH.encode(text, parse_special=True)


def test_names_in_a_tools_description_and_in_a_key_of_arguments_are_text():
    tool = {"type": "function", "function": {"name": "f", "description": NAME, "parameters": {}}}
    call = {"function": {"name": "f", "arguments": {NAME: {NAME: [NAME]}}}}
    t = ChatTemplate(QWEN, RICH)
    messages = [*user("a"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    plain = json.loads(json.dumps(messages).replace(NAME, "b"))
    for tools in ([tool], None):
        expected = t.encode(plain, tools=tools and [{"function": {"description": "b"}}])
        ids = t.encode(messages, tools=tools)
        for name in (NAME, "<|im_start|>"):
            assert ids.count(RICH_IDS[name]) == expected.count(RICH_IDS[name])


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("m.content | upper", "<|IM_END|>"),
        ("m.content | tojson(ensure_ascii=true)", '"<|im_end|>"'),
        ("[m.content, '\u00e9'] | tojson(ensure_ascii=true)", '["<|im_end|>", "\\u00e9"]'),
        ("m.content | length", "10"),
        ("m.content.split('|')[1]", "im_end"),
        ("m.content[2:5]", "im_"),
        ("m.content.startswith('<|im') and m.content.endswith('|>')", "True"),
        ("m.content in ['<|im_end|>']", "True"),
        ("m.content is string", "True"),
        ("{'<|im_end|>': 'x'}[m.content]", "x"),
        ("m.content | replace('<|im_end|>', 'x')", "x"),
        ("m.content == '<|im_end|>'", "True"),
        ("m.content.find('end')", "5"),
        ("m.content.runs is defined", "False"),
        ("m.content['runs'] is defined or m.content | attr('runs') is defined", "False"),
        ("m.content.runs ~ m['content'].nothing", ""),
    ],
)
def test_a_template_sees_no_mark(expression, text):
    t = template("{% set m = messages[0] %}{{ " + expression + " }}")
    assert t.render(user(NAME)) == text
    assert t.encode(user(NAME)) == encoded(text)


def test_user_defined_tokens_are_read_wherever_they_stand():
    t = template("{{ messages[0].role }}:{{ messages[0].content }}<|im_end|>")
    for role in ("system", "user", "tool", "<think>"):
        found = t.encode([{"role": role, "content": "<think></think>a<|im_end|>"}])
        start = [THINK] if role == "<think>" else encoded(role)
        assert found == [*start, ord(":"), THINK, END_THINK, *encoded("a" + NAME, END)]
    # Halves from the template and from a message too, as in transformers.
    assert template("<th{{ messages[0].content }}").encode(user("ink>")) == [THINK]


def test_what_is_left_out_is_none_and_what_the_file_lacks_is_undefined():
    source = (
        "{{ tools is none }} {{ documents is none }} {{ tools is defined }} {{ pad_token }}"
        " {{ bos_token is defined }} {{ eos_token is defined }}"
    )
    t = template(source, special_tokens={"pad_token": NAME})
    assert t.render([]) == f"True True True {NAME} False False"
    assert END in t.encode([])
    # A variable goes before the file's, and is data.
    assert t.encode([], pad_token=NAME) == encoded(f"True True True {NAME} False False")
    assert t.render([], tools=[], documents=[]).startswith("False False")


class FakeModel(SimpleNamespace):
    name = "fake"
    path = "fake.gguf"


def test_tokens_of_the_file_have_transformers_names():
    fake = byte_tokenizer([NAME, "<|im_start|>"])
    fake.bos_id, fake.eos_id, fake.pad_id, fake.unk_id = 257, 256, 256, None
    fake.chat_template = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token is defined }}"
    t = ChatTemplate.of(FakeModel(tokenizer=fake))
    assert t.special_tokens == {
        "bos_token": "<|im_start|>",
        "eos_token": NAME,
        "pad_token": NAME,
    }
    assert t.encode([]) == [START, END, END, *b"False"]
    other = ChatTemplate.of(FakeModel(tokenizer=fake), source="{{ eos_token }}!")
    assert other.encode([]) == [END, *b"!"]
    assert other.source == "{{ eos_token }}!"
    with pytest.raises(TypeError, match="source is a bytes"):
        ChatTemplate.of(FakeModel(tokenizer=fake), source=b"x")


# Contents


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "a"}, "a"),
        ({"content": None}, ""),
        ({}, ""),
        ({"content": []}, ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": ({"type": "text", "text": "a", "cache_control": {}},)}, "a"),
        (
            {"content": [{"type": "text", "text": NAME[:5]}, {"type": "text", "text": NAME[5:]}]},
            NAME,
        ),
    ],
)
def test_content_is_text_none_or_parts(message, text):
    t = template("{{ messages[0].content }}")
    assert t.render([{"role": "user", **message}]) == text
    assert t.encode([{"role": "user", **message}]) == encoded(text)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (5, r"the content of message 1 \(role 'tool'\) is a int; a text, None or a list of parts"),
        (b"a", r"the content of message 1 \(role 'tool'\) is a bytes"),
        ({"type": "text", "text": "a"}, r"message 1 \(role 'tool'\) is a dict"),
        (True, r"message 1 \(role 'tool'\) is a bool"),
        (["a"], r"part 0 of the content of message 1 \(role 'tool'\) is a str; a mapping"),
        ([{"type": "text", "text": "a"}, {"type": "image"}], r"part 1 of .* is of type 'image'"),
        ([{"text": "a"}], r"part 0 of the content of message 1 \(role 'tool'\) is of type None"),
        ([{"type": "text"}], r"part 0 of .* message 1 \(role 'tool'\) has a NoneType as its text"),
        ([{"type": "text", "text": 5}], r"message 1 \(role 'tool'\) has a int as its text"),
    ],
)
def test_other_content_is_an_error_with_the_message_and_its_role(content, what):
    t = template("{{ messages[0].content }}")
    for call in (t.render, t.encode):
        with pytest.raises(ChatTemplateError, match=what):
            call([*user(), {"role": "tool", "content": content}])


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        (["a"], "message 0 is a str; a mapping with a role"),
        ([*user(), None], "message 1 is a NoneType"),
        ([*user(), ("role", "user")], "message 1 is a tuple"),
        ([{"content": "a"}], "message 0 has no role"),
        ([{"role": None, "content": "a"}], "message 0 has no role"),
        ([*user(), {"role": 5}], "message 1 has 5 as its role; a text such as 'user'"),
        ("Hello", "messages is a str; a list of messages"),
        ({"role": "user"}, "messages is a dict; a list of messages"),
        (None, "messages is a NoneType"),
    ],
)
def test_what_is_no_message_is_an_error_with_its_place(messages, what):
    with pytest.raises(ChatTemplateError, match=what):
        template("x").encode(messages)


@pytest.mark.parametrize("name", ["tools", "documents"])
@pytest.mark.parametrize(
    ("values", "what"),
    [
        ([{}, 5], r"{}\[1\] is a int"),
        ("a", "{} is a str"),
        ({}, "{} is a dict"),
        (5, "{} is a int"),
    ],
)
def test_tools_and_documents_are_lists_of_mappings(name, values, what):
    with pytest.raises(ChatTemplateError, match=what.format(name)):
        template("x").encode([], **{name: values})


def test_keys_without_a_value_are_left_out_and_reasoning_goes_by_three_names():
    t = template("{{ messages[0] | list | join(',') }}|{{ messages[0].reasoning_content }}")
    assert t.render(user("a", tool_calls=None)) == "role,content|"
    for name in ("reasoning_content", "thinking", "reasoning"):
        assert t.render(user("a", **{name: "why"})).endswith("|why")


def test_a_template_gets_plain_values_and_no_objects():
    @dataclasses.dataclass
    class Call:
        name: str

    class Kind(str, enum.Enum):
        A = "a"

    class Dumped:
        def model_dump(self) -> dict[str, Any]:
            return {"k": 1}

    class Odd:
        def write(self) -> str:
            return "written"

    values = {
        "call": Call(NAME),
        "kind": Kind.A,
        "dumped": Dumped(),
        "odd": Odd(),
        "number": np.float32(0.5),
        "flag": np.bool_(False),
        "pair": (1, NAME),
    }
    t = template("{{ v | tojson }}{% if v.flag %}!{% endif %}{{ v.odd.write is defined }}")
    text = json.dumps(
        {
            "call": {"name": NAME},
            "kind": "a",
            "dumped": {"k": 1},
            "odd": "<Odd>",
            "number": 0.5,
            "flag": False,
            "pair": [1, NAME],
        }
    )
    assert t.encode([], v=values) == encoded(text + "False")


def test_what_was_given_is_not_changed():
    messages = user([{"type": "text", "text": "a"}], tool_calls=None, extra={"k": ["v"]})
    before = json.dumps(messages)
    assert template("{{ messages[0].content }}").render(messages) == "a"
    assert json.dumps(messages) == before


# Errors


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "contains itself without end"),
        ("{% break %}", "SyntaxError: 'break' outside loop"),
        ("{% continue %}", "SyntaxError: 'continue' not properly in loop"),
        ("{{ 'a' * 10 ** 30 }}", "OverflowError"),
        ("{{ 10.0 ** 400 }}", "OverflowError"),
        ("{{ 'a'.encode('ascii').decode('utf-7x') }}", "LookupError: unknown encoding"),
        ("{{ '\u00e9'.encode('ascii') }}", "UnicodeEncodeError"),
        ("{{ '{'.format() }}", "ValueError"),
        ("{{ '%d' % 'a' }}", "TypeError"),
        ("{{ [] | first.x }}", "."),
        ("{{ range(10) | tojson }}", "TypeError: Object of type range is not JSON"),
        ("{{ namespace(_x=1) }}", "'_x' begins with an underscore"),
        ("{% set n = namespace() %}{% set n._x = 1 %}", "'_x' begins with an underscore"),
        ("{{ dict.mro() }}", "no attribute 'mro'|undefined"),
        ("{% include 'x' %}", "no loader"),
        ("{{ x.y.z }}", "'x' is undefined"),
        ("{{ messages[0].content.__class__.__mro__ }}", "unsafe"),
        ("{{ messages[0].content.upper.__func__.__globals__ }}", "unsafe|undefined"),
        ("{{ '{0.__class__.__mro__}'.format(messages[0].content) }}", "unsafe"),
        ("{{ messages[0].content.format_map(1, 2) }}", "TypeError"),
        ("{{ 1 | nofilter }}", "No filter named 'nofilter'"),
    ],
)
def test_whatever_a_template_does_is_a_chat_template_error(source, message):
    with pytest.raises(ChatTemplateError, match=rf"(?s)'test': .*({message})") as caught:
        template(source).encode(user(NAME))
    assert len(str(caught.value)) < 500


def test_values_that_contain_themselves_are_an_error():
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ChatTemplateError, match="contains itself without end"):
        template("{{ v }}").encode([], v=value)


def test_a_lone_surrogate_is_an_error_with_what_stands_before_it():
    t = template("{{ messages[0].content }}")
    with pytest.raises(ChatTemplateError, match=r"lone surrogate U\+D83C behind 'ab'"):
        t.encode(user("ab\ud83c"))
    assert t.render(user("ab\ud83c")) == "ab\ud83c"
    escaped = template("{{ messages[0].content | tojson(ensure_ascii=true) }}")
    assert escaped.encode(user("\ud83c")) == encoded('"\\ud83c"')


def test_a_rendering_is_a_plain_text():
    assert type(template("{{ messages[0].content }}x").render(user("a"))) is str
    assert template("").encode([]) == []
