"""Multiply a random 1-bit matrix by vectors from four threads, and compare with NumPy."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import product

from oxibonsai import quant

rng = np.random.default_rng(0)
weight = quant.quantize(rng.standard_normal((256, 512), np.float32), "Q1_0")
dense = quant.dequantize(weight).astype(np.float64)
vectors = rng.standard_normal((4, 512), np.float32)


def multiply(x: np.ndarray) -> np.ndarray:
    matrix = product.Matrix(weight.data, 512)
    y = np.empty(256, np.float32)
    matrix.multiply(x, y)
    return y


with ThreadPoolExecutor(4) as pool:
    results = np.array(list(pool.map(multiply, vectors)))
expected = vectors @ dense.T
error = np.linalg.norm(results - expected) / np.linalg.norm(expected)
assert error < 1e-6, error
print(f"4 products of a {weight.shape[0]} x {weight.shape[1]} matrix, error {error:.1e}")
