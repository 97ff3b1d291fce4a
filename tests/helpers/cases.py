"""Weights, activations and runs that several device tests share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import reference
from numpy.typing import NDArray
from places import ROOT, SIMULATORS, TESTS

from oxibonsai import formats, metal, quant
from oxibonsai.quant import QTensor

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BLOCK_FORMATS = list(formats.BLOCK_FORMATS)
DENSE_FORMATS = [name for name in formats.FORMATS if name not in BLOCK_FORMATS]
ALL_FORMATS = list(formats.FORMATS)


def block(name: str) -> int:
    """Return the smallest k of a format: dense ones take any, 32 exercises their wide loop too."""
    return max(formats.get(name).block_weights, 32)


def set_scales(q: QTensor, scales: Any) -> QTensor:
    """Write half `scales` [n_blocks] (or one for all) into the blocks, in place."""
    fmt = formats.get(q.format)
    blocks = q.data.reshape(-1, fmt.block_bytes)
    halves = np.broadcast_to(np.asarray(scales, np.float16), len(blocks))
    at = fmt.scale_offset
    blocks[:, at : at + 2] = np.ascontiguousarray(halves).view(np.uint8).reshape(-1, 2)
    return q


def random_weight(name: str, n_rows: int, k: int, seed: int = 0) -> QTensor:
    """Return a weight with every code in it and another scale of either sign in each block."""
    fmt = formats.get(name)
    rng = np.random.default_rng([seed, n_rows, k])
    if not fmt.coded and name != "Q8_0":
        return quant.quantize(rng.standard_normal((n_rows, k), np.float32), name)
    data = rng.integers(0, 256, (n_rows, fmt.row_bytes(k)), np.uint8)
    n_blocks = n_rows * k // fmt.block_weights
    scales = (rng.uniform(0.25, 2, n_blocks) * rng.choice([-1, 1], n_blocks)).astype(np.float16)
    return set_scales(QTensor(data, (n_rows, k), name), scales)


def dense(q: QTensor) -> F64:
    """Return the weight in float64, by the definition."""
    return reference.dequantize_blocks(q.data, q.format, q.shape)


def activations(k: int, seed: int = 0) -> F32:
    return np.random.default_rng([seed, k]).standard_normal(k).astype(np.float32)


def upload(graph: metal.MetalGraph, q: QTensor, plain: bool = False) -> metal.WeightHandle:
    """Upload by the method that the format has; plain leaves the shape out."""
    kernel = formats.get(q.format).device_format
    if plain:
        return graph.upload_weight_soa(q.data, q.format)
    if kernel == "q1_g128":
        return graph.upload_q1_weight_soa(q)
    if kernel.startswith("q2"):
        return graph.upload_tq2_weight_soa(q)
    return graph.upload_weight_soa(q)


def encode(
    graph: metal.MetalGraph, handle: metal.WeightHandle, x: F32, y: F32, *shape: int
) -> None:
    """Run the GEMV that takes this handle."""
    kernel = handle.device_format or ""
    if kernel.startswith("q1"):
        graph.encode_gemv(handle, x, y, *shape)
    elif kernel.startswith("q2"):
        graph.encode_gemv_tq2(handle, x, y, *shape)
    else:
        graph.encode_qkv_phase(x, y, handle, *shape)


def gemv(graph: metal.MetalGraph, q: QTensor, x: F32, plain: bool = False) -> F32:
    """Return W x as the device computes it."""
    y = np.full(q.shape[0], np.float32(-77))
    with upload(graph, q, plain) as handle:
        encode(graph, handle, x, y, *(q.shape if plain else ()))
    return y


def close_to(y: F32, r: F64, bound: float) -> None:
    """Fail where y is further from r than `bound` and the spacing of float32 allow."""
    error = float(np.linalg.norm(y.astype(np.float64) - r))
    # A result below the normal range keeps only an absolute precision.
    floor = 2.0**-148 * len(r) ** 0.5
    assert error <= bound + floor, f"error {error:.3e}, allowed {bound:.3e}"


def swiglu_with_bound(w64: F64, x: NDArray[Any]) -> tuple[F64, float]:
    """Return the definition's result, and the error that the two products may cause in it."""
    gate, up = np.split(reference.gemv(w64, x), 2)
    gate_bound, up_bound = (
        reference.gemv_bound(w, x, r) for w, r in zip(np.split(w64, 2), (gate, up), strict=True)
    )
    expected = reference.swiglu(gate, up)
    # The slope of silu is at most 1.1.
    through_gate = 1.1 * gate_bound * np.abs(up).max()
    through_up = np.abs(reference.silu(gate)).max() * up_bound
    return expected, through_gate + through_up + 1e-6 * float(np.linalg.norm(expected))


def relative_error(y: NDArray[Any], r: F64) -> float:
    norm = float(np.linalg.norm(r))
    return float(np.linalg.norm(np.asarray(y, np.float64) - r)) / (norm or 1.0)


def same_non_finite(y: F32, r: F64) -> NDArray[np.bool_]:
    """Fail unless y is NaN and infinite exactly where r is; return where both are finite."""
    with np.errstate(over="ignore"):
        expected = r.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(np.isinf(y), infinite)
    np.testing.assert_array_equal(y[infinite], expected[infinite])
    return np.isfinite(expected)


def buffer_of(device: metal.Device, array: NDArray[Any]) -> metal.Buffer:
    return device.upload(np.ascontiguousarray(array))


def contents(buffer: metal.Buffer, dtype: Any = np.float32) -> NDArray[Any]:
    """Return a copy of a buffer's bytes as `dtype`."""
    out = np.empty(buffer.nbytes // np.dtype(dtype).itemsize, dtype)
    buffer.read(out)
    return out


def without_notices(stderr: str, environment: Mapping[str, str]) -> str:
    """Return what a process printed without what Metal's validation layers say of themselves.

    In every process that they are asked for, with the date and the process before it.
    """
    if not {"MTL_DEBUG_LAYER", "MTL_SHADER_VALIDATION"} & environment.keys():
        return stderr
    return re.sub(r"^(.*\] )?Metal (API|GPU) Validation Enabled\n", "", stderr, flags=re.MULTILINE)


def run_python(
    code: str, *arguments: str, env: dict[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own; fail unless it ends well and silently."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TESTS / "helpers", SIMULATORS)))
    }
    environment |= env or {}
    command: Sequence[str] = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code)]
    done = subprocess.run(
        [*command, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    done.stderr = without_notices(done.stderr, environment)
    assert done.stderr == "", done.stderr
    return done


def held_by(device: metal.Device) -> dict[str, int]:
    """Return what is alive on a device, as counts."""
    stats = device.stats._asdict()
    return {name: stats[name] for name in ("buffers", "allocated_bytes", "in_flight")}
