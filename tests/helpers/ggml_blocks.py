"""Random blocks of the ggml types that are converted when they are loaded, and their values."""

from __future__ import annotations

import warnings

import numpy as np
from gguf import GGMLQuantizationType, dequantize
from numpy.typing import NDArray

from oxibonsai.formats import CONVERTED

# Bytes of a block in which half scales stand.
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ1_S": (0,),
    "IQ1_M": (48,),
    "TQ1_0": (52,),
    "MXFP4": (),
    "NVFP4": (),
}


def set_half(name: str, blocks: NDArray[np.uint8], at: int, half: NDArray[np.float16]) -> None:
    """Put a half [n] into byte `at` of each block."""
    octets = half.astype("<f2").view(np.uint8).reshape(-1, 2)
    if name == "IQ1_M":  # A nibble in the upper half of every other byte, the lowest first.
        nibbles = np.stack([octets & 15, octets >> 4], axis=-1).reshape(-1, 4)
        blocks[:, at + 1 : at + 8 : 2] = blocks[:, at + 1 : at + 8 : 2] & 15 | nibbles << 4
    else:
        blocks[:, at : at + 2] = octets


def random_blocks(name: str, n_rows: int, k: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return rows of random bytes with finite scales of both signs, uint8 [n_rows, bytes]."""
    t = CONVERTED[name]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n_rows * k // t.block_weights, t.block_bytes), np.uint8)
    for at in HALVES[name]:
        set_half(name, blocks, at, rng.standard_normal(len(blocks)).astype(np.float16))
    return blocks.reshape(n_rows, -1)


def weight_blocks(name: str, n_rows: int, k: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return random rows whose weights have the size of a layer's, about 1 / sqrt(k)."""
    t = CONVERTED[name]
    rng = np.random.default_rng(seed)
    raw = random_blocks(name, n_rows, k, seed)
    blocks = raw.reshape(-1, t.block_bytes)
    size = k**-0.5
    if name == "MXFP4":
        blocks[:, 0] = rng.integers(-1, 2, len(blocks)) + round(128 + np.log2(size / 6))
    elif name == "NVFP4":
        blocks[:, :4] = rng.integers(8, 25, (len(blocks), 4))
    else:
        for at in HALVES[name]:
            set_half(name, blocks, at, np.ones(len(blocks), np.float16))
        scale = size / values(raw, name).std()
        for at in HALVES[name]:
            half = (scale * rng.uniform(0.5, 1.5, len(blocks))).astype(np.float16)
            set_half(name, blocks, at, half)
    return raw


def values(raw: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    """Return the weights of rows as the package gguf decodes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: NDArray[np.float32] = dequantize(raw, GGMLQuantizationType[name])
    return found
