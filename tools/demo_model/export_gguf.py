"""Write the weights of train.py as a GGUF file in a 1-bit or ternary format."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from oxibonsai import formats, gguf, quant

END_OF_TEXT = "<|endoftext|>"
CONTROL, NORMAL = 3, 1


def metadata(tokenizer: Path, one_bit: bool) -> dict[str, Any]:
    """Return the model's dimensions and its tokenizer."""
    model = json.loads(tokenizer.read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {
        "general.architecture": "qwen3",
        "general.name": f"Alice {'1-bit' if one_bit else 'ternary'} demo",
        "qwen3.block_count": 6,
        "qwen3.context_length": 2048,
        "qwen3.embedding_length": 512,
        "qwen3.feed_forward_length": 1536,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 128,
        "qwen3.attention.value_length": 128,
        "qwen3.rope.freq_base": 1e6,
        "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen3.vocab_size": len(tokens),
        "general.license": "CC0-1.0",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if t == END_OF_TEXT else NORMAL for t in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index(END_OF_TEXT),
        "tokenizer.ggml.eos_token_id": tokens.index(END_OF_TEXT),
        "tokenizer.ggml.padding_token_id": tokens.index(END_OF_TEXT),
        "tokenizer.ggml.add_bos_token": False,
    }


def position(name: str) -> tuple[int, int, str]:
    """Return the place of a tensor in the file: embedding, layers, final norm."""
    if name.startswith("blk."):
        return 1, int(name.split(".")[1]), name
    return (0 if name == "token_embd.weight" else 2), 0, name


def tensors(weights: Path, format_name: str) -> Iterator[tuple[str, Any]]:
    """Yield the tensors in the file's order.

    A group holds nothing but -d, 0 and +d, so that quantising it gives back exactly what was
    trained, in every format but TQ2_0, whose groups are of 256.
    """
    with np.load(weights) as arrays:
        for name in sorted({n.removesuffix(".q").removesuffix(".d") for n in arrays}, key=position):
            if name in arrays:
                yield name, arrays[name]
                continue
            q, d = arrays[name + ".q"], arrays[name + ".d"]
            w = q.astype(np.float32) * d.astype(np.float32)[..., None]
            yield name, quant.quantize(w.reshape(len(q), -1), format_name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, help="the .npz of train.py")
    parser.add_argument("out", type=Path, help="the .gguf to write")
    parser.add_argument("--tokenizer", type=Path, default=Path("tokenizer.json"))
    parser.add_argument(
        "--format",
        type=formats.argument,
        required=True,
        choices=formats.BLOCK_FORMATS,
        help="Q1_0 for weights of kind q1",
    )
    args = parser.parse_args()

    gguf.write(
        args.out,
        metadata(args.tokenizer, one_bit=args.format == "Q1_0"),
        tensors(args.weights, args.format),
    )
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
