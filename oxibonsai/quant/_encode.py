"""Encode rows of finite float32 weights into blocks, with the rounding of each format."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from oxibonsai.formats import Format
from oxibonsai.quant import _packing

_U8 = NDArray[np.uint8]
_F32 = NDArray[np.float32]

# Takes blocks [n, block_weights]; returns the float32 scales [n] and the blocks' bytes without the
# scale [n, block_bytes - 2].
_BlockEncoder = Callable[[_F32], tuple[_F32, _U8]]


def encode_rows(rows: _F32, fmt: Format, first_row: int, out: _U8) -> None:
    """Fill `out` with rows in a format.

    Parameters
    ----------
    rows : ndarray of float32, shape [n, k]
        Finite weights, C-contiguous.
    fmt : Format
        The format of `out`.
    first_row : int
        Number of the first row in the whole matrix, for error texts.
    out : ndarray of uint8, shape [n, row_bytes]
        Where the blocks go.

    Raises
    ------
    ValueError
        If a scale or weight rounds to infinity.
    """
    # Overflow and underflow are part of the formats' definitions; infinity is refused below.
    with np.errstate(all="ignore"):
        if fmt.name in _FLOAT_ENCODERS:
            out[...] = _FLOAT_ENCODERS[fmt.name](rows, fmt, first_row)
            return
        d, payload = _BLOCK_ENCODERS[fmt.name](rows.reshape(-1, fmt.block_weights))
        half = d.astype("<f2")
    overflow = np.isinf(half)
    if overflow.any():
        block = int(overflow.argmax())
        row, column = divmod(block * fmt.block_weights, rows.shape[1])
        raise ValueError(
            f"the scale {d[block]:g} of row {first_row + row}, columns {column} to "
            f"{column + fmt.block_weights - 1} overflows the half precision of {fmt.name} (largest "
            "65504): scale the matrix down"
        )
    blocks = out.reshape(-1, fmt.block_bytes)
    at = fmt.scale_offset
    blocks[:, at : at + 2] = half.view(np.uint8).reshape(-1, 2)
    blocks[:, :at] = payload[:, :at]
    blocks[:, at + 2 :] = payload[:, at:]


def _largest(blocks: _F32) -> _F32:
    result: _F32 = np.abs(blocks).max(axis=1)
    return result


def _inverse(d: _F32) -> _F32:
    """Return 1 / d in float32, 0 where d is 0 and infinity where d is below 2**-128."""
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 0)


def _finite_inverse(d: _F32) -> _F32:
    """Return 1 / d, or 0 where that overflows: such a scale rounds to 0 in half precision."""
    inverse = _inverse(d)
    inverse[np.isinf(inverse)] = 0
    return inverse


def _code(up: NDArray[np.bool_], down: NDArray[np.bool_]) -> _U8:
    """Return 2 where `up`, 0 where `down`, else 1."""
    return np.uint8(1) + up.view(np.uint8) - down.view(np.uint8)


def _rounded(blocks: _F32, inverse: _F32) -> _U8:
    """Return clamp(roundf(x / d) + 1, 0, 3); |x / d| is at most 1 + 1 ulp, so never code 3."""
    ratio = blocks * inverse[:, None]
    return _code(ratio >= np.float32(0.5), ratio <= np.float32(-0.5))


def _encode_q1_0(blocks: _F32) -> tuple[_F32, _U8]:
    # ggml sums in order, as a running sum does; np.sum sums pairwise.
    total: _F32 = np.add.accumulate(np.abs(blocks), axis=1)[:, -1]
    return total / np.float32(128), _packing.pack_bits(blocks >= 0)


def _encode_q2_0(blocks: _F32) -> tuple[_F32, _U8]:
    d = _largest(blocks)
    inverse = _inverse(d)
    pairs = _rounded(blocks, inverse)
    # ggml converts infinity or NaN to int here; x86 gives INT_MIN, which the clamp makes 0. The
    # half scale is 0, so the weights do not depend on this: it only makes the bytes equal ggml's.
    pairs[np.isinf(inverse)] = 0
    return d, _packing.pack_pairs(pairs)


def _encode_tq2_0_g128(blocks: _F32) -> tuple[_F32, _U8]:
    d = _largest(blocks)
    threshold = np.float32(0.5) * d[:, None]
    up = blocks >= threshold
    pairs = _code(up, (blocks <= -threshold) & ~up)
    pairs[d == 0] = 1
    return d, _packing.pack_pairs(pairs)


def _encode_tq2_0(blocks: _F32) -> tuple[_F32, _U8]:
    d = _largest(blocks)
    return d, _packing.pack_strided_pairs(_rounded(blocks, _finite_inverse(d)))


def _encode_ptq1_0(blocks: _F32) -> tuple[_F32, _U8]:
    d = _largest(blocks)
    return d, _packing.pack_digits(_rounded(blocks, _finite_inverse(d)))


def _encode_q8_0(blocks: _F32) -> tuple[_F32, _U8]:
    d = _largest(blocks) / np.float32(127)
    scaled = blocks * _finite_inverse(d)[:, None]
    # roundf takes halves away from zero. Adding 0.5 and truncating would round 0.49999997 up.
    whole = np.trunc(scaled)
    whole += np.copysign(np.abs(scaled - whole) >= np.float32(0.5), scaled)
    return d, whole.astype(np.int8).view(np.uint8)


_BLOCK_ENCODERS: dict[str, _BlockEncoder] = {
    "Q1_0": _encode_q1_0,
    "TQ2_0_g128": _encode_tq2_0_g128,
    "Q2_0": _encode_q2_0,
    "Q2_0_g128": _encode_q2_0,
    "PQ2_0": _encode_q2_0,
    "PTQ1_0": _encode_ptq1_0,
    "TQ2_0": _encode_tq2_0,
    "Q8_0": _encode_q8_0,
}


def _encode_f32(rows: _F32, fmt: Format, first_row: int) -> _U8:
    return rows.astype("<f4", copy=False).view(np.uint8)


def _encode_f16(rows: _F32, fmt: Format, first_row: int) -> _U8:
    half = rows.astype("<f2")
    _refuse_overflow(np.isinf(half), rows, fmt, first_row)
    return half.view(np.uint8)


def _encode_bf16(rows: _F32, fmt: Format, first_row: int) -> _U8:
    bits = rows.view(np.uint32)
    # To nearest, ties to even. The sum of a finite float's bits stays below 2**32.
    top = ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype("<u2")
    _refuse_overflow((top & 0x7FFF) == 0x7F80, rows, fmt, first_row)
    return top.view(np.uint8)


def _refuse_overflow(overflow: NDArray[np.bool_], rows: _F32, fmt: Format, first_row: int) -> None:
    if overflow.any():
        row, column = np.unravel_index(int(overflow.argmax()), overflow.shape)
        raise ValueError(
            f"weight {rows[row, column]:g} at row {first_row + row}, column {column} overflows "
            f"{fmt.name}: scale the matrix down, or take F32"
        )


_FLOAT_ENCODERS: dict[str, Callable[[_F32, Format, int], _U8]] = {
    "F32": _encode_f32,
    "F16": _encode_f16,
    "BF16": _encode_bf16,
}
