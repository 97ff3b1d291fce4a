"""Models of architecture qwen3: Bonsai 1.7B, 4B and 8B."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from synthetic.random_blocks import matrix
from synthetic.vocabulary import CHATML, tokenizer


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

    n_last_tokens: ClassVar[int] = len(CHATML)
    """Tokens at the end of the vocabulary that no text has."""

    def layer(self, i: int, fmt: str, seed: int, factor: float) -> Iterator[tuple[str, Any]]:
        """Yield a layer's tensors; `factor` scales the matrices that end its two halves."""
        at, hidden, inter = f"blk.{i}.", self.hidden, self.intermediate
        q_rows, kv_rows = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield norm(at + "attn_norm.weight", hidden)
        yield matrix(at + "attn_q.weight", q_rows, hidden, fmt, seed)
        yield matrix(at + "attn_k.weight", kv_rows, hidden, fmt, seed)
        yield matrix(at + "attn_v.weight", kv_rows, hidden, fmt, seed)
        yield norm(at + "attn_q_norm.weight", self.head_dim)
        yield norm(at + "attn_k_norm.weight", self.head_dim)
        yield matrix(at + "attn_output.weight", hidden, q_rows, fmt, seed, factor)
        yield norm(at + "ffn_norm.weight", hidden)
        yield from feed_forward(at, hidden, inter, fmt, seed, factor)

    def metadata(self) -> dict[str, Any]:
        """Return the metadata, but for the name."""
        return {
            "general.architecture": "qwen3",
            "qwen3.block_count": self.layers,
            "qwen3.context_length": 32768,
            "qwen3.embedding_length": self.hidden,
            "qwen3.feed_forward_length": self.intermediate,
            "qwen3.attention.head_count": self.heads,
            "qwen3.attention.head_count_kv": self.kv_heads,
            "qwen3.attention.key_length": self.head_dim,
            "qwen3.attention.value_length": self.head_dim,
            "qwen3.rope.freq_base": 1e6,
            "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
            "qwen3.vocab_size": self.vocab,
            **tokenizer(self.vocab, "qwen2"),
        }


def norm(name: str, n: int) -> tuple[str, Any]:
    """Return the weights of a norm, which change nothing."""
    return name, np.ones(n, np.float32)


def feed_forward(
    at: str, hidden: int, inter: int, fmt: str, seed: int, factor: float
) -> Iterator[tuple[str, Any]]:
    """Yield the matrices of a layer's SwiGLU."""
    yield matrix(at + "ffn_gate.weight", inter, hidden, fmt, seed)
    yield matrix(at + "ffn_up.weight", inter, hidden, fmt, seed)
    yield matrix(at + "ffn_down.weight", hidden, inter, fmt, seed, factor)


SHAPES = {
    "bonsai-1.7b": Shape(28, 2048, 6144, 16, 8),
    "bonsai-4b": Shape(36, 2560, 9728, 32, 8),
    "bonsai-8b": Shape(36, 4096, 12288, 32, 8),
    "tiny": Shape(2, 512, 1024, 4, 2, vocab=4096),
}
