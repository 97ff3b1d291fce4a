"""Pack codes into the bytes of blocks and unpack them, in each order that the formats use.

Every function works on n blocks: codes are uint8 [n, block_weights], one a byte; packed bytes are
uint8 [n, block_bytes - 2], without the scale. The orders are those of each format's own project.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_U8 = NDArray[np.uint8]

_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
_MASK = np.uint8(3)

# Runs of PTQ1_0's base-3 digits: (first weight, digits per byte, bytes). Digit i of byte m, counted
# from the most significant, is weight first + i * bytes + m.
_DIGIT_RUNS = ((0, 5, 16), (80, 5, 8), (120, 4, 2))
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def pack_bits(bits: NDArray[np.bool_]) -> _U8:
    """Pack 8 consecutive bits per byte, the first in the lowest bit (``Q1_0``)."""
    return np.packbits(bits, axis=1, bitorder="little")


def unpack_bits(packed: _U8) -> _U8:
    """Undo :func:`pack_bits`."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def pack_pairs(pairs: _U8) -> _U8:
    """Pack 4 consecutive codes per byte, the first in the lowest bit pair."""
    shifted = pairs.reshape(len(pairs), -1, 4) << _SHIFTS
    result: _U8 = np.bitwise_or.reduce(shifted, axis=2)
    return result


def unpack_pairs(packed: _U8) -> _U8:
    """Undo :func:`pack_pairs`."""
    return (packed[:, :, None] >> _SHIFTS & _MASK).reshape(len(packed), -1)


def pack_strided_pairs(pairs: _U8) -> _U8:
    """Pack codes as ``TQ2_0`` does: weight 128 h + 32 l + m is bit pair l of byte m of half h."""
    n = len(pairs)
    return pack_pairs(pairs.reshape(n, 2, 4, 32).swapaxes(2, 3).reshape(n, 256))


def unpack_strided_pairs(packed: _U8) -> _U8:
    """Undo :func:`pack_strided_pairs`."""
    n = len(packed)
    return (packed.reshape(n, 2, 1, 32) >> _SHIFTS[:, None] & _MASK).reshape(n, 256)


def pack_digits(digits: _U8) -> _U8:
    """Pack the base-3 digits of ``PTQ1_0``, 5 or 4 per byte."""
    runs = []
    for first, count, width in _DIGIT_RUNS:
        run = digits[:, first : first + count * width].reshape(-1, count, width)
        weights = _POWERS[::-1][:count, None].astype(np.uint16)
        value = (run * weights).sum(axis=1, dtype=np.uint16)
        # A byte is the fraction value / 243 in units of 1/256, rounded up so that no digit is lost.
        runs.append(((value * 256 + 242) // 243).astype(np.uint8))
    return np.concatenate(runs, axis=1)


def unpack_digits(packed: _U8) -> _U8:
    """Undo :func:`pack_digits`."""
    return unpack_digit_runs(packed, _DIGIT_RUNS)


def unpack_digit_runs(packed: _U8, runs: tuple[tuple[int, int, int], ...]) -> _U8:
    """Return the base-3 digits of runs (first weight, digits per byte, bytes), in weight order."""
    n = len(packed)
    first, count, width = runs[-1]
    out = np.empty((n, first + count * width), np.uint8)
    start = 0
    for first, count, width in runs:
        # Multiplying by 3**i modulo 256 drops the first i digits of the fraction.
        rest = packed[:, None, start : start + width] * _POWERS[:count, None]
        digits = rest.astype(np.uint16) * 3 >> 8
        out[:, first : first + count * width] = digits.reshape(n, -1)
        start += width
    return out
