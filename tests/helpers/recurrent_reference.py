"""The parts of recurrent layers and rotations, in float64, from their definitions."""

from __future__ import annotations

import math

import numpy as np
import reference
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]


def sigmoid(x: ArrayLike) -> F64:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def silu(x: ArrayLike) -> F64:
    return np.asarray(x, np.float64) * sigmoid(x)


def conv(x: ArrayLike, weight: ArrayLike, before: ArrayLike) -> tuple[F64, F64]:
    """Return the output for each token, and the inputs that the next tokens need.

    x [tokens][channels], weight [channels][width], before [width - 1][channels].
    """
    x, w = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    inputs = np.concatenate([np.asarray(before, np.float64), x])
    y = np.zeros(x.shape)
    for t in range(len(x)):
        for j in range(w.shape[1]):
            y[t] += w[:, j] * inputs[t + j]
    return silu(y), inputs[len(x) :]


def softplus(x: float) -> float:
    return x if x > 20 else math.log1p(math.exp(x))


def delta(
    qkv: ArrayLike,
    alpha_beta: ArrayLike,
    a: ArrayLike,
    dt_bias: ArrayLike,
    before: ArrayLike,
    *,
    n_key_heads: int,
    eps: float,
    scale: float,
) -> tuple[F64, F64]:
    """Return the output for each token, and the state after the last.

    before [value heads][key_dim][value_dim].
    """
    qkv, alpha_beta = np.asarray(qkv, np.float64), np.asarray(alpha_beta, np.float64)
    a, dt_bias = np.asarray(a, np.float64), np.asarray(dt_bias, np.float64)
    state = np.array(before, np.float64)
    n_heads, key_dim, value_dim = state.shape
    keys = n_key_heads * key_dim
    y = np.zeros((len(qkv), n_heads, value_dim))
    for t, row in enumerate(qkv):
        q, k = row[:keys].reshape(-1, key_dim), row[keys : 2 * keys].reshape(-1, key_dim)
        v = row[2 * keys :].reshape(n_heads, value_dim)
        for h in range(n_heads):
            own_q, own_k = q[h % n_key_heads], k[h % n_key_heads]
            own_q = own_q / np.sqrt((own_q**2).sum() + eps) * scale
            own_k = own_k / np.sqrt((own_k**2).sum() + eps)
            state[h] *= np.exp(a[h] * softplus(alpha_beta[t, h] + dt_bias[h]))
            change = (v[h] - own_k @ state[h]) * sigmoid(alpha_beta[t, n_heads + h])
            state[h] += np.outer(own_k, change)
            y[t, h] = own_q @ state[h]
    return y.reshape(len(qkv), -1), state


def gate(
    x: ArrayLike, z: ArrayLike, activation: str, norm: ArrayLike | None = None, eps: float = 0.0
) -> F64:
    """x and z [...][head_dim]."""
    x = np.asarray(x, np.float64)
    if norm is not None:
        rows = x.reshape(-1, x.shape[-1])
        x = np.asarray(reference.rmsnorm(rows, norm, eps), np.float64).reshape(x.shape)
    return {"sigmoid": sigmoid, "silu": silu}[activation](z) * x


def sylvester(block: int) -> F64:
    """Return H: H[r][c] = (-1)^(ones in r & c) / sqrt(block)."""
    r = np.arange(block)
    ones = np.array([[(i & j).bit_count() for j in range(block)] for i in r])
    return np.where(ones % 2 == 1, -1.0, 1.0) / np.sqrt(block)


def permute_heads(x: ArrayLike, head_size: int, n_groups: int) -> F64:
    """Move head r * K + j to j * n_groups + r, in each vector."""
    x = np.asarray(x, np.float64)
    each = x.shape[-1] // head_size // n_groups
    heads = x.reshape(*x.shape[:-1], n_groups, each, head_size)
    return heads.swapaxes(-3, -2).reshape(x.shape)


def hadamard(
    x: ArrayLike,
    signs: ArrayLike,
    block: int,
    *,
    norm: ArrayLike | None = None,
    eps: float = 0.0,
    inverse: bool = False,
    head_size: int = 0,
    n_groups: int = 1,
) -> F64:
    """x [vectors][k]."""
    x, signs = np.atleast_2d(np.asarray(x, np.float64)), np.asarray(signs, np.float64)
    if norm is not None:
        x = np.asarray(reference.rmsnorm(x, norm, eps), np.float64)
    if n_groups > 1:
        x = permute_heads(x, head_size, n_groups)
    if not inverse:
        x = x * signs
    y = (x.reshape(len(x), -1, block) @ sylvester(block)).reshape(x.shape)
    return y * signs if inverse else y
