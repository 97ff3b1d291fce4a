"""``oxibonsai bench``: a model's speed in prompts and in generation, medians of several runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any, TextIO

from oxibonsai.cli.measuring import measure
from oxibonsai.cli.options import add_model, add_session, load
from oxibonsai.cli.terminal import escaped
from oxibonsai.model.runtime.kernels import names_by_op

__all__ = ["add_options", "measure", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    parser.add_argument(
        "--prompt-tokens", type=int, default=128, metavar="N", help="to feed at once (128)"
    )
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="to generate (64)")
    parser.add_argument(
        "--repeat", type=int, default=5, metavar="N", help="runs; median counts (5)"
    )
    parser.add_argument(
        "--contexts",
        type=_numbers,
        default=[],
        metavar="N,N",
        help="also greedy decoding behind so many tokens, such as 128,2048,8192; these are fed "
        "first, at the speed of a prompt",
    )
    parser.add_argument(
        "--batch",
        type=_numbers,
        default=[],
        metavar="N,N",
        help="also so many sequences at a time, such as 1,8",
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    add_session(parser, max_seq=False)


def _numbers(text: str) -> list[int]:
    """Return the numbers of a list that the user gave, each once, in their order."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give whole numbers separated by commas, such as 1,8"
        ) from None


def run(args: argparse.Namespace, out: TextIO) -> int:
    """Run the command and return its exit status."""
    with load(args) as model:
        found = measure(
            model,
            prompt_tokens=args.prompt_tokens,
            tokens=args.tokens,
            repeat=args.repeat,
            kv_dtype=args.kv_dtype,
            chunk=args.chunk,
            contexts=args.contexts,
            batches=args.batch,
        )
    if args.json:
        json.dump(found, out, indent=2)
        out.write("\n")
    else:
        out.writelines(escaped(line) + "\n" for line in report(found))
    return 0


def report(found: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of what measure() found."""
    device, settings, sampled = found["device"], found["settings"], found["settings"]["sampled"]
    threads = f", {device['threads']} threads" if device["threads"] else ""
    yield f"{found['model']['name']} on {device['name']} ({device['driver']}{threads})"
    kind = settings["activations"]
    rounded = "" if kind == "float32" else f", {kind} activations"
    runs = "one run" if settings["repeat"] == 1 else f"medians of {settings['repeat']} runs"
    yield f"K/V cache in {settings['kv_dtype']}{rounded}; {runs}"
    if found["variants"]:
        kernels = names_by_op((v["op"], v["name"]) for v in found["variants"])
        yield f"kernels: {kernels}"
    yield ""
    rows: list[tuple[str, ...]] = [("", "tokens/s", "slowest", "fastest")]
    notes = []
    for name, speed in _speeds(found):
        if "skipped" in speed:
            notes.append(f"{name}: skipped, {speed['skipped']}")
        else:
            rates = (speed["tokens_per_second"], *speed["tokens_per_second_range"])
            rows.append((name, *(f"{rate:,.1f}" for rate in rates)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        aligned = (f"{cell:>{w}}" for cell, w in zip(cells, widths[1:], strict=True))
        yield f"{name:<{widths[0]}}  {'  '.join(aligned)}"
    yield ""
    ratio = found["sampled"]["tokens_per_second"] / found["decode"]["tokens_per_second"]
    first = found["time_to_first_token_seconds"]
    yield f"first token after a prompt of {settings['prompt_tokens']:,}: {_duration(first)}"
    yield (
        f"sampled: {ratio:.2f} of greedy; temperature {sampled['temperature']}, top-k "
        f"{sampled['top_k']}, top-p {sampled['top_p']}, min-p {sampled['min_p']}, "
        f"repetition penalty {sampled['repetition_penalty']}"
    )
    yield from notes


def _speeds(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a name and what was measured, for each line of the table."""
    settings = found["settings"]
    yield f"prompt of {settings['prompt_tokens']:,}", found["prefill"]
    yield f"greedy, {settings['tokens']:,} tokens", found["decode"]
    yield f"sampled, {settings['tokens']:,} tokens", found["sampled"]
    for n, speed in found.get("contexts", {}).items():
        yield f"greedy at a context of {int(n):,}", speed
    for n, speed in found.get("batch", {}).items():
        yield f"{int(n):,} sequence{'' if n == '1' else 's'} at a time", speed


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"
