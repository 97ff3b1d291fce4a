"""Decode rows of a format's bytes into float32 values or into codes."""

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
    """Fill `out` [n, k] with the weights of `raw` [n, row_bytes]."""
    # An infinite scale times a zero code is NaN, as IEEE says, and no reason to warn.
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
    """Fill `codes` [n, k] and `scales` [n, k // group] from `raw` [n, row_bytes]."""
    d, payload = _split_blocks(raw, fmt)
    codes[...] = _CODE_DECODERS[fmt.name](payload).reshape(codes.shape)
    scales[...] = np.repeat(d, fmt.block_weights // fmt.group_size).reshape(scales.shape)


def _split_blocks(raw: _U8, fmt: Format) -> tuple[NDArray[np.float16], _U8]:
    """Return the scales [n] and the other bytes [n, block_bytes - 2] of all blocks."""
    blocks = raw.reshape(-1, fmt.block_bytes)
    at = fmt.scale_offset
    d = np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")[:, 0]
    # The scale is a block's first or last field, so the rest is one slice.
    return d, blocks[:, 2:] if at == 0 else blocks[:, :at]


def _decode_tq2_0_g128(payload: _U8) -> _U8:
    pairs = _packing.unpack_pairs(payload)
    # Its code 3 is a zero, not the +2 d that kernels make of it.
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
