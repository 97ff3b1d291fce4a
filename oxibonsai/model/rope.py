"""Rotary position embedding: the angles of every position, scaled for long contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["RopeScaling", "rope_table"]


@dataclass(frozen=True)
class RopeScaling:
    """How the angles are changed for contexts longer than those of the first training.

    Attributes
    ----------
    kind : {"none", "linear", "yarn"}
        ``"linear"`` divides every angle by `factor` (position interpolation); ``"yarn"`` divides
        those of slow pairs and leaves those of fast pairs (Peng et al., YaRN).
    factor : float
        The context's growth, above 0.
    attention_factor : float
        Multiplies cosines and sines, so that a score is multiplied by its square.
    original_context : int
        Positions of the first training; YaRN counts a pair's turns over them.
    beta_fast, beta_slow : float
        Turns from which a pair is fast, and below which it is slow.
    """

    kind: Literal["none", "linear", "yarn"] = "none"
    factor: float = 1.0
    attention_factor: float = 1.0
    original_context: int = 1
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def frequencies(self, head_dim: int, theta: float) -> npt.NDArray[np.float64]:
        """Return the radians that each of the head_dim / 2 pairs turns in one position."""
        plain = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        if self.kind == "none":
            return plain
        if self.kind == "linear":
            return plain / self.factor

        def pair(turns: float) -> float:
            """Return the pair, as a real number, that makes `turns` over the first context."""
            wavelength = self.original_context / (turns * 2 * math.pi)
            return head_dim * math.log(wavelength) / (2 * math.log(theta))

        # Whole pairs, and the upper limit of head_dim - 1, are what models were trained with.
        first = max(math.floor(pair(self.beta_fast)), 0)
        last = min(math.ceil(pair(self.beta_slow)), head_dim - 1)
        ramp = (np.arange(head_dim // 2) - first) / max(last - first, 0.001)
        slow = np.clip(ramp, 0.0, 1.0)
        return plain * (1 - slow) + plain / self.factor * slow


def rope_table(
    head_dim: int, n_positions: int, theta: float, scaling: RopeScaling
) -> npt.NDArray[np.float32]:
    """Return float32 [n_positions, 2, head_dim / 2]: cosines, then sines.

    The angle of pair i at position p is p * theta**(-2 i / head_dim) (Su et al., RoFormer), changed
    by `scaling`. Computed in float64: in float32 an angle near 2,000 radians is off by 1e-4.
    """
    table = np.empty((n_positions, 2, head_dim // 2), np.float32)
    frequencies = scaling.frequencies(head_dim, theta)
    # In pieces: a long context's angles in float64 would be twice the table.
    for start in range(0, n_positions, 4096):
        stop = min(start + 4096, n_positions)
        angles = np.arange(start, stop, dtype=np.float64)[:, None] * frequencies
        table[start:stop, 0] = np.cos(angles) * scaling.attention_factor
        table[start:stop, 1] = np.sin(angles) * scaling.attention_factor
    return table
