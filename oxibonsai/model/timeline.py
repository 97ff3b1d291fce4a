"""The one owner of a text: its tokens, what has run ahead of them, and where both end.

A text has three ends, of which the host knows two and the device the third::

    0 ........... position ........... cursor ........... runner.position
      the text             held                in flight

- ``tokens[:position]`` is the text: fed by a caller, or given out by a generation.
- Between position and cursor are *held* tokens: their steps have run and the host has read them,
  but they may still become part of a stop sequence, so that they are not given out yet.
- Behind the cursor, steps are in flight: the device chooses their tokens, which nobody has read.
  Those of a draft that verify() confirmed lie there as well: the device has chosen the same.

A choice depends on the tokens before it, on their logits and on the text's `Rule` alone.

The invariant, between any two calls:

1. ``position <= cursor <= max_seq``, and the keys and values of the text's tokens lie on the device
   at the positions 0 to position - 1.
2. A generation changes the text by commit() alone. Every other change, and settle(), gives a new
   epoch, by which a generation that was left sees that the text is no longer its own.
3. After settle() nothing is held or in flight: ``position == cursor == runner.position``.
4. From `chosen_from` on, what the runner last chose for a place up to the cursor is the choice of
   the rule for this text. A choice outlives the logits it was made from, which later steps
   overwrite; the runner may have forgotten it, and says so.
5. A call that raises leaves the text as it was. The runner may not know its position then; the next
   settle() sets it.
6. While tokens are fed, every other change is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from oxibonsai.model.choices import NO_TOKEN, Rule, ScoredToken
from oxibonsai.model.errors import SessionFullError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Runner", "Timeline"]

_NEVER = 1 << 62  # a place that no text reaches


class Runner(Protocol):
    """What a timeline asks of the device's side; `Decoder` is the one in the package."""

    @property
    def position(self) -> int:
        """Where the next step begins once all submitted ones have run; -1 where that is unknown."""

    @property
    def logits_end(self) -> int:
        """The position behind the token that the logits are of; -1 where there are none."""

    @property
    def closed(self) -> bool:
        """Whether nothing can run any more."""

    def reserve(self, n_positions: int) -> None:
        """Make room for n_positions."""

    def seek(self, position: int) -> None:
        """Wait for what is in flight, and let the next step begin at `position`."""

    def feed(self, ids: Sequence[int], rows: int) -> None:
        """Run tokens from the position on in one submission, with logits of the last `rows`."""

    def choose_by(self, rule: Rule) -> None:
        """Let choices be made by a rule from here on; nothing may be in flight."""

    def write_mask(self, mask: npt.NDArray[np.uint32]) -> None:
        """Set the tokens that the next choice may take, of a rule with a mask."""

    def submit(self) -> None:
        """Start a step of the token at the position, and do not wait for it.

        It chooses the token behind it, unless the rule is stepwise.
        """

    def choose(self, logits: npt.NDArray[np.float32] | None = None) -> None:
        """Choose the token at the position by the logits of the last step.

        Or by others: those of the last step are gone then.
        """

    def choice(self, place: int) -> ScoredToken | None:
        """Return the choice that was made last for a place; None where a later one lies there."""

    def put_choices(self, choices: Sequence[ScoredToken], place: int) -> None:
        """Set the choices from a place on, and the last one's token, as if steps had made them."""

    def verify(self, ids: Sequence[int]) -> list[ScoredToken]:
        """Run tokens from the position on and return the choice after each."""

    def finish(self, keep: int = 0) -> None:
        """Wait for all submitted steps but the last `keep`."""

    def rerun(self, position: int) -> None:
        """Run the token before `position` again, for its logits."""

    def write_tokens(self, ids: Sequence[int], at: int) -> None:
        """Set tokens from position `at` on."""

    def logits(self) -> npt.NDArray[np.float32]:
        """Return the logits of the last step."""

    def set_logits(self, logits: npt.NDArray[np.float32]) -> None:
        """Take `logits` for the last step's."""

    def copy_from(self, other: Self, n_positions: int) -> None:
        """Take over another runner's first n_positions and the logits."""


class Timeline:
    """A text on a runner; the module says what holds between calls.

    Parameters
    ----------
    runner : Runner
        The device's side, which nobody else moves.
    max_seq : int
        Tokens that the text may have.
    """

    def __init__(self, runner: Runner, max_seq: int) -> None:
        self._runner = runner
        self._max_seq = max_seq
        self._tokens: list[int] = []
        self._held: deque[int] = deque()
        self._rule: Rule | None = None  # that the runner was told; None where that failed
        self._chosen_from = _NEVER
        self._feeding = False  # in the body of feeding()
        self._epoch = 0

    @property
    def tokens(self) -> list[int]:
        """The tokens of the text, in a list of the caller's own."""
        return list(self._tokens)

    @property
    def position(self) -> int:
        """Tokens in the text."""
        return len(self._tokens)

    @property
    def cursor(self) -> int:
        """Where the next token goes: behind the text and the held tokens."""
        return len(self._tokens) + len(self._held)

    @property
    def held(self) -> list[int]:
        """The held tokens, oldest first."""
        return list(self._held)

    @property
    def chosen_from(self) -> int:
        """The place from which on the runner's choices count; see the invariant."""
        return self._chosen_from

    @property
    def epoch(self) -> int:
        """A number that changes whenever the text changes other than by commit()."""
        return self._epoch

    def history(self) -> Iterator[int]:
        """Return an iterator over the text and the held tokens."""
        return chain(self._tokens, self._held)

    @property
    def closed(self) -> bool:
        """Whether nothing can run any more."""
        return self._runner.closed

    def check_open(self) -> None:
        """Raise ValueError where the session or its model is closed."""
        if self.closed:
            raise ValueError("the session is closed: make a new one with model.session()")

    def check_room(self, n_tokens: int) -> None:
        """Raise SessionFullError unless n_tokens fit behind the text."""
        self._check_room(self.position + n_tokens, n_tokens)

    def _check_room(self, end: int, n_tokens: int) -> None:
        if end > self._max_seq:
            raise SessionFullError(
                f"{n_tokens} tokens do not fit: the session holds {self.position} of "
                f"{self._max_seq}; rewind() it, or make one with a larger max_seq"
            )

    # Moving the text

    def settle(self) -> int:
        """Drop what is held or in flight, and return the new epoch.

        Raises
        ------
        RuntimeError
            Inside the body of feeding(), where the text is not yet what it will be.
        """
        self.check_open()
        if self._feeding:
            raise RuntimeError(
                "the session is being fed: progress() and other threads must not use it meanwhile"
            )
        # Ahead of seek(), which may fail: no generation may then go on from what was in flight.
        self._held.clear()
        self._epoch += 1
        self._runner.seek(self.position)
        return self._epoch

    def choose_by(self, rule: Rule) -> int:
        """Settle, let tokens be chosen by a rule from here on, and return the new epoch."""
        epoch = self.settle()
        if rule != self._rule:
            self._rule = None
            self._chosen_from = _NEVER
            self._runner.choose_by(rule)
            self._rule = rule
        return epoch

    @contextmanager
    def feeding(
        self, ids: Sequence[int], chunk: int | Callable[[], int], *, all_rows: bool
    ) -> Iterator[Iterator[tuple[int, int]]]:
        """Feed tokens in the body of a with statement; any exception there takes all of them back.

        Parameters
        ----------
        ids : sequence of int
            Tokens that fit, of the vocabulary.
        chunk : int or callable
            Tokens that run in one submission, or what returns them before each one.
        all_rows : bool
            Whether the runner makes logits of every token; else of the last alone.

        Yields
        ------
        iterator of (int, int)
            Each step of it runs the next chunk and gives its bounds in `ids`. The body must exhaust
            it.
        """
        self.settle()
        before = self.position
        self._runner.reserve(before + len(ids))

        def chunks() -> Iterator[tuple[int, int]]:
            stop = 0
            while stop < len(ids):
                start, size = stop, chunk if isinstance(chunk, int) else chunk()
                stop = min(start + size, len(ids))
                rows = stop - start if all_rows else int(stop == len(ids))
                self._runner.feed(ids[start:stop], rows)
                yield start, stop
                self.check_open()  # the body may have closed the session

        self._feeding = True
        self._chosen_from = _NEVER
        try:
            yield chunks()
        except BaseException:
            if not self.closed:
                self._runner.seek(before)
            raise
        finally:
            self._feeding = False
        self._tokens += ids

    def rewind(self, position: int) -> None:
        """Forget all tokens from `position` on; ValueError unless it lies in 0..self.position."""
        self.check_open()
        if not 0 <= position <= self.position:
            raise ValueError(f"cannot rewind to {position}: the session is at {self.position}")
        if position < self.position:
            self.settle()
            self._runner.seek(position)
            del self._tokens[position:]

    def copy_from(self, other: Timeline) -> None:
        """Take over the text of another, settled timeline on a runner of the same shape."""
        self._runner.copy_from(other._runner, other.position)
        self._tokens = other.tokens
        self._held.clear()
        self._chosen_from = _NEVER
        self._epoch += 1

    def restore(self, tokens: Sequence[int], logits: npt.NDArray[np.float32] | None) -> None:
        """Take over a text whose keys and values were written to the device.

        Parameters
        ----------
        tokens : sequence of int
            The text.
        logits : float32 [vocab], optional
            Those of its last token, where they are known.
        """
        if tokens:
            self._runner.write_tokens(tokens, 0)
        self._runner.seek(len(tokens))
        self._tokens = list(tokens)
        self._held.clear()
        self._chosen_from = _NEVER
        if logits is not None:
            self._runner.set_logits(logits)
        self._epoch += 1

    # Going on from it

    def logits(self) -> npt.NDArray[np.float32]:
        """Return the logits of the token before the cursor; where they are lost it runs again."""
        if self._runner.logits_end != self.cursor:
            self._runner.rerun(self.cursor)
        return self._runner.logits()

    def known_logits(self) -> npt.NDArray[np.float32] | None:
        """Return the logits of the text's last token, or None where a later step has run."""
        if self.position == 0 or self._runner.logits_end != self.position:
            return None
        return self._runner.logits()

    def choice(
        self,
        *,
        logits: npt.NDArray[np.float32] | None = None,
        mask: npt.NDArray[np.uint32] | None = None,
    ) -> ScoredToken:
        """Return the token that the rule chooses for the cursor.

        Parameters
        ----------
        logits : float32 [vocab], optional
            By which to choose instead of the step's own, of a stepwise rule.
        mask : uint32 array, optional
            The tokens that may be chosen, of a stepwise rule with a mask.

        Returns
        -------
        ScoredToken
            The choice.

        Raises
        ------
        ValueError
            Where every logit is NaN, -inf or masked.
        """
        runner, at, rule = self._runner, self.cursor, self._rule
        if rule is None:
            raise ValueError("there is no rule: choose_by() comes before choice()")
        if mask is not None:
            runner.write_mask(mask)
        found = runner.choice(at) if at >= self._chosen_from else None
        if found is None:
            chosen_from, self._chosen_from = self._chosen_from, _NEVER
            if logits is None and runner.logits_end != at:
                runner.rerun(at)
            runner.choose(logits)
            found = runner.choice(at)
            assert found is not None
            if not rule.stepwise:
                self._chosen_from = min(chosen_from, at)
        if found.token == NO_TOKEN:
            masked = "" if rule.mask is None else " or not allowed"
            raise ValueError(f"no token can be drawn: every logit is NaN or -inf{masked}")
        return found

    def take_choice(self, token: int, steps: int) -> None:
        """Hold the token that choice() gave, once its step has run.

        Parameters
        ----------
        token : int
            The choice.
        steps : int
            Steps in flight from the token's own on, as far as they fit; only the first is waited
            for. At least 1.

        Raises
        ------
        SessionFullError
            Where the token does not fit.
        """
        runner, at = self._runner, self.cursor
        self._check_room(at + 1, 1)
        steps = min(steps, self._max_seq - at)
        try:
            while runner.position - at < steps:
                runner.reserve(runner.position + 1)
                runner.submit()
            runner.finish(keep=runner.position - at - 1)
        except BaseException:
            self._chosen_from = _NEVER  # how far the device came is not known
            raise
        self._held.append(token)

    @property
    def ahead(self) -> int:
        """Steps behind the cursor that have been submitted."""
        return max(0, self._runner.position - self.cursor)

    @property
    def room(self) -> int:
        """Tokens that fit behind the cursor."""
        return self._max_seq - self.cursor

    def verify(self, token: int, draft: Sequence[int]) -> int:
        """Run the token that choice() gave with a draft behind it, and keep what is confirmed.

        Afterwards all is as if steps of as many tokens had been submitted one by one: the runner
        holds them and the choice of the next one.

        Parameters
        ----------
        token : int
            The choice; nothing may be ahead of it.
        draft : sequence of int
            Tokens that may come next; with the token, no more than `room`.

        Returns
        -------
        int
            How many tokens of both are ahead of the cursor now: the first, and the draft up to
            where the device would have chosen another one.
        """
        runner, at = self._runner, self.cursor
        end = at + 1 + len(draft)
        self._check_room(end, 1 + len(draft))
        try:
            runner.reserve(end)
            choices = runner.verify([token, *draft])
            n_kept = 1
            while n_kept <= len(draft) and choices[n_kept - 1].token == draft[n_kept - 1]:
                n_kept += 1
            runner.seek(at + n_kept)
            runner.put_choices(choices[:n_kept], at + 1)
        except BaseException:
            self._chosen_from = _NEVER  # what the runner holds is not known
            raise
        return n_kept

    def commit(self) -> int:
        """Take the oldest held token into the text, and return it."""
        if not self._held:
            raise ValueError("no token is held: take_choice() comes before commit()")
        token = self._held.popleft()
        self._tokens.append(token)
        return token
