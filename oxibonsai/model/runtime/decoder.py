"""The device's side of a session: buffers, recorded steps, and what is in flight."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from oxibonsai.metal import Buffer, BufferCreationError, Commands
from oxibonsai.model.choices import NO_TOKEN, Rule, ScoredToken
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.rope import rope_table
from oxibonsai.model.runtime.cache import KVCache, KVDtype, length_bucket, warn_of_kv_cache
from oxibonsai.model.runtime.choosing import ChoiceBuffers
from oxibonsai.model.runtime.profile import Profile, Run
from oxibonsai.model.runtime.recordings import Recordings
from oxibonsai.model.runtime.recurrent import RING, RecurrentStates
from oxibonsai.model.runtime.steps import (
    AnyStep,
    ChoiceStep,
    HeadStep,
    Step,
    TextBuffers,
    Workspace,
    record,
    weight_bytes,
    working_buffer,
)
from oxibonsai.model.runtime.textstates import CHECKPOINT_EVERY, MAX_CHECKPOINTS, TextStates

__all__ = ["Decoder"]

_HEAD_ROWS = 32  # tokens of a chunk whose logits exist at one time
_STATE_BYTES = 16  # struct oxb_decode_state
_UNKNOWN = -1
_REPLAYED = 64  # steps of a submission: between two, an interrupt takes effect


class Decoder:
    """Runs tokens on the device for a Timeline, which knows which of them are the text.

    Attributes
    ----------
    position : int
        Where the next step begins, once all that was submitted has run; -1 after a failure.
    logits_end : int
        The position behind the token that the logits are of; -1 where they are being made.
    device_time : float or None
        Seconds the device took for the last step that was waited for.
    in_flight : int
        Decode steps that nobody has waited for.
    cache : KVCache
        Keys and values; grows by steps up to max_seq.
    states : TextStates or None
        Recurrent states, of a model that has them. They follow a seek() only once a step needs
        them: the steps that lead there may have to run again.
    """

    def __init__(
        self,
        model: LoadedModel,
        max_seq: int,
        kv_dtype: KVDtype,
        profile: bool,
        *,
        deterministic: bool = False,
        checkpoint_every: int = CHECKPOINT_EVERY,
        max_checkpoints: int = MAX_CHECKPOINTS,
    ) -> None:
        self.model = model
        self.max_seq = max_seq
        self.kv_dtype = kv_dtype
        self.deterministic = deterministic
        self.profile = Profile() if profile else None
        self._device = model.device
        self._closed = False
        self._recordings = Recordings()
        self._flying: Commands | None = None
        self._flying_step = Step(1, 1, 0)
        self._finished_at = 0.0
        self._encoded = 0.0
        self._refuse_too_long()
        self.cache, self._text = self._allocate(length_bucket(1, max_seq))
        self.states: TextStates | None = None
        if model.config.recurrent is not None:
            self.states = TextStates(model, checkpoint_every, max_checkpoints)
        self._work = Workspace(model, 1)
        self._choosing = ChoiceBuffers(self._device, model.config.vocab_size)
        self._choice = ChoiceStep()
        self._chooses = True  # whether a decode step ends with a choice
        self._text.state.write(np.zeros(4, np.uint32))
        self.position = 0
        self.logits_end = _UNKNOWN
        self._single_row = False  # whether the logits are a head's over one row, as of a replay
        self.device_time: float | None = None

    def _refuse_too_long(self) -> None:
        """Raise if a cache of max_seq positions, to which it may grow, could never be allocated."""
        nbytes = KVCache.nbytes_of(self.model.config, self.kv_dtype, self.max_seq)
        limit = self._device.info.max_buffer_length
        if nbytes > limit:
            raise BufferCreationError(
                f"keys of {self.max_seq} positions take {nbytes} bytes, the device's buffers hold "
                f"{limit}: make the session with a smaller max_seq"
            )

    def _allocate(self, capacity: int, replaced: int = 0) -> tuple[KVCache, TextBuffers]:
        """Return new buffers, in the place of a cache for `replaced` positions."""
        c = self.model.config
        device = self._device
        nbytes, old = (2 * KVCache.nbytes_of(c, self.kv_dtype, n) for n in (capacity, replaced))
        states = 0 if replaced else RecurrentStates.nbytes_of(c, RING)
        warn_of_kv_cache(self.model, nbytes, "max_seq", self.kv_dtype, replaced=old, states=states)
        cache = KVCache(device, c, self.kv_dtype, capacity)
        text = TextBuffers(
            rope=device.upload(
                rope_table(c.rotary_dim, capacity, c.rope_theta, c.rope_scaling),
                storage=device.working_storage,
            ),
            state=working_buffer(device, _STATE_BYTES),
            # Shared: the host reads a token while later steps run, without waiting for those.
            tokens=device.buffer(4 * (capacity + 1)),
            logits=working_buffer(device, 4 * c.vocab_size),
        )
        return cache, text

    @property
    def closed(self) -> bool:
        """Whether close() was called, here or on the model."""
        return self._closed or self.model.closed

    # What the host writes and reads

    def reserve(self, n_positions: int) -> None:
        """Make room for n_positions of at most max_seq; the text so far stays."""
        if n_positions <= self.cache.capacity:
            return
        self.finish()
        cache, text = self._allocate(length_bucket(n_positions, self.max_seq), self.cache.capacity)
        cache.copy_from(self.cache, max(self.position, 0))
        tokens = np.empty(self.cache.capacity + 1, np.uint32)
        text.tokens.write(self._text.tokens.read(tokens))
        text.logits.write(self.logits())
        text.state.write(self._text.state.read(np.empty(4, np.uint32)))
        self._recordings.clear()
        old = (self.cache, self._text)
        self.cache, self._text = cache, text
        for part in old:
            part.close()

    def seek(self, position: int) -> None:
        """Wait for what is in flight, and let the next step begin at `position`.

        What the text has behind it is forgotten.
        """
        self.finish()
        if self.states is not None:
            self.states.seek(position)
        self._move(position)

    def _move(self, position: int) -> None:
        if position != self.position:
            self.position = _UNKNOWN
            self._text.state.write(np.array([position], np.uint32))
            self.position = position

    def write_tokens(self, ids: Sequence[int], at: int) -> None:
        """Set tokens from position `at` on."""
        self._text.tokens.write(np.array(ids, np.uint32), 4 * at)

    def choose_by(self, rule: Rule) -> None:
        """Let choices be made by a rule from here on; nothing may be in flight."""
        if self._choosing.write(rule):
            self._recordings.clear()
        self._choice = ChoiceStep(rule.log_probabilities, rule.n_best)
        self._chooses = not rule.stepwise

    def write_mask(self, mask: npt.NDArray[np.uint32]) -> None:
        """Set the tokens that the next choice may take, of a rule with a mask."""
        self._choosing.mask.write(mask)

    def choice(self, place: int) -> ScoredToken | None:
        """Return the choice that was made last for a place; None where a later one lies there."""
        return self._choosing.read(place, self._choice.n_best)

    def put_choices(self, choices: Sequence[ScoredToken], place: int) -> None:
        """Set the choices from a place on, and the last one's token, as if steps had made them."""
        self._choosing.put(choices, place, self._choice.n_best)
        token = choices[-1].token
        self.write_tokens([0 if token == NO_TOKEN else token], place + len(choices) - 1)

    def logits(self) -> npt.NDArray[np.float32]:
        """Return the logits of the last step."""
        out = np.empty(self.model.config.vocab_size, np.float32)
        self._text.logits.read(out)
        return out

    def set_logits(self, logits: npt.NDArray[np.float32]) -> None:
        """Take `logits` for the last step's."""
        self._text.logits.write(logits)
        self.logits_end = self.position
        self._single_row = False

    def copy_from(self, other: Decoder, n_positions: int) -> None:
        """Take over another decoder's first n_positions, the token after them and the logits."""
        other.finish()
        other.prepare()  # ahead of the logits, which it may leave
        self.reserve(n_positions)
        self.cache.copy_from(other.cache, n_positions)
        tokens = np.empty(n_positions + 1, np.uint32)
        self._text.tokens.write(other._text.tokens.read(tokens))
        self._text.logits.write(other.logits())
        if self.states is not None:
            assert other.states is not None
            self.states.copy_from(other.states, n_positions)
        self.seek(n_positions)
        self.logits_end, self._single_row = other.logits_end, other._single_row

    # What the device does

    def feed(self, ids: Sequence[int], rows: int, *, float32: bool = False) -> None:
        """Run tokens in one submission; see Step for `rows` and `float32`."""
        n_tokens = len(ids)
        self.prepare()
        self._keep_due(generates=False)
        # Only now: the step before has left its choice here.
        self.write_tokens(ids, self.position)
        self._resize_for(n_tokens)
        if self.states is not None:
            self.states.writes(self.position + n_tokens)
        self._run(self._step(n_tokens, rows)._replace(float32=float32), n_tokens)
        if self.states is not None:
            self.states.log.add(n_tokens)
            self.states.wrote(self.position)

    def head(self, n_tokens: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield (first row, logits) in pieces for the n_tokens just fed, all of them rows."""
        if n_tokens == 1:
            yield 0, self.logits()[None]
            return
        for step, rows in self._head_steps(n_tokens, HeadStep(0, 0)):
            read = rows.read(np.empty((step.n_tokens, self.model.config.vocab_size), np.float32))
            if step.first + step.n_tokens == n_tokens:
                self.set_logits(read[-1])
            yield step.first, read

    def choices(self, n_tokens: int) -> Iterator[tuple[int, list[ScoredToken]]]:
        """Yield (first row, choices) in pieces for the n_tokens just fed, all of them rows."""
        if n_tokens == 1:
            self.choose()
            found = self.choice(self.position)
            assert found is not None
            yield 0, [found]
            return
        for step, rows in self._head_steps(n_tokens, HeadStep(0, 0, choice=self._choice)):
            if step.first + step.n_tokens == n_tokens:
                last = np.empty(self.model.config.vocab_size, np.float32)
                self.set_logits(rows.read(last, last.nbytes * (step.n_tokens - 1)))
            yield step.first, self._read_rows(step.n_tokens)

    def verify(self, ids: Sequence[int]) -> list[ScoredToken]:
        """Run tokens and return the choice after each, as decode steps in float32 make it."""
        # At once for all lengths of a draft: each resizing costs all recordings.
        self._resize_for(_HEAD_ROWS)
        self.feed(ids, len(ids), float32=True)
        found: list[ScoredToken] = []
        form = HeadStep(0, 0, float32=True, choice=self._choice)
        for step, _ in self._head_steps(len(ids), form):
            found += self._read_rows(step.n_tokens)
        return found

    def _head_steps(self, n_tokens: int, form: HeadStep) -> Iterator[tuple[HeadStep, Buffer]]:
        """Run the head of the n_tokens just fed in pieces, and yield each with its logits."""
        if not self._work.n_rows:
            self._work.add_rows(self._device, self.model.config, _HEAD_ROWS)
        rows = self._work.rows
        assert rows is not None
        end = self.position
        for first in range(0, n_tokens, _HEAD_ROWS):
            step = form._replace(first=first, n_tokens=min(_HEAD_ROWS, n_tokens - first))
            if step.choice is not None:
                self._move(end - n_tokens + first)  # the places of choices are counted from there
            self._run(step, 0)
            self._move(end)
            yield step, rows

    def _read_rows(self, n_rows: int) -> list[ScoredToken]:
        assert self._work.choices is not None
        return self._work.choices.read(n_rows, self._choice.n_best)

    def choose(self, logits: npt.NDArray[np.float32] | None = None) -> None:
        """Choose the token at the position by the logits of the last step.

        Or by others: those of the last step are gone then.
        """
        at = self.position
        self.finish()
        if logits is not None:
            self._text.logits.write(logits)
        self._move(at - 1)
        self._run(self._choice, 1)
        self.logits_end = at if logits is None else _UNKNOWN

    def rerun(self, position: int) -> None:
        """Run the token before `position` again, for its logits.

        Where there are recurrent states, all of the step that it was part of runs as it did, unless
        a checkpoint has the logits.
        """
        if self.states is not None:
            self.seek(position)
            self.states.log.truncate(position)
            if self.states.restore_logits(position, self._text.logits):
                self.logits_end, self._single_row = position, True
            else:
                self._replay(self.states.last_start())
            return
        self.seek(position - 1)
        self.submit()
        self.finish()

    def prepare(self) -> None:
        """See to it that a step can begin at the position: a recurrent state has to be there."""
        if self.states is not None:
            self.states.log.truncate(self.position)
            if not self.states.has(self.position):
                self._replay(self.position)

    def _replay(self, before: int) -> None:
        """Run the text's steps again, from the last state up to `before`, for state and logits."""
        states, end = self.states, self.position
        assert states is not None
        start = states.nearest(before)
        if not states.has(start):
            states.restore(start)
        for size, count in states.log.runs_from(start):
            while count:
                self._move(start)
                self._keep_due(generates=False)
                # In few submissions, each of steps that have one recording.
                n = min(
                    count, _REPLAYED, -(-max(states.until_due(start, generates=False), 1) // size)
                )
                bucket = length_bucket(start + size, self.max_seq)
                n = min(n, (bucket - start) // size)
                if start + n * size == end:
                    n = max(n - 1, 1)  # the last one goes on to the logits
                ends = start + n * size == end
                self._resize_for(size)
                left = [start + (i + 1) * size for i in range(max(n - RING, 0), n)]
                states.writes(*left)
                self._run(self._step(size, int(ends)), n * size, times=n)
                for position in left:
                    states.wrote(position)
                start += n * size
                count -= n
        self._move(end)

    def _keep_due(self, *, generates: bool) -> None:
        """Keep a checkpoint of the state at the position where one is due."""
        states, at = self.states, self.position
        if states is not None and at and not states.until_due(at, generates=generates):
            self.finish()
            own = self.logits_end == at and self._single_row
            states.keep(at, self._text.logits if own else None)

    def submit(self) -> None:
        """Start a decode step of the token at the position, and do not wait for it."""
        self.prepare()
        self._keep_due(generates=True)
        step = self._step(1, 1)._replace(choice=self._choice if self._chooses else None)
        commands = self._recorded(step)
        if self._flying is not commands:
            self.finish()
            self._flying, self._flying_step = commands, step
        started = time.perf_counter()
        if not commands.in_flight:
            self._finished_at = started
        at, self.position = self.position, _UNKNOWN
        self.logits_end = _UNKNOWN
        if self.states is not None:
            self.states.writes(at + 1)
        try:
            commands.submit()
        except BaseException:
            self._drain(commands)
            raise
        self.position = at + 1
        if self.states is not None:
            self.states.log.add(1)
            self.states.wrote(self.position)
        self._encoded += time.perf_counter() - started

    @property
    def in_flight(self) -> int:  # noqa: D102  # an attribute of the class
        return self._flying.in_flight if self._flying else 0

    def finish(self, keep: int = 0) -> None:
        """Wait for all decode steps but the last `keep`, oldest first."""
        while self._flying is not None and self._flying.in_flight > keep:
            commands = self._flying
            n = commands.in_flight
            encoded, self._encoded = self._encoded / n, self._encoded * (n - 1) / n
            try:
                commands.wait(keep=n - 1)
            except BaseException:
                self.position = _UNKNOWN
                self._drain(commands)
                raise
            now = time.perf_counter()
            self._measure(commands, self._flying_step, now - self._finished_at, encoded)
            self._finished_at = now
            if n == 1:
                self.logits_end, self._single_row = self.position, True

    def _run(self, step: AnyStep, n_tokens: int, times: int = 1) -> None:
        """Run a step so many times that the position moves on by n_tokens, and wait for it."""
        self.finish()
        commands = self._recorded(step)
        at, self.position = self.position, _UNKNOWN
        self.logits_end = _UNKNOWN
        started = time.perf_counter()
        try:
            commands.submit(times)
            encoded = time.perf_counter()
            commands.wait()
        except BaseException:
            self._drain(commands)
            raise
        self.position = at + n_tokens
        if isinstance(step, Step) and step.rows == 1:
            self.logits_end, self._single_row = self.position, True
        self._measure(commands, step, time.perf_counter() - started, encoded - started, times)

    def _drain(self, commands: Commands) -> None:
        """Wait for the other submissions after one failed, whose error is the one to report."""
        if self.states is not None:
            self.states.forget()
        while commands.in_flight:
            with suppress(RuntimeError):
                commands.wait()

    # Recordings

    def _step(self, n_tokens: int, rows: int) -> Step:
        bucket = length_bucket(self.position + n_tokens, self.max_seq)
        # Only the attention of a single row is split by the length.
        single = rows == 1 or n_tokens == 1
        return Step(n_tokens, rows, bucket if single else self.cache.capacity)

    def _recorded(self, step: AnyStep) -> Commands:
        return self._recordings.get(
            step,
            lambda: record(
                self.model,
                self.kv_dtype,
                self.cache,
                self._text,
                self._work,
                self._choosing,
                step,
                states=None if self.states is None else self.states.ring,
                deterministic=self.deterministic,
            ),
        )

    def _resize_for(self, n_tokens: int) -> None:
        if n_tokens > self._work.n_tokens:
            self._resize(n_tokens)

    def _resize(self, n_tokens: int) -> None:
        self.finish()
        work = Workspace(self.model, n_tokens)
        self._recordings.clear()
        old, self._work = self._work, work
        old.close()

    def _measure(
        self, commands: Commands, step: AnyStep, wall: float, encode: float, times: int = 1
    ) -> None:
        self.device_time = commands.device_time
        if self.profile is not None:
            self.profile.add(
                Run(
                    kind=step.kind,
                    n_tokens=step.n_tokens * times,
                    wall=wall,
                    encode=encode,
                    device=self.device_time or 0.0,
                    dispatches=len(commands) * times,
                    weight_bytes=weight_bytes(self.model.weights, step) * times,
                )
            )

    def close(self) -> None:
        """Wait for what is in flight and release everything; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._flying is not None:
            self._drain(self._flying)
        self._recordings.clear()
        self.cache.close()
        self._text.close()
        self._work.close()
        self._choosing.close()
        if self.states is not None:
            self.states.close()
