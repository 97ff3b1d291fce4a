"""Write a GGUF of a real model's shape with random weights, for benchmarks and memory tests.

The weights are random codes with scales near 1/sqrt(k), so that activations stay finite; the text
that such a model gives is noise. With ``--cycle N`` it runs through cycles of N tokens instead,
greedy and sampled, in the time that any other model of the shape takes. The vocabulary is synthetic
too, but of the real size and with as many merges. Tensor data is streamed: a model of 7 GB needs
some tens of MB, with ``--cycle`` the size of the head besides.

With ``--hadamard`` the file says that its matrices are stored rotated; ``--unrotated`` writes the
same model a second time, in float32 and without the rotation, for small shapes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from synthetic import qwen3, qwen35  # noqa: E402
from synthetic.qwen3 import norm  # noqa: E402
from synthetic.random_blocks import cycling_head, matrix  # noqa: E402
from synthetic.rotation import Rotation  # noqa: E402

from oxibonsai import formats, gguf  # noqa: E402

LAYER_OUTPUT = 1e-3
"""What the outputs of layers are multiplied by in a model whose text runs in cycles."""

SHAPES: dict[str, Any] = {**qwen3.SHAPES, **qwen35.SHAPES}


def tensors(
    shape: Any, fmt: str, embedding: str, tied: bool, seed: int, cycle: int = 0
) -> Iterator[tuple[str, Any]]:
    """Yield all tensors of a model in a file's usual order."""
    # So that the text is that of the head, whatever the layers compute.
    factor = LAYER_OUTPUT if cycle else 1.0
    embed = matrix("token_embd.weight", shape.vocab, shape.hidden, embedding, seed)
    yield embed
    for i in range(shape.layers):
        yield from shape.layer(i, fmt, seed, factor)
    yield norm("output_norm.weight", shape.hidden)
    if cycle:
        yield "output.weight", cycling_head(embed[1], cycle, shape.n_last_tokens)
    elif not tied:
        yield matrix("output.weight", shape.vocab, shape.hidden, embedding, seed)


def write(path: Path, metadata: dict[str, Any], tensors: Iterable[tuple[str, Any]]) -> None:
    """Write a file and say how large it is."""
    start = time.monotonic()
    gguf.write(path, metadata, tensors)
    seconds = time.monotonic() - start
    print(f"{path.name}: {path.stat().st_size / 1e9:.3f} GB in {seconds:.1f} s")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--shape", choices=SHAPES, default="bonsai-1.7b")
    found.add_argument(
        "--format", type=formats.argument, choices=formats.BLOCK_FORMATS, default="Q1_0"
    )
    found.add_argument(
        "--head",
        choices=("tied", "untied"),
        help="default: tied, but with --cycle and --hadamard 1, which need a head of its own",
    )
    found.add_argument(
        "--embedding-format",
        type=formats.argument,
        choices=list(formats.FORMATS),
        help="format of embedding and head; default: that of the other matrices",
    )
    found.add_argument(
        "--gates-format",
        type=formats.argument,
        choices=list(formats.FORMATS),
        help="format of ssm_alpha and ssm_beta in hybrids; default: BF16",
    )
    found.add_argument("--layers", type=int, help="number of layers, instead of the shape's")
    found.add_argument("--vocab", type=int, help="size of the vocabulary, instead of the shape's")
    found.add_argument(
        "--cycle",
        type=int,
        default=0,
        metavar="N",
        help="let the text run through cycles of N tokens; the head is then untied",
    )
    found.add_argument(
        "--hadamard", type=int, choices=(1, 2), help="version of the rotation of the matrices"
    )
    found.add_argument(
        "--hadamard-block", type=int, default=1024, metavar="N", help="default: 1024"
    )
    found.add_argument(
        "--hadamard-signs",
        choices=("explicit", "identity"),
        default="explicit",
        help="default: explicit",
    )
    found.add_argument(
        "--unrotated", type=Path, metavar="PATH", help="with --hadamard: where the plain model goes"
    )
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--out", type=Path, required=True, help="the .gguf to write")
    return found


def checked(arguments: list[str] | None) -> argparse.Namespace:
    """Return the arguments, with whether the head is tied, if they go together."""
    options = parser()
    args = options.parse_args(arguments)
    block = args.hadamard_block
    if args.cycle < 0:
        options.error(f"--cycle {args.cycle} must be 1 or more, or 0 for none")
    for name in ("layers", "vocab"):
        if (given := getattr(args, name)) is not None and given < 1:
            options.error(f"--{name} {given} must be 1 or more")
    interval = getattr(SHAPES[args.shape], "interval", 1)
    if args.layers is not None and args.layers < interval:
        options.error(
            f"--layers {args.layers}: {args.shape} has attention from {interval} layers on"
        )
    if not 16 <= block <= 4096 or block & (block - 1):
        options.error(
            f"--hadamard-block {block} must be a power of two in 16..4096, which models can have"
        )
    if args.hadamard == 2 and (args.cycle or args.head == "untied"):
        options.error("--hadamard 2 has the embedding for its head: leave out --cycle and --head")
    if args.hadamard == 1 and args.head == "tied":
        options.error("--hadamard 1 needs a head of its own: --head untied")
    if args.unrotated is not None and args.hadamard is None:
        options.error("--unrotated needs --hadamard")
    if args.gates_format and not hasattr(SHAPES[args.shape], "gates"):
        options.error(f"--gates-format: {args.shape} is no hybrid")
    args.tied = not args.cycle and args.hadamard != 1 and args.head != "untied"
    return args


def main(arguments: list[str] | None = None) -> None:
    args = checked(arguments)
    shape = replace(SHAPES[args.shape], **({"layers": args.layers} if args.layers else {}))
    if args.vocab:
        # Rows that no text uses belong to the size of a real vocabulary.
        unused = {"unused": 0} if hasattr(shape, "unused") else {}
        shape = replace(shape, vocab=args.vocab, **unused)
    if args.gates_format:
        shape = replace(shape, gates=args.gates_format)
    embedding = args.embedding_format or args.format
    made = list(tensors(shape, args.format, embedding, args.tied, args.seed, args.cycle))
    metadata = {**shape.metadata(), "general.name": f"synthetic {args.shape}"}
    keys = {}
    if args.hadamard:
        explicit = args.hadamard_signs == "explicit"
        rotation = Rotation(shape, args.hadamard, args.hadamard_block, explicit, args.seed)
        rotation.check(made)
        keys = rotation.metadata(made)
        if args.unrotated is not None:
            write(args.unrotated, metadata, rotation.unrotated(made))
    write(args.out, {**metadata, **keys}, made)


if __name__ == "__main__":
    main()
