"""What the memory can do, measured in the same run, and inputs to measure with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oxibonsai import formats, metal
from oxibonsai.quant import QTensor

PROBE_BYTES = 512 << 20
PASSES = 8


def use_defaults() -> None:
    """Leave alone what the machine was tuned to: figures are of the drivers' own choices."""
    os.environ["OXIBONSAI_TUNING"] = "0"


def best_rate(nbytes: int, run: Callable[[], object]) -> float:
    """Return bytes a second in the fastest of some passes, after one that warms up."""
    run()
    times = []
    for _ in range(PASSES):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return nbytes / min(times)


def read_bandwidth(device: metal.Device) -> float:
    """Return the bytes a second that the device reads from memory.

    On the cpu device as many Python threads as it uses each take the maximum of their part of a
    buffer far larger than the caches, which NumPy does with vector instructions and without the
    GIL. On others it is the op y += x, which reads two vectors and writes one.
    """
    if device.driver != "cpu":
        half, storage = PROBE_BYTES // 2, device.working_storage
        with device.buffer(half, storage=storage) as x, device.buffer(half, storage=storage) as y:
            commands = device.commands()
            commands.add(x, y, PROBE_BYTES // 8)
            return best_rate(PROBE_BYTES // 2 * 3, commands.replay)
    parts = np.array_split(np.ones(PROBE_BYTES, np.uint8), device.info.threads)
    with ThreadPoolExecutor(len(parts)) as pool:
        return best_rate(PROBE_BYTES, lambda: list(pool.map(np.maximum.reduce, parts)))


def copy_bandwidth() -> float:
    """Return the bytes a second that one thread copies; each is read once and written once."""
    source = np.ones(PROBE_BYTES // 2, np.uint8)
    target = np.ones_like(source)
    return best_rate(source.nbytes, lambda: np.copyto(target, source))


def last_level_cache(device: metal.Device) -> int:
    """Return the bytes of the largest cache between the device and memory, or a safe guess."""
    guess = 64 << 20
    if device.driver != "cpu":
        return 2 * guess
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20}[text[-1]])
    return max(sizes, default=guess)


def random_weight(name: str, n_rows: int, k: int) -> QTensor:
    """Return a weight of random codes with scales of about 1 / sqrt(k)."""
    fmt = formats.get(name)
    rng = np.random.default_rng([n_rows, k])
    raw = np.frombuffer(rng.bytes(n_rows * fmt.row_bytes(k)), np.uint8).copy()
    blocks = raw.reshape(-1, fmt.block_bytes)
    blocks[:, fmt.scale_offset : fmt.scale_offset + 2] = np.frombuffer(
        np.float16(k**-0.5).tobytes(), np.uint8
    )
    return QTensor(raw, (n_rows, k), name)


def activations(n: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(n).standard_normal(n).astype(np.float32)


def upload_copies(graph: metal.MetalGraph, q: QTensor, copies: int) -> list[metal.WeightHandle]:
    return [graph.upload_weight_soa(q) for _ in range(copies)]


def encoder(graph: metal.MetalGraph, name: str) -> Callable[..., Any]:
    """Return the GEMV of MetalGraph that takes a weight in the format `name`."""
    one_bit = formats.get(name).device_format.startswith("q1")
    return graph.encode_gemv if one_bit else graph.encode_gemv_tq2


def make_synthetic_model(path: Path, format_name: str, *options: str) -> None:
    """Write a random model, of Bonsai-1.7B's shape unless the tool's options say otherwise."""
    tool = Path(__file__).resolve().parent.parent / "tools" / "synthetic_model.py"
    subprocess.run(
        [
            *(sys.executable, tool, "--shape", "bonsai-1.7b"),
            *("--format", format_name, *options, "--out", path),
        ],
        check=True,
    )
