"""What an architecture is to the rest of the package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

from oxibonsai.gguf import GGUFFile
from oxibonsai.metal import Buffer, Commands, Rotation, WeightHandle
from oxibonsai.model.config import ModelConfig
from oxibonsai.model.weights import Place, Projection, WeightLoader

__all__ = [
    "ROTATED",
    "Architecture",
    "Layer",
    "LayerStep",
    "ModelWeights",
    "RecurrentPlace",
    "Rotatable",
    "Scratch",
    "TokenGroup",
    "Variants",
    "moved",
]

ROTATED: Final = "rotated"
"""The name in ``LayerStep.scratch`` of the rotated input that several matrices share."""


@dataclass(frozen=True)
class TokenGroup:
    """Rows of a step that the ops on tokens take together.

    Attributes
    ----------
    first, n_tokens : int
        The rows: n_tokens from row `first` of the step on.
    state : Buffer or (Buffer, int)
        struct oxb_decode_state: of the one sequence that the rows belong to, or of each row.
    batch : bool
        Whether each row is the one token in flight of a sequence of its own.
    max_length : int
        The most positions that a replay will meet.
    """

    first: int
    n_tokens: int
    state: Place
    batch: bool
    max_length: int


@dataclass(frozen=True)
class RecurrentPlace:
    """Where the recurrent states of a step's sequences lie.

    Attributes
    ----------
    states : Buffer
        float32 [n_slots, slot_size]; a sequence's slots begin at its state's `recurrent`.
    ring : int
        Slots of a sequence: the state before position p lies in its slot p % ring.
    """

    states: Buffer
    ring: int


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
        Tokens: rows of hidden, qkv, attention and activated.
    groups : sequence of TokenGroup
        Whose tokens they are. Products run over all rows, ops on tokens once for each group.
    hidden : Buffer or (Buffer, int)
        float32 [n_tokens, hidden_size]: the residual stream, read and written.
    qkv, attention, activated : Buffer or (Buffer, int)
        float32 [n_tokens, qkv_size], [n_tokens, q_size] and [n_tokens, intermediate_size]: scratch.
    rope : Buffer
        float32 [max_seq, 2, rotary_dim / 2], cosines then sines.
    k_cache, v_cache : Buffer
        As of ``Commands.attention``.
    heads : dict
        The arguments that all ops on heads share: n_heads, n_kv_heads, head_dim, max_seq, layer
        (among those with keys and values), kv_dtype, and what tells where the caches' pages are.
    layer : int
        Among all layers.
    scratch : dict of str to Place
        What the architecture asks for beside qkv, attention and activated, by its names.
    recurrent : RecurrentPlace or None
        Of a model with recurrent layers.
    whole : bool
        Whether the layer's second part follows at once with the same step: what the first one has
        to leave in the caches may be done there, in one op with attention.
    """

    commands: Commands
    config: ModelConfig
    n_tokens: int
    groups: Sequence[TokenGroup]
    hidden: Place
    qkv: Place
    attention: Place
    activated: Place
    rope: Buffer
    k_cache: Buffer
    v_cache: Buffer
    heads: Mapping[str, Any]
    layer: int = 0
    scratch: Mapping[str, Place] = field(default_factory=dict)
    recurrent: RecurrentPlace | None = None
    whole: bool = False

    def qkv_of(self, group: TokenGroup) -> Place:
        """Return a group's rows of qkv."""
        return moved(self.qkv, 4 * self.config.qkv_size * group.first)

    def attention_of(self, group: TokenGroup) -> Place:
        """Return a group's rows of attention."""
        return moved(self.attention, 4 * self.config.q_size * group.first)

    def heads_of(self, group: TokenGroup) -> dict[str, Any]:
        """Return the arguments of an op on the heads of a group's tokens."""
        batch = {"batch": True} if group.batch else {}
        return {**self.heads, "n_tokens": group.n_tokens, **batch}


def moved(place: Place, nbytes: int) -> Place:
    """Return the place nbytes further on."""
    buffer, offset = place if isinstance(place, tuple) else (place, 0)
    return (buffer, offset + nbytes) if offset + nbytes else buffer


class Layer(Protocol):
    """The weights of a layer on the device, and how it is recorded.

    In two parts: of tokens whose logits nobody wants, the last layer's second part is left out.
    What later tokens need of these, keys and values or a recurrent state, is left by the first.
    """

    @property
    def first_handles(self) -> Sequence[WeightHandle]:
        """Weights that the first part reads."""

    @property
    def second_handles(self) -> Sequence[WeightHandle]:
        """Weights that the second part reads."""

    def record_keys_and_values(self, step: LayerStep) -> None:
        """Record the layer up to the caches: hidden to qkv, keys and values to their places.

        Of a recurrent layer, up to its state.
        """

    def record_rest(self, step: LayerStep) -> None:
        """Record the attention over qkv, or what reads the state, and what follows, into hidden."""


class Architecture(Protocol):
    """One kind of model, by the name that files give it in ``general.architecture``."""

    @property
    def name(self) -> str:
        """The name."""

    def config(self, file: GGUFFile) -> ModelConfig:
        """Read the shape; GGUFError for a missing, absurd or unsupported value."""

    def layer_tensors(self, config: ModelConfig, layer: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of a layer's tensors by their names behind ``blk.N.``."""

    def load_layer(self, loader: WeightLoader, config: ModelConfig, layer: int) -> Layer:
        """Upload the layer whose tensors' names begin with ``blk.N.``."""


@runtime_checkable
class Variants(Protocol):
    """What an architecture has too whose files may have other tensors than `layer_tensors`."""

    def optional_tensors(self, config: ModelConfig, layer: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of tensors that a layer may have, by their names behind ``blk.N.``."""

    def fused_tensors(self, config: ModelConfig, layer: int) -> Mapping[str, tuple[str, ...]]:
        """Return the names of tensors that hold the rows of several others, and of these."""


@runtime_checkable
class Rotatable(Protocol):
    """What an architecture has too that rotates the inputs of matrices, where a file asks for it.

    Its layers take the rotations from ``WeightLoader.rotation``.
    """

    @property
    def rotated_inputs(self) -> Sequence[Sequence[str]]:
        """The matrices that share an input, by their names behind ``blk.N.``."""


@runtime_checkable
class Scratch(Protocol):
    """What an architecture has too whose layers need activations beside those of every one."""

    def scratch(self, config: ModelConfig) -> Mapping[str, int]:
        """Return float32 elements of a token, by the names in ``LayerStep.scratch``."""


@dataclass(frozen=True)
class ModelWeights:
    """All weights; `head` is `embedding` itself where the file ties them.

    `scratch` has the elements of a token that the layers need, as of `Scratch`, and ROTATED, a row
    of the residual stream, where inputs are rotated.
    `embedding_rotation` was made of each row of the embedding and is undone; `head_rotation` is of
    the head's input. `signs` are those of all rotations.
    """

    embedding: WeightHandle
    layers: Sequence[Layer]
    output_norm: WeightHandle
    head: WeightHandle
    embedding_rotation: Rotation | None = None
    head_rotation: Rotation | None = None
    signs: Sequence[WeightHandle] = ()
    scratch: Mapping[str, int] = field(default_factory=dict)

    def record_embedding(
        self,
        commands: Commands,
        tokens: Buffer,
        state: Place,
        hidden: Place,
        *,
        n_tokens: int,
        batch: bool = False,
    ) -> None:
        """Record the rows of tokens, as of ``Commands.embed``, into hidden."""
        commands.embed(self.embedding, tokens, state, hidden, n_tokens=n_tokens, batch=batch)
        if self.embedding_rotation is not None:
            shape = self.embedding.shape
            assert shape is not None
            commands.hadamard(
                hidden,
                self.embedding_rotation.signs,
                hidden,
                shape[1],
                block=self.embedding_rotation.block,
                n_vectors=n_tokens,
                inverse=True,
            )

    def record_head(
        self,
        commands: Commands,
        hidden: Place,
        logits: Place,
        scratch: Mapping[str, Place],
        *,
        n_vectors: int,
        eps: float,
    ) -> None:
        """Record the logits of the last layer's rows; `scratch` as of ``LayerStep``."""
        Projection([(self.head, 0)]).record(
            commands,
            hidden,
            logits,
            n_vectors=n_vectors,
            norm=self.output_norm,
            eps=eps,
            rotation=self.head_rotation,
            rotated=scratch.get(ROTATED),
        )

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one matrix."""
        return self.head is self.embedding

    @property
    def handles(self) -> list[WeightHandle]:
        """Every handle, once."""
        found = [self.embedding, self.output_norm, *self.signs]
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

    @property
    def work_per_token(self) -> int:
        """Multiply-adds of a token that goes through all layers, its attention and head apart."""
        return sum(
            math.prod(handle.shape)
            for layer in self.layers
            for handle in (*layer.first_handles, *layer.second_handles)
            if handle.shape is not None
        )

    def close(self) -> None:
        """Release all handles."""
        for handle in self.handles:
            handle.close()
