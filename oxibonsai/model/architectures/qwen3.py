"""Qwen3: GQA attention with q and k norms and RoPE on halves, and a SwiGLU feed-forward block."""

from __future__ import annotations

from dataclasses import dataclass

from oxibonsai.gguf import GGUFFile
from oxibonsai.metal import Rotation, WeightHandle
from oxibonsai.model.architectures.base import ROTATED, LayerStep
from oxibonsai.model.config import ModelConfig
from oxibonsai.model.weights import Projection, WeightLoader

__all__ = ["Qwen3"]


class Qwen3:
    """The architecture ``qwen3``."""

    name = "qwen3"
    rotated_inputs = (
        ("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_qkv.weight"),
        ("attn_output.weight",),
        ("ffn_gate.weight", "ffn_up.weight"),
        ("ffn_down.weight",),
    )

    def config(self, file: GGUFFile) -> ModelConfig:
        """Read the shape."""
        return ModelConfig.from_gguf(file)

    def layer_tensors(self, config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a layer's tensors."""
        c = config
        kv_size = c.n_kv_heads * c.head_dim
        return {
            "attn_norm.weight": (c.hidden_size,),
            "attn_q.weight": (c.q_size, c.hidden_size),
            "attn_k.weight": (kv_size, c.hidden_size),
            "attn_v.weight": (kv_size, c.hidden_size),
            "attn_q_norm.weight": (c.head_dim,),
            "attn_k_norm.weight": (c.head_dim,),
            "attn_output.weight": (c.hidden_size, c.q_size),
            "ffn_norm.weight": (c.hidden_size,),
            "ffn_gate.weight": (c.intermediate_size, c.hidden_size),
            "ffn_up.weight": (c.intermediate_size, c.hidden_size),
            "ffn_down.weight": (c.hidden_size, c.intermediate_size),
        }

    def optional_tensors(self, config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Return the biases of q, k and v, which some fine-tunes have."""
        kv_size = config.n_kv_heads * config.head_dim
        return {
            "attn_q.bias": (config.q_size,),
            "attn_k.bias": (kv_size,),
            "attn_v.bias": (kv_size,),
        }

    def fused_tensors(self, config: ModelConfig, layer: int) -> dict[str, tuple[str, ...]]:
        """Return the tensors that hold q, k and v in one."""
        return {
            f"attn_qkv.{kind}": tuple(f"attn_{x}.{kind}" for x in "qkv")
            for kind in ("weight", "bias")
        }

    def load_layer(self, loader: WeightLoader, config: ModelConfig, layer: int) -> Qwen3Layer:
        """Upload a layer."""
        p = f"blk.{layer}."
        return Qwen3Layer(
            attn_norm=loader.vector(f"{p}attn_norm.weight"),
            qkv=loader.projection(*_qkv(loader, p, "weight")),
            bias=loader.bias(*_qkv(loader, p, "bias")),
            q_norm=loader.vector(f"{p}attn_q_norm.weight"),
            k_norm=loader.vector(f"{p}attn_k_norm.weight"),
            attn_output=loader.matrix(f"{p}attn_output.weight"),
            ffn_norm=loader.vector(f"{p}ffn_norm.weight"),
            gate_up=loader.matrix(f"{p}ffn_gate.weight", f"{p}ffn_up.weight"),
            down=loader.matrix(f"{p}ffn_down.weight"),
            qkv_rotation=loader.rotation(*_qkv(loader, p, "weight")),
            attn_rotation=loader.rotation(f"{p}attn_output.weight"),
            gate_up_rotation=loader.rotation(f"{p}ffn_gate.weight"),
            down_rotation=loader.rotation(f"{p}ffn_down.weight"),
        )


def _qkv(loader: WeightLoader, prefix: str, kind: str) -> list[str]:
    """Return the names of the tensors of q, k and v: three, or one where the file fuses them."""
    fused = f"{prefix}attn_qkv.{kind}"
    return [fused] if fused in loader else [f"{prefix}attn_{x}.{kind}" for x in "qkv"]


@dataclass(frozen=True)
class Qwen3Layer:
    """One layer on the device."""

    attn_norm: WeightHandle
    qkv: Projection
    bias: WeightHandle | None
    q_norm: WeightHandle
    k_norm: WeightHandle
    attn_output: WeightHandle
    ffn_norm: WeightHandle
    gate_up: WeightHandle
    down: WeightHandle
    qkv_rotation: Rotation | None
    attn_rotation: Rotation | None
    gate_up_rotation: Rotation | None
    down_rotation: Rotation | None

    @property
    def first_handles(self) -> list[WeightHandle]:
        """Weights up to the caches."""
        bias = [] if self.bias is None else [self.bias]
        return [self.attn_norm, self.q_norm, self.k_norm, *self.qkv.handles, *bias]

    @property
    def second_handles(self) -> list[WeightHandle]:
        """Weights behind them."""
        return [self.attn_output, self.ffn_norm, self.gate_up, self.down]

    def record_keys_and_values(self, step: LayerStep) -> None:
        """Record q, k and v of the normed input, and what goes into the caches."""
        eps = step.config.rms_eps
        self.qkv.record(
            step.commands,
            step.hidden,
            step.qkv,
            n_vectors=step.n_tokens,
            norm=self.attn_norm,
            eps=eps,
            rotation=self.qkv_rotation,
            rotated=step.scratch.get(ROTATED),
        )
        if self.bias is not None:
            size = step.config.qkv_size
            step.commands.add_bias(self.bias, step.qkv, size, n_vectors=step.n_tokens)
        for group in () if step.whole else step.groups:
            step.commands.qkv_to_cache(
                step.qkv_of(group),
                self.q_norm,
                self.k_norm,
                step.rope,
                step.k_cache,
                step.v_cache,
                group.state,
                eps=eps,
                **step.heads_of(group),
            )

    def record_rest(self, step: LayerStep) -> None:
        """Record the attention, its output projection and the feed-forward block."""
        for group in step.groups:
            if step.whole:
                step.commands.qkv_attention(
                    step.qkv_of(group),
                    self.q_norm,
                    self.k_norm,
                    step.rope,
                    step.k_cache,
                    step.v_cache,
                    group.state,
                    step.attention_of(group),
                    eps=step.config.rms_eps,
                    max_length=group.max_length,
                    **step.heads_of(group),
                )
            else:
                step.commands.attention(
                    step.qkv_of(group),
                    step.k_cache,
                    step.v_cache,
                    group.state,
                    step.attention_of(group),
                    max_length=group.max_length,
                    **step.heads_of(group),
                )
        step.commands.feed_forward(
            step.attention,
            step.hidden,
            step.activated,
            attn_proj=self.attn_output,
            norm=self.ffn_norm,
            gate_up=self.gate_up,
            down=self.down,
            n_vectors=step.n_tokens,
            eps=step.config.rms_eps,
            attn_rotation=self.attn_rotation,
            gate_up_rotation=self.gate_up_rotation,
            down_rotation=self.down_rotation,
        )
