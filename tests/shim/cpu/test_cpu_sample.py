"""The choice of a token on every variant of the cpu kernels: what depends on how they select."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st
from op_runs import run
from sampling_cases import FILTERS, rows_of
from sampling_reference import BIAS, CHOICE, NONE, SCORED, adjusted, best, draw_errors, settings

from oxibonsai import metal

VARIANTS = [name for name in metal.variants("cpu") if "-" not in name]
VOCABULARY = 151_936


@pytest.fixture(scope="module", params=VARIANTS)
def device(request):
    with metal.Device("cpu", variant=request.param) as device:
        yield device


def sample(device, rows, one, position=0, tokens=(0,), n_best=0, **options):
    """Return choices [row] and best [row][n_best] of rows of one sequence."""
    rows = np.atleast_2d(np.asarray(rows, np.float32))
    v, n = rows.shape
    tokens = np.asarray(tokens, np.uint32)
    more = {name: options.pop(name) for name in ("biases", "masks") if name in options}
    counts = {f"n_{name}": len(array) for name, array in more.items()}

    def record(c, logits, settings, state, tokens_of, choices, scored, *arrays):
        extra = dict(zip(more, arrays, strict=True), best=scored if n_best else None)
        c.sample(
            logits,
            settings,
            state,
            tokens_of,
            choices,
            n,
            len(tokens),
            n_vectors=v,
            n_best=n_best,
            advance=False,
            **extra,
            **counts,
            **options,
        )

    left = run(
        device,
        record,
        rows,
        one,
        np.array([position, 0, 0, 0], np.uint32),
        tokens,
        np.zeros(v, CHOICE),
        np.zeros((v, max(n_best, 1)), SCORED),
        *more.values(),
    )
    return left[4], left[5]


def check(device, rows, one, position=0, scored=3):
    choices, scores = sample(device, rows, one, position, n_best=scored, log_probabilities=True)
    for v, row in enumerate(rows):
        error = draw_errors(row, one[0], position + v + 1, choices["token"][v])
        assert not error, f"row {v}: {error}"
        tokens, expected, own = best(row, scored, choices["token"][v])
        np.testing.assert_array_equal(scores["token"][v], tokens)
        np.testing.assert_allclose(scores["log_probability"][v], expected, atol=1e-5)
        np.testing.assert_allclose(choices["log_probability"][v], own, atol=1e-5)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("n", [1, 15, 17, 63, 65, 1023, 1025, 4095, 4097])
def test_rows_of_every_kind_and_length(device, n, filters):
    check(device, rows_of(n), settings(**FILTERS[filters]))


def noise(n, place, one):
    """Return the random word of each of n tokens: Philox4x32-10 for all of them at once."""
    c = [np.arange((n + 3) // 4, dtype=np.uint64)]
    c += [np.full_like(c[0], word) for word in (place, int(one["choice"][0]), 0)]
    key = [int(word) for word in one["seed"][0]]
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        high, low = (lambda x: x >> np.uint64(32)), (lambda x: x & np.uint64(0xFFFFFFFF))
        c = [
            high(b) ^ c[1] ^ np.uint64(key[0]),
            low(b),
            high(a) ^ c[3] ^ np.uint64(key[1]),
            low(a),
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return np.stack(c, axis=1).ravel()[:n]


def order_of(arrangement, n):
    """Return tokens in the order of their logits, and logits in that order."""
    rng = np.random.default_rng(11)
    tokens = np.arange(n)
    steps = np.linspace(1, -1, n)
    if arrangement == "rising":
        return tokens[::-1], steps
    if arrangement == "random":
        return rng.permutation(n), steps
    if arrangement == "many equal":  # between few others, across blocks
        steps[100:-100] = 0
        changed = np.sort(rng.permutation(n)[:200])
        middle = np.delete(tokens, changed)
        return np.concatenate([changed[100:], middle, changed[:100]]), steps
    return tokens, steps if arrangement == "falling" else np.zeros(n)


ARRANGEMENTS = ["falling", "rising", "random", "many equal", "equal"]


@pytest.mark.large
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("by", ["top_k", "top_p", "both"])
def test_the_last_token_that_is_kept_and_the_first_that_is_not(device, by, arrangement):
    """All are equally likely, so the smallest noise wins.

    Where a token has less noise than all before it, keeping one token less or more shows.
    """
    n, one = VOCABULARY, settings(scale=0.25)
    tokens, w = order_of(arrangement, n)
    row = np.empty(n, np.float32)
    row[tokens] = w
    for place in range(1, 30):
        r = noise(n, place, one)[tokens]
        least = np.minimum.accumulate(r)
        records = np.flatnonzero(np.concatenate([[True], r[1:] < least[:-1]]))
        if records[-1] > 100_000:
            break
    assert records[-1] > 100_000
    for i, record in enumerate(records):
        for kept, winner in ((record, records[i - 1]), (record + 1, record)):
            if kept == 0:
                continue
            if by != "top_p":
                one["top_k"] = kept
            if by == "top_p":
                one["top_p"] = int((kept - 0.5) / n * 2**32)
            if by == "both":
                one["top_p"] = NONE
            choices, _ = sample(device, row, one, place - 1)
            assert choices["token"][0] == tokens[winner]


def wide_rows(n):
    """Return rows whose tokens differ in probability, by their distribution."""
    rng = np.random.default_rng(12)
    normal = rng.normal(0, 1, n)
    peaked = normal.copy()
    peaked[rng.integers(0, n, 150)] += 12
    rows = {
        "normal": 3 * normal,
        "nearly flat": 1e-3 * normal,
        "rising": np.linspace(-20, 5, n),
        "falling": np.linspace(5, -20, n),
        "peaked": peaked,
        "whole": np.round(2 * normal),
        "one": np.where(np.arange(n) == n - 1, 0, -np.inf),
        "far": np.where(np.arange(n) == 77, 17, normal),  # much of the sum is far from the largest
    }
    return {name: row.astype(np.float32) for name, row in rows.items()}


SETTINGS = {
    "plain": {},
    "k": {"top_k": 40},
    "more k": {"top_k": 2000},
    "most k": {"top_k": 60_000, "top_p": 0xE0000000},
    "p": {"top_p": 0xF3333333},
    "most p": {"top_p": 0xFFFFF000},
    "least": {"least": 5 << 20},
    "p and least": {"top_p": 0xF3333333, "least": 5 << 20},
    "all": {"top_k": 40, "top_p": 0xF3333333, "least": 4 << 20, "window": 64, "repetition": 1.1},
}


@pytest.mark.large
@pytest.mark.parametrize("name", SETTINGS)
def test_a_whole_vocabulary(device, name):
    # The definition takes seconds for a race of all.
    rows = wide_rows(20_001 if name in ("plain", "most p", "least") else VOCABULARY)
    text = np.random.default_rng(13).integers(0, VOCABULARY, 300).astype(np.uint32)
    one = settings(scale=2**20 * 1.4427 / 0.7, **SETTINGS[name])
    for kind, row in rows.items():
        choices, _ = sample(device, row, one, 299, text)
        w = adjusted(row, one[0], text, [], [])
        error = draw_errors(w, one[0], 300, choices["token"][0])
        assert not error, f"{kind}: {error}"


def test_variants_have_the_same_integers():
    rng = np.random.default_rng(14)
    rows = np.stack(list(wide_rows(20_001).values()))
    found = []
    all_settings = [
        settings(seed=rng.integers(0, 2**32, 2), scale=scale, **values)
        for values in SETTINGS.values()
        for scale in (1e5, 1e6, 1e7)
    ]
    for variant in VARIANTS:
        with metal.Device("cpu", variant=variant) as device:
            results = [sample(device, rows, one, 40)[0]["token"] for one in all_settings]
        found.append(np.stack(results))
    assert len(np.unique(found[0])) > 50
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_a_long_window_is_counted_to_its_ends(device):
    """More tokens than are looked at together, in a block and in all."""
    rng = np.random.default_rng(15)
    n, length = 9000, 30_000
    text = rng.integers(0, 40, length).astype(np.uint32)
    text[::3] = rng.integers(0, n, len(text[::3]))
    row = rng.normal(0, 3, n).astype(np.float32)
    for window in (1, 15, 16, 17, 4095, 4096, 4097, 20_000, length - 1, length, NONE):
        one = settings(scale=0, window=window, frequency=0.01, presence=0.5, repetition=1.2)
        first = int(text[max(length - window, 0)])  # counted, or the winner is another
        row[first] = 14 + 0.4 + 0.01 * int((text[-window:] == first).sum())
        row[n - 1 if first != n - 1 else 0] = 14
        choices, _ = sample(device, row, one, length - 1, text)
        w = adjusted(row, one[0], text, [], [])
        assert choices["token"][0] == np.argmax(w)
        row[[first, n - 1, 0]] = 0


def test_a_penalty_or_a_bias_on_the_largest_of_a_block(device):
    """The largest of a block is then another one."""
    row = np.zeros(9000, np.float32)
    row[5000], row[6000], row[20] = 9, 8, 7
    one = settings(scale=0, window=1, presence=2.5)
    assert sample(device, row, one, 0, [5000])[0]["token"] == 6000
    biases = np.array([(5000, -2.5), (20, 1.5)], BIAS)
    one = settings(scale=0, n_biases=2)
    assert sample(device, row, one, biases=biases)[0]["token"] == 20
    masks = np.full((1, (9000 + 31) // 32), NONE, np.uint32)
    masks[0, 5000 // 32] ^= 1 << 5000 % 32
    assert sample(device, row, settings(scale=0, mask=0), masks=masks)[0]["token"] == 6000


@pytest.mark.threads
def test_the_same_choices_for_any_number_of_threads():
    rows = np.random.default_rng(16).normal(0, 3, (3, 20_000))
    found = set()
    for threads in (1, 2, 3, 7):
        with metal.Device("cpu", threads=threads) as device:
            for seed in range(5):
                one = settings(seed=(seed, 1), top_k=40, window=9, presence=1)
                found.add((seed, sample(device, rows, one, 8, range(9))[0].tobytes()))
    assert len(found) == 5


values = st.sampled_from([0.0, -0.0, 1.0, 1e-45, -1e-45, 3e38, -3e38, -np.inf, np.inf, np.nan])
logits = st.lists(st.one_of(values, st.floats(-20, 20, width=32)), min_size=1, max_size=150)


@tried(max_examples=150, deadline=None)
@given(
    row=logits,
    scale=st.sampled_from([0, 1e-3, 1e5, 1.5e6, 1e9]),
    top_k=st.integers(0, 160),
    top_p=st.one_of(st.just(0), st.integers(1, 2**32 - 1)),
    least=st.one_of(st.just(NONE), st.integers(0, 40 << 20)),
    seed=st.integers(0, 2**32 - 1),
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_logits_and_filters(variant, row, scale, top_k, top_p, least, seed):
    one = settings(scale=scale, top_k=top_k, top_p=top_p, least=least, seed=(seed, 5))
    with metal.Device("cpu", variant=variant) as device:
        check(device, np.float32([row]), one)
