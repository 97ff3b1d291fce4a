"""Files of every type that llama-quantize makes: the logits of the values that ggml sees in them.

llama.cpp rounds activations to 8-bit integers, as wide as the blocks of the weights: for these
models its logits differ by 3e-2 to 5e-2 (relative L2) from those of the same weights in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ggml
import numpy as np
import pytest
from cases import relative_error
from llama_runs import llama_logits
from numpy.typing import NDArray
from peers import import_peer
from reference import qwen3_forward
from tiny_models import Tensors, Tiny, byte_vocabulary, random_tensors, write

from oxibonsai import gguf
from oxibonsai.model import Model

TINY = Tiny(n_layers=4, hidden=256, inter=512, vocab=258)
NARROW = replace(TINY, n_layers=3, hidden=288, inter=544, n_heads=3, n_kv_heads=1, head_dim=96)
"""Its rows do not fill blocks of 256, for which llama-quantize has other types."""
IDS: list[int] = np.random.default_rng(5).integers(0, TINY.vocab, 24).tolist()
READ = (
    *("F32", "F16", "BF16", "Q8_0", "MXFP4_MOE"),
    *("Q1_0", "Q2_0", "TQ1_0", "TQ2_0"),
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS"),
    *("Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L"),
    *("Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
)
SLOW = (
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"),
    *("IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M"),
)
"""For the tables of each the quantiser needs up to ten seconds: a few are made."""
NOT_MADE = ("NVFP4",)
"""llama-quantize itself refuses them."""
NUMBERS = {
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "q2_K": 10,
    "q3_K": 11,
    "q4_K": 12,
    "q5_K": 13,
    "q6_K": 14,
    "iq4_nl": 20,
    "iq4_xs": 23,
    "bf16": 30,
    "tq1_0": 34,
    "tq2_0": 35,
    "mxfp4": 39,
}
"""ggml's numbers of types that an embedding and a head can have."""


def vocabulary() -> dict[str, Any]:
    """Return the byte vocabulary with a merge: the package gguf writes no empty list."""
    found = byte_vocabulary()
    found["tokenizer.ggml.tokens"].append("ab")
    found["tokenizer.ggml.token_type"].append(1)
    return found | {"tokenizer.ggml.merges": ["a b"]}


@dataclass(frozen=True)
class Source:
    """A model in float32 for the quantiser."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    tiny: Tiny = TINY

    @property
    def importance(self) -> dict[str, int]:
        return {name: shape[1] for name, shape in self.shapes.items() if len(shape) == 2}

    def quantize(self, path: Path, file_type: str, **options: Any) -> Path:
        if not ggml.quantize(self.path, path, file_type, **options):
            # The smallest types are refused without an importance matrix.
            assert ggml.quantize(
                self.path, path, file_type, importance=self.importance, **options
            ), file_type
        return path

    def logits(self, *paths: Path) -> NDArray[np.float64]:
        """Return the logits in float64 of the weights as ggml dequantises them."""
        config = {
            "n_layers": self.tiny.n_layers,
            "n_heads": self.tiny.n_heads,
            "n_kv_heads": self.tiny.n_kv_heads,
            "head_dim": self.tiny.head_dim,
            "rope_theta": float(np.float32(self.tiny.rope_theta)),
            "eps": float(np.float32(self.tiny.eps)),
        }
        return qwen3_forward(config, ggml.weights64(paths, self.shapes), IDS)


def source(folder: Path, *, tied: bool, tiny: Tiny = TINY) -> Source:
    path = folder / f"f32-{'tied' if tied else 'untied'}.gguf"
    write(path, tiny, random_tensors(tiny, "F32", tied=tied, seed=3), vocabulary())
    head = {} if tied else {"output.weight": (tiny.vocab, tiny.hidden)}
    return Source(path, tiny.shapes | head, tiny)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Source]:
    folder = tmp_path_factory.mktemp("sources")
    return {tied: source(folder, tied=tied) for tied in (True, False)}


def our_logits(path: Path, device: Any, kv_dtype: Any) -> NDArray[np.float32]:
    with Model.load(path, device) as model, model.session(kv_dtype=kv_dtype) as session:
        found = session.forward(IDS)
    assert found is not None
    return found


def test_every_type_is_here():
    assert {*READ, *SLOW, *NOT_MADE} == set(ggml.file_types())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("file_type", READ)
def test_the_logits_are_those_of_the_values_in_the_file(device, tmp_path, sources, file_type, tied):
    path = sources[tied].quantize(tmp_path / "model.gguf", file_type)
    expected = sources[tied].logits(path)
    exact = our_logits(path, device, "f32")
    errors = [relative_error(y, r) for y, r in zip(exact, expected, strict=True)]
    assert max(errors) <= 1e-5, f"at position {int(np.argmax(errors))}"
    assert relative_error(our_logits(path, device, "f16"), expected) <= 1e-3
    theirs = llama_logits(path, IDS)
    bound = 1e-5 if file_type == "F32" else 0.08
    assert relative_error(theirs, exact.astype(np.float64)) <= bound


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("file_type", ["IQ4_XS", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "TQ2_0"])
def test_rows_that_fill_no_block_of_256(device, tmp_path, file_type, tied):
    narrow = source(tmp_path, tied=tied, tiny=NARROW)
    path = narrow.quantize(tmp_path / "model.gguf", file_type)
    types = {tensor.type_name for tensor in ggml.read(path).values()}
    assert types & {"q4_0", "q5_0", "q5_1", "iq4_nl"}
    found = our_logits(path, device, "f32")
    assert relative_error(found, narrow.logits(path)) <= 1e-5


@pytest.mark.parametrize("type_name", NUMBERS)
def test_embedding_and_head_of_another_type(device, tmp_path, sources, type_name):
    number = NUMBERS[type_name]
    path = sources[False].quantize(
        tmp_path / "model.gguf", "Q1_0", output_tensor_type=number, token_embedding_type=number
    )
    types = {name: tensor.type_name for name, tensor in ggml.read(path).items()}
    assert types["output.weight"] == types["token_embd.weight"] == type_name
    found = our_logits(path, device, "f32")
    assert relative_error(found, sources[False].logits(path)) <= 1e-5


@pytest.mark.parametrize("file_type", ["IQ2_XXS", "IQ3_S", "IQ3_M"])
def test_types_of_code_books_too(device, tmp_path, file_type):
    small = source(tmp_path, tied=False, tiny=replace(TINY, n_layers=1))
    path = small.quantize(tmp_path / "model.gguf", file_type)
    assert {t.type_name for t in ggml.read(path).values()} & {"iq2_xxs", "iq3_s"}
    found = our_logits(path, device, "f32")
    assert relative_error(found, small.logits(path)) <= 1e-5


def split_with_gguf(path: Path, out: Path, *, tensors: int) -> None:
    """Write the model in parts of so many tensors with the package gguf."""
    package = import_peer("gguf")
    reader = package.GGUFReader(path)
    writer = package.GGUFWriter(out, "qwen3", split_max_tensors=tensors)
    for key, value in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kinds = [*value.types, None]
            writer.add_key_value(key, value.contents(), kinds[0], kinds[1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def parts(
    sources: dict[bool, Source], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Path]]:
    """A model in parts, as the package gguf writes them and as llama-quantize keeps them."""
    folder = tmp_path_factory.mktemp("split")
    split_with_gguf(sources[False].path, folder / "f32.gguf", tensors=12)
    first, *_ = sorted(folder.glob("f32-*.gguf"))
    assert ggml.quantize(first, folder / "q4", "Q4_K_M", keep_split=True)
    found = {name: sorted(folder.glob(f"{name}-*.gguf")) for name in ("f32", "q4")}
    for name, paths in found.items():
        assert [path.name for path in paths] == [
            f"{name}-0000{i}-of-00004.gguf" for i in range(1, 5)
        ]
    return found


@pytest.mark.parametrize("name", ["f32", "q4"])
def test_the_first_part_of_a_split_file_opens_all(device, sources, parts, name):
    found = our_logits(parts[name][0], device, "f32")
    assert relative_error(found, sources[False].logits(*parts[name])) <= 1e-5
    assert relative_error(llama_logits(parts[name][0], IDS), found.astype(np.float64)) <= 0.08


def test_parts_give_the_logits_of_one_file(device, sources, parts):
    one = our_logits(sources[False].path, device, "f32")
    assert np.array_equal(our_logits(parts["f32"][0], device, "f32"), one)


def test_another_part_names_the_first(device, parts):
    with pytest.raises(gguf.GGUFError, match="00001-of-00004"):
        Model.load(parts["q4"][2], device)


BIASES = {"attn_q": 256, "attn_k": 128, "attn_v": 128}


def with_biases(tensors: Tensors, parts: dict[str, int], *, zero: bool = False) -> Tensors:
    rng = np.random.default_rng(8)
    biases: Tensors = {
        f"blk.{i}.{part}.bias": rng.standard_normal(n, np.float32) * (not zero)
        for part, n in parts.items()
        for i in range(TINY.n_layers)
    }
    return tensors | biases


def fused(tensors: Tensors) -> Tensors:
    """Return the model with q, k and v of each layer in one matrix."""
    found = dict(tensors)
    for i in range(TINY.n_layers):
        rows = [np.asarray(found.pop(f"blk.{i}.attn_{part}.weight")) for part in "qkv"]
        found[f"blk.{i}.attn_qkv.weight"] = np.concatenate(rows)
    return found


def plain() -> Tensors:
    """Return float32 weights: llama.cpp computes with them as they are."""
    found: Tensors = {}
    for name, shape in TINY.shapes.items():
        rng = np.random.default_rng(len(found))
        w = rng.standard_normal(shape, np.float32)
        found[name] = np.abs(w) + 0.5 if len(shape) == 1 else w / np.float32(shape[1] ** 0.5)
    return found


LAYERS = {
    "separate, no bias": plain,
    "bias of q": lambda: with_biases(plain(), {"attn_q": 256}),
    "bias of k": lambda: with_biases(plain(), {"attn_k": 128}),
    "bias of v": lambda: with_biases(plain(), {"attn_v": 128}),
    "biases of q, k and v": lambda: with_biases(plain(), BIASES),
    "biases of zeros": lambda: with_biases(plain(), BIASES, zero=True),
    "fused qkv": lambda: fused(plain()),
    "fused qkv with a bias": lambda: with_biases(fused(plain()), {"attn_qkv": 512}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_biases_and_fused_projections_as_llama_cpp(device, tmp_path, name):
    path = write(tmp_path / "model.gguf", TINY, LAYERS[name](), vocabulary())
    found = our_logits(path, device, "f32")
    assert relative_error(found, llama_logits(path, IDS)) <= 1e-5


def test_gate_and_up_of_two_types(device, tmp_path):
    tensors = random_tensors(TINY, "F32", formats={"ffn_gate": "Q8_0", "ffn_up": "F16"})
    path = write(tmp_path / "model.gguf", TINY, tensors, vocabulary())
    expected = Source(path, TINY.shapes).logits(path)
    assert relative_error(our_logits(path, device, "f32"), expected) <= 1e-5
