"""Decode the bytes of rows into float32 weights, or into codes and scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxibonsai.formats import Format
from oxibonsai.quant import _packing

_U8 = NDArray[np.uint8]
_F32 = NDArray[np.float32]


def decode_values(raw: _U8, fmt: Format, out: _F32) -> None:
    """Fill `out` with the weights of rows.

    Parameters
    ----------
    raw : ndarray of uint8, shape [n, row_bytes]
        Rows of blocks.
    fmt : Format
        Their format.
    out : ndarray of float32, shape [n, k]
        Where the weights go.
    """
    # An infinite scale times a weight of zero is NaN by IEEE's rules: no warning is due.
    with np.errstate(invalid="ignore"):
        if fmt.name in _FLOAT_DECODERS:
            out[...] = _FLOAT_DECODERS[fmt.name](raw)
            return
        d, payload = _split_blocks(raw, fmt)
        if fmt.name == "Q8_0":
            values = payload.view(np.int8).astype(np.float32)
        else:
            values = _CODE_DECODERS[fmt.name](payload).astype(np.float32)
            if fmt.bits == 1:
                values += values
            values -= 1
        scales = d.astype(np.float32)[:, None]
        np.multiply(values, scales, out=out.reshape(-1, fmt.block_weights))


def decode_codes(raw: _U8, fmt: Format, codes: _U8, scales: NDArray[np.float16]) -> None:
    """Fill `codes` and `scales` from rows in a coded format.

    Parameters
    ----------
    raw : ndarray of uint8, shape [n, row_bytes]
        Rows of blocks.
    fmt : Format
        Their format, a coded one.
    codes : ndarray of uint8, shape [n, k]
        Where the codes go, one a byte.
    scales : ndarray of float16, shape [n, k // group_size]
        Where the scale of each scale group goes.
    """
    d, payload = _split_blocks(raw, fmt)
    codes[...] = _CODE_DECODERS[fmt.name](payload).reshape(codes.shape)
    scales[...] = np.repeat(d, fmt.block_weights // fmt.group_size).reshape(scales.shape)


def _split_blocks(raw: _U8, fmt: Format) -> tuple[NDArray[np.float16], _U8]:
    """Return the scales [n] and the other bytes [n, block_bytes - 2] of all blocks."""
    blocks = raw.reshape(-1, fmt.block_bytes)
    at = fmt.scale_offset
    d = np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")[:, 0]
    # The scale is the first or last field of a block, so the rest is one slice.
    return d, blocks[:, 2:] if at == 0 else blocks[:, :at]


def _decode_tq2_0_g128(payload: _U8) -> _U8:
    pairs = _packing.unpack_pairs(payload)
    # Code 3 stands for 0 in this format, but for +2 d in the device format.
    pairs[pairs == 3] = 1
    return pairs


_CODE_DECODERS: dict[str, Callable[[_U8], _U8]] = {
    "Q1_0": _packing.unpack_bits,
    "TQ2_0_g128": _decode_tq2_0_g128,
    "Q2_0": _packing.unpack_pairs,
    "Q2_0_g128": _packing.unpack_pairs,
    "PQ2_0": _packing.unpack_pairs,
    "PTQ1_0": _packing.unpack_digits,
    "TQ2_0": _packing.unpack_strided_pairs,
}


def _decode_bf16(raw: _U8) -> _F32:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


_FLOAT_DECODERS: dict[str, Callable[[_U8], NDArray[Any]]] = {
    "F32": lambda raw: raw.view("<f4"),
    "F16": lambda raw: raw.view("<f2"),
    "BF16": _decode_bf16,
}
