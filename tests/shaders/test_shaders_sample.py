"""The kernels that choose a token, each executed alone with every access checked."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from sampling_cases import FILTERS, rows_of
from sampling_reference import BIAS, CHOICE, SCORED, adjusted, best, draw_errors, settings
from shader_runs import SENTINEL, every_order, run, state

NONE = 0xFFFFFFFF
BLOCK = 4096


def arguments(n, v, tokens, biases=0, masks=0, n_best=0, *, batch=0, scores=0, advance=0, slots=1):
    blocks = -(-n // BLOCK)
    counts = (n, v, tokens, biases, masks, slots, n_best, blocks, batch, scores, advance, 0)
    return struct.pack("<12I", *counts)


def blocks(logits, one, position, tokens, biases, masks, order="random", threads=96):
    """Return the adjusted logits and the largest of each block."""
    v, n = logits.shape
    n_blocks = -(-n // BLOCK)
    left = run(
        "sample_blocks",
        [
            logits,
            one,
            state(position) * np.uint32([1, 0, 0, 0]),
            tokens,
            biases,
            masks,
            np.full(v * (n + n_blocks), SENTINEL),
        ],
        arguments(n, v, len(tokens), len(biases), len(masks)),
        groups=(n_blocks, v),
        threads=threads,
        order=order,
    )[6]
    return left[: v * n].reshape(v, n), left[v * n :].reshape(v, n_blocks)


@every_order
@pytest.mark.parametrize("n", [1, 3, 33, 4096, 4101])
def test_blocks_are_adjusted_as_defined(n, order):
    rng = np.random.default_rng(n)
    logits = rng.normal(0, 2, (2, n)).astype(np.float32)
    logits[:, rng.integers(0, n, 9)] = rng.choice([np.nan, np.inf, -np.inf, 0, -0.0], 9)
    text = rng.integers(0, n + 3, 40).astype(np.uint32)
    biases = np.zeros(9, BIAS)
    biases["token"] = [0, n - 1, n - 1, n, NONE, n // 2, 0, n // 3, 1]
    biases["value"] = [1.5, 1e-8, -np.inf, 1, 1, np.inf, -1e-8, np.nan, 7]
    masks = rng.integers(0, 2**32, (2, (n + 31) // 32), np.uint32)
    for values in (
        {},
        {"mask": 1},
        {"first_bias": 1, "n_biases": 100},
        {"window": 5, "presence": 0.5},
        {"window": 30, "frequency": 0.7, "repetition": 1.25, "inverse_repetition": 0.8},
        {"window": 99, "repetition": np.inf, "inverse_repetition": 0, "mask": 0, "n_biases": 3},
    ):
        one = settings(**values)
        # With the window, some positions are behind the last token of the buffer.
        tokens = text[:33] if "presence" in values else text
        so_far = np.append(tokens, np.full(9, NONE, np.uint32))
        w, maxima = blocks(logits, one, 34, tokens, biases, masks, order)
        changed = bool(values)
        for v in range(2):
            expected = adjusted(logits[v], one[0], so_far[: 35 + v], biases, masks)
            if changed:
                np.testing.assert_array_equal(w[v], expected)
            else:
                assert (w[v] == SENTINEL).all()
            np.testing.assert_array_equal(
                maxima[v], [expected[i : i + BLOCK].max() for i in range(0, n, BLOCK)]
            )


def choose(logits, one, position=0, *, order="random", threads=96, scores=1, n_best=0, **values):
    """Return what sample_choose leaves in state, tokens, choices and best."""
    v, n = logits.shape
    clean = np.where(np.isnan(logits), -np.inf, logits)
    maxima = [row[i : i + BLOCK].max() for row in clean for i in range(0, n, BLOCK)]
    return run(
        "sample_choose",
        [
            logits,
            np.concatenate([np.full(v * n, SENTINEL), np.float32(maxima)]),
            one,
            state(position) * np.uint32([1, 0, 0, 0]),
            np.full(9, 77, np.uint32),
            np.zeros(v * values.get("slots", 1), CHOICE),
            np.zeros(max(1, v * values.get("slots", 1) * n_best), SCORED),
        ],
        arguments(n, v, 9, n_best=n_best, scores=scores, **values),
        groups=v,
        threads=threads,
        order=order,
    )[3:]


def many_states(*positions):
    states = np.zeros((len(positions), 4), np.uint32)
    states[:, 0] = positions
    return states


@every_order
def test_idle_vectors_are_left_alone(order):
    """The position after the last place that there is, and those that are no place."""
    states = many_states(2**31 - 1, 3, 2**31, 2**31 - 2, 2**32 - 1)
    v, n = len(states), 40
    logits = np.tile(np.arange(n, dtype=np.float32), (v, 1))
    one = np.concatenate([settings(scale=0, mask=0)] * v)
    masks = np.array([[0x0FFFFFFF, 0xF]], np.uint32)
    text = np.full(5, 77, np.uint32)
    w = run(
        "sample_blocks",
        [logits, one, states, text, np.zeros(1, BIAS), masks, np.full(v * (n + 1), SENTINEL)],
        arguments(n, v, 5, 0, 1, batch=1),
        groups=(1, v),
        threads=64,
        order=order,
    )[6]
    assert (w[: v * n].reshape(v, n) == SENTINEL).all(axis=1).tolist() == [1, 0, 1, 0, 1]
    assert w[v * n :].tolist() == [SENTINEL, 35, SENTINEL, 35, SENTINEL]
    left = run(
        "sample_choose",
        [
            logits,
            w,
            one,
            states,
            np.full(5, 77, np.uint32),
            np.zeros(v, CHOICE),
            np.zeros(v, SCORED),
        ],
        arguments(n, v, 5, 0, 1, batch=1, advance=1),
        groups=v,
        threads=64,
        order=order,
    )
    assert left[3][:, 0].tolist() == [2**31 - 1, 4, 2**31, 2**31 - 1, 2**32 - 1]
    assert left[4].tolist() == [77, 77, 77, 77, 35]
    assert left[5]["token"].tolist() == [0, 35, 0, 35, 0]
    assert left[5]["position"].tolist() == [0, 4, 0, 2**31 - 1, 0]


@every_order
def test_scores_are_of_the_logits_before_they_were_adjusted(order):
    rng = np.random.default_rng(2)
    n = 4200
    logits = rng.normal(0, 2, (2, n)).astype(np.float32)
    logits[1, ::2] = np.nan
    logits[1, 1::2] = -np.inf
    logits[1, 5:12:2] = 1, 3, 2, 3
    one = settings(window=1, presence=1, repetition=2, top_k=3)
    adjusted_logits = np.where(np.isnan(logits), -np.inf, -np.abs(logits) - 3).astype(np.float32)
    maxima = [row[i : i + BLOCK].max() for row in adjusted_logits for i in (0, BLOCK)]
    left = run(
        "sample_choose",
        [
            logits,
            np.concatenate([adjusted_logits.ravel(), np.float32(maxima)]),
            one,
            state(1) * np.uint32([1, 0, 0, 0]),
            np.zeros(9, np.uint32),
            np.zeros(2, CHOICE),
            np.zeros((2, 9), SCORED),
        ],
        arguments(n, 2, 9, n_best=9, scores=1),
        groups=2,
        threads=128,
        order=order,
    )
    for v in range(2):
        token = left[5]["token"][v]
        assert not draw_errors(adjusted_logits[v], one[0], 2 + v, token)
        expected = best(logits[v], 9, token)
        np.testing.assert_array_equal(left[6]["token"][v], expected[0])
        np.testing.assert_allclose(left[6]["log_probability"][v], expected[1], atol=1e-5)
        np.testing.assert_allclose(left[5]["log_probability"][v], expected[2], atol=1e-5)


@every_order
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("n", [1, 64, 4096, 4101])
def test_the_choice_is_drawn_as_defined(n, filters, order):
    rows = rows_of(n)
    one = settings(**FILTERS[filters])
    _, _, choices, scored = choose(rows, one, 3, order=order, n_best=5)
    for v, row in enumerate(rows):
        assert choices[v]["position"] == 4 + v
        assert not draw_errors(row, one[0], 4 + v, choices[v]["token"])
        expected = best(row, 5, choices[v]["token"])
        np.testing.assert_array_equal(scored["token"].reshape(-1, 5)[v], expected[0])
        found = scored["log_probability"].reshape(-1, 5)[v]
        np.testing.assert_allclose(found, expected[1], atol=1e-5)
        np.testing.assert_allclose(choices[v]["log_probability"], expected[2], atol=1e-5)


@every_order
def test_what_is_2_to_the_32_less_probable_weighs_nothing(order):
    # With any weight, the last two would bring the second token into the half that is kept.
    row = np.float32([0, -0.1, -22.4, -22.6])
    one = settings(top_k=4, top_p=1 << 31)
    choices = choose(np.tile(row, (32, 1)), one, order=order)[2]
    assert choices["token"].tolist() == [0] * 32


@every_order
def test_noise_far_from_the_luckiest_is_exact_too(order):
    # Of two tokens the less probable wins only against large noise.
    one = settings()
    rows = np.tile(np.float32([0, -1]), (256, 1))
    choices = choose(rows, one, order=order)[2]
    for v, row in enumerate(rows):
        assert not draw_errors(row, one[0], 1 + v, choices["token"][v])
    assert 0.15 < choices["token"].mean() < 0.4  # 1 / (1 + e) is 0.27


@every_order
@pytest.mark.parametrize("filters", ["k", "none", "p"])
def test_the_first_ones_are_found_where_few_threads_have_them(filters, order):
    # All that half of the threads meet is above the rest: more than the list holds.
    rng = np.random.default_rng(9)
    n = 4500
    rows = rng.normal(-40, 1, (1, n)).astype(np.float32)
    upper = np.arange(n) // 4 % 32 < 16
    rows[0, upper] += 40
    one = settings(**FILTERS[filters])
    _, _, choices, scored = choose(rows, one, order=order, threads=32, n_best=5)
    token = choices["token"][0]
    assert not draw_errors(rows[0], one[0], 1, token)
    np.testing.assert_array_equal(scored["token"], best(rows[0], 5, token)[0])
