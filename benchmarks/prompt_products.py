"""Products of a prompt in half, in every variant of their kernel, as a Markdown report.

    python benchmarks/prompt_products.py --device cuda [--shape 8b 1.7b] [--vectors 512 128 64]

The four products of a layer with what prepares their vectors, by the device's own clock: in half,
in each variant by name, and from float32 (two halves of each activation); and the tokens a second
that all layers would have of the default variants alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import device_time
import numpy as np
import probes

from oxibonsai import formats
from oxibonsai.metal import Buffer, Commands, Device, MetalGraph, WeightHandle

REPEATS = 8  # of a product in a recording: its launch does not count then


class Product(NamedTuple):
    """A product of a layer; `kind` is "norm", "residual" or "swiglu"."""

    kind: str
    n_rows: int
    k: int


class Shape(NamedTuple):
    """The products of a layer, and how many layers there are."""

    layers: int
    products: tuple[Product, ...]


def of_model(layers: int, hidden: int, qkv: int, attention: int, inner: int) -> Shape:
    """Return the products of a model's layers."""
    return Shape(
        layers,
        (
            Product("norm", qkv, hidden),
            Product("residual", hidden, attention),
            Product("swiglu", 2 * inner, hidden),
            Product("residual", hidden, inner),
        ),
    )


SHAPES = {"8b": of_model(36, 4096, 6144, 4096, 12288), "1.7b": of_model(28, 2048, 4096, 2048, 6144)}


class Bench:
    """A product on a device with room for so many vectors."""

    def __init__(self, graph: MetalGraph, name: str, product: Product, most: int) -> None:
        self.graph, self.product, self.name = graph, product, name
        device, storage = graph.device, graph.device.working_storage
        self.handle: WeightHandle = probes.upload_copies(
            graph, probes.random_weight(name, product.n_rows, product.k), 1
        )[0]
        self.x = device.upload(probes.activations(most * product.k), storage=storage)
        self.y = device.buffer(4 * most * product.n_rows, storage=storage)
        self.y.fill(0)
        self.norm = device.upload(np.ones(product.k, np.float32), storage=storage)

    def close(self) -> None:
        """Release what it holds."""
        things: Sequence[Buffer | WeightHandle] = (self.handle, self.x, self.y, self.norm)
        for thing in things:
            thing.close()

    def record(self, commands: Commands, n: int) -> None:
        """Record the product of n vectors."""
        kind = self.product.kind
        if kind == "swiglu":
            commands.gate_up_swiglu(
                self.handle, self.x, self.y, n_vectors=n, norm=self.norm, eps=1e-6
            )
        elif kind == "norm":
            commands.gemv(self.handle, self.x, self.y, n_vectors=n, norm=self.norm, eps=1e-6)
        else:
            commands.gemv(self.handle, self.x, self.y, n_vectors=n, residual=True)

    def seconds(self, n: int, activations: str, variant: str | None = None) -> float:
        """Return the device's time of one product, in a variant of the kernel in half."""
        p, device = self.product, self.graph.device
        key = ("gemm_half", formats.get(self.name).device_format, p.n_rows, p.k)
        device.choose_variant(*key, variant, n_vectors=n)
        with self.graph.commands(activations=activations) as commands:
            for _ in range(REPEATS):
                self.record(commands, n)
            seconds = device_time.median_seconds(commands) / REPEATS
        device.choose_variant(*key, None, n_vectors=n)
        return seconds

    def variants(self, n: int) -> tuple[str, ...]:
        """Return the names of the variants, the default first."""
        p, device = self.product, self.graph.device
        device_format = formats.get(self.name).device_format
        return device.kernel_variants("gemm_half", device_format, p.n_rows, p.k, n)


def report(graph: MetalGraph, name: str, model: str, vectors: Sequence[int]) -> None:
    """Print the rows of a model's products."""
    shape = SHAPES[model]
    total = dict.fromkeys([(n, kind) for n in vectors for kind in ("half", "float32")], 0.0)
    for product in shape.products:
        bench = Bench(graph, name, product, max(vectors))
        for n in vectors:
            names = bench.variants(n)
            times = {name: bench.seconds(n, "half", name) for name in names}
            exact = bench.seconds(n, "float32")
            best = times[names[0]]
            total[n, "half"] += best
            total[n, "float32"] += exact
            rate = 2 * product.n_rows * product.k * n / best
            cells = ", ".join(f"{v}: {1e6 * s:.1f}" for v, s in times.items())
            print(
                f"| {model} {name} {product.kind} {product.n_rows}x{product.k} | {n} "
                f"| {1e6 * best:.1f} | {rate / 1e12:.0f} | {1e6 * exact:.1f} | {cells} |",
                flush=True,
            )
        bench.close()
    for n in vectors:
        half, exact = (n / (shape.layers * total[n, kind]) for kind in ("half", "float32"))
        print(
            f"| {model} {name}, products of all layers | {n} | | | | {half:,.0f} tok/s in half, "
            f"{exact:,.0f} from float32 |",
            flush=True,
        )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--format", nargs="+", default=["Q1_0"])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--vectors", type=int, nargs="+", default=[512, 128, 64])
    options = parser.parse_args()
    probes.use_defaults()
    with Device(options.device) as device, MetalGraph(device) as graph:
        print(f"Device: {device.info.name} ({device.info.driver}).\n")
        print("| product | vectors | half us | TFLOPS | float32 us | variants us |")
        print("|---|---|---|---|---|---|", flush=True)
        for name in options.format:
            for model in options.shape:
                report(graph, name, model, options.vectors)


if __name__ == "__main__":
    main()
