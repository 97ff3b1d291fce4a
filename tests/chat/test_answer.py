"""Answers taken apart: thinking, tool calls in both forms, and whatever else models write."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oxibonsai.chat import Answer, AnswerParser, parse_answer

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
TAGS = (
    "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)


def calls(answer: Answer) -> list[tuple[str, str]]:
    """The names and arguments of the calls, whose structure is checked."""
    for call in answer.tool_calls:
        assert set(call) == {"id", "type", "function"}
        assert call["type"] == "function"
        assert call["id"].startswith("call_")
        int(call["id"].removeprefix("call_"), 16)
        assert set(call["function"]) == {"name", "arguments"}
        assert isinstance(json.loads(call["function"]["arguments"]), dict)
    assert len({call["id"] for call in answer.tool_calls}) == len(answer.tool_calls)
    return [(c["function"]["name"], c["function"]["arguments"]) for c in answer.tool_calls]


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


# Thinking


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("Hello.", "", "Hello."),
        ("", "", ""),
        ("\nHello.\n", "", "\nHello.\n"),
        ("<think>\nplan\n</think>\n\nHello.", "plan", "Hello."),
        ("\n<think>plan</think>Hello.", "plan", "Hello."),
        ("<think>\n\n</think>\n\nHello.", "", "Hello."),
        ("<think>\nplan\n</think>\n\n  code", "plan", "  code"),
        ("<think>\nplan", "plan", ""),  # no end: cut off
        ("<think>\nplan</thin", "plan</thin", ""),
        ("<think>\nplan <think> more\n</think>\n\nSo", "plan <think> more", "So"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("Write <think>so</think>.", "", "Write <think>so</think>."),
        ("No end</think> here", "", "No end</think> here"),
        ("<think", "", "<think"),
        ("<thinking>plan</thinking>", "", "<thinking>plan</thinking>"),
        ("<think>use <tool_call>{}</tool_call></think>x", "use <tool_call>{}</tool_call>", "x"),
    ],
)
def test_thinking_is_told_from_the_content(text, reasoning, content):
    answer = parse_answer(text)
    assert (answer.reasoning, answer.content, answer.tool_calls) == (reasoning, content, [])


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("plan\n</think>\n\nHello.", "plan", "Hello."),
        ("plan", "plan", ""),
        ("", "", ""),
        ("</think>\n\nHello.", "", "Hello."),
        ("<think>\nplan\n</think>\n\nHello.", "plan", "Hello."),  # opened once more
        ("\n  indented\n</think>x", "  indented", "x"),
    ],
)
def test_prompt_that_opens_thinking_lets_the_answer_begin_in_it(text, reasoning, content):
    answer = parse_answer(text, thinking=True)
    assert (answer.reasoning, answer.content) == (reasoning, content)


# Calls as JSON


def test_calls_of_qwen3_have_the_structure_of_openai():
    second = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    answer = parse_answer(f"<think>\nplan\n</think>\n\nI add.\n{CALL}\n{second}")
    assert (answer.reasoning, answer.content) == ("plan", "I add.")
    assert calls(answer) == [("add", '{"a": 1, "b": 2}'), ("now", "{}")]
    assert answer.message() == {
        "role": "assistant",
        "content": "I add.",
        "reasoning_content": "plan",
        "tool_calls": answer.tool_calls,
    }
    assert parse_answer("Hi").message() == {"role": "assistant", "content": "Hi"}


@pytest.mark.parametrize(
    ("body", "name", "arguments"),
    [
        ('{"name":"f","arguments":{"x" :1.50,"y":"\\u00e9"}}', "f", '{"x" :1.50,"y":"\\u00e9"}'),
        ('\n\n {"arguments": {"x": []}, "name": "f"} \n', "f", '{"x": []}'),
        ('{"name": "f"}', "f", "{}"),
        ('{"name": "f", "arguments": null}', "f", "{}"),
        ('{"name": "f", "arguments": "{\\"x\\": 1}"}', "f", '{"x": 1}'),
        ('{"name": "f", "arguments": {}, "id": 3}', "f", "{}"),
        ('{"name": "f", "arguments": {"x": "</tool_call>"}}', "f", '{"x": "</tool_call>"}'),
        ('{"name": "f", "arguments": {"x": "<tool_call>\\n"}}', "f", '{"x": "<tool_call>\\n"}'),
        (
            '{"name": "f", "arguments": {"x": "\\"</tool_call>\\\\"}}',
            "f",
            '{"x": "\\"</tool_call>\\\\"}',
        ),
        ('{\n  "name": "f",\n  "arguments": {\n    "x": 1\n  }\n}', "f", '{\n    "x": 1\n  }'),
        ('{"name": "\u5929\u6c17", "arguments": {"\u5e02": "\u6771\u4eac"}}', "\u5929\u6c17", None),
    ],
)
def test_arguments_keep_the_characters_that_the_model_wrote(body, name, arguments):
    arguments = '{"\u5e02": "\u6771\u4eac"}' if arguments is None else arguments
    assert calls(parse_answer(f"<tool_call>{body}</tool_call>")) == [(name, arguments)]


MALFORMED = [
    "",
    "\n",
    "{}",
    "[]",
    "null",
    "text",
    '{"name": "f", "arguments": {}',
    '{"name": "f", "arguments": {},}',
    '{"name": "f" "arguments": {}}',
    '{"name": "f", "arguments": {"a": 1}} and more',
    '{"arguments": {}}',
    '{"name": "", "arguments": {}}',
    '{"name": " ", "arguments": {}}',
    '{"name": 7, "arguments": {}}',
    '{"name": "f", "arguments": [1]}',
    '{"name": "f", "arguments": 1}',
    '{"name": "f", "arguments": "text"}',
    '{"name": "f", "arguments": {"x": NaN}}',
    '{"name": "f", "arguments": {"x": "a\nb"}}',
    '{"name": "f", "arguments": {"x": "\\ud800"}}',
    '{"name": "f", "arguments": {"x": ' + "[" * 100_000,
    '{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}",
    "{'name': 'f', 'arguments': {}}",
    '{"name": "f, "arguments": {}}',
    '{"name": "f", "arguments": {"x": "\\',
    "<function=f>",
    "<function=>\n</function>",
    "<function= >\n</function>",
    "<function=f\n</function>",
    "<function=f>\n<parameter=>\n1\n</parameter>\n</function>",
    "<function=f>\n<parameter=a>\n1\n</parameter>\n",
    "<function=f>\ntext\n</function>",
    "<function=f>\n</function>\ntext",
    "<functions=f>\n</functions>",
    " " * 100 + '{"name": "f", "arguments": {}}',
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_call_stays_text_and_hides_no_other(body):
    text = f"a<tool_call>{body}</tool_call>"
    answer = parse_answer(text)
    assert (answer.content, answer.tool_calls) == (text, [])
    behind = parse_answer(f"{text}\n{CALL}")
    assert behind.content == text.rstrip()
    assert calls(behind) == [("add", '{"a": 1, "b": 2}')]
    before = parse_answer(f"{CALL}b{text}")
    assert before.content == f"b{text}"
    assert len(calls(before)) == 1


@pytest.mark.parametrize("whole", [CALL, TAGS])
def test_call_that_is_cut_off_anywhere_is_text(whole):
    for n in range(len(whole)):
        answer = parse_answer(f"I add.\n{whole[:n]}")
        assert (answer.content, answer.tool_calls) == (f"I add.\n{whole[:n]}", [])


def test_text_around_calls_is_the_content():
    answer = parse_answer(f" first\n\n{CALL}\n\n{CALL} then\n{CALL}\n")
    assert answer.content == " first\n\n then"
    assert len(calls(answer)) == 3
    assert parse_answer(f"\n{CALL}").content == ""
    nested = parse_answer(f"<tool_call>\n{CALL}\n</tool_call>")
    assert len(calls(nested)) == 1


@pytest.mark.parametrize("call", [CALL, TAGS])
def test_call_that_ends_open_thinking_is_one(call):
    answer = parse_answer(f"I need it.\n{call}\n{call}\n", thinking=True)
    assert (answer.reasoning, answer.content) == ("I need it.", "")
    assert [name for name, _ in calls(answer)] == ["add", "add"]
    assert parse_answer(call, thinking=True).reasoning == ""
    for text in (f"Not {call} yet", f"Not {call[:-1]}", f"Not {call[9:]}"):
        answer = parse_answer(f"<think>{text}")
        assert (answer.reasoning, answer.content, answer.tool_calls) == (text, "", [])


# Calls as tags


def test_calls_of_qwen35_have_the_structure_of_openai():
    answer = parse_answer(f"plan\n</think>\n\nI add.\n\n{TAGS}\n{TAGS}", thinking=True)
    assert (answer.reasoning, answer.content) == ("plan", "I add.")
    assert calls(answer) == [("add", '{"a": "1", "b": "2"}')] * 2  # text without a schema


def tagged(**values: str) -> str:
    parts = [f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items()]
    return f"<tool_call>\n<function=f>\n{''.join(parts)}</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": "string"}, "null", "null"),
        ({"type": "integer"}, "12", 12),
        ({"type": "integer"}, " -3\n", -3),
        ({"type": "integer"}, "12.5", "12.5"),
        ({"type": "integer"}, "twelve", "twelve"),
        ({"type": "integer"}, "true", "true"),
        ({"type": "integer"}, "9" * 5000, "9" * 5000),
        ({"type": "number"}, "12.5", 12.5),
        ({"type": "number"}, "12", 12),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "False", False),
        ({"type": "boolean"}, "1", "1"),
        ({"type": "null"}, "null", None),
        ({"type": "object"}, '{"x": [1, "y"]}', {"x": [1, "y"]}),
        ({"type": "object"}, "[1]", "[1]"),
        ({"type": "array"}, '\n[1,\n "y"]', [1, "y"]),
        ({"type": "array"}, "1, 2", "1, 2"),
        ({"type": "array"}, "[" * 100_000, "[" * 100_000),
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": ["integer", "null"]}, "None", None),
        ({"type": ["integer", "null"]}, "4", 4),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "4", "4"),
        ({"oneOf": [{"type": "integer"}, {"type": "boolean"}]}, "true", True),
        ({"$ref": "#/$defs/Count"}, "4", 4),
        ({"$ref": "#/$defs/Loop"}, "4", "4"),
        ({"$ref": "#/nowhere"}, "4", "4"),
        ({"enum": ["a", "b"]}, "a", "a"),
        ({}, "4", "4"),
        (None, "4", "4"),
        (7, "4", "4"),
        ({"type": 7}, "4", "4"),
        ({"type": "date"}, "4", "4"),
    ],
)
def test_value_between_tags_has_the_type_of_its_schema(schema, text, value):
    one = tool("f", x=schema)
    one["function"]["parameters"]["$defs"] = {
        "Count": {"type": "integer"},
        "Loop": {"anyOf": [{"$ref": "#/$defs/Loop"}, {"$ref": "#/$defs/Loop"}]},
    }
    for tools in ([tool("g"), one], [one["function"]]):
        ((name, arguments),) = calls(parse_answer(tagged(x=text), tools=tools))
        assert (name, json.loads(arguments)) == ("f", {"x": value})
        assert type(json.loads(arguments)["x"]) is type(value)


@pytest.mark.parametrize(
    "tools", [[], [7], [{}], [{"function": 7}], [tool("g", x={"type": "integer"})]]
)
def test_tools_that_say_nothing_of_the_call_leave_text(tools):
    assert calls(parse_answer(tagged(x="1"), tools=tools)) == [("f", '{"x": "1"}')]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "\n",
        "  two\n\nlines  ",
        "a < b && c > d",
        "</parameter>",
        "</function>",
        "</tool_call>",
        "<tool_call>",
        "say </tool_call> and </parameter> so",
        "<parameter=y>\n1\n</parameter>\nend",
        '{"a": "\u00e9"}',
        "<think>x</think>",
    ],
)
def test_value_between_tags_is_taken_as_it_stands(value):
    ((_, arguments),) = calls(parse_answer(tagged(x=value, z="1")))
    assert json.loads(arguments) == {"x": value, "z": "1"}


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ("<function=f></function>", {}),
        ("\n<function=f>\n\n</function>\n", {}),
        ("<function=f><parameter=x>1</parameter></function>", {"x": "1"}),
        ("<function=f>\n<parameter=x>\n</parameter>\n</function>", {"x": ""}),
        ("<function=f>\n<parameter=x>\n1\n</function>", {"x": "1"}),
        ("<function=f>\n<parameter=x>\n</function>", {"x": ""}),
        ("<function=f>\n<parameter=x>\n1\n<parameter=y>\n2\n</parameter>\n</function>", None),
        (
            "<function=f>\n<parameter=x>\n1\n</parameter>\n<parameter=x>\n2\n</parameter></function>",
            {"x": "2"},
        ),
    ],
)
def test_tags_may_be_a_little_out_of_form(body, arguments):
    tools = [tool("f", x={"type": "string"}, y={"type": "string"})]
    ((_, found),) = calls(parse_answer(f"<tool_call>{body}</tool_call>", tools=tools))
    assert json.loads(found) == ({"x": "1", "y": "2"} if arguments is None else arguments)


# While it comes

PARTS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    '{"name": "f", "arguments": {"x": "',
    '"}}',
    '{"name": "f", "arguments": {}}',
    "<function=f>",
    "</function>",
    "<parameter=x>",
    "</parameter>",
    "\n",
    " ",
    "<",
    "</",
    "tool_call>",
    '"',
    "\\",
    "x",
    "\u00e9",
]
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.sampled_from([CALL, TAGS])), max_size=12)


def pieces_of(text: str, cuts: list[int], *, thinking: bool) -> tuple[str, str, Answer]:
    """All pieces, those of the content, and the answer, of a text that comes in parts."""
    parser = AnswerParser(thinking=thinking)
    ends = sorted({*(cut % (len(text) + 1) for cut in cuts), len(text)})
    pieces = []
    for start, end in zip([0, *ends], ends, strict=False):
        before = parser.answer()
        pieces += parser.push(text[start:end])
        after = parser.answer()
        assert after.reasoning.startswith(before.reasoning.rstrip("\n"))
        assert after.tool_calls[: len(before.tool_calls)] == before.tool_calls
    pieces += parser.finish()
    assert parser.finish() == []
    assert all(piece.text for piece in pieces)
    return (
        "".join(piece.text for piece in pieces),
        "".join(piece.text for piece in pieces if not piece.thinking),
        parser.answer(),
    )


@given(parts=TEXTS, cuts=st.lists(st.integers(0, 10_000), max_size=40), thinking=st.booleans())
@example(parts=[CALL], cuts=list(range(200)), thinking=False)
@example(parts=["<think>", "x", "</think>", TAGS], cuts=list(range(200)), thinking=False)
def test_text_in_any_parts_is_taken_apart_alike(parts, cuts, thinking):
    text = "".join(parts)
    whole = parse_answer(text, thinking=thinking)
    shown, content, answer = pieces_of(text, cuts, thinking=thinking)
    assert (answer.reasoning, answer.content) == (whole.reasoning, whole.content)
    assert calls(answer) == calls(whole)
    uncut, said, _ = pieces_of(text, [], thinking=thinking)
    assert (shown, content) == (uncut, said)
    if not whole.tool_calls:
        assert shown == text
    assert content.rstrip() == whole.content.rstrip()


@given(parts=TEXTS, cuts=st.lists(st.integers(0, 10_000), max_size=40))
def test_without_calls_all_text_is_shown(parts, cuts):
    text = "".join(parts)
    parser = AnswerParser(calls=False)
    ends = sorted({*(cut % (len(text) + 1) for cut in cuts), len(text)})
    pieces = [p for a, b in zip([0, *ends], ends, strict=False) for p in parser.push(text[a:b])]
    pieces += parser.finish()
    assert "".join(piece.text for piece in pieces) == text
    assert parser.answer().tool_calls == []


@given(text=st.text(max_size=300))
def test_no_text_is_an_error(text):
    parse_answer(text)
    parse_answer(f"<tool_call>{text}</tool_call>")
    parse_answer(f"<tool_call><function={text}</function></tool_call>", thinking=False)


def test_no_piece_ends_in_the_beginning_of_a_tag():
    parser = AnswerParser()
    texts = [[piece.text for piece in parser.push(c)] for c in "<think>a<b</think>\nc<t<tool"]
    assert [t for part in texts for t in part] == [
        "<think>", "a", "<b", "</think>", "\n", "c", "<t"
    ]  # fmt: skip
    assert [piece.text for piece in parser.finish()] == ["<tool"]


def test_value_may_hold_any_number_of_closing_tags():
    value = "a</tool_call>" * 50 + '"\\' + "\n</tool_call>\n" * 50
    body = json.dumps({"name": "f", "arguments": {"x": value, "y": [value, value]}})
    (call,) = parse_answer(f"<tool_call>{body}</tool_call>").tool_calls
    assert json.loads(call["function"]["arguments"]) == {"x": value, "y": [value, value]}
    tags = "".join(f"\n<parameter={name}>\n{value}\n</parameter>" for name in "xy")
    (call,) = parse_answer(f"<tool_call><function=f>{tags}\n</function></tool_call>").tool_calls
    assert json.loads(call["function"]["arguments"]) == {"x": value, "y": value}


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "f", "parameters": {"a": 1}}', '{"a": 1}'),
        ('{"parameters": {"a":1}, "name": "f"}', '{"a":1}'),
        ('{"name": "f", "parameters": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"name": "f", "parameters": {"a": 1}, "arguments": {"b": 2}}', '{"b": 2}'),
        ('{"name": "f", "arguments": null, "parameters": {"a": 1}}', '{"a": 1}'),
        ('{"name": "f", "parameters": null}', "{}"),
        ('{"name": "f", "parameters": {}, "type": "function"}', "{}"),
        ('{"name": "f"}', "{}"),
    ],
)
def test_arguments_go_by_the_word_of_llama_too(body, arguments):
    (call,) = parse_answer(f"<tool_call>\n{body}\n</tool_call>").tool_calls
    assert call["function"] == {"name": "f", "arguments": arguments}


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "f", "args": {"a": 1}}',
        '{"name": "f", "input": {"a": 1}}',
        '{"type": "function", "name": "f"}',
        '{"name": "f", "parameters": [1]}',
    ],
)
def test_call_without_known_arguments_stays_text(body):
    text = f"<tool_call>\n{body}\n</tool_call>"
    answer = parse_answer(text)
    assert (answer.content, answer.tool_calls) == (text, [])
