"""Mutants of a shader: the source with one barrier or one bounds guard taken out.

A test that runs each of them and sees an error or a wrong result shows that the tests, and the
runner itself, would notice the same mistake in the real shader. All mutants of a source are
compiled as one program, in which a number chooses at run time: compiling each alone takes far
longer than running it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
_ASSIGNMENTS = ("=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>=")
_BEFORE_A_CONDITION = (*_ASSIGNMENTS, "return", ",", "(", ";", "{", "}", ":")


@dataclass(frozen=True)
class Mutant:
    """A place to change. `kind`: barrier or guard; `original`: what is taken out."""

    kind: str
    file: str  # by the #line directives of the source
    line: int
    original: str
    replacement: str
    name: str  # for a test: the kind, the place, and the text in short
    begin: int  # tokens [begin, end) of the source without its comments
    end: int


def _tokens(source: str) -> list[Token]:
    """Blank the comments out: an apostrophe in one would begin a character for the tokenizer."""
    blank = _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m[0]) if m["comment"] else m[0], source)
    return tokenize(blank, "")


def _mutant(kind: str, tokens: list[Token], begin: int, end: int, replacement: str) -> Mutant:
    original = "".join(t.text for t in tokens[begin:end])
    first = tokens[begin]
    name = f"{kind}-{first.file}:{first.line}-{' '.join(original.split())[:60]}"
    return Mutant(kind, first.file, first.line, original, replacement, name, begin, end)


def _barriers(tokens: list[Token]) -> Iterator[Mutant]:
    """Take out each call of a barrier in turn."""
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
    while i >= 0 and tokens[i].text not in _BEFORE_A_CONDITION:
        i = opening(tokens, i) - 1 if tokens[i].text in (")", "]") else i - 1
    return i + 1


def _guards(tokens: list[Token]) -> Iterator[Mutant]:
    """Take each comparison for less or more out of an `if` or a `?:`, in turn.

    ``if (row >= args.n_rows) return;`` becomes ``if (false) return;``, ``if (i < n) x;`` becomes
    ``if (true) x;`` and ``i < n ? x : y`` becomes ``true ? x : y``. Of a condition with && or ||,
    one comparison goes at a time. ``rank += a < b ? 1 : 0`` counts nothing: all of them may be
    as good as the right number.
    """
    for i, token in enumerate(tokens):
        bracket = following(tokens, i)
        if token.text == "if" and text_at(tokens, bracket) == "(":
            start, close = bracket + 1, closing(tokens, bracket)
            alone = "false" if _leaves(tokens, following(tokens, close)) else "true"
        elif token.text == "?":
            start, close = _condition_begin(tokens, i), i
            alone = "false" if text_at(tokens, preceding(tokens, start)) == "+=" else "true"
        else:
            continue
        for begin, end in _parts(tokens, start, close):
            part = tokens[begin:end]
            if not _compares(part):
                continue
            first, last = following(tokens, begin - 1), preceding(tokens, end) + 1
            joined = {text_at(tokens, preceding(tokens, first)), text_at(tokens, last)}
            joined.add(text_at(tokens, following(tokens, last - 1)))
            neutral = "true" if "&&" in joined else "false" if "||" in joined else alone
            yield _mutant("guard", tokens, first, last, neutral)


def mutants(source: str) -> list[Mutant]:
    """Give all mutants of a source, by file and line, each with a name of its own."""
    tokens = _tokens(source)
    found = sorted([*_barriers(tokens), *_guards(tokens)], key=lambda m: (m.file, m.line))
    seen: Counter[str] = Counter()
    for i, mutant in enumerate(found):
        seen[mutant.name] += 1
        if seen[mutant.name] > 1:
            found[i] = replace(mutant, name=f"{mutant.name} {seen[mutant.name]}")
    return found


def with_mutants(source: str) -> str:
    """Give the source with all its mutants, mutants(source)[i] under the number i + 1.

    A mutant is what it would be alone: what was taken out is not evaluated either. Where none is
    taken, what a guard says is held against what the mutant would say, and reported.
    """
    tokens = _tokens(source)
    texts = [t.text for t in tokens]
    numbered = list(enumerate(mutants(source), 1))
    # Of two that begin or end together, the longer one goes around the other.
    for number, m in sorted(numbered, key=lambda pair: pair[1].end - pair[1].begin):
        one, without = f"msl_rt_mutant({number})", m.replacement
        if m.kind == "barrier":
            before, after = f"({one} ? {without} : (msl_rt_guard({number}, 1, 0), ", "))"
        else:
            before, after = f"({one} ? {without} : msl_rt_guard({number}, (", f"), {without}))"
        texts[m.begin] = before + texts[m.begin]
        texts[m.end - 1] += after
    return "".join(texts)
