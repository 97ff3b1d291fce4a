"""Write a GGUF of a real model's shape with random weights, for benchmarks and memory tests.

The weights are random codes with scales near 1/sqrt(k), so that activations stay finite; the text
that such a model gives is noise. With ``--cycle N`` it runs through cycles of N tokens instead,
greedy and sampled, in the time that any other model of the shape takes. The vocabulary is synthetic
too, but of the real size and with as many merges. Tensor data is streamed: a model of 1 GB needs
some tens of MB, with ``--cycle`` the size of the head besides.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oxibonsai import formats, gguf
from oxibonsai.formats import Format

CHUNK_BYTES = 2**22
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NORMAL, CONTROL = 1, 3
LAYER_OUTPUT = 1e-3
"""What the outputs of layers are multiplied by in a model whose text runs in cycles."""


@dataclass(frozen=True)
class Shape:
    """Dimensions of a model of architecture qwen3."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocab: int = 151_936


SHAPES = {
    "bonsai-1.7b": Shape(28, 2048, 6144, 16, 8),
    "bonsai-4b": Shape(36, 2560, 9728, 32, 8),
    "bonsai-8b": Shape(36, 4096, 12288, 32, 8),
    "tiny": Shape(2, 512, 1024, 4, 2, vocab=4096),
}

# Bytes of four 2-bit codes 0 to 2, each about as often: codes 3 would give the weights a mean.
_QUADS = np.array(
    [sum(c << 2 * i for i, c in enumerate(q)) for q in itertools.product(range(3), repeat=4)],
    np.uint8,
)
_TERNARY = _QUADS[np.arange(256) % len(_QUADS)]


def blocks(
    n: int, k: int, fmt: Format, rng: np.random.Generator, factor: float = 1.0
) -> npt.NDArray[Any]:
    """Return `n` random blocks for rows of `k` weights as an array of their bytes or values."""
    size = np.float32(factor / np.sqrt(k))
    if fmt.name in ("F32", "F16", "BF16"):
        values = rng.standard_normal(n, np.float32) * size
        if fmt.name == "BF16":
            return (values.view("<u4") >> 16).astype("<u2")
        return values.astype("<f4" if fmt.name == "F32" else "<f2")
    raw = np.frombuffer(rng.bytes(n * fmt.block_bytes), np.uint8)
    two_bit_codes = fmt.bits == 2 and fmt.name != "PTQ1_0"  # there any byte is five digits
    raw = (_TERNARY[raw] if two_bit_codes else raw.copy()).reshape(n, fmt.block_bytes)
    scale = (0.5 + rng.random((n, 1), np.float32)) * size
    if fmt.name == "Q8_0":
        scale /= 64
    at = fmt.scale_offset
    raw[:, at : at + 2] = scale.astype("<f2").view(np.uint8)
    return raw


def matrix(
    name: str, n_rows: int, k: int, format_name: str, seed: int, factor: float = 1.0
) -> tuple[str, tuple[Any, tuple[int, int], str]]:
    """Return a random matrix for the writer, made chunk by chunk when it is written."""
    fmt = formats.get(format_name)
    total = n_rows * (fmt.row_bytes(k) // fmt.block_bytes)

    def chunks() -> Iterator[npt.NDArray[Any]]:
        # The name in the seed: a tensor is the same whatever else the file holds.
        rng = np.random.Generator(np.random.SFC64([seed, *name.encode()]))
        step = max(CHUNK_BYTES // fmt.block_bytes, 1)
        for start in range(0, total, step):
            yield blocks(min(step, total - start), k, fmt, rng, factor)

    return name, (chunks, (n_rows, k), fmt.name)


def cycling_head(embedding: tuple[Any, tuple[int, int], str], cycle: int) -> tuple[Any, Any, str]:
    """Return the head that gives each token of the embedding the next of its cycle.

    The special tokens, the last ones, follow themselves. The last cycle may be shorter.
    """
    chunks, (vocab, k), format_name = embedding

    def rows() -> Iterator[npt.NDArray[Any]]:
        whole = np.concatenate([chunk.reshape(-1) for chunk in chunks()]).reshape(vocab, -1)
        before = np.arange(vocab)
        for start in range(0, vocab - len(SPECIAL_TOKENS), cycle):
            group = before[start : min(start + cycle, vocab - len(SPECIAL_TOKENS))]
            group[:] = np.roll(group, 1)
        step = max(CHUNK_BYTES // whole[0].nbytes, 1)
        for start in range(0, vocab, step):
            yield whole[before[start : start + step]]

    return rows, (vocab, k), format_name


def tensors(
    shape: Shape, fmt: str, embedding: str, tied: bool, seed: int, cycle: int = 0
) -> Iterator[tuple[str, Any]]:
    """Yield all tensors of a model in a file's usual order."""
    # So that the text is that of the head, whatever the layers compute.
    factor = LAYER_OUTPUT if cycle else 1.0

    def norm(name: str, n: int) -> tuple[str, Any]:
        return name, np.ones(n, np.float32)

    hidden, inter = shape.hidden, shape.intermediate
    q_rows, kv_rows = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    embed = matrix("token_embd.weight", shape.vocab, hidden, embedding, seed)
    yield embed
    for i in range(shape.layers):
        at = f"blk.{i}."
        yield norm(at + "attn_norm.weight", hidden)
        yield matrix(at + "attn_q.weight", q_rows, hidden, fmt, seed)
        yield matrix(at + "attn_k.weight", kv_rows, hidden, fmt, seed)
        yield matrix(at + "attn_v.weight", kv_rows, hidden, fmt, seed)
        yield norm(at + "attn_q_norm.weight", shape.head_dim)
        yield norm(at + "attn_k_norm.weight", shape.head_dim)
        yield matrix(at + "attn_output.weight", hidden, q_rows, fmt, seed, factor)
        yield norm(at + "ffn_norm.weight", hidden)
        yield matrix(at + "ffn_gate.weight", inter, hidden, fmt, seed)
        yield matrix(at + "ffn_up.weight", inter, hidden, fmt, seed)
        yield matrix(at + "ffn_down.weight", hidden, inter, fmt, seed, factor)
    yield norm("output_norm.weight", hidden)
    if cycle:
        yield "output.weight", cycling_head(embed[1], cycle)
    elif not tied:
        yield matrix("output.weight", shape.vocab, hidden, embedding, seed)


def vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Return `size` tokens, the last three special, and the merges that make all but 256 + 3."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    pairs = [(a, b) for a in characters for b in characters]
    triples = ((a + b, c) for a, b in pairs for c in characters)
    made = size - len(characters) - len(SPECIAL_TOKENS)
    if made < 0:
        raise SystemExit(f"--vocab {size} is too small: at least {size - made} are needed")
    merges = list(itertools.islice(itertools.chain(pairs, triples), made))
    tokens = characters + [a + b for a, b in merges] + list(SPECIAL_TOKENS)
    return tokens, [f"{a} {b}" for a, b in merges]


def metadata(name: str, shape: Shape) -> dict[str, Any]:
    """Return the metadata of architecture qwen3 with a synthetic tokenizer."""
    tokens, merges = vocabulary(shape.vocab)
    first_special = len(tokens) - len(SPECIAL_TOKENS)
    return {
        "general.architecture": "qwen3",
        "general.name": f"synthetic {name}",
        "qwen3.block_count": shape.layers,
        "qwen3.context_length": 32768,
        "qwen3.embedding_length": shape.hidden,
        "qwen3.feed_forward_length": shape.intermediate,
        "qwen3.attention.head_count": shape.heads,
        "qwen3.attention.head_count_kv": shape.kv_heads,
        "qwen3.attention.key_length": shape.head_dim,
        "qwen3.attention.value_length": shape.head_dim,
        "qwen3.rope.freq_base": 1e6,
        "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen3.vocab_size": shape.vocab,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.where(
            np.arange(len(tokens)) < first_special, NORMAL, CONTROL
        ).astype(np.int32),
        "tokenizer.ggml.merges": merges or gguf.ValueType.STRING([]),
        "tokenizer.ggml.bos_token_id": first_special,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.padding_token_id": first_special,
        "tokenizer.ggml.add_bos_token": False,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="bonsai-1.7b")
    parser.add_argument(
        "--format", type=formats.argument, choices=formats.BLOCK_FORMATS, default="Q1_0"
    )
    parser.add_argument("--head", choices=("tied", "untied"), default="tied")
    parser.add_argument(
        "--embedding-format",
        type=formats.argument,
        choices=list(formats.FORMATS),
        help="format of embedding and head; default: that of the other matrices",
    )
    parser.add_argument("--layers", type=int, help="number of layers, instead of the shape's")
    parser.add_argument("--vocab", type=int, help="size of the vocabulary, instead of the shape's")
    parser.add_argument(
        "--cycle",
        type=int,
        default=0,
        metavar="N",
        help="let the text run through cycles of N tokens; the head is then untied",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the .gguf to write")
    args = parser.parse_args(arguments)
    if args.cycle < 0:
        parser.error(f"--cycle {args.cycle} must be 1 or more, or 0 for none")

    shape = SHAPES[args.shape]
    shape = replace(shape, layers=args.layers or shape.layers, vocab=args.vocab or shape.vocab)
    start = time.monotonic()
    gguf.write(
        args.out,
        metadata(args.shape, shape),
        tensors(
            shape,
            args.format,
            args.embedding_format or args.format,
            args.head == "tied",
            args.seed,
            args.cycle,
        ),
    )
    seconds = time.monotonic() - start
    print(f"{args.out.name}: {args.out.stat().st_size / 1e9:.3f} GB in {seconds:.1f} s")


if __name__ == "__main__":
    main()
