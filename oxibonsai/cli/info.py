"""``oxibonsai info``: what is in a GGUF file."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any, TextIO

from oxibonsai import gguf
from oxibonsai.cli.options import add_type42
from oxibonsai.cli.parsing import model_name
from oxibonsai.cli.terminal import escaped
from oxibonsai.model.rotation import Rotations, read_rotations

__all__ = ["add_options", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("file", type=model_name, metavar="FILE")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument(
        "--json", action="store_true", help="print everything, tensors too, as one JSON object"
    )
    add_type42(parser)


def run(args: argparse.Namespace, out: TextIO) -> int:
    """Run the command and return its exit status."""
    with gguf.GGUFFile(args.file, type42=args.type42) as file:
        if args.json:
            json.dump(_everything(file), out, indent=2)
            out.write("\n")
            return 0
        for path in file.paths:
            print(f"file       {escaped(path)}", file=out)
        print(f"size       {file.size / 1e6:.2f} MB, GGUF version {file.version}", file=out)
        counts: dict[str, list[int]] = {}
        for tensor in file.tensors.values():
            row = counts.setdefault(_type(tensor), [0, 0])
            row[0] += 1
            row[1] += tensor.nbytes
        print(f"tensors    {len(file.tensors)}", file=out)
        width = max(12, *map(len, counts), 0)
        for name, (n, nbytes) in sorted(counts.items(), key=lambda item: -item[1][1]):
            print(f"  {name:<{width}} {n:5d} tensors, {nbytes / 1e6:10.2f} MB", file=out)
        print(f"metadata   {len(file.metadata)} keys", file=out)
        for key, value in file.metadata.items():
            print(f"  {escaped(key)} = {_shorten(value)}", file=out)
        if args.tensors:
            for tensor in file.tensors.values():
                shape = " x ".join(map(str, tensor.shape))
                name = escaped(tensor.name)
                print(f"  {name:<32} {tensor.format or tensor.type_name:<12} {shape}", file=out)
        try:
            rotations = read_rotations(file)
        except gguf.GGUFError as e:
            print(f"cannot run: {escaped(str(e))}", file=out)
        else:
            if rotations is not None:
                print(f"rotation   {_rotation(rotations)}", file=out)
    return 0


def _rotation(rotations: Rotations) -> str:
    """Return how the weights were rotated, as a line."""
    widths = ", ".join(str(width) for width, _ in rotations.signs)
    signs = f"signs for inputs of {widths}" if widths else "no signs"
    places = [f"{len(rotations.weights)} matrices"]
    places += ["the embedding"] * rotations.embedding
    places += ["the head, which shares it"] * rotations.tied_output
    return (
        f"Hadamard, version {rotations.version}, blocks of {rotations.block_size}, {signs}: "
        f"{', '.join(places)}"
    )


def _plain_rotation(file: gguf.GGUFFile) -> dict[str, Any] | None:
    """Return what JSON has of the rotation: None without one, the error where it cannot run."""
    try:
        rotations = read_rotations(file)
    except gguf.GGUFError as e:
        return {"error": str(e)}
    if rotations is None:
        return None
    return {
        "version": rotations.version,
        "block_size": rotations.block_size,
        "sign_mode": rotations.sign_mode,
        "sign_widths": [width for width, _ in rotations.signs],
        "weights": list(rotations.weights),
        "embedding": rotations.embedding,
        "head": rotations.head,
        "gdn_v_grouped": rotations.gdn_v_grouped,
    }


def _everything(file: gguf.GGUFFile) -> dict[str, Any]:
    """Return what is in a file, in types that JSON has."""
    return {
        "files": [str(path) for path in file.paths],
        "size": file.size,
        "version": file.version,
        "metadata": {key: _plain(value) for key, value in file.metadata.items()},
        "tensors": [
            {
                "name": tensor.name,
                "type": tensor.type_name,
                "format": tensor.format,
                "loads_as": tensor.format or tensor.loads_as,
                "shape": list(tensor.shape),
                "bytes": tensor.nbytes,
            }
            for tensor in file.tensors.values()
        ],
        "rotation": _plain_rotation(file),
    }


def _plain(value: Any) -> Any:
    """Return a value of metadata as JSON has it: numbers that it has not are text."""
    if isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return [_plain(item) for item in (value.tolist() if hasattr(value, "tolist") else value)]


def _type(tensor: gguf.TensorInfo) -> str:
    """Return the type in the file, and what it is computed as where that is another."""
    if tensor.format is not None:
        return tensor.format
    loads_as = tensor.loads_as
    return f"{tensor.type_name} ({f'runs as {loads_as}' if loads_as else 'unsupported'})"


def _shorten(value: object) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= 72 else value[:69] + "...")
    if isinstance(value, (bool, int, float)):
        return f"{value:.9g}" if isinstance(value, float) else str(value)
    assert isinstance(value, Sequence) or hasattr(value, "__len__")
    return f"array of {len(value)}"
