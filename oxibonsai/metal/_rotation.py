"""How the vectors of a product are rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsIndex, TypeAlias

if TYPE_CHECKING:
    from oxibonsai.metal._buffer import Buffer
    from oxibonsai.metal._weights import WeightHandle

    _Operand: TypeAlias = Buffer | tuple[Buffer, SupportsIndex] | WeightHandle

__all__ = ["Rotation"]


@dataclass(frozen=True, eq=False)
class Rotation:
    """The rotation H (signs * P(x)) of the k elements of a vector x.

    H is the Walsh-Hadamard transform of each block of elements, H[r][c] = (-1)^(ones in r & c) /
    sqrt(block). P moves head r * K + j to place j * n_groups + r, K heads to a group.

    Parameters
    ----------
    signs : operand
        float32 [k] of 1 and -1, as operands of ``Commands`` are.
    block : int
        A power of two from 16 to 4096 that divides k.
    head_size : int
        Elements of a head; of no concern in one group.
    n_groups : int
        Groups of heads that P deals out by turns. In one group it leaves them where they are.

    Attributes
    ----------
    signs, block, head_size, n_groups
        As given; they are checked where the rotation is recorded.
    """

    signs: _Operand
    block: int
    head_size: int = 0
    n_groups: int = 1
