"""Answers that are long, or made to cost time: the work stays in proportion to the text."""

from __future__ import annotations

import time

import pytest
from work import lines_run

from oxibonsai.chat import parse_answer


@pytest.mark.timing
@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 20_000,
        "<tool_call>{" * 10_000 + "</tool_call>",
        '<tool_call>\n{"name": "f", "arguments": {"x": "' + '\\"</tool_call>' * 50_000,
        '<tool_call>\n{"name": "f", "arguments": {"x": 1' + ',"y": "</tool_call>"' * 20_000,
        "<tool_call>\n<function=f>\n<parameter=x>\n" + "</tool_call>\n" * 50_000,
        "<tool_call>\n<function=f>" + "\n<parameter=x>\n</tool_call>\n</parameter>" * 10_000,
        "<tool_call><function=f>\n<parameter=x>" * 5_000 + "</tool_call>" * 5_000,
        '<tool_call>{"name": "f", "a": "' * 5_000 + "</tool_call>" * 5_000,
        "<tool_call>" + " " * 200_000,
        "<think>" + "<" * 200_000,
    ],
)
def test_long_texts_take_no_long_time(text):
    start = time.perf_counter()
    parse_answer(text)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "text",
    [
        lambda n: '<tool_call>{"name": "f", "arguments": {"x": "' + "</tool_call>" * n,
        lambda n: '<tool_call>{"name": "f", "arguments": {"x": 1' + ',"y": "</tool_call>"' * n,
        lambda n: "<tool_call>\n<function=f>\n<parameter=x>\n" + "</tool_call>\n" * n,
        lambda n: "<tool_call>\n<function=f>" + "\n<parameter=x>\n</tool_call>\n</parameter>" * n,
        lambda n: "<tool_call><function=f>\n<parameter=x>" * n + "</tool_call>" * n,
        lambda n: (
            "<tool_call><function=f>\n<parameter=x>" * n
            + "</tool_call>" * n
            + "</parameter></tool_call>"
        ),
        lambda n: '<tool_call>{"name": "f", "a": "' * n + "</tool_call>" * n,
    ],
    ids=["a string", "strings", "a value", "values", "openings", "openings with an end", "json"],
)
def test_closing_tags_in_values_cost_work_in_proportion(text):
    few, many = (lines_run(lambda n=n: parse_answer(text(n))) for n in (200, 800))
    assert many < 6 * few
