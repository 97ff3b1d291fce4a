"""Metadata of rotated weights, and what the weights are without their rotation, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxibonsai.gguf import ValueType

F64 = NDArray[np.float64]

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
FOLDED = (
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_gate",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ssm_out",
)
"""Matrices of a layer whose input is rotated, by the definition of the format."""


@cache
def matrix(block: int) -> F64:
    """Return H of a block: (-1)^(ones in r & c) / sqrt(block)."""
    index = np.arange(block)
    ones = np.array([i.bit_count() for i in range(block)])[index[:, None] & index[None, :]]
    result: F64 = np.where(ones % 2, -1.0, 1.0) / np.sqrt(block)
    return result


def transformed(x: NDArray[Any], block: int) -> F64:
    """Return H x of each block of the last axis of x."""
    blocks = np.asarray(x, np.float64).reshape(-1, block)
    result: F64 = (blocks @ matrix(block)).reshape(x.shape)
    return result


@dataclass(frozen=True)
class Folding:
    """How the weights of a small model are rotated.

    Attributes
    ----------
    version, block : int
        As in the metadata.
    explicit : bool
        Whether the signs are random, else all are 1.
    value_heads : (int, int, int) or None
        Key heads, value heads and the size of a value head, where the input of ssm_out is grouped.
    embedding : bool
        Whether the embedding is rotated.
    names : tuple of str or None
        Matrices of a layer that are, without ``.weight``; None for all of FOLDED.
    seed : int
        Of the signs.
    flipped : (int, int) or None
        Width and element of a sign that is the other one.
    """

    version: int = 1
    block: int = 128
    explicit: bool = True
    value_heads: tuple[int, int, int] | None = None
    embedding: bool = True
    names: tuple[str, ...] | None = None
    seed: int = 5
    flipped: tuple[int, int] | None = None

    def weights(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """Return the names of the rotated matrices among the tensors of a file."""
        parts = FOLDED if self.names is None else self.names
        found = [name for name in shapes if name.startswith("blk.") and name.split(".")[2] in parts]
        return found + [HEAD] * (HEAD in shapes and self.version == 1)

    def signs(self, width: int) -> F64:
        """Return the signs of inputs of a width."""
        if not self.explicit:
            return np.ones(width)
        found = np.random.default_rng((self.seed, width)).choice([-1.0, 1.0], width)
        if self.flipped is not None and self.flipped[0] == width:
            found[self.flipped[1]] *= -1
        return found

    def metadata(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Return the metadata of a file with tensors of these shapes."""
        names = self.weights(shapes)
        inverse = [EMBEDDING] * self.embedding
        found: dict[str, Any] = {
            "version": self.version,
            "block_size": self.block,
            "transform": "normalized-sylvester-walsh-hadamard",
            "axis": "input-last-dimension",
            "sign_mode": "explicit" if self.explicit else "identity",
            "weight_names": names,
            "inverse_weight_names": inverse or ValueType.STRING([]),
            "gdn_v_grouped": self.value_heads is not None
            and any(name.endswith(".ssm_out.weight") for name in names),
            "tied_output": self.version == 2,
        }
        if self.explicit:
            widths = sorted({shapes[name][-1] for name in [*names, *inverse]})
            values = np.concatenate([self.signs(width) for width in widths])
            found["sign_widths"] = np.array(widths, np.int32)
            found["sign_values"] = values.astype(np.int8)
        return {f"prism.hadamard.{key}": value for key, value in found.items()}

    def unfolded(self, weights: Mapping[str, F64]) -> dict[str, F64]:
        """Return the weights W = W' H diag(s) P, of which the file holds W'.

        A head that is the embedding becomes one of its own.
        """
        found = dict(weights)
        for name in self.weights({name: w.shape for name, w in weights.items()}):
            found[name] = self._turned(weights[name])
            if name.endswith(".ssm_out.weight") and self.value_heads is not None:
                found[name] = _grouped_columns(found[name], *self.value_heads)
        if self.embedding:
            found[EMBEDDING] = self._turned(weights[EMBEDDING])  # rows s * (H z)
        if self.version == 2:
            found[HEAD] = self._turned(weights[EMBEDDING])
        return found

    def _turned(self, w: F64) -> F64:
        result: F64 = transformed(w, self.block) * self.signs(w.shape[-1])
        return result


def _grouped_columns(w: F64, n_key_heads: int, n_value_heads: int, size: int) -> F64:
    """Return w P: P moves head r * n_key_heads + j of its input to j * (groups) + r."""
    groups = n_value_heads // n_key_heads
    found = np.empty_like(w)
    for r in range(groups):
        for j in range(n_key_heads):
            before, after = r * n_key_heads + j, j * groups + r
            found[:, before * size : (before + 1) * size] = w[:, after * size : (after + 1) * size]
    return found
