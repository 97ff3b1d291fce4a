"""Logits of every kind, and filters of every kind, for draws from them."""

from __future__ import annotations

import math

import numpy as np

FILTERS = {
    "none": {},
    "greedy": {"scale": 0},
    "one": {"top_k": 1},
    "k": {"top_k": 5},
    "many": {"top_k": 300},
    "p": {"top_p": 3 << 30},
    "little p": {"top_p": 1},
    "least": {"least": 2 << 20},
    "close": {"top_k": 30, "least": 1 << 17},
    "all": {"top_k": 40, "top_p": 0xF3333333, "least": int(2**20 * math.log2(20))},
    "cold": {"scale": 2**40, "top_k": 2000},
    "hot": {"scale": 1000, "top_p": 1 << 31},
}


def rows_of(n):
    """Return logits of every kind."""
    rng = np.random.default_rng(n)
    rows = [rng.normal(0, 2, n), np.zeros(n), rng.integers(0, 3, n), np.full(n, -np.inf)]
    rows += [rng.normal(0, 1e-41, n), rng.normal(0, 9, n) - 40]
    # The first ones of many thousands are at every fourth of 96 threads.
    peaks = rng.normal(-30, 1e-3, n)
    peaks[np.arange(n) // 4 % 96 < 8] = rng.normal(0, 1e-3)
    rows.append(peaks)
    odd = rng.normal(0, 2, n)
    odd[rng.integers(0, n, 1 + n // 3)] = np.nan
    odd[rng.integers(0, n, 1 + n // 9)] = -np.inf
    rows.append(odd)
    return np.array(rows).astype(np.float32)
