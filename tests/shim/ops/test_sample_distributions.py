"""Draws of the op sample against the probabilities of its definition, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cases import contents
from chi_square import p_value, upper_gamma
from sampling_reference import BIAS, CHOICE, NONE, settings

ROWS = 500  # drawn at once
DRAWS = {"metal": 1000}  # the simulated one is slow
PERIOD = np.array([1, 2, 2, 5], np.uint32)  # of the text, so that every window of 4 counts alike


@pytest.mark.parametrize(
    ("a", "x", "value"),
    [
        (0.5, 1.9207294103470494, 0.05),  # 1 degree of freedom, 3.841
        (5, 9.153519026, 0.05),  # 10, 18.307
        (1, 30, math.exp(-30)),
        (2, 20, 21 * math.exp(-20)),
        (1, 0.5, math.exp(-0.5)),
        (0.5, 0.125, math.erfc(math.sqrt(0.125))),
        (0.5, 30, math.erfc(math.sqrt(30))),
        (3, 0, 1),
        (500, 500, 0.49405285382921),  # 1000 degrees of freedom, at their mean
    ],
)
def test_the_tail_of_chi_square(a, x, value):
    assert upper_gamma(a, x) == pytest.approx(value, rel=1e-8)


def test_counts_that_do_not_fit_are_found():
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(300))
    counts = rng.multinomial(100_000, p)
    assert p_value(counts, p) > 1e-3
    q = p * rng.choice([0.95, 1.05], 300)
    assert p_value(counts, q / q.sum()) < 1e-6
    p[0], p[1] = 0, p[0] + p[1]
    assert p_value(counts, p) == 0
    assert p_value([7, 0], [1, 0]) == 1


LOGITS = {
    "random": lambda rng, n: rng.normal(0, 2, n),
    "ties": lambda rng, n: rng.integers(-2, 3, n).astype(float),
    "infinite": lambda rng, n: np.where(rng.random(n) < 0.8, -np.inf, rng.normal(0, 1, n)),
    "NaN": lambda rng, n: np.where(rng.random(n) < 0.5, np.nan, rng.normal(0, 1, n)),
    "one": lambda rng, n: np.where(np.arange(n) == n // 2, -3.0, -np.inf),
    "flat": lambda rng, n: np.full(n, 11.0),
}

# Vocabulary, and a setting as a person gives it.
SETTINGS = {
    "plain": (64, {}),
    "cold": (130, {"temperature": 0.4}),
    "hot": (257, {"temperature": 2.5}),
    "top-k": (500, {"top_k": 9}),
    "top-p": (300, {"top_p": 0.8}),
    "min-p": (1000, {"min_p": 0.3}),
    "all": (2000, {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}),
    "wide": (4096, {"top_k": 900, "top_p": 0.9}),
    "penalties": (100, {"presence": 0.5, "frequency": 0.4, "repetition": 1.5}),
    "bias": (70, {"biases": [(3, 2.0), (5, -math.inf), (9, -1.5), (9, 1.0)], "masked": 11}),
}


def probabilities(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, presence=0.0,
                  frequency=0.0, repetition=1.0, biases=(), masked=None):  # fmt: skip
    """Return the probability of each token."""
    w = np.where(np.isnan(logits), -np.inf, logits).astype(float)
    if masked is not None:
        w[::masked] = -np.inf
    for token, value in biases:
        w[token] += value
    if presence or frequency or repetition != 1:
        for token, count in zip(*np.unique(PERIOD, return_counts=True), strict=True):
            w[token] = w[token] / repetition if w[token] > 0 else w[token] * repetition
            w[token] -= presence + frequency * count
    p = np.exp((w - w.max()) / temperature)
    order = np.argsort(-w, kind="stable")
    kept = order[: top_k or None]
    before = np.cumsum(p[kept]) - p[kept]
    # Sums of equal numbers are rounded: none of the cases is within 1e-9 of a limit otherwise.
    kept = kept[before < top_p * p[kept].sum() - 1e-9] if top_p < 1 else kept
    kept = kept[p[kept] >= min_p]
    result = np.zeros(len(w))
    result[kept] = p[kept] / p[kept].sum()
    return result


def operands(n, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, presence=0.0, frequency=0.0,
             repetition=1.0, biases=(), masked=None):  # fmt: skip
    """Return the settings, the biases and the masks."""
    allowed = np.arange(-(-n // 32) * 32) % (masked or n + 99) != 0
    return (
        settings(
            seed=(20, 26),
            scale=2**20 * math.log2(math.e) / temperature,
            top_k=top_k,
            top_p=int(2**32 * top_p) if top_p < 1 else 0,
            least=int(2**20 * -math.log2(min_p)) if min_p else NONE,
            presence=presence,
            frequency=frequency,
            repetition=repetition,
            inverse_repetition=1 / repetition,
            window=len(PERIOD) if presence or frequency or repetition != 1 else 0,
            n_biases=len(biases),
            mask=NONE if masked is None else 0,
        ),
        np.array(biases or [(0, 0)], BIAS),
        np.packbits(allowed, bitorder="little").view("<u4")[None],
    )


def counts_of(device, logits, draws, given):
    """Return how often each token is drawn, at as many places of one sequence."""
    n = len(logits)
    one, biases, masks = operands(n, **given)
    tokens = np.tile(PERIOD, (draws + 8) // 4)
    counts = np.zeros(n, np.int64)
    with (
        device.upload(np.tile(logits, (ROWS, 1))) as rows,
        device.upload(one) as ones,
        device.upload(np.zeros(4, np.uint32)) as state,
        device.upload(tokens) as text,
        device.upload(np.zeros(ROWS, CHOICE)) as choices,
        device.upload(biases) as bias,
        device.upload(masks) as mask,
        device.commands() as c,
    ):
        more = {"biases": bias, "n_biases": len(biases), "masks": mask, "n_masks": 1}
        c.sample(rows, ones, state, text, choices, n, len(tokens), n_vectors=ROWS, advance=False,
                 **more)  # fmt: skip
        for position in range(3, 3 + draws, ROWS):
            state.write(np.array([position, 0, 0, 0], np.uint32))
            c.replay()
            drawn = contents(choices, CHOICE)["token"]
            counts += np.bincount(drawn, minlength=n)
    return counts


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "wide" else n for n in SETTINGS]
)
@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.large
def test_draws_have_the_probabilities_of_the_definition(device, kind, name):
    n, given = SETTINGS[name]
    logits = LOGITS[kind](np.random.default_rng(n), n).astype(np.float32)
    draws = DRAWS.get(device.driver, 100_000)
    expected = probabilities(logits, **given)
    counts = counts_of(device, logits, draws, given)
    assert p_value(counts, expected) > 1e-6
