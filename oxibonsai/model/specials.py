"""Finds the names of special tokens in a text, in time that grows with the text alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

__all__ = ["SpecialNames"]

_NODES: Final = 1 << 32


class SpecialNames:
    """The names of a vocabulary's control and user-defined tokens.

    Of the names that are permitted at a place the longest is read, and of places the leftmost, as
    in Hugging Face tokenizers.

    Parameters
    ----------
    control, user_defined : mapping of str to int
        The ids of the tokens by their names. Control tokens are read where their names are
        permitted, user-defined ones everywhere.
    """

    def __init__(self, control: Mapping[str, int], user_defined: Mapping[str, int]) -> None:
        self._control = _Finder(control)
        self._user_defined = _Finder(user_defined)
        self._ids = {**user_defined, **control}

    def split(
        self, text: str, permitted: Iterable[tuple[int, int]] | None = None
    ) -> list[tuple[str, int | None]]:
        """Return the parts of a text, each with the id where it is read as a token.

        Parameters
        ----------
        text : str
            A text.
        permitted : iterable of (int, int), optional
            First and last end of the spans within which control tokens are read, in order and
            apart; the whole text where left out.

        Returns
        -------
        list of (str, int or None)
            The names of tokens with their ids, and the text between them with None.
        """
        parts: list[tuple[str, int | None]] = []
        end = 0
        for start, stop in self.find(text, permitted):
            if end < start:
                parts.append((text[end:start], None))
            parts.append((text[start:stop], self._ids[text[start:stop]]))
            end = stop
        if end < len(text):
            parts.append((text[end:], None))
        return parts

    def find(
        self, text: str, permitted: Iterable[tuple[int, int]] | None = None
    ) -> Iterator[tuple[int, int]]:
        """Yield the spans that are read as tokens.

        Parameters
        ----------
        text : str
            A text.
        permitted : iterable of (int, int), optional
            As of split().

        Yields
        ------
        tuple of (int, int)
            Where a name begins and ends.
        """
        longest = self._user_defined.longest(text, 0, len(text))
        for start, stop in ((0, len(text)),) if permitted is None else permitted:
            for place, length in self._control.longest(text, start, stop).items():
                longest[place] = max(length, longest.get(place, 0))
        end = 0
        for start in sorted(longest):
            if start >= end:
                end = start + longest[start]
                yield start, end


class _Finder:
    """Aho and Corasick's automaton of the names written backwards.

    Read from the end of a text, its state at a place says which is the longest name that begins
    there. So each character is read once, whatever the names are.
    """

    def __init__(self, names: Iterable[str]) -> None:
        backwards = [name[::-1] for name in dict.fromkeys(names) if name]
        self._next: dict[int, int] = {}  # by a character and the number of a node
        self._fail = [0]
        self._longest = [0]
        self._depth = [0]
        self._ends: re.Pattern[str] | None = None
        if backwards:
            last = sorted({name[0] for name in backwards})
            self._ends = re.compile(f"[{''.join(map(re.escape, last))}]")
        reached = [(name, 0) for name in backwards]
        depth = 0
        while reached:  # by depth, so that what a node falls back to is complete
            reached = [
                (name, self._add(node, name[depth], len(name) == depth + 1))
                for name, node in reached
            ]
            depth += 1
            reached = [(name, node) for name, node in reached if len(name) > depth]

    def _add(self, parent: int, character: str, is_name: bool) -> int:
        key = ord(character) * _NODES + parent
        node = self._next.get(key)
        if node is None:
            node = self._next[key] = len(self._fail)
            self._fail.append(self._step(self._fail[parent], character) if parent else 0)
            self._longest.append(self._longest[self._fail[node]])
            self._depth.append(self._depth[parent] + 1)
        if is_name:
            self._longest[node] = self._depth[node]
        return node

    def _step(self, node: int, character: str) -> int:
        # Nodes are the low bits, by which a dict spreads its keys: characters are few.
        key = ord(character) * _NODES
        while node and key + node not in self._next:
            node = self._fail[node]
        return self._next.get(key + node, 0)

    def longest(self, text: str, start: int, stop: int) -> dict[int, int]:
        """Return the length of the longest name that begins at each place of a span."""
        found: dict[int, int] = {}
        if self._ends is None:
            return found
        backwards = text[start:stop][::-1]
        node = place = 0
        while place < len(backwards):
            if not node:
                end = self._ends.search(backwards, place)
                if end is None:
                    break
                place = end.start()
            node = self._step(node, backwards[place])
            place += 1
            if self._longest[node]:
                found[stop - place] = self._longest[node]
        return found
