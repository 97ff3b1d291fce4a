"""Stop sequences: texts and runs of tokens that end a generation before they show."""

from __future__ import annotations

import reprlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from oxibonsai.gguf import GGUFError
from oxibonsai.model.arguments import integer
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.tokenizer import Tokenizer

__all__ = [
    "FinishReason",
    "Piece",
    "Stop",
    "StopScanner",
    "readable_tokenizer",
    "stop_scanner",
    "stop_sequences",
]

FinishReason: TypeAlias = Literal["stop", "length", "context", "cancelled", "error"]
"""Why a text ended: "stop" for an end of text or a stop sequence, "length" for max_tokens.

"context": the text fills the context, max_seq, which only a session comes to: an engine refuses
what would not fit. "cancelled" and "error" are those of an engine's requests.
"""

Stop: TypeAlias = str | Iterable[str | Sequence[int]] | None
"""A text, or several texts and lists of tokens; None is no stop."""


class Piece(NamedTuple):
    """A token that is no part of a stop sequence, with its bytes; or bytes alone.

    Bytes alone are those of a token in whose middle a stop text begins.
    """

    token: int | None
    text: bytes


def stop_sequences(
    stop: Stop, named: Callable[[str], Iterable[int]] = lambda name: ()
) -> tuple[list[bytes], list[list[int]]]:
    """Return the texts, as UTF-8, and the lists of tokens.

    Parameters
    ----------
    stop : str or iterable of str and lists of int, or None
        What a user gave.
    named : callable
        Returns the tokens of a name that have no text, such as control tokens: a stop text that is
        their name stops at them as well.

    Returns
    -------
    (list of bytes, list of list of int)
        Both.

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        For an empty one, or a lone surrogate.
    """
    if stop is None:
        return [], []
    if isinstance(stop, (bytes, Mapping)) or not isinstance(stop, Iterable):
        raise _no_stop("stop", stop)
    texts: list[bytes] = []
    lists: list[list[int]] = []
    items: list[Any] = [stop] if isinstance(stop, str) else list(stop)
    for at, item in enumerate(items):
        name = "stop" if isinstance(stop, str) else f"stop[{at}]"
        if isinstance(item, (bytes, Mapping)) or not isinstance(item, Iterable):
            raise _no_stop(name, item)
        if not isinstance(item, str):
            item = list(item)
        if len(item) == 0:
            raise ValueError(f"{name}: a stop sequence is empty: it would end every text at once")
        if not isinstance(item, str):
            lists.append([integer(f"{name}: token", token) for token in item])
            continue
        try:
            texts.append(item.encode())
        except UnicodeEncodeError:
            raise ValueError(
                f"{name} holds a lone surrogate, which no text that is generated has"
            ) from None
        lists += [[token] for token in named(item)]
    return texts, lists


def _no_stop(name: str, value: object) -> TypeError:
    return TypeError(
        f"{name} = {reprlib.repr(value)} is a {type(value).__name__}: give a text, or a list of "
        "texts and lists of tokens, such as ['\\n\\n', [13, 10]]"
    )


def readable_tokenizer(model: LoadedModel, instead: str) -> Tokenizer:
    """Return a model's tokenizer, or raise ValueError that names what to do instead."""
    try:
        return model.tokenizer
    except GGUFError as error:
        raise ValueError(f"{error}: {instead}") from None


def stop_scanner(
    texts: list[bytes],
    lists: list[list[int]],
    text_of: Callable[[int], bytes],
    tokenizer: Tokenizer | None,
) -> StopScanner:
    """Return a scanner for what stop_sequences() returned.

    Parameters
    ----------
    texts, lists, text_of
        As of StopScanner.
    tokenizer : Tokenizer or None
        Whose tokens without text a stop text may name beside other text; None where there are no
        texts.

    Returns
    -------
    StopScanner
        The scanner.
    """
    # A text that is a name and nothing else is among the lists.
    named = [
        text
        for text in texts
        if tokenizer is not None
        and tokenizer.holds_textless(name := text.decode())
        and not tokenizer.textless_ids(name)
    ]
    if tokenizer is None or not named:
        return StopScanner(texts, lists, text_of)
    return StopScanner(texts, lists, text_of, named, tokenizer.named_bytes)


class StopScanner:
    """Holds tokens back while they may become a stop sequence.

    Parameters
    ----------
    texts, lists
        As from stop_sequences.
    text_of : callable
        The bytes that a token adds to the text.
    named : list of bytes
        Those of the texts that hold names of tokens without text: they are found as well where
        such tokens stand under their names.
    name_of : callable
        The bytes of a token, or the name of one without text.

    Attributes
    ----------
    stopped : bool
        Whether a stop sequence has come; what belongs to it is never given out.
    """

    def __init__(
        self,
        texts: list[bytes],
        lists: list[list[int]],
        text_of: Callable[[int], bytes],
        named: Sequence[bytes] = (),
        name_of: Callable[[int], bytes] = lambda token: b"",
    ) -> None:
        self._texts = texts
        self._lists = lists
        self._text_of = text_of
        self._named = named
        self._name_of = name_of
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
        places, first = self._find_named() if self._named else ((), len(tokens))
        if not found and not ends and not places:
            free = min(
                (len(text) - _overlap(text, stop) for stop in self._texts), default=len(text)
            )
            kept = max((_overlap(tokens, stop) for stop in self._lists), default=0)
            return self._release(free, min(first, len(tokens) - kept))
        self.stopped = True
        first = len(tokens) - max(ends, default=0)
        before = sum(len(piece.text) for piece in list(self._held)[:first])
        cut = min([*found, before, *(n_bytes for _, n_bytes in places)])
        pieces = self._release(cut, min([first, *(n for n, _ in places)]))
        rest = cut - sum(len(piece.text) for piece in pieces)
        if rest:
            pieces.append(Piece(None, self._held[0].text[:rest]))
        self._held.clear()
        return pieces

    def end(self, token: int) -> list[Piece]:
        """Return what is left where a token ends the text and is no part of it.

        It may complete a stop sequence, of which nothing is given out then.
        """
        if not self._held:
            return []
        n_bytes = sum(len(piece.text) for piece in self._held)
        pieces = self.push(token)
        if not self.stopped:
            return [*pieces, *self.flush()][:-1]
        if sum(len(piece.text) for piece in pieces) > n_bytes:
            pieces.pop()  # the beginning of the token itself
        return pieces

    def _find_named(self) -> tuple[Sequence[tuple[int, int]], int]:
        """Look at what is held with tokens under their names.

        Returns
        -------
        (list of (int, int), int)
            The tokens, and the bytes of text, before each stop text that is there; and how many
            tokens come before what may become one.
        """
        names = [self._name_of(piece.token or 0) for piece in self._held]
        view = b"".join(names)
        places = [self._place(names, at) for stop in self._named if (at := view.find(stop)) >= 0]
        overlaps = [n for stop in self._named if (n := _overlap(view, stop))]
        free = [self._place(names, len(view) - n)[0] for n in overlaps]
        return places, min(free, default=len(names))

    def _place(self, names: Sequence[bytes], at: int) -> tuple[int, int]:
        """Return the tokens and the bytes of text before a place among the names."""
        n_bytes = 0
        for n, (piece, name) in enumerate(zip(self._held, names, strict=True)):
            if at < len(name):
                return n, n_bytes + (at if piece.text else 0)
            at -= len(name)
            n_bytes += len(piece.text)
        return len(names), n_bytes

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
