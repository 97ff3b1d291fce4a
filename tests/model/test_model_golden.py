"""The demo models against logits and texts that were computed outside this package.

The goldens hold, for three prompts, float32 logits of every position and 64 greedy tokens, made by
a float64 reading of the weights. All ternary layouts but TQ2_0 hold the same weights; TQ2_0 is held
against the float64 reference.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from cases import relative_error
from model_files import (
    LAYOUTS,
    PROMPTS,
    Q1_GOLDEN,
    Q1_MODEL,
    TERNARY_GOLDEN,
    TERNARY_MODEL,
    make_layout,
    unpack_tq2_0_g128,
)
from numpy.typing import NDArray
from tiny_models import Tiny, random_tensors, write

from oxibonsai import gguf, metal
from oxibonsai.model import Model, Session

# What a device makes of these is what it makes of TQ2_0_g128: 2-bit codes, 128 of them to a scale.
REPEATED = {"Q2_0_g128", "PQ2_0", "TQ2_0"}
FORMATS = [
    pytest.param(name, marks=[pytest.mark.same_kernels] if name in REPEATED else [])
    for name in ("Q1_0", *LAYOUTS)
]
# Every prompt meets the same kernels as the first.
PROMPT = [
    pytest.param(i, marks=[pytest.mark.same_kernels] if i else []) for i in range(len(PROMPTS))
]
LIMIT = {"f32": 1e-5, "f16": 1e-3}
F32 = NDArray[np.float32]


class Golden:
    """The prompts' ids, logits and greedy texts; of TQ2_0 the ids and logits alone."""

    def __init__(self, format_name: str) -> None:
        with np.load(Q1_GOLDEN if format_name == "Q1_0" else TERNARY_GOLDEN) as z:
            self.ids = [z[f"p{i}.ids"].tolist() for i in range(len(PROMPTS))]
            self.logits = [z[f"p{i}.logits"] for i in range(len(PROMPTS))]
            self.greedy = [z[f"p{i}.greedy"].tolist() for i in range(len(PROMPTS))]
        # More than the prompt is fed in at once.
        self.text = [*self.ids[0], *self.greedy[0]][:40]
        if format_name == "TQ2_0":
            self.greedy = []
            self.logits = _tq2_0_logits(self.ids)


def _tq2_0_logits(prompts: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
    """Return float64 logits of the ternary model with one scale for every 256 weights."""
    weights = {}
    with gguf.open(TERNARY_MODEL) as file:
        for name, info in file.tensors.items():
            data = file.tensor_data(name)
            if info.format == "F32":
                weights[name] = data.view("<f4").astype(np.float64)
                continue
            n_rows, k = info.shape
            codes, scales = unpack_tq2_0_g128(data, n_rows, k)
            pairs = scales.reshape(n_rows, k // 256, 2).astype(np.float32)
            mean = np.repeat(pairs.mean(axis=-1).astype(np.float16), 2, axis=1)
            levels = codes.astype(np.float64) - 1
            weights[name] = (levels * mean[..., None]).reshape(n_rows, k)
        config = {
            "n_layers": file.metadata["qwen3.block_count"],
            "n_heads": file.metadata["qwen3.attention.head_count"],
            "n_kv_heads": file.metadata["qwen3.attention.head_count_kv"],
            "head_dim": file.metadata["qwen3.attention.key_length"],
            "rope_theta": file.metadata["qwen3.rope.freq_base"],
            "eps": file.metadata["qwen3.attention.layer_norm_rms_epsilon"],
        }
    return [reference.qwen3_forward(config, weights, ids) for ids in prompts]


@pytest.fixture(scope="session")
def model_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("layouts")
    made = {x: make_layout(TERNARY_MODEL, folder / f"{x}.gguf", x) for x in LAYOUTS[1:]}
    return {"Q1_0": Q1_MODEL, "TQ2_0_g128": TERNARY_MODEL, **made}


@pytest.fixture(scope="module", params=FORMATS)
def format_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def golden(format_name: str) -> Golden:
    return Golden(format_name)


@pytest.fixture(scope="module")
def loaded(
    opened_device: metal.Device, model_paths: dict[str, Path], format_name: str
) -> Iterator[Model]:
    with Model.load(model_paths[format_name], opened_device) as model:
        yield model


@pytest.fixture
def model(loaded: Model, device: metal.Device) -> Model:
    """The demo model; `device` sees to it that the test's sessions leave nothing."""
    return loaded


@pytest.fixture
def tiny(device: metal.Device, tmp_path: Path) -> Iterator[Model]:
    """A model small enough for a device that is interpreted."""
    shape = Tiny(context=128)
    path = write(tmp_path / "tiny.gguf", shape, random_tensors(shape))
    with Model.load(path, device) as model:
        yield model


TINY_IDS = np.random.default_rng(5).integers(0, 77, 40).tolist()


def logits_of(session: Session, ids: Sequence[int]) -> F32:
    found = session.forward(ids)
    assert found is not None
    return found


def every_position(model: Model, ids: Sequence[int], **kw: Any) -> F32:
    with model.session(**kw) as session:
        return logits_of(session, ids)


def test_the_files_hold_the_layouts_they_are_named_for(model, format_name):
    formats = {h.format for h in model.weights.handles if h.format != "F32"}
    assert formats == {format_name}
    assert model.config.n_layers == 6
    assert model.weights.tied


@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
def test_first_logits_match_the_golden(model, golden, kv_dtype):
    y = every_position(model, golden.ids[1][:2], kv_dtype=kv_dtype)
    assert relative_error(y, golden.logits[1][:2]) <= LIMIT[kv_dtype]


@pytest.mark.large
@pytest.mark.parametrize("prompt", PROMPT)
@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
def test_logits_of_every_position_match_the_golden(model, golden, kv_dtype, prompt):
    y = every_position(model, golden.ids[prompt], kv_dtype=kv_dtype)
    assert y.dtype == np.float32
    assert y.shape == golden.logits[prompt].shape
    errors = [relative_error(a, r) for a, r in zip(y, golden.logits[prompt], strict=True)]
    assert max(errors) <= LIMIT[kv_dtype], f"at position {int(np.argmax(errors))}"


@pytest.mark.large
@pytest.mark.parametrize("prompt", PROMPT)
def test_keys_and_values_of_8_bits_change_the_logits_by_less_than_5e_3(model, golden, prompt):
    # Of the norm of all logits of the text.
    y = every_position(model, golden.ids[prompt], kv_dtype="q8")
    assert relative_error(y, golden.logits[prompt]) < 5e-3


# These for time: a text on the cpu's portable kernels takes a second on a busy machine.
SLOW = pytest.mark.slow
REPEAT = [SLOW, pytest.mark.same_kernels]


@pytest.mark.large
@pytest.mark.parametrize(
    ("kv_dtype", "prompt"),
    [
        ("f16", 0),
        ("f32", 1),
        pytest.param("f32", 0, marks=REPEAT),
        pytest.param("f16", 1, marks=REPEAT),
        pytest.param("f32", 2, marks=REPEAT),
        pytest.param("f16", 2, marks=REPEAT),
    ],
)
def test_greedy_text_is_the_goldens(model, golden, format_name, kv_dtype, prompt):
    with model.session(kv_dtype=kv_dtype) as session:
        session.forward(golden.ids[prompt], logits=None)
        text = list(session.generate(64))
        assert session.tokens == golden.ids[prompt] + text
        if golden.greedy:
            assert text == golden.greedy[prompt]
    # What the device chose is the largest of the logits that it returns.
    if (kv_dtype, prompt) == ("f16", 0):
        fed = golden.ids[prompt] + text
        y = every_position(model, fed, kv_dtype=kv_dtype)
        assert np.argmax(y[len(golden.ids[prompt]) - 1 : -1], axis=1).tolist() == text


SPLITS = {
    "token by token": [1] * 40,
    "at once": [40],
    "uneven": [3, 1, 17, 2, 16, 1],
    "at the limit of a chunk": [16, 17, 7],
}


# Token by token: a batch may add in another order, which test_prefill.py holds to its bounds.
SINGLY = {"chunk": 1}


def check_split(
    model: Model, ids: Sequence[int], sizes: Sequence[int], kv_dtype: Any, shifts: int = 3
) -> None:
    """Feed `ids` in pieces, with each kind of logits in turn, and compare every bit."""
    whole = every_position(model, ids, kv_dtype=kv_dtype, **SINGLY)
    for shift in range(shifts):
        with model.session(kv_dtype=kv_dtype, **SINGLY) as session:
            start = 0
            for i, size in enumerate(sizes):
                piece = ids[start : start + size]
                mode: Any = ("all", "last", None)[(i + shift) % 3]
                found = session.forward(piece, logits=mode)
                if mode == "all":
                    np.testing.assert_array_equal(found, whole[start : start + size])
                elif mode == "last":
                    np.testing.assert_array_equal(found, whole[start + size - 1])
                else:
                    assert found is None
                start += size
            assert session.position == start
            # The last token again: whatever the mode was, the cache holds the same bits.
            session.rewind(start - 1)
            np.testing.assert_array_equal(logits_of(session, ids[start - 1 : start])[0], whole[-1])


@pytest.mark.large
@pytest.mark.parametrize(
    ("kv_dtype", "split"),
    [
        ("f16", "uneven"),
        *(
            pytest.param("f32", split, marks=SLOW if split == "uneven" else REPEAT)
            for split in SPLITS
        ),
    ],
)
def test_split_of_the_prompt_does_not_change_a_bit(model, golden, kv_dtype, split):
    check_split(model, golden.text, SPLITS[split], kv_dtype, shifts=1)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
def test_split_of_the_prompt_does_not_change_a_bit_of_a_small_model(tiny, kv_dtype, split):
    check_split(tiny, TINY_IDS, SPLITS[split], kv_dtype)


def check_rewind(model: Model, ids: Sequence[int], other: Sequence[int], kv_dtype: Any) -> None:
    whole = every_position(model, ids, kv_dtype=kv_dtype, **SINGLY)
    with model.session(kv_dtype=kv_dtype, **SINGLY) as session:
        logits_of(session, ids)
        for position in (len(ids) - 1, len(ids) // 2, 1, 0, len(ids)):
            if position < session.position:
                session.rewind(position)
                # Other tokens overwrite the cache in between.
                session.forward(other, logits=None)
                session.rewind(position)
            assert session.position == position
            assert session.tokens == list(ids[:position])
            rest = ids[position:]
            if rest:
                np.testing.assert_array_equal(logits_of(session, rest), whole[position:])


@pytest.mark.large
@pytest.mark.parametrize("kv_dtype", [pytest.param("f32", marks=SLOW), "f16"])
def test_rewound_session_gives_the_same_bits(model, golden, kv_dtype):
    check_rewind(model, golden.ids[0], golden.ids[2][:3], kv_dtype)


@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
def test_rewound_session_of_a_small_model_gives_the_same_bits(tiny, kv_dtype):
    check_rewind(tiny, TINY_IDS[:20], TINY_IDS[-5:], kv_dtype)


def test_generation_after_a_rewind_continues_what_is_left(tiny):
    with tiny.session() as session:
        session.forward(TINY_IDS[:9], logits=None)
        text = list(session.generate(8))
        session.rewind(9)
        assert list(session.generate(8)) == text
        session.rewind(12)
        assert list(session.generate(5)) == text[3:]
        session.rewind(9)
        sampled = list(session.generate(8, temperature=1.0, seed=3))
        session.rewind(9)
        assert list(session.generate(8, temperature=1.0, seed=3)) == sampled


def test_generation_goes_on_where_it_was_left(tiny):
    with tiny.session() as session:
        session.forward(TINY_IDS[:9], logits=None)
        text = list(session.generate(12))
        session.rewind(9)
        parts = list(session.generate(3))
        for token in session.generate(100):  # left in the middle
            parts.append(token)
            if len(parts) == 7:
                break
        assert session.tokens == TINY_IDS[:9] + parts
        assert parts + list(session.generate(5)) == text


def check_interleaved(model: Model, texts: Sequence[Sequence[int]]) -> None:
    """Feed two texts by turns into sessions of both kinds of cache."""
    kinds: tuple[Any, Any] = ("f16", "f32")
    whole = [
        every_position(model, t, kv_dtype=k, **SINGLY) for t, k in zip(texts, kinds, strict=True)
    ]
    with (
        model.session(kv_dtype="f16", **SINGLY) as a,
        model.session(64, kv_dtype="f32", **SINGLY) as b,
    ):
        for i in range(max(map(len, texts))):
            for session, text, expected in zip((a, b), texts, whole, strict=True):
                if i < len(text):
                    np.testing.assert_array_equal(logits_of(session, [text[i]])[0], expected[i])
        assert [a.tokens, b.tokens] == [list(t) for t in texts]


@pytest.mark.large
def test_sessions_by_turns_do_not_disturb_each_other(model, golden):
    check_interleaved(model, (golden.ids[0], golden.ids[2]))


def test_sessions_of_a_small_model_do_not_disturb_each_other(tiny):
    check_interleaved(tiny, (TINY_IDS[:12], TINY_IDS[12:30]))


@pytest.mark.threads
def test_sessions_in_several_threads_do_not_disturb_each_other(tiny, fast_switches):
    texts = [TINY_IDS[i : i + 20] for i in range(4)]
    whole = [every_position(tiny, text) for text in texts]
    found: dict[int, list[F32]] = {}

    def run(i: int) -> None:
        rows = []
        with tiny.session() as session:
            for _ in range(3):
                rows.append(logits_of(session, texts[i]))
                session.rewind(0)
        found[i] = rows

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(whole):
        for rows in found[i]:
            np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("layout", ["Q2_0_g128", "PQ2_0"])
def test_layouts_of_one_device_format_give_the_same_bits(device, model_paths, layout):
    ids = [1264, 390]
    found = []
    for name in ("TQ2_0_g128", layout):
        with Model.load(model_paths[name], device) as model:
            found.append(every_position(model, ids))
    np.testing.assert_array_equal(found[0], found[1])


def test_digits_take_less_memory_and_give_the_logits_of_codes(device, model_paths):
    found, nbytes = [], []
    for name in ("TQ2_0_g128", "PTQ1_0"):
        with Model.load(model_paths[name], device) as model:
            found.append(every_position(model, [1264, 390], kv_dtype="f32"))
            nbytes.append(sum(handle.nbytes for handle in model.weights.handles))
    assert relative_error(found[1], found[0].astype(np.float64)) <= 1e-5
    assert nbytes[1] < nbytes[0]


def test_two_loads_give_the_same_bits(model, golden, model_paths, format_name, device):
    first = every_position(model, golden.ids[1][:2])
    with Model.load(model_paths[format_name], device) as again:
        np.testing.assert_array_equal(every_position(again, golden.ids[1][:2]), first)
    np.testing.assert_array_equal(every_position(model, golden.ids[1][:2]), first)


@pytest.mark.parametrize("path", [Q1_MODEL, TERNARY_MODEL], ids=["Q1_0", "TQ2_0_g128"])
def test_number_of_threads_does_not_change_a_bit(path):
    found = []
    for threads in (1, 2, 3):
        with metal.Device("cpu", threads=threads) as device, Model.load(path, device) as model:
            assert device.info.threads == threads
            ids = model.tokenizer.encode(PROMPTS[0])
            found.append(every_position(model, ids))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_length_of_the_cache_does_not_change_the_logits(tiny):
    # Another split of the attention over positions is allowed, so not to the bit.
    long = every_position(tiny, TINY_IDS, max_seq=128, kv_dtype="f32")
    short = every_position(tiny, TINY_IDS, max_seq=len(TINY_IDS), kv_dtype="f32")
    assert relative_error(short, long.astype(np.float64)) <= 1e-6
