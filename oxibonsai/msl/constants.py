"""Which function constants a kernel uses."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .signatures import FunctionConstant
from .tokens import Token, Tokens, closing, following, is_attribute, meaningful, read_attributes

_MACRO = re.compile(r"\s*#\s*define\s+(\w+)(.*)", re.S)
_WORD = re.compile(r"[A-Za-z_]\w*")


def _declared_names(tokens: Tokens) -> set[str]:
    """Names that a program-scope declaration may give something: guesses err on too many."""
    words = meaningful(tokens)
    names = set()
    for i, token in enumerate(words[:-1]):
        if token.kind != "word":
            continue
        after = words[i + 1].text
        if after in ("(", "=", ";", "{", "[", ":"):
            names.add(token.text)
        if token.text in ("struct", "class", "union", "enum"):
            names.add(after)
        if after in ("(", "=", "{"):
            break
    return names


def constants_of_kernels(
    tokens: Tokens, kernels: Iterable[str], constants: Iterable[FunctionConstant]
) -> dict[str, list[FunctionConstant]]:
    """Find the function constants that each kernel uses, directly or through what it names.

    Macros are seen through where the text is not preprocessed.
    """
    uses: dict[str, set[str]] = {}
    for token in tokens:
        macro = _MACRO.match(token.text) if token.kind == "directive" else None
        if macro:
            uses.setdefault(macro[1], set()).update(_WORD.findall(macro[2]))
    for begin, end in _declarations(tokens):
        part = tokens[begin:end]
        words = {t.text for t in part if t.kind == "word"}
        for name in _declared_names(_plain(part)):
            uses.setdefault(name, set()).update(words)
    known = list(constants)
    found = {}
    for name in kernels:
        seen: set[str] = set()
        todo = [name]
        while todo:
            word = todo.pop()
            if word not in seen:
                seen.add(word)
                todo += uses.get(word, ())
        found[name] = [c for c in known if c.name in seen]
    return found


def _plain(tokens: Tokens) -> list[Token]:
    """Leave out attributes, which hide the declared name."""
    out: list[Token] = []
    i = 0
    while i < len(tokens):
        if is_attribute(tokens, i):
            i = read_attributes(tokens, i)[1] + 1
            continue
        out.append(tokens[i])
        i += 1
    return out


def _declarations(tokens: Tokens) -> list[tuple[int, int]]:
    """Give the extents of the program's declarations."""
    found = []
    begin = i = 0
    while i < len(tokens):
        text = tokens[i].text
        if text == "(" or text == "[":
            i = closing(tokens, i)
        elif text == "{":
            i = closing(tokens, i)
            if following(tokens, i) < len(tokens) and tokens[following(tokens, i)].text != ";":
                found.append((begin, i + 1))
                begin = i + 1
        elif text == ";":
            found.append((begin, i + 1))
            begin = i + 1
        i += 1
    found.append((begin, len(tokens)))
    return found
