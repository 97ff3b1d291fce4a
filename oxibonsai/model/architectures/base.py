"""What an architecture is to the rest of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from oxibonsai.gguf import GGUFFile
from oxibonsai.metal import Buffer, Commands, WeightHandle
from oxibonsai.model.config import ModelConfig
from oxibonsai.model.weights import Place, WeightLoader

__all__ = ["Architecture", "Layer", "LayerStep", "ModelWeights"]


@dataclass(frozen=True)
class LayerStep:
    """Where a layer is recorded, and for which tokens of a step.

    Attributes
    ----------
    commands : Commands
        What it is recorded into.
    config : ModelConfig
        The model's shape.
    n_tokens : int
        Tokens: rows of hidden, qkv, attention and activated, from the position in `state` on.
    hidden : Buffer or (Buffer, int)
        float32 [n_tokens, hidden_size]: the residual stream, read and written.
    qkv, attention, activated : Buffer or (Buffer, int)
        float32 [n_tokens, qkv_size], [n_tokens, q_size] and [n_tokens, intermediate_size]: scratch.
    rope : Buffer
        float32 [max_seq, 2, rotary_dim / 2], cosines then sines.
    k_cache, v_cache : Buffer
        [n_layers, n_kv_heads, max_seq, head_dim].
    state : Buffer
        struct oxb_decode_state.
    heads : dict
        The arguments that all ops on heads share: n_heads, n_kv_heads, head_dim, max_seq, layer,
        kv_dtype and n_tokens.
    max_length : int
        The most positions that a replay will meet.
    """

    commands: Commands
    config: ModelConfig
    n_tokens: int
    hidden: Place
    qkv: Place
    attention: Place
    activated: Place
    rope: Buffer
    k_cache: Buffer
    v_cache: Buffer
    state: Buffer
    heads: Mapping[str, Any]
    max_length: int


class Layer(Protocol):
    """The weights of a layer on the device, and how it is recorded.

    In two parts: of tokens whose logits nobody wants, the last layer's second part is left out.
    """

    @property
    def first_handles(self) -> Sequence[WeightHandle]:
        """Weights that the first part reads."""

    @property
    def second_handles(self) -> Sequence[WeightHandle]:
        """Weights that the second part reads."""

    def record_keys_and_values(self, step: LayerStep) -> None:
        """Record the layer up to the caches: hidden to qkv, keys and values to their places."""

    def record_rest(self, step: LayerStep) -> None:
        """Record the attention over qkv and what follows, into hidden."""


class Architecture(Protocol):
    """One kind of model, by the name that files give it in ``general.architecture``."""

    @property
    def name(self) -> str:
        """The name."""

    def config(self, file: GGUFFile) -> ModelConfig:
        """Read the shape; GGUFError for a missing, absurd or unsupported value."""

    def layer_tensors(self, config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of a layer's tensors by their names behind ``blk.N.``."""

    def load_layer(self, loader: WeightLoader, prefix: str) -> Layer:
        """Upload the layer whose tensors' names begin with `prefix`, such as ``"blk.0."``."""


@dataclass(frozen=True)
class ModelWeights:
    """All weights; `head` is `embedding` itself where the file ties them."""

    embedding: WeightHandle
    layers: Sequence[Layer]
    output_norm: WeightHandle
    head: WeightHandle

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one matrix."""
        return self.head is self.embedding

    @property
    def handles(self) -> list[WeightHandle]:
        """Every handle, once."""
        found = [self.embedding, self.output_norm]
        if not self.tied:
            found.append(self.head)
        for layer in self.layers:
            found += [*layer.first_handles, *layer.second_handles]
        return found

    @property
    def nbytes(self) -> int:
        """Bytes that decoding one token reads from the device, the embedding's other rows apart."""
        skipped = 0 if self.tied else self.embedding.nbytes
        return sum(handle.nbytes for handle in self.handles) - skipped

    def close(self) -> None:
        """Release all handles."""
        for handle in self.handles:
            handle.close()
