"""The choice of a token, from its definition, in float64 and Python integers."""

from __future__ import annotations

import math

import numpy as np

SAMPLING = np.dtype(
    {
        "names": [
            "seed",
            "choice",
            "scale",
            "top_k",
            "top_p",
            "least",
            "repetition",
            "inverse_repetition",
            "presence",
            "frequency",
            "window",
            "first_bias",
            "n_biases",
            "mask",
            "pad",
        ],
        "formats": [
            ("u4", 2),
            *["u4", "f4", "u4", "u4", "u4", "f4", "f4", "f4", "f4", "u4", "u4", "u4", "u4", "u4"],
        ],
    }
)
CHOICE = np.dtype([("token", "u4"), ("position", "u4"), ("log_probability", "f4"), ("pad", "u4")])


def philox(counter, key):
    """Return the four words of Philox4x32-10."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def kept(w, scale, top_k, top_p, least):
    """Return (token, distance) of what the filters keep, in the order of the definition."""
    m = max(w)
    order = sorted((i for i in range(len(w)) if w[i] > -math.inf), key=lambda i: (-w[i], i))
    product = (np.float32(m) - np.asarray(w, np.float32)) * np.float32(scale)
    found = [(i, int(min(product[i], 2.0**30))) for i in order[: top_k or None]]
    weights = [2.0 ** (31 - u / 2**20) for _, u in found]
    target = sum(weights) * top_p / 2**32 if top_p else math.inf
    before = np.concatenate([[0.0], np.cumsum(weights)[:-1]])
    return [f for f, b in zip(found, before, strict=True) if b < target and f[1] <= least]


def keys(candidates, settings, position):
    """Return the keys of the candidates in the race, in units of 2^-20."""
    result = []
    for token, u in candidates:
        counter = (token // 4, position, int(settings["choice"]), 0)
        r = philox(counter, [int(s) for s in settings["seed"]])[token % 4]
        result.append(u + 2**20 * math.log2(-math.log1p(-(r + 0.5) / 2**32) / math.log(2)))
    return result


def adjusted(logits, context=(), options=None):
    """Return logits after bias and penalties, by the options of a generation."""
    options = options or {}
    w = np.array(logits, np.float32)
    for token, value in options.get("logit_bias", {}).items():
        w[token] = np.float32(w[token] + np.float32(value))
    window = options.get("penalty_window", 64)
    seen = list(context) if window == -1 else list(context)[max(0, len(context) - window) :]
    repetition = options.get("repetition_penalty", 1.0)
    for token in set(seen):
        factor = 1 / repetition if w[token] > 0 else repetition
        w[token] = np.float32(w[token] * np.float32(factor))
        total = seen.count(token) * float(np.float32(options.get("frequency_penalty", 0)))
        w[token] = np.float32(np.float64(w[token]) - total)
        w[token] -= np.float32(options.get("presence_penalty", 0))
    return w


def expected_race(logits, place, *, seed, context=(), choice=0, **options):
    """Return the key of each token that may be drawn; the least wins."""
    w = adjusted(logits, context, options)
    scale = 2**20 / math.log(2) / options["temperature"]
    top_p = options.get("top_p", 1.0)
    min_p = options.get("min_p", 0.0)
    least = math.floor(-(2**20) * math.log2(min_p)) if min_p else 2**32 - 1
    share = 0 if top_p == 1 else math.floor(2**32 * top_p)
    candidates = kept(w.tolist(), scale, options.get("top_k", 0), share, least)
    one = np.zeros((), SAMPLING)
    one["seed"], one["choice"] = (seed % 2**32, seed >> 32), choice
    return dict(zip([c[0] for c in candidates], keys(candidates, one, place), strict=True))
