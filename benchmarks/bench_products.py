"""Products of a matrix and 1 to 64 vectors in the shapes of Bonsai-8B, from memory.

    python benchmarks/bench_products.py --device cuda [--format Q1_0] [--vectors 8 ...] [--tiles]

prints a Markdown table by the device's own clock, in microseconds: what the op layer records (with
what it prepares), one GEMV a vector, and GEMM on float32 vectors; and the share of the measured
copy bandwidth that the matrix makes. Weights cycle through copies that are more than a cache holds.
With --tiles, also the product on matrix units in every tile that its kernel has.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Callable

import device_time
import numpy as np
import probes
import pytest
from measure import Meter

from oxibonsai import formats, metal
from oxibonsai.metal import Buffer, Commands, Device, MetalGraph

SHAPES = device_time.SHAPES
FORMATS = ("Q1_0", "TQ2_0_g128")
VECTORS = (1, 2, 4, 8, 16, 32, 64)
WORKING_SET = 128 << 20  # bytes: more than the last-level cache of an H200
TILES = [(shape, rows) for shape in (21, 41, 22, 42) for rows in (1, 2, 4, 8)]
Record = Callable[[Commands, Buffer], object]


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("n_vectors", VECTORS)
@pytest.mark.parametrize("shape", [pytest.param(s, id=f"{s[0]}x{s[1]}") for s in SHAPES])
def test_products(
    graph: MetalGraph, meter: Meter, shape: tuple[int, int], n_vectors: int, format_name: str
) -> None:
    n_rows, k = shape
    handle = graph.upload_weight_soa(probes.random_weight(format_name, n_rows, k))
    storage = graph.device.working_storage
    x = graph.device.upload(probes.activations(n_vectors * k), storage=storage)
    y = graph.device.buffer(4 * n_vectors * n_rows, storage=storage)
    with graph.commands() as commands:
        commands.gemv(handle, x, y, n_vectors=n_vectors)
        meter(commands.replay, nbytes=handle.nbytes)
    meter.add(format=format_name, shape=shape, n_vectors=n_vectors)
    assert np.isfinite(y.read(np.empty(n_vectors * n_rows, np.float32))).all()
    handle.close()
    x.close()
    y.close()


def in_columns(name: str, n_rows: int, k: int) -> tuple[np.ndarray, int]:
    """Return a matrix in the layout of the GPU drivers, and where its codes begin."""
    fmt = formats.get(name)
    data, codes_offset = metal.reformat(probes.random_weight(name, n_rows, k).data, name)
    scales = data[: n_rows * (k // fmt.group_size) * 2].reshape(n_rows, -1, 2)
    codes = data[codes_offset:].reshape(n_rows, -1, 16)
    gap = np.zeros(codes_offset - scales.size, np.uint8)
    parts = (scales.transpose(1, 0, 2), gap, codes.transpose(1, 0, 2))
    return np.concatenate([part.ravel() for part in parts]), codes_offset


class Products:
    """The kernels on one matrix and up to 64 vectors, each recorded by itself."""

    def __init__(self, graph: MetalGraph, name: str, shape: tuple[int, int]) -> None:
        self.graph, self.device = graph, graph.device
        self.name, (self.n_rows, self.k) = name, shape
        self.fmt = formats.get(name)
        storage = self.device.working_storage
        data, self.codes_offset = in_columns(name, *shape)
        self.nbytes = data.nbytes
        self.copies = max(2, -(-WORKING_SET // data.nbytes))
        self.buffers = [self.device.upload(data, storage=storage) for _ in range(self.copies)]
        q = probes.random_weight(name, *shape)
        self.handles = probes.upload_copies(graph, q, self.copies)
        self.x = self.device.upload(probes.activations(max(VECTORS) * self.k), storage=storage)
        self.y = self.device.buffer(4 * max(VECTORS) * self.n_rows, storage=storage)
        block = 128 // self.fmt.bits
        size = max(VECTORS) // 8 * (self.k // block) * 32 * (block + 1)
        self.halves = self.device.buffer(size, storage=storage)

    def close(self) -> None:
        for buffer in (*self.buffers, self.x, self.y, self.halves):
            buffer.close()
        for handle in self.handles:
            handle.close()

    def recorded(self, n: int, deterministic: bool = False) -> float:
        """Return the seconds of what the op layer records for n vectors."""
        with self.graph.commands(deterministic=deterministic) as commands:
            for handle in self.handles:
                commands.gemv(handle, self.x, self.y, n_vectors=n)
            return device_time.median_seconds(commands) / self.copies

    def dispatched(
        self, kernel: str, constants: dict[int, int], n: int, tile: tuple[int, int], threads: int
    ) -> float:
        """Return the seconds of a kernel in a tile of rows by vectors."""
        pipeline = self.device.pipeline(kernel, constants=constants)
        args = struct.pack(
            "<QQIIII", self.codes_offset, self.n_rows, self.n_rows, self.k, n, self.n_rows
        )
        x = self.halves if kernel.endswith("_halves") else self.x
        with self.graph.commands() as commands:
            for buffer in self.buffers:
                commands.dispatch(
                    pipeline,
                    [buffer, x, self.y],
                    args,
                    threadgroups=(-(-self.n_rows // tile[0]), -(-n // tile[1])),
                    threads=threads,
                )
            return device_time.median_seconds(commands) / self.copies

    def gemm(self, n: int) -> float:
        eights = 4 if n > 16 else 2 if n > 8 else 1
        kernel = f"gemm_{self.fmt.device_format}"
        return self.dispatched(kernel, {0: eights}, n, (64, 8 * eights), 128)

    def halve(self, n: int) -> float:
        """Return the seconds of the dispatch before the product, and prepare n vectors."""
        pipeline = self.device.pipeline("halve")
        args = struct.pack("<IIII", self.k, n, 128 // self.fmt.bits, 0)
        with self.graph.commands() as commands:
            for _ in range(16):
                commands.dispatch(
                    pipeline,
                    [self.x, self.halves],
                    args,
                    threadgroups=(-(-self.k // 1024), -(-n // 8) * 8),
                    threads=256,
                )
            return device_time.median_seconds(commands) / 16

    def tiles(self, n: int) -> list[tuple[float, str]]:
        """Return the seconds of the product alone in each tile, the fastest first."""
        self.halve(n)
        kernel = f"gemm_{self.fmt.device_format}_halves"
        found = []
        for shape, rows in TILES:
            if shape == 42 and self.fmt.bits == 2:
                continue  # its kernels do not have it
            size = (16 * (shape // 10) * rows, 8 * (shape % 10))
            seconds = self.dispatched(kernel, {0: shape, 1: rows}, n, size, 256)
            found.append((seconds, f"{shape}/{rows}"))
        return sorted(found)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--format", action="append", choices=FORMATS)
    parser.add_argument("--vectors", type=int, nargs="+", default=VECTORS)
    parser.add_argument("--shape", action="append", help="such as 4096x4096")
    parser.add_argument("--tiles", action="store_true")
    options = parser.parse_args()
    probes.use_defaults()
    asked = [s.split("x") for s in options.shape or ()]
    shapes = [(int(n_rows), int(k)) for n_rows, k in asked] or SHAPES
    with Device(options.device) as device, MetalGraph(device) as graph:
        bandwidth = device_time.copy_bandwidth(device)
        print(f"Device: {device.info.name} ({device.info.driver}).")
        print(f"Copy bandwidth, read plus written: {bandwidth / 1e9:.0f} GB/s.\n")
        print("| matrix | vectors | us | share of copy | GEMVs us | GEMM us | halves us | tiles |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for name in options.format or FORMATS[:1]:
            for shape in shapes:
                products = Products(graph, name, shape)
                for n in options.vectors:
                    seconds = products.recorded(n)
                    share = products.nbytes / seconds / bandwidth
                    others = (products.recorded(n, deterministic=True), products.gemm(n))
                    cells = [f"{1e6 * s:.1f}" for s in (*others, products.halve(n))]
                    tiles = products.tiles(n) if options.tiles and n > 1 else []
                    cells.append(", ".join(f"{t}: {1e6 * s:.1f}" for s, t in tiles))
                    print(
                        f"| {name} {shape[0]}x{shape[1]} | {n} | {1e6 * seconds:.1f} "
                        f"| {share:.0%} | {' | '.join(cells)} |",
                        flush=True,
                    )
                products.close()


if __name__ == "__main__":
    main()
