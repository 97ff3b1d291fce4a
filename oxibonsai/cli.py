"""The ``oxibonsai`` command."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from oxibonsai import __version__, formats, gguf, metal

if TYPE_CHECKING:
    from oxibonsai.model import Model

__all__ = ["main"]

DEFAULT_PROMPT = "Alice was beginning to get very tired of sitting by her sister"
_DEMO_MODEL = "alice-q1_0.gguf"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="oxibonsai", description="Run 1-bit and ternary language models."
    )
    parser.add_argument("--version", action="version", version=f"oxibonsai {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    run = commands.add_parser("generate", help="continue a text with a model")
    run.set_defaults(run=_generate)
    _add_model(run)
    run.add_argument(
        "--prompt", default=DEFAULT_PROMPT, metavar="TEXT", help="the text to continue"
    )
    run.add_argument(
        "--max-tokens", type=int, default=64, metavar="N", help="the most to generate (64)"
    )
    _add_sampling(run, temperature=0.0)
    run.add_argument("--quiet", action="store_true", help="print no speeds at the end")
    _add_session(run)

    chat = commands.add_parser("chat", help="talk with a model that has a chat template")
    chat.set_defaults(run=_chat)
    _add_model(chat)
    chat.add_argument("--system", metavar="TEXT", help="a message that comes before all others")
    chat.add_argument(
        "--max-tokens", type=int, default=1024, metavar="N", help="the most of an answer (1024)"
    )
    _add_sampling(chat, temperature=0.7)
    _add_session(chat)

    bench = commands.add_parser("bench", help="measure the speed of a model")
    bench.set_defaults(run=_bench)
    _add_model(bench)
    bench.add_argument(
        "--prompt-tokens", type=int, default=128, metavar="N", help="to feed at once (128)"
    )
    bench.add_argument("--tokens", type=int, default=64, metavar="N", help="to generate (64)")
    bench.add_argument("--repeat", type=int, default=5, metavar="N", help="runs; median counts (5)")
    bench.add_argument("--json", action="store_true", help="print everything as one JSON object")
    _add_session(bench, max_seq=False)

    info = commands.add_parser("info", help="say what is in a GGUF file")
    info.set_defaults(run=_info)
    info.add_argument("file", type=Path, metavar="FILE")
    info.add_argument("--tensors", action="store_true", help="list every tensor")
    _add_type42(info)

    listing = commands.add_parser("devices", help="list the devices, the default first")
    listing.set_defaults(run=_devices)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="a GGUF file; without it, the demo model"
    )


def _add_sampling(parser: argparse.ArgumentParser, *, temperature: float) -> None:
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


def _add_session(parser: argparse.ArgumentParser, *, max_seq: bool = True) -> None:
    if max_seq:
        parser.add_argument("--max-seq", type=int, metavar="N", help="positions of the KV cache")
    parser.add_argument(
        "--kv-dtype", choices=("f16", "f32"), default="f16", help="of the KV cache (f16)"
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
    _add_type42(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help='such as "metal", "metal:1" or "cpu"')
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the cpu device")


def _add_type42(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--type42",
        type=formats.argument,
        choices=[f.name for f in gguf.FORMATS_OF_42],
        help="what tensor type 42 means, for files in which the data does not say",
    )


@contextmanager
def _file(args: argparse.Namespace) -> Iterator[Path]:
    """Give the model's file; the demo model may lie in an archive."""
    if args.model is None:
        with as_file(files("oxibonsai") / "data" / _DEMO_MODEL) as path:
            yield path
    else:
        yield args.model


def _load(args: argparse.Namespace, path: Path, device: metal.Device) -> Model:
    from oxibonsai.model import Model

    return Model.load(path, device, type42=args.type42, activations=args.activations)


def _generate(args: argparse.Namespace, out: TextIO) -> int:
    with _file(args) as path:
        return _generate_with(args, path, out)


def _chat(args: argparse.Namespace, out: TextIO) -> int:
    from oxibonsai.cli_chat import converse

    device = metal.Device(args.device, threads=args.threads)
    with (
        _file(args) as path,
        _load(args, path, device) as model,
        model.session(args.max_seq, args.kv_dtype, chunk=args.chunk) as session,
    ):
        return converse(args, session, out)


def _bench(args: argparse.Namespace, out: TextIO) -> int:
    from oxibonsai.bench import measure

    device = metal.Device(args.device, threads=args.threads)
    with _file(args) as path, _load(args, path, device) as model:
        found = measure(
            model,
            prompt_tokens=args.prompt_tokens,
            tokens=args.tokens,
            repeat=args.repeat,
            kv_dtype=args.kv_dtype,
            chunk=args.chunk,
        )
    if args.json:
        json.dump(found, out, indent=2)
        out.write("\n")
        return 0
    rounded = ", int8 activations" if args.activations == "int8" else ""
    print(f"{found['model']['name']} on {device.name} ({device.driver}){rounded}", file=out)
    for name in ("prefill", "decode"):
        speed = found[name]
        print(
            f"{name:<8} {speed['tokens_per_second']:10.1f} tokens/s "
            f"({speed['tokens']} tokens, median of {args.repeat})",
            file=out,
        )
    return 0


def _generate_with(args: argparse.Namespace, path: Path, out: TextIO) -> int:
    if args.max_tokens < 0:
        raise ValueError(f"--max-tokens {args.max_tokens} must be 0 or more")
    started = time.perf_counter()
    device = metal.Device(args.device, threads=args.threads)
    with _load(args, path, device) as model:
        loaded = time.perf_counter()
        tokenizer = model.tokenizer
        ids = tokenizer.encode(args.prompt)
        if tokenizer.add_bos and tokenizer.bos_id is not None:
            ids = [tokenizer.bos_id, *ids]
        if not ids:
            raise ValueError("the prompt is empty: give at least one character")
        with model.session(args.max_seq, args.kv_dtype, chunk=args.chunk) as session:
            prompt_started = time.perf_counter()
            session.forward(ids, logits=None)
            fed = time.perf_counter()
            tokens = session.generate(
                args.max_tokens,
                args.temperature,
                top_k=args.top_k,
                top_p=args.top_p,
                min_p=args.min_p,
                repetition_penalty=args.repetition_penalty,
                seed=args.seed,
            )
            out.write(args.prompt)
            out.flush()
            text = tokenizer.stream()
            count = 0
            interrupted = False
            try:
                for token in tokens:
                    count += 1
                    out.write(text.push(token))
                    out.flush()
            except KeyboardInterrupt:
                interrupted = True
            finally:
                # Also before an error: what was generated is the user's.
                out.write(text.flush() + "\n")
                out.flush()
            done = time.perf_counter()
        if not args.quiet:
            print(
                f"[{model.name} on {device.name} ({device.driver}): "
                f"loaded in {loaded - started:.2f} s, "
                f"prompt {_rate(len(ids), fed - prompt_started)}, "
                f"generated {_rate(count, done - fed)}]",
                file=sys.stderr,
            )
        return 130 if interrupted else 0


def _rate(tokens: int, seconds: float) -> str:
    speed = f" at {tokens / seconds:.1f} tokens/s" if tokens and seconds > 0 else ""
    return f"{tokens} token{'' if tokens == 1 else 's'}{speed}"


def _info(args: argparse.Namespace, out: TextIO) -> int:
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


def _devices(args: argparse.Namespace, out: TextIO) -> int:
    for device in metal.devices():
        threads = f", {device.threads} threads" if device.threads else ""
        print(
            f"{device.driver}:{device.index}  {device.name}: {device.variant} kernels{threads}, "
            f"{device.recommended_working_set / 2**30:.1f} GiB",
            file=out,
        )
    return 0


def _settle(out: TextIO) -> None:
    """Flush `out`, or where that fails send the rest nowhere: Python flushes again at its end."""
    try:
        out.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C.
    """
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal's encoding lacks must not end a text.
        sys.stdout.reconfigure(errors="replace")
    try:
        status: int = args.run(args, sys.stdout)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone; nothing can be told to it.
        _settle(sys.stdout)
        return 1
    except (metal.MetalGraphError, ValueError, OSError, ImportError) as error:
        print(f"oxibonsai: {error}", file=sys.stderr)
        _settle(sys.stdout)
        return 1
