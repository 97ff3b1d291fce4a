"""Times by the device's own clock, as a Markdown report: kernels from memory, and decode steps.

    python benchmarks/device_time.py --device cuda [--model FILE.gguf ...]

Each figure is the median of replays of one recorded sequence: on cuda the launch of a graph, timed
by events on its stream. A GEMV runs over as many copies of its weight as make a working set past
any cache. The share is of the copy bandwidth, bytes read plus bytes written, measured in the same
run by a kernel of this file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import probes

from oxibonsai import metal, quant
from oxibonsai.metal import Buffer, Commands, Device, MetalGraph
from oxibonsai.model import Model
from oxibonsai.quant import QTensor

COPY_BYTES = 1 << 30
WORKING_SET = 512 << 20
SHAPES = [(6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288), (151936, 4096)]
FORMATS = ("Q1_0", "TQ2_0_g128", "Q2_0", "F16")
ROUNDS = 9
COPY = """
#include <metal_stdlib>
using namespace metal;
kernel void copy_words(device const uint4* from [[buffer(0)]], device uint4* to [[buffer(1)]],
                       constant ulong& n [[buffer(2)]], uint at [[thread_position_in_grid]],
                       uint step [[threads_per_grid]])
{
    for (ulong i = at; i < n; i += step)
        to[i] = from[i];
}
"""


def median_seconds(commands: Commands, before: Callable[[], object] = lambda: None) -> float:
    """Return the device's time of one replay, after two that warm up."""
    times = []
    for i in range(ROUNDS + 2):
        before()
        commands.replay()
        seconds = commands.device_time
        assert seconds is not None
        if i >= 2:
            times.append(seconds)
    return statistics.median(times)


def copy_bandwidth(device: Device) -> float:
    """Return bytes a second, read and written, of a copy in the device's memory."""
    pipeline = device.library(COPY).pipeline("copy_words")
    storage = device.working_storage
    source = device.buffer(COPY_BYTES, storage=storage)
    target = device.buffer(COPY_BYTES, storage=storage)
    source.fill(0x5A)
    with device.commands() as commands:
        commands.dispatch(
            pipeline,
            [source, target],
            np.uint64(COPY_BYTES // 16).tobytes(),
            threadgroups=132 * 16,
            threads=512,
        )
        seconds = median_seconds(commands)
    tail = np.empty(16, np.uint8)
    assert (target.read(tail, COPY_BYTES - 16) == 0x5A).all()
    source.close()
    target.close()
    return 2 * COPY_BYTES / seconds


def half_weight(n_rows: int, k: int) -> QTensor:
    rng = np.random.default_rng(k)
    return quant.quantize(rng.standard_normal((n_rows, k), np.float32) / np.float32(k**0.5), "F16")


def gemv_row(graph: MetalGraph, name: str, shape: tuple[int, int], bandwidth: float) -> str:
    n_rows, k = shape
    storage = graph.device.working_storage
    q = probes.random_weight(name, n_rows, k) if name != "F16" else half_weight(n_rows, k)
    copies = max(2, -(-WORKING_SET // q.nbytes))
    handles = probes.upload_copies(graph, q, copies)
    nbytes = handles[0].nbytes
    x = graph.device.upload(probes.activations(k), storage=storage)
    y = graph.device.buffer(4 * n_rows, storage=storage)
    with graph.commands() as commands:
        for handle in handles:
            commands.gemv(handle, x, y)
        seconds = median_seconds(commands) / copies
    assert np.isfinite(y.read(np.empty(n_rows, np.float32))).all()
    for thing in (*handles, x, y):
        thing.close()
    rate = nbytes / seconds
    return (
        f"| gemv {name} | {n_rows} x {k} | {copies} | {seconds * 1e6:.1f} | {rate / 1e9:.0f} "
        f"| {rate / bandwidth:.0%} |"
    )


def small_rows(graph: MetalGraph) -> list[str]:
    """Time the operations of a decode step beside the products, at the 8B shape."""
    device, storage = graph.device, graph.device.working_storage
    heads = {"n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "max_seq": 4096, "kv_dtype": "f16"}
    floats = device.buffer(4 * 151936, storage=storage)
    other = device.buffer(4 * 151936, storage=storage)
    rope = device.buffer(4 * 128 * 4096, storage=storage)
    k, v = (device.buffer(2 * 8 * 128 * 4096, storage=storage) for _ in range(2))
    for buffer in (floats, other, rope, k, v):
        buffer.fill(0)
    tokens = device.upload(np.zeros(8192, np.uint32), storage=storage)
    found = []

    def add(name: str, position: int, record: Callable[[Commands, Buffer], object]) -> None:
        state = device.upload(np.array([position, 0, 0, 0], np.uint32), storage=storage)
        with graph.commands() as commands:
            for _ in range(64):
                record(commands, state)
            found.append(f"| {name} | {median_seconds(commands) / 64 * 1e6:.1f} |")
        state.close()

    add("rmsnorm 4096", 0, lambda c, s: c.rmsnorm(floats, other, floats, 4096))
    add("residual add 4096", 0, lambda c, s: c.add(floats, other, 4096))
    add(
        "qkv_to_cache",
        100,
        lambda c, s: c.qkv_to_cache(floats, other, other, rope, k, v, s, layer=0, **heads),
    )
    for position in (100, 1000, 4000):
        length = next(n for n in (256, 1024, 4096) if n > position)
        add(
            f"attention at {position} of {length}",
            position,
            lambda c, s, n=length: c.attention(
                floats, k, v, s, other, layer=0, max_length=n, **heads
            ),
        )
    zero = np.zeros((1, 4), np.uint32)
    state = device.upload(zero, storage=storage)
    with graph.commands() as commands:
        commands.advance(floats, tokens, state, 151936, 8192)
        found.append(f"| advance over 151936 | {median_seconds(commands) * 1e6:.1f} |")
    for buffer in (floats, other, rope, k, v, tokens, state):
        buffer.close()
    return found


def decode_row(path: Path, device: Device, tokens: int) -> str:
    """Decode one sequence greedily, by the device's clock and by the host's."""
    start = time.perf_counter()
    with Model.load(path, device=device) as model:
        loaded = time.perf_counter() - start
        with model.session(max_seq=1024) as session:
            session.forward([1, 2, 3, 4], logits=None)
            for _ in session.generate(max_tokens=8, temperature=0.0, ignore_eos=True):
                pass
            start = time.perf_counter()
            generated = session.generate(max_tokens=tokens, temperature=0.0, ignore_eos=True)
            on_device = [session.device_time or 0.0 for _ in generated]
            seconds = (time.perf_counter() - start) / tokens
    return (
        f"| {path.name} | {loaded:.1f} | {tokens} | {1e3 * statistics.median(on_device):.3f} "
        f"| {1e3 * seconds:.3f} | {1 / seconds:.1f} |"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    probes.use_defaults()
    with Device(options.device) as device:
        info = device.info
        bandwidth = copy_bandwidth(device)
        print(f"Device: {info.name} ({info.driver}, {info.variant}).")
        print(f"Copy bandwidth, read plus written: {bandwidth / 1e9:.0f} GB/s.\n", flush=True)
        print("| kernel | shape | copies | us | GB/s | share of copy |\n|---|---|---|---|---|---|")
        with metal.MetalGraph(device) as graph:
            for name in FORMATS:
                for shape in SHAPES:
                    if name != "F16" or shape[0] < 100_000:
                        print(gemv_row(graph, name, shape, bandwidth), flush=True)
            print("\n| operation of one token, 32 heads over 8 of 128 | us |\n|---|---|")
            print("\n".join(small_rows(graph)), flush=True)
        if options.model:
            print("\n| model | load s | tokens | device ms | ms a token | tokens/s |")
            print("|---|---|---|---|---|---|")
        for path in options.model:
            print(decode_row(path, device, options.tokens), flush=True)


if __name__ == "__main__":
    main()
