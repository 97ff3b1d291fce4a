"""Small qwen35 models, recurrent layers and some of attention, with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oxibonsai import gguf, quant


@dataclass(frozen=True)
class Hybrid:
    """The shape; every `interval`-th layer has attention."""

    n_layers: int = 3
    interval: int = 2
    hidden: int = 128
    inter: int = 128
    n_heads: int = 2
    n_kv_heads: int = 1
    head_dim: int = 64
    rope_dim: int = 16
    n_key_heads: int = 1
    n_value_heads: int = 2
    key_dim: int = 32
    value_dim: int = 64
    conv_width: int = 4
    vocab: int = 77
    context: int = 256

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "general.architecture": "qwen35",
            "general.name": "tiny hybrid",
            "qwen35.block_count": self.n_layers,
            "qwen35.context_length": self.context,
            "qwen35.embedding_length": self.hidden,
            "qwen35.feed_forward_length": self.inter,
            "qwen35.attention.head_count": self.n_heads,
            "qwen35.attention.head_count_kv": self.n_kv_heads,
            "qwen35.attention.key_length": self.head_dim,
            "qwen35.attention.value_length": self.head_dim,
            "qwen35.attention.layer_norm_rms_epsilon": 1e-6,
            "qwen35.rope.freq_base": 1e7,
            "qwen35.rope.dimension_count": self.rope_dim,
            "qwen35.full_attention_interval": self.interval,
            "qwen35.ssm.conv_kernel": self.conv_width,
            "qwen35.ssm.state_size": self.key_dim,
            "qwen35.ssm.group_count": self.n_key_heads,
            "qwen35.ssm.time_step_rank": self.n_value_heads,
            "qwen35.ssm.inner_size": self.n_value_heads * self.value_dim,
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors; the head is the embedding."""
        inner = self.n_value_heads * self.value_dim
        channels = 2 * self.n_key_heads * self.key_dim + inner
        q_size, kv_size = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        both: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (self.hidden,),
            "post_attention_norm.weight": (self.hidden,),
            "ffn_gate.weight": (self.inter, self.hidden),
            "ffn_up.weight": (self.inter, self.hidden),
            "ffn_down.weight": (self.hidden, self.inter),
        }
        attention: dict[str, tuple[int, ...]] = {
            "attn_q.weight": (2 * q_size, self.hidden),
            "attn_k.weight": (kv_size, self.hidden),
            "attn_v.weight": (kv_size, self.hidden),
            "attn_q_norm.weight": (self.head_dim,),
            "attn_k_norm.weight": (self.head_dim,),
            "attn_output.weight": (self.hidden, q_size),
        }
        recurrent: dict[str, tuple[int, ...]] = {
            "attn_qkv.weight": (channels, self.hidden),
            "attn_gate.weight": (inner, self.hidden),
            "ssm_alpha.weight": (self.n_value_heads, self.hidden),
            "ssm_beta.weight": (self.n_value_heads, self.hidden),
            "ssm_conv1d.weight": (channels, self.conv_width),
            "ssm_a": (self.n_value_heads,),
            "ssm_dt.bias": (self.n_value_heads,),
            "ssm_norm.weight": (self.value_dim,),
            "ssm_out.weight": (self.hidden, inner),
        }
        found: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (self.vocab, self.hidden),
            "output_norm.weight": (self.hidden,),
        }
        for i in range(self.n_layers):
            kind = recurrent if (i + 1) % self.interval else attention
            found |= {f"blk.{i}.{name}": shape for name, shape in (both | kind).items()}
        return found


def random_tensors(hybrid: Hybrid, format_name: str = "Q1_0", *, seed: int = 0) -> dict[str, Any]:
    """Return random weights, of which states neither vanish at once nor grow."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for name, shape in hybrid.shapes.items():
        if name.endswith("ssm_a"):
            found[name] = -rng.uniform(0.1, 2, shape).astype(np.float32)
        elif name.endswith("ssm_dt.bias"):
            found[name] = rng.uniform(-4, 0, shape).astype(np.float32)
        elif name.endswith("ssm_conv1d.weight"):
            found[name] = rng.normal(0, 0.4, shape).astype(np.float32)
        elif len(shape) == 1:
            found[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            w = rng.standard_normal(shape) * rng.uniform(0.5, 2, (1, shape[1])) / shape[1] ** 0.5
            found[name] = quant.quantize(w.astype(np.float32), format_name)
    return found


def write(path: Path, hybrid: Hybrid, tensors: dict[str, Any] | None = None) -> Path:
    """Write the model; with random weights where none are given."""
    gguf.write(path, hybrid.metadata, (tensors or random_tensors(hybrid)).items())
    return path
