"""The same bytes as ggml's C and as the ``gguf`` package."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import ggml
import numpy as np
import pytest
from numpy.typing import NDArray
from peers import import_peer

from oxibonsai import formats, quant
from oxibonsai.quant import QTensor

F32 = NDArray[np.float32]
SHAPE = (64, 1024)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return ggml.library()


@pytest.fixture(scope="module")
def gguf() -> Any:
    return import_peer("gguf")


def weight_cases() -> dict[str, F32]:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(SHAPE, np.float32)
    scales = np.repeat(rng.uniform(0.01, 3, (SHAPE[0], SHAPE[1] // 32)), 32, axis=1)
    return {
        "normal": normal,
        "outliers": normal * np.where(rng.random(SHAPE) < 0.01, 100, 1).astype(np.float32),
        "sparse": np.where(rng.random(SHAPE) < 0.005, normal, 0).astype(np.float32),
        "zeros": np.zeros(SHAPE, np.float32),
        "negative zeros": -np.zeros(SHAPE, np.float32),
        "ternary": (rng.integers(-1, 2, SHAPE) * scales).astype(np.float32),
        "halves of the scale": (rng.integers(-2, 3, SHAPE) * scales / 2).astype(np.float32),
        "halves of integers": (rng.integers(-254, 255, SHAPE) / 2).astype(np.float32),
        "big": np.clip(normal * 16000, -65519, 65519).astype(np.float32),
        "subnormal halves": np.ldexp(normal, -20),
        "around the smallest half": np.ldexp(normal, -26),
        "small floats": np.ldexp(normal, -120),
    }


CASES = weight_cases()
# Below 2^-128 the float32 inverse of the scale is infinite.
TINY = {e: np.ldexp(CASES["normal"], e) for e in (-149, -145, -140, -135, -131, -130, -129, -127)}


def ggml_quantize(library: ctypes.CDLL, name: str, w: F32) -> NDArray[np.uint8]:
    fmt = formats.get(name)
    w = np.ascontiguousarray(w)
    out = np.zeros((w.shape[0], fmt.row_bytes(w.shape[1])), np.uint8)
    function = getattr(library, f"quantize_row_{name.lower()}_ref")
    function.restype = None
    function(ctypes.c_void_p(w.ctypes.data), ctypes.c_void_p(out.ctypes.data), _int64(w.size))
    return out


def ggml_dequantize(library: ctypes.CDLL, q: QTensor) -> F32:
    out = np.zeros(q.shape, np.float32)
    function = getattr(library, f"dequantize_row_{q.format.lower()}")
    function.restype = None
    function(
        ctypes.c_void_p(q.data.ctypes.data), ctypes.c_void_p(out.ctypes.data), _int64(out.size)
    )
    return out


def _int64(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", "TQ2_0", "Q8_0"])
def test_quantize_gives_ggmls_bytes(library: ctypes.CDLL, name: str, case: str) -> None:
    w = CASES[case]
    np.testing.assert_array_equal(quant.quantize(w, name).data, ggml_quantize(library, name, w))


@pytest.mark.parametrize("exponent", TINY)
@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", "TQ2_0", "Q8_0"])
def test_quantize_gives_ggmls_bytes_for_subnormal_floats(
    library: ctypes.CDLL, name: str, exponent: int
) -> None:
    w = TINY[exponent]
    ours = quant.quantize(w, name)
    theirs = QTensor(ggml_quantize(library, name, w), w.shape, name)
    np.testing.assert_array_equal(quant.dequantize(ours), quant.dequantize(theirs))
    # ggml's conversion of an infinite ratio to int is the processor's: only x86's is copied.
    if platform.machine() in ("x86_64", "AMD64"):
        np.testing.assert_array_equal(ours.data, theirs.data)


@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", "TQ2_0", "Q8_0"])
def test_dequantize_gives_ggmls_floats_for_any_bytes(library: ctypes.CDLL, name: str) -> None:
    data = np.random.default_rng(1).integers(0, 256, (64, formats.get(name).row_bytes(4096)))
    q = QTensor(data.astype(np.uint8), (64, 4096), name)
    expected = ggml_dequantize(library, q)
    assert np.isnan(expected).any()
    np.testing.assert_array_equal(quant.dequantize(q), expected)


@pytest.mark.parametrize("case", [*CASES, *TINY])
@pytest.mark.parametrize("name", ["TQ2_0", "Q8_0", "BF16", "F16", "F32"])
def test_quantize_gives_the_gguf_packages_bytes(gguf: Any, name: str, case: str | int) -> None:
    w = CASES[case] if isinstance(case, str) else TINY[case]
    # Its own arithmetic warns where the inverse of a scale overflows.
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(w, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(quant.quantize(w, name).data, expected.view(np.uint8))


@pytest.mark.parametrize("name", ["TQ2_0", "Q8_0", "BF16"])
def test_dequantize_gives_the_gguf_packages_floats(gguf: Any, name: str) -> None:
    data = np.random.default_rng(2).integers(0, 256, (64, formats.get(name).row_bytes(4096)))
    q = QTensor(data.astype(np.uint8), (64, 4096), name)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(q.data, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(quant.dequantize(q), expected.reshape(q.shape))


@pytest.mark.parametrize("name", sorted(formats.CONVERTED))
def test_from_ggml_gives_ggmls_floats_for_any_bytes(name: str) -> None:
    t = formats.CONVERTED[name]
    shape = (64, 2048)
    data = np.random.default_rng(4).integers(0, 256, (64, 2048 // t.block_weights * t.block_bytes))
    data = data.astype(np.uint8)
    their_name = name.lower().replace("_k", "_K")
    expected = ggml.dequantize(their_name, data.reshape(-1), 64 * 2048).reshape(shape)
    found = quant.dequantize(quant.from_ggml(data, shape, name))
    # Scales of any bytes are infinite or NaN in places, but for the formats with an exponent.
    assert np.isfinite(expected).any()
    if platform.machine() in ("x86_64", "AMD64"):
        np.testing.assert_array_equal(found, expected)
    else:  # compilers for Arm fuse a product and a sum
        np.testing.assert_allclose(found, expected, rtol=1e-6)
