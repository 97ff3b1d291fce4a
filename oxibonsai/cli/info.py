"""``oxibonsai info``: what is in a GGUF file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from oxibonsai import gguf
from oxibonsai.cli.options import add_type42

__all__ = ["add_options", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    add_type42(parser)


def run(args: argparse.Namespace, out: TextIO) -> int:
    """Run the command and return its exit status."""
    with gguf.GGUFFile(args.file, type42=args.type42) as file:
        print(f"file       {file.path}", file=out)
        print(f"size       {file.size / 1e6:.2f} MB, GGUF version {file.version}", file=out)
        counts: dict[str, list[int]] = {}
        for tensor in file.tensors.values():
            row = counts.setdefault(tensor.format or f"{tensor.type_name} (unsupported)", [0, 0])
            row[0] += 1
            row[1] += tensor.nbytes
        print(f"tensors    {len(file.tensors)}", file=out)
        for name, (n, nbytes) in sorted(counts.items(), key=lambda item: -item[1][1]):
            print(f"  {name:<12} {n:5d} tensors, {nbytes / 1e6:10.2f} MB", file=out)
        print(f"metadata   {len(file.metadata)} keys", file=out)
        for key, value in file.metadata.items():
            print(f"  {key} = {_shorten(value)}", file=out)
        if args.tensors:
            for tensor in file.tensors.values():
                shape = " x ".join(map(str, tensor.shape))
                print(
                    f"  {tensor.name:<32} {tensor.format or tensor.type_name:<12} {shape}", file=out
                )
        hadamard = gguf.hadamard_keys(file)
        if hadamard:
            print(
                f"cannot run: an activation transform is needed ({', '.join(hadamard)})", file=out
            )
    return 0


def _shorten(value: object) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= 72 else value[:69] + "...")
    if isinstance(value, (bool, int, float)):
        return f"{value:.9g}" if isinstance(value, float) else str(value)
    assert isinstance(value, Sequence) or hasattr(value, "__len__")
    return f"array of {len(value)}"
