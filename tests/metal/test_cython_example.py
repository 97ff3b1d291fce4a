"""The project in examples/cython, built and run as its README says, in a copy."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import activations, dense, random_weight
from places import ROOT

EXAMPLE = ROOT / "examples" / "cython"


def run(folder: Path, *arguments: str) -> str:
    # The environment as it is: an editable install has to be found for cimport too.
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"CFLAGS": "-O0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example") / "cython"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("build", "*.so", "*.c"))
    run(folder, "setup.py", "--quiet", "build_ext", "--inplace")
    return folder


def test_the_example_runs(built: Path):
    assert run(built, "run.py").startswith("4 products of a 256 x 512 matrix, error ")


def test_the_example_checks_what_it_is_given(built: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(built)
    product = importlib.import_module("product")
    weight, x = random_weight("Q1_0", 50, 512), activations(512)
    matrix = product.Matrix(weight.data, 512)
    y = np.empty(50, np.float32)
    for _ in range(2):
        matrix.multiply(x, y)
        np.testing.assert_allclose(y, dense(weight) @ x, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="511 and 50 elements, the matrix is 50 x 512"):
        matrix.multiply(x[1:], y)
    with pytest.raises(product.metal.MetalGraphError, match="a 50 x 640 weight in Q1_0 takes"):
        product.Matrix(weight.data, 640)
    with pytest.raises(product.metal.MetalGraphError, match="nowhere"):
        product.Matrix(weight.data, 512, "nowhere")
