"""Tokens of Metal Shading Language, and the walks over them that the front end needs.

A position is an index in a sequence of tokens. Blank tokens (space and directives) stay in the
sequence, so that joining the tokens gives the text back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import CompileError

_TOKEN = re.compile(
    r"""(?P<directive>^[ \t]*\#[^\n]*)
    |(?P<space>\s+)
    |(?P<string>"(?:\\.|[^"\\])*")
    |(?P<char>'(?:\\.|[^'\\])*')
    |(?P<number>\.?\d(?:[eEpP][+-]|[\w.])*)
    |(?P<word>[A-Za-z_]\w*)
    |(?P<op>->\*|->|::|\+\+|--|&&|\|\||[-+*/%&|^!=]=|\.\.\.|.)""",
    re.M | re.S | re.X,
)
_LINE_MARKER = re.compile(r'\s*#\s*(?:line\s+)?(\d+)\s+"([^"]*)"')
_OPEN = {"(": ")", "[": "]", "{": "}"}
_CLOSE = frozenset(_OPEN.values())


@dataclass(slots=True)
class Token:
    """A token and its place.

    Attributes
    ----------
    kind : str
        directive, space, string, char, number, word or op.
    text : str
        The token's text.
    line : int
        Its first line, from 1.
    file : str
        Name of its file.
    """

    kind: str
    text: str
    line: int
    file: str

    @property
    def blank(self) -> bool:
        """Whether the token is space or a preprocessor directive."""
        return self.kind in ("space", "directive")


Tokens = Sequence[Token]


def tokenize(text: str, name: str) -> list[Token]:
    """Split a program into tokens.

    Parameters
    ----------
    text : str
        The program, without comments. Line markers set the file and line of what follows.
    name : str
        File name of what comes before the first line marker.

    Returns
    -------
    list of Token
        All tokens; their texts joined are `text`.
    """
    tokens: list[Token] = []
    line, file = 1, name
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "op"
        tokens.append(Token(kind, match[0], line, file))
        if kind == "directive":
            marker = _LINE_MARKER.match(match[0])
            if marker:
                line, file = int(marker[1]) - 1, marker[2]
        line += match[0].count("\n")
    return tokens


def following(tokens: Tokens, i: int) -> int:
    """Return the position of the next token after i that is not blank, or len(tokens)."""
    i += 1
    while i < len(tokens) and tokens[i].blank:
        i += 1
    return i


def preceding(tokens: Tokens, i: int) -> int:
    """Return the position of the last token before i that is not blank, or -1."""
    i -= 1
    while i >= 0 and tokens[i].blank:
        i -= 1
    return i


def text_at(tokens: Tokens, i: int) -> str:
    """Return the text of token i; '' outside the sequence."""
    return tokens[i].text if 0 <= i < len(tokens) else ""


def closing(tokens: Tokens, i: int) -> int:
    """Find the bracket that closes another.

    Parameters
    ----------
    tokens : sequence of Token
        Any tokens.
    i : int
        Position of an opening bracket.

    Returns
    -------
    int
        Position of the bracket that closes it.

    Raises
    ------
    CompileError
        If it is not closed.
    """
    depth = 0
    for j in range(i, len(tokens)):
        token = tokens[j]
        if token.kind == "op":
            if token.text in _OPEN:
                depth += 1
            elif token.text in _CLOSE:
                depth -= 1
                if depth == 0:
                    return j
    raise CompileError(
        f"{tokens[i].file}:{tokens[i].line}: error: '{tokens[i].text}' is not closed"
    )


def opening(tokens: Tokens, i: int) -> int:
    """Return the position of the bracket that the one at i closes, or -1."""
    depth = 0
    for j in range(i, -1, -1):
        token = tokens[j]
        if token.kind == "op":
            if token.text in _CLOSE:
                depth += 1
            elif token.text in _OPEN:
                depth -= 1
                if depth == 0:
                    return j
    return -1


def closing_angle(tokens: Tokens, i: int) -> int:
    """Return the position of the '>' that closes the '<' at i, or -1 where it is a comparison."""
    depth, j = 0, i
    while j < len(tokens):
        token = tokens[j]
        if token.kind == "op":
            if token.text == "<":
                depth += 1
            elif token.text == ">":
                depth -= 1
                if depth == 0:
                    return j
            elif token.text in "([":
                j = closing(tokens, j)
            elif token.text in (";", "{", "}", "&&", "||"):
                return -1
        j += 1
    return -1


def is_open(token: Token) -> bool:
    """Return whether the token is an opening bracket: ( [ or {."""
    return token.kind == "op" and token.text in _OPEN


def is_attribute(tokens: Tokens, i: int) -> bool:
    """Return whether an attribute, [[...]], begins at i."""
    return tokens[i].text == "[" and i + 1 < len(tokens) and tokens[i + 1].text == "["


def join(tokens: Iterable[Token]) -> str:
    """Return the joined texts of the tokens, with each directive on a line of its own."""
    return "".join("\n" + t.text if t.kind == "directive" else t.text for t in tokens)


def newlines(tokens: Iterable[Token]) -> str:
    """Return the line breaks of omitted tokens, so that later lines keep their numbers."""
    return "\n" * sum(t.text.count("\n") for t in tokens)


def meaningful(tokens: Iterable[Token]) -> list[Token]:
    """Return the tokens that are not blank."""
    return [t for t in tokens if not t.blank]


def read_attributes(tokens: Tokens, i: int) -> tuple[list[tuple[str, str]], int]:
    """Read the attributes in [[...]].

    Parameters
    ----------
    tokens : sequence of Token
        Any tokens.
    i : int
        Position of the first bracket.

    Returns
    -------
    attributes : list of (str, str)
        Name, without namespace, and argument of each; '' where there is no argument.
    end : int
        Position of the last bracket.

    Raises
    ------
    CompileError
        If a bracket is not closed.
    """
    end = closing(tokens, i)
    inner = meaningful(tokens[i + 2 : end - 1])
    found: list[tuple[str, str]] = []
    k = 0
    while k < len(inner):
        if inner[k].kind == "word":
            if text_at(inner, k + 1) == "::":
                k += 2
                continue
            name, argument = inner[k].text, ""
            if text_at(inner, k + 1) == "(":
                close = closing(inner, k + 1)
                argument = join(inner[k + 2 : close])
                k = close
            found.append((name, argument))
        k += 1
    return found, end


def without_attributes(tokens: Tokens) -> list[Token]:
    """Return the tokens without attributes, whose line breaks stay."""
    out: list[Token] = []
    i = 0
    while i < len(tokens):
        if is_attribute(tokens, i):
            end = closing(tokens, i)
            out += [t for t in tokens[i:end] if t.kind == "space" and "\n" in t.text]
            i = end + 1
            continue
        out.append(tokens[i])
        i += 1
    return out


def begins_statement(tokens: Tokens, i: int) -> bool:
    """Return whether a statement or declaration begins at i."""
    before = preceding(tokens, i)
    return before < 0 or tokens[before].text in (";", "{", "}", ":", ")")


def statement_end(tokens: Tokens, i: int) -> int:
    """Return the position of the ';' that ends the statement at i, or len(tokens)."""
    while i < len(tokens) and tokens[i].text != ";":
        i = closing(tokens, i) + 1 if is_open(tokens[i]) else i + 1
    return i


def declares_group_variable(tokens: Tokens, i: int) -> bool:
    """Return whether the word at i begins the declaration of a threadgroup variable."""
    if tokens[i].text != "threadgroup" or not begins_statement(tokens, i):
        return False
    while i < len(tokens) and tokens[i].text not in (";", "=", "{", ")"):
        if tokens[i].text in ("*", "&"):
            return False
        i = closing(tokens, i) + 1 if tokens[i].text == "[" else i + 1  # a * in it is no pointer's
    return True


def follows_template_head(tokens: Tokens, i: int) -> bool:
    """Return whether template <...> precedes the function head at i, attributes aside."""
    before = preceding(tokens, i)
    while before >= 0 and (tokens[before].text == "kernel" or tokens[before].text == "]"):
        if tokens[before].text == "]":
            before = opening(tokens, before)
        before = preceding(tokens, before)
    if text_at(tokens, before) != ">":
        return False
    depth = 0
    for j in range(before, -1, -1):
        depth += (tokens[j].text == ">") - (tokens[j].text == "<")
        if depth == 0:
            return text_at(tokens, preceding(tokens, j)) == "template"
    return False


def instantiated(tokens: Tokens) -> tuple[str, str] | None:
    """Read which function template an explicit instantiation names.

    Parameters
    ----------
    tokens : sequence of Token
        The instantiation without ``template``, attributes, blanks and its ``;``.

    Returns
    -------
    (str, str) or None
        The template's name ``f`` and the expression ``f<...>``; None where it names none.
    """
    end = len(tokens)
    for i, token in enumerate(tokens):  # f<...>(parameters)
        if token.text == "(" and text_at(tokens, i - 1) == ">":
            end = i
            break
    depth = 0
    for j in range(end - 1, -1, -1):
        depth += (tokens[j].text == ">") - (tokens[j].text == "<")
        if depth == 0 and j > 0 and tokens[j].text == "<":
            expression = tokens[j - 1].text + " ".join(t.text for t in tokens[j:end])
            return tokens[j - 1].text, expression
        if depth == 0:
            return None
    return None
