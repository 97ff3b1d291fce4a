"""Find the words, and the function constants, that each kernel uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .signatures import FunctionConstant
from .tokens import Token, Tokens, closing, following, is_attribute, meaningful, read_attributes

_MACRO = re.compile(r"\s*#\s*define\s+(\w+)(.*)", re.S)
_WORD = re.compile(r"[A-Za-z_]\w*")


def _declared_names(tokens: Tokens) -> set[str]:
    """Return the names that a declaration may declare: rather too many than too few."""
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


def words_of_kernels(tokens: Tokens, kernels: Iterable[str]) -> dict[str, set[str]]:
    """Find the words that each kernel uses, directly or through what it names.

    Parameters
    ----------
    tokens : sequence of Token
        The whole program. Where it is not preprocessed, uses in the bodies of macros count too.
    kernels : iterable of str
        Names of the kernel functions.

    Returns
    -------
    dict of str to set of str
        The words of each kernel, its own name among them.
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
    found = {}
    for name in kernels:
        seen: set[str] = set()
        todo = [name]
        while todo:
            word = todo.pop()
            if word not in seen:
                seen.add(word)
                todo += uses.get(word, ())
        found[name] = seen
    return found


def constants_of_kernels(
    words: Mapping[str, set[str]], constants: Iterable[FunctionConstant]
) -> dict[str, list[FunctionConstant]]:
    """Find the function constants that each kernel uses, directly or through what it names.

    Parameters
    ----------
    words : mapping of str to set of str
        What `words_of_kernels` found.
    constants : iterable of FunctionConstant
        The program's function constants.

    Returns
    -------
    dict of str to list of FunctionConstant
        For each kernel what it uses, in the order of `constants`.
    """
    known = list(constants)
    return {name: [c for c in known if c.name in seen] for name, seen in words.items()}


def _plain(tokens: Tokens) -> list[Token]:
    """Return the tokens without attributes, which hide the declared name."""
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
    """Return the first token and the end, exclusive, of each declaration at program scope."""
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
