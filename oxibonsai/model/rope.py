"""Rotary position embedding: the angles of every position."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["rope_table"]


def rope_table(head_dim: int, n_positions: int, theta: float) -> npt.NDArray[np.float32]:
    """Return float32 [n_positions, 2, head_dim / 2]: cosines, then sines.

    The angle of pair i at position p is p * theta**(-2 i / head_dim) (Su et al., RoFormer).
    Computed in float64: in float32 an angle near 2,000 radians is off by 1e-4.
    """
    table = np.empty((n_positions, 2, head_dim // 2), np.float32)
    inverse = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    # In pieces: a long context's angles in float64 would be twice the table.
    for start in range(0, n_positions, 4096):
        stop = min(start + 4096, n_positions)
        angles = np.arange(start, stop, dtype=np.float64)[:, None] * inverse
        np.cos(angles, out=table[start:stop, 0], casting="same_kind")
        np.sin(angles, out=table[start:stop, 1], casting="same_kind")
    return table
