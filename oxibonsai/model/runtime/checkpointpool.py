"""Which recurrent states of beginnings are kept for texts to come."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from oxibonsai.model.runtime.pages import PAGE_SIZE

__all__ = ["CheckpointPool"]


class CheckpointPool:
    """Places of states behind full pages, by the chain key of the last of these pages.

    Keys and values of a beginning can be shared up to any page; a recurrent state is that of one
    position. So a text takes the pages of another up to a position whose state was kept. Where all
    places are taken, the least recently used state goes. Nobody holds a state: a text that begins
    with it copies it into its own slot.

    Parameters
    ----------
    n_places : int
        States that can be kept; none where it is 0.
    spacing : int
        States are kept at its multiples: positions, a multiple of the page size.

    Attributes
    ----------
    n_places, spacing : int
        As given.
    """

    def __init__(self, n_places: int, spacing: int) -> None:
        if n_places < 0:
            raise ValueError(f"n_places = {n_places} must be 0 or more")
        if spacing < 1 or spacing % PAGE_SIZE:
            raise ValueError(
                f"spacing = {spacing} must be a multiple of {PAGE_SIZE}, the size of a page"
            )
        self.n_places = n_places
        self.spacing = spacing
        self._free = list(range(n_places - 1, -1, -1))
        self._place_of: OrderedDict[bytes, int] = OrderedDict()  # the least recently used first

    @property
    def n_kept(self) -> int:
        """States that are kept."""
        return len(self._place_of)

    def __contains__(self, key: bytes) -> bool:
        return key in self._place_of

    def next_boundary(self, position: int) -> int | None:
        """Return the next position whose state is to be kept, or None where none is kept."""
        return (position // self.spacing + 1) * self.spacing if self.n_places else None

    def is_boundary(self, position: int) -> bool:
        """Whether the state before `position` is one to keep."""
        return self.n_places > 0 and position > 0 and position % self.spacing == 0

    def longest(self, keys: Sequence[bytes]) -> int:
        """Return how many of a text's first pages can be shared: up to the last state kept."""
        n = len(keys) * PAGE_SIZE // self.spacing * self.spacing
        while n and keys[n // PAGE_SIZE - 1] not in self._place_of:
            n -= self.spacing
        return n // PAGE_SIZE

    def use(self, key: bytes) -> int:
        """Return the place of a state that is kept, and count that as a use of it."""
        self._place_of.move_to_end(key)
        return self._place_of[key]

    def allocate(self, key: bytes) -> int:
        """Return the place where a state is to be kept, which another one may have to leave."""
        if key in self._place_of:
            raise ValueError("the state of this beginning is kept already: use() finds it")
        if self._free:
            place = self._free.pop()
        elif self._place_of:
            _, place = self._place_of.popitem(last=False)
        else:
            raise ValueError("there is no place for a state: n_places is 0")
        self._place_of[key] = place
        return place

    def drop(self, key: bytes) -> None:
        """Give up the state of a beginning whose pages are gone, where it is kept."""
        place = self._place_of.pop(key, None)
        if place is not None:
            self._free.append(place)

    def forget_all(self) -> None:
        """Give up all states, where what the places hold is no longer known."""
        self._free += self._place_of.values()
        self._place_of.clear()
