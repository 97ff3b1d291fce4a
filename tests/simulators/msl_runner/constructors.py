"""Constructor calls and casts of vectors, which mean other things in OpenCL than in Metal.

Each function looks at one token and gives the text to put in its place with the index to go on at,
or None where the token is nothing of the kind.
"""

from __future__ import annotations

from oxibonsai.msl.signatures import ADDRESS_SPACES
from oxibonsai.msl.tokens import (
    Tokens,
    closing,
    closing_angle,
    following,
    is_open,
    join,
    preceding,
    text_at,
)

VECTOR_ELEMENTS = (
    "char uchar short ushort int uint long ulong half float bfloat bool".split()  # noqa: SIM905
)
VECTOR_TYPES = frozenset(f"{element}{n}" for element in VECTOR_ELEMENTS for n in (2, 3, 4))
_NAMES_A_TYPE = frozenset(
    {"typedef", "typename", "struct", "class", "sizeof", "alignof", "operator", "decltype"}
    | {"template", "explicit", "const", "enum"}
) | frozenset(ADDRESS_SPACES)

Replacement = tuple[str, int] | None


def find_type_names(tokens: Tokens) -> set[str]:
    """Find the names whose constructor calls convert: vectors, aliases, template parameters."""
    names = set(VECTOR_TYPES)
    for i, token in enumerate(tokens):
        if token.kind != "word":
            continue
        j = following(tokens, i)
        if j >= len(tokens) or tokens[j].kind != "word":
            continue
        after = text_at(tokens, following(tokens, j))
        if (token.text in ("typename", "class") and after in (",", ">", "=")) or (
            token.text == "using" and after == "="
        ):
            names.add(tokens[j].text)
        elif token.text == "typedef":
            end = i
            while tokens[end].text != ";":
                end += 1
            last = preceding(tokens, end)
            before = tokens[preceding(tokens, last)]
            if tokens[last].kind == "word" and (before.kind == "word" or before.text == ">"):
                names.add(tokens[last].text)
    return names


def _type_end(tokens: Tokens, i: int, names: set[str]) -> int:
    """Give the last index of the type's name that begins at i, or -1."""
    if tokens[i].text == "vec" and text_at(tokens, following(tokens, i)) == "<":
        return closing_angle(tokens, following(tokens, i))
    return i if tokens[i].text in names else -1


def constructor(tokens: Tokens, i: int, names: set[str]) -> Replacement:
    """Rewrite float4(...), vec<T, 4>(...) and T(...) at i."""
    end = _type_end(tokens, i, names)
    if end < 0:
        return None
    bracket = following(tokens, end)
    before = preceding(tokens, i)
    if text_at(tokens, bracket) != "(" or text_at(tokens, before) == "~":
        return None
    if before >= 0 and tokens[before].kind == "word" and tokens[before].text in _NAMES_A_TYPE:
        return None
    close, first = closing(tokens, bracket), following(tokens, bracket)
    declares = (  # T (&name)[4], T (*name)(...)
        text_at(tokens, first) in ("&", "*")
        and tokens[preceding(tokens, close)].kind == "word"
        and text_at(tokens, following(tokens, close)) in ("[", "(")
    )
    if declares:
        return None
    return f"metal::msl_make<{join(tokens[i : end + 1])}>::of", end + 1


def static_cast(tokens: Tokens, i: int, names: set[str]) -> Replacement:
    """Rewrite static_cast<T> at i where T's constructor converts."""
    angle = following(tokens, i)
    if tokens[i].text != "static_cast" or text_at(tokens, angle) != "<":
        return None
    end = closing_angle(tokens, angle)
    first = following(tokens, angle)
    if end < 0 or following(tokens, _type_end(tokens, first, names)) != end:
        return None
    return f"metal::msl_make<{join(tokens[angle + 1 : end])}>::of", end + 1


def vector_initialiser(tokens: Tokens, i: int) -> tuple[str, int, int] | None:
    """Rewrite float4 v = {...} at i: the text, where to go on, and the index of the '}'."""
    if tokens[i].text not in VECTOR_TYPES:
        return None
    name = following(tokens, i)
    if name >= len(tokens) or tokens[name].kind != "word":
        return None
    brace = following(tokens, name)
    if text_at(tokens, brace) == "=":
        brace = following(tokens, brace)
    if text_at(tokens, brace) != "{" or text_at(tokens, following(tokens, brace)) == "}":
        return None
    close = closing(tokens, brace)
    if text_at(tokens, following(tokens, close)) not in (";", ","):
        return None
    text = f"{join(tokens[i : name + 1])} = metal::msl_init<{tokens[i].text}>("
    return text, brace + 1, close


def _has_top_comma(tokens: Tokens, bracket: int) -> bool:
    i, end = bracket + 1, closing(tokens, bracket)
    while i < end:
        if is_open(tokens[i]):
            i = closing(tokens, i)
        elif tokens[i].text == ",":
            return True
        i += 1
    return False


def cast(tokens: Tokens, i: int, names: set[str]) -> Replacement:
    """Rewrite (float4)x at the '(' at i."""
    first = following(tokens, i)
    if first >= len(tokens) or tokens[first].kind != "word":
        return None
    end = _type_end(tokens, first, names)
    if end < 0 or text_at(tokens, following(tokens, end)) != ")":
        return None
    before, after = preceding(tokens, i), following(tokens, following(tokens, end))
    if before >= 0 and (
        (
            tokens[before].kind in ("word", "number")
            and tokens[before].text not in ("return", "case", "else")
        )
        or tokens[before].text in (")", "]", ">")
    ):
        return None
    if after >= len(tokens) or not (
        tokens[after].kind in ("word", "number") or tokens[after].text in ("(", "-", "+", "~", "!")
    ):
        return None
    type_name = join(tokens[first : end + 1])
    if tokens[after].text == "(" and _has_top_comma(tokens, after):  # (float4)(a, b, c, d)
        return f"metal::msl_make<{type_name}>::of", after
    return f"metal::msl_cast<{type_name}>()->*", after
