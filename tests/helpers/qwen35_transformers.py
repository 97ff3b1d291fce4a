"""Hugging Face transformers' Qwen3_5ForCausalLM, in float64 throughout, with the weights of a file.

There value heads that use one key head stand together; in files they are that many apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import import_peer
from tiny_hybrids import Hybrid
from tiny_models import weights64

F64 = NDArray[np.float64]
MATRICES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
}
NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "output_norm": "model.norm",
}
"""Norms of which transformers holds what is to be added to 1, and a file the sum."""


class _Torch64:
    """The module torch, in which float32 is float64."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, "float64" if name in ("float32", "float") else name)


@contextmanager
def float64() -> Iterator[Any]:
    """Give the model's module, whose casts to float32 are to float64 in the meantime."""
    torch = import_peer("torch")
    module = import_peer("transformers.models.qwen3_5.modeling_qwen3_5")
    before = torch.Tensor.float, torch.get_default_dtype()
    module.torch, torch.Tensor.float = _Torch64(torch), lambda tensor: tensor.double()
    torch.set_default_dtype(torch.float64)
    try:
        yield module
    finally:
        module.torch = torch
        torch.Tensor.float = before[0]
        torch.set_default_dtype(before[1])


def _config(t: Hybrid, tied: bool) -> Any:
    configuration = import_peer("transformers.models.qwen3_5.configuration_qwen3_5")
    half = t.rotary // 2
    found = configuration.Qwen3_5TextConfig(
        vocab_size=t.vocab,
        hidden_size=t.hidden,
        intermediate_size=t.inter,
        num_hidden_layers=t.n_layers,
        layer_types=[
            "full_attention" if t.has_attention(i) else "linear_attention"
            for i in range(t.n_layers)
        ],
        num_attention_heads=t.n_heads,
        num_key_value_heads=t.n_kv_heads,
        head_dim=t.head_dim,
        linear_key_head_dim=t.key_dim,
        linear_value_head_dim=t.value_dim,
        linear_num_key_heads=t.key_heads,
        linear_num_value_heads=t.value_heads,
        linear_conv_kernel_dim=t.conv,
        max_position_embeddings=t.context,
        rms_norm_eps=float(np.float32(t.eps)),
        tie_word_embeddings=tied,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(np.float32(t.rope_theta)),
            "partial_rotary_factor": t.rotary / t.head_dim,
            # Of a text all axes have the same positions: any split gives plain RoPE.
            "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
            "mrope_interleaved": True,
        },
    )
    found._attn_implementation = "eager"
    return found


def _grouped(t: Hybrid, w: F64) -> F64:
    """Return rows of value heads, or of numbers of heads, in transformers' order."""
    by_head = w.reshape(t.value_heads // t.key_heads, t.key_heads, -1, *w.shape[1:])
    return np.ascontiguousarray(by_head.swapaxes(0, 1)).reshape(w.shape)


def _converted(t: Hybrid, part: str, w: F64) -> F64:
    """Return a tensor of a layer as transformers has it."""
    if part in ("attn_qkv", "ssm_conv1d"):
        keys = 2 * t.key_heads * t.key_dim
        w = np.concatenate([w[:keys], _grouped(t, w[keys:])])
        return w[:, None, :] if part == "ssm_conv1d" else w
    if part in ("attn_gate", "ssm_alpha", "ssm_beta"):
        return _grouped(t, w)
    if part == "ssm_out":
        return np.ascontiguousarray(_grouped(t, np.ascontiguousarray(w.T)).T)
    return w


def state_dict(t: Hybrid, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of a file by the names of transformers."""
    torch = import_peer("torch")
    found = {}
    for name, w in weights64(tensors).items():
        *block, part = name.removesuffix(".weight").removesuffix(".bias").split(".")
        layer = f"model.layers.{block[1]}." if block else ""
        if part == "ssm_a":
            found[f"{layer}linear_attn.A_log"] = torch.tensor(np.log(-_grouped(t, w)))
        elif part == "ssm_dt":
            found[f"{layer}linear_attn.dt_bias"] = torch.tensor(_grouped(t, w))
        elif part in NORMS:
            found[f"{layer}{NORMS[part]}.weight"] = torch.tensor(w - 1)
        else:
            found[f"{layer}{MATRICES[part]}.weight"] = torch.tensor(_converted(t, part, w))
    return found


def logits_there(t: Hybrid, tensors: Mapping[str, Any], ids: Any) -> F64:
    """Return the logits of every position."""
    torch = import_peer("torch")
    tied = "output.weight" not in tensors
    state = state_dict(t, tensors)
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with float64() as module, torch.no_grad():
        model = module.Qwen3_5ForCausalLM(_config(t, tied)).double().eval()
        model.load_state_dict(state)
        logits: F64 = model(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
    assert logits.dtype == np.float64
    return logits
