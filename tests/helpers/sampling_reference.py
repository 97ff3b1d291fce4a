"""The choice of a token, from its definition, in float64 and Python integers."""

from __future__ import annotations

import math

import numpy as np

NONE = 0xFFFFFFFF
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
SCORED = np.dtype([("token", "u4"), ("log_probability", "f4")])
BIAS = np.dtype([("token", "u4"), ("value", "f4")])


def settings(**values):
    """Return settings that keep every token, at temperature 1, with some of them changed."""
    one = np.zeros(1, SAMPLING)
    one["seed"], one["scale"], one["least"], one["mask"] = (7, 9), 2**20 * 1.4427, NONE, NONE
    one["repetition"] = one["inverse_repetition"] = 1
    for name, value in values.items():
        one[name] = value
    return one


def adjusted(logits, one, text, biases, masks):
    """Return the logits after mask, bias and penalties, in float32, for a text so far."""
    w = np.where(np.isnan(logits), -np.inf, logits).astype(np.float32)
    n = len(w)
    if one["mask"] < len(masks):
        bits = np.unpackbits(masks[one["mask"]].astype("<u4").view(np.uint8), bitorder="little")
        w[bits[:n] == 0] = -np.inf
    first = int(one["first_bias"])
    with np.errstate(all="ignore"):
        for token, value in biases[first : first + int(one["n_biases"])]:
            if token < n:
                w[token] += value
                if np.isnan(w[token]):
                    w[token] = -np.inf
        window = int(one["window"])
        tokens, counts = np.unique(text[-window:] if window else [], return_counts=True)
        for token, count in zip(tokens, counts, strict=True):
            if token < n:
                w[int(token)] = penalised(w[int(token)], int(count), one)
    return w


def penalised(logit, count, one):
    """Return a logit less its penalties, rounded to float32 where the definition rounds."""
    w = np.float32(logit * (one["inverse_repetition"] if logit > 0 else one["repetition"]))
    # The product of two float32 is exact in float64, and the sum rounded twice at worst half-way.
    w = np.float32(-np.float64(count) * np.float64(one["frequency"]) + np.float64(w))
    w = np.float32(w - one["presence"])
    return np.float32(-np.inf) if np.isnan(w) else w


def philox(counter, key):
    """Return the four words of Philox4x32-10."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def kept(w, scale, top_k, top_p, least, slack=0.0):
    """Return (token, distance) of what the filters keep, in the order of the definition.

    With a slack, the sums may be off by that share, so that more or, if negative, less is kept.
    """
    w = np.asarray(w, np.float32)
    order = np.argsort(-w, kind="stable")
    order = order[w[order] > -np.inf][: int(top_k) or None]
    with np.errstate(all="ignore"):
        product = (w.max() - w[order]) * np.float32(scale)
    u = np.minimum(product, np.float32(2.0**30)).astype(np.int64)
    weights = 2.0 ** (31 - u / 2**20)
    target = weights.sum() * int(top_p) / 2**32 * (1 + slack) if top_p else math.inf
    before = np.cumsum(weights) - weights
    keep = ((before < target) | (np.arange(len(u)) == 0)) & (u <= int(least))
    return list(zip(order[keep].tolist(), u[keep].tolist(), strict=True))


def keys(candidates, settings, position):
    """Return the keys of the candidates in the race, in units of 2^-20."""
    result = []
    for token, u in candidates:
        counter = (token // 4, position, int(settings["choice"]), 0)
        r = philox(counter, [int(s) for s in settings["seed"]])[token % 4]
        result.append(u + 2**20 * math.log2(-math.log1p(-(r + 0.5) / 2**32) / math.log(2)))
    return result


def draw_errors(w, one, position, token):
    """Return what is wrong with a token that was drawn from adjusted logits; empty if nothing."""
    w = np.where(np.isnan(w), -np.inf, w).astype(np.float32)
    m = w.max()
    if m == -np.inf or one["scale"] == 0 or m == np.inf:
        right = NONE if m == -np.inf else int(np.argmax(w))
        return "" if token == right else f"drew {token}, not {right}"
    filters = [one[name] for name in ("scale", "top_k", "top_p", "least")]
    # Integer probabilities are off by 2 of 2^31, and small ones by a half.
    candidates = kept(w, *filters, slack=1e-6)
    race = dict(zip([c[0] for c in candidates], keys(candidates, one, position), strict=True))
    if token not in race:
        return f"drew {token}, which the filters do not keep"
    sure = {c[0] for c in kept(w, *filters, slack=-1e-6)}
    least = min(race[t] for t in sure)
    return "" if race[token] <= least + 4 else f"drew {token} at {race[token]}, not {least}"


def best(logits, n_best, token):
    """Return the largest logits' tokens, their log probabilities, and that of `token`."""
    x = np.asarray(logits, np.float64)
    numbers = np.flatnonzero(~np.isnan(x))
    order = numbers[np.argsort(-x[numbers], kind="stable")][:n_best]
    with np.errstate(all="ignore"):
        m = x[numbers].max() if len(numbers) else -np.inf
        # Added to a large m, the logarithm would be rounded away.
        total = 0.0 if np.isinf(m) else np.log(np.exp(x[numbers] - m).sum())
        scores = [*(x[order] - m - total), *[-np.inf] * (n_best - len(order))]
        own = -np.inf if token == NONE else x[token] - m - total
        scores, own = np.float32(scores), np.float32(own)  # below -3.4e38: -inf
    return [*order.tolist(), *[NONE] * (n_best - len(order))], scores, own


def adjusted_by_options(logits, context=(), options=None):
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
    w = adjusted_by_options(logits, context, options)
    scale = 2**20 / math.log(2) / options["temperature"]
    top_p = options.get("top_p", 1.0)
    min_p = options.get("min_p", 0.0)
    least = math.floor(-(2**20) * math.log2(min_p)) if min_p else 2**32 - 1
    share = 0 if top_p == 1 else math.floor(2**32 * top_p)
    candidates = kept(w.tolist(), scale, options.get("top_k", 0), share, least)
    one = np.zeros((), SAMPLING)
    one["seed"], one["choice"] = (seed % 2**32, seed >> 32), choice
    return dict(zip([c[0] for c in candidates], keys(candidates, one, place), strict=True))
