"""``oxibonsai tune``: which kernels are the fastest on this machine, measured and kept."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TextIO

from oxibonsai import metal
from oxibonsai.cli.options import add_device, add_model, add_type42, load
from oxibonsai.cli.terminal import escaped
from oxibonsai.metal import ChosenVariant, Device, Tuning

__all__ = ["add_options", "run"]

_PROMPTS = (512, 256, 128, 64)
"""Tokens of the prompts with which a model tells its products: of whole chunks and of last ones."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(
        parser, "a GGUF file, whose matrices are measured; without it, those of 8B, 1.7B, 4B, 27B"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=20.0,
        metavar="S",
        help="seconds after which no further matrix is begun (20)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    add_device(parser)
    add_type42(parser)


def run(args: argparse.Namespace, out: TextIO) -> int:
    """Run the command and return its exit status."""
    if args.model is None:
        with Device(args.device, threads=args.threads) as device:
            return _tune(args, device, None, out)
    args.activations = None  # as the device likes it
    with load(args) as model:
        most = model.config.context_length - 1
        with model.session(2) as session:
            session.forward([0])
        for n_tokens in dict.fromkeys(min(n, most) for n in _PROMPTS):
            with model.session(n_tokens + 1) as session:
                session.forward([0] * n_tokens)
        return _tune(args, model.device, model.device.recorded_variants(), out)


def _tune(
    args: argparse.Namespace, device: Device, products: list[ChosenVariant] | None, out: TextIO
) -> int:
    found = metal.tune(device, products, budget=args.budget)
    if args.json:
        json.dump(_object(device, found), out, indent=2)
        out.write("\n")
    else:
        out.writelines(escaped(line) + "\n" for line in _report(device, found))
    return 0


def _object(device: Device, found: Tuning) -> dict[str, object]:
    return {
        "device": device.info._asdict(),
        "measured": [
            {**m.variant._asdict(), "default": m.default, "seconds": m.seconds}
            for m in found.measured
        ],
        "left": [variant._asdict() for variant in found.left],
        "path": found.path,
    }


def _report(device: Device, found: Tuning) -> Iterator[str]:
    """Yield the lines of what tune() found."""
    yield f"{device.name} ({device.driver})"
    if not found.measured and not found.left:
        yield "it has one form of each kernel: there is nothing to choose"
        return
    rows = [("product", "default", "chosen", "gain", "us")]
    for measured in found.measured:
        v = measured.variant
        times = (f"{name} {1e6 * seconds:.1f}" for name, seconds in measured.seconds.items())
        product = f"{v.op} {v.device_format} {v.n_rows} x {v.k} by {v.n_vectors}"
        gain = f"{measured.speedup:.2f}"
        rows.append((product, measured.default, v.name, gain, ", ".join(times)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
    if found.left:
        yield f"{len(found.left)} more were left: give a longer --budget"
    if found.path is not None:
        yield f"kept in {found.path}"
