"""A running text: the KV cache, the recorded decode step and generation."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from oxibonsai.metal import Commands
from oxibonsai.model.rope import rope_table
from oxibonsai.model.sampling import Sampler

if TYPE_CHECKING:
    from types import TracebackType

    from oxibonsai.model.model import Model

__all__ = ["Session", "SessionFullError"]

# Tokens of a prompt fed in one call to the device: between calls Python sees Ctrl-C.
_CHUNK = 16
_STATE_BYTES = 16  # struct oxb_decode_state


class SessionFullError(ValueError):
    """The session has no room for the tokens; it is as it was before the call."""


class Session:
    """One text on a model, made by ``Model.session``.

    The decode step is recorded once and replayed for every token. Position and tokens lie in small
    device buffers, so that a replay needs nothing from the host. One thread uses a session at a
    time; sessions of one model are independent.

    Attributes
    ----------
    model : Model
        Whose weights are used.
    max_seq : int
        Positions the KV cache holds.
    kv_dtype : str
        ``"f16"`` or ``"f32"``.
    """

    def __init__(self, model: Model, max_seq: int, kv_dtype: Literal["f16", "f32"]) -> None:
        c = model.config
        device = model.graph.device
        self.model = model
        self.max_seq = max_seq
        self.kv_dtype = kv_dtype
        cache_bytes = (
            c.n_layers * c.n_kv_heads * max_seq * c.head_dim * (2 if kv_dtype == "f16" else 4)
        )
        storage = device.working_storage
        lengths = {
            "k_cache": cache_bytes,
            "v_cache": cache_bytes,
            "state": _STATE_BYTES,
            # One more than the cache holds: the step at the last position writes what follows it.
            "tokens": 4 * (max_seq + 1),
            "hidden": 4 * c.hidden_size,
            "normed": 4 * c.hidden_size,
            "qkv": 4 * c.qkv_size,
            "attention": 4 * c.q_size,
            "activated": 4 * c.intermediate_size,
            "logits": 4 * c.vocab_size,
        }
        self._buffers = {name: device.buffer(n, storage=storage) for name, n in lengths.items()}
        rope = rope_table(c.head_dim, max_seq, c.rope_theta)
        self._buffers["rope"] = device.upload(rope, storage=storage)
        self._feed = self._record(head=False)
        self._step = self._record(head=True)
        self._position = 0
        self._tokens: list[int] = []
        # Whether the logits buffer is that of the last token.
        self._fresh = False

    def _record(self, *, head: bool) -> Commands:
        """Record the decode step of one token, up to the KV cache or up to the logits."""
        c = self.model.config
        w = self.model.weights
        b = self._buffers
        state, hidden, normed, qkv = b["state"], b["hidden"], b["normed"], b["qkv"]
        attention, activated = b["attention"], b["activated"]
        shape: dict[str, Any] = {
            "n_heads": c.n_heads,
            "n_kv_heads": c.n_kv_heads,
            "head_dim": c.head_dim,
            "max_seq": self.max_seq,
            "kv_dtype": self.kv_dtype,
        }
        cmd = self.model.graph.commands()
        cmd.embed(w.embedding, b["tokens"], state, hidden)
        for i, layer in enumerate(w.layers):
            cmd.rmsnorm(hidden, layer.attn_norm, normed, c.hidden_size, eps=c.rms_eps)
            layer.qkv.record(cmd, normed, qkv)
            cmd.qk_norm_rope(
                qkv, layer.q_norm, layer.k_norm, b["rope"], state, eps=c.rms_eps, layer=i, **shape
            )
            cmd.kv_store(qkv, b["k_cache"], b["v_cache"], state, layer=i, **shape)
            if not head and i == c.n_layers - 1:
                break  # the last layer's keys and values are all that later tokens need
            cmd.attention(qkv, b["k_cache"], b["v_cache"], state, attention, layer=i, **shape)
            layer.attn_output.record(cmd, attention, hidden, residual=True)
            cmd.rmsnorm(hidden, layer.ffn_norm, normed, c.hidden_size, eps=c.rms_eps)
            cmd.gate_up_swiglu(layer.gate_up, normed, activated)
            layer.down.record(cmd, activated, hidden, residual=True)
        if head:
            cmd.rmsnorm(hidden, w.output_norm, normed, c.hidden_size, eps=c.rms_eps)
            cmd.gemv(w.head, normed, b["logits"])
        cmd.advance(b["logits"], b["tokens"], state, c.vocab_size, self.max_seq + 1, greedy=head)
        return cmd

    @property
    def position(self) -> int:
        """Tokens in the context."""
        return self._position

    @property
    def tokens(self) -> list[int]:
        """The tokens in the context."""
        return list(self._tokens)

    def forward(
        self, ids: Sequence[int], logits: Literal["all", "last"] | None = "all"
    ) -> npt.NDArray[np.float32] | None:
        """Feed tokens and return their logits.

        Parameters
        ----------
        ids : sequence of int
            At least one token.
        logits : {"all", "last"} or None
            Which to return: float32 [len(ids), vocab], float32 [vocab], or None.

        Raises
        ------
        SessionFullError
            Where the tokens do not fit; nothing is fed then.
        ValueError
            For a token outside the vocabulary.
        """
        if logits not in ("all", "last", None):
            raise ValueError(f"logits = {logits!r}: 'all', 'last' or None")
        fed = self._check(ids)
        if logits == "all":
            rows = np.empty((len(fed), self.model.config.vocab_size), np.float32)
            for i, token in enumerate(fed):
                self._replay(self._step, [token])
                self._buffers["logits"].read(rows[i])
            return rows
        for start in range(0, len(fed) - 1, _CHUNK):
            self._replay(self._feed, fed[start : min(start + _CHUNK, len(fed) - 1)])
        self._replay(self._step, fed[-1:])
        return self._logits() if logits == "last" else None

    def _check(self, ids: Sequence[int]) -> list[int]:
        self._check_open()
        fed = [operator.index(i) for i in ids]
        vocab = self.model.config.vocab_size
        if not fed:
            raise ValueError("no tokens to feed: at least one is needed")
        for i, token in enumerate(fed):
            if not 0 <= token < vocab:
                raise ValueError(
                    f"token {token} at {i} is outside the vocabulary: ids are 0 to {vocab - 1}"
                )
        if self._position + len(fed) > self.max_seq:
            raise SessionFullError(
                f"{len(fed)} tokens do not fit: the session holds {self._position} of "
                f"{self.max_seq}; rewind() it, or make one with a larger max_seq"
            )
        return fed

    def _replay(self, step: Commands, fed: list[int]) -> None:
        """Run `step` once for each of `fed`; one with the head also writes the token after it."""
        before = self._position
        self._fresh = False
        try:
            self._buffers["tokens"].write(np.array(fed, np.uint32), 4 * before)
            step.replay(len(fed))
        except BaseException:
            # Which tokens the device got through is not known: take the whole call back.
            self._set_position(before)
            raise
        self._position = before + len(fed)
        self._tokens += fed
        self._fresh = step is self._step

    def _set_position(self, position: int) -> None:
        self._buffers["state"].write(np.array([position], np.uint32))
        self._position = position
        del self._tokens[position:]

    def _logits(self) -> npt.NDArray[np.float32]:
        out = np.empty(self.model.config.vocab_size, np.float32)
        self._buffers["logits"].read(out)
        return out

    def rewind(self, position: int) -> None:
        """Forget all tokens from `position` on; ValueError unless it lies in 0..self.position."""
        self._check_open()
        position = operator.index(position)
        if not 0 <= position <= self._position:
            raise ValueError(f"cannot rewind to {position}: the session is at {self._position}")
        if position < self._position:
            self._set_position(position)
            self._fresh = False

    def generate(
        self,
        max_tokens: int = 64,
        temperature: float = 0.0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        ignore_eos: bool = False,
    ) -> Iterator[int]:
        """Yield tokens that continue what was fed; each is in the context when it is yielded.

        Parameters
        ----------
        max_tokens : int
            The most to yield.
        temperature, top_k, top_p, min_p, repetition_penalty, seed
            See Sampler; temperature 0 takes the most probable token.
        ignore_eos : bool
            Go on past the end of the text. By default generation stops before a token that ends it
            (EOS, EOT).

        Raises
        ------
        SessionFullError
            Where the next token does not fit; what was generated stays.
        ValueError
            Where nothing was fed, or an argument is out of its range.
        """
        sampler = Sampler(
            temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        max_tokens = operator.index(max_tokens)
        if max_tokens < 0:
            raise ValueError(f"max_tokens = {max_tokens} must be 0 or more")
        self._check_continuable()
        ends = frozenset() if ignore_eos else self.model.end_ids
        return self._generate(max_tokens, sampler, ends)

    def _generate(self, max_tokens: int, sampler: Sampler, ends: frozenset[int]) -> Iterator[int]:
        for _ in range(max_tokens):
            token = self._next(sampler)
            if token in ends:
                return
            self.forward([token], logits=None)
            yield token

    def _check_continuable(self) -> None:
        self._check_open()
        if self._position == 0:
            raise ValueError("nothing to continue: feed a prompt with forward() first")

    def _next(self, sampler: Sampler) -> int:
        self._check_continuable()  # also here: a rewind may have come in between
        if not self._fresh:
            # After a rewind the logits are another token's: run the last one again.
            last = self._tokens[-1]
            self._set_position(self._position - 1)
            self.forward([last], logits=None)
        if not sampler.greedy:
            return sampler.sample(self._logits(), self._tokens)
        # The step left the most probable token where the next replay reads it.
        out = np.empty(1, np.uint32)
        self._buffers["tokens"].read(out, 4 * self._position)
        token = int(out[0])
        logit = np.empty(1, np.float32)
        self._buffers["logits"].read(logit, 4 * token)
        if not logit[0] > -np.inf:
            raise ValueError("no token can be drawn: every logit is NaN or -inf")
        return token

    @property
    def device_time(self) -> float | None:
        """Seconds the device took for the last token fed; None before the first."""
        return self._step.device_time

    @property
    def closed(self) -> bool:
        """Whether close() was called, here or on the model."""
        return not self._buffers or self.model.closed

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the session is closed: make a new one with model.session()")

    def close(self) -> None:
        """Release the KV cache and the buffers; idempotent."""
        if self._buffers:
            self._feed.close()
            self._step.close()
            buffers, self._buffers = self._buffers, {}
            for buffer in buffers.values():
                buffer.close()

    def __enter__(self) -> Session:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<Session closed>"
        return f"<Session at {self._position} of {self.max_seq}, K/V in {self.kv_dtype}>"
