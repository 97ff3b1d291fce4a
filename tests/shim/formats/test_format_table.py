"""The one table of formats, in C, in Python and compiled, and the one look-up of their names."""

from __future__ import annotations

import argparse
import dataclasses
import os
import runpy
import shutil
import subprocess
import sys

import pytest
from places import ROOT, SHIM, TOOLS

from oxibonsai import formats, gguf, metal, quant
from oxibonsai.metal import EncodingError
from oxibonsai.metal._core import format_table

HEADER = (SHIM / "include" / "oxb_formats.h").read_text(encoding="ascii")
ALIASES = {
    "Q1_0_g128": "Q1_0",
    "Q2_0_g64": "Q2_0",
    "PQ2_0_g128": "PQ2_0",
    "PTQ1_0_g128": "PTQ1_0",
    "TQ2_0_g256": "TQ2_0",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
}
KNOWN = "one of Q1_0, TQ2_0_g128, Q2_0, .*, F32, F16, BF16, Q8_0"


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(TOOLS / "generate_formats.py"))


def test_the_python_table_is_the_headers(tool):
    committed = (ROOT / "oxibonsai" / "_format_table.py").read_text(encoding="ascii")
    assert committed == tool["generate"](HEADER), "run python tools/generate_formats.py"


def test_the_python_table_is_the_compiled_modules():
    assert [dataclasses.astuple(f) for f in formats.FORMATS.values()] == format_table()


def test_the_coded_formats_have_codes_of_one_or_two_bits_and_scales():
    assert tuple(n for n, f in formats.FORMATS.items() if f.bits <= 2) == formats.BLOCK_FORMATS
    assert all(formats.FORMATS[name].group_size in (64, 128) for name in formats.BLOCK_FORMATS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("OXB_FILE_FORMATS(X) ", "OTHER(X) ", r"does not define OXB_FILE_FORMATS\(X\)"),
        (
            '"q8_0", 8, 32, 0, 0, 34)',
            '"q8_0", 8, 32)',
            r'X\(Q8_0, "q8_0", 8, 32\) has 4 of 7 columns',
        ),
        ("32, 34, 0, Q8_0)", "32, 34, 0, Q9_0)", "Q8_0 has the device format Q9_0: one of"),
        ("    X(PQ2_0,", "    Y(PQ2_0,", "stands between the rows"),
    ],
)
def test_a_header_that_cannot_be_read_is_refused(tool, old, new, message):
    assert HEADER.count(old) == 1
    with pytest.raises(tool["HeaderError"], match=message):
        tool["generate"](HEADER.replace(old, new))


WITHOUT_EXTENSION = """
import sys
import numpy as np
import oxibonsai.quant, oxibonsai.gguf
from oxibonsai import formats, gguf, quant

folder = sys.argv[1]
assert oxibonsai.__file__.startswith(folder), oxibonsai.__file__
for name in formats.FORMATS:
    w = np.linspace(-1, 1, 1024, dtype=np.float32).reshape(4, 256)
    q = quant.quantize(w, name)
    gguf.write(folder + "/w.gguf", {}, [("w", q)])
    with gguf.open(folder + "/w.gguf", type42=name if q.format in (
        f.name for f in gguf.FORMATS_OF_42) else None) as file:
        assert file.tensors["w"].format == name
        read = quant.QTensor(file.tensor_data("w"), q.shape, name)
        assert quant.dequantize(read).tobytes() == quant.dequantize(q).tobytes()
assert not [m for m in sys.modules if m.startswith("oxibonsai.metal")]
"""


def test_quant_and_gguf_need_no_compiled_module(tmp_path):
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "*.c", "__pycache__", "data", "include")
    shutil.copytree(ROOT / "oxibonsai", tmp_path / "oxibonsai", ignore=ignored)
    assert not list(tmp_path.rglob("*.so"))
    subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTENSION, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_name_is_found_in_any_case_and_with_any_separator(name):
    fmt = formats.FORMATS[name]
    for spelling in (name, name.lower(), name.upper(), name.replace("_", "-"), name.swapcase()):
        assert formats.get(spelling) is fmt
    assert formats.get(name.replace("_", " ")) is fmt
    assert formats.get(fmt) is fmt


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_an_alias_names_the_same_format_everywhere(tmp_path, alias, name):
    fmt = formats.FORMATS[name]
    raw = bytes(fmt.row_bytes(256))
    for spelling in (alias, alias.upper()):
        assert formats.get(spelling) is fmt
        assert quant.QTensor(raw, (1, 256), spelling).format == name
        assert formats.argument(spelling) == name
        direct = metal.reformat(raw, name)
        assert metal.reformat(raw, spelling)[0].tobytes() == direct[0].tobytes()
        gguf.write(tmp_path / "w.gguf", {}, [("w", (raw, (1, 256), spelling))])
        with gguf.open(tmp_path / "w.gguf", type42=spelling if name == "Q2_0" else None) as file:
            assert file.tensors["w"].format == name


@pytest.mark.parametrize("spelling", ["q1_0", "Q1_0_g128", formats.FORMATS["Q1_0"]])
def test_an_upload_takes_every_spelling(device, spelling):
    q = quant.QTensor(bytes(36), (2, 128), spelling)
    with metal.MetalGraph(device).upload_weight_soa(q.data, spelling, q.shape) as handle:
        assert (handle.format, handle.device_format) == ("Q1_0", "q1_g128")
    with metal.MetalGraph(device).upload_weight_soa(q, spelling) as handle:
        assert (handle.format, handle.device_format) == ("Q1_0", "q1_g128")


def test_an_unknown_name_is_refused_everywhere_with_the_known_ones(tmp_path):
    text = f"unknown weight format 'Q9': {KNOWN}"
    with pytest.raises(ValueError, match=text):
        formats.get("Q9")
    with pytest.raises(ValueError, match=text):
        quant.QTensor(bytes(18), (1, 128), "Q9")
    with pytest.raises(ValueError, match=text):
        gguf.open(tmp_path / "w.gguf", type42="Q9")
    with pytest.raises(EncodingError, match=text):
        metal.reformat(bytes(18), "Q9")
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        formats.argument("Q9")
    with pytest.raises(gguf.GGUFError, match=f"tensor 'w': {text}"):
        gguf.write(tmp_path / "w.gguf", {}, [("w", (bytes(18), (1, 128), "Q9"))])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [None, 41, b"Q1_0"])
def test_a_name_that_is_no_str_is_a_type_error(name):
    with pytest.raises(TypeError, match="a format is named by a str"):
        formats.get(name)
    with pytest.raises(TypeError, match="a format is named by a str"):
        metal.reformat(bytes(18), name)
