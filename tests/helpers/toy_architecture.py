"""An architecture of the tests' own: no norms of q and k, a bias on them, RoPE on neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from oxibonsai.gguf import GGUFFile
from oxibonsai.metal import WeightHandle
from oxibonsai.model import ModelConfig
from oxibonsai.model.architectures import LayerStep
from oxibonsai.model.weights import Projection, WeightLoader


class Toy:
    name = "toy"

    def config(self, file: GGUFFile) -> ModelConfig:
        return ModelConfig.from_gguf(file)

    def layer_tensors(self, config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        c = config
        kv_size = c.n_kv_heads * c.head_dim
        return {
            "attn_norm.weight": (c.hidden_size,),
            "attn_q.weight": (c.q_size, c.hidden_size),
            "attn_k.weight": (kv_size, c.hidden_size),
            "attn_v.weight": (kv_size, c.hidden_size),
            "attn_q.bias": (c.q_size,),
            "attn_k.bias": (kv_size,),
            "attn_v.bias": (kv_size,),
            "attn_output.weight": (c.hidden_size, c.q_size),
            "ffn_norm.weight": (c.hidden_size,),
            "ffn_gate.weight": (c.intermediate_size, c.hidden_size),
            "ffn_up.weight": (c.intermediate_size, c.hidden_size),
            "ffn_down.weight": (c.hidden_size, c.intermediate_size),
        }

    def load_layer(self, loader: WeightLoader, config: ModelConfig, layer: int) -> ToyLayer:
        prefix = f"blk.{layer}."
        return ToyLayer(
            attn_norm=loader.vector(f"{prefix}attn_norm.weight"),
            qkv=loader.projection(*(f"{prefix}attn_{x}.weight" for x in "qkv")),
            bias=loader.vector(*(f"{prefix}attn_{x}.bias" for x in "qkv")),
            attn_output=loader.matrix(f"{prefix}attn_output.weight"),
            ffn_norm=loader.vector(f"{prefix}ffn_norm.weight"),
            gate_up=loader.matrix(f"{prefix}ffn_gate.weight", f"{prefix}ffn_up.weight"),
            down=loader.matrix(f"{prefix}ffn_down.weight"),
        )


@dataclass(frozen=True)
class ToyLayer:
    attn_norm: WeightHandle
    qkv: Projection
    bias: WeightHandle
    attn_output: WeightHandle
    ffn_norm: WeightHandle
    gate_up: WeightHandle
    down: WeightHandle

    @property
    def first_handles(self) -> list[WeightHandle]:
        return [self.attn_norm, self.bias, *self.qkv.handles]

    @property
    def second_handles(self) -> list[WeightHandle]:
        return [self.attn_output, self.ffn_norm, self.gate_up, self.down]

    def record_keys_and_values(self, step: LayerStep) -> None:
        record, n, size = step.commands, step.n_tokens, step.config.qkv_size
        eps = step.config.rms_eps
        self.qkv.record(record, step.hidden, step.qkv, n_vectors=n, norm=self.attn_norm, eps=eps)
        record.add_bias(self.bias, step.qkv, size, n_vectors=n)
        caches = (step.k_cache, step.v_cache)
        for group in step.groups:
            record.qkv_to_cache(
                step.qkv_of(group), None, None, step.rope, *caches, group.state,
                rope_style="interleaved", **step.heads_of(group),
            )  # fmt: skip

    def record_rest(self, step: LayerStep) -> None:
        caches = (step.k_cache, step.v_cache)
        for group in step.groups:
            step.commands.attention(
                step.qkv_of(group), *caches, group.state, step.attention_of(group),
                max_length=group.max_length, **step.heads_of(group),
            )  # fmt: skip
        step.commands.feed_forward(
            step.attention, step.hidden, step.activated,
            attn_proj=self.attn_output, norm=self.ffn_norm, gate_up=self.gate_up, down=self.down,
            n_vectors=step.n_tokens, eps=step.config.rms_eps,
        )  # fmt: skip
