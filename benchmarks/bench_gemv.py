"""The GEMV y = W x in the shapes of Bonsai models, from memory (cold) and from the caches (hot).

    python benchmarks/bench_gemv.py --device cuda [--format Q1_0] [--shape 4096x4096] [--variant N]

prints a Markdown table of every variant of the kernel, or those named, by the device's own clock:
the median of replays of a recording over more copies of the matrix than a cache holds, in
microseconds, as it is in a step: y = W x, y = W rmsnorm(x), y += W x and gate-up-SwiGLU with norm.
The variants are measured in turn, round by round; the default is marked.
"""

from __future__ import annotations

import argparse
import itertools
import statistics

import device_time
import numpy as np
import probes
import pytest
from measure import Meter

from oxibonsai import formats, metal
from oxibonsai.metal import Commands, Device, MetalGraph

SHAPES = {
    "1.7b": [(4096, 2048), (2048, 2048), (12288, 2048), (2048, 6144), (151936, 2048)],
    "8b": [(6144, 4096), (4096, 4096), (12288, 4096), (24576, 4096), (4096, 12288)],
}
FORMATS = ("Q1_0", "TQ2_0_g128", "Q2_0")
OPS = ("gemv", "norm", "residual", "swiglu")
WORKING_SET = 128 << 20  # bytes: more than the last-level cache of an H200
ROUNDS = 5


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("where", ["cold", "hot"])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((n_rows, k), id=f"{size}-{n_rows}x{k}")
        for size, shapes in SHAPES.items()
        for n_rows, k in shapes
    ],
)
def test_gemv(
    graph: metal.MetalGraph, meter: Meter, shape: tuple[int, int], format_name: str, where: str
) -> None:
    n_rows, k = shape
    q = probes.random_weight(format_name, n_rows, k)
    first = graph.upload_weight_soa(q)
    # Three caches' worth: what a pass leaves in the cache is gone when its turn comes again.
    copies = 1
    if where == "cold":
        copies += -(-3 * probes.last_level_cache(graph.device) // first.nbytes)
    handles = [first, *probes.upload_copies(graph, q, copies - 1)]
    encode = probes.encoder(graph, format_name)
    x, y = probes.activations(k), np.empty(n_rows, np.float32)
    weight = itertools.cycle(handles)
    meter(lambda: encode(next(weight), x, y), nbytes=first.nbytes, warmup=copies + 2)
    meter.add(format=format_name, shape=shape, copies=copies)
    for handle in handles:
        handle.close()
    assert np.isfinite(y).all()


class Product:
    """A matrix in memory, recorded once for each variant of its kernel."""

    def __init__(self, graph: MetalGraph, name: str, shape: tuple[int, int]) -> None:
        n_rows, k = shape
        storage = graph.device.working_storage
        q = probes.random_weight(name, n_rows, k)
        self.graph, self.shape = graph, shape
        self.format = formats.get(name).device_format
        self.handles = probes.upload_copies(graph, q, max(2, -(-WORKING_SET // q.nbytes)))
        self.x, self.norm = (
            graph.device.upload(probes.activations(k), storage=storage) for _ in range(2)
        )
        self.y = graph.device.buffer(4 * n_rows, storage=storage)
        self.y.fill(0)

    def close(self) -> None:
        for handle in self.handles:
            handle.close()
        for buffer in (self.x, self.norm, self.y):
            buffer.close()

    def recorded(self, op: str, variant: str) -> Commands:
        """Return a recording of the product with every copy of the matrix."""
        product = ("swiglu" if op == "swiglu" else "gemv", self.format, *self.shape)
        self.graph.device.choose_variant(*product, variant)
        commands = self.graph.commands()
        for handle in self.handles:
            if op == "swiglu":
                commands.gate_up_swiglu(handle, self.x, self.y, norm=self.norm)
            else:
                norm = self.norm if op == "norm" else None
                commands.gemv(handle, self.x, self.y, norm=norm, residual=op == "residual")
        self.graph.device.choose_variant(*product, None)
        return commands

    def times(self, op: str, variants: list[str]) -> list[float]:
        """Return the seconds of one product by each variant."""
        recordings = [self.recorded(op, variant) for variant in variants]
        rounds = [[device_time.median_seconds(c) for c in recordings] for _ in range(ROUNDS)]
        for commands in recordings:
            commands.close()
        return [statistics.median(t) / len(self.handles) for t in zip(*rounds, strict=True)]


def rows(product: Product, op: str, name: str, wanted: list[str], copy: float) -> list[str]:
    """Return the lines of a product's variants, the fastest first."""
    kernel = "swiglu" if op == "swiglu" else "gemv"
    known = list(product.graph.device.kernel_variants(kernel, product.format, *product.shape))
    variants = [v for v in known if not wanted or v in wanted]
    found = sorted(zip(product.times(op, variants), variants, strict=True))
    n_rows, k = product.shape
    nbytes = product.handles[0].nbytes
    return [
        f"| {op} {name} | {n_rows} x {k} | {variant}{' (default)' if variant == known[0] else ''} "
        f"| {seconds * 1e6:.2f} | {nbytes / seconds / 1e9:.0f} | {nbytes / seconds / copy:.0%} |"
        for seconds, variant in found
    ]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--format", action="append", choices=FORMATS)
    parser.add_argument("--shape", action="append", metavar="ROWSxK")
    parser.add_argument("--op", action="append", choices=OPS)
    parser.add_argument("--variant", action="append", metavar="NAME", default=[])
    options = parser.parse_args()
    probes.use_defaults()
    shapes = [tuple(map(int, s.split("x"))) for s in options.shape or []] or device_time.SHAPES
    with Device(options.device) as device, MetalGraph(device) as graph:
        copy = device_time.copy_bandwidth(device)
        print(f"Device: {device.info.name} ({device.info.driver}, {device.info.variant}).")
        print(f"Copy bandwidth, read plus written: {copy / 1e9:.0f} GB/s.\n")
        print("| product | shape | variant | us | GB/s | of the copy |\n|---|---|---|---|---|---|")
        for name in options.format or FORMATS[:2]:
            for n_rows, k in shapes:
                product = Product(graph, name, (n_rows, k))
                for op in options.op or OPS[:1]:
                    print("\n".join(rows(product, op, name, options.variant, copy)), flush=True)
                product.close()


if __name__ == "__main__":
    main()
