"""Options that several commands have, and what they stand for."""

from __future__ import annotations

import argparse
import unicodedata

from oxibonsai import demo_model, formats, gguf, metal
from oxibonsai.cli.parsing import model_name
from oxibonsai.model import Model, Session
from oxibonsai.model.protocols import ACTIVATIONS
from oxibonsai.model.runtime.cache import KV_DTYPES

__all__ = [
    "add_device",
    "add_model",
    "add_nfc",
    "add_session",
    "add_type42",
    "fewest_tokens",
    "load",
    "room",
]


def add_model(
    parser: argparse.ArgumentParser, help: str = "a GGUF file; without it, the demo model"
) -> None:
    """Add ``--model``."""
    parser.add_argument("--model", type=model_name, metavar="FILE", help=help)


def add_nfc(parser: argparse._ActionsContainer) -> None:
    """Add ``--nfc``."""
    parser.add_argument(
        "--nfc",
        action="store_true",
        help="normalise text to Unicode's form NFC, as the tokenizers of Hugging Face do for Qwen; "
        "llama.cpp does not",
    )


def add_session(parser: argparse.ArgumentParser, *, max_seq: bool = True) -> None:
    """Add the options of Model.load and Model.session."""
    if max_seq:
        parser.add_argument(
            "--max-seq",
            type=int,
            metavar="N",
            help="positions of the KV cache; without it, the model's whole context",
        )
    parser.add_argument(
        "--kv-dtype", choices=KV_DTYPES, default="f16", help="of the KV cache (f16)"
    )
    parser.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help="prompt tokens that run at once (512 on a GPU with memory of its own, 128 elsewhere, "
        "and on Metal after the first chunk 64 or 32 where that takes more than a second)",
    )
    parser.add_argument(
        "--activations",
        choices=ACTIVATIONS,
        help="of prompts: half is less exact and faster on GPUs, int8 mostly on the cpu device "
        "(half on GPUs, but for models with recurrent layers, else float32)",
    )
    add_device(parser)
    add_type42(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--threads``."""
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
    return Model.load(
        path,
        device,
        type42=args.type42,
        activations=args.activations,
        nfc=getattr(args, "nfc", False),
    )


def room(session: Session, asked: int | None) -> str:
    """Return how many tokens a session holds, and what holds more."""
    most = session.model.config.context_length
    if session.max_seq == most:
        return f"--max-seq can be no more than the model's context_length, {most}"
    if asked is None:
        return (
            f"without --max-seq it is what the device holds, {session.max_seq} tokens, and "
            "--kv-dtype q8 takes less memory"
        )
    return f"--max-seq is {session.max_seq}, and can be {most}, the model's context_length"


def fewest_tokens(session: Session, text: str) -> int:
    """Return how many tokens a text has at least, by its length: 0 where it may well fit.

    Millions of bytes take minutes to encode, which nothing interrupts.
    """
    n_bytes = len(text.encode("utf-8", "surrogatepass"))
    if n_bytes <= 4 * session.max_seq:
        return 0
    tokenizer = session.model.tokenizer
    if tokenizer.nfc:
        n_bytes = len(unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass"))
    longest = max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))
    return -(-n_bytes // max(1, longest))
