"""Random templates: expressions of what chat templates do with text, within one another."""

from __future__ import annotations

import random
from typing import Any, Final

TEXTS: Final = ("<|", "im_", "end|>", "<|im_end|>", "a b", "", "%s", "{}", "\n", "<", "|>", "_")
GIVEN: Final = ("m.content", "m.a", "m.b", "m.n", "v")
# Braces stand for an expression, T for a text of the template and I for a number.
FORMS: Final = (
    "({} ~ {})",
    "({} + {})",
    "({} | string)[I:I]",
    "({} | string)[::-1]",
    "({} | upper | lower)",
    "({} | title)",
    "({} | capitalize)",
    "({} | trim)",
    "({} | center(7))",
    "({} | indent(1))",
    "({} | truncate(6, true, ''))",
    "({} | first)",
    "({} | list | reverse | join)",
    "({} | string).split(T) | join(T)",
    "({} | string).split('_')[0]",
    "({} | string).partition('_')[1]",
    "({} | string).strip(T)",
    "({} | string).removeprefix('<|')",
    "({} | string).splitlines() | join",
    "({} | string).zfill(12)",
    "({} | string).replace('_', '', 1).expandtabs(2)",
    "({} | string | replace(T, {} | string))",
    "({} | string * 2)",
    "[{}, {}] | join({})",
    "[{}, {}] | map('upper') | map('lower') | join",
    "([{}, [{}]] | string)",
    "({} | tojson)",
    "([{}, {'k': {}}] | tojson(indent=1))",
    "('%s_%s' % ({}, {}))",
    "'{}{}'.format({}, {})",
    "({} if {} else {})",
    "({} | default({}, true))",
    "({} | safe)",
    "({} | e)",
)


def expression(rng: random.Random, depth: int) -> str:
    """Return an expression of a template."""
    if not depth:
        return rng.choice((*GIVEN, *(repr(text) for text in TEXTS)))
    form = rng.choice(FORMS)
    start = ""
    if form.startswith("'{}{}'"):
        start, form = form[:6], form[6:]
    pieces = form.split("{}")
    found = pieces[0] + "".join(expression(rng, depth - 1) + piece for piece in pieces[1:])
    for letter, values in (("T", [repr(t) for t in TEXTS]), ("I", [str(i) for i in range(-4, 6)])):
        while f"({letter}" in found or f"[{letter}" in found or f":{letter}" in found:
            for before in "([:":
                found = found.replace(before + letter, before + rng.choice(values), 1)
    return start + found


def source(rng: random.Random) -> str:
    """Return a template that prints two expressions."""
    parts = (expression(rng, depth) for depth in (rng.randrange(1, 5), 2))
    return "{% set m = messages[0] %}" + "".join("{{ " + part + " }}" for part in parts)


def message(rng: random.Random) -> dict[str, Any]:
    """Return a message of texts that may join to the name of a token."""

    def text() -> str:
        return "".join(rng.choice(TEXTS) for _ in range(rng.randrange(3)))

    return {"role": "user", "content": text(), "a": text(), "b": text(), "n": rng.randrange(9)}
