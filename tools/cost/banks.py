"""Bank conflicts of the kernels' accesses to threadgroup memory, from the addresses of 32 lanes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

BANKS = 32
"""Of four bytes each, on NVIDIA's cards; Apple publishes none, and 32 are taken to be there too."""


def conflict(addresses: list[int]) -> int:
    """Return how many turns an access takes: the most words of one bank. Equal words are one."""
    words: dict[int, set[int]] = {}
    for address in addresses:
        words.setdefault(address % BANKS, set()).add(address)
    return max(len(one) for one in words.values())


@dataclass(frozen=True)
class Access:
    """What the lanes of a SIMD-group access together."""

    kernel: str
    what: str
    address: Callable[[int], int]
    """The word of a lane, of four bytes."""

    @property
    def turns(self) -> int:
        """Turns that it takes; 1 is without a conflict."""
        return conflict([self.address(lane) for lane in range(32)])


def _entry(lane: int) -> int:
    """Return where the table of 1-bit codes gets an entry: fill_tables of shaders/lookup.h."""
    flip = lane // 16 * 15
    return lane // 8 * 16 + (lane % 8 ^ flip)


def _halves(lane: int) -> int:
    """Return where keep_sums of shaders/gemm_halves.h puts a sum of 64 rows."""
    return lane // 4 + 2 * (lane % 4) * (64 + 4)


# Codes of 32 rows, as any may be: a fixed shuffle of all 16.
_CODES = [(7 * lane + lane // 16) % 16 for lane in range(32)]

ACCESSES = (
    Access("look-up, 1 bit", "an entry of four tables is stored", _entry),
    Access("look-up, 1 bit", "its complement is stored", lambda lane: _entry(lane) ^ 15),
    Access("look-up, 2 bits", "two tables are stored", lambda lane: lane),
    Access("look-up", "32 rows look up any entries", lambda lane: _CODES[lane]),
    Access("look-up", "activations are stored", lambda lane: lane),
    Access("float32 GEMM, 1 bit", "weights of 32 rows are stored", lambda lane: 36 * lane),
    Access(
        "float32 GEMM, 2 bits",
        "weights of 16 rows are stored",
        lambda lane: 36 * (lane // 2) + 16 * (lane % 2),
    ),
    Access("float32 GEMM", "vectors are stored", lambda lane: lane),
    Access("halves", "sums are stored", _halves),
)
