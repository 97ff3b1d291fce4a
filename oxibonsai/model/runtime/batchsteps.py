"""The recorded steps of many sequences.

Rows of a step: first those of a chunk of a prompt, then one for each running sequence. Where the
prompt ends with the chunk, its last row is beside the running ones, and they go on together through
the rest of the last layer, the head and the choice. The states lie in the same order: that of the
chunk, that of its last row, those of the running sequences; settings, logits and choices begin with
the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from oxibonsai.metal import Buffer, Commands
from oxibonsai.model.architectures.base import LayerStep, TokenGroup, moved
from oxibonsai.model.choices import (
    BIAS_DTYPE,
    CHOICE_DTYPE,
    MAX_BEST,
    SAMPLING_DTYPE,
    SCORED_DTYPE,
)
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime.batchshape import BatchStep
from oxibonsai.model.runtime.batchstates import BatchStates
from oxibonsai.model.runtime.precision import activations_of
from oxibonsai.model.runtime.steps import Workspace

__all__ = [
    "BIAS_BYTES",
    "RING",
    "SETTINGS_BYTES",
    "STATE_BYTES",
    "BatchBuffers",
    "mask_size",
    "record",
    "record_choice",
]

RING = 4
"""Choices of a row that are kept: more than there are steps in flight."""

STATE_BYTES = 16  # struct oxb_decode_state
SETTINGS_BYTES = SAMPLING_DTYPE.itemsize
BIAS_BYTES = BIAS_DTYPE.itemsize


def mask_size(vocab_size: int) -> int:
    """Return the elements, uint32, of a mask."""
    return (vocab_size + 31) // 32


@dataclass
class BatchBuffers:
    """What recordings use.

    Attributes
    ----------
    k, v : Buffer
        Keys and values, [n_pages, layers, n_kv_heads, PAGE_SIZE, head_dim].
    state : Buffer
        struct oxb_decode_state, one of a chunk and one of each row that chooses.
    tokens : Buffer
        uint32 [n_slots, max_seq + 1].
    pages : Buffer
        uint32 [n_slots, pages of max_seq].
    settings : Buffer
        struct oxb_sampling of each row that chooses.
    logits : Buffer
        float32, a row of the vocabulary for each of them.
    rope : Buffer
        float32 [max_seq, 2, rotary_dim / 2].
    ring : Buffer
        CHOICE_DTYPE [rows, RING].
    work : Workspace
        Activations.
    best : Buffer or None
        SCORED_DTYPE [rows, RING, MAX_BEST], once asked for.
    biases : Buffer or None
        struct oxb_bias, as many for each slot, once there are any.
    masks : Buffer or None
        A row of bits for each slot, once there are any.
    states : BatchStates or None
        Of a model with recurrent layers: one of each slot, and those that are kept.
    """

    k: Buffer
    v: Buffer
    state: Buffer
    tokens: Buffer
    pages: Buffer
    settings: Buffer
    logits: Buffer
    rope: Buffer
    ring: Buffer
    work: Workspace
    best: Buffer | None = None
    biases: Buffer | None = None
    masks: Buffer | None = None
    states: BatchStates | None = None

    def close(self) -> None:
        """Release them."""
        for buffer in vars(self).values():
            if buffer is not None:
                buffer.close()


def record(
    model: LoadedModel,
    buffers: BatchBuffers,
    heads: dict[str, Any],
    step: BatchStep,
    *,
    deterministic: bool,
) -> Commands:
    """Record a step; `heads` are the arguments that the ops on heads share."""
    return _recorded(_Recorder(model, buffers, heads, step, deterministic), _Recorder.step)


def record_choice(
    model: LoadedModel,
    buffers: BatchBuffers,
    heads: dict[str, Any],
    step: BatchStep,
    *,
    deterministic: bool,
) -> Commands:
    """Record the choices alone of a step that leaves them out."""
    return _recorded(_Recorder(model, buffers, heads, step, deterministic), _Recorder.choices)


def _recorded(recorder: _Recorder, what: Callable[[_Recorder], None]) -> Commands:
    try:
        what(recorder)
    except BaseException:
        recorder.commands.close()
        raise
    return recorder.commands


class _Recorder:
    """Records into new commands."""

    def __init__(
        self,
        model: LoadedModel,
        buffers: BatchBuffers,
        heads: dict[str, Any],
        step: BatchStep,
        deterministic: bool,
    ) -> None:
        self._model = model
        self._buffers = buffers
        self._heads = heads
        self._step = step
        self.commands = model.graph.commands(
            activations=activations_of(
                model, heads["kv_dtype"], exact=deterministic, generates=step.n_rows > 0
            ),
            deterministic=deterministic,
        )

    def step(self) -> None:
        step = self._step
        self._layers()
        if step.n_choices:
            self._head()
            if step.chooses:
                self.choices()
        if step.chunk and not step.ends:
            b = self._buffers
            self.commands.advance(
                b.logits,
                b.tokens,
                b.state,
                self._model.config.vocab_size,
                b.tokens.nbytes // 4,
                n_tokens=step.chunk,
                greedy=False,
            )

    def _layers(self) -> None:
        c, weights, step, b = self._model.config, self._model.weights, self._step, self._buffers
        groups = []
        if step.chunk:
            groups.append(TokenGroup(0, step.chunk, b.state, False, step.max_length))
        if step.n_rows:
            state = (b.state, 2 * STATE_BYTES)
            groups.append(TokenGroup(step.chunk, step.n_rows, state, True, step.max_length))
        for group in groups:
            weights.record_embedding(
                self.commands,
                b.tokens,
                group.state,
                moved(b.work.hidden, 4 * c.hidden_size * group.first),
                n_tokens=group.n_tokens,
                batch=group.batch,
            )
        last = c.n_layers - 1
        for i, layer in enumerate(weights.layers):
            at = self._layer_step(i, 0, step.chunk + step.n_rows, groups, whole=i < last)
            layer.record_keys_and_values(at)
            if i < last:
                layer.record_rest(at)
        if step.n_choices:
            # Only these rows go on: nobody wants the logits of a prompt's others.
            state = (b.state, STATE_BYTES * (1 + step.first))
            group = TokenGroup(0, step.n_choices, state, True, step.max_length)
            at = self._layer_step(last, step.first_row, step.n_choices, [group])
            weights.layers[last].record_rest(at)

    def _layer_step(
        self,
        layer: int,
        first: int,
        n: int,
        groups: Sequence[TokenGroup],
        *,
        whole: bool = False,
    ) -> LayerStep:
        c, b = self._model.config, self._buffers
        return LayerStep(
            commands=self.commands,
            config=c,
            n_tokens=n,
            groups=groups,
            hidden=moved(b.work.hidden, 4 * c.hidden_size * first),
            qkv=moved(b.work.qkv, 4 * c.qkv_size * first),
            attention=b.work.attention,
            activated=b.work.activated,
            rope=b.rope,
            k_cache=b.k,
            v_cache=b.v,
            heads={**self._heads, "pages": b.pages, "layer": c.ordinal(layer)},
            layer=layer,
            scratch=b.work.scratch(first),
            recurrent=None if b.states is None else b.states.place,
            whole=whole,
        )

    def _head(self) -> None:
        c, weights, step, b = self._model.config, self._model.weights, self._step, self._buffers
        weights.record_head(
            self.commands,
            moved(b.work.hidden, 4 * c.hidden_size * step.first_row),
            moved(b.logits, 4 * c.vocab_size * step.first),
            b.work.scratch(step.first_row),
            n_vectors=step.n_choices,
            eps=c.rms_eps,
        )

    def choices(self) -> None:
        b, step, vocab = self._buffers, self._step, self._model.config.vocab_size
        first = step.first
        best = None
        if step.n_best:
            assert b.best is not None
            best = moved(b.best, SCORED_DTYPE.itemsize * MAX_BEST * RING * first)
        self.commands.sample(
            moved(b.logits, 4 * vocab * first),
            moved(b.settings, SETTINGS_BYTES * first),
            moved(b.state, STATE_BYTES * (1 + first)),
            b.tokens,
            moved(b.ring, CHOICE_DTYPE.itemsize * RING * first),
            vocab,
            b.tokens.nbytes // 4,
            n_vectors=step.n_choices,
            biases=b.biases,
            n_biases=b.biases.nbytes // BIAS_BYTES if b.biases else 0,
            masks=b.masks,
            n_masks=b.masks.nbytes // (4 * mask_size(vocab)) if b.masks else 0,
            best=best,
            n_best=step.n_best,
            n_slots=RING,
            batch=True,
            log_probabilities=step.scores,
        )
