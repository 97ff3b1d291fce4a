"""Small qwen35 models with random weights, and their logits in float64 from the definitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reference
from numpy.typing import NDArray
from tiny_models import Tensors, vector, weights64

from oxibonsai import gguf, quant

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Hybrid:
    """The shape of a small model; layer i has attention where (i + 1) % interval is 0.

    With `attention`, it is named for each layer instead, in the file too.
    """

    n_layers: int = 4
    interval: int = 2
    hidden: int = 128
    inter: int = 256
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    rotary: int = 16
    key_heads: int = 1
    value_heads: int = 2
    key_dim: int = 64
    value_dim: int = 64
    conv: int = 4
    vocab: int = 77
    context: int = 512
    rope_theta: float = 10000.0
    eps: float = 1e-6
    attention: tuple[bool, ...] = ()

    @property
    def channels(self) -> int:
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def metadata(self) -> dict[str, Any]:
        keys: dict[str, Any] = {
            "block_count": self.n_layers,
            "context_length": self.context,
            "embedding_length": self.hidden,
            "feed_forward_length": self.inter,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": self.eps,
            "rope.freq_base": self.rope_theta,
            "rope.dimension_count": self.rotary,
            "ssm.conv_kernel": self.conv,
            "ssm.state_size": self.key_dim,
            "ssm.group_count": self.key_heads,
            "ssm.time_step_rank": self.value_heads,
            "ssm.inner_size": self.value_heads * self.value_dim,
        }
        if self.attention:
            keys["attention.recurrent_layers"] = [not one for one in self.attention]
        else:
            keys["full_attention_interval"] = self.interval
        return {
            "general.architecture": "qwen35",
            "general.name": "tiny hybrid",
            **{f"qwen35.{key}": value for key, value in keys.items()},
        }

    def has_attention(self, layer: int) -> bool:
        return self.attention[layer] if self.attention else (layer + 1) % self.interval == 0

    def layer_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Shapes of a layer's tensors by their names behind ``blk.N.``."""
        found: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (self.hidden,),
            "post_attention_norm.weight": (self.hidden,),
            "ffn_gate.weight": (self.inter, self.hidden),
            "ffn_up.weight": (self.inter, self.hidden),
            "ffn_down.weight": (self.hidden, self.inter),
        }
        q_size, kv_size = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        if self.has_attention(layer):
            return found | {
                "attn_q.weight": (2 * q_size, self.hidden),
                "attn_k.weight": (kv_size, self.hidden),
                "attn_v.weight": (kv_size, self.hidden),
                "attn_q_norm.weight": (self.head_dim,),
                "attn_k_norm.weight": (self.head_dim,),
                "attn_output.weight": (self.hidden, q_size),
            }
        inner = self.value_heads * self.value_dim
        return found | {
            "attn_qkv.weight": (self.channels, self.hidden),
            "attn_gate.weight": (inner, self.hidden),
            "ssm_alpha.weight": (self.value_heads, self.hidden),
            "ssm_beta.weight": (self.value_heads, self.hidden),
            "ssm_conv1d.weight": (self.channels, self.conv),
            "ssm_a": (self.value_heads,),
            "ssm_dt.bias": (self.value_heads,),
            "ssm_norm.weight": (self.value_dim,),
            "ssm_out.weight": (self.hidden, inner),
        }


def random_tensors(
    shape: Hybrid,
    format_name: str = "Q1_0",
    *,
    formats: Mapping[str, str] | None = None,
    tied: bool = True,
    seed: int = 0,
) -> Tensors:
    """Return random weights; `formats` as of tiny_models.random_tensors."""
    others = dict(formats or {})
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab, shape.hidden)}
    if not tied:
        shapes["output.weight"] = (shape.vocab, shape.hidden)
    shapes["output_norm.weight"] = (shape.hidden,)
    for i in range(shape.n_layers):
        shapes |= {f"blk.{i}.{name}": size for name, size in shape.layer_shapes(i).items()}
    found: Tensors = {}
    for name, size in shapes.items():
        part = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        if part == "ssm_a":
            found[name] = -np.exp(rng.uniform(-1, 2, size)).astype(np.float32)
        elif part == "ssm_dt":
            found[name] = rng.uniform(-4, 0, size).astype(np.float32)
        elif part == "ssm_conv1d":
            values = rng.normal(0, 0.4, size).astype(np.float32)
            found[name] = vector(values.reshape(-1), others.get(part, "F32"))
            if isinstance(found[name], tuple):
                found[name] = (found[name][0], size, found[name][2])
            else:
                found[name] = found[name].reshape(size)
        elif len(size) == 1:
            found[name] = vector(
                rng.uniform(0.5, 1.5, size).astype(np.float32), others.get("norm", "F32")
            )
        else:
            w = rng.standard_normal(size) * rng.uniform(0.5, 2, (1, size[1])) / size[1] ** 0.5
            found[name] = quant.quantize(w.astype(np.float32), others.get(part, format_name))
    return found


def write(
    path: Path,
    shape: Hybrid,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model; a value of None in `metadata` leaves that key out."""
    pairs = {**shape.metadata, **(metadata or {})}
    pairs = {key: value for key, value in pairs.items() if value is not None}
    gguf.write(path, pairs, tensors.items())
    return path


def reference_logits(shape: Hybrid, tensors: Mapping[str, Any], ids: Any) -> F64:
    """Return the float64 logits [t, vocab] of every position."""
    weights = weights64(tensors)
    eps, t = float(np.float32(shape.eps)), len(ids)
    x = weights["token_embd.weight"][np.asarray(ids)]
    for i in range(shape.n_layers):
        w = {
            name.removeprefix(f"blk.{i}.").removesuffix(".weight"): array
            for name, array in weights.items()
            if name.startswith(f"blk.{i}.")
        }
        h = reference.rmsnorm(x, w["attn_norm"], eps)
        if shape.has_attention(i):
            x = x + _attention(shape, w, h, eps).reshape(t, -1) @ w["attn_output"].T
        else:
            x = x + _recurrence(shape, w, h, eps).reshape(t, -1) @ w["ssm_out"].T
        h = reference.rmsnorm(x, w["post_attention_norm"], eps)
        x = x + reference.swiglu(h @ w["ffn_gate"].T, h @ w["ffn_up"].T) @ w["ffn_down"].T
    x = reference.rmsnorm(x, weights["output_norm.weight"], eps)
    head = weights.get("output.weight", weights["token_embd.weight"])
    result: F64 = x @ head.T
    return result


def _attention(shape: Hybrid, w: Mapping[str, F64], h: F64, eps: float) -> F64:
    """Return the gated heads [t, n_heads, head_dim]."""
    t = len(h)
    both = (h @ w["attn_q"].T).reshape(t, shape.n_heads, 2, shape.head_dim)
    q, gate = both[:, :, 0], both[:, :, 1]
    k, v = ((h @ w[f"attn_{x}"].T).reshape(t, shape.n_kv_heads, shape.head_dim) for x in "kv")
    turned = []
    for heads, norm in ((q, w["attn_q_norm"]), (k, w["attn_k_norm"])):
        normed = reference.rmsnorm(heads, norm, eps)
        theta = float(np.float32(shape.rope_theta))
        first = reference.rope_neox(normed[..., : shape.rotary], np.arange(t), theta)
        turned.append(np.concatenate([first, normed[..., shape.rotary :]], axis=-1))
    return reference.gate(reference.attention(*turned, v), gate, "sigmoid")


def _recurrence(shape: Hybrid, w: Mapping[str, F64], h: F64, eps: float) -> F64:
    """Return the gated heads [t, value heads, value dim]."""
    t, size = len(h), shape.key_heads * shape.key_dim
    before = np.zeros((shape.conv - 1, shape.channels))
    mixed, _ = reference.conv_silu(h @ w["attn_qkv"].T, w["ssm_conv1d"], before)
    q, k, v = np.split(mixed, [size, 2 * size], axis=1)
    y, _ = reference.delta_rule(
        q.reshape(t, shape.key_heads, -1),
        k.reshape(t, shape.key_heads, -1),
        v.reshape(t, shape.value_heads, -1),
        h @ w["ssm_alpha"].T,
        h @ w["ssm_beta"].T,
        w["ssm_a"],
        w["ssm_dt.bias"],
        np.zeros((shape.value_heads, shape.key_dim, shape.value_dim)),
    )
    z = (h @ w["attn_gate"].T).reshape(t, shape.value_heads, -1)
    return reference.gate(y, z, "silu", w["ssm_norm"], eps)
