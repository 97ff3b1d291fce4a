"""Small qwen35 models, hybrids of Gated DeltaNet and attention, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_models import Tensors, vector

from oxibonsai import quant

SMALL = ("ssm_alpha", "ssm_beta")
"""The matrices of a recurrent layer that give numbers for each head."""


@dataclass(frozen=True)
class TinyHybrid:
    """The shape of a small hybrid; `attention` says which layers are attention.

    Value head h uses key head h % n_key_heads, as in every GGUF file.
    """

    attention: tuple[bool, ...] = (False, False, False, True)
    hidden: int = 128
    inter: int = 256
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    rotary_dim: int = 16
    n_key_heads: int = 2
    n_value_heads: int = 4
    state_dim: int = 64
    conv_width: int = 4
    vocab: int = 77
    context: int = 256
    rope_theta: float = 1e7
    eps: float = 1e-6

    @property
    def n_layers(self) -> int:
        return len(self.attention)

    @property
    def inner(self) -> int:
        return self.n_value_heads * self.state_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.n_key_heads * self.state_dim + self.inner

    @property
    def sections(self) -> tuple[int, int, int, int]:
        """What of the rotated width belongs to each axis of a picture; all are one in a text."""
        half = self.rotary_dim // 2
        part = half // 3
        return (half - 2 * part, part, part, 0)

    @property
    def metadata(self) -> dict[str, Any]:
        own = {
            "block_count": self.n_layers,
            "context_length": self.context,
            "embedding_length": self.hidden,
            "feed_forward_length": self.inter,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": self.eps,
            "attention.recurrent_layers": [not one for one in self.attention],
            "rope.freq_base": self.rope_theta,
            "rope.dimension_count": self.rotary_dim,
            "rope.dimension_sections": list(self.sections),
            "ssm.conv_kernel": self.conv_width,
            "ssm.state_size": self.state_dim,
            "ssm.group_count": self.n_key_heads,
            "ssm.time_step_rank": self.n_value_heads,
            "ssm.inner_size": self.inner,
        }
        return {
            "general.architecture": "qwen35",
            "general.name": "tiny hybrid",
            **{f"qwen35.{key}": value for key, value in own.items()},
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors, without the head."""
        q_size, kv_size = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        attention: dict[str, tuple[int, ...]] = {
            "attn_q.weight": (2 * q_size, self.hidden),
            "attn_k.weight": (kv_size, self.hidden),
            "attn_v.weight": (kv_size, self.hidden),
            "attn_q_norm.weight": (self.head_dim,),
            "attn_k_norm.weight": (self.head_dim,),
            "attn_output.weight": (self.hidden, q_size),
        }
        recurrent: dict[str, tuple[int, ...]] = {
            "attn_qkv.weight": (self.channels, self.hidden),
            "attn_gate.weight": (self.inner, self.hidden),
            "ssm_alpha.weight": (self.n_value_heads, self.hidden),
            "ssm_beta.weight": (self.n_value_heads, self.hidden),
            "ssm_conv1d.weight": (self.channels, self.conv_width),
            "ssm_a": (self.n_value_heads,),
            "ssm_dt.bias": (self.n_value_heads,),
            "ssm_norm.weight": (self.state_dim,),
            "ssm_out.weight": (self.hidden, self.inner),
        }
        common: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (self.hidden,),
            "post_attention_norm.weight": (self.hidden,),
            "ffn_gate.weight": (self.inter, self.hidden),
            "ffn_up.weight": (self.inter, self.hidden),
            "ffn_down.weight": (self.hidden, self.inter),
        }
        found: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (self.vocab, self.hidden),
            "output_norm.weight": (self.hidden,),
        }
        for i, is_attention in enumerate(self.attention):
            layer = common | (attention if is_attention else recurrent)
            found |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
        return found


def random_hybrid(
    tiny: TinyHybrid,
    format_name: str = "Q1_0",
    *,
    formats: Mapping[str, str] | None = None,
    tied: bool = True,
    seed: int = 0,
) -> Tensors:
    """Return random weights; `formats` names other formats by the part after ``blk.N.``.

    In `formats`, ``token_embd``, ``output`` and the matrices of a layer stand without ``.weight``;
    ``norm`` is the format of every norm. Heads forget within a few tokens or within hundreds.
    """
    others = dict(formats or {})
    rng = np.random.default_rng(seed)
    shapes = tiny.shapes
    if not tied:
        shapes["output.weight"] = (tiny.vocab, tiny.hidden)
    found: Tensors = {}
    for name, shape in shapes.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        if part == "ssm_a":
            found[name] = -rng.uniform(0.05, 8, shape).astype(np.float32)
        elif name.endswith("ssm_dt.bias"):
            found[name] = rng.uniform(-6, 1, shape).astype(np.float32)
        elif part == "ssm_conv1d":
            found[name] = rng.normal(0, 0.5, shape).astype(np.float32)
        elif len(shape) == 1:
            values: NDArray[np.float32] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            found[name] = vector(values, others.get("norm", "F32"))
        else:
            # Different sizes along the rows, so that neighbouring groups have other scales; gates
            # that are neither open nor shut.
            w = rng.standard_normal(shape) * rng.uniform(0.5, 2, (1, shape[1])) / shape[1] ** 0.5
            if part in SMALL:
                w *= 2
            found[name] = quant.quantize(w.astype(np.float32), others.get(part, format_name))
    return found
