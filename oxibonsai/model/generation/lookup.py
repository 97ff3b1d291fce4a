"""Prompt lookup: what followed the last time a text ended as it ends now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["LONGEST", "PromptLookup"]

LONGEST = 64
"""Tokens up to which the length of a match is counted."""
_ORDER = 3  # tokens of the longest n-gram that is indexed; longer matches grow from those
_BITS = 32  # of a token in a key


class PromptLookup:
    """An index of the n-grams of a text, which drafts its continuation.

    The draft is what came after an earlier occurrence of the text's end: of those that are known,
    the longest match, and of equal ones the latest. A match lasts as long as the text follows it,
    so that one in a long copy is not given up for a shorter one nearby. A token costs a few
    look-ups, however long the text is.

    Parameters
    ----------
    tokens : iterable of int
        The text.
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens: list[int] = []
        # For each length of n-gram, where the token after its latest occurrence lies. Those at the
        # end of the text enter with the next token, when something follows them.
        self._after: tuple[dict[int, int], ...] = tuple({} for _ in range(_ORDER))
        self._keys: list[int] = []  # of the n-grams at the end of the text, of one token first
        self._source = 0  # of the next token, where there is a match
        self._length = 0
        for token in tokens:
            self.push(token)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def length(self) -> int:
        """Tokens at the end of the text that the match has, at most `LONGEST`; 0 without one."""
        return self._length

    @property
    def next_token(self) -> int | None:
        """The first token of the draft; None without a match."""
        return self._tokens[self._source] if self._length else None

    def push(self, token: int) -> None:
        """Append a token to the text."""
        end = len(self._tokens)
        for table, key in zip(self._after, self._keys, strict=False):
            table[key] = end
        if self.next_token == token:
            self._source += 1
            self._length = min(self._length + 1, LONGEST)
        else:
            self._length = 0
        self._tokens.append(token)
        self._keys = [token, *(key << _BITS | token for key in self._keys[: _ORDER - 1])]
        self._look_up()

    def _look_up(self) -> None:
        """Go over to the latest occurrence of the longest n-gram unless the match is longer."""
        tokens, end = self._tokens, len(self._tokens)
        for n in range(len(self._keys), 0, -1):
            source = self._after[n - 1].get(self._keys[n - 1])
            if source is None:
                continue
            if self._length and source == self._source:
                return
            while n < min(source, LONGEST) and tokens[source - n - 1] == tokens[end - n - 1]:
                n += 1
            if (n, source) > (self._length, self._source):
                self._length, self._source = n, source
            return

    def follow(self, tokens: Sequence[int]) -> None:
        """Make `tokens` the text; one that goes on from the present text costs only what is new."""
        if list(tokens[: len(self)]) != self._tokens:
            self._tokens.clear()
            self._keys.clear()
            for table in self._after:
                table.clear()
            self._length = 0
        for token in tokens[len(self) :]:
            self.push(token)

    def draft(self, n_tokens: int) -> list[int]:
        """Return n_tokens that may follow, or none without a match.

        At the end of the text the draft goes on with itself, so that a period repeats.
        """
        if not self._length:
            return []
        drafted: list[int] = []
        for source in range(self._source, self._source + n_tokens):
            behind = source - len(self._tokens)
            drafted.append(self._tokens[source] if behind < 0 else drafted[behind])
        return drafted
