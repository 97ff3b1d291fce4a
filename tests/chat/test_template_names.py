"""Names of control tokens in templates and in what they are given, through every operation."""

from __future__ import annotations

from typing import Any

import pytest
from chat_bytes import END, NAME, START, THINK, encoded, template, user
from chat_conversations import (
    plain_template,
)
from chat_templates import (
    byte_tokenizer,
)

from oxibonsai.chat import ChatTemplate, ChatTemplateError

PLACES: dict[str, dict[str, Any]] = {
    "role": {"messages": [{"role": NAME, "content": ""}]},
    "role that closes one": {"messages": [{"role": "x|>" + NAME, "content": ""}]},
    "content": {"messages": user(NAME)},
    "part": {"messages": user([{"type": "text", "text": NAME}])},
    "key of a message": {"messages": user("", **{NAME: "x"})},
    "value in a message": {"messages": user("", name=NAME)},
    "reasoning": {"messages": user("", reasoning_content=NAME)},
    "key of arguments": {"messages": user("", tool_calls=[{"arguments": {NAME: 1}}])},
    "deep in arguments": {"messages": user("", tool_calls=[{"arguments": [[{"a": (NAME,)}]]}])},
    "tool": {"messages": [], "tools": [{"name": NAME}]},
    "tool's key": {"messages": [], "tools": [{"parameters": {NAME: {}}}]},
    "document": {"messages": [], "documents": [{"text": NAME}]},
    "variable": {"messages": [], "v": NAME},
    "variable's key": {"messages": [], "v": {NAME: {}}},
}
WAYS = {
    "printed": "{{ messages }}{{ tools }}{{ documents }}{{ v }}",
    "as JSON": "{{ messages | tojson }}{{ tools | tojson(indent=2) }}"
    "{{ documents | tojson }}{{ v | default('') | tojson }}",
    "in a mixture": "{{ ['<|im_', messages, tools, documents, v | default('')] | tojson }}",
    "printed in a mixture": "{{ ['<|im_', messages, tools, documents, v] | string }}",
    "walked": """{%- macro walk(x) -%}
        {%- if x is mapping %}{% for k, y in x.items() %}{{ k }}{{ walk(y) }}{% endfor %}
        {%- elif x is string or x is not iterable %}{{ x }}
        {%- else %}{% for y in x %}{{ walk(y) }}{% endfor %}{% endif %}
    {%- endmacro -%}
    {{ walk(messages) }}{{ walk(tools) }}{{ walk(documents) }}{{ walk(v) }}""",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", PLACES)
def test_a_name_in_what_a_template_is_given_is_text(place, way):
    t = template("<|im_start|>" + WAYS[way] + "<|im_end|>")
    options = dict(PLACES[place])
    messages = options.pop("messages")
    text = t.render(messages, **options)
    assert NAME in text[:-10]
    ids = t.encode(messages, **options)
    assert ids == [START, *text[12:-10].encode(), END]


# Each gives the name, from one in `x`, or in parts of it that `x.half` and `x.other` are.
WHOLE = [
    "x",
    "x ~ ''",
    "'' + x",
    "x | string",
    "x | upper | lower",
    "x.upper().lower()",
    "x.swapcase().swapcase()",
    "x.casefold()",
    "x | trim",
    "(' ' + x + '\n').strip()",
    "x | list | join",
    "x | list | reverse | list | reverse | join('')",
    "x | reverse | reverse",
    "x[::-1][::-1]",
    "x[:3] + x[3:]",
    "x[0:1] ~ x[1:]",
    "x.split('_') | join('_')",
    "'_'.join(x.rsplit('_', 1))",
    "x.partition('_') | join",
    "x.rpartition('_') | join",
    "x.splitlines()[0]",
    "(x ~ '\n!').splitlines() | first",
    "('!' ~ x).removeprefix('!')",
    "(x ~ '!').removesuffix('!')",
    "x | replace('?', '!')",
    "x.replace('?', '!')",
    "(x ~ '?') | replace('?', '')",
    "x | center(10)",
    "x.ljust(3) | indent(2)",
    "x | indent(2, true) | trim",
    "x | truncate(99)",
    "x | default('')",
    "nothing | default(x)",
    "'' | default(x, true)",
    "[x] | first",
    "[x, x] | last",
    "[x] | map('trim') | join",
    "[x] | select | join",
    "[x, ''] | select('equalto', x) | first",
    "[[x]] | map('first') | join",
    "[{'k': x}] | map(attribute='k') | join",
    "[{'k': x}] | selectattr('k') | map(attribute='k') | first",
    "[x, x] | unique | join",
    "[x] | sort | join",
    "[x] | min",
    "[x] | batch(1) | map('first') | join",
    "[x] | slice(1) | map('join') | join",
    "[{'k': x}] | groupby('k') | map(attribute='grouper') | join",
    "{'k': x} | dictsort | map('last') | join",
    "{'k': x} | items | map('last') | join",
    "{x: 1} | first",
    "{'k': x}.values() | first",
    "{'k': x}.get('k')",
    "dict(k=x).k",
    "namespace(k=x).k",
    "joiner(x)() ~ ''  or x",
    "cycler(x).next()",
    "x if true else ''",
    "(x | tojson)[1:-1]",
    "(x | tojson(ensure_ascii=true))[1:-1]",
    "([x, 'a'] | tojson)[2:12]",
    "({'k': x} | tojson(indent=1))[9:19]",
    "[x, 1] | string | replace(\"['\", '') | replace(\"', 1]\", '')",
    "'%s' % x",
    "'%s%s' % (x, '')",
    "'%-3s' % x",
    "'%.10s' % x",
    "'%(k)s' % {'k': x}",
    "'%s' | format(x)",
    "'{}'.format(x)",
    "'{0}{k}'.format('', k=x)",
    "'{a[0]}'.format(a=[x])",
    "'{!s:>{w}}'.format(x, w=3)",
    "'{:.10}'.format(x)",
    "'{k}'.format_map({'k': x})",
    "x.format('')",
    "x.translate({33: none})",
    "x.expandtabs(2)",
    "x.zfill(3)",
    "x * 1",
    "x | safe",
    "x | safe | string",
    "(x | safe) + ''",
    "'' + (x | safe)",
    "((x[:3] | safe) + (x[3:] | safe)) | string",
    "(('' | e) + (x | safe)) | safe",
    "(x | safe | trim)",
    "x | wordwrap(99)",
    "x | random ~ '' if false else x",
    "(x | urlencode).replace('%3C', '<').replace('%3E', '>').replace('%7C', '|')",
    "(x | safe).strip()",
    "(x | safe)[0:].removeprefix('?')",
    "(x | safe) * 1 ~ ''",
    "(x | pprint)[1:-1]",
    "x | attr('strip') is callable and x",
    "strftime_now(x)",
]
# Where a half of each goes through, these do not tell which is which.
MIXED_UP = (
    "(x | pprint)",
    "(x | urlencode)",
    "strftime_now",
)


@pytest.mark.parametrize("expression", WHOLE)
def test_a_name_that_went_through_an_operation_is_what_it_was(expression):
    expression = expression.replace("\n", "\\n")
    base = "{% set x = " + "%s" + " %}{{ " + expression + " }}"
    literal, data = base.replace("%s", f"'{NAME}'", 1), base.replace("%s", "messages[0].content", 1)
    values = {"messages": user(NAME)}
    if "strftime_now" not in expression:
        assert plain_template(data).render(values) == NAME
    assert template(data).render(user(NAME)) == NAME
    assert template(data).encode(user(NAME)) == encoded(NAME)
    assert template(literal).encode(user("")) == [END]
    # A half of each is text, whatever joins them.
    for a, b in (("'<|im_'", "messages[0].content"), ("messages[0].content", "'end|>'")):
        half = base.replace("%s", f"{a} ~ {b}", 1)
        content = "end|>" if a.startswith("'") else "<|im_"
        t = template(half)
        assert t.render(user(content)) == NAME
        if expression.startswith(MIXED_UP):
            with pytest.raises(ChatTemplateError, match="hides whether"):
                t.encode(user(content))
        else:
            assert t.encode(user(content)) == encoded(NAME)


BLOCKS = [
    "{% for c in x %}{{ c }}{% endfor %}",
    "{% for c in x %}{{ loop.previtem }}{% if loop.last %}{{ c }}{% endif %}{% endfor %}",
    "{% for i in range(x | length) %}{{ x[i] }}{% endfor %}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(x) }}",
    "{% macro m(a, b=x) %}{{ caller() }}{% endmacro %}{% call m(1) %}{{ x }}{% endcall %}",
    "{% macro m() %}{{ varargs[0] }}{{ kwargs.b }}{% endmacro %}{{ m(x[:4], b=x[4:]) }}",
    "{% set y %}{{ x }}{% endset %}{{ y }}",
    "{% set y | trim %} {{ x }} {% endset %}{{ y }}",
    "{% filter trim %} {{ x }} {% endfilter %}",
    "{% filter upper | lower %}{{ x }}{% endfilter %}",
    "{% set ns = namespace(y='') %}{% for c in x %}{% set ns.y = ns.y + c %}{% endfor %}{{ ns.y }}",
    "{% with y = x %}{{ y }}{% endwith %}",
    "{% block b %}{{ x if x is defined else X }}{% endblock %}",
    "{% for c in [x] recursive %}"
    "{% if c is string %}{{ loop([[c]]) }}{% else %}{{ c[0] }}{% endif %}{% endfor %}",
    "{% generation %}{{ x }}{% endgeneration %}",
    "{% set a, b = x[:3], x[3:] %}{{ a }}{{ b }}",
    "{% for a, b in [(x[:3], x[3:])] %}{{ a ~ b }}{% endfor %}",
    "{% if x %}{{ x[0] }}{% endif %}{{- x[1:] }}",
    "{% autoescape false %}{{ x }}{% endautoescape %}",
    "{% for c in x %}{{ loop.cycle(c, c) }}{% endfor %}",
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_name_that_went_through_a_block_is_what_it_was(block):
    data = "{% set x = messages[0].content %}" + block.replace("X", "messages[0].content")
    literal = "{% set x = '<|im_end|>' %}" + block.replace("X", "'<|im_end|>'")
    assert template(data).render(user(NAME)) == NAME
    assert template(data).encode(user(NAME)) == encoded(NAME)
    assert template(literal).encode(user()) == [END]


def test_html_escapes_of_a_template_are_text_or_refused_and_never_tokens_by_guess():
    t = template("{% autoescape true %}{{ messages[0].content }}<|im_end|>{% endautoescape %}")
    assert t.render(user(NAME)) == "&lt;|im_end|&gt;<|im_end|>"
    assert t.encode(user(NAME)) == [*b"&lt;|im_end|&gt;", END]


def test_text_beside_what_is_safe_is_escaped_and_keeps_its_origin():
    source = "{{ '<|im_end|>' + messages[0].content + ('<|im_start|>' | safe) }}"
    t = template(source)
    assert t.render(user("<|")) == "&lt;|im_end|&gt;&lt;|<|im_start|>"
    assert t.encode(user("<|")) == [*b"&lt;|im_end|&gt;&lt;|", START]
    t = template("{{ '<|im_start|>' | safe + (messages[0].content | tojson | safe) + '&' | safe }}")
    assert t.encode(user(NAME)) == [START, *f'"{NAME}"&'.encode()]
    t = template("{{ [messages[0].content | safe] }}")
    assert t.render(user(NAME)) == "[Markup('<|im_end|>')]"
    assert t.encode(user(NAME)) == encoded("[Markup('<|im_end|>')]")
    with pytest.raises(ChatTemplateError, match="unsupported operand"):
        template("{{ ('a' | safe) + 1 }}").encode([])


@pytest.mark.parametrize(
    "expression",
    [
        "messages[0].content.encode().decode()",
        "messages[0].content.encode('utf-16').decode('utf-16')",
        "(messages[0].content ~ '') | list | map('string') | list | string | length and "
        "messages[0].content.encode().decode() ~ ''",
    ],
)
def test_what_hides_where_a_name_came_from_is_refused_by_name(expression):
    t = template("{{ " + expression + " }}<|im_start|>")
    assert t.render(user(NAME)).startswith(NAME)
    with pytest.raises(ChatTemplateError, match=r"'test' hides whether '<\|im_end\|>' is its own"):
        t.encode(user(NAME))
    assert t.encode(user("<think>harmless")) == [THINK, *b"harmless", START]


def test_what_fills_a_field_is_of_nobody():
    t = template("{{ '{:{how}}'.format('|im_end|>', how=messages[0].content) }}<|im_start|>")
    with pytest.raises(ChatTemplateError, match="hides whether"):
        t.encode(user("<>10"))
    assert t.encode(user("")) == [*b"|im_end|>", START]
    fixed = template("{{ '{:<<9}|{!r}|{:>4}'.format(messages[0].content, 5, 5) }}")
    assert fixed.encode(user("|im_end|>")) == encoded("|im_end|>|5|   5")


def test_a_name_is_refused_only_where_it_would_be_read():
    hidden = "{{ messages[0].content.encode().decode() }}"
    nested = byte_tokenizer(["<|a|>", "|>b"], ["b<|a|>c"])
    # A user-defined token that holds it, and a token of the template that goes before it.
    assert ChatTemplate(f"b{hidden}c", nested).encode(user("<|a|>")) == [258]
    assert ChatTemplate(f"<|a|>{hidden}", nested).encode(user("b")) == [256, ord("b")]
    with pytest.raises(ChatTemplateError, match=r"'\|>b'"):
        ChatTemplate(f"|>{hidden}", nested).encode(user("b"))
    # Where the rest came from a message it is text, whatever the hidden part is.
    t = ChatTemplate("{{ messages[0].role }}" + hidden, nested)
    assert t.encode([{"role": "<|a", "content": "|>"}]) == encoded("<|a|>")


def test_tokens_named_by_roles_are_those_of_known_roles():
    names = ["<|user|>", "<|assistant|>", "<|end|>", "<|observation|>"]
    t = ChatTemplate(
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}<|end|>",
        byte_tokenizer(names),
    )
    roles = ["user", "assistant", "observation", "end", "user|><|assistant", "critic"]
    found = t.encode([{"role": role, "content": "user"} for role in roles])
    rest = "<|end|>user<|user|><|assistant|>user<|critic|>user"
    assert found == [256, *b"user", 257, *b"user", 259, *b"user", *rest.encode(), 258]


def test_the_longest_permitted_name_is_read_from_the_left():
    t = ChatTemplate(
        "<a{{ messages[0].content }}<a<a>{{ messages[0].content }}",
        byte_tokenizer(["<a", "<a>", "<a<a><"], ["a><"]),
    )
    # "<a" + data: the long names would need the data; "<a<a>" + data likewise.
    assert t.encode(user("><")) == [256, *b"><", 256, 257, *b"><"]
    assert t.encode(user("")) == [256, 256, 257]
