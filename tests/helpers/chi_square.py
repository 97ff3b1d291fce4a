"""Pearson's test of counts against probabilities."""

from __future__ import annotations

import math

import numpy as np


def upper_gamma(a: float, x: float) -> float:
    """Return the regularised upper incomplete gamma function Q(a, x)."""
    if x <= 0:
        return 1.0
    factor = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:  # the series of P = 1 - Q
        term = total = 1 / a
        k = a
        while term > total * 1e-17:
            k += 1
            term *= x / k
            total += term
        return 1 - factor * total
    # The continued fraction of Q, from its front (Lentz).
    b = x + 1 - a
    c, d = math.inf, 1 / b
    value = d
    for k in range(1, 100_000):
        numerator = k * (a - k)
        b += 2
        d = 1 / (numerator * d + b)
        c = b + numerator / c
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return factor * value


def p_value(counts, probabilities) -> float:
    """Return the probability of counts at least as far from those expected.

    Cells of fewer than 5 expected are pooled. A count where the probability is 0 has the value 0.
    """
    counts, probabilities = np.asarray(counts, float), np.asarray(probabilities, float)
    if counts[probabilities == 0].any():
        return 0.0
    order = np.argsort(probabilities)
    expected = probabilities[order] * counts.sum()
    counts = counts[order]
    # The least ones together, as many as make 5.
    small = int(np.searchsorted(expected, 5))
    while 0 < small < len(expected) and expected[:small].sum() < 5:
        small += 1
    cells = [(counts[:small].sum(), expected[:small].sum())] if small else []
    cells += zip(counts[small:], expected[small:], strict=True)
    if len(cells) < 2:
        return 1.0
    statistic = sum((count - mean) ** 2 / mean for count, mean in cells)
    return upper_gamma((len(cells) - 1) / 2, statistic / 2)
