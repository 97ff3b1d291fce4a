"""Options that several commands have, and what they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path

from oxibonsai import demo_model, formats, gguf, metal
from oxibonsai.model import Model
from oxibonsai.model.runtime.cache import KV_DTYPES

__all__ = ["add_model", "add_session", "add_type42", "load"]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``."""
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="a GGUF file; without it, the demo model"
    )


def add_session(parser: argparse.ArgumentParser, *, max_seq: bool = True) -> None:
    """Add the options of Model.load and Model.session."""
    if max_seq:
        parser.add_argument("--max-seq", type=int, metavar="N", help="positions of the KV cache")
    parser.add_argument(
        "--kv-dtype", choices=KV_DTYPES, default="f16", help="of the KV cache (f16)"
    )
    parser.add_argument(
        "--chunk", type=int, default=128, metavar="N", help="prompt tokens that run at once (128)"
    )
    parser.add_argument(
        "--activations",
        choices=("float32", "int8"),
        default="float32",
        help="of prompts: int8 is less exact and mostly faster, on the cpu device (float32)",
    )
    _add_device(parser)
    add_type42(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help='such as "metal", "metal:1" or "cpu"')
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the cpu device")


def add_type42(parser: argparse.ArgumentParser) -> None:
    """Add ``--type42``."""
    parser.add_argument(
        "--type42",
        type=formats.argument,
        choices=[f.name for f in gguf.FORMATS_OF_42],
        help="what tensor type 42 means, for files in which the data does not say",
    )


def load(args: argparse.Namespace) -> Model:
    """Load the model that the options name, the demo model without one."""
    device = metal.Device(args.device, threads=args.threads)
    path = demo_model() if args.model is None else args.model
    return Model.load(path, device, type42=args.type42, activations=args.activations)
