"""Random hybrids of real shapes, plain and stored behind a rotation."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import relative_error
from places import TOOLS
from reference import dequantize_blocks

sys.path.insert(0, str(TOOLS))
import synthetic_model
from synthetic.rotation import walsh_hadamard

from oxibonsai import formats, gguf
from oxibonsai.gguf import GGUFFile
from oxibonsai.model import Model


def write(path: Path, *options: object) -> Path:
    synthetic_model.main([*map(str, options), "--out", str(path)])
    return path


def matrix(file: GGUFFile, name: str) -> np.ndarray:
    t = file.tensors[name]
    return dequantize_blocks(np.array(file.tensor_data(name)), t.format, t.shape)


def hadamard(n: int) -> np.ndarray:
    """The transform as a matrix, by its definition."""
    i = np.arange(n)
    ones = np.array([[bin(r & c).count("1") for c in i] for r in i])
    return np.where(ones % 2, -1.0, 1.0) / np.sqrt(n)


@pytest.mark.parametrize("layout", formats.BLOCK_FORMATS)
def test_a_small_hybrid_has_the_tensors_of_its_layers(tmp_path, layout):
    path = write(tmp_path / "m.gguf", "--shape", "tiny-hybrid", "--format", layout)
    with gguf.open(path) as file:
        shapes = {name: t.shape for name, t in file.tensors.items()}
        kinds = {name: t.format for name, t in file.tensors.items()}
        recurrent = file.metadata["qwen35.attention.recurrent_layers"].tolist()
    assert recurrent == [True, True, True, False]
    for i, one in enumerate(recurrent):
        assert (f"blk.{i}.ssm_conv1d.weight" in shapes) == one
        assert (f"blk.{i}.attn_q.weight" in shapes) != one
        assert kinds[f"blk.{i}.ffn_up.weight"] == layout
    assert shapes["blk.3.attn_q.weight"] == (2 * 4 * 64, 512)
    assert shapes["blk.0.attn_qkv.weight"] == (2 * 2 * 128 + 6 * 128, 512)
    assert shapes["blk.0.ssm_conv1d.weight"] == (1280, 4)
    assert shapes["blk.0.ssm_out.weight"] == (512, 768)
    assert kinds["blk.0.ssm_alpha.weight"] == "BF16"
    assert "output.weight" not in shapes


def test_bonsai_27b_is_the_shape_of_the_real_file(tmp_path):
    shape = synthetic_model.SHAPES["bonsai-27b"]
    tensors = dict(synthetic_model.tensors(shape, "PQ2_0", "PQ2_0", False, 0))
    found = [t[2] if isinstance(t, tuple) else "F32" for t in tensors.values()]
    # As the headers of both files of Bonsai 2 have it: 851 tensors.
    assert {kind: found.count(kind) for kind in found} == {"PQ2_0": 402, "F32": 353, "BF16": 96}
    weights = sum(np.prod(t[1]) for t in tensors.values() if isinstance(t, tuple))
    assert 26.8e9 < weights < 27.0e9
    pairs = shape.metadata()
    assert pairs["tokenizer.ggml.tokens"][248_046] == "<|im_end|>"
    assert pairs["tokenizer.ggml.eos_token_id"] == 248_046
    assert pairs["qwen35.ssm.inner_size"] == 6144
    assert sum(pairs["qwen35.attention.recurrent_layers"]) == 48


@pytest.mark.parametrize("name", ["qwen35-9b", "qwen35-4b", "qwen35-2b"])
def test_the_smaller_shapes_have_the_weights_that_they_are_named_for(name):
    shape = synthetic_model.SHAPES[name]
    tensors = dict(synthetic_model.tensors(shape, "Q1_0", "Q1_0", name != "qwen35-9b", 0))
    weights = sum(np.prod(t[1]) for t in tensors.values() if isinstance(t, tuple))
    assert weights / 1e9 == pytest.approx(float(name.removeprefix("qwen35-")[:-1]), rel=0.1)


def test_few_layers_keep_the_true_width(tmp_path):
    options = ("--shape", "qwen35-2b", "--layers", 4, "--vocab", 1000)
    with gguf.open(write(tmp_path / "m.gguf", *options)) as file:
        assert file.metadata["qwen35.block_count"] == 4
        recurrent = file.metadata["qwen35.attention.recurrent_layers"].tolist()
        assert recurrent == [True, True, True, False]
        assert file.tensors["token_embd.weight"].shape == (1000, 2048)
        assert "blk.4.attn_norm.weight" not in file.tensors


def test_the_text_of_a_cycling_hybrid_runs_in_cycles(tmp_path):
    path = write(tmp_path / "m.gguf", "--shape", "tiny-hybrid", "--vocab", 1000, "--cycle", 7)
    with Model.load(path, "cpu") as model, model.session() as session:
        session.forward([15], logits=None)
        assert list(session.generate(20)) == [14 + (15 - 14 + i) % 7 for i in range(1, 21)]
        # As Bonsai 2's file recommends.
        assert model.sampling_defaults == {"temperature": 1.0, "top_k": 20, "top_p": 0.95}
        assert model.tokenizer.eos_id in model.tokenizer.eos_ids


@pytest.mark.parametrize("n", [1, 2, 16, 128])
def test_the_transform_is_that_of_the_definition(n):
    x = np.random.default_rng(n).standard_normal((3, 4 * n))
    whole = np.kron(np.eye(4), hadamard(n))
    assert np.allclose(walsh_hadamard(x, n), x @ whole.T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("signs", ["explicit", "identity"])
@pytest.mark.parametrize("block", [32, 256])
def test_an_unrotated_model_gives_the_products_of_the_rotated_one(tmp_path, version, signs, block):
    plain = tmp_path / "plain.gguf"
    options = ("--shape", "tiny-hybrid", "--format", "Q2_0", "--hadamard", version)
    options += ("--hadamard-block", block, "--hadamard-signs", signs, "--unrotated", plain)
    rng = np.random.default_rng(block)
    with (
        gguf.open(write(tmp_path / "rotated.gguf", *options, "--vocab", 300)) as rotated,
        gguf.open(plain) as unrotated,
    ):
        keys = {
            key.removeprefix("prism.hadamard."): value
            for key, value in rotated.metadata.items()
            if key.startswith("prism.hadamard.")
        }
        assert not any(key.startswith("prism.") for key in unrotated.metadata)
        assert set(rotated.tensors) == set(unrotated.tensors)
        assert keys["block_size"] == block
        assert (keys["version"], keys.get("tied_output", False)) == (version, version == 2)
        assert ("output.weight" in rotated.tensors) == (version == 1)
        assert ("output.weight" in keys["weight_names"]) == (version == 1)
        by_width = {width: np.ones(width) for width in (256, 512, 768, 1024)}
        if signs == "explicit":
            at = 0
            assert keys["sign_widths"].tolist() == [256, 512, 768, 1024]
            for width in by_width:
                by_width[width] = keys["sign_values"][at : at + width].astype(float)
                at += width
            assert at == len(keys["sign_values"])
            assert {-1.0, 1.0} == set(np.concatenate(list(by_width.values())))
        h = hadamard(block)

        def transform(x: np.ndarray) -> np.ndarray:
            return (x.reshape(-1, block) @ h).reshape(-1)

        for name in rotated.tensors:
            if name not in keys["weight_names"]:
                continue
            w = matrix(rotated, name)
            x = rng.standard_normal(w.shape[1])
            given = x
            if name.endswith("ssm_out.weight"):  # head r * 2 + j comes to j * 3 + r
                heads = x.reshape(6, 128)
                given = np.empty_like(heads)
                for r in range(3):
                    for j in range(2):
                        given[j * 3 + r] = heads[r * 2 + j]
                given = given.reshape(-1)
            expected = w @ transform(by_width[len(x)] * given)
            assert np.allclose(matrix(unrotated, name) @ x, expected, rtol=0, atol=1e-5), name
        embedding = matrix(rotated, "token_embd.weight")
        row = by_width[512] * transform(embedding[7])
        assert np.allclose(matrix(unrotated, "token_embd.weight")[7], row, rtol=0, atol=1e-7)
        for name in ("blk.0.ssm_alpha.weight", "blk.0.ssm_conv1d.weight", "blk.3.attn_norm.weight"):
            assert np.array_equal(rotated.tensor_data(name), unrotated.tensor_data(name))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("shape", "block"), [("tiny-hybrid", 64), ("tiny-hybrid", 256), ("tiny", 512)]
)
def test_a_rotated_model_has_the_logits_of_the_unrotated_one(tmp_path, shape, block, version):
    paths = tmp_path / "rotated.gguf", tmp_path / "plain.gguf"
    options = ("--shape", shape, "--vocab", 300, "--format", "PTQ1_0", "--hadamard", version)
    write(paths[0], *options, "--hadamard-block", block, "--unrotated", paths[1])
    found = []
    for path in paths:
        with Model.load(path, "cpu") as model, model.session(kv_dtype="f32") as session:
            found.append(session.forward([3, 299, 0, 17, 17, 256, 5, 41, 8]))
    assert relative_error(found[0], found[1].astype(np.float64)) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hadamard", 1, "--head", "tied"), "--hadamard 1 needs a head of its own"),
        (("--hadamard", 2, "--cycle", 5), "--hadamard 2 has the embedding for its head"),
        (("--hadamard", 2, "--head", "untied"), "--hadamard 2 has the embedding for its head"),
        (("--hadamard", 1, "--hadamard-block", 96), "--hadamard-block 96 must be a power of two"),
        (
            ("--hadamard", 1, "--hadamard-block", 8),
            "--hadamard-block 8 must be a power of two in 16",
        ),
        (("--hadamard", 1, "--hadamard-block", 8192), "two in 16..4096, which models can have"),
        (("--unrotated", "x.gguf"), "--unrotated needs --hadamard"),
        (("--layers", 0), "--layers 0 must be 1 or more"),
        (("--layers", 3), "--layers 3: tiny-hybrid has attention from 4 layers on"),
        (("--shape", "tiny", "--gates-format", "F16"), "--gates-format: tiny is no hybrid"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        write(tmp_path / "m.gguf", "--shape", "tiny-hybrid", *options)
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_block_wider_than_a_matrix_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"does not divide the 768 inputs of blk\.0\.ssm_out"):
        write(
            tmp_path / "m.gguf", "--shape", "tiny-hybrid", "--hadamard", 1, "--hadamard-block", 512
        )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("version", [1, 2])
def test_a_rotated_model_says_what_the_unrotated_one_does(tmp_path, version):
    plain, rotated = tmp_path / "plain.gguf", tmp_path / "rotated.gguf"
    options = ("--shape", "tiny-hybrid", "--format", "Q2_0", "--hadamard", version)
    options += ("--hadamard-block", 128, "--unrotated", plain, "--vocab", 300)
    write(rotated, *options)
    ids = np.random.default_rng(0).integers(0, 256, 9).tolist()
    rows = []
    for path in (plain, rotated):
        with Model.load(path, "cpu") as model, model.session(kv_dtype="f32") as session:
            rows.append(session.forward(ids))
    assert relative_error(rows[1], rows[0]) <= 1e-5
