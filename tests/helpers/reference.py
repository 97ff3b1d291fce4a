"""The definitions in float64, from which every device is judged.

Written from the format tables and formulas, without the package. Slow and plain on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


# Weight formats


class Block(NamedTuple):
    """Weights and bytes of a block, byte offset of the half scale and of the codes."""

    weights: int
    size: int
    scale: int
    codes: int


BLOCKS = {
    "Q1_0": Block(128, 18, 0, 2),
    "TQ2_0_g128": Block(128, 34, 32, 0),
    "Q2_0": Block(64, 18, 0, 2),
    "Q2_0_g128": Block(128, 34, 0, 2),
    "PQ2_0": Block(128, 34, 0, 2),
    "PTQ1_0": Block(128, 28, 26, 0),
    "TQ2_0": Block(256, 66, 64, 0),
    "Q8_0": Block(32, 34, 0, 2),
}

LEVELS = {
    "Q1_0": (-1.0, 1.0),
    "TQ2_0_g128": (-1.0, 0.0, 1.0, 0.0),
    "Q2_0": (-1.0, 0.0, 1.0, 2.0),
    "Q2_0_g128": (-1.0, 0.0, 1.0, 2.0),
    "PQ2_0": (-1.0, 0.0, 1.0, 2.0),
    "PTQ1_0": (-1.0, 0.0, 1.0),
    "TQ2_0": (-1.0, 0.0, 1.0, 2.0),
}


def code(block_codes: NDArray[np.int64], format_name: str, j: int) -> NDArray[np.int64]:
    """Return the code of weight `j` in every block; `block_codes` holds int [blocks, bytes]."""
    if format_name == "Q1_0":
        return block_codes[:, j // 8] >> (j % 8) & 1
    if format_name == "TQ2_0":
        half, within = divmod(j, 128)
        pair, byte = divmod(within, 32)
        return block_codes[:, 32 * half + byte] >> (2 * pair) & 3
    if format_name == "PTQ1_0":
        if j < 80:
            byte, digit = j & 15, j >> 4
        elif j < 120:
            byte, digit = 16 + ((j - 80) & 7), (j - 80) >> 3
        else:
            byte, digit = 24 + ((j - 120) & 1), (j - 120) >> 1
        rest: NDArray[np.int64] = block_codes[:, byte] * 3**digit % 256
        return rest * 3 >> 8
    return block_codes[:, j // 4] >> (2 * (j % 4)) & 3


def dequantize_blocks(
    raw: bytes | NDArray[np.uint8], format_name: str, shape: tuple[int, int]
) -> F64:
    """Return the weights [n_rows, k] that `raw` holds; infinite and NaN scales by IEEE rules."""
    octets = np.frombuffer(bytes(raw), np.uint8)
    with np.errstate(invalid="ignore"):
        if format_name == "F32":
            return octets.view("<f4").astype(np.float64).reshape(shape)
        if format_name == "F16":
            return octets.view("<f2").astype(np.float64).reshape(shape)
        if format_name == "BF16":
            high_half = octets.view("<u2").astype("<u4") << 16
            return high_half.view("<f4").astype(np.float64).reshape(shape)
        block = BLOCKS[format_name]
        assert shape[1] % block.weights == 0
        blocks = octets.reshape(-1, block.size)
        d = blocks[:, block.scale : block.scale + 2].copy().view("<f2")[:, 0].astype(np.float64)
        codes = blocks[:, block.codes :].astype(np.int64)
        weights = np.empty((len(blocks), block.weights))
        for j in range(block.weights):
            if format_name == "Q8_0":
                level = codes[:, j] - 256 * (codes[:, j] > 127)
            else:
                level = np.array(LEVELS[format_name])[code(codes, format_name, j)]
            weights[:, j] = level * d
    return weights.reshape(shape)


# Operations


def gemv(w64: F64, x: NDArray[Any]) -> F64:
    """Return W x for W [n_rows, k] and x [k]; NaN and infinities by IEEE rules."""
    x64 = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore"):
        return np.array([np.sum(row * x64) for row in w64])


def gemv_bound(w64: F64, x: NDArray[Any], r: F64) -> float:
    """Return the largest ||y - r|| that a GEMV with float32 activations may have."""
    x64 = np.abs(np.asarray(x, np.float64))
    magnitude = np.linalg.norm(gemv(np.abs(w64), x64)) / math.sqrt(w64.shape[1])
    return 1e-6 * max(float(np.linalg.norm(r)), float(magnitude))


def int8_bound(w64: F64, x: NDArray[Any]) -> F64:
    """Return for each row how far W x may be off where x is rounded to int8 in blocks of 16.

    The largest of a block is 127 steps, and each activation is off by half a step at the most.
    """
    half_steps = np.abs(np.asarray(x, np.float64)).reshape(-1, 16).max(axis=1) / 254
    sizes = np.abs(w64).reshape(len(w64), -1, 16).sum(axis=2)
    result: F64 = (sizes @ half_steps) * (1 + 1e-5)
    return result


def rmsnorm(x: NDArray[Any], weight: NDArray[Any], eps: float) -> F64:
    """Normalise the last axis by its root mean square, then scale by `weight`."""
    x64 = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore"):
        mean_square = np.mean(x64 * x64, axis=-1, keepdims=True)
        result: F64 = x64 / np.sqrt(mean_square + eps) * np.asarray(weight, np.float64)
    return result


def silu(x: F64) -> F64:
    """Return x times its logistic sigmoid."""
    with np.errstate(over="ignore", invalid="ignore"):
        result: F64 = x / (1.0 + np.exp(-x))
    return result


def swiglu(gate: F64, up: F64) -> F64:
    """Return silu(gate) * up."""
    with np.errstate(invalid="ignore"):
        return silu(gate) * up


def swiglu_gate_up(w64: F64, x: NDArray[Any]) -> F64:
    """Return silu(G x) * (U x) for the rows of G, then those of U, in one matrix."""
    both = gemv(w64, x)
    inter = len(both) // 2
    return swiglu(both[:inter], both[inter:])


def ffn_phase(
    hidden: NDArray[Any],
    attn_out: NDArray[Any],
    norm_weight: NDArray[Any],
    w_o: F64,
    w_gate_up: F64,
    w_down: F64,
    eps: float,
) -> F64:
    """Return the hidden state after the output projection and the feed-forward block."""
    state = np.asarray(hidden, np.float64) + gemv(w_o, attn_out)
    inner = swiglu_gate_up(w_gate_up, rmsnorm(state, norm_weight, eps))
    return state + gemv(w_down, inner)


def rope_frequency(i: int, dim: int, theta: float, scaling: Mapping[str, Any]) -> float:
    """Return what pair i of dim / 2 turns by in one position, under a scaling of RoPE.

    `scaling` has type, and for "linear" and "yarn" factor; for "yarn" also original, beta_fast and
    beta_slow: pairs that make at least beta_fast turns over the original context keep their
    frequency, those that make at most beta_slow have it divided by the factor, and between these
    pairs, rounded outward to whole ones, the shares change linearly.
    """
    frequency: float = theta ** (-2 * i / dim)
    if scaling["type"] == "linear":
        return frequency / float(scaling["factor"])
    if scaling["type"] == "yarn":
        # The pair whose wavelength 2 pi theta^(2 i / dim) goes `turns` times into the context.
        bounds = [
            dim / 2 * math.log(scaling["original"] / (2 * math.pi * turns), theta)
            for turns in (scaling["beta_fast"], scaling["beta_slow"])
        ]
        low, high = max(math.floor(bounds[0]), 0), min(math.ceil(bounds[1]), dim - 1)
        share = float(i > low) if low >= high else min(max((i - low) / (high - low), 0.0), 1.0)
        return frequency * (1 - share) + frequency / float(scaling["factor"]) * share
    return frequency


def rope(
    x: NDArray[Any],
    position: int | NDArray[np.integer[Any]],
    theta: float,
    scaling: Mapping[str, Any] | None = None,
    *,
    rotary_dim: int = 0,
    style: str = "neox",
) -> F64:
    """Rotate pair i of x [..., heads, dim] by position * theta^(-2 i / rotary_dim).

    Pair i is elements i and i + rotary_dim / 2 for the style "neox", elements 2 i and 2 i + 1 for
    "interleaved"; elements from rotary_dim on stay as they are, and 0 stands for dim. `position`
    is one integer, or one for each index of the axes before heads. `scaling` is that of
    rope_frequency, with attention_factor, which multiplies what was rotated.
    """
    result = np.array(x, np.float64)
    dim = rotary_dim or result.shape[-1]
    pair = np.arange(dim // 2)
    first, second = {
        "neox": (pair, pair + dim // 2),
        "interleaved": (2 * pair, 2 * pair + 1),
    }[style]
    scaling = scaling or {"type": "none", "attention_factor": 1.0}
    frequency = np.array([rope_frequency(i, dim, theta, scaling) for i in pair])
    angle = np.asarray(position, np.float64)[..., None, None] * frequency
    cos, sin = (f(angle) * scaling["attention_factor"] for f in (np.cos, np.sin))
    a, b = result[..., first], result[..., second]
    with np.errstate(invalid="ignore"):
        result[..., first], result[..., second] = a * cos - b * sin, b * cos + a * sin
    return result


def rope_neox(
    x: NDArray[Any],
    position: int | NDArray[np.integer[Any]],
    theta: float,
    scaling: Mapping[str, Any] | None = None,
) -> F64:
    """Rotate whole heads in the style "neox"."""
    return rope(x, position, theta, scaling)


def add_bias(y: NDArray[Any], bias: NDArray[Any]) -> F64:
    """Return y [..., n] + bias [n]."""
    with np.errstate(invalid="ignore"):
        result: F64 = np.asarray(y, np.float64) + np.asarray(bias, np.float64)
    return result


def attention(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any]) -> F64:
    """Return the causal attention of q [t, heads, dim] over k and v [n, kv heads, dim].

    The queries are the last t of the n positions. Query head h reads K/V head
    h // (heads / kv heads). Scores are scaled by 1 / sqrt(dim).
    """
    q64, k64, v64 = (np.asarray(a, np.float64) for a in (q, k, v))
    t, n_heads, dim = q64.shape
    n, n_kv, _ = k64.shape
    out = np.empty_like(q64)
    for i in range(t):
        seen = n - t + i + 1
        for head in range(n_heads):
            kv = head // (n_heads // n_kv)
            scores = k64[:seen, kv] @ q64[i, head] / math.sqrt(dim)
            weights = np.exp(scores - scores.max())
            out[i, head] = weights @ v64[:seen, kv] / weights.sum()
    return out


def hadamard(x: NDArray[Any]) -> NDArray[np.float32]:
    """Return the Walsh-Hadamard transform of columns of 32 of x [..., n], in float32.

    Element n / 32 * a + b is number a of column b. Applied twice, it gives 32 times x.
    """
    x32 = np.asarray(x, np.float32)
    y = x32.reshape(*x32.shape[:-1], 2, 2, 2, 2, 2, x32.shape[-1] // 32)
    with np.errstate(all="ignore"):
        for axis in range(-2, -7, -1):  # neighbours first
            low, high = np.split(y, 2, axis=axis)
            y = np.concatenate([low + high, low - high], axis=axis)
    return y.reshape(x32.shape)


def quantize_q8(x: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Return the 8-bit elements of x [..., n], and the words [..., n / 16] behind them.

    The last word is the unit, a bfloat16: the largest magnitude / 255 in float32, rounded up. The
    others have a bit for each element but the last 16. Twice an element and its bit are x / unit,
    in float32, rounded to nearest even; each of the last 16 is x / unit / 2, rounded and cut to
    -127..127. Where an element of x is not finite the unit is NaN; then, and where the unit is 0,
    elements and bits are 0.
    """
    x32 = np.asarray(x, np.float32)
    finite = np.isfinite(x32).all(axis=-1, keepdims=True)
    largest = np.abs(np.where(finite, x32, 0)).max(axis=-1, keepdims=True)
    bits = (largest / np.float32(255)).astype(np.float32).view(np.uint32) + np.uint32(0xFFFF)
    unit = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    with np.errstate(all="ignore"):
        x32 = np.where(finite & (unit > 0), x32 / unit, np.float32(0))
    steps = np.rint(x32[..., :-16]).astype(np.int64)
    last = np.clip(np.rint(x32[..., -16:] / 2), -127, 127)
    elements = np.concatenate([steps // 2, last], axis=-1).astype(np.int8)
    shape = (*steps.shape[:-1], steps.shape[-1] // 16, 16)  # of no rows too
    each = (steps % 2).reshape(shape) << np.arange(16)
    unit_word = np.where(finite, bits >> 16, 0x7FC0)
    return elements, np.concatenate([each.sum(axis=-1), unit_word], axis=-1).astype(np.uint16)


def dequantize_q8(elements: NDArray[np.int8], words: NDArray[np.uint16]) -> F64:
    """Return what quantize_q8 keeps of x."""
    unit = (words[..., -1:].astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    low = words[..., :-1, None] >> np.arange(16, dtype=np.uint16) & 1
    steps = 2 * elements.astype(np.float64)
    steps[..., :-16] += low.reshape(*words.shape[:-1], 16 * (words.shape[-1] - 1))
    result: F64 = steps * unit
    return result


def conv_silu(x: NDArray[Any], weight: NDArray[Any], before: NDArray[Any]) -> tuple[F64, F64]:
    """Return silu of the causal convolution of x [t, c] by weight [c, width], and the state after.

    `before` [width - 1, c] holds the inputs before the first row, the oldest first, as the state
    after does for what follows.
    """
    inputs = np.concatenate([np.asarray(before, np.float64), np.asarray(x, np.float64)])
    w = np.asarray(weight, np.float64)
    width = w.shape[1]
    y = np.empty((len(x), w.shape[0]))
    with np.errstate(all="ignore"):
        for t in range(len(x)):
            y[t] = silu(sum(w[:, j] * inputs[t + j] for j in range(width)))
    return y, inputs[len(x) :]


def delta_rule(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    alpha: NDArray[Any],
    beta: NDArray[Any],
    a: NDArray[Any],
    dt_bias: NDArray[Any],
    before: NDArray[Any],
    *,
    eps: float = 1e-6,
    scale: float | None = None,
) -> tuple[F64, F64]:
    """Return the output [t, heads, value dim] of the gated delta rule, and the state after it.

    q and k are [t, key heads, key dim], v [t, heads, value dim], alpha and beta [t, heads], a and
    dt_bias [heads], and the state `before` [heads, key dim, value dim]. Value head h uses key head
    h % key heads. `scale` is 1 / sqrt(key dim) by default.
    """
    q, k, v, alpha, beta, a, dt_bias = (
        np.asarray(part, np.float64) for part in (q, k, v, alpha, beta, a, dt_bias)
    )
    state = np.array(before, np.float64)
    factor = 1 / math.sqrt(q.shape[2]) if scale is None else scale
    y = np.empty(v.shape)
    with np.errstate(all="ignore"):
        for t, head in np.ndindex(v.shape[:2]):
            query, key = q[t, head % q.shape[1]], k[t, head % k.shape[1]]
            query = query / np.sqrt(query @ query + eps) * factor
            key = key / np.sqrt(key @ key + eps)
            moved = alpha[t, head] + dt_bias[head]
            softplus = moved if moved > 20 else np.log1p(np.exp(moved))
            faded = np.exp(a[head] * softplus) * state[head]
            change = (v[t, head] - key @ faded) / (1 + np.exp(-beta[t, head]))
            state[head] = faded + np.outer(key, change)
            y[t, head] = query @ state[head]
    return y, state


def gate(
    x: NDArray[Any],
    z: NDArray[Any],
    activation: str,
    norm: NDArray[Any] | None = None,
    eps: float = 1e-6,
) -> F64:
    """Return activation(z) * x, or * the RMSNorm of each head of x [..., head dim]."""
    z64 = np.asarray(z, np.float64)
    with np.errstate(all="ignore"):
        factor = silu(z64) if activation == "silu" else 1 / (1 + np.exp(-z64))
        result: F64 = factor * (
            np.asarray(x, np.float64) if norm is None else rmsnorm(x, norm, eps)
        )
    return result


def hadamard_matrix(block: int) -> F64:
    """Return H[r, c] = (-1)^(number of ones in r & c) / sqrt(block)."""
    ones = np.array([i.bit_count() for i in range(block)])
    rows = np.arange(block)
    result: F64 = np.where(ones[rows[:, None] & rows] % 2, -1.0, 1.0) / math.sqrt(block)
    return result


def rotate(
    x: NDArray[Any],
    signs: NDArray[Any],
    block: int,
    *,
    inverse: bool = False,
    head_size: int = 0,
    n_groups: int = 1,
) -> F64:
    """Return H (signs * P(x)) for each x [..., k] or, for the inverse, signs * (H x).

    H transforms each block of elements. P moves head r * K + j of head_size elements to head
    j * n_groups + r, with K = k / head_size / n_groups; with one group it changes nothing.
    """
    x64, sign = np.asarray(x, np.float64), np.asarray(signs, np.float64)
    if n_groups > 1:
        heads = x64.reshape(*x64.shape[:-1], n_groups, -1, head_size)
        x64 = np.swapaxes(heads, -3, -2).reshape(x64.shape)
    with np.errstate(all="ignore"):
        turned = (x64 if inverse else x64 * sign).reshape(*x64.shape[:-1], -1, block)
        result: F64 = (turned @ hadamard_matrix(block)).reshape(x64.shape)
        if inverse:
            result = sign * result
    return result


def qwen3_forward(config: Mapping[str, Any], weights: Mapping[str, F64], ids: Any) -> F64:
    """Return the logits [t, vocab] of a Qwen3 model for the token ids [t].

    `config` has n_layers, n_heads, n_kv_heads, head_dim, rope_theta and eps, and may have the
    rope_scaling of rope_neox. `weights` has float64 arrays under GGUF's names, matrices as
    [n_rows, k]; without ``output.weight`` the head is the embedding. A layer may have biases of
    q, k and v.
    """
    tokens = np.asarray(ids)
    t = len(tokens)
    n_heads, n_kv, dim = config["n_heads"], config["n_kv_heads"], config["head_dim"]
    eps = config["eps"]
    rope = (np.arange(t), config["rope_theta"], config.get("rope_scaling"))
    x = weights["token_embd.weight"][tokens]
    for layer in range(config["n_layers"]):
        prefix = f"blk.{layer}."
        w = {
            name.removeprefix(prefix).removesuffix(".weight"): array
            for name, array in weights.items()
            if name.startswith(prefix)
        }
        h = rmsnorm(x, w["attn_norm"], eps)
        q, k, v = (
            (h @ w[f"attn_{part}"].T + w.get(f"attn_{part}.bias", 0.0)).reshape(t, heads, dim)
            for part, heads in (("q", n_heads), ("k", n_kv), ("v", n_kv))
        )
        q, k = rmsnorm(q, w["attn_q_norm"], eps), rmsnorm(k, w["attn_k_norm"], eps)
        mixed = attention(rope_neox(q, *rope), rope_neox(k, *rope), v)
        x = x + mixed.reshape(t, -1) @ w["attn_output"].T
        h = rmsnorm(x, w["ffn_norm"], eps)
        x = x + swiglu(h @ w["ffn_gate"].T, h @ w["ffn_up"].T) @ w["ffn_down"].T
    x = rmsnorm(x, weights["output_norm.weight"], eps)
    head = weights["output.weight"] if "output.weight" in weights else weights["token_embd.weight"]
    result: F64 = x @ head.T
    return result
