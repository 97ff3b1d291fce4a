"""Single operations that Commands records, run on a device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from cases import activations, contents

SENTINEL = np.float32(-12345.5)


def run(device, record, *arrays):
    """Upload `arrays`, run what `record(commands, *buffers)` records, return them as left."""
    arrays = [np.ascontiguousarray(a) for a in arrays]
    with device.commands() as commands:
        buffers = [device.upload(a) for a in arrays]
        record(commands, *buffers)
        commands.replay()
        return [contents(b, a.dtype).reshape(a.shape) for a, b in zip(arrays, buffers, strict=True)]


def state(position, tokens=0, pages=0, recurrent=0xCCCC):
    return np.array([position, tokens, pages, recurrent], np.uint32)


class Heads(NamedTuple):
    """A shape of attention, and the arrays that go with it."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_seq: int
    layer: int = 0
    kv_dtype: str = "f32"

    @property
    def shape(self):
        return self._asdict()

    @property
    def n_qkv(self):
        return self.n_heads + 2 * self.n_kv_heads

    def cache(self, layers, fill=SENTINEL):
        dtype = np.float16 if self.kv_dtype == "f16" else np.float32
        shape = (layers, self.n_kv_heads, self.max_seq, self.head_dim)
        return np.full(shape, fill).astype(dtype)


def rope_table(positions, dim, theta=1e6):
    angle = np.arange(positions)[:, None] * theta ** (-2 * np.arange(dim // 2) / dim)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def qk_norm_rope(device, heads, position, qkv, rope_rows=None):
    q_norm, k_norm = 1 + activations(heads.head_dim, 4) / 4, 1 + activations(heads.head_dim, 5) / 4
    after = run(
        device,
        lambda c, *b: c.qk_norm_rope(*b, eps=1e-5, **heads.shape),
        qkv,
        q_norm,
        k_norm,
        rope_table(rope_rows or heads.max_seq, heads.head_dim),
        state(position),
    )
    return after[0], q_norm, k_norm


def random_heads(heads, length, seed=0, size=1.0):
    rng = np.random.default_rng([seed, length, *heads[:3]])
    dtype = np.float16 if heads.kv_dtype == "f16" else np.float32
    kv = (length, heads.n_kv_heads, heads.head_dim)
    q = (rng.standard_normal((heads.n_heads, heads.head_dim)) * size).astype(np.float32)
    k = (rng.standard_normal(kv) * size).astype(dtype)
    return q, k, rng.standard_normal(kv).astype(dtype)
