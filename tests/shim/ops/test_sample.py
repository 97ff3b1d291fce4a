"""The op sample against its definition. The cpu alone has its kernels."""

from __future__ import annotations

import numpy as np
import pytest
from op_runs import run
from sampling_reference import CHOICE, SAMPLING, kept, keys

from oxibonsai import metal
from oxibonsai.metal import EncodingError

NONE = 0xFFFFFFFF


def settings(**values):
    one = np.zeros(1, SAMPLING)
    one["seed"], one["scale"], one["least"], one["mask"] = (7, 9), 2**20 * 1.4427, NONE, NONE
    one["repetition"] = one["inverse_repetition"] = 1
    for name, value in values.items():
        one[name] = value
    return one


def sample(logits, one, position=0, tokens=None, **options):
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    v, n = logits.shape
    tokens = np.zeros(8, np.uint32) if tokens is None else np.asarray(tokens, np.uint32)
    with metal.Device("cpu") as device:
        return run(
            device,
            lambda c, *b: c.sample(*b, n, len(tokens), n_vectors=v, **options),
            logits,
            one,
            np.array([position, 0, 0, 0], np.uint32),
            tokens,
            np.zeros(v, CHOICE),
        )


@pytest.mark.parametrize(
    "filters", [(0, 0, NONE), (5, 0, NONE), (0, 3 << 30, NONE), (0, 0, 2 << 20), (9, 1 << 31, NONE)]
)
@pytest.mark.parametrize("n", [1, 33, 5000])
def test_the_choice_wins_the_race_of_what_the_filters_keep(n, filters):
    rows = np.random.default_rng(n).normal(0, 2, (20, n)).astype(np.float32)
    one = settings(top_k=filters[0], top_p=filters[1], least=filters[2])
    chosen = sample(rows, one, advance=False)[4]
    for v, row in enumerate(rows):
        candidates = kept(row.tolist(), one["scale"][0], *filters)
        race = dict(zip([c[0] for c in candidates], keys(candidates, one[0], v + 1), strict=True))
        assert chosen["token"][v] in race
        assert race[chosen["token"][v]] <= min(race.values()) + 4  # the logarithms' error
        assert chosen["position"][v] == v + 1


def test_no_temperature_takes_the_first_of_the_largest_and_advances():
    after = sample([1, 5, np.nan, 5, -np.inf], settings(scale=0), 2)
    assert after[3].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert after[2][0] == 3
    assert sample([np.nan, -np.inf], settings())[4]["token"] == NONE
    assert sample([0, np.inf, np.inf], settings())[4]["token"] == 1


def test_penalties_count_the_tokens_of_the_window_alone():
    tokens = [0, 1, 1, 2, 0, 0, 0, 0]
    one = settings(scale=0, presence=1, frequency=2, window=3)
    assert sample([3, 5.5, 2.5, 1.1], one, 3, tokens)[4]["token"] == 0
    one["window"] = 4
    assert sample([3, 5.5, 2.5, 1.1], one, 3, tokens)[4]["token"] == 3


def test_log_probabilities_are_of_the_logits_as_they_came():
    x = np.random.default_rng(1).normal(0, 3, 300)
    chosen = sample(x, settings(), log_probabilities=True)[4][0]
    x = x.astype(np.float32).astype(np.float64)
    expected = x[chosen["token"]] - np.log(np.exp(x).sum())
    assert abs(chosen["log_probability"] - expected) < 1e-5


def test_misuse_records_nothing():
    with metal.Device("cpu") as device, device.commands() as c:
        b = [device.upload(np.zeros(64, np.float32)) for _ in range(5)]
        for wrong in ({"n_vectors": 2}, {"n_slots": 0}, {"n_best": 1}, {"n_slots": 99}):
            with pytest.raises(EncodingError):
                c.sample(*b, 4, 8, **wrong)
        with pytest.raises(EncodingError, match="overlap"):
            c.sample(*b[:4], b[0], 4, 8)
        assert c.describe().startswith("0 dispatches")
