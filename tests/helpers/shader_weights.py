"""Weights as the kernels of shaders/ see them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import reference
from cases import dense, random_weight

from oxibonsai import formats, metal
from oxibonsai.quant import QTensor

# One file format for each format of the kernels.
FORMATS = {
    "q1_g128": "Q1_0",
    "q2_g128": "PQ2_0",
    "q2_g64": "Q2_0",
    "f32": "F32",
    "f16": "F16",
    "bf16": "BF16",
    "q8_0": "Q8_0",
    "t1_g128": "PTQ1_0",
}


CODES = ("q1_g128", "q2_g128", "q2_g64", "t1_g128")


every_format = pytest.mark.parametrize("name", FORMATS)


class Matrix(NamedTuple):
    """A weight as the device holds it, and what it means."""

    data: Any  # uint8
    codes_offset: int
    w64: reference.F64


def matrix(q: QTensor) -> Matrix:
    return Matrix(*metal.reformat(q.data, q.format), dense(q))


def random_matrix(name: str, n_rows: int, k: int) -> Matrix:
    return matrix(random_weight(FORMATS[name], n_rows, k))


def columns(name, m):
    """Return the matrix with its scales and loads of codes column by column."""
    n_rows, k = m.w64.shape
    group = formats.get(FORMATS[name]).group_size
    bits = formats.get(FORMATS[name]).bits
    scale_bytes, load_bytes = (4, 12) if name == "t1_g128" else (2, 16)
    n_scales = n_rows * (k // group) * scale_bytes
    scales = m.data[:n_scales].reshape(n_rows, -1, scale_bytes).transpose(1, 0, 2)
    loads = m.data[m.codes_offset :].reshape(n_rows, -1, load_bytes).transpose(1, 0, 2)
    assert loads.shape[0] == k * bits // 128
    gap = np.zeros(m.codes_offset - scales.size, np.uint8)
    return Matrix(np.concatenate([scales.ravel(), gap, loads.ravel()]), m.codes_offset, m.w64)
