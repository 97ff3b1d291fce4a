"""Options that several commands have, and what they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from oxibonsai import demo_model, formats, gguf, metal
from oxibonsai.model import Model
from oxibonsai.model.runtime.cache import KV_DTYPES

__all__ = ["add_model", "add_sampling", "add_session", "add_type42", "load", "sampling"]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``."""
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="a GGUF file; without it, the demo model"
    )


def add_sampling(parser: argparse.ArgumentParser, *, temperature: float) -> None:
    """Add the options of Sampler and of speculation."""
    parser.add_argument(
        "--temperature",
        type=float,
        default=temperature,
        metavar="T",
        help=f"0 is greedy ({temperature:g})",
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="0 keeps all (0)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="in (0, 1] (1)")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P", help="in [0, 1] (0)")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="1 is off (1)"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="of the random generator")
    parser.add_argument(
        "--draft-tokens",
        type=int,
        default=0,
        metavar="N",
        help="guess up to N tokens from the text so far, where that is faster: greedy only (0)",
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


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of Session.generate that add_sampling() adds but the temperature."""
    names = ("top_k", "top_p", "min_p", "repetition_penalty", "seed", "draft_tokens")
    return {name: getattr(args, name) for name in names}


def load(args: argparse.Namespace) -> Model:
    """Load the model that the options name, the demo model without one."""
    device = metal.Device(args.device, threads=args.threads)
    path = demo_model() if args.model is None else args.model
    return Model.load(path, device, type42=args.type42, activations=args.activations)
