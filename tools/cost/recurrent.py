"""Dispatches of the layers that carry a state from token to token, and of rotations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cost import counts
from cost.chips import Chip
from cost.compiled import DELTA
from cost.estimate import Loop, Work
from cost.kernels import small

COLUMNS = 32
"""Of a threadgroup of four SIMD-groups (shaders/recurrent.metal)."""
AHEAD = 4
"""Tokens of a block, which is loaded while the one before is computed."""


@dataclass(frozen=True)
class Recurrent:
    """The heads of Gated DeltaNet."""

    n_key_heads: int
    n_value_heads: int
    key_dim: int
    value_dim: int
    width: int
    """Of the convolution."""

    @property
    def values(self) -> int:
        """Elements of a token's values."""
        return self.n_value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Elements of a token's queries, keys and values."""
        return 2 * self.n_key_heads * self.key_dim + self.values

    @property
    def state_bytes(self) -> int:
        """Bytes of the heads' state."""
        return 4 * self.values * self.key_dim


def convolution(chip: Chip, shape: Recurrent, tokens: int) -> Work:
    """Return the convolution along some tokens of a sequence."""
    # The weight, the state before and after, tokens in and out. The position, then the state, then
    # the stores.
    words = (shape.width + 2 * (shape.width - 1) + 2 * tokens) * shape.channels
    groups = math.ceil(shape.channels / 64) * math.ceil(tokens / 16)
    return small(chip, 4.0 * words, 3.0, groups)


def delta_rule(chip: Chip, shape: Recurrent, tokens: int) -> Work:
    """Return the delta rule over some tokens of a sequence, which takes them in turn."""
    own = counts.from_code(DELTA) if chip.family == "nvidia" else counts.delta_on_apple()
    ahead = min(tokens, AHEAD)
    pipes = {name: ahead * n for name, n in own.pipes.items()}
    loop = Loop(pipes, own.registers, own.group_memory, own.source)
    groups = shape.n_value_heads * shape.value_dim // COLUMNS
    nbytes = 2.0 * shape.state_bytes + 4.0 * tokens * (shape.channels + shape.values)
    # The position, then the state and the first tokens at once.
    return Work(loop, groups, 4, math.ceil(tokens / ahead), nbytes, near_waits=1)


def gate(chip: Chip, values: int, tokens: int) -> Work:
    """Return the norm of heads, and their gate."""
    return small(chip, 12.0 * values * tokens, 2.0, math.ceil(values * tokens / 512))


def rotation(chip: Chip, k: int, tokens: int, *, norm: bool) -> Work:
    """Return the transform of vectors in blocks of 1024, each of which adds up the norm anew."""
    blocks = math.ceil(k / 1024) * tokens
    return small(chip, 12.0 * k * tokens, 2.0 if norm else 1.0, blocks)
