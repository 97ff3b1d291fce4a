"""The ggml types that become another format when they are loaded, against the package gguf."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ggml_blocks import random_blocks, values
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from oxibonsai import formats, quant
from oxibonsai.formats import CONVERTED, FORMATS
from oxibonsai.quant import QTensor

NAMES = sorted(CONVERTED)


@pytest.mark.parametrize("name", NAMES)
def test_values_have_the_bits_that_ggml_gives(name: str) -> None:
    raw = random_blocks(name, 9, 1024)
    ours = quant.dequantize(quant.from_ggml(raw, (9, 1024), name))
    np.testing.assert_array_equal(ours.view(np.uint32), values(raw, name).view(np.uint32))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_any_bytes_have_the_values_that_ggml_gives(name: str, data: st.DataObject) -> None:
    t = CONVERTED[name]
    block = data.draw(st.binary(min_size=t.block_bytes, max_size=t.block_bytes))
    raw = np.frombuffer(block, np.uint8)[None]
    ours = quant.dequantize(quant.from_ggml(raw, (1, t.block_weights), name))
    np.testing.assert_array_equal(ours, values(raw, name))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_those_of_ggml(name: str) -> None:
    from gguf.constants import GGML_QUANT_SIZES

    t = CONVERTED[name]
    assert t.ggml_type == GGMLQuantizationType[name]
    assert (t.block_weights, t.block_bytes) == GGML_QUANT_SIZES[GGMLQuantizationType(t.ggml_type)]
    assert t.block_weights % FORMATS[t.becomes].block_weights == 0


def test_what_fits_a_smaller_format_exactly_takes_it() -> None:
    assert {t.name: t.becomes for t in CONVERTED.values() if t.becomes != "F32"} == {
        "Q4_0": "Q8_0",
        "Q5_0": "Q8_0",
        "IQ4_NL": "Q8_0",
        "TQ1_0": "TQ2_0",
        "MXFP4": "BF16",
        "NVFP4": "BF16",
    }


@pytest.mark.parametrize("exponent", [0, 1, 2, 127, 254, 255])
def test_every_scale_and_level_of_mxfp4_is_exact_in_bf16(exponent: int) -> None:
    levels = np.arange(16, dtype=np.uint8)
    raw = np.concatenate([[exponent], levels | levels[::-1] << 4]).astype(np.uint8)[None]
    q = quant.from_ggml(raw, (1, 32), "MXFP4")
    np.testing.assert_array_equal(quant.dequantize(q), values(raw, "MXFP4"))


def test_every_scale_and_level_of_nvfp4_is_exact_in_bf16() -> None:
    levels = np.arange(16, dtype=np.uint8)
    codes = np.tile((levels | levels[::-1] << 4).astype(np.uint8), 2)
    scales = np.arange(256, dtype=np.uint8)
    raw = np.concatenate([np.repeat(scales[:, None], 4, 1), np.tile(codes, (256, 1))], axis=1)
    q = quant.from_ggml(np.ascontiguousarray(raw), (256, 64), "NVFP4")
    np.testing.assert_array_equal(quant.dequantize(q), values(raw, "NVFP4"))


def test_ternary_codes_stay_codes() -> None:
    raw = random_blocks("TQ1_0", 3, 512)
    q = quant.from_ggml(raw, (3, 512), "TQ1_0")
    assert q.format == "TQ2_0"
    codes, scales = quant.codes(q)
    assert codes.max() == 2
    halves = raw.reshape(-1, 54)[:, 52:].copy().view("<f2")
    np.testing.assert_array_equal(scales.reshape(-1, 2), np.repeat(halves, 2, axis=1))


def test_result_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_blocks("Q4_K", 7, 512)
    whole = quant.from_ggml(raw, (7, 512), "Q4_K")
    monkeypatch.setattr("oxibonsai.quant.convert._CHUNK_WEIGHTS", 1024)
    np.testing.assert_array_equal(quant.from_ggml(raw, (7, 512), "Q4_K").data, whole.data)


def test_formats_with_kernels_are_copied_and_names_take_any_case() -> None:
    q = quant.quantize(np.ones((2, 64), np.float32), "Q8_0")
    found = quant.from_ggml(q.data, q.shape, "q8_0")
    assert found.format == "Q8_0"
    np.testing.assert_array_equal(found.data, q.data)
    assert quant.from_ggml(bytes(210), (1, 256), "q6_k").format == "F32"


@pytest.mark.parametrize(
    ("data", "shape", "name", "message"),
    [
        (bytes(210), (1, 256), "Q6_X", "unknown weight format 'Q6_X'.*Q1_0.*Q6_K"),
        (bytes(210), (1, 128), "Q6_K", "128 weights does not fill blocks of 256"),
        (bytes(209), (1, 256), "Q6_K", "takes 1 x 210 = 210 bytes, the data has 209"),
        (bytes(210), (0, 256), "Q6_K", "must be positive"),
    ],
)
def test_what_fits_not_is_refused(
    data: bytes, shape: tuple[int, int], name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        quant.from_ggml(data, shape, name)


def test_wrong_kinds_are_type_errors() -> None:
    with pytest.raises(TypeError, match="named by a str"):
        quant.from_ggml(bytes(210), (1, 256), 14)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="two integers"):
        quant.from_ggml(bytes(210), (256,), "Q6_K")
    with pytest.raises(TypeError, match="bytes-like"):
        quant.from_ggml(3, (1, 256), "Q6_K")


# Several formats as one matrix


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Q1_0"], "Q1_0"),
        (["F16", "F16"], "F16"),
        (["Q1_0", "TQ2_0"], "PQ2_0"),
        (["TQ2_0", "PTQ1_0", "TQ2_0_g128"], "PQ2_0"),
        (["Q1_0", "Q2_0"], "Q2_0"),
        (["Q8_0", "PQ2_0"], "Q8_0"),
        (["Q8_0", "Q1_0", "Q2_0"], "Q8_0"),
        (["F16", "Q1_0"], "F32"),
        (["F16", "BF16"], "F32"),
        (["F32", "Q8_0"], "F32"),
    ],
)
def test_common_format(names: list[str], expected: str) -> None:
    assert formats.common(names) == expected
    assert formats.common(reversed(names)) == expected


def random_tensor(name: str, n_rows: int, k: int) -> QTensor:
    rng = np.random.default_rng(1)
    q = quant.quantize(rng.standard_normal((n_rows, k)).astype(np.float32), name)
    if FORMATS[name].coded and FORMATS[name].bits == 2 and name != "PTQ1_0":
        # All four codes, and scales that are negative, infinite and NaN too.
        data = rng.integers(0, 256, q.data.shape, np.uint8)
        fmt = FORMATS[name]
        blocks = data.reshape(-1, fmt.block_bytes)
        scales = np.resize(np.array([0.5, -2.0, np.inf, np.nan, 65504, 6e-8], "<f2"), len(blocks))
        at = fmt.scale_offset
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
        q = QTensor(data, q.shape, name)
    return q


@pytest.mark.parametrize("other", list(FORMATS))
@pytest.mark.parametrize("name", list(FORMATS))
def test_common_format_holds_the_same_values(name: str, other: str) -> None:
    target = FORMATS[formats.common([name, other])]
    q = random_tensor(name, 5, 512)
    pieces: list[Any] = list(quant.rewritten(q.data, q.shape, FORMATS[name], target))
    found = quant.dequantize(QTensor(np.concatenate(pieces), q.shape, target))
    np.testing.assert_array_equal(found, quant.dequantize(q))
