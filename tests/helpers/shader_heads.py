"""Shapes of heads and dtypes of caches that the tests of the shaders run over."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest


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

    @property
    def layer_offset(self):
        return self.layer * self.n_kv_heads * self.max_seq * self.head_dim


SHAPES = [(4, 2, 64), (6, 2, 128), (3, 1, 2), (5, 5, 30), (1, 1, 512)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


CACHES = {"f16": np.float16, "f32": np.float32}
every_cache = pytest.mark.parametrize("cache", CACHES)
