"""The tools that make model files, and what becomes of a sanitizer's report."""

from __future__ import annotations

import json
import runpy
import sys

import numpy as np
import pytest
from model_files import Q1_MODEL, TERNARY_MODEL, unpack_tq2_0_g128
from places import TOOLS

from oxibonsai import formats, gguf
from oxibonsai.model import Model
from oxibonsai.model.tokenizer import Tokenizer


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(TOOLS / script), run_name="__main__")


@pytest.mark.parametrize("layout", formats.BLOCK_FORMATS)
def test_a_synthetic_model_is_read_with_its_format(tmp_path, monkeypatch, layout):
    out = tmp_path / "m.gguf"
    run(
        monkeypatch,
        "synthetic_model.py",
        *("--shape", "tiny", "--format", layout, "--head", "untied", "--layers", 1),
        *("--embedding-format", "F16", "--vocab", 1000, "--out", out),
    )
    with gguf.open(out) as file:
        gguf.check_supported(file)
        found = {
            t.format for n, t in file.tensors.items() if n.startswith("blk") and len(t.shape) > 1
        }
        assert found == {layout}
        assert file.tensors["output.weight"].shape == (1000, 512)
        assert file.tensors["output.weight"].format == "F16"
        tokenizer = Tokenizer.from_gguf(file)
    assert tokenizer.vocab_size == 1000
    assert tokenizer.decode(tokenizer.encode("Alice")) == "Alice"
    assert tokenizer.eos_ids == {997, 999}


@pytest.mark.parametrize("embedding", ["F32", "F16", "BF16", "Q8_0"])
def test_a_synthetic_embedding_is_finite_and_small(tmp_path, monkeypatch, embedding):
    out = tmp_path / "m.gguf"
    run(
        monkeypatch,
        "synthetic_model.py",
        *("--shape", "tiny", "--layers", 1, "--vocab", 300),
        *("--embedding-format", embedding, "--out", out),
    )
    with gguf.open(out) as file:
        raw = np.array(file.tensor_data("token_embd.weight"))
    if embedding == "Q8_0":
        blocks = raw.reshape(-1, 34)
        w = blocks[:, :2].copy().view("<f2").astype(np.float32) * blocks[:, 2:].view(np.int8)
    elif embedding == "BF16":
        w = (raw.view("<u2").astype("<u4") << 16).view("<f4")
    else:
        w = raw.view({"F32": "<f4", "F16": "<f2"}[embedding]).astype(np.float32)
    assert w.size == 300 * 512
    assert 0.5 < w.std() * 512**0.5 < 2


@pytest.mark.parametrize("layout", ["Q1_0", "TQ2_0_g128"])
def test_the_text_of_a_cycling_model_runs_in_cycles(tmp_path, monkeypatch, layout):
    out = tmp_path / "m.gguf"
    run(
        monkeypatch,
        "synthetic_model.py",
        *("--shape", "tiny", "--format", layout, "--vocab", 1000, "--cycle", 7, "--out", out),
    )
    with Model.load(out, "cpu") as model:
        assert not model.weights.tied
        for temperature in (0.0, 0.7):
            with model.session() as session:
                session.forward([15], logits=None)
                text = list(session.generate(20, temperature=temperature, seed=3))
                assert text == [14 + (15 - 14 + i) % 7 for i in range(1, 21)]
        with model.session() as session:  # the last cycle has 997 % 7 = 3 tokens
            session.forward([995], logits=None)
            assert list(session.generate(5)) == [996, 994, 995, 996, 994]


def test_one_seed_gives_one_file_and_another_seed_another(tmp_path, monkeypatch):
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / name
        arguments = ("--shape", "tiny", "--layers", 1, "--vocab", 300, "--seed", seed, "--out", out)
        run(monkeypatch, "synthetic_model.py", *arguments)
        files.append(out.read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(("model", "layout"), [(Q1_MODEL, "Q1_0"), (TERNARY_MODEL, "TQ2_0_g128")])
def test_exporting_trained_values_gives_the_shipped_model(tmp_path, monkeypatch, model, layout):
    arrays = {}
    with gguf.open(model) as file:
        for name, info in file.tensors.items():
            data = file.tensor_data(name)
            if info.format == "F32":
                arrays[name] = data.view("<f4").reshape(info.shape)
            elif layout == "Q1_0":
                blocks = data.reshape(info.shape[0], -1, 18)
                bits = np.unpackbits(blocks[..., 2:], axis=-1, bitorder="little").astype(np.int8)
                arrays[name + ".q"] = 2 * bits - 1
                arrays[name + ".d"] = blocks[..., :2].copy().view("<f2")[..., 0]
            else:
                codes, scales = unpack_tq2_0_g128(data, *info.shape)
                arrays[name + ".q"] = codes.astype(np.int8) - 1
                arrays[name + ".d"] = scales
        tokens = file.metadata["tokenizer.ggml.tokens"].tolist()
        merges = file.metadata["tokenizer.ggml.merges"].tolist()
    np.savez(tmp_path / "weights.npz", **arrays)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps({"model": {"vocab": vocabulary, "merges": merges}}))
    run(
        monkeypatch,
        "demo_model/export_gguf.py",
        *(tmp_path / "weights.npz", tmp_path / "out.gguf"),
        *("--tokenizer", tokenizer, "--format", layout),
    )
    assert (tmp_path / "out.gguf").read_bytes() == model.read_bytes()


LEAKS = """
=================================================================
==7==ERROR: LeakSanitizer: detected memory leaks

Direct leak of 48 byte(s) in 1 object(s) allocated from:
    #0 0x7f01 in calloc (/usr/lib/clang/19/lib/linux/libclang_rt.asan-x86_64.so+0x10)
    #1 0x7f02 in metal_make_pipeline /src/shim/metal_kernels.m:210:32
    #2 0x7f03  (/src/oxibonsai/metal/_core.so+0x20)

Indirect leak of 64 byte(s) in 2 object(s) allocated from:
    #0 0x7f01  (/usr/lib/clang/19/lib/linux/libclang_rt.asan-x86_64.so+0x10)
    #1 0x7f04  (/usr/lib/libpython3.11.so.1.0+0x30)
    #2 0x7f03  (/src/oxibonsai/metal/_core.so+0x20)

Direct leak of 8 byte(s) in 1 object(s) allocated from:
    #0 0x7f01  (/usr/lib/clang/19/lib/linux/libclang_rt.asan-x86_64.so+0x11)
    #1 0x7f05  (/src/.cache/metal_sim/0/metal_sim.so+0x40) (BuildId: 00)

SUMMARY: AddressSanitizer: 120 byte(s) leaked in 4 allocation(s).
"""


@pytest.mark.parametrize(
    ("report", "frames", "status"),
    [
        (LEAKS, ["metal_make_pipeline", "metal_sim.so"], 1),
        (LEAKS.replace("/shim/", "/lib/").replace("metal_sim", "other"), [], 0),
        ("==7==ERROR: AddressSanitizer: heap-use-after-free on address 0x1\n", [], 1),
        ("==7==LeakSanitizer has encountered a fatal error.\n", [], 1),
    ],
)
def test_a_leak_is_ours_where_our_code_allocated_it(tmp_path, report, frames, status):
    sanitize = runpy.run_path(str(TOOLS / "sanitize.py"))
    found = sanitize["leaks"](report)
    assert len(found) == len(frames)
    assert all(name in frame for name, frame in zip(frames, found, strict=True))
    (tmp_path / "report.7").write_text(report)
    assert sanitize["judge"](0, tmp_path) == status
    assert sanitize["judge"](3, tmp_path) == 3
