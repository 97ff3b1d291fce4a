"""Models of the true shapes of Bonsai-1.7B, 4B and 8B and of a hybrid, with random weights."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import reference
from cases import relative_error
from places import TOOLS
from tiny_hybrids import Hybrid, reference_logits

from oxibonsai import gguf
from oxibonsai.model import Model

pytestmark = [pytest.mark.slow, pytest.mark.large]

MODELS = [
    ("bonsai-1.7b", "Q1_0", "tied"),
    ("bonsai-1.7b", "Q1_0", "untied"),
    ("bonsai-1.7b", "TQ2_0_g128", "tied"),
    ("bonsai-4b", "Q1_0", "tied"),
    ("bonsai-4b", "Q2_0_g128", "untied"),
    ("bonsai-8b", "Q1_0", "tied"),
    ("bonsai-8b", "Q1_0", "untied"),
]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where a file of up to 2 GB may lie; deleted after the test, which pytest does days later."""
    path = tmp_path / "model.gguf"
    yield path
    path.unlink(missing_ok=True)


def synthesise(path: Path, shape: str, *options: str) -> None:
    main = runpy.run_path(str(TOOLS / "synthetic_model.py"))["main"]
    main(["--shape", shape, "--out", str(path), *options])


# Measured in a process of its own, where no driver is loaded; and only on the cpu device all memory
# is the process's.
@pytest.mark.device("cpu")
@pytest.mark.timing
@pytest.mark.parametrize(("shape", "format_name", "head"), MODELS)
def test_loading_takes_little_more_memory_than_the_file(
    device_name, path, shape, format_name, head
):
    synthesise(path, shape, "--format", format_name, "--head", head)
    done = subprocess.run(
        [sys.executable, TOOLS / "measure_load.py", path, "--device", device_name],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stderr == ""
    found = json.loads(done.stdout)
    print(done.stdout)
    assert found["tied"] == (head == "tied")
    assert (found["q_size"] != found["hidden_size"]) == (shape == "bonsai-4b")
    assert 0 < found["spread"] < 1e3
    assert found["load_peak_bytes"] <= 1.25 * found["file_bytes"]
    assert found["peak_bytes"] <= 1.25 * found["file_bytes"] + found["kv_bytes"]
    # A quarter of what a busy machine reaches; a loop in Python over blocks would take minutes.
    assert found["load_cpu_seconds"] <= 1 + found["file_bytes"] / 0.15e9


@pytest.mark.parametrize("shape", ["bonsai-1.7b", "bonsai-4b", "bonsai-8b"])
@pytest.mark.parametrize(("format_name", "head"), [("Q1_0", "tied"), ("TQ2_0_g128", "untied")])
def test_logits_of_one_layer_of_the_true_widths(device, path, shape, format_name, head):
    small = ("--layers", "1", "--vocab", "777")
    embedding = format_name if head == "tied" else "F16"
    synthesise(
        path,
        shape,
        *small,
        *("--format", format_name, "--head", head, "--embedding-format", embedding),
    )
    ids = [3, 776, 0, 500, 3, 42, 256, 123]
    with gguf.open(path) as file:
        weights = {
            name: reference.dequantize_blocks(
                file.tensor_data(name), info.format or "", (1, *info.shape)[-2:]
            ).reshape(info.shape)
            for name, info in file.tensors.items()
        }
    with Model.load(path, device) as model, model.session(64, kv_dtype="f32") as session:
        c = model.config
        found = session.forward(ids)
        config = {
            "n_layers": c.n_layers,
            "n_heads": c.n_heads,
            "n_kv_heads": c.n_kv_heads,
            "head_dim": c.head_dim,
            "rope_theta": c.rope_theta,
            "eps": c.rms_eps,
        }
    expected = reference.qwen3_forward(config, weights, ids)
    assert found is not None
    errors = [relative_error(y, r) for y, r in zip(found, expected, strict=True)]
    assert max(errors) <= 1e-5, f"at position {int(np.argmax(errors))}"


@pytest.mark.parametrize("format_name", ["Q1_0", "PTQ1_0"])
def test_logits_of_four_layers_of_a_hybrids_true_widths(device, path, format_name):
    plain = path.with_name("plain.gguf")
    options = ("--layers", "4", "--vocab", "777", "--format", format_name)
    # Blocks of 1024 inputs, as published files have them; the float64 is of the unrotated weights.
    synthesise(path, "qwen35-2b", *options, "--hadamard", "1", "--unrotated", str(plain))
    ids = [3, 776, 0, 500, 3, 42, 256, 123]
    with gguf.open(plain) as file:
        tensors = {
            name: reference.dequantize_blocks(
                file.tensor_data(name), info.format or "", (1, *info.shape)[-2:]
            ).reshape(info.shape)
            for name, info in file.tensors.items()
        }
    plain.unlink()
    with Model.load(path, device) as model, model.session(64, kv_dtype="f32") as session:
        c = model.config
        found = session.forward(ids)
    r = c.recurrent
    assert found is not None
    assert r is not None
    shape = Hybrid(
        n_layers=c.n_layers,
        interval=4,
        n_heads=c.n_heads,
        n_kv_heads=c.n_kv_heads,
        head_dim=c.head_dim,
        rotary=c.rotary_dim,
        key_heads=r.n_key_heads,
        value_heads=r.n_value_heads,
        key_dim=r.key_dim,
        value_dim=r.value_dim,
        conv=r.conv_width,
        rope_theta=c.rope_theta,
        eps=c.rms_eps,
    )
    assert relative_error(found, reference_logits(shape, tensors, ids)) <= 1e-5
