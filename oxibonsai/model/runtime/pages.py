"""Which pages of the K/V caches are free, used, and by how many, or kept for texts to come."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

__all__ = ["PAGE_SIZE", "ROOT", "PagePool", "chain_key", "pages_of"]

PAGE_SIZE = 64
"""Positions of a page."""

ROOT = b""
"""The key before a text's first page."""


def pages_of(n_positions: int) -> int:
    """Return how many pages hold n_positions."""
    return -(-n_positions // PAGE_SIZE)


def chain_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the key of a full page: of its tokens and, through `parent`, of all before them.

    Keys and values depend on every token up to their own, so only pages whose whole beginning is
    the same may be shared. The hash is a cryptographic one: two texts never meet in one key.
    """
    digest = hashlib.blake2b(parent, digest_size=32)
    digest.update(array("I", tokens).tobytes())
    return digest.digest()


class PagePool:
    """Pages with counts of their users, and an index of the full ones by what they hold.

    A page is *used* (by one text or by several), *cached* (full, indexed, nobody's) or free. Cached
    pages are given away, least recently used first, when none is free.

    Parameters
    ----------
    n_pages : int
        Pages, at least 1.
    forgotten : callable, optional
        Called with the key of a page that can no longer be found.

    Attributes
    ----------
    n_pages : int
        As given.
    """

    def __init__(self, n_pages: int, forgotten: Callable[[bytes], object] | None = None) -> None:
        if n_pages < 1:
            raise ValueError(f"n_pages = {n_pages} must be 1 or more")
        self.n_pages = n_pages
        self._forgotten = forgotten
        self._users = [0] * n_pages
        self._key_of: list[bytes | None] = [None] * n_pages
        self._page_of: dict[bytes, int] = {}
        self._free = list(range(n_pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # the least recently used first

    @property
    def n_used(self) -> int:
        """Pages that a text uses."""
        return self.n_pages - self.n_available

    @property
    def n_cached(self) -> int:
        """Pages that nobody uses and that a new text with their beginning would take."""
        return len(self._cached)

    @property
    def n_available(self) -> int:
        """Pages that allocate() can give: free and cached ones."""
        return len(self._free) + len(self._cached)

    def users(self, page: int) -> int:
        """Return how many texts use a page."""
        return self._users[page]

    def allocate(self) -> int | None:
        """Return a page for one user, or None where all are used."""
        if self._free:
            page = self._free.pop()
        elif self._cached:
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
        else:
            return None
        self._users[page] = 1
        return page

    def find(self, key: bytes) -> int | None:
        """Return the page with a key, which nobody takes by that, or None."""
        return self._page_of.get(key)

    def is_cached(self, page: int) -> bool:
        """Whether a page is kept for nobody but its key."""
        return page in self._cached

    def retain(self, page: int) -> None:
        """Count one user more of an indexed page."""
        if self._users[page] == 0:
            if page not in self._cached:
                raise ValueError(f"page {page} is free: allocate() gives it")
            del self._cached[page]
        self._users[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Count one user less of each page; those behind go first from the cache."""
        for page in reversed(list(pages)):
            if self._users[page] < 1:
                raise ValueError(f"page {page} has no user to release it")
            self._users[page] -= 1
            if self._users[page] == 0:
                if self._key_of[page] is None:
                    self._free.append(page)
                else:
                    self._cached[page] = None

    def register(self, page: int, key: bytes) -> None:
        """Index a full page, unless another one holds the same or it has a key."""
        if self._users[page] < 1:
            raise ValueError(f"page {page} is nobody's: only its user can say what it holds")
        if key not in self._page_of and self._key_of[page] is None:
            self._page_of[key] = page
            self._key_of[page] = key

    def forget_all(self) -> None:
        """Empty the index, where what the pages hold is no longer known."""
        for page in list(self._page_of.values()):
            self._forget(page)
        self._free += self._cached
        self._cached.clear()

    def _forget(self, page: int) -> None:
        key = self._key_of[page]
        assert key is not None
        del self._page_of[key]
        self._key_of[page] = None
        if self._forgotten is not None:
            self._forgotten(key)
