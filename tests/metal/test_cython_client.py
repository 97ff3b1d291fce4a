"""A Cython extension outside the package, built against the shipped .pxd files and headers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import reference
from cases import activations, close_to, dense, random_weight, upload

import oxibonsai
from oxibonsai import formats, metal

SOURCE = Path(__file__).with_name("cython_client") / "client.pyx"

SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup

import oxibonsai

client = Extension("client", ["client.pyx"], include_dirs=[oxibonsai.get_include()])
setup(name="client", ext_modules=cythonize([client]), script_args=["-q", "build_ext", "--inplace"])
"""


@pytest.fixture(scope="session")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    shutil.copy(SOURCE, folder)
    (folder / "setup.py").write_text(SETUP)
    # The environment as it is: an editable install has to be found for cimport too.
    done = subprocess.run(
        [sys.executable, "setup.py"],
        cwd=folder,
        env=os.environ | {"CFLAGS": "-O0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (p for p in folder.iterdir() if p.suffix in (".so", ".pyd"))
    spec = importlib.util.spec_from_file_location("client", built)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_headers_are_where_get_include_says():
    folder = Path(oxibonsai.get_include())
    for name in ("oxb_shim.h", "oxb_formats.h", "oxb_args.h", "oxb_driver.h"):
        assert (folder / name).is_file()


def test_the_classes_are_typed_for_cython(client, device, graph):
    with device.buffer(64) as buffer, device.commands() as commands:
        found = client.describe(graph, device, buffer)
        assert found == (True, True, "shared", device.driver, device.index)
        handle = upload(graph, random_weight("Q1_0", 2, 128))
        assert client.takes_weight(handle, commands) == (36, True)
        for wrong in ((None, device, buffer), (graph, graph, buffer), (graph, device, b"buffer")):
            with pytest.raises(TypeError):
                client.describe(*wrong)


def test_the_table_of_the_capsule_is_that_of_the_package(client):
    assert client.drivers() == list(dict.fromkeys(client.drivers()))
    assert "cpu" in client.drivers()
    for n_blocks in (1, 5, 16):
        q = random_weight("Q1_0", n_blocks, 128)
        soa, codes_offset = client.reformat(q.data.reshape(-1))
        expected, expected_offset = metal.reformat(q.data, "Q1_0")
        assert codes_offset == expected_offset
        assert soa == expected.tobytes()


def test_the_declarations_are_those_of_the_headers(client):
    found = client.constants()
    for name in ("PTQ1_0", "TQ2_0", "Q8_0"):
        assert found[name] == formats.FORMATS[name].id
    assert found["file formats"] == len(formats.FORMATS)
    assert found["device formats"] == found["device format t1_g128"] + 1
    assert found["sizeof(oxb_gemv_args)"] == 32
    pointer = np.dtype(np.intp).itemsize
    assert found["sizeof(oxb_driver)"] > 20 * pointer


def test_a_product_from_end_to_end_without_the_gil(client):
    q, x = random_weight("Q1_0", 50, 512), activations(512)
    w64 = dense(q)
    r = reference.gemv(w64, x)
    results = {}

    def work(i):
        y = np.zeros(50, np.float32)
        client.gemv(q.data.reshape(-1), 50, 512, x, y)
        results[i] = y

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        close_to(results[i], r, reference.gemv_bound(w64, x, r))


def test_errors_carry_their_status_and_message(client):
    with pytest.raises(ValueError, match="input length 19 is not a multiple of 18"):
        client.reformat(np.zeros(19, np.uint8))
    with pytest.raises(ValueError, match=r"^4: a 3 x 128 weight in Q1_0 takes 54 bytes"):
        client.gemv(np.zeros(36, np.uint8), 3, 128, activations(128), np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((True, False, 0), "qk_norm_rope: q_norm without k_norm: give both norms, or none"),
        ((False, True, 1), "qk_norm_rope: k_norm without q_norm: give both norms, or none"),
        ((True, True, 2), "qk_norm_rope: rope_style = 2 must be 0 (neox) or 1 (interleaved)"),
        ((False, False, 2**32 - 1), "rope_style = 4294967295 must be 0 (neox)"),
    ],
)
def test_options_that_only_c_can_give_wrong_are_refused(client, options, text):
    message, length = client.rope(*options)
    assert text in message
    assert length == 0


@pytest.mark.parametrize("options", [(True, True, 0), (False, False, 1)])
def test_options_are_taken_from_c(client, options):
    assert client.rope(*options) == ("", 1)
