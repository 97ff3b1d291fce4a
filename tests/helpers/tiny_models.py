"""Small qwen3 models with random or hand-made weights, written as GGUF files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ggml_blocks
import numpy as np
import reference
from numpy.typing import NDArray

from oxibonsai import gguf, quant
from oxibonsai.formats import CONVERTED
from oxibonsai.model.tokenizer import byte_characters
from oxibonsai.quant import QTensor

Tensors = dict[str, Any]
EOS = 256
"""The end of text in the byte vocabulary, behind the 256 bytes."""


@dataclass(frozen=True)
class Tiny:
    """The shape of a small model."""

    n_layers: int = 2
    hidden: int = 128
    inter: int = 256
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    vocab: int = 77
    context: int = 64
    rope_theta: float = 10000.0
    eps: float = 1e-6

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "general.architecture": "qwen3",
            "general.name": "tiny",
            "qwen3.block_count": self.n_layers,
            "qwen3.context_length": self.context,
            "qwen3.embedding_length": self.hidden,
            "qwen3.feed_forward_length": self.inter,
            "qwen3.attention.head_count": self.n_heads,
            "qwen3.attention.head_count_kv": self.n_kv_heads,
            "qwen3.attention.key_length": self.head_dim,
            "qwen3.attention.value_length": self.head_dim,
            "qwen3.rope.freq_base": self.rope_theta,
            "qwen3.attention.layer_norm_rms_epsilon": self.eps,
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors, without the head."""
        q_size, kv_size = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm": (self.hidden,),
            "attn_q": (q_size, self.hidden),
            "attn_k": (kv_size, self.hidden),
            "attn_v": (kv_size, self.hidden),
            "attn_q_norm": (self.head_dim,),
            "attn_k_norm": (self.head_dim,),
            "attn_output": (self.hidden, q_size),
            "ffn_norm": (self.hidden,),
            "ffn_gate": (self.inter, self.hidden),
            "ffn_up": (self.inter, self.hidden),
            "ffn_down": (self.hidden, self.inter),
        }
        found: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (self.vocab, self.hidden),
            "output_norm.weight": (self.hidden,),
        }
        for i in range(self.n_layers):
            found |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
        return found


def random_tensors(
    tiny: Tiny,
    format_name: str = "Q1_0",
    *,
    formats: Mapping[str, str] | None = None,
    tied: bool = True,
    seed: int = 0,
) -> Tensors:
    """Return random weights; `formats` names other formats by the part after ``blk.N.``.

    In `formats`, ``token_embd``, ``output`` and the parts of a layer stand without ``.weight``;
    ``norm`` is the format of every norm. Types of ``formats.CONVERTED`` are formats here too.
    """
    others = dict(formats or {})
    rng = np.random.default_rng(seed)
    shapes = tiny.shapes
    if not tied:
        shapes["output.weight"] = (tiny.vocab, tiny.hidden)
    found: Tensors = {}
    for name, shape in shapes.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        if len(shape) == 1:
            values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            found[name] = vector(values, others.get("norm", "F32"))
        else:
            # Different sizes along the rows, so that neighbouring groups have other scales.
            w = rng.standard_normal(shape) * rng.uniform(0.5, 2, (1, shape[1])) / shape[1] ** 0.5
            chosen = others.get(part, format_name)
            if chosen in CONVERTED:
                raw = ggml_blocks.weight_blocks(chosen, *shape, seed=len(found))
                found[name] = (raw, shape, chosen)
            else:
                found[name] = quant.quantize(w.astype(np.float32), chosen)
    return found


def vector(values: NDArray[np.float32], format_name: str) -> Any:
    """Return a vector as gguf.write takes it."""
    if format_name == "F32":
        return values
    if format_name == "F16":
        return values.astype(np.float16)
    bits = (values.view(np.uint32) >> 16).astype("<u2")  # BF16, cut off
    return bits.view(np.uint8), values.shape, "BF16"


def write(
    path: Path,
    tiny: Tiny,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model; a value of None in `metadata` leaves that key out."""
    pairs = {**tiny.metadata, **(metadata or {})}
    pairs = {key: value for key, value in pairs.items() if value is not None}
    gguf.write(path, pairs, tensors.items())
    return path


def weights64(tensors: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Return the weights that the tensors hold, by the definition of their formats."""
    found = {}
    for name, t in tensors.items():
        if isinstance(t, QTensor):
            found[name] = reference.dequantize_blocks(t.data, t.format, t.shape)
        elif isinstance(t, tuple):
            data, shape, format_name = t
            if format_name in CONVERTED:
                found[name] = ggml_blocks.values(data, format_name).astype(np.float64)
                continue
            found[name] = reference.dequantize_blocks(data, format_name, (1, *shape))[0]
        else:
            found[name] = np.asarray(t, np.float64)
    return found


def reference_logits(
    tiny: Tiny,
    tensors: Mapping[str, Any],
    ids: Any,
    rope_scaling: Mapping[str, Any] | None = None,
) -> NDArray[np.float64]:
    """Return the float64 logits of every position; `rope_scaling` as in reference.rope_neox."""
    config = {
        "n_layers": tiny.n_layers,
        "n_heads": tiny.n_heads,
        "n_kv_heads": tiny.n_kv_heads,
        "head_dim": tiny.head_dim,
        # As the file holds them.
        "rope_theta": float(np.float32(tiny.rope_theta)),
        "eps": float(np.float32(tiny.eps)),
        "rope_scaling": rope_scaling,
    }
    return reference.qwen3_forward(config, weights64(tensors), ids)


def byte_vocabulary() -> dict[str, Any]:
    """Return the metadata of a tokenizer with a token for each byte and one end of text."""
    characters = {number: c for c, number in byte_characters().items()}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [*(characters[i] for i in range(256)), "<|endoftext|>"],
        "tokenizer.ggml.token_type": [1] * 256 + [3],
        "tokenizer.ggml.merges": gguf.ValueType.STRING([]),
        "tokenizer.ggml.eos_token_id": EOS,
    }


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
IM_START, IM_END, THINK = 257, 258, 259


def chat_vocabulary(template: str | None = CHATML) -> dict[str, Any]:
    """Return the byte vocabulary with the tokens of ChatML, `<think>` and a chat template."""
    found = byte_vocabulary()
    found["tokenizer.ggml.tokens"] += ["<|im_start|>", "<|im_end|>", "<think>"]
    found["tokenizer.ggml.token_type"] += [3, 3, 4]
    found["tokenizer.ggml.eos_token_id"] = IM_END
    if template is not None:
        found["tokenizer.chat_template"] = template
    return found


CHAIN = Tiny(n_layers=1, hidden=288, inter=64, n_heads=1, n_kv_heads=1, vocab=257)


def write_chain(
    path: Path,
    follows: Mapping[int, int],
    *,
    context: int = 256,
    vocabulary: dict[str, Any] | None = None,
) -> Path:
    """Write a byte model in which one token decides the next: `follows`, else the end of text.

    Embeddings are unit vectors that pass the layer unchanged; the row of the head of a token has a
    one at each token that it follows.
    """
    vocabulary = byte_vocabulary() if vocabulary is None else vocabulary
    tiny = replace(CHAIN, context=context, vocab=len(vocabulary["tokenizer.ggml.tokens"]))
    tensors: Tensors = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else np.zeros(shape, np.float32)
        for name, shape in tiny.shapes.items()
    }
    tensors["token_embd.weight"] = np.eye(tiny.vocab, tiny.hidden, dtype=np.float32)
    head = np.zeros((tiny.vocab, tiny.hidden), np.float32)
    for token in range(tiny.vocab):
        head[follows.get(token, EOS), token] = 1
    tensors["output.weight"] = head
    return write(path, tiny, tensors, vocabulary)


def chain(text: str) -> dict[int, int]:
    """Return `follows` for a model that continues the first byte of `text` with the rest."""
    raw = text.encode()
    assert len(set(raw)) == len(raw), "a byte that comes twice would have two successors"
    return dict(itertools.pairwise(raw))


# After the line that opens an answer the model says this, and ends its turn.
FOLLOWS = {**chain("\nHeard!"), ord("!"): IM_END}
ANSWER = "Heard!"
