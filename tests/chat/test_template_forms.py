"""Forms that templates want messages in, templates for tools, and tools that nobody sees."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from chat_bytes import BYTES, END, NAME, encoded, template, user
from chat_conversations import plain_template

from oxibonsai.chat import ChatTemplate, ChatTemplateError
from oxibonsai.chat.prompt import takes_mapping

# As the distilled DeepSeek-R1 have it: calls are written only where there is no content.
NULL_CONTENT = """{%- for m in messages %}
    {%- if m.role == 'user' %}U:{{ m.content }}{% endif %}
    {%- if m.role == 'assistant' and m.content is none %}
        {%- for call in m.tool_calls %}A:{{ call.function.name + call.function.arguments }}
        {%- endfor %}<|im_end|>
    {%- endif %}
    {%- if m.role == 'assistant' and m.content is not none %}A:{{ m.content }}<|im_end|>{% endif %}
    {%- if m.role == 'tool' %}T:{{ m.content }}{% endif %}
{%- endfor %}"""
# Without a test of the content, and with one that None does not pass.
ANY_CONTENT = NULL_CONTENT.replace("m.content is none", "m.tool_calls").replace(
    "m.content is not none", "m.content"
)
TEXT_CONTENT = ANY_CONTENT.replace("m.tool_calls %}\n", "m.content is string %}\n", 1)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def calling(arguments: Any = "{}", **more: Any) -> dict[str, Any]:
    function = {"name": "add", "arguments": arguments}
    return {
        "role": "assistant",
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
        **more,
    }


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": []}])
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_calls_are_written_where_a_template_wants_no_content(content, tools):
    messages = [*user("a"), calling(**content), {"role": "tool", "content": "3"}]
    for source in (NULL_CONTENT, ANY_CONTENT, TEXT_CONTENT):
        t = template(source)
        for _ in range(2):
            assert t.render(messages, tools=tools) == "U:aA:add{}<|im_end|>T:3"
            assert t.encode(messages, tools=tools) == encoded("U:aA:add{}", END, "T:3")


def test_only_empty_content_beside_calls_is_none():
    t = template(NULL_CONTENT)
    assert t.render([calling(content="said")]) == "A:said<|im_end|>"
    assert t.render([{"role": "assistant", "content": ""}]) == "A:<|im_end|>"
    assert t.render([calling(content="", tool_calls=[])]) == "A:<|im_end|>"
    assert t.render([{"role": "tool", "content": None}]) == "T:"
    # What only prints None is as it was.
    shows = template("{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}")
    assert shows.render([calling("x", content=None)]).startswith("[{")
    assert not takes_mapping(t, {})
    mapping = template(NULL_CONTENT.replace(".arguments", ".arguments.items() | list | string"))
    assert takes_mapping(mapping, {})
    assert "('a', 1)" in mapping.render([calling({"a": 1})])


def test_arguments_beside_no_content_are_text_where_they_must_be():
    arguments = {"a": [1, {"b": "\u00e9"}], NAME: None}
    t = template(NULL_CONTENT)
    text = f'A:add{{"a": [1, {{"b": "\u00e9"}}], "{NAME}": null}}'
    assert t.render([calling(arguments)]) == f"{text}<|im_end|>"
    assert t.encode([calling(arguments)]) == encoded(text, END)
    assert t.render([calling(tool_calls=[{"function": {"name": "f", "arguments": "1"}}])]) == (
        "A:f1<|im_end|>"
    )
    # Where mappings are written too, they stay what they are.
    both = template(NULL_CONTENT.replace("name + ", "name ~ "))
    assert both.render([calling({"a": 1})]) == "A:add{'a': 1}<|im_end|>"


def test_a_name_in_calls_without_content_is_text():
    messages = [calling(NAME)]
    assert template(NULL_CONTENT).encode(messages) == encoded(f"A:add{NAME}", END)


PARTS = {
    "llava": """{% for m in messages %}{{ m.role | upper }}: {% for c in m.content %}
        {%- if c.type == 'image' %}<image>{% elif c.type == 'text' %}{{ c.text }}{% endif %}
        {%- endfor %}<|im_end|>{% endfor %}""",
    "selected": """{% for m in messages %}{{ m.role | upper }}:
        {%- for c in m.content | selectattr('type', 'equalto', 'text') %} {{ c.text }}
        {%- endfor %}<|im_end|>{% endfor %}""",
    "smolvlm": """{% for m in messages %}{{ m.role | capitalize }}
        {%- if m.content[0].type == 'image' %}:{% else %}: {% endif %}
        {%- for line in m.content %}{% if line.type == 'text' %}{{ line.text }}{% endif %}
        {%- endfor %}<|im_end|>{% endfor %}""",
    "strict": """{% for m in messages %}{% for c in m.content %}
        {%- if c is not mapping %}{{ raise_exception('parts!') }}{% endif %}{{ c['text'] }}/
        {%- endfor %}<|im_end|>{% endfor %}""",
}
# Two of the user's parts stay two.
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": t} for t in ("one", f"two{NAME}")]},
    {"role": "assistant", "content": "three"},
    {"role": "user", "content": "four"},
    {"role": "odd", "content": "five"},
]


def in_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as a program gives them to transformers for such a template."""
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]}
        if isinstance(m["content"], str)
        else m
        for m in messages
    ]


@pytest.mark.parametrize("style", PARTS)
def test_templates_that_read_parts_only_get_them(style):
    expected = plain_template(PARTS[style]).render(messages=in_parts(CONVERSATION))
    assert "four" in expected
    t = template(PARTS[style])
    for _ in range(2):
        assert t.render(CONVERSATION) == expected
        assert t.render(in_parts(CONVERSATION)) == expected
    assert t.encode(CONVERSATION).count(END) == len(CONVERSATION)
    for message in CONVERSATION:  # whichever role comes first
        assert message["role"] == "user" or template(PARTS[style]).render([message]) == (
            plain_template(PARTS[style]).render(messages=in_parts([message]))
        )


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content | length }}{% endfor %}",
        "{% for m in messages %}{{ m.content | first }}{% endfor %}",
        "{% for m in messages %}{{ m.content | truncate(3, true, '') }}{% endfor %}",
        "{% for m in messages %}{{ m.content[:-1] ~ m.content | tojson }}{% endfor %}",
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}{% endfor %}",
        "{{ messages | length }}",
        "{% for m in messages %}{{ m.content if m.content is not string }}{% endfor %}",
    ],
)
def test_templates_that_read_text_get_text(source):
    messages = [*user("one"), {"role": "assistant", "content": "two"}]
    assert template(source).render(messages) == plain_template(source).render(messages=messages)
    joined = [*user([{"type": "text", "text": t} for t in ("o", "ne")]), messages[1]]
    assert template(source).render(joined) == plain_template(source).render(messages=messages)


def test_each_role_is_read_as_the_template_reads_it():
    source = """{% for m in messages %}{% if m.role == 'system' %}{{ m.content | trim }}
        {%- else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}{% endfor %}"""
    assert template(source).render(CONVERSATION[:2]) == f"be briefonetwo{NAME}"
    assert template(source).render(CONVERSATION[1::-1]) == f"onetwo{NAME}be brief"


def test_a_trial_that_fails_for_its_variables_does_not_count():
    source = "{% if not ok %}{{ raise_exception('no') }}{% endif %}" + PARTS["llava"]
    t = template(source)
    for _ in range(2):
        with pytest.raises(ChatTemplateError, match="no"):
            t.render(user("four"), ok=False)
        assert t.render(user("four"), ok=True) == "USER: four<|im_end|>"


# Templates for tools


def model(main: str | None, **named: str) -> Any:
    tokenizer = BYTES
    copied = SimpleNamespace(
        chat_template=main,
        chat_templates=named,
        specials=tokenizer.specials,
        encode=tokenizer.encode,
        token_bytes=tokenizer.token_bytes,
    )
    return SimpleNamespace(tokenizer=copied, name="m", path="m.gguf")


def test_a_template_for_tools_is_used_where_tools_are_given():
    t = ChatTemplate.of(model("plain", tool_use="{{ tools | length }}<|im_end|>", rag="rag"))
    assert (t.source, t.tool_use) == ("plain", "{{ tools | length }}<|im_end|>")
    assert t.render([]) == t.render([], tools=None) == "plain"
    # transformers asks whether tools are None, too.
    assert t.render([], tools=[]) == "0<|im_end|>"
    assert t.encode([], tools=[TOOL]) == encoded("1", END)
    assert ChatTemplate.of(model(None, default="d", tool_use="t")).render([]) == "d"
    assert ChatTemplate.of(model("plain", tool_use="t"), source="x").render([], tools=[]) == "x"
    assert ChatTemplate("a", BYTES, tool_use="b").render([], tools=[]) == "b"
    assert ChatTemplate("a", BYTES).tool_use is None
    with pytest.raises(ChatTemplateError, match="no chat template"):
        ChatTemplate.of(model(None, rag="rag"))
    with pytest.raises(TypeError, match="tool_use is a int"):
        ChatTemplate("a", BYTES, tool_use=5)  # type: ignore[arg-type]
    with pytest.raises(ChatTemplateError, match="unknown tag"):
        ChatTemplate("a", BYTES, tool_use="{% x %}")


def test_each_template_has_forms_of_its_own():
    t = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", BYTES)
    assert t.render(user("a")) == "a"
    t = ChatTemplate(t.source, BYTES, tool_use=PARTS["llava"])
    assert t.render(user("a")) == "a"
    assert t.render(user("a"), tools=[]) == "USER: a<|im_end|>"


@pytest.mark.parametrize(
    ("source", "tools", "warnings"),
    [
        ("{{ messages[0].content }}", [TOOL], 1),
        ("{{ messages[0].content }}", [], 0),
        ("{{ messages[0].content }}", None, 0),
        ("{{ messages[0].content }}{{ tools }}", [TOOL], 0),
        ("{% if tools %}x{% endif %}", [TOOL], 0),
        ("{{ tools[0].function.name }}", [TOOL], 0),
        ("{{ raise_exception('no') if tools is none }}", [TOOL], 0),
    ],
)
def test_tools_that_a_template_does_not_write_are_warned_of_once(source, tools, warnings, caplog):
    t = template(source)
    with caplog.at_level(logging.WARNING, "oxibonsai.chat"):
        for _ in range(3):
            t.render(user("a"), tools=tools)
            t.encode(user("b"), tools=tools)
    assert len(caplog.records) == warnings
    assert all("'test' writes nothing of the tools" in r.getMessage() for r in caplog.records)


def test_a_trial_warns_of_nothing(caplog):
    with caplog.at_level(logging.WARNING, "oxibonsai.chat"):
        takes_mapping(template("{{ messages[0].content }}"), {})
    assert not caplog.records
