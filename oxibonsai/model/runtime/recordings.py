"""A few recorded sequences of commands, kept by what they do."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from oxibonsai.metal import Commands

__all__ = ["Recordings"]


class Recordings:
    """Recorded sequences by what they do; the least recently used one goes."""

    def __init__(self, limit: int = 16) -> None:
        self._limit = limit
        self._kept: OrderedDict[Hashable, Commands] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Commands]) -> Commands:
        """Return the recording of `key`, made where there is none."""
        found = self._kept.get(key)
        if found is None:
            found = make()
            while len(self._kept) >= self._limit:
                self._kept.popitem(last=False)[1].close()
            self._kept[key] = found
        self._kept.move_to_end(key)
        return found

    def clear(self) -> None:
        """Close all."""
        while self._kept:
            self._kept.popitem()[1].close()
