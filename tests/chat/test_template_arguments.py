"""Names of control tokens at each argument of each operation, and numbers within names.

Whatever an operation puts into a text, it has to be of whoever gave it: a name that was given as
data is text at every place, and one half of a name that was given so as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
from chat_bytes import END, NAME, encoded, template, user
from chat_conversations import plain_template
from chat_templates import byte_tokenizer

from oxibonsai.chat import ChatTemplate, ChatTemplateError

# Each has places `@`, at which texts stand that may be put into what comes out.
OPERATIONS = [
    "@",
    "@ ~ @",
    "@ + @",
    "[@, @]",
    "(@, @) | string",
    "{@: @}",
    "{@: @}.items()",
    "{@: @}.keys() | list",
    "@ * 2",
    "[@] * 2",
    "@ % ()",
    "@ % @",
    "'%s' % @",
    "(@ ~ '%s') % @",
    "('%s' ~ @) % @",
    "'%(k)s' % {'k': @, @: 1}",
    "'%12s' % @",
    "(@ ~ '%-12s') % @",
    "'%*s' % (9, @)",
    "'%r' % @",
    "'%s%s' | format(@, @)",
    "'%s' | format(**{@: @})",
    "'%(k)s' | format(k=@)",
    "@ | format(@)",
    "'{}{}'.format(@, @)",
    "@.format(@)",
    "(@ ~ '{}').format(@)",
    "('{}' ~ @).format(@)",
    "'{0}{k}'.format(@, k=@)",
    "'{0[0]}{1.k}'.format([@], {'k': @})",
    "'{:{}}'.format(@, @)",
    "'{:{f}>9}'.format(@, f=@[:1])",
    "'{!r:>12}'.format(@)",
    "'{!s:^15}{!a}'.format(@, @)",
    "'{k}'.format_map({'k': @})",
    "@.format_map({'k': @})",
    "[@, @] | join(@)",
    "[{'k': @}] | join(@, attribute='k')",
    "@.join([@, @])",
    "@ | join(@)",
    "@ | indent(@, true, true)",
    "(@ ~ '\n' ~ @) | indent(@)",
    "(@ ~ '\n' ~ @) | indent(width=@, blank=true)",
    "@ | center(15)",
    "@.center(15, @[:1])",
    "@.ljust(15, @[:1])",
    "@.rjust(15, @[:1])",
    "'im_end|>'.rjust(10, @[:1])",
    "'<|im_end|'.ljust(11, @[-1:])",
    "@ | wordwrap(4, true, @)",
    "(@ ~ ' ' ~ @) | wordwrap(wrapstring=@)",
    "@ | truncate(10, true, @, 0)",
    "(@ ~ @ ~ @) | truncate(length=12, end=@, leeway=0)",
    "(@ ~ ' ' ~ @ ~ @) | truncate(25)",
    "none | default(@, true)",
    "nothing | default(@)",
    "nothing | d(default_value=@)",
    "@ | replace(@, @)",
    "'aZb' | replace('Z', @)",
    "@.replace('_', @)",
    "'ZZ' | replace('Z', @, 1)",
    "{'k': @, 'a': @} | xmlattr",
    "{@: @} | xmlattr",
    "('see http://a.b/' ~ @) | urlize(rel=@, target=@)",
    "'http://a.b/ x:y' | urlize(extra_schemes=[@])",
    "@ | urlize",
    "@ | urlencode",
    "{@: @} | urlencode",
    "[@] | batch(3, @) | list",
    "@ | batch(3, @) | map('join') | join",
    "'ab' | slice(3, @) | map('join', @) | join",
    "{@: @, 'z': @} | dictsort",
    "{'z': @} | dictsort(by='value') | map('last') | join",
    "namespace(k=@).k",
    "namespace(**{'k': @})['k']",
    "namespace({@: @})",
    "dict(k=@, **{@: @})",
    "dict([(@, @)])",
    "dict.fromkeys([@], @)",
    "cycler(@, @).next()",
    "cycler(@).current",
    "lipsum(n=1, html=false)[:3] ~ @",
    "[{'k': @}] | map(attribute='k') | join(@)",
    "[{}] | map(attribute='k', default=@) | join",
    "['Z'] | map('replace', 'Z', @) | join",
    "[@] | select('equalto', @) | list",
    "[@] | reject('in', [@]) | list",
    "[{'k': @}] | selectattr('k', 'equalto', @) | list",
    "[@, @] | sum(start='')",
    "[{'k': @}] | sum(attribute='k', start=@)",
    "[{'k': @}] | groupby('k')",
    "[{}] | groupby('k', default=@)",
    "[@, @] | sort | unique | list",
    "[@] | min ~ ([@] | max)",
    "[@] | random",
    "@ | tojson",
    "{@: [@, 1, none]} | tojson(indent=2)",
    "{'a': ['b', @]} | tojson(indent=@)",
    "['a', {'b': 1}] | tojson(indent=@)",
    "{'a': ['b', 'c']} | tojson(separators=(@, ':'))",
    "{'a': ['b', 'c']} | tojson(separators=(',', @))",
    "{'a': @, 'b': 1} | tojson(separators=(@, @))",
    "{'a': 'b'} | tojson(**{'indent': @})",
    "{'a': 'b'} | tojson(false, @)",
    "{'a': @, 'c': 'd'} | tojson(true, @, (@, @), true)",
    "[[], {}, [@]] | tojson(indent=@)",
    "@ | pprint",
    "{@: @} | pprint",
    "@ | safe",
    "(@ | e) + @",
    "('%s' | safe) % @",
    "('a' | safe).join([@, @ | safe])",
    "('aZ' | safe).replace('Z', @)",
    "('a' | safe).ljust(9, @[:1])",
    "('a' | safe).format(@) ~ ('{}' | safe).format(@ | safe)",
    "(@ | safe) | indent(@ | safe, true)",
    "(@ | e).unescape()",
    "('<a>' ~ @) | striptags",
    "@.translate({60: @})",
    "'Z'.translate({90: @})",
    "'Z'.translate('Z'.maketrans({'Z': @}))",
    "'abc<'.translate('a'.maketrans('abc', @[:3]))",
    "@.split('_') | join(@)",
    "@.partition('_') | join(@)",
    "@.splitlines(true) | join(@)",
    "@.removeprefix('x') ~ @.removesuffix('x')",
    "@.encode().decode()",
    "'Z'.encode().replace('Z'.encode(), @.encode()).decode()",
    "strftime_now(@)",
    "x[@]",
    "{}[@] | default(@)",
    "{'k': @}.get('z', @)",
    "{'k': @} | attr(@)",
    "(@ | upper | lower | title | lower) ~ (@ | capitalize)",
    "@.zfill(14)",
    "@.expandtabs()",
    "'%c%c' % (@.encode()[0], @.encode()[1]) ~ 'im_end|>'",
    "'{:c}'.format(@.encode()[0]) ~ '|im_end|>'",
]
BLOCKS = [
    "{% macro m(a, b=@) %}{{ a }}{{ b }}{% endmacro %}{{ m(@) }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(@, k=@, **{@: @}) }}",
    "{% macro m() %}{{ varargs | join(@) }}{{ kwargs | list | join }}{% endmacro %}"
    "{{ m(@, **{@: 1}) }}",
    "{% macro m() %}{{ caller(@) }}{% endmacro %}{% call(a) m() %}{{ a }}{{ @ }}{% endcall %}",
    "{% for i in [1, 2] %}{{ loop.cycle(@, @) }}{% endfor %}",
    "{% for i in [1, 2] %}{{ loop.changed(@) }}{{ loop.previtem }}{% endfor %}",
    "{% for c in [@] recursive %}{{ c }}"
    "{% if c is string %}{{ loop([[@]]) }}{% endif %}{% endfor %}",
    "{% set j = joiner(@) %}{{ j() }}{{ j() }}{{ j() }}",
    "{% filter replace('Z', @) %}aZb{% endfilter %}",
    "{% filter indent(@) %}a\nb{{ @ }}{% endfilter %}",
    "{% filter default(@, true) %}{% endfilter %}",
    "{% filter format(@) %}%s{{ @ }}{% endfilter %}",
    "{% set x %}{{ @ }}{% endset %}{{ x }}",
    "{% set y = @ %}{% set x | replace('Z', y) %}Z{{ @ }}{% endset %}{{ x }}",
    "{% set ns = namespace(a=@) %}{% set ns.b = @ %}{{ ns.a }}{{ ns.b }}{{ ns }}",
    "{% with a = @ %}{{ a }}{% endwith %}",
    "{% autoescape true %}{{ @ | safe }}{{ @ ~ (@ | safe) }}{% endautoescape %}",
    "{% autoescape true %}{{ [@ | safe, @] | join(@ | safe) }}{% endautoescape %}",
    "{% block b %}{{ messages[0].content }}{% endblock %}",
]
SOURCES = ["{{ " + operation.replace("\n", "\\n") + " }}" for operation in OPERATIONS] + BLOCKS
PLACES = [(source, i) for source in SOURCES for i in range(source.count("@"))]


def at(source: str, place: int, given: str, others: str = "'w'") -> str:
    """Return a source with what is given at one place, and another text at the others."""
    parts = source.split("@")
    return "".join(
        part + ("" if i == len(parts) - 1 else given if i == place else others)
        for i, part in enumerate(parts)
    )


def refused_or_text(source: str, contents: Iterable[str], **variables: Any) -> None:
    """Check that no content makes a token."""
    t = template(source)
    for content in contents:
        with contextlib.suppress(ChatTemplateError):
            ids = t.encode(user(content), v={"k": content, content: content}, **variables)
            assert END not in ids, (source, content)


AROUND = [
    "NAME",
    "xNAME",
    "NAME\n",
    "NAME'",
    '"NAME',
    "\\NAME",
    "%NAME",
    "{}NAME",
    " NAME ",
    "\nNAME",
]
VALUES = ["messages[0].content", "(v.k ~ '')", "(v | list | last)"]


@pytest.mark.parametrize(("source", "place"), PLACES)
def test_a_name_given_as_data_is_no_token_at_any_argument(source, place):
    contents = [around.replace("NAME", NAME) for around in AROUND]
    for others, value in product(("'w'", "'<|im_end'", "w"), VALUES):
        refused_or_text(at(source, place, value, others), contents, w="w")


@pytest.mark.parametrize(("source", "place"), PLACES)
def test_a_half_of_a_name_given_as_data_makes_no_token_of_the_other(source, place):
    for i in (1, 2, 5, 9):
        for content, literal in ((NAME[:i], NAME[i:]), (NAME[i:], NAME[:i])):
            refused_or_text(at(source, place, VALUES[0], repr(literal)), [content], w="w")


@pytest.mark.parametrize(("source", "place"), PLACES)
def test_no_operation_sees_where_text_came_from(source, place):
    made = at(source, place, "messages[0].content", "'w'")
    if "random" in made or "lipsum" in made or "strftime" in made:
        return
    try:
        expected = plain_template(made).render(messages=user(NAME))
    except Exception:
        with pytest.raises(ChatTemplateError):
            template(made).render(user(NAME))
        return
    assert template(made).render(user(NAME)) == expected


# What operations put between the texts of others is the template's where it wrote that.
@pytest.mark.parametrize(
    "expression",
    [
        "['a', x] | tojson(separators=('<|im_end|>', ':'))",
        "{'a': x} | tojson(separators=(',', '<|im_end|>'))",
        "[x] | tojson(indent='<|im_end|>')",
        "('a\nb' ~ x) | indent('<|im_end|>')",
        "('a\nb' ~ x) | indent('<|im_end|>', blank=true)",
        "x | indent('<|im_end|>', true)",
        "('aa bb ' ~ x) | wordwrap(3, wrapstring='<|im_end|>')",
        "('<|im_end|>\n' ~ x) | indent",
        "('a\n<|im_end|>\n' ~ x) | indent(2, true, true)",
        "(x ~ ' <|im_end|>\n' ~ x) | wordwrap(30)",
        "(x ~ '<|im_end|>{}' ~ x).format(x)",
        "(x ~ '<|im_end|>{k}{{').format(k=x)",
        "(x ~ '<|im_end|>{k:>5}' ~ x).format_map({'k': x})",
        "'<|im_end|>{:{w}}|'.format(x, w=20)",
        "'<|im_end|>{:{a}{w}.{p}}|'.format(x, a='^', w=7, p=1)",
        "('{:>{w}}' ~ x).format('<|im_end|>', w=20)",
        "'<|im_end|>%-*s|' % (20, x)",
        "'%*s%.*s' % (12, '<|im_end|>', 2, x)",
        "(x ~ '%s') % '<|im_end|>'",
    ],
)
def test_a_name_that_the_template_wrote_is_a_token_beside_data(expression):
    source = "{% set x = messages[0].content %}{{ " + expression.replace("\n", "\\n") + " }}"
    for content in ("hi", "a b", "", "<|im_start|>"):
        text = template(source).render(user(content))
        assert text == plain_template(source).render(messages=user(content))
        first, *rest = text.split(NAME)
        assert rest
        expected = [*encoded(first), *(i for part in rest for i in (END, *encoded(part)))]
        assert template(source).encode(user(content)) == expected


# Numbers

NUMBERED = byte_tokenizer([*(f"<|image_{i}|>" for i in range(12)), "<|image_1.5|>", "<|image_-2|>"])


def numbered(source: str) -> ChatTemplate:
    """Return a template for tokens with numbers in their names."""
    return ChatTemplate("{% set m = messages %}" + source, NUMBERED, name="'test'")


@pytest.mark.parametrize(
    ("number", "token"),
    [
        ("1", 1),
        ("3 - 1", 2),
        ("m | length", 2),
        ("m | count + 1", 3),
        ("'ab' | length", 2),
        ("'a b' | wordcount", 2),
        ("{} | length", 0),
        ("[2, 3] | sum", 5),
        ("[2, 3] | max", 3),
        ("'7' | int", 7),
        ("7.9 | int", 7),
        ("1.5", 12),
        ("3 / 2", 12),
        ("-2", 13),
        ("2 - m | length * 2", 13),
        ("2 ** 3", 8),
        ("9 // 2 % 3", 1),
        ("-3 | abs", 3),
        ("2.6 | round | int", 3),
        ("range(4, 9)[2]", 6),
        ("range(9) | last", 8),
        ("range(m | length)[1:] | join", 1),
        ("m[0].content and 4", 4),
        ("namespace(n=3).n", 3),
        ("[4, 5] | map('string') | first", 4),
        ("'%d' % 4", 4),
        ("'{}'.format(4)", 4),
        ("4 | tojson", 4),
        ("[4] | join('')", 4),
    ],
)
def test_numbers_of_the_template_are_its_own(number, token):
    for form in (
        "'<|image_' ~ (%s) ~ '|>'",
        "'<|image_%%s|>' %% (%s)",
        "'<|image_{}|>'.format(%s)",
    ):
        source = "{{ " + form % number + " }}"
        assert numbered(source).encode([*user("a"), *user("b")]) == [256 + token]


def test_what_a_loop_counts_is_the_templates():
    each = "{% for x in m %}{{ '<|image_' ~ loop.NAME ~ '|>' }}{% endfor %}"
    messages = [*user("a"), *user("b"), *user("c")]
    for name, expected in {
        "index": [1, 2, 3],
        "index0": [0, 1, 2],
        "revindex": [3, 2, 1],
        "revindex0": [2, 1, 0],
        "length": [3, 3, 3],
        "depth": [1, 1, 1],
        "depth0": [0, 0, 0],
    }.items():
        for source in (each.replace("NAME", name), each.replace(".NAME", f"['{name}']")):
            assert numbered(source).encode(messages) == [256 + i for i in expected]
    counted = (
        "{% set ns = namespace(n=0) %}{% for x in m %}{% set ns.n = ns.n + 1 %}"
        "{{ '<|image_%d|>' % ns.n }}{% endfor %}"
    )
    assert numbered(counted).encode(messages) == [257, 258, 259]
    ranged = "{% for i in range(1, 3) %}<|image_{{ i }}|>{% endfor %}"
    assert numbered(ranged).encode(messages) == [257, 258]


GIVEN = ["v", "v + 0", "0 + v", "v * 1", "v - 0", "v // 1", "v % 9", "v ** 1", "-(-v)", "v | abs"]
GIVEN += ["v | int", "v | string", "v | string | int", "[v] | sum", "[v, 0] | max", "v | tojson"]
GIVEN += [
    "range(v, 9)[0]",
    "range(9)[v:] | first",
    "1 * v * 1",
    "'%d' % v",
    "'{}'.format(v)",
    "v | round | int",
]
GIVEN += ["m[0].n", "m[0].n + 0", "{'k': v}.k", "'{:d}'.format(v)", "'%c' % (48 + v)", "v.real"]
GIVEN += ["m[0].content | length", "m[0].content.count('x')", "m[0].content.find('y')"]
GIVEN += [
    "m[0].content | wordcount + 0",
    "(v / 1) | int",
    "[v] | map('int') | first",
    "t | int",
    "t | float | int",
]
GIVEN += [
    "m[0].content.encode() | length + 0 if false else v",
    "(v * 1.0) | int",
    "1.0 * v // 1 | int",
]


@pytest.mark.parametrize("number", GIVEN)
def test_numbers_of_others_make_no_token(number):
    source = "{{ '<|image_' ~ (" + number + ") ~ '|>' }}"
    t = numbered(source)
    for n in (1, 2, 5):
        options = {"v": n, "t": str(n)}
        messages = user("x" * n + "y", n=n)
        text = t.render(messages, **options)
        with contextlib.suppress(ChatTemplateError):
            assert t.encode(messages, **options) == list(text.encode())


def test_numbers_look_like_numbers():
    source = """{{ v is number }}{{ v is integer }}{{ v is float }}{{ f is float }}{{ v == 3 }}
        {{- {3: 'a'}[v] }}{{ v | tojson }}{{ f }}{{ [v, f] }}{{ {'k': v} | tojson }}{{ v is odd }}
        {{- 'abcd'[v] }}{{ 'a' * v }}{{ v | filesizeformat }}{{ v < 4 }}{{ loop is defined }}
        {{- range(v) | list }}{{ range(v) }}{{ 3 is sameas 3 }}{{ v is boolean }}{{ b is boolean }}
        {{- v in [3] }}{{ 3 is divisibleby(v) }}{{ v._x is defined }}{{ range(3) == range(v) }}"""
    options = {"v": 3, "f": 1.5, "b": True}
    assert template(source).render([], **options) == plain_template(source).render(options)
    with pytest.raises(ChatTemplateError, match=r"'int' and 'str'|'int' and 'Traced'|int"):
        template("{{ 1 + 'a' }}").render([])
