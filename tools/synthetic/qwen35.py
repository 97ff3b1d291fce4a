"""Models of architecture qwen35, hybrids of Gated DeltaNet and attention: Bonsai 27B and less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from synthetic.qwen3 import feed_forward, norm
from synthetic.random_blocks import matrix, random_of
from synthetic.vocabulary import CHATML, tokenizer

TAGS = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<tool_response>", "</tool_response>"),
)


@dataclass(frozen=True)
class HybridShape:
    """Dimensions of a model of architecture qwen35.

    Every layer whose number, from 1, `interval` divides is full attention, the others are
    recurrent. `gates` is the format of the two small matrices of a recurrent layer, which are not
    rotated; the files of 27B have them in BF16.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    value_heads: int
    key_heads: int = 16
    head_dim: int = 256
    rotary_dim: int = 64
    sections: tuple[int, int, int, int] = (11, 11, 10, 0)
    state_dim: int = 128
    conv_width: int = 4
    context: int = 262_144
    vocab: int = 248_320
    unused: int = 267
    gates: str = "BF16"
    interval: int = 4

    @property
    def n_last_tokens(self) -> int:
        """Tokens at the end of the vocabulary that no text has."""
        return len(CHATML) + len(TAGS) + self.unused

    @property
    def inner(self) -> int:
        """Width of a recurrent layer's values."""
        return self.value_heads * self.state_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.state_dim + self.inner

    def is_recurrent(self, i: int) -> bool:
        """Return whether layer `i` is a Gated DeltaNet."""
        return (i + 1) % self.interval != 0

    def layer(self, i: int, fmt: str, seed: int, factor: float) -> Iterator[tuple[str, Any]]:
        """Yield a layer's tensors; `factor` scales the matrices that end its two halves."""
        at = f"blk.{i}."
        yield norm(at + "attn_norm.weight", self.hidden)
        yield from (self._recurrence if self.is_recurrent(i) else self._attention)(
            at, fmt, seed, factor
        )
        yield norm(at + "post_attention_norm.weight", self.hidden)
        yield from feed_forward(at, self.hidden, self.intermediate, fmt, seed, factor)

    def _attention(self, at: str, fmt: str, seed: int, factor: float) -> Iterator[tuple[str, Any]]:
        q_size, kv_size = self.heads * self.head_dim, self.kv_heads * self.head_dim
        # Query and gate of each head, one behind the other.
        yield matrix(at + "attn_q.weight", 2 * q_size, self.hidden, fmt, seed)
        yield matrix(at + "attn_k.weight", kv_size, self.hidden, fmt, seed)
        yield matrix(at + "attn_v.weight", kv_size, self.hidden, fmt, seed)
        yield norm(at + "attn_q_norm.weight", self.head_dim)
        yield norm(at + "attn_k_norm.weight", self.head_dim)
        yield matrix(at + "attn_output.weight", self.hidden, q_size, fmt, seed, factor)

    def _recurrence(self, at: str, fmt: str, seed: int, factor: float) -> Iterator[tuple[str, Any]]:
        rng = random_of(seed, at)
        heads = self.value_heads
        yield matrix(at + "attn_qkv.weight", self.channels, self.hidden, fmt, seed)
        yield matrix(at + "attn_gate.weight", self.inner, self.hidden, fmt, seed)
        yield matrix(at + "ssm_alpha.weight", heads, self.hidden, self.gates, seed)
        yield matrix(at + "ssm_beta.weight", heads, self.hidden, self.gates, seed)
        width = (self.channels, self.conv_width)
        yield at + "ssm_conv1d.weight", rng.normal(0, 0.4, width).astype(np.float32)
        # Heads that forget within a token and such that keep hundreds.
        yield at + "ssm_a", -rng.uniform(0.5, 8, heads).astype(np.float32)
        yield at + "ssm_dt.bias", rng.uniform(-6, 0, heads).astype(np.float32)
        yield norm(at + "ssm_norm.weight", self.state_dim)
        yield matrix(at + "ssm_out.weight", self.hidden, self.inner, fmt, seed, factor)

    def metadata(self) -> dict[str, Any]:
        """Return the metadata, but for the name."""
        own = {
            "block_count": self.layers,
            "context_length": self.context,
            "embedding_length": self.hidden,
            "feed_forward_length": self.intermediate,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "attention.recurrent_layers": [self.is_recurrent(i) for i in range(self.layers)],
            "full_attention_interval": self.interval,
            "rope.freq_base": 1e7,
            "rope.dimension_count": self.rotary_dim,
            "rope.dimension_sections": list(self.sections),
            "ssm.conv_kernel": self.conv_width,
            "ssm.state_size": self.state_dim,
            "ssm.group_count": self.key_heads,
            "ssm.time_step_rank": self.value_heads,
            "ssm.inner_size": self.inner,
        }
        return {
            "general.architecture": "qwen35",
            **{f"qwen35.{key}": value for key, value in own.items()},
            "general.sampling.temp": 1.0,
            "general.sampling.top_k": 20,
            "general.sampling.top_p": 0.95,
            **tokenizer(self.vocab, "qwen35", user_defined=TAGS, n_unused=self.unused),
        }


SHAPES = {
    "bonsai-27b": HybridShape(64, 5120, 17408, 24, 4, value_heads=48),
    "qwen35-9b": HybridShape(32, 4096, 12288, 16, 4, value_heads=32),
    "qwen35-4b": HybridShape(32, 2560, 9216, 16, 4, value_heads=32),
    "qwen35-2b": HybridShape(24, 2048, 6144, 8, 2, value_heads=16),
    "tiny-hybrid": HybridShape(
        *(4, 512, 1024, 4, 2, 6, 2),
        head_dim=64,
        rotary_dim=16,
        sections=(3, 3, 2, 0),
        context=4096,
        vocab=4096,
        unused=0,
    ),
}
