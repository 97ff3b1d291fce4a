"""Decode the ggml types that no kernel reads, by the definitions of ggml's blocks.

Source: ``dequantize_row_*`` in ggml/src/ggml-quants.c of https://github.com/ggml-org/ggml. Every
product and sum is rounded to float32 where ggml's reference rounds it, so that the values have the
same bits. Each function takes blocks uint8 [n, block_bytes].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxibonsai.quant import _ggml_codebooks, _packing

__all__ = ["INTEGERS", "VALUES", "decode_tq1_0"]

_U8 = NDArray[np.uint8]
_I8 = NDArray[np.int8]
_F16 = NDArray[np.float16]
_F32 = NDArray[np.float32]

# The 16 levels of IQ4_NL and IQ4_XS, and those of the 4-bit floats (E2M1), doubled.
_IQ4_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
_E2M1_LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
# Runs of TQ1_0's base-3 digits: (first weight, digits per byte, bytes).
_TQ1_0_RUNS = ((0, 5, 32), (160, 5, 16), (240, 4, 4))


def _half(blocks: _U8, at: int) -> _F16:
    """Return the half at byte `at` of each block, [n]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")[:, 0]


def _single(blocks: _U8, at: int) -> _F32:
    """Return the half at byte `at` of each block as float32 [n, 1]."""
    return _half(blocks, at).astype(np.float32)[:, None]


def _fields(packed: _U8, bits: int, width: int) -> _U8:
    """Return the fields of `bits` bits: of each `width` bytes the lowest field, then the next."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    mask = np.uint8((1 << bits) - 1)
    n = len(packed)
    return (packed.reshape(n, -1, 1, width) >> shifts & mask).reshape(n, -1)


def _nibbles(packed: _U8) -> _U8:
    """Return the low nibbles of all bytes of a block, then the high ones."""
    return _fields(packed, 4, packed.shape[1])


def _signed(codes: _U8, zero: int) -> _I8:
    return codes.view(np.int8) - np.int8(zero)


def _scaled(scales: NDArray[Any], values: NDArray[Any]) -> _F32:
    """Return float32 `values` [n, weights], each group times its scale [n, groups]."""
    n, groups = scales.shape
    result = values.reshape(n, groups, -1).astype(np.float32)
    result *= scales[:, :, None]
    return result.reshape(n, -1)


def _shifted(scales: _F32, values: NDArray[Any], offsets: _F32) -> _F32:
    """Return ``scale * value - offset`` for each group."""
    n, groups = scales.shape
    result = _scaled(scales, values).reshape(n, groups, -1)
    result -= offsets[:, :, None]
    return result.reshape(n, -1)


# Integers times one half per block of 32: what Q8_0 holds too.


def _q4_0(blocks: _U8) -> tuple[_F16, _I8]:
    return _half(blocks, 0), _signed(_nibbles(blocks[:, 2:]), 8)


def _with_fifth_bit(low: _U8, packed_bits: _U8) -> _U8:
    high = np.unpackbits(packed_bits, axis=1, bitorder="little")
    return low | high << np.uint8(4)


def _q5_0(blocks: _U8) -> tuple[_F16, _I8]:
    return _half(blocks, 0), _signed(_with_fifth_bit(_nibbles(blocks[:, 6:]), blocks[:, 2:6]), 16)


def _iq4_nl(blocks: _U8) -> tuple[_F16, _I8]:
    return _half(blocks, 0), _IQ4_LEVELS[_nibbles(blocks[:, 2:])]


INTEGERS: dict[str, Callable[[_U8], tuple[_F16, _I8]]] = {
    "Q4_0": _q4_0,
    "Q5_0": _q5_0,
    "IQ4_NL": _iq4_nl,
}
"""Decoders to a half [n] and integers [n, 32], whose product is the weight."""


def decode_tq1_0(blocks: _U8) -> tuple[_F16, _U8]:
    """Return the scales [n] and the codes [n, 256] of ``TQ1_0``; code c stands for (c - 1) d."""
    return _half(blocks, 52), _packing.unpack_digit_runs(blocks[:, :52], _TQ1_0_RUNS)


# Floats: a scale and an offset, or a scale of its own for each small group.


def _q4_1(blocks: _U8) -> _F32:
    return _shifted(_single(blocks, 0), _nibbles(blocks[:, 4:]), -_single(blocks, 2))


def _q5_1(blocks: _U8) -> _F32:
    codes = _with_fifth_bit(_nibbles(blocks[:, 8:]), blocks[:, 4:8])
    return _shifted(_single(blocks, 0), codes, -_single(blocks, 2))


def _q2_k(blocks: _U8) -> _F32:
    packed = blocks[:, :16]
    scales = _single(blocks, 80) * (packed & 15).astype(np.float32)
    offsets = _single(blocks, 82) * (packed >> 4).astype(np.float32)
    return _shifted(scales, _fields(blocks[:, 16:80], 2, 32), offsets)


def _q3_k(blocks: _U8) -> _F32:
    low, high = _fields(blocks[:, 96:104], 4, 8), _fields(blocks[:, 104:108], 2, 4)
    scales = _single(blocks, 108) * _signed(low | high << np.uint8(4), 32).astype(np.float32)
    # The third bit is inverted: clear, it takes 4 off.
    third = _fields(blocks[:, :32], 1, 32) ^ np.uint8(1)
    return _scaled(scales, _signed(_fields(blocks[:, 32:96], 2, 32), 0) - third.view(np.int8) * 4)


def _six_bit_pairs(packed: _U8) -> tuple[_F32, _F32]:
    """Return the 8 scales and 8 minimums of 6 bits in the 12 bytes of Q4_K and Q5_K."""
    first, second, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, last & 15 | first >> 2 & 48], axis=1)
    minimums = np.concatenate([second & 63, last >> 4 | second >> 2 & 48], axis=1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _q4_or_5_k(blocks: _U8, codes: _U8) -> _F32:
    scales, minimums = _six_bit_pairs(blocks[:, 4:16])
    return _shifted(_single(blocks, 0) * scales, codes, _single(blocks, 2) * minimums)


def _q4_k(blocks: _U8) -> _F32:
    return _q4_or_5_k(blocks, _fields(blocks[:, 16:], 4, 32))


def _q5_k(blocks: _U8) -> _F32:
    fifth = _fields(blocks[:, 16:48], 1, 32)
    return _q4_or_5_k(blocks, _fields(blocks[:, 48:], 4, 32) | fifth << np.uint8(4))


def _q6_k(blocks: _U8) -> _F32:
    scales = _single(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    codes = _fields(blocks[:, :128], 4, 64) | _fields(blocks[:, 128:192], 2, 32) << np.uint8(4)
    return _scaled(scales, _signed(codes, 32))


def _iq4_xs(blocks: _U8) -> _F32:
    n = len(blocks)
    low = _fields(blocks[:, 4:8], 4, 1)
    high = _fields(blocks[:, 2:4], 2, 1)
    scales = _single(blocks, 0) * _signed(low | high << np.uint8(4), 32).astype(np.float32)
    return _scaled(scales, _IQ4_LEVELS[_fields(blocks[:, 8:], 4, 16)].reshape(n, -1))


def _mxfp4(blocks: _U8) -> _F32:
    # Half of 2**(exponent - 127), since the levels are doubled; the two lowest are subnormal.
    exponent = blocks[:, 0].astype(np.uint32)
    bits = np.where(exponent < 2, 0x00200000 << np.minimum(exponent, 1), (exponent - 1) << 23)
    scales = bits.astype(np.uint32).view(np.float32)[:, None]
    return _scaled(scales, _E2M1_LEVELS[_nibbles(blocks[:, 1:])])


def _ue4m3() -> _F32:
    """Return half the value of each unsigned float of 4 bits of exponent and 3 of mantissa."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    whole = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10))
    whole[0x7F] = 0  # what NaN is to ggml
    return (whole / 2).astype(np.float32)


_UE4M3 = _ue4m3()


def _nvfp4(blocks: _U8) -> _F32:
    return _scaled(_UE4M3[blocks[:, :4]], _E2M1_LEVELS[_fields(blocks[:, 4:], 4, 8)])


VALUES: dict[str, Callable[[_U8], _F32]] = {
    "Q4_1": _q4_1,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
    **_ggml_codebooks.VALUES,
}
"""Decoders to the float32 weights of the blocks, [n, block_weights]."""
