"""Shapes of heads and dtypes of caches that the tests of the shaders run over."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from kv_caches import ALIGNED, ELEMENTS, KvCache


class Heads(NamedTuple):
    """A shape of attention."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_seq: int
    layer: int = 0

    @property
    def n_qkv(self):
        return self.n_heads + 2 * self.n_kv_heads

    def caches(self, cache, fills=(0xFF, 0xFF), layers_after=0):
        """Return caches of keys and values, of one page."""
        return [
            KvCache(
                cache,
                self.n_kv_heads,
                self.head_dim,
                self.max_seq,
                n_layers=self.layer + 1 + layers_after,
                fill=fill,
                keys=i == 0,
            )
            for i, fill in enumerate(fills)
        ]


SHAPES = [(4, 2, 64), (6, 2, 128), (3, 1, 2), (5, 5, 30), (12, 2, 256), (1, 1, 512)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)

every_cache = pytest.mark.parametrize("cache", ELEMENTS)
every_cache_and_shape = pytest.mark.parametrize(
    ("cache", "shape"),
    [(cache, shape) for cache in ELEMENTS for shape in SHAPES if shape[2] % ALIGNED[cache] == 0],
    ids=str,
)
