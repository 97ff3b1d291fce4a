"""Runs of the ops that carry a state from token to token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import reference
from numpy.typing import NDArray
from op_runs import SENTINEL, run, state

F32 = NDArray[np.float32]
IDLE = 0xFFFFFFFF  # the position of a row without a sequence


def random(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def sized(x: F32, size: float) -> F32:
    """Return x, of which no element is larger than 1 then, times `size`."""
    return (np.clip(x, -1, 1).astype(np.float64) * size).astype(np.float32)


@dataclass(frozen=True)
class Slots:
    """Slots of recurrent states: where a layer's part lies, and how many a sequence has."""

    n_slots: int = 1
    ring: int = 1
    offset: int = 0
    behind: int = 0  # elements of a slot behind the part

    def size(self, part: int) -> int:
        return self.offset + part + self.behind

    def before(self, first: int, position: int) -> int:
        return first + position % self.ring

    def after(self, first: int, position: int, n_tokens: int) -> int:
        return first + (position + n_tokens) % self.ring

    def filled(self, part: int, states: dict[int, Any], fill: Any = SENTINEL) -> F32:
        """Return all slots, those in `states` with their part."""
        slots = np.full((self.n_slots, self.size(part)), fill, np.float32)
        for slot, value in states.items():
            slots[slot, self.offset : self.offset + part] = np.ravel(value)
        return slots

    def part(self, slots: F32, slot: int, shape: Sequence[int]) -> F32:
        of = slots[slot, self.offset : self.offset + int(np.prod(shape))]
        return of.reshape(shape)


def spaced(rows: F32, stride: int | None, fill: Any = SENTINEL) -> F32:
    """Return rows [t, ...] with `stride` elements from one to the next."""
    flat = rows.reshape(len(rows), -1)
    if stride is None:
        return flat
    apart = np.full((len(rows), stride), fill, np.float32)
    apart[:, : flat.shape[1]] = flat
    return apart


@dataclass(frozen=True)
class Conv:
    """A convolution of x [t, channels], and the sequences that its tokens belong to."""

    x: F32
    weight: F32
    slots: Slots = Slots()
    states: tuple[tuple[int, int], ...] = ((0, 0),)  # positions and first slots
    batch: bool = False
    x_stride: int | None = None
    y_stride: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[1] - 1, self.weight.shape[0]

    @property
    def part(self) -> int:
        return int(np.prod(self.shape))

    def tokens(self, start: int, end: int, **changes: Any) -> Conv:
        """Return the same for a part of the tokens."""
        return replace(self, x=self.x[start:end], **changes)

    def arrays(self, recurrent: F32) -> list[NDArray[Any]]:
        """Return x, the weight, the states, the slots and y, of which the last row is no token."""
        states = np.stack([state(p, recurrent=first) for p, first in self.states])
        y = np.full((len(self.x) + 1, self.y_stride or self.shape[1]), SENTINEL)
        return [spaced(self.x, self.x_stride), self.weight, states, recurrent, y]

    def options(self) -> dict[str, Any]:
        return {
            "n_channels": self.shape[1], "width": self.weight.shape[1],
            "slot_size": self.slots.size(self.part), "offset": self.slots.offset,
            "ring": self.slots.ring, "n_tokens": len(self.x), "batch": self.batch,
            "x_stride": self.x_stride, "y_stride": self.y_stride,
        }  # fmt: skip

    def run(self, device: Any, recurrent: F32) -> tuple[F32, F32]:
        """Return y [t, channels] and the slots, after a check of what is left alone."""
        after = run(device, lambda c, *b: c.conv(*b, **self.options()), *self.arrays(recurrent))
        y = after[4]
        assert (y[-1] == SENTINEL).all()
        assert (y[:, self.shape[1] :] == SENTINEL).all()
        return y[:-1, : self.shape[1]], after[3]

    def expected(self, before: Any) -> tuple[Any, Any]:
        return reference.conv_silu(self.x, self.weight, before)


@dataclass(frozen=True)
class Delta:
    """The delta rule over the tokens of one sequence, or one token of each of several."""

    q: F32  # [t, key heads, key dim]
    k: F32
    v: F32  # [t, heads, value dim]
    alpha: F32  # [t, heads]
    beta: F32
    a: F32
    dt_bias: F32
    slots: Slots = Slots()
    states: tuple[tuple[int, int], ...] = ((0, 0),)
    batch: bool = False
    gaps: tuple[int, int, int] = (0, 0, 0)  # behind a row of qkv, of alpha and beta, of y
    more: dict[str, Any] = field(default_factory=dict)  # eps, scale

    @classmethod
    def random(
        cls, tokens: int, heads: int, key_heads: int, key_dim: int, value_dim: int,
        seed: int = 0, **more: Any
    ) -> Delta:  # fmt: skip
        return cls(
            q=random(tokens, key_heads, key_dim, seed=seed),
            k=random(tokens, key_heads, key_dim, seed=seed + 1),
            v=random(tokens, heads, value_dim, seed=seed + 2),
            alpha=random(tokens, heads, seed=seed + 3),
            beta=random(tokens, heads, seed=seed + 4),
            a=-np.exp(random(heads, seed=seed + 5)),
            dt_bias=random(heads, seed=seed + 6),
            **more,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.v.shape[1], self.k.shape[2], self.v.shape[2]

    @property
    def part(self) -> int:
        return int(np.prod(self.shape))

    def tokens(self, start: int, end: int, **changes: Any) -> Delta:
        """Return the same for a part of the tokens."""
        names = ("q", "k", "v", "alpha", "beta")
        return replace(self, **{n: getattr(self, n)[start:end] for n in names}, **changes)

    def arrays(self, recurrent: F32) -> list[NDArray[Any]]:
        n = len(self.q)
        qkv = np.concatenate([part.reshape(n, -1) for part in (self.q, self.k, self.v)], axis=1)
        ab = np.concatenate([self.alpha, self.beta], axis=1)
        gaps = dict(zip(("qkv", "ab", "y"), self.gaps, strict=True))
        y = np.full((n + 1, self.v[0].size + gaps["y"]), SENTINEL)
        states = np.stack([state(p, recurrent=first) for p, first in self.states])
        return [
            spaced(qkv, qkv.shape[1] + gaps["qkv"]), spaced(ab, ab.shape[1] + gaps["ab"]),
            self.a, self.dt_bias, states, recurrent, y,
        ]  # fmt: skip

    def options(self) -> dict[str, Any]:
        heads, key_dim, value_dim = self.shape
        row = 2 * self.k[0].size + self.v[0].size
        lengths = (row, 2 * heads, heads * value_dim)
        strides = {
            name: n + gap
            for name, n, gap in zip(
                ("qkv_stride", "ab_stride", "y_stride"), lengths, self.gaps, strict=True
            )
            if gap
        }
        return {
            "n_key_heads": self.k.shape[1], "n_value_heads": heads, "key_dim": key_dim,
            "value_dim": value_dim, "slot_size": self.slots.size(self.part),
            "offset": self.slots.offset, "ring": self.slots.ring, "n_tokens": len(self.q),
            "batch": self.batch, **strides, **self.more,
        }  # fmt: skip

    def run(self, device: Any, recurrent: F32) -> tuple[F32, F32]:
        """Return y [t, heads, value dim] and the slots, after a check of what is left alone."""
        after = run(device, lambda c, *b: c.delta(*b, **self.options()), *self.arrays(recurrent))
        y, row = after[6], self.v[0].size
        assert (y[-1] == SENTINEL).all()
        assert (y[:, row:] == SENTINEL).all()
        return y[:-1, :row].reshape(self.v.shape), after[5]

    def expected(self, before: Any) -> tuple[Any, Any]:
        return reference.delta_rule(
            self.q, self.k, self.v, self.alpha, self.beta, self.a, self.dt_bias, before, **self.more
        )


Recurrent = Conv | Delta


def in_chunks(
    device: Any, make: Callable[[int, int, int], Recurrent], recurrent: F32, sizes: Sequence[int]
) -> tuple[F32, F32]:
    """Run `make(start, end, position)` chunk by chunk; return all outputs and the last slots."""
    outputs, start = [], 0
    for size in sizes:
        y, recurrent = make(start, start + size, start).run(device, recurrent)
        outputs.append(y)
        start += size
    return np.concatenate(outputs), recurrent


def same_bits(a: F32, b: F32) -> bool:
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())
