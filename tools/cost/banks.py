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
    """The first word of a lane, of four bytes."""
    words: int = 1
    """Of each lane; as many lanes go together as have 32 words."""

    @property
    def turns(self) -> int:
        """Turns that it takes; without a conflict as many as a lane has words."""
        lanes = BANKS // self.words
        return sum(
            conflict(
                [
                    self.address(lane) + word
                    for lane in range(first, first + lanes)
                    for word in range(self.words)
                ]
            )
            for first in range(0, 32, lanes)
        )


def _entry(lane: int) -> int:
    """Return where the table of 1-bit codes gets an entry: fill_tables of shaders/lookup.h."""
    flip = lane // 16 * 15
    return lane // 8 * 16 + (lane % 8 ^ flip)


def _halves(lane: int) -> int:
    """Return where keep_sums of shaders/gemm_halves.h puts a sum of 64 rows."""
    return lane // 4 + 2 * (lane % 4) * (64 + 4)


def _matrix(stride: int) -> Callable[[int], int]:
    """Return where a lane of Metal reads its two elements of an 8 x 8 matrix of floats."""

    def address(lane: int) -> int:
        row = (lane >> 2 & 4) + (lane >> 1 & 3)
        return row * stride + 2 * ((lane >> 2 & 2) + (lane & 1))

    return address


# Codes of 32 rows, as any may be.
_CODES = [lane * (11 * lane + 37) // 3 % 256 for lane in range(32)]

ACCESSES = (
    Access("look-up, 1 bit", "an entry of each of four tables is stored", _entry),
    Access("look-up, 1 bit", "its complement is stored", lambda lane: _entry(lane) ^ 15),
    Access("look-up, 2 bits", "two tables are stored", lambda lane: lane),
    Access("look-up", "32 rows look up any entries", lambda lane: _CODES[lane] % 16),
    Access("look-up with tables of 256", "the same", lambda lane: _CODES[lane]),
    Access("float32 GEMM", "an 8 x 8 matrix is read, stride 36", _matrix(36), 2),
    Access("float32 GEMM", "an 8 x 8 matrix is read, stride 40", _matrix(40), 2),
    Access("halves", "sums are stored", _halves),
)
