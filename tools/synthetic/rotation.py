"""Weights stored behind a Walsh-Hadamard rotation (``prism.hadamard.*``), and what they stand for.

A product of a rotated matrix is ``y = W H(s * P(x))``, an embedding ``h = s * (H z)``: H transforms
block by block, s are signs, P puts the value heads of a recurrent layer in groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oxibonsai import formats, quant
from synthetic.qwen35 import HybridShape
from synthetic.random_blocks import Tensor, random_of

FOLDED = (
    *("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_gate", "attn_output"),
    *("ffn_gate", "ffn_up", "ffn_down", "ssm_out", "output"),
)
"""The parts of a model that are stored rotated, besides the embedding."""

EMBEDDING = "token_embd.weight"
Named = tuple[str, Any]
F64 = npt.NDArray[np.float64]


def walsh_hadamard(x: F64, block: int) -> F64:
    """Return the normalised transform of each block along the last axis, in natural order."""
    y = x.reshape(*x.shape[:-1], -1, block)
    half = 1
    while half < block:
        pairs = y.reshape(*y.shape[:-1], -1, 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = np.stack([a + b, a - b], axis=-2).reshape(y.shape)
        half *= 2
    return np.asarray(y.reshape(x.shape) / np.sqrt(block))


@dataclass(frozen=True)
class Rotation:
    """The rotation of a whole file: `version` 1 or 2, which has no head of its own."""

    shape: Any
    version: int
    block: int
    explicit: bool
    seed: int

    def signs(self, width: int) -> F64:
        """Return the signs of inputs of a width."""
        if not self.explicit:
            return np.ones(width)
        bits = random_of(self.seed, f"signs {width}").integers(0, 2, width)
        return np.where(bits == 1, 1.0, -1.0)

    @property
    def grouped(self) -> bool:
        """Whether the value heads of recurrent layers are put in groups."""
        return isinstance(self.shape, HybridShape)

    def is_folded(self, name: str) -> bool:
        """Return whether a tensor is stored rotated by its input."""
        return name.endswith(".weight") and name.split(".")[-2] in FOLDED

    def metadata(self, tensors: Sequence[Named]) -> dict[str, Any]:
        """Return the keys of a file with these tensors."""
        names = [name for name, _ in tensors if self.is_folded(name)]
        widths = sorted({value[1][-1] for name, value in tensors if self.is_folded(name)})
        found: dict[str, Any] = {
            "version": self.version,
            "block_size": self.block,
            "transform": "normalized-sylvester-walsh-hadamard",
            "axis": "input-last-dimension",
            "sign_mode": "explicit" if self.explicit else "identity",
            "weight_names": names,
            "inverse_weight_names": [EMBEDDING],
            "gdn_v_grouped": self.grouped,
        }
        if self.explicit:
            signs = np.concatenate([self.signs(width) for width in widths])
            found |= {"sign_widths": widths, "sign_values": signs.astype(np.int8)}
        if self.version == 2:
            found["tied_output"] = True
        return {f"prism.hadamard.{key}": value for key, value in found.items()}

    def check(self, tensors: Sequence[Named]) -> None:
        """Refuse a block that does not divide the width of every rotated matrix."""
        for name, value in tensors:
            if (self.is_folded(name) or name == EMBEDDING) and value[1][-1] % self.block:
                raise SystemExit(
                    f"--hadamard-block {self.block} does not divide the {value[1][-1]} inputs of "
                    f"{name}"
                )

    def unrotated(self, tensors: Sequence[Named]) -> Iterator[Named]:
        """Yield the tensors with the matrices, in float32, that the rotated ones stand for."""
        for name, value in tensors:
            if name == EMBEDDING or self.is_folded(name):
                yield name, self._plain(name, value)
            else:
                yield name, value

    def _plain(self, name: str, value: Tensor) -> Tensor:
        chunks, (n_rows, k), format_name = value
        grouped = self.grouped and name.endswith("ssm_out.weight")
        # P(x)[j] is x[source[j]].
        source = self._sources(k) if grouped else np.arange(k)
        signs = self.signs(k)
        row_bytes = formats.get(format_name).row_bytes(k)

        def rows() -> Iterator[npt.NDArray[np.float32]]:
            for chunk in chunks():
                raw = chunk.view(np.uint8).reshape(-1)
                n = len(raw) // row_bytes
                stored = quant.dequantize(quant.QTensor(raw, (n, k), format_name))
                plain = np.empty((n, k))
                plain[:, source] = walsh_hadamard(stored.astype(np.float64), self.block) * signs
                yield plain.astype(np.float32)

        return rows, (n_rows, k), "F32"

    def _sources(self, k: int) -> npt.NDArray[np.intp]:
        """Return where each value comes from when heads move from r * K + j to j * R + r."""
        key_heads, size = self.shape.key_heads, self.shape.state_dim
        heads = np.arange(k).reshape(-1, key_heads, size)
        return np.ascontiguousarray(heads.transpose(1, 0, 2)).reshape(-1)
