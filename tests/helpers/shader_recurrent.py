"""Runs of the kernels that carry a state from token to token, by the MSL runner."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recurrent_runs import Conv, Delta, Slots
from shader_runs import SENTINEL, run, tiles_for

F32 = NDArray[np.float32]


def _recurrence(slots: Slots, part: int, n_tokens: int, batch: bool) -> bytes:
    """Return struct oxb_recurrence."""
    places = (slots.size(part), slots.offset, slots.n_slots, slots.ring)
    return struct.pack("<QQ4I", *places, n_tokens, batch)


def _rows(y: F32, n: int) -> F32:
    """Return the rows of an output [tokens + 1, stride], after a check of what is left alone."""
    assert (y[-1] == SENTINEL).all()
    assert (y[:, n:] == SENTINEL).all()
    return y[:-1, :n]


def conv(
    case: Conv, recurrent: F32, *, order: str = "random", threads: int = 64
) -> tuple[F32, F32]:
    """Return y [t, channels] and the slots."""
    n_tokens, n_channels = case.x.shape
    args = _recurrence(case.slots, case.part, n_tokens, case.batch)
    strides = (case.x_stride or n_channels, case.y_stride or n_channels)
    args += struct.pack("<QQII8x", *strides, n_channels, case.weight.shape[1])
    sequences = n_tokens if case.batch else 1
    after = run(
        "conv_silu",
        case.arrays(recurrent),
        args,
        groups=(tiles_for(n_channels, threads), sequences, tiles_for(n_tokens // sequences, 16)),
        threads=threads,
        order=order,
    )
    return _rows(after[4], n_channels), after[3]


def delta(
    case: Delta,
    recurrent: F32,
    *,
    order: str = "random",
    simdgroups: int = 4,
    constants: dict[int, Any] | None = None,
    piece: int | None = None,
) -> tuple[F32, F32]:
    """Return y [t, heads, value dim] and the slots; a run takes `piece` heads, or all of them."""
    n_tokens, n_key_heads = case.k.shape[:2]
    heads, key_dim, value_dim = case.shape
    arrays = case.arrays(recurrent)
    strides = [arrays[i].shape[1] for i in (0, 1, 6)]
    args = _recurrence(case.slots, case.part, n_tokens, case.batch) + struct.pack("<3Q", *strides)
    eps, scale = case.more.get("eps", 1e-6), case.more.get("scale", key_dim**-0.5)
    args += struct.pack("<4I2f", n_key_heads, heads, key_dim, value_dim, eps, scale)
    for first in range(0, heads, piece or heads):
        end = min(heads, first + (piece or heads))
        arrays = run(
            "delta_rule",
            arrays,
            args + struct.pack("<2I8x", first, end),
            groups=(value_dim // (8 * simdgroups), end - first, n_tokens if case.batch else 1),
            threads=32 * simdgroups,
            constants={0: key_dim} if constants is None else constants,
            order=order,
        )
    return _rows(arrays[6], case.v[0].size).reshape(case.v.shape), arrays[5]
