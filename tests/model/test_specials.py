"""Names of special tokens in a text: which are read, and the work of finding them."""

from __future__ import annotations

import pytest
from chat_templates import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from work import lines_run

from oxibonsai.model.specials import SpecialNames

NAMES = st.text("ab<", min_size=1, max_size=4)


def by_hand(
    text: str, control: dict[str, int], user: dict[str, int], spans: list[tuple[int, int]]
) -> list[tuple[str, int | None]]:
    """The parts, by the definition: the leftmost place, there the longest that is permitted."""
    parts: list[tuple[str, int | None]] = []
    place = held = 0
    while place < len(text):
        fitting = [n for n in user if text.startswith(n, place)]
        for name in control:
            end = place + len(name)
            if text.startswith(name, place) and any(a <= place and end <= b for a, b in spans):
                fitting.append(name)
        if not fitting:
            place += 1
            continue
        name = max(fitting, key=len)
        parts += [(text[held:place], None), (name, (user | control)[name])]
        place = held = place + len(name)
    return [part for part in [*parts, (text[held:], None)] if part[0]]


@given(
    st.text("ab<", max_size=40),
    st.sets(NAMES, max_size=6),
    st.sets(NAMES, max_size=4),
    st.lists(st.integers(0, 40), max_size=6, unique=True).map(sorted),
)
def test_the_longest_permitted_name_is_read_from_the_left(text, control, user, cuts):
    names = {name: i for i, name in enumerate(sorted(control - user))}
    others = {name: 100 + i for i, name in enumerate(sorted(user))}
    specials = SpecialNames(names, others)
    spans = [(a, min(b, len(text))) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    assert specials.split(text, spans) == by_hand(text, names, others, spans)
    assert specials.split(text) == by_hand(text, names, others, [(0, len(text))])
    found = list(specials.find(text, spans))
    assert [text[a:b] for a, b in found] == [
        p for p, i in specials.split(text, spans) if i is not None
    ]


@pytest.mark.parametrize(
    ("control", "text", "parts"),
    [
        ([], "<a>", [("<a>", None)]),
        (["<a>"], "", []),
        (["<a>", "<a"], "<a><a", [("<a>", 0), ("<a", 1)]),
        (["a", "aa", "aaa"], "aaaaa", [("aaa", 2), ("aa", 1)]),
        (["abc", "bcde"], "abcde", [("abc", 0), ("de", None)]),
        (["abcd", "bc"], "abce", [("a", None), ("bc", 1), ("e", None)]),
        (["]", "-", "^", "\\"], "[a-^\\]", [("[a", None), ("-", 1), ("^", 2), ("\\", 3), ("]", 0)]),
        (["\U0001f333\n"], "\n\U0001f333\n", [("\n", None), ("\U0001f333\n", 0)]),
    ],
)
def test_names_within_names(control, text, parts):
    assert SpecialNames({name: i for i, name in enumerate(control)}, {}).split(text) == parts


def test_an_empty_name_is_no_name():
    assert SpecialNames({"": 0}, {"": 1}).split("ab") == [("ab", None)]


def test_a_tokenizer_reads_its_names():
    tokenizer = byte_tokenizer(["<|a|>", "<|a|><|b|>"], ["<t>"])
    assert tokenizer.split_special("x<|a|><|b|><t><|a|>") == [
        ("x", None),
        ("<|a|><|b|>", 257),
        ("<t>", 258),
        ("<|a|>", 256),
    ]
    assert tokenizer.encode("x<t><|a|>", parse_special=True) == [ord("x"), 258, 256]
    assert tokenizer.encode("<t><|a|>") == [*b"<t><|a|>"]
    assert tokenizer.specials is tokenizer.specials


# The work of finding them

MANY = [f"<|reserved_special_token_{i}|>" for i in range(1_000)]
VOCABULARIES = {
    "many": MANY,
    "long": ["<|" + "long" * 1_000 + "|>"],
    "nested": ["a" * n for n in range(1, 400)],
    "hard": ["a" * 4_000 + "b", "b" + "a" * 4_000],
}
TEXTS = {
    "many": "<|reserved_special_token_99<|reserved_special_token_999|>",
    "long": "<|" + "long" * 999 + "|>",
    "nested": "aaaaaaaab",
    "hard": "a",
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_work_grows_with_the_text_alone(kind):
    specials = SpecialNames({name: i for i, name in enumerate(VOCABULARIES[kind])}, {})
    text = (TEXTS[kind] * 20_000)[:20_000]
    once, twice = (lines_run(lambda n=n: list(specials.find(text * n))) for n in (1, 2))
    assert once < 40 * len(text)
    assert twice < 2.2 * once + 100


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_vocabulary_costs_its_characters_once(kind):
    names = {name: i for i, name in enumerate(VOCABULARIES[kind])}
    size = sum(map(len, names))
    assert lines_run(lambda: SpecialNames(names, {})) < 40 * size + 200
    # A node a character at most, and no list of the parts of names.
    assert len(SpecialNames(names, {})._control._fail) <= size + 1


def test_nothing_is_made_again_for_a_message():
    tokenizer = byte_tokenizer(MANY)
    message = "user\nHello<|im_end|>\n" + MANY[7]
    first, second = (
        lines_run(lambda: tokenizer.encode(message, parse_special=True)) for _ in range(2)
    )
    assert second < first / 100
    assert tokenizer.encode(message, parse_special=True)[-1] == 256 + 7
