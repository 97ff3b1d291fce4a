"""Models whose weights were rotated, against float64 runs of what they are without that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hybrids
import tiny_models
from cases import relative_error
from numpy.typing import NDArray
from places import DATA
from rotated_models import Folding
from tiny_hybrids import Hybrid
from tiny_models import Tiny

from oxibonsai import metal
from oxibonsai.gguf import GGUFError
from oxibonsai.metal import Device
from oxibonsai.model import Model

GOLDEN = DATA / "hybrid" / "rotated-v1-q2_0"
pytestmark = pytest.mark.large

TINY = Tiny(n_layers=2, hidden=128, inter=384, n_heads=4, n_kv_heads=2, head_dim=64)
WIDE = Tiny(n_layers=1, hidden=1024, inter=1024, n_heads=16, n_kv_heads=1, head_dim=64)
HYBRID = Hybrid(n_layers=4, key_heads=2, value_heads=6, value_dim=64)
GROUPS = (2, 6, 64)  # key heads, value heads and their size
LONG = Hybrid(
    n_layers=2,
    hidden=1024,
    inter=1024,
    n_heads=16,
    key_heads=4,
    value_heads=16,
    key_dim=32,
    value_dim=64,
)
IDS = np.random.default_rng(11).integers(0, TINY.vocab, 21).tolist()


def tensors_of(shape: Tiny | Hybrid, format_name: str, *, tied: bool, **kw: Any) -> dict[str, Any]:
    module = tiny_models if isinstance(shape, Tiny) else tiny_hybrids
    found: dict[str, Any] = module.random_tensors(shape, format_name, tied=tied, **kw)  # type: ignore[arg-type]
    return found


def write(
    path: Path, shape: Tiny | Hybrid, tensors: dict[str, Any], folding: Folding | None
) -> Path:
    """Write the tensors as weights that were rotated, or as they are."""
    shapes = {name: t.shape if hasattr(t, "shape") else t[1] for name, t in tensors.items()}
    metadata = {} if folding is None else folding.metadata(shapes)
    module = tiny_models if isinstance(shape, Tiny) else tiny_hybrids
    written: Path = module.write(path, shape, tensors, metadata)  # type: ignore[arg-type]
    return written


def expected(
    shape: Tiny | Hybrid, tensors: dict[str, Any], folding: Folding, ids: list[int]
) -> NDArray[np.float64]:
    """Return the float64 logits of the unrotated weights."""
    module = tiny_models if isinstance(shape, Tiny) else tiny_hybrids
    weights = folding.unfolded(tiny_models.weights64(tensors))
    found: NDArray[np.float64] = module.reference_logits(shape, weights, ids)  # type: ignore[arg-type]
    return found


def check(
    device: Device, path: Path, shape: Tiny | Hybrid, folding: Folding, format_name: str
) -> None:
    tensors = tensors_of(shape, format_name, tied=folding.version == 2 or not folding.embedding)
    write(path, shape, tensors, folding)
    ids = IDS[:11]
    rows = expected(shape, tensors, folding, ids)
    with Model.load(path, device) as model:
        for chunk in (11, 1):
            with model.session(kv_dtype="f32") as session:
                found = session.forward(ids, chunk=chunk)
                assert found is not None
                assert relative_error(found, rows) <= 1e-5
        with model.session(kv_dtype="f32") as session:
            last = session.forward(ids, logits="last", chunk=4)
            assert last is not None
            assert relative_error(last, rows[-1]) <= 1e-5


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "identity"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("format_name", ["Q1_0", "PQ2_0", "Q8_0"])
def test_qwen3_equals_the_unrotated_weights(device, tmp_path, version, explicit, format_name):
    folding = Folding(version, explicit=explicit)
    check(device, tmp_path / "m.gguf", TINY, folding, format_name)


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "identity"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("groups", [GROUPS, None], ids=["grouped", "tiled"])
def test_qwen35_equals_the_unrotated_weights(device, tmp_path, version, explicit, groups):
    folding = Folding(version, explicit=explicit, value_heads=groups)
    check(device, tmp_path / "m.gguf", HYBRID, folding, "TQ2_0_g128")


@pytest.mark.parametrize("block", [16, 256, 1024])
def test_qwen3_has_blocks_of_any_size(device, tmp_path, block):
    check(device, tmp_path / "m.gguf", WIDE, Folding(block=block), "Q1_0")


@pytest.mark.parametrize("block", [32, 1024])
def test_qwen35_has_blocks_across_value_heads(device, tmp_path, block):
    folding = Folding(block=block, value_heads=(4, 16, 64))
    check(device, tmp_path / "m.gguf", LONG, folding, "Q1_0")


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (TINY, ("attn_output",)),
        (TINY, ("attn_q", "attn_k", "attn_v")),
        (TINY, ("ffn_gate", "ffn_up", "ffn_down")),
        (HYBRID, ("ssm_out", "ffn_down")),
        (HYBRID, ("attn_qkv", "attn_gate", "attn_output")),
        (HYBRID, ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")),
    ],
)
def test_some_of_the_inputs_may_be_rotated(device, tmp_path, shape, names):
    folding = Folding(names=names, embedding=False, value_heads=GROUPS)
    check(device, tmp_path / "m.gguf", shape, folding, "PQ2_0")


def test_q_k_and_v_in_one_tensor_and_in_several_formats_are_rotated(device, tmp_path):
    folding = Folding()
    tensors = tensors_of(TINY, "Q1_0", tied=False, formats={"attn_k": "Q8_0", "attn_v": "F16"})
    rows = expected(TINY, tensors, folding, IDS)
    write(tmp_path / "m.gguf", TINY, tensors, folding)
    with Model.load(tmp_path / "m.gguf", device) as model, model.session(kv_dtype="f32") as session:
        found = session.forward(IDS)
        assert found is not None
        assert relative_error(found, rows) <= 1e-5


@pytest.mark.parametrize("width", [128, 256, 384])
def test_a_flipped_sign_changes_the_logits(device, tmp_path, width):
    tensors = tensors_of(TINY, "Q1_0", tied=False)
    found = []
    for folding in (Folding(), Folding(flipped=(width, 17))):
        write(tmp_path / "m.gguf", TINY, tensors, folding)
        with (
            Model.load(tmp_path / "m.gguf", device) as model,
            model.session(kv_dtype="f32") as session,
        ):
            rows = session.forward(IDS)
            assert rows is not None
            assert relative_error(rows, expected(TINY, tensors, folding, IDS)) <= 1e-5
            found.append(rows)
    assert relative_error(found[1], found[0]) > 1e-3


def test_a_session_of_other_signs_does_not_go_on(device, tmp_path):
    tensors = tensors_of(TINY, "Q1_0", tied=False)
    fingerprints = set()
    for folding in (None, Folding(), Folding(flipped=(384, 3)), Folding(explicit=False)):
        write(tmp_path / "m.gguf", TINY, tensors, folding)
        with Model.load(tmp_path / "m.gguf", device) as model:
            fingerprints.add(model.fingerprint)
    assert len(fingerprints) == 4


def test_golden_of_unrotated_weights_is_reached(device):
    with np.load(f"{GOLDEN}-golden.npz") as z:
        ids, positions = z["ids"].tolist(), z["positions"]
        rows, argmax = z["logits"], z["argmax"]
    with (
        Model.load(f"{GOLDEN}.gguf", device) as model,
        model.session(kv_dtype="f32") as session,
    ):
        found = session.forward(ids)
        assert found is not None
        for row, one in zip(rows, found[positions], strict=True):
            assert relative_error(one, row) <= 1e-5
        np.testing.assert_array_equal(found.argmax(1), argmax)


@pytest.mark.parametrize("shape", [TINY, HYBRID], ids=["qwen3", "qwen35"])
def test_deterministic_sessions_have_the_bits_of_one_token_at_a_time(device, tmp_path, shape):
    folding = Folding(value_heads=None if isinstance(shape, Tiny) else GROUPS)
    write(tmp_path / "m.gguf", shape, tensors_of(shape, "Q1_0", tied=False), folding)
    with Model.load(tmp_path / "m.gguf", device) as model:
        runs = []
        for chunk in (1, 5, 21, 21):
            with model.session(deterministic=True, chunk=chunk) as session:
                rows = session.forward(IDS)
                assert rows is not None
                runs.append(rows.tobytes())
    assert len(set(runs)) == 1


@pytest.mark.parametrize("activations", ["int8", "half"])
def test_prompts_in_fewer_bits_take_rotated_activations(device, tmp_path, activations):
    if (device.driver == "cpu") != (activations == "int8"):
        with pytest.raises(metal.EncodingError):
            device_model(device, tmp_path, activations)
        return
    ids = np.random.default_rng(2).integers(0, TINY.vocab, 64).tolist()
    with device_model(device, tmp_path, activations) as model, model.session() as session:
        found = session.forward(ids, chunk=64)
        assert found is not None
        tensors, folding = tensors_of(TINY, "Q1_0", tied=False), Folding()
        rows = expected(TINY, tensors, folding, ids)
        assert 1e-5 < relative_error(found, rows) <= 3e-2


def device_model(device: Device, folder: Path, activations: Any) -> Model:
    path = write(folder / "m.gguf", TINY, tensors_of(TINY, "Q1_0", tied=False), Folding())
    return Model.load(path, device, activations=activations)


@pytest.mark.parametrize("shape", [TINY, HYBRID], ids=["qwen3", "qwen35"])
def test_an_engine_gives_the_texts_of_sessions(device, tmp_path, shape):
    folding = Folding(value_heads=None if isinstance(shape, Tiny) else GROUPS)
    write(tmp_path / "m.gguf", shape, tensors_of(shape, "Q1_0", tied=False), folding)
    prompts = [IDS[:5], IDS[3:17], IDS[10:12]]
    with Model.load(tmp_path / "m.gguf", device) as model:
        alone = []
        for prompt in prompts:
            with model.session(max_seq=64, chunk=64, deterministic=True) as session:
                session.forward(prompt, logits=None)
                alone.append(list(session.generate(9)))
        with model.engine(2, max_seq=64, chunk=64, deterministic=True) as engine:
            requests = [engine.submit(prompt, 9) for prompt in prompts]
            found = [request.result(120) for request in requests]
    assert [one.error for one in found] == [None] * 3
    assert [one.tokens for one in found] == alone


def write_ungrouped(path: Path, shape: Hybrid, folding: Folding, said: bool | None) -> None:
    """Write a model whose file says whether it is grouped, or does not say it."""
    tensors = tensors_of(shape, "Q1_0", tied=False)
    shapes = {name: t.shape if hasattr(t, "shape") else t[1] for name, t in tensors.items()}
    said_as = {"prism.hadamard.gdn_v_grouped": said}
    tiny_hybrids.write(path, shape, tensors, {**folding.metadata(shapes), **said_as})


def test_a_file_has_to_say_in_which_order_its_value_heads_are(device, tmp_path):
    path = tmp_path / "m.gguf"
    write_ungrouped(path, HYBRID, Folding(), False)
    Model.load(path, device).close()
    write_ungrouped(path, HYBRID, Folding(), None)
    message = r"gdn_v_grouped is missing, but 'blk\.0\.ssm_out\.weight' .* 3 value heads share"
    with pytest.raises(GGUFError, match=message):
        Model.load(path, device)


@pytest.mark.parametrize(
    ("shape", "names"), [(replace(HYBRID, value_heads=2), None), (HYBRID, ("ffn_down",))]
)
def test_an_order_that_does_not_matter_need_not_be_said(device, tmp_path, shape, names):
    write_ungrouped(tmp_path / "m.gguf", shape, Folding(names=names), None)
    Model.load(tmp_path / "m.gguf", device).close()


class Watched:
    """A model's graph that keeps the recordings that are made on it."""

    def __init__(self, graph: metal.MetalGraph) -> None:
        self._graph = graph
        self.made: list[metal.Commands] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)

    def commands(self, **options: Any) -> metal.Commands:
        self.made.append(self._graph.commands(**options))
        return self.made[-1]


def kernels(model: Model) -> list[str]:
    """Return the kernels of a step of one token, in order."""
    model.graph = graph = Watched(model.graph)  # type: ignore[assignment]
    with model.session(chunk=1) as session:
        session.forward(IDS[:1], logits="last")
        lines = graph.made[0].describe().splitlines()
    return [line.split()[1] for line in lines if not line.startswith(" ")]


@pytest.mark.parametrize("shape", [TINY, HYBRID], ids=["qwen3", "qwen35"])
def test_an_activation_is_rotated_once_for_all_that_take_it(device, tmp_path, shape):
    tensors = tensors_of(shape, "Q1_0", tied=False)
    counts = {}
    for folding in (None, Folding(embedding=False), Folding()):
        write(tmp_path / "m.gguf", shape, tensors, folding)
        with Model.load(tmp_path / "m.gguf", device) as model:
            found = kernels(model)
        counts[folding] = sum("hadamard" in name for name in found)
    # Of each layer the inputs of q, k and v, of the output, of gate and up, and of down.
    assert list(counts.values()) == [0, 4 * shape.n_layers + 1, 4 * shape.n_layers + 2]
