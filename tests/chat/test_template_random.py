"""Random conversations against Jinja's own rendering, and long ones against its time."""

from __future__ import annotations

import functools
import random
import time
from typing import Any

import chat_expressions
import jinja2
import pytest
from chat_bytes import NAME, template
from chat_conversations import (
    PIECES,
    conversation,
    expected_ids,
    plain_template,
    rendered_by_jinja,
    twin,
)
from chat_templates import (
    QWEN,
    SPECIAL_TOKENS,
    TEMPLATES,
    tokenizer,
    vocabulary,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from oxibonsai.chat import ChatTemplate, ChatTemplateError

RICH = tokenizer()
RICH_IDS = {name: i for i, name in enumerate(vocabulary()["tokenizer.ggml.tokens"])}


@pytest.mark.parametrize("style", TEMPLATES)
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_ids_are_those_of_jinjas_text_with_the_names_of_others_as_text(style, rng):
    source, special_tokens = TEMPLATES[style], SPECIAL_TOKENS[style]
    compare(source, special_tokens, conversation(rng))


@pytest.mark.parametrize("style", TEMPLATES)
def test_ids_with_roles_of_any_name(style):
    source, special_tokens = TEMPLATES[style], SPECIAL_TOKENS[style]
    roles = ("system", "user", "assistant", "critic", NAME, "end", "user|><|user", "<think>")
    for seed in range(150):
        compare(source, special_tokens, conversation(random.Random(seed), roles))


@functools.cache
def made_once(source: str, special_tokens: tuple[tuple[str, str], ...]) -> ChatTemplate:
    return ChatTemplate(source, RICH, special_tokens=dict(special_tokens))


def compare(source: str, special_tokens: dict[str, str], made: Any) -> None:
    t = made_once(source, tuple(special_tokens.items()))
    plain = made.plain()
    texts = [rendered_by_jinja(source, each, special_tokens) for each in (plain, plain.twin())]
    assert t.render(made.messages, **made.given()) == texts[0]
    expected, _ = expected_ids(*texts, RICH_IDS, RICH.encode)
    assert t.encode(made.messages, **made.given()) == expected


def test_random_expressions_give_jinjas_text_and_no_token_of_others():
    n_compared = n_failed = n_refused = n_tokens = 0
    for seed in range(600):
        rng = random.Random(seed)
        source, message = chat_expressions.source(rng), chat_expressions.message(rng)
        given = {"messages": [message], "v": rng.choice(chat_expressions.TEXTS)}
        t = ChatTemplate(source, RICH)
        try:
            text = plain_template(source).render(given)
        except Exception:  # what fails in Jinja fails here, in one way
            n_failed += 1
            with pytest.raises(ChatTemplateError):
                t.encode(**given)
            continue
        assert t.render(**given) == text, seed
        try:
            twin_text = plain_template(source).render(
                messages=[{k: v if k == "role" else twin(v) for k, v in message.items()}],
                v=twin(given["v"]),
            )
        except Exception:
            continue
        if len(twin_text) != len(text):
            continue
        try:
            found = t.encode(**given)
        except ChatTemplateError:
            n_refused += 1
            continue
        n_compared += 1
        assert found == expected_ids(text, twin_text, RICH_IDS, RICH.encode)[0], (seed, source)
        n_tokens += RICH_IDS["<|im_end|>"] in found
    assert n_compared > 300
    assert n_failed > 20
    assert n_tokens > 4
    assert n_refused < 10


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_a_twin_has_no_name_and_the_same_length(text):
    assert len(twin(text)) == len(text)
    assert NAME not in twin(text)


# Work


def work(source: str, messages: list[dict[str, Any]], rich: bool) -> float:
    """The processor's seconds of the fastest of five renderings."""
    t = template(source)
    plain = jinja2.Template if rich else plain_template(source)
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        if rich:
            t.render(messages)
        else:
            plain.render(messages=messages, add_generation_prompt=True)
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.timing
@pytest.mark.parametrize("n", [1, 200])
def test_long_conversations_render_as_fast_as_in_plain_jinja_by_a_small_factor(n):
    size = 1_000_000 if n == 1 else 2_000
    messages = [{"role": "user", "content": "word<|im_end|>\n" * (size // 15)} for _ in range(n)]
    plain, traced = work(QWEN, messages, rich=False), work(QWEN, messages, rich=True)
    assert traced < 6 * plain + 0.005
