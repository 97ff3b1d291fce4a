"""Stop sequences: texts and runs of tokens that end a generation before they show."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

__all__ = ["Piece", "Stop", "StopScanner", "stop_sequences"]

Stop: TypeAlias = str | Sequence[str | Sequence[int]]
"""A text, or several texts and lists of tokens."""


class Piece(NamedTuple):
    """A token that is no part of a stop sequence, with its bytes; or bytes alone.

    Bytes alone are those of a token in whose middle a stop text begins.
    """

    token: int | None
    text: bytes


def stop_sequences(stop: Stop) -> tuple[list[bytes], list[list[int]]]:
    """Return the texts, as UTF-8, and the lists of tokens; ValueError for an empty one."""
    items: Iterable[str | Sequence[int]] = [stop] if isinstance(stop, str) else stop
    texts: list[bytes] = []
    lists: list[list[int]] = []
    for item in items:
        if len(item) == 0:
            raise ValueError("a stop sequence is empty: it would end every text at once")
        if isinstance(item, str):
            texts.append(item.encode())
        else:
            lists.append([operator.index(token) for token in item])
    return texts, lists


class StopScanner:
    """Holds tokens back while they may become a stop sequence.

    Parameters
    ----------
    texts, lists
        As from stop_sequences.
    text_of : callable
        The bytes that a token adds to the text.

    Attributes
    ----------
    stopped : bool
        Whether a stop sequence has come; what belongs to it is never given out.
    """

    def __init__(
        self, texts: list[bytes], lists: list[list[int]], text_of: Callable[[int], bytes]
    ) -> None:
        self._texts = texts
        self._lists = lists
        self._text_of = text_of
        self._held: deque[Piece] = deque()
        self.stopped = False

    def reset(self) -> None:
        """Forget what is held back."""
        self._held.clear()

    def push(self, token: int) -> list[Piece]:
        """Return what can no longer be part of a stop sequence, now that `token` has come."""
        self._held.append(Piece(token, self._text_of(token)))
        text = b"".join(piece.text for piece in self._held)
        tokens = [piece.token for piece in self._held]
        found = [at for stop in self._texts if (at := text.find(stop)) >= 0]
        ends = [len(stop) for stop in self._lists if tokens[-len(stop) :] == stop]
        if not found and not ends:
            free = min(
                (len(text) - _overlap(text, stop) for stop in self._texts), default=len(text)
            )
            kept = max((_overlap(tokens, stop) for stop in self._lists), default=0)
            return self._release(free, len(tokens) - kept)
        self.stopped = True
        first = len(tokens) - max(ends, default=0)
        before = sum(len(piece.text) for piece in list(self._held)[:first])
        cut = min([*found, before])
        pieces = self._release(cut, first)
        rest = cut - sum(len(piece.text) for piece in pieces)
        if rest:
            pieces.append(Piece(None, self._held[0].text[:rest]))
        self._held.clear()
        return pieces

    def flush(self) -> list[Piece]:
        """Return what was held back, at the end of a text that no stop sequence ended."""
        return self._release(sum(len(piece.text) for piece in self._held), len(self._held))

    def _release(self, n_bytes: int, n_tokens: int) -> list[Piece]:
        """Give out the first tokens: at most n_tokens that end within n_bytes."""
        pieces: list[Piece] = []
        while self._held and len(pieces) < n_tokens and len(self._held[0].text) <= n_bytes:
            n_bytes -= len(self._held[0].text)
            pieces.append(self._held.popleft())
        return pieces


def _overlap(sequence: Sequence[object], stop: Sequence[object]) -> int:
    """Return how much of the end of `sequence` is a beginning of `stop`, short of all of it."""
    for n in range(min(len(sequence), len(stop) - 1), 0, -1):
        if sequence[-n:] == stop[:n]:
            return n
    return 0
