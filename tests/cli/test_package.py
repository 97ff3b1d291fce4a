"""What ``import oxibonsai`` alone gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

import oxibonsai
from oxibonsai import gguf

# The compiled modules cannot be imported in this process.
WITHOUT_METAL = """
import sys
sys.modules["oxibonsai.metal._core"] = None
import oxibonsai
assert oxibonsai.demo_model().is_file()
assert oxibonsai.gguf.open and oxibonsai.quant.quantize and oxibonsai.formats
assert oxibonsai.get_include()
try:
    oxibonsai.metal
except ImportError:
    print("no metal")
"""


def test_demo_model_is_a_file_that_can_be_read():
    with gguf.open(oxibonsai.demo_model()) as file:
        assert file.metadata["general.name"] == "Alice 1-bit demo"


def test_parts_are_attributes_without_an_import_of_their_own():
    code = (
        "import oxibonsai; print(oxibonsai.metal.Device, oxibonsai.quant.quantize, "
        "oxibonsai.model.Model, oxibonsai.chat.Chat, oxibonsai.gguf.open, oxibonsai.formats)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_package_imports_without_the_compiled_modules():
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_METAL], check=True, capture_output=True, text=True
    )
    assert found.stdout == "no metal\n"


def test_unknown_attribute_is_named():
    with pytest.raises(AttributeError, match="module 'oxibonsai' has no attribute 'nothing'"):
        oxibonsai.nothing  # noqa: B018
