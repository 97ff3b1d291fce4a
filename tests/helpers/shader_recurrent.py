"""Runs of the kernels that carry a state from token to token, by the MSL runner."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from shader_runs import SENTINEL, run, tiles_for

F32 = NDArray[np.float32]
IDLE = 2**32 - 1
"""The position of a sequence that has no token."""


class Slots(NamedTuple):
    """Where a layer's part of the recurrent states lies."""

    n_slots: int = 3
    ring: int = 1
    before: int = 0
    """Elements of a slot before the part, and as many after it."""

    def offset(self, size: int) -> int:
        """Return the elements before the part of `size` elements in a slot of its own."""
        return self.before

    def stride(self, size: int) -> int:
        """Return the elements of a slot."""
        return size + 2 * self.before

    def args(self, size: int, n_tokens: int, batch: bool) -> bytes:
        """Return struct oxb_recurrence."""
        stride = self.stride(size)
        return struct.pack("<QQ4I", stride, self.before, self.n_slots, self.ring, n_tokens, batch)

    def empty(self, size: int) -> F32:
        """Return a buffer of states of which nothing may be read."""
        return np.full((self.n_slots, self.stride(size)), np.nan, np.float32)

    def part(self, buffer: F32, slot: int, size: int) -> F32:
        """Return the part in a slot, to read or to write."""
        return buffer[slot, self.before : self.before + size]


def states(*places: tuple[int, int]) -> NDArray[np.uint32]:
    """Return struct oxb_decode_state of sequences, by position and first slot."""
    return np.array([(p, 0xAAAA, 0xBBBB, slot) for p, slot in places], np.uint32)


def strided(rows: F32, stride: int) -> F32:
    """Return rows that are `stride` apart, with what no kernel may read between them."""
    spread = np.full((len(rows), stride), np.nan, np.float32)
    spread[:, : rows.shape[1]] = rows
    return spread.reshape(-1)[: (len(rows) - 1) * stride + rows.shape[1]].copy()


def rows_of(y: F32, n: int, width: int, stride: int) -> F32:
    """Return the rows of an output whose gaps were left as they were."""
    whole = np.full(n * stride, SENTINEL)
    whole[: len(y)] = y
    assert (whole.reshape(n, stride)[:, width:] == SENTINEL).all()
    return whole.reshape(n, stride)[:, :width]


def conv(
    x: F32,
    weight: F32,
    state: NDArray[np.uint32],
    recurrent: F32,
    slots: Slots,
    *,
    batch: bool = False,
    order: str = "random",
    threads: int = 64,
    gap: int = 0,
) -> tuple[F32, F32]:
    """Return the output and the states after it."""
    (n_tokens, n_channels), width = x.shape, weight.shape[1]
    stride = n_channels + gap
    args = slots.args((width - 1) * n_channels, n_tokens, batch)
    args += struct.pack("<QQII8x", stride, stride, n_channels, width)
    y = np.full((n_tokens - 1) * stride + n_channels, SENTINEL)
    sequences = n_tokens if batch else 1
    after = run(
        "conv_silu",
        [strided(x, stride), weight, state, recurrent, y],
        args,
        groups=(tiles_for(n_channels, threads), sequences, tiles_for(n_tokens // sequences, 16)),
        threads=threads,
        order=order,
    )
    return rows_of(after[4], n_tokens, n_channels, stride), after[3]


class Delta(NamedTuple):
    """A shape of the delta rule, and what its tokens have in common."""

    n_key_heads: int
    n_value_heads: int
    key_dim: int
    value_dim: int
    a: F32
    dt_bias: F32
    eps: float = 1e-6

    @property
    def size(self) -> int:
        """Elements of a state."""
        return self.n_value_heads * self.key_dim * self.value_dim

    @property
    def width(self) -> int:
        """Elements of a token's queries, keys and values."""
        return 2 * self.n_key_heads * self.key_dim + self.n_value_heads * self.value_dim

    @property
    def scale(self) -> float:
        """What queries are multiplied by."""
        return float(np.float32(self.key_dim**-0.5))


def random_delta(
    n_key_heads: int, n_value_heads: int, key_dim: int, value_dim: int, seed: int = 0
) -> Delta:
    """Return heads that forget at different rates."""
    rng = np.random.default_rng([seed, n_value_heads, key_dim, value_dim])
    a = -np.exp(rng.uniform(-3, 1, n_value_heads)).astype(np.float32)
    dt_bias = rng.uniform(-2, 2, n_value_heads).astype(np.float32)
    return Delta(n_key_heads, n_value_heads, key_dim, value_dim, a, dt_bias)


def delta(
    shape: Delta,
    qkv: F32,
    alpha_beta: F32,
    state: NDArray[np.uint32],
    recurrent: F32,
    slots: Slots,
    *,
    batch: bool = False,
    order: str = "random",
    simdgroups: int = 4,
    gap: int = 0,
    constants: dict[int, Any] | None = None,
) -> tuple[F32, F32]:
    """Return the output and the states after it."""
    n_tokens, heads = len(qkv), shape.n_value_heads
    values = heads * shape.value_dim
    args = slots.args(shape.size, n_tokens, batch)
    args += struct.pack("<3Q", shape.width + gap, 2 * heads + gap, values + gap)
    args += struct.pack("<4I2f", *shape[:4], shape.eps, shape.scale)
    sequences = n_tokens if batch else 1
    after = run(
        "delta_rule",
        [
            strided(qkv, shape.width + gap),
            strided(alpha_beta, 2 * heads + gap),
            shape.a,
            shape.dt_bias,
            state,
            recurrent,
            np.full((n_tokens - 1) * (values + gap) + values, SENTINEL),
        ],
        args,
        groups=(shape.value_dim // (8 * simdgroups), heads, sequences),
        threads=32 * simdgroups,
        constants={0: shape.key_dim} if constants is None else constants,
        order=order,
    )
    return rows_of(after[6], n_tokens, values, values + gap), after[5]
