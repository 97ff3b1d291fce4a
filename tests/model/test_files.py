"""Files as llama.cpp's tools write them: whatever it loads of this architecture runs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import held_by, relative_error
from tiny_models import Tiny, random_tensors, reference_logits, weights64, write

from oxibonsai import gguf, quant
from oxibonsai.formats import CONVERTED, FORMATS
from oxibonsai.gguf import GGUFError, ValueType
from oxibonsai.metal import BufferCreationError
from oxibonsai.model import Model
from oxibonsai.model.weights import check_memory

pytestmark = pytest.mark.large

TINY = Tiny(hidden=256, inter=512, vocab=97)
IDS = np.random.default_rng(3).integers(0, TINY.vocab, 19).tolist()
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def logits_of(path: Path, device: Any) -> np.ndarray:
    """Return the logits of IDS with a float32 cache; a prompt, and a token at a time, agree."""
    with Model.load(path, device) as model, model.session(kv_dtype="f32") as session:
        found = session.forward(IDS)
        assert found is not None
        session.rewind(0)
        alone = session.forward(IDS, chunk=1)
        assert alone is not None
        assert relative_error(alone, found) <= 1e-5
        # What generation chooses is of the same weights.
        session.rewind(0)
        session.forward(IDS, logits=None)
        assert next(session.generate(1, ignore_eos=True)) == int(np.argmax(found[-1]))
        return found


def check(path: Path, device: Any, tensors: dict[str, Any], tiny: Tiny = TINY) -> None:
    expected = reference_logits(tiny, tensors, IDS)
    assert np.isfinite(expected).all()
    assert relative_error(logits_of(path, device), expected) <= 1e-5


# Types without kernels


def check_type(name: str, place: str, path: Path, device: Any) -> None:
    parts = {"embedding": ("token_embd",), "head": ("output",), "layer": MATRICES}[place]
    formats = dict.fromkeys(parts, name)
    tensors = random_tensors(TINY, "Q1_0", formats=formats, tied=place != "head")
    check(write(path, TINY, tensors), device, tensors)


PLACES = ("embedding", "head", "layer")
# What a device sees is the format that a type becomes: one type for each.
ONE_OF_EACH = ("Q4_0", "TQ1_0", "MXFP4", "Q6_K")


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("place", PLACES)
def test_type_without_kernels_runs_wherever_it_is(device, tmp_path, name, place):
    check_type(name, place, tmp_path / "m.gguf", device)


@pytest.mark.device("cpu")
@pytest.mark.parametrize("name", [name for name in CONVERTED if name not in ONE_OF_EACH])
@pytest.mark.parametrize("place", PLACES)
def test_every_type_runs_wherever_it_is(device, tmp_path, name, place):
    check_type(name, place, tmp_path / "m.gguf", device)


def test_one_type_becomes_each_format():
    becomes = {CONVERTED[name].becomes for name in ONE_OF_EACH}
    assert becomes == {t.becomes for t in CONVERTED.values()}


def test_what_becomes_of_a_type_is_the_smallest_exact_format(device, tmp_path):
    formats = {"token_embd": "Q6_K", "output": "Q4_0", "attn_output": "TQ1_0", "ffn_down": "MXFP4"}
    tensors = random_tensors(TINY, "TQ2_0", formats=formats, tied=False)
    with Model.load(write(tmp_path / "m.gguf", TINY, tensors), device) as model:
        weights, layer = model.weights, model.weights.layers[1]
        assert (weights.embedding.format, weights.head.format) == ("F32", "Q8_0")
        assert [handle.format for handle in layer.second_handles] == [
            "TQ2_0",
            "F32",
            "TQ2_0",
            "BF16",
        ]


def test_loading_a_converted_matrix_takes_little_memory_beside_it(tmp_path):
    import tracemalloc

    tiny = Tiny(hidden=256, inter=512, vocab=40_000, n_layers=1)
    tensors = random_tensors(tiny, "Q1_0", formats={"token_embd": "Q6_K"})
    path = write(tmp_path / "m.gguf", tiny, tensors)
    del tensors
    tracemalloc.start()
    try:
        with Model.load(path, "cpu") as model:
            nbytes = model.weights.embedding.nbytes
            # Arrays of NumPy are counted, the device's memory is not.
            assert tracemalloc.get_traced_memory()[1] < nbytes / 1.5
    finally:
        tracemalloc.stop()
    assert nbytes == 40_000 * 256 * 4


def test_what_grows_beyond_the_memory_is_refused_before_anything_is_loaded(device, tmp_path):
    tensors = random_tensors(TINY, "Q1_0", formats={"token_embd": "Q6_K", "ffn_down": "Q4_0"})
    with gguf.open(write(tmp_path / "m.gguf", TINY, tensors)) as file:
        stored = sum(t.nbytes for t in file.tensors.values())
        needed = sum(
            math.prod(t.shape[:-1]) * FORMATS[t.loads_as or ""].row_bytes(t.shape[-1])
            for t in file.tensors.values()
        )
        assert needed > stored
        check_memory(file, needed)
        with pytest.raises(BufferCreationError, match=r"Q4_0, Q6_K have no kernels.*GB") as caught:
            check_memory(file, needed - 1)
        assert "llama-quantize --allow-requantize" in str(caught.value)
    with gguf.open(write(tmp_path / "m.gguf", TINY, random_tensors(TINY))) as file:
        check_memory(file, 1)  # Nothing grows: the device says itself what it has no room for.
    # What a device says of its memory is what the loader asks.
    assert device.info.recommended_working_set > needed


def test_error_in_the_middle_of_a_conversion_leaves_nothing(device, tmp_path, monkeypatch):
    tensors = random_tensors(TINY, "Q1_0", formats={"ffn_down": "Q4_K"})
    path = write(tmp_path / "m.gguf", TINY, tensors)
    before = held_by(device)

    def fail(*args: Any) -> Any:
        yield bytes(8)
        raise MemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("oxibonsai.quant.rewritten", fail)
        with pytest.raises(MemoryError):
            Model.load(path, device)
    assert held_by(device) == before
    check(path, device, tensors)


# Several formats in one layer

PAIRS = [
    *itertools.permutations(("Q1_0", "PQ2_0", "Q2_0", "Q8_0", "F16"), 2),
    ("TQ2_0", "PTQ1_0"),
    ("F32", "BF16"),
    ("Q4_K", "Q6_K"),
    ("Q5_0", "TQ1_0"),
    ("MXFP4", "Q8_0"),
]


@pytest.mark.parametrize(
    ("gate", "up"), [("TQ1_0", "Q1_0"), ("Q1_0", "Q2_0"), ("Q8_0", "Q1_0"), ("Q4_K", "Q1_0")]
)
def test_gate_and_up_of_two_formats_run(device, tmp_path, gate, up):
    tensors = random_tensors(TINY, "Q1_0", formats={"ffn_gate": gate, "ffn_up": up})
    check(write(tmp_path / "m.gguf", TINY, tensors), device, tensors)


@pytest.mark.device("cpu")
@pytest.mark.parametrize(("gate", "up"), PAIRS)
def test_gate_and_up_of_any_two_formats_run(device, tmp_path, gate, up):
    tensors = random_tensors(TINY, "Q1_0", formats={"ffn_gate": gate, "ffn_up": up})
    check(write(tmp_path / "m.gguf", TINY, tensors), device, tensors)


@pytest.mark.parametrize(
    ("gate", "up", "expected"),
    [("Q1_0", "TQ2_0", "PQ2_0"), ("Q8_0", "Q1_0", "Q8_0"), ("Q4_K", "Q1_0", "F32")],
)
def test_two_formats_become_the_smallest_that_holds_both(device, tmp_path, gate, up, expected):
    tensors = random_tensors(TINY, "Q1_0", formats={"ffn_gate": gate, "ffn_up": up})
    with Model.load(write(tmp_path / "m.gguf", TINY, tensors), device) as model:
        assert model.weights.layers[0].second_handles[2].format == expected


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ("Q4_K", "Q4_K", "Q6_K"),
        ("Q1_0", "Q4_K", "F32"),
        ("F32", "Q4_1", "Q1_0"),
        ("Q8_0", "Q5_0", "IQ4_NL"),
    ],
)
def test_q_k_and_v_of_several_formats_run(device, tmp_path, q, k, v):
    formats = {"attn_q": q, "attn_k": k, "attn_v": v}
    tensors = random_tensors(TINY, "Q1_0", formats=formats)
    check(write(tmp_path / "m.gguf", TINY, tensors), device, tensors)


def test_formats_may_differ_from_layer_to_layer(device, tmp_path):
    # As llama-quantize's mixtures do: more bits for attn_v and ffn_down of some layers.
    tensors = random_tensors(TINY, "Q4_K", formats={"token_embd": "Q6_K"})
    better = random_tensors(TINY, "Q6_K")
    for name in ("blk.1.attn_v.weight", "blk.1.ffn_down.weight"):
        tensors[name] = better[name]
    check(write(tmp_path / "m.gguf", TINY, tensors), device, tensors)


# Fused tensors and biases


def fuse(tensors: dict[str, Any], kind: str = "weight") -> dict[str, Any]:
    """Return the tensors with q, k and v of each layer in one."""
    found = dict(tensors)
    for i in range(TINY.n_layers):
        parts = [found.pop(f"blk.{i}.attn_{x}.{kind}") for x in "qkv"]
        name = f"blk.{i}.attn_qkv.{kind}"
        if kind == "bias":
            found[name] = np.concatenate(parts)
        elif isinstance(parts[0], tuple):
            data = np.concatenate([data for data, _, _ in parts])
            found[name] = (data, (len(data), TINY.hidden), parts[0][2])
        else:
            data = np.concatenate([part.data for part in parts])
            found[name] = quant.QTensor(data, (len(data), TINY.hidden), parts[0].format)
    return found


def biases(parts: str = "qkv", seed: int = 5) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    rows = {"q": TINY.n_heads, "k": TINY.n_kv_heads, "v": TINY.n_kv_heads}
    return {
        f"blk.{i}.attn_{x}.bias": rng.standard_normal(rows[x] * 64).astype(np.float32)
        for i in range(TINY.n_layers)
        for x in parts
    }


@pytest.mark.parametrize("name", ["Q1_0", "TQ2_0_g128", "F16", "Q4_K", "TQ1_0"])
def test_fused_qkv_runs(device, tmp_path, name):
    tensors = random_tensors(TINY, name)
    path = write(tmp_path / "m.gguf", TINY, fuse(tensors))
    check(path, device, tensors)


@pytest.mark.parametrize("parts", ["qkv", "q", "k", "v", "qv"])
def test_biases_of_q_k_and_v_are_added(device, tmp_path, parts):
    tensors = random_tensors(TINY) | biases(parts)
    check(write(tmp_path / "m.gguf", TINY, tensors), device, tensors)
    without = reference_logits(TINY, random_tensors(TINY), IDS)
    assert relative_error(reference_logits(TINY, tensors, IDS), without) > 1e-2


@pytest.mark.parametrize("weight", [True, False], ids=["fused weight", "weights"])
@pytest.mark.parametrize("bias", [True, False], ids=["fused bias", "biases"])
def test_fused_biases_are_added(device, tmp_path, weight, bias):
    tensors = random_tensors(TINY, "Q8_0") | biases()
    written = fuse(tensors) if weight else tensors
    written = fuse(written, "bias") if bias else written
    check(write(tmp_path / "m.gguf", TINY, written), device, tensors)


def test_bias_of_one_layer_alone_is_added(device, tmp_path):
    tensors = random_tensors(TINY)
    tensors["blk.1.attn_k.bias"] = biases("k")["blk.1.attn_k.bias"]
    check(write(tmp_path / "m.gguf", TINY, tensors), device, tensors)


@pytest.mark.parametrize("format_name", ["F16", "BF16"])
def test_biases_may_be_halves(device, tmp_path, format_name):
    tensors = random_tensors(TINY)
    for name, bias in biases("q").items():
        if format_name == "F16":
            tensors[name] = bias.astype(np.float16)
        else:
            bits = (bias.view(np.uint32) >> 16).astype("<u2")
            tensors[name] = (bits.view(np.uint8), bias.shape, "BF16")
    check(write(tmp_path / "m.gguf", TINY, tensors), device, tensors)


def test_biases_of_zero_cost_nothing(device, tmp_path):
    plain = random_tensors(TINY)
    zero = {name: np.zeros_like(bias) for name, bias in biases().items()}
    zero["blk.0.attn_q.bias"] = -zero["blk.0.attn_q.bias"]
    path = write(tmp_path / "m.gguf", TINY, plain | zero)
    with Model.load(path, device) as model:
        assert all(layer.bias is None for layer in model.weights.layers)
    check(path, device, plain)


def test_tensor_that_is_fused_and_alone_is_refused(tmp_path):
    tensors = random_tensors(TINY)
    both = fuse(tensors) | {"blk.1.attn_k.weight": tensors["blk.1.attn_k.weight"]}
    path = write(tmp_path / "m.gguf", TINY, both)
    with pytest.raises(GGUFError, match=r"'blk\.1\.attn_k\.weight' is there twice.*attn_qkv"):
        Model.load(path, "cpu")


def test_fused_tensor_of_another_shape_is_refused(tmp_path):
    tensors = fuse(random_tensors(TINY))
    tensors["blk.0.attn_qkv.weight"] = quant.quantize(np.ones((511, 256), np.float32), "Q1_0")
    with pytest.raises(GGUFError, match=r"attn_qkv\.weight' has shape \(511, 256\), \(512, 256\)"):
        Model.load(write(tmp_path / "m.gguf", TINY, tensors), "cpu")
    tensors = random_tensors(TINY) | {"blk.0.attn_q.bias": np.ones(255, np.float32)}
    with pytest.raises(GGUFError, match=r"attn_q\.bias' has shape \(255,\), \(256,\)"):
        Model.load(write(tmp_path / "m.gguf", TINY, tensors), "cpu")


def test_some_layers_may_be_fused(device, tmp_path):
    tensors = random_tensors(TINY)
    fused = fuse(tensors)
    written = {n: t for n, t in tensors.items() if not n.startswith("blk.1.")}
    written |= {n: t for n, t in fused.items() if n.startswith("blk.1.")}
    check(write(tmp_path / "m.gguf", TINY, written), device, tensors)


# Factors of whole matrices


def scaled(tensors: dict[str, Any], factors: dict[str, float]) -> dict[str, Any]:
    """Return the float32 tensors that the factors of matrices make."""
    found = {name: weights64({name: t})[name] for name, t in tensors.items()}
    return {
        name: (w * np.float64(np.float32(factors.get(name.removesuffix(".weight"), 1))))
        for name, w in found.items()
    }


@pytest.mark.parametrize("name", ["NVFP4", "Q1_0", "F32"])
def test_factors_of_matrices_are_applied(device, tmp_path, name):
    tensors = random_tensors(TINY, "Q1_0", formats=dict.fromkeys(MATRICES, name))
    factors = {
        f"blk.{i}.{part}": 0.5 + 0.17 * j + 0.3 * i
        for i in range(TINY.n_layers)
        for j, part in enumerate(MATRICES)
    }
    del factors["blk.1.attn_k"], factors["blk.0.ffn_up"]
    given = {f"{part}.scale": np.array([factor], np.float32) for part, factor in factors.items()}
    path = write(tmp_path / "m.gguf", TINY, tensors | given)
    check(path, device, scaled(tensors, factors))


def test_factor_of_a_fused_matrix_is_applied(device, tmp_path):
    tensors = random_tensors(TINY, "F32")
    given = {f"blk.{i}.attn_qkv.scale": np.array([0.25], np.float32) for i in range(2)}
    path = write(tmp_path / "m.gguf", TINY, fuse(tensors) | given)
    factors = {f"blk.{i}.attn_{x}": 0.25 for i in range(2) for x in "qkv"}
    check(path, device, scaled(tensors, factors))


def test_factors_of_1_cost_nothing(device, tmp_path):
    tensors = random_tensors(TINY)
    given = {f"blk.0.{part}.scale": np.ones(1, np.float32) for part in MATRICES}
    path = write(tmp_path / "m.gguf", TINY, tensors | given)
    with Model.load(path, device) as model:
        assert {h.format for h in model.weights.layers[0].second_handles} == {"Q1_0", "F32"}
        assert model.weights.layers[0].second_handles[2].format == "Q1_0"
    check(path, device, tensors)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_factor_that_is_not_finite_is_refused(device, tmp_path, value):
    tensors = random_tensors(TINY) | {"blk.1.ffn_up.scale": np.array([value], np.float32)}
    before = held_by(device)
    with pytest.raises(GGUFError, match=r"'blk\.1\.ffn_up\.scale' is .*finite"):
        Model.load(write(tmp_path / "m.gguf", TINY, tensors), device)
    assert held_by(device) == before


def test_factor_of_another_shape_is_refused(tmp_path):
    tensors = random_tensors(TINY) | {"blk.1.ffn_up.scale": np.ones(2, np.float32)}
    with pytest.raises(GGUFError, match=r"ffn_up\.scale' has shape \(2,\), \(1,\) is needed"):
        Model.load(write(tmp_path / "m.gguf", TINY, tensors), "cpu")


# Metadata and dimensions


@pytest.mark.device("cpu")
@pytest.mark.parametrize("kind", [ValueType.I32, ValueType.U32, ValueType.U16, ValueType.I64])
def test_arrays_of_one_number_are_read(device, tmp_path, kind):
    arrays = {
        "qwen3.attention.head_count": kind([TINY.n_heads] * 2),
        "qwen3.attention.head_count_kv": kind([TINY.n_kv_heads] * 2),
        "qwen3.feed_forward_length": kind([TINY.inter] * 2),
    }
    tensors = random_tensors(TINY)
    check(write(tmp_path / "m.gguf", TINY, tensors, arrays), device, tensors)


@pytest.mark.device("cpu")
@pytest.mark.parametrize("kind", ["U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"])
def test_numbers_may_be_integers_of_any_width(device, tmp_path, kind):
    small = {
        f"qwen3.{key}": ValueType[kind](value)
        for key, value in {
            "block_count": 2,
            "context_length": 64,
            "attention.head_count": 4,
            "attention.head_count_kv": 2,
            "attention.key_length": 64,
            "attention.value_length": 64,
            "rope.dimension_count": 64,
        }.items()
    }
    tensors = random_tensors(TINY)
    check(write(tmp_path / "m.gguf", TINY, tensors, small), device, tensors)


@pytest.mark.device("cpu")
def test_floats_may_be_wide_and_the_base_an_integer(device, tmp_path):
    wide = {
        "qwen3.attention.layer_norm_rms_epsilon": ValueType.F64(1e-6),
        "qwen3.rope.freq_base": ValueType.U32(10000),
    }
    tensors = random_tensors(TINY)
    check(write(tmp_path / "m.gguf", TINY, tensors, wide), device, tensors)


@pytest.mark.device("cpu")
@pytest.mark.parametrize("n_ones", [1, 2])
def test_trailing_dimensions_of_1_are_read(device, tmp_path, n_ones):
    def grown(t: Any) -> Any:
        if isinstance(t, np.ndarray):
            return t.reshape((1,) * n_ones + t.shape)
        if isinstance(t, tuple):
            return t[0], (1,) * n_ones + t[1], t[2]
        return t.data, (1,) * n_ones + t.shape, t.format

    tensors = random_tensors(TINY, "Q1_0", formats={"ffn_down": "Q6_K"}, tied=False)
    path = write(tmp_path / "m.gguf", TINY, {name: grown(t) for name, t in tensors.items()})
    with gguf.open(path) as file:
        assert file.tensors["output.weight"].shape == (1,) * n_ones + (97, 256)
    check(path, device, tensors)


def test_matrix_of_one_row_stays_a_matrix(device, tmp_path):
    tiny = Tiny(hidden=256, inter=512, vocab=1)
    tensors = random_tensors(tiny)
    path = write(tmp_path / "m.gguf", tiny, tensors)
    with Model.load(path, device) as model, model.session() as session:
        assert model.config.vocab_size == 1
        assert session.forward([0]).shape == (1, 1)


# Split models


def split(folder: Path, tensors: dict[str, Any], count: int) -> Path:
    names = list(tensors)
    size = -(-len(names) // count)
    for i in range(count):
        part = {name: tensors[name] for name in names[i * size : (i + 1) * size]}
        metadata = {
            **(TINY.metadata if i == 0 else {}),
            "split.no": ValueType.U16(i),
            "split.count": ValueType.U16(count),
            "split.tensors.count": ValueType.I32(len(names)),
        }
        gguf.write(folder / f"m-{i + 1:05d}-of-{count:05d}.gguf", metadata, part.items())
    return folder / f"m-00001-of-{count:05d}.gguf"


@pytest.mark.device("cpu")
@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("name", ["Q1_0", "Q2_0_g128", "Q4_K"])
def test_split_model_runs(device, tmp_path, name, count):
    tensors = random_tensors(TINY, name)
    check(split(tmp_path, tensors, count), device, tensors)


def test_split_model_has_the_fingerprint_of_the_whole(tmp_path):
    tensors = random_tensors(TINY)
    whole = write(tmp_path / "whole.gguf", TINY, tensors)
    parts = split(tmp_path, tensors, 3)
    with Model.load(whole, "cpu") as a, Model.load(parts, "cpu") as b:
        assert a.fingerprint == b.fingerprint
        with a.session() as session:
            session.forward(IDS, logits=None)
            session.save(tmp_path / "state")
        with b.restore_session(tmp_path / "state") as session:
            assert session.position == len(IDS)


def test_missing_or_other_part_is_a_gguf_error_of_the_model(tmp_path):
    path = split(tmp_path, random_tensors(TINY), 3)
    second = tmp_path / "m-00002-of-00003.gguf"
    with pytest.raises(GGUFError, match=f"open the first part, {path}"):
        Model.load(second, "cpu")
    second.unlink()
    with pytest.raises(GGUFError, match=f"there is no file {second}"):
        Model.load(path, "cpu")


def test_every_type_that_files_hold_has_a_format(tmp_path):
    assert {t.becomes for t in CONVERTED.values()} <= set(FORMATS)
