"""The recorded command sequences of a session: tokens through the layers, and the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from oxibonsai.metal import Buffer, Commands, Device, WeightHandle
from oxibonsai.model.architectures.base import (
    LayerStep,
    ModelWeights,
    TokenGroup,
    moved,
)
from oxibonsai.model.config import ModelConfig
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime.cache import KVCache, KVDtype
from oxibonsai.model.runtime.choosing import N_SLOTS, ChoiceBuffers, ChoiceRows
from oxibonsai.model.runtime.precision import activations_of
from oxibonsai.model.runtime.recurrent import RecurrentStates
from oxibonsai.model.weights import Place

__all__ = [
    "AnyStep",
    "ChoiceStep",
    "HeadStep",
    "Step",
    "TextBuffers",
    "Workspace",
    "record",
    "weight_bytes",
    "working_buffer",
]


class ChoiceStep(NamedTuple):
    """A recording that chooses the next token, which is left where a step reads it.

    The settings are read from a buffer. What comes with the choice is part of the recording.
    """

    log_probabilities: bool = False
    n_best: int = 0
    n_tokens: int = 1

    @property
    def kind(self) -> str:
        """What a Run calls it."""
        return "choice"


class Step(NamedTuple):
    """A recording that feeds tokens.

    The last `rows` of them go through the rest of the last layer: none where nobody wants their
    logits, because later tokens need their keys and values alone. One row goes on through the head,
    and then through `choice`, where there is one.
    """

    n_tokens: int
    rows: int
    max_length: int  # positions that the step may meet
    float32: bool = False  # whatever the model's prompts are multiplied in
    choice: ChoiceStep | None = None

    @property
    def kind(self) -> str:
        """What a Run calls it."""
        return "decode" if self.n_tokens == 1 else "prefill"


class HeadStep(NamedTuple):
    """A recording of the head for some tokens of a step with several rows: logits, and choices."""

    first: int
    n_tokens: int
    float32: bool = False
    choice: ChoiceStep | None = None

    @property
    def kind(self) -> str:
        """What a Run calls it."""
        return "head"


AnyStep: TypeAlias = Step | HeadStep | ChoiceStep


def working_buffer(device: Device, nbytes: int) -> Buffer:
    """Return a buffer where the device's kernels reach it fastest."""
    return device.buffer(nbytes, storage=device.working_storage)


class TextBuffers:
    """Device buffers of a text, of a size that does not depend on the step.

    Attributes
    ----------
    rope : Buffer
        float32 [capacity, 2, rotary_dim / 2].
    state : Buffer
        struct oxb_decode_state.
    tokens : Buffer
        uint32 [capacity + 1]: what chooses behind the last position writes the token there.
    logits : Buffer
        float32 [vocab], of the last token.
    """

    def __init__(self, rope: Buffer, state: Buffer, tokens: Buffer, logits: Buffer) -> None:
        self.rope = rope
        self.state = state
        self.tokens = tokens
        self.logits = logits

    def close(self) -> None:
        """Release the buffers."""
        for buffer in (self.rope, self.state, self.tokens, self.logits):
            buffer.close()


class Workspace:
    """Activations of up to n_tokens, and logits of up to n_rows, which a step overwrites."""

    def __init__(self, model: LoadedModel, n_tokens: int) -> None:
        c, device = model.config, model.device
        self.n_tokens = n_tokens
        self.n_rows = 0
        self.rows: Buffer | None = None
        self.choices: ChoiceRows | None = None
        self.hidden = working_buffer(device, 4 * c.hidden_size * n_tokens)
        self.qkv = working_buffer(device, 4 * c.qkv_size * n_tokens)
        self.attention = working_buffer(device, 4 * c.q_size * n_tokens)
        self.activated = working_buffer(device, 4 * c.intermediate_size * n_tokens)
        self._sizes = model.weights.scratch
        self._scratch = {
            name: working_buffer(device, 4 * size * n_tokens) for name, size in self._sizes.items()
        }

    def scratch(self, first: int) -> dict[str, Place]:
        """Return what ``LayerStep.scratch`` has, from row `first` on."""
        return {
            name: moved(buffer, 4 * self._sizes[name] * first)
            for name, buffer in self._scratch.items()
        }

    def add_rows(self, device: Device, config: ModelConfig, n_rows: int) -> None:
        """Make room for logits of n_rows tokens."""
        self.rows = working_buffer(device, 4 * config.vocab_size * n_rows)
        self.choices = ChoiceRows(device, n_rows)
        self.n_rows = n_rows

    def close(self) -> None:
        """Release the buffers."""
        for buffer in (*vars(self).values(), *self._scratch.values()):
            if isinstance(buffer, (Buffer, ChoiceRows)):
                buffer.close()


def weight_bytes(weights: ModelWeights, step: AnyStep) -> int:
    """Return the bytes of weights that a step reads, each matrix once."""
    if isinstance(step, ChoiceStep):
        return 0
    head = weights.head.nbytes + weights.output_norm.nbytes
    if isinstance(step, HeadStep):
        return head
    n_rows = weights.embedding.shape[0] if weights.embedding.shape else 1
    total = weights.embedding.nbytes // n_rows * step.n_tokens
    for layer in weights.layers:
        total += _nbytes(layer.first_handles) + _nbytes(layer.second_handles)
    if step.rows == 0:
        total -= _nbytes(weights.layers[-1].second_handles)
    return total + (head if step.rows == 1 else 0)


def _nbytes(handles: Sequence[WeightHandle]) -> int:
    return sum(handle.nbytes for handle in handles)


def record(
    model: LoadedModel,
    kv_dtype: KVDtype,
    cache: KVCache,
    text: TextBuffers,
    work: Workspace,
    choosing: ChoiceBuffers,
    step: AnyStep,
    *,
    states: RecurrentStates | None = None,
    deterministic: bool,
) -> Commands:
    """Record a step."""
    exact = deterministic or isinstance(step, ChoiceStep) or step.float32
    commands = model.graph.commands(
        activations=activations_of(model, kv_dtype, exact=exact), deterministic=deterministic
    )
    recorder = _Recorder(model, kv_dtype, cache, text, work, choosing, states, commands)
    try:
        if isinstance(step, ChoiceStep):
            recorder.choice(step)
        elif isinstance(step, HeadStep):
            recorder.head_rows(step)
        else:
            recorder.step(step)
    except BaseException:
        recorder.commands.close()
        raise
    return recorder.commands


class _Recorder:
    """Records into new commands."""

    def __init__(
        self,
        model: LoadedModel,
        kv_dtype: KVDtype,
        cache: KVCache,
        text: TextBuffers,
        work: Workspace,
        choosing: ChoiceBuffers,
        states: RecurrentStates | None,
        commands: Commands,
    ) -> None:
        c = model.config
        self.config = c
        self.weights = model.weights
        self.cache = cache
        self.text = text
        self.work = work
        self.choosing = choosing
        self.states = states
        self.commands = commands
        self.heads: dict[str, Any] = {
            "n_heads": c.n_heads,
            "n_kv_heads": c.n_kv_heads,
            "head_dim": c.head_dim,
            "max_seq": cache.capacity,
            "kv_dtype": kv_dtype,
        }

    def step(self, step: Step) -> None:
        n = step.n_tokens
        last = self.config.n_layers - 1
        self.weights.record_embedding(
            self.commands, self.text.tokens, self.text.state, self.work.hidden, n_tokens=n
        )
        for i, layer in enumerate(self.weights.layers):
            whole = i < last or step.rows == n
            at = self._layer_step(i, 0, n, step.max_length, whole=whole)
            layer.record_keys_and_values(at)
            if whole:
                layer.record_rest(at)
        if step.rows == 1:
            if n > 1:
                self._advance(n - 1)  # to the last token, the only row that goes on
                self.weights.layers[last].record_rest(
                    self._layer_step(last, n - 1, 1, step.max_length)
                )
            self._head(n - 1, 1, self.text.logits)
            if step.choice is not None:
                self.choice(step.choice)
            else:
                self._advance(1)
        else:
            self._advance(n)

    def head_rows(self, step: HeadStep) -> None:
        work = self.work
        assert work.rows is not None
        assert work.choices is not None
        self._head(step.first, step.n_tokens, work.rows)
        if step.choice is not None:
            self._sample(
                step.choice, work.rows, work.choices, n_vectors=step.n_tokens, advance=False
            )

    def choice(self, step: ChoiceStep) -> None:
        self._sample(step, self.text.logits, self.choosing, n_slots=N_SLOTS)

    def _sample(
        self, step: ChoiceStep, logits: Buffer, out: ChoiceBuffers | ChoiceRows, **shape: Any
    ) -> None:
        self.commands.sample(
            logits,
            self.choosing.settings,
            self.text.state,
            self.text.tokens,
            out.choices,
            self.config.vocab_size,
            self.cache.capacity + 1,
            best=out.best if step.n_best else None,
            n_best=step.n_best,
            log_probabilities=step.log_probabilities,
            **self.choosing.operands,
            **shape,
        )

    def _layer_step(
        self, layer: int, first: int, n: int, max_length: int, *, whole: bool = False
    ) -> LayerStep:
        """Return where a layer is recorded for n tokens, from row `first` of the step's on."""
        c, work = self.config, self.work
        return LayerStep(
            commands=self.commands,
            config=c,
            n_tokens=n,
            groups=[TokenGroup(0, n, self.text.state, False, max_length)],
            hidden=moved(work.hidden, 4 * c.hidden_size * first),
            qkv=moved(work.qkv, 4 * c.qkv_size * first),
            attention=work.attention,
            activated=work.activated,
            rope=self.text.rope,
            k_cache=self.cache.k,
            v_cache=self.cache.v,
            heads={**self.heads, "layer": c.ordinal(layer)},
            layer=layer,
            scratch=work.scratch(first),
            recurrent=None if self.states is None else self.states.place,
            whole=whole,
        )

    def _head(self, first: int, n: int, logits: Buffer) -> None:
        self.weights.record_head(
            self.commands,
            moved(self.work.hidden, 4 * self.config.hidden_size * first),
            logits,
            self.work.scratch(first),
            n_vectors=n,
            eps=self.config.rms_eps,
        )

    def _advance(self, n: int) -> None:
        text = self.text
        self.commands.advance(
            text.logits,
            text.tokens,
            text.state,
            self.config.vocab_size,
            self.cache.capacity + 1,
            n_tokens=n,
            greedy=False,
        )
