"""Decode ggml's IQ1, IQ2 and IQ3 types, whose weights are entries of a codebook.

Source: ``dequantize_row_iq*`` in ggml/src/ggml-quants.c of https://github.com/ggml-org/ggml. Each
function takes blocks uint8 [n, block_bytes] of 256 weights and returns their float32 weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxibonsai.quant._codebooks import codebook

__all__ = ["VALUES"]

_U8 = NDArray[np.uint8]
_F32 = NDArray[np.float32]

# 7 signs and an eighth that makes their number even.
_EVEN_SIGNS = np.array([i | (i.bit_count() & 1) << 7 for i in range(128)], np.uint8)
_BITS = np.arange(8, dtype=np.uint8)
_DELTA = np.float32(0.125)


def _half(blocks: _U8) -> _F32:
    """Return the half at the start of each block as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)


def _words(packed: _U8, dtype: str) -> NDArray[Any]:
    return np.ascontiguousarray(packed).view(dtype)


def _nibbles(packed: _U8) -> _F32:
    """Return the low and the high nibble of each byte."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(len(packed), -1).astype(np.float32)


def _joined(low: _U8, high: NDArray[Any]) -> NDArray[np.uint16]:
    """Return numbers of 8 low bits and the bits above them."""
    return low | high.reshape(low.shape).astype(np.uint16) << np.uint16(8)


def _signed(scales: _F32, entries: NDArray[np.int8], signs: _U8) -> _F32:
    """Return scales [n, groups] times entries [n, 256], each negated where its sign bit is set."""
    n, groups = scales.shape
    negative = (signs.reshape(n, -1, 1) >> _BITS & 1).reshape(n, 256).view(np.int8)
    values = (entries.reshape(n, 256) * (1 - 2 * negative)).astype(np.float32)
    return (values.reshape(n, groups, -1) * scales[:, :, None]).reshape(n, 256)


def _scales_and_signs(words: NDArray[np.uint32]) -> tuple[_F32, _U8]:
    """Return the 4 upper bits plus a half, and 4 times 8 signs, of words [n, 8]."""
    signs = words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & np.uint32(127)
    return (words >> 28).astype(np.float32) + np.float32(0.5), _EVEN_SIGNS[signs]


def _iq2_xxs(blocks: _U8) -> _F32:
    words = _words(blocks[:, 2:], "<u4").reshape(-1, 8, 2)
    scales, signs = _scales_and_signs(words[:, :, 1])
    entries = blocks[:, 2:].reshape(-1, 8, 8)[:, :, :4]
    return _signed(_half(blocks) * scales * np.float32(0.25), codebook("IQ2_XXS")[entries], signs)


def _iq2_xs(blocks: _U8) -> _F32:
    codes = _words(blocks[:, 2:66], "<u2")
    scales = _half(blocks) * (_nibbles(blocks[:, 66:]) + np.float32(0.5)) * np.float32(0.25)
    return _signed(scales, codebook("IQ2_XS")[codes & 511], _EVEN_SIGNS[codes >> 9])


def _iq2_s(blocks: _U8) -> _F32:
    high = blocks[:, 66:74, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    scales = _half(blocks) * (_nibbles(blocks[:, 74:]) + np.float32(0.5)) * np.float32(0.25)
    return _signed(scales, codebook("IQ2_S")[_joined(blocks[:, 2:34], high)], blocks[:, 34:66])


def _iq3_xxs(blocks: _U8) -> _F32:
    scales, signs = _scales_and_signs(_words(blocks[:, 66:], "<u4"))
    entries = codebook("IQ3_XXS")[blocks[:, 2:66]]
    return _signed(_half(blocks) * scales * np.float32(0.5), entries, signs)


def _iq3_s(blocks: _U8) -> _F32:
    high = blocks[:, 66:74, None] >> _BITS & 1
    scales = _half(blocks) * (2 * _nibbles(blocks[:, 106:]) + 1)
    return _signed(scales, codebook("IQ3_S")[_joined(blocks[:, 2:66], high)], blocks[:, 74:106])


def _shifted(scales: _F32, entries: NDArray[np.int8], down: NDArray[np.bool_]) -> _F32:
    """Return scales times entries that are moved by 1/8, down where asked for."""
    n = len(entries)
    moved = entries.reshape(n, down.shape[1], -1) + np.where(down, -_DELTA, _DELTA)[:, :, None]
    return (moved.reshape(n, scales.shape[1], -1) * scales[:, :, None]).reshape(n, 256)


def _iq1_s(blocks: _U8) -> _F32:
    words = _words(blocks[:, 34:], "<u2")
    scales = _half(blocks) * (2 * (words >> 12 & 7) + 1).astype(np.float32)
    high = words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    entries = codebook("IQ1_S")[_joined(blocks[:, 2:34], high)]
    return _shifted(scales, entries, words & 0x8000 != 0)


def _iq1_m(blocks: _U8) -> _F32:
    words = _words(blocks[:, 48:], "<u2")
    # The half is in the upper four bits of four words.
    parts = words >> 12 << np.array([0, 4, 8, 12], np.uint16)
    half = np.bitwise_or.reduce(parts, axis=1).astype("<u2").view("<f2").astype(np.float32)
    small = words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    scales = half[:, None] * (2 * small + 1).reshape(-1, 16).astype(np.float32)
    high = np.stack([blocks[:, 32:48] & 15, blocks[:, 32:48] >> 4], axis=-1).reshape(-1, 32)
    entries = codebook("IQ1_S")[_joined(blocks[:, :32], high & 7)]
    return _shifted(scales, entries, high & 8 != 0)


VALUES: dict[str, Callable[[_U8], _F32]] = {
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ3_XXS": _iq3_xxs,
    "IQ1_S": _iq1_s,
    "IQ3_S": _iq3_s,
    "IQ2_S": _iq2_s,
    "IQ1_M": _iq1_m,
}
"""Decoders to the float32 weights of the blocks, [n, 256]."""
