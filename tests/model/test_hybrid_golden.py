"""Small qwen35 models against float64 logits that transformers computed from the same weights.

The weights are random values that blocks of 1 bit and of trits hold exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from places import DATA

from oxibonsai import metal
from oxibonsai.model import Model

pytestmark = pytest.mark.large

FILES = [DATA / "hybrid/small-q2_0.gguf", DATA / "hybrid/small-q1_0-tied.gguf"]
LIMIT: dict[Any, float] = {"f32": 1e-5, "f16": 1e-3}
TIE = 1e-3
"""Of the spread of the logits: a gap between the two largest below it is a near tie."""


class Golden:
    """Ids, logits of some positions, and the most probable token of all."""

    def __init__(self, path: Any) -> None:
        with np.load(path.with_name(f"{path.stem}-golden.npz")) as z:
            self.ids: list[int] = z["ids"].tolist()
            self.positions: NDArray[np.int64] = z["positions"]
            self.logits: NDArray[np.float64] = z["logits"]
            self.argmax: NDArray[np.int64] = z["argmax"]


@pytest.fixture(scope="module", params=FILES, ids=["q2_0", "q1_0-tied"])
def loaded(request: pytest.FixtureRequest, opened_device: metal.Device) -> Iterator[Any]:
    with Model.load(request.param, opened_device) as model:
        yield model, Golden(request.param)


def check(found: NDArray[np.float32], golden: Golden, kv_dtype: str) -> None:
    """Check logits [n, vocab] of the first n positions."""
    n = len(found)
    known = golden.positions < n
    rows, wanted = found[golden.positions[known]].astype(np.float64), golden.logits[known]
    errors = np.linalg.norm(rows - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert errors.max() <= LIMIT[kv_dtype]
    best = np.sort(found, axis=1)[:, -2:].astype(np.float64)
    clear = best[:, 1] - best[:, 0] > TIE * found.std()
    assert clear.mean() > 0.9
    assert (found.argmax(axis=1)[clear] == golden.argmax[:n][clear]).all()


@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
@pytest.mark.parametrize("chunk", [1, 3, 32, 64, 65, 300])
def test_logits_are_those_of_float64(loaded, device, chunk, kv_dtype):
    model, golden = loaded
    # A device that is interpreted takes long for 300 tokens.
    n = 300 if device.driver in ("cpu", "cuda") else {1: 6, 3: 9}.get(chunk, 70)
    if n < 300 and chunk in (32, 300):
        pytest.skip("64 and 65 cover it on a device that is interpreted")
    with model.session(kv_dtype=kv_dtype) as session:
        found = session.forward(golden.ids[:n], chunk=chunk)
    check(found, golden, kv_dtype)


@pytest.mark.device("metal", "cuda")  # those that have it
def test_half_is_for_those_who_ask(opened_device):
    with Model.load(FILES[0], opened_device) as model:
        assert model.activations == "float32"
    golden = Golden(FILES[0])
    with (
        Model.load(FILES[0], opened_device, activations="half") as model,
        model.session() as session,
    ):
        found = session.forward(golden.ids[:64], chunk=64)
    known = golden.positions < 64
    errors = np.linalg.norm(found[golden.positions[known]] - golden.logits[known], axis=1)
    errors /= np.linalg.norm(golden.logits[known], axis=1)
    assert LIMIT["f16"] < errors.max() <= 5e-3


def test_a_text_that_is_generated_is_that_of_its_chunks(loaded, device):
    model, golden = loaded
    n = 40 if device.driver in ("cpu", "cuda") else 6
    with model.session(kv_dtype="f32") as session:
        session.forward(golden.ids[:n], logits=None)
        tokens = list(session.generate(n, ignore_eos=True))
        session.rewind(0)
        rows = session.forward(golden.ids[:n] + tokens[:-1])
        best = np.sort(rows[n - 1 :], axis=1)[:, -2:]
        clear = best[:, 1] - best[:, 0] > TIE * rows.std()
        assert clear.any()
        assert (rows[n - 1 :].argmax(axis=1) == tokens)[clear].all()


def test_shapes_are_those_of_the_files(loaded):
    model, _ = loaded
    c = model.config
    assert (c.n_layers, c.n_attention_layers, c.n_recurrent_layers) == (8, 2, 6)
    assert c.attention_layers == (False, False, False, True) * 2
    assert (c.rotary_dim, c.head_dim, c.n_skipped_layers) == (16, 64, 0)
    r = c.recurrent
    assert (r.n_key_heads, r.n_value_heads, r.key_dim, r.value_dim) == (2, 6, 128, 128)
    assert r.conv_channels == 1280
    assert c.slot_size == 6 * (3 * 1280 + 6 * 128 * 128)
    with model.session() as session:
        session.forward([1, 2, 3])
        kv = session._decoder.cache
        assert kv.k.nbytes == 2 * 2 * 256 * 64 * 2
