"""Texts on recurrent models that are made again from nothing, in steps of the same sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxibonsai.model import Model, Session

F32 = NDArray[np.float32]


class Cuts:
    """Where the steps of a text end, kept by what was done to it and not by the package."""

    def __init__(self, ends: Sequence[int] = ()) -> None:
        self.ends = list(ends)

    @property
    def length(self) -> int:
        return self.ends[-1] if self.ends else 0

    def feed(self, n: int, chunk: int) -> None:
        end = self.length + n
        while self.length < end:
            self.ends.append(min(self.length + chunk, end))

    def rewind(self, position: int) -> None:
        kept = [end for end in self.ends if end < position]
        self.ends = [*kept, position] if position else []


def rows_of(session: Session, n: int = 2) -> list[F32]:
    """Return the logits of the last token, and of the next n - 1 that are generated greedily."""
    seen: list[F32] = []
    options: dict[str, Any] = {"logits_callback": lambda row: seen.append(row.copy())}
    list(session.generate(n, ignore_eos=True, **options))
    return seen


def fresh_rows(model: Model, ids: Sequence[int], cuts: Cuts, **session: Any) -> list[F32]:
    """Return rows_of() a new session that took the tokens in steps that end at the cuts."""
    assert cuts.length == len(ids)
    with model.session(**session) as text:
        start = 0
        for end in cuts.ends:
            text.forward(ids[start:end], logits=None, chunk=end - start)
            start = end
        return rows_of(text)


def assert_same(found: Sequence[F32], expected: Sequence[F32]) -> None:
    """Assert that rows have the same bits."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()
