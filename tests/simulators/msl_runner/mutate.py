"""Mutants of a shader: the source with one barrier or one bounds guard taken out.

A test that runs each of them and sees an error or a wrong result shows that the tests, and the
runner itself, would notice the same mistake in the real shader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from oxibonsai.msl.tokens import (
    Token,
    closing,
    closing_angle,
    following,
    opening,
    preceding,
    text_at,
    tokenize,
)

_BARRIERS = ("threadgroup_barrier", "simdgroup_barrier")
_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|(?P<comment>//[^\n]*|/\*.*?\*/)', re.S)
_COMPARISONS = ("<", "<=", ">", ">=")


@dataclass(frozen=True)
class Mutant:
    """A changed source. `kind`: barrier or guard; `original`: what was taken out."""

    kind: str
    file: str  # by the #line directives of the source
    line: int
    original: str
    source: str
    function: str  # that it was in
    is_used: bool  # the function is a kernel, or its name stands in another place too

    @property
    def name(self) -> str:
        """A name for a test: the kind, the line, and the text in short."""
        return f"{self.kind}-{self.file}:{self.line}-{' '.join(self.original.split())[:60]}"


def _replaced(tokens: list[Token], begin: int, end: int, text: str) -> str:
    """Put text in place of tokens [begin, end), with their line breaks after it."""
    cut = "".join(t.text for t in tokens[begin:end])
    before = "".join(t.text for t in tokens[:begin])
    return before + text + "\n" * cut.count("\n") + "".join(t.text for t in tokens[end:])


def _function(tokens: list[Token], i: int) -> tuple[str, bool]:
    """Give the name of the function or struct around i, and whether something uses it."""
    begin, at, is_kernel = 0, 0, False
    while at < i:  # the last bracket at the outermost level that opens before i
        if tokens[at].text == "{":
            begin, at = at, closing(tokens, at)
        at += 1
    name = preceding(tokens, begin)
    if text_at(tokens, name) == ")":
        name = preceding(tokens, opening(tokens, name))
        before = name
        while before >= 0 and tokens[before].text not in (";", "}"):
            before -= 1
        is_kernel = any(t.text == "kernel" for t in tokens[before + 1 : name])
    word = text_at(tokens, name)
    return word, is_kernel or sum(t.text == word for t in tokens) > 1


def _mutant(kind: str, tokens: list[Token], begin: int, end: int, text: str) -> Mutant:
    original = "".join(t.text for t in tokens[begin:end])
    first = tokens[begin]
    changed = _replaced(tokens, begin, end, text)
    return Mutant(kind, first.file, first.line, original, changed, *_function(tokens, begin))


def barriers(source: str) -> Iterator[Mutant]:
    """Take out each call of a barrier in turn."""
    tokens = tokenize(source, "")
    for i, token in enumerate(tokens):
        if token.text in _BARRIERS and text_at(tokens, following(tokens, i)) == "(":
            end = closing(tokens, following(tokens, i)) + 1
            yield _mutant("barrier", tokens, i, end, "(void)0")


def _calls_template(tokens: list[Token], i: int) -> bool:
    """Whether the '<' at i opens template arguments: names and numbers, then a call."""
    close = closing_angle(tokens, i)
    return (
        close > i
        and text_at(tokens, following(tokens, close)) == "("
        and all(t.kind != "op" or t.text in (",", "::") for t in tokens[i + 1 : close])
    )


def _compares(tokens: list[Token]) -> bool:
    """Whether some token is a comparison; a '<' that opens template arguments is not."""
    i = 0
    while i < len(tokens):
        if tokens[i].text == "<" and _calls_template(tokens, i):
            i = closing_angle(tokens, i)
        elif tokens[i].text in _COMPARISONS:
            return True
        i += 1
    return False


def _parts(tokens: list[Token], begin: int, end: int) -> list[tuple[int, int]]:
    """Split a condition at its && and ||, outside of brackets."""
    parts = []
    start = i = begin
    while i < end:
        if tokens[i].text in ("(", "[", "{"):
            i = closing(tokens, i)
        elif tokens[i].text in ("&&", "||"):
            parts.append((start, i))
            start = i + 1
        i += 1
    return [*parts, (start, end)]


def _leaves(tokens: list[Token], i: int) -> bool:
    """Whether the statement at i leaves: return, continue or break."""
    if text_at(tokens, i) == "{":
        i = following(tokens, i)
    return text_at(tokens, i) in ("return", "continue", "break")


def _condition_begin(tokens: list[Token], i: int) -> int:
    """Give the first index of the condition that ends with the '?' at i."""
    i -= 1
    while i >= 0 and tokens[i].text not in ("=", "return", ",", "(", ";", "{", "}"):
        i = opening(tokens, i) - 1 if tokens[i].text in (")", "]") else i - 1
    return i + 1


def guards(source: str) -> Iterator[Mutant]:
    """Take each comparison for less or more out of an `if` or a `?:`, in turn.

    ``if (row >= args.n_rows) return;`` becomes ``if (false) return;``, ``if (i < n) x;`` becomes
    ``if (true) x;`` and ``i < n ? x : y`` becomes ``true ? x : y``. Of a condition with && or ||,
    one comparison goes at a time.
    """
    tokens = tokenize(source, "")
    for i, token in enumerate(tokens):
        bracket = following(tokens, i)
        if token.text == "if" and text_at(tokens, bracket) == "(":
            start, close = bracket + 1, closing(tokens, bracket)
            leaves = _leaves(tokens, following(tokens, close))
        elif token.text == "?":
            start, close, leaves = _condition_begin(tokens, i), i, False
        else:
            continue
        for begin, end in _parts(tokens, start, close):
            part = tokens[begin:end]
            if not _compares(part):
                continue
            first, last = following(tokens, begin - 1), preceding(tokens, end) + 1
            joined = {text_at(tokens, preceding(tokens, first)), text_at(tokens, last)}
            joined.add(text_at(tokens, following(tokens, last - 1)))
            neutral = "true" if "&&" in joined else "false" if "||" in joined else None
            yield _mutant("guard", tokens, first, last, neutral or ("false" if leaves else "true"))


def without_comments(source: str) -> str:
    """Blank the comments out: an apostrophe in one would begin a character for the tokenizer."""
    return _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m[0]) if m["comment"] else m[0], source)


def mutants(source: str) -> list[Mutant]:
    """Give all mutants of a source, by file and line."""
    source = without_comments(source)
    return sorted(
        [*barriers(source), *guards(source)], key=lambda mutant: (mutant.file, mutant.line)
    )
