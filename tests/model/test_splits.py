"""The split of qwen35: words by hand, against a reading of its rules, and in ids that come back."""

from __future__ import annotations

import unicodedata

import pytest
import qwen3_texts
from hypothesis import example, given, settings
from hypothesis import strategies as st
from model_files import Q1_MODEL
from tokenizer_files import byte_tokens

from oxibonsai import gguf
from oxibonsai.model.splits import SPLITS
from oxibonsai.model.tokenizer import Tokenizer

SHORT = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
NO_SPACE = "\x1c\x1d\x1e\x1f"
"""What Python takes for white space, and Unicode does not."""
ALPHABETS = {
    "Latin": "aZ\u00e9\u0130\u017fe\u0301o\u0328'",
    "Devanagari": "\u0915\u093f\u094d\u0937\u0902\u093c\u0967",
    "Tamil": "\u0ba8\u0bbe\u0ba9\u0bcd\u0be6",
    "Thai": "\u0e40\u0e1b\u0e47\u0e19\u0e51",
    "Hebrew": "\u05e9\u05c1\u05b8\u05dc\u05be",
    "Arabic": "\u0627\u0644\u0633\u0651\u064e\u0661",
    "Hangul": "\u1112\u1161\u11ab\ud55c",
    "Khmer": "\u1781\u17d2\u1789\u17bb\u17c6\u17e1",
    "Tibetan": "\u0f64\u0f7a\u0f63\u0f0b",
    "Han": "\u4f60\u597d\U00020000\u3002",
    "emoji": "\U0001f600\U0001f3fd\u200d\u2764\ufe0f\u20e3",
    "spaces": " \t\r\n\u00a0\u2028\u3000",
    "digits": "019\u00bd\u2167\U0001d7d8",
    "signs": "!.,'\"-_$+^~`\u20ac\u203f",
    "marks": "\u0300\u0488\u093e\u20dd\ufe00\U0001d165",
}
MIXED = "".join(ALPHABETS.values()) + "sStTrReEvVmMlLdD"
TEXT = st.text(st.sampled_from(MIXED), max_size=30)


def words(text: str) -> list[str]:
    """Return the words that the pattern cuts a text into."""
    from tokenizers import Regex, pre_tokenizers

    (pattern,) = SPLITS["qwen35"]
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return [text[a:b] for _, (a, b) in split.pre_tokenize_str(text)]


def read_words(text: str) -> list[str]:
    """Return the same by the rules, read one after the other without a pattern."""
    kinds = ["Z" if c.isspace() and c not in NO_SPACE else unicodedata.category(c)[0] for c in text]

    def run(at: int, allowed: str) -> int:
        while at < len(text) and kinds[at] in allowed:
            at += 1
        return at

    def end_of_word(at: int) -> int:
        for short in SHORT:
            if text[at : at + len(short)].casefold() == short:
                return at + len(short)
        # Letters and marks, with one character before them that is no letter, number or break.
        first = at + (kinds[at] not in "LN" and text[at] not in "\r\n")
        for begin in dict.fromkeys((first, at)):
            if (end := run(begin, "LM")) > begin:
                return end
        if kinds[at] == "N":
            return at + 1
        # Anything else, with one space before it and line breaks behind.
        begin = at + (text[at] == " ")
        if (end := run(begin, "PSC")) > begin:
            while end < len(text) and text[end] in "\r\n":
                end += 1
            return end
        # White space: to its last line break; else all but the last one before a word; else all.
        end = run(at, "Z")
        last = max(text.rfind("\r", at, end), text.rfind("\n", at, end))
        if last >= 0:
            return last + 1
        return end - 1 if end < len(text) and end - 1 > at else end

    found, at = [], 0
    while at < len(text):
        end = end_of_word(at)
        found.append(text[at:end])
        at = end
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e\u0301te\u0301 a\u0308", ["e\u0301te\u0301", " a\u0308"]),
        ("\u0915\u093f\u0924\u093e\u092c 12", ["\u0915\u093f\u0924\u093e\u092c", " ", "1", "2"]),
        ("\u0301a", ["\u0301a"]),
        (" \u0301", [" \u0301"]),
        ("1\u0301", ["1", "\u0301"]),
        ("!\u0301?", ["!\u0301", "?"]),
        ("!!\u0301?", ["!!", "\u0301", "?"]),
        ("\n\u0301", ["\n", "\u0301"]),
        ("It's  I'M\u0301", ["It", "'s", " ", " I", "'M", "\u0301"]),
        ("a\r\n\n b", ["a", "\r\n\n", " b"]),
        ("", []),
    ],
    ids=ascii,
)
def test_marks_belong_to_words(text, expected):
    assert words(text) == read_words(text) == expected


@given(TEXT)
@settings(deadline=None, max_examples=2000)
@example("'\u017f'\u017fx")
@example("  \n \u00a0x")
def test_words_of_many_scripts_are_those_of_the_rules(text):
    assert words(text) == read_words(text)


@pytest.mark.parametrize("kind", qwen3_texts.COUNTS)
def test_words_of_600_texts_are_those_of_the_rules(kind):
    # Not with characters that are younger than this Python: it does not know what they are.
    known = [
        text
        for text in qwen3_texts.texts(kind)
        if not any(unicodedata.category(c) == "Cn" for c in text)
    ]
    assert len(known) > 5
    assert [words(text) for text in known] == [read_words(text) for text in known]


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    with gguf.open(Q1_MODEL) as file:
        tokens, merges = (file.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges"))
    return Tokenizer(tokens, merges, pre="qwen35")


@given(TEXT)
@settings(deadline=None, max_examples=300)
def test_any_text_comes_back_whole_and_in_a_stream(demo, text):
    ids = demo.encode(text)
    assert demo.decode(ids) == text
    stream = demo.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == text
    # No token reaches from one word into the next.
    assert [i for word in words(text) for i in demo.encode(word)] == ids


def test_a_mark_is_merged_with_its_letter_where_qwen2_keeps_them_apart():
    # U+0301 is the bytes CC 81.
    mark, part = "\u00cc\u0123", "e\u00cc"
    tokens = [*byte_tokens(), mark, part, "e" + mark]
    merges = ["\u00cc \u0123", f"e {mark}"]
    of_qwen2, of_qwen35 = (Tokenizer(tokens, merges, pre=pre) for pre in ("qwen2", "qwen35"))
    assert [tokens[i] for i in of_qwen2.encode("e\u0301")] == ["e", mark]
    assert [tokens[i] for i in of_qwen35.encode("e\u0301")] == ["e" + mark]
