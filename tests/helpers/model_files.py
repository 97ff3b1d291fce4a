"""The demo models, and the ternary one rewritten into the other ternary layouts.

The packers here are written from the format definitions and share nothing with the package, so
that a file made here can prove the package's unpacking right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from places import DATA

import oxibonsai
from oxibonsai import gguf

Codes = npt.NDArray[Any]  # [rows, groups, 128], values 0, 1, 2 for -d, 0, +d
Scales = npt.NDArray[Any]  # [rows, groups]

Q1_MODEL = oxibonsai.demo_model()
TERNARY_MODEL = DATA / "alice-tq2_0_g128.gguf"
Q1_GOLDEN = DATA / "alice-q1-golden.npz"
TERNARY_GOLDEN = DATA / "alice-tq2-golden.npz"
PROMPTS = (
    "Alice was beginning to get very tired of sitting by her sister",
    "The Queen of Hearts",
    "Of Man's first disobedience, and the fruit",
)
"""The texts of the goldens' ids, in order."""

LAYOUTS = ("TQ2_0_g128", "Q2_0", "Q2_0_g128", "PQ2_0", "PTQ1_0", "TQ2_0")
"""The ternary layouts. All but TQ2_0 hold the same weights as the ternary demo model."""


def unpack_tq2_0_g128(data: npt.NDArray[Any], n_rows: int, k: int) -> tuple[Codes, Scales]:
    """Return codes and scales of rows of TQ2_0_g128 blocks: 32 bytes of codes, then d."""
    blocks = data.reshape(n_rows, k // 128, 34)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    codes = ((blocks[..., :32, None] >> shifts) & 3).reshape(n_rows, k // 128, 128)
    return codes, blocks[..., 32:].copy().view("<f2")[..., 0]


def _four_a_byte(codes: Codes) -> npt.NDArray[Any]:
    four = codes.reshape(*codes.shape[:-1], -1, 4)
    return four[..., 0] | four[..., 1] << 2 | four[..., 2] << 4 | four[..., 3] << 6


def _bytes(scales: Scales) -> npt.NDArray[Any]:
    return scales[..., None].astype("<f2").view(np.uint8)


def _join(*parts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate(parts, axis=-1).reshape(len(parts[0]), -1)


def _scale_last(codes: Codes, scales: Scales) -> npt.NDArray[Any]:
    return _join(_four_a_byte(codes), _bytes(scales))


def _scale_first(codes: Codes, scales: Scales) -> npt.NDArray[Any]:
    return _join(_bytes(scales), _four_a_byte(codes))


def _groups_of_64(codes: Codes, scales: Scales) -> npt.NDArray[Any]:
    halves = codes.reshape(len(codes), -1, 64)
    return _scale_first(halves, np.repeat(scales, 2, axis=1))


def _base_3(codes: Codes, scales: Scales) -> npt.NDArray[Any]:
    """Pack PTQ1_0: five digits a byte, the first the most significant, rounded up to 256ths."""

    def digits(part: npt.NDArray[Any], per_byte: int) -> npt.NDArray[Any]:
        # Digit e // n of byte e % n, n bytes to the part.
        part = part.reshape(*part.shape[:-1], per_byte, -1).astype(np.int64)
        value = sum(part[..., i, :] * 3 ** (4 - i) for i in range(per_byte))
        return ((np.asarray(value) * 256 + 242) // 243).astype(np.uint8)

    parts = (digits(codes[..., :80], 5), digits(codes[..., 80:120], 5), digits(codes[..., 120:], 4))
    return _join(*parts, _bytes(scales))


def _interleaved_256(codes: Codes, scales: Scales) -> npt.NDArray[Any]:
    """Pack upstream TQ2_0; one scale serves 256 weights, the mean of the two it replaces."""
    rows, groups, _ = codes.shape
    # Half h, pair l, byte m holds weight 128 h + 32 l + m.
    four = codes.reshape(rows, groups // 2, 2, 4, 32)
    qs = four[..., 0, :] | four[..., 1, :] << 2 | four[..., 2, :] << 4 | four[..., 3, :] << 6
    mean = scales.reshape(rows, groups // 2, 2).astype(np.float32).mean(axis=-1)
    return _join(qs.reshape(rows, groups // 2, 64), _bytes(mean.astype(np.float16)))


_PACK = {
    "TQ2_0_g128": _scale_last,
    "Q2_0": _groups_of_64,
    "Q2_0_g128": _scale_first,
    "PQ2_0": _scale_first,
    "PTQ1_0": _base_3,
    "TQ2_0": _interleaved_256,
}


def make_layout(src: Path, dst: Path, layout: str) -> Path:
    """Write the TQ2_0_g128 model `src` at `dst` with its blocks in `layout`, and return `dst`.

    The weights stay the same, except for TQ2_0, whose two groups of 256 must share one scale.
    """
    with gguf.open(src) as file:
        tensors: list[tuple[str, Any]] = []
        for name, info in file.tensors.items():
            data = file.tensor_data(name)
            if info.format == "TQ2_0_g128":
                n_rows, k = info.shape
                packed = _PACK[layout](*unpack_tq2_0_g128(data, n_rows, k))
                tensors.append((name, (packed, info.shape, layout)))
            else:
                tensors.append((name, (data, info.shape, info.format)))
        gguf.write(dst, {key: file.metadata.typed(key) for key in file.metadata}, tensors)
    return dst
