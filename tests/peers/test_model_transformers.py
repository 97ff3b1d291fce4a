"""The logits of Hugging Face transformers' Qwen3ForCausalLM in float64 from the same weights.

The weights are exactly representable: transformers gets the values of the blocks, not what was
quantised. Its norms, softmax and angles are in float32 whatever the model's type, which is part of
the difference that the bounds allow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import relative_error
from numpy.typing import NDArray
from peers import import_peer
from tiny_models import Tensors, Tiny, random_tensors, weights64, write

from oxibonsai import metal
from oxibonsai.model import Model, Session

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""GGUF's names of the parts, and transformers'."""


@dataclass(frozen=True)
class Case:
    """A model for both, and the scaling of RoPE in the terms of each."""

    tiny: Tiny
    format_name: str = "Q1_0"
    formats: Mapping[str, str] = field(default_factory=dict)
    tied: bool = True
    biased: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    rope: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default"})
    n_tokens: int = 21

    @functools.cached_property
    def tensors(self) -> Tensors:
        found = random_tensors(
            self.tiny, self.format_name, formats=self.formats, tied=self.tied, seed=6
        )
        return found | self.biases if self.biased else found

    @property
    def biases(self) -> Tensors:
        """Biases of the projections into queries, keys and values."""
        rng = np.random.default_rng(7)
        return {
            name.replace(".weight", ".bias"): rng.standard_normal(shape[0], np.float32)
            for name, shape in self.tiny.shapes.items()
            if name.endswith(("attn_q.weight", "attn_k.weight", "attn_v.weight"))
        }

    @functools.cached_property
    def ids(self) -> list[int]:
        rng = np.random.default_rng(self.tiny.vocab)
        found: list[int] = rng.integers(0, self.tiny.vocab, self.n_tokens).tolist()
        return found

    def write(self, folder: Path) -> Path:
        return write(folder / "tiny.gguf", self.tiny, self.tensors, self.metadata)

    @functools.cached_property
    def peer_logits(self) -> NDArray[np.float64]:
        """The logits of every position that transformers computes."""
        torch = import_peer("torch")
        transformers = import_peer("transformers")
        t = self.tiny
        config = transformers.Qwen3Config(
            vocab_size=t.vocab,
            hidden_size=t.hidden,
            intermediate_size=t.inter,
            num_hidden_layers=t.n_layers,
            num_attention_heads=t.n_heads,
            num_key_value_heads=t.n_kv_heads,
            head_dim=t.head_dim,
            rms_norm_eps=float(np.float32(t.eps)),
            rope_parameters={"rope_theta": float(np.float32(t.rope_theta)), **self.rope},
            tie_word_embeddings=self.tied,
            max_position_embeddings=t.context,
            attention_bias=self.biased,
            attn_implementation="eager",
        )
        model = transformers.Qwen3ForCausalLM(config).double().eval()
        state = {their_name(name): torch.tensor(w) for name, w in weights64(self.tensors).items()}
        if self.tied:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        if self.biased:  # there the last projection has one too
            for i in range(t.n_layers):
                name = f"model.layers.{i}.self_attn.o_proj.bias"
                state[name] = torch.zeros(t.hidden, dtype=torch.float64)
        model.load_state_dict(state)
        with torch.no_grad():
            logits: NDArray[np.float64] = model(torch.tensor([self.ids])).logits[0].numpy()
        assert logits.dtype == np.float64
        return logits


def their_name(name: str) -> str:
    """Return transformers' name of a tensor of a GGUF file."""
    *block, part, suffix = name.split(".")
    layer = f"model.layers.{block[1]}." if block else ""
    return f"{layer}{NAMES[part]}.{suffix}"


GROUPS = {(4, 4): 1, (4, 2): 2, (4, 1): 4, (8, 1): 8, (16, 2): 8}
CASES = {
    **{
        f"{heads[0]} heads on {heads[1]} of {head_dim}": Case(
            Tiny(n_layers=2, n_heads=heads[0], n_kv_heads=heads[1], head_dim=head_dim, vocab=131),
            tied=group % 4 != 0,
        )
        for heads, group in GROUPS.items()
        for head_dim in (64, 128)
    },
    **{
        f"{name}, {'tied' if tied else 'untied'}": Case(
            Tiny(n_layers=3, hidden=256, inter=512, head_dim=64, vocab=257, rope_theta=1e6),
            name,
            tied=tied,
        )
        for name in ("Q1_0", "TQ2_0_g128", "Q2_0", "PQ2_0", "PTQ1_0", "TQ2_0", "F16", "F32")
        for tied in (True, False)
    },
    "half norms, embedding and head apart": Case(
        Tiny(n_layers=2, vocab=1001, rope_theta=5e6, eps=1e-5),
        "TQ2_0_g128",
        {"norm": "F16", "token_embd": "F16", "output": "Q8_0"},
        tied=False,
    ),
    "six layers": Case(Tiny(n_layers=6, hidden=384, inter=640, n_heads=6, n_kv_heads=3, vocab=99)),
    # As in the 4B model: heads x head_dim is not the hidden size.
    "queries wider than the hidden state": Case(
        Tiny(n_layers=2, hidden=128, n_heads=8, n_kv_heads=2, head_dim=128, vocab=33)
    ),
    "biases": Case(Tiny(n_layers=3, vocab=55, head_dim=128), "Q1_0", biased=True),
    "biases, several formats": Case(
        Tiny(n_layers=2, hidden=256, vocab=65),
        "TQ2_0_g128",
        {"attn_k": "Q8_0", "attn_v": "F16", "ffn_up": "Q8_0"},
        biased=True,
        tied=False,
    ),
    "linear scaling": Case(
        Tiny(rope_theta=1e6, context=128),
        metadata={"qwen3.rope.scaling.type": "linear", "qwen3.rope.scaling.factor": 4.0},
        rope={"rope_type": "linear", "factor": 4.0},
        n_tokens=48,
    ),
    "YaRN past the original context": Case(
        Tiny(rope_theta=1e6, context=128, head_dim=128),
        metadata={
            "qwen3.rope.scaling.type": "yarn",
            "qwen3.rope.scaling.factor": 4.0,
            "qwen3.rope.scaling.original_context_length": 32,
        },
        rope={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        n_tokens=48,
    ),
    "YaRN with all that can be given": Case(
        Tiny(rope_theta=1e4, context=128),
        metadata={
            "qwen3.rope.scaling.type": "yarn",
            "qwen3.rope.scaling.factor": 8.0,
            "qwen3.rope.scaling.original_context_length": 16,
            "qwen3.rope.scaling.yarn_attn_factor": 1.5,
            "qwen3.rope.scaling.yarn_beta_fast": 4.0,
            "qwen3.rope.scaling.yarn_beta_slow": 0.5,
        },
        rope={
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 16,
            "attention_factor": 1.5,
            "beta_fast": 4.0,
            "beta_slow": 0.5,
        },
        n_tokens=48,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = CASES[request.param]
    return found


def at_once(session: Session, ids: list[int]) -> NDArray[np.float32]:
    found = session.forward(ids)
    assert found is not None
    return found


def token_by_token(session: Session, ids: list[int]) -> NDArray[np.float32]:
    return np.array([session.forward([i], logits="last") for i in ids])


@pytest.mark.parametrize("feed", [at_once, token_by_token], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("kv_dtype", "bound"), [("f32", 1e-5), ("f16", 1e-3)])
def test_logits_are_those_of_transformers(
    device: metal.Device,
    tmp_path: Path,
    case: Case,
    kv_dtype: Any,
    bound: float,
    feed: Callable[[Session, list[int]], NDArray[np.float32]],
) -> None:
    with (
        Model.load(case.write(tmp_path), device) as model,
        model.session(kv_dtype=kv_dtype) as session,
    ):
        assert model.weights.tied == case.tied
        found = feed(session, case.ids)
    expected = case.peer_logits
    assert found.shape == expected.shape == (case.n_tokens, case.tiny.vocab)
    if kv_dtype == "f32":
        errors = [relative_error(y, r) for y, r in zip(found, expected, strict=True)]
        assert max(errors) <= bound, f"at position {int(np.argmax(errors))}"
    assert relative_error(found, expected) <= bound
