"""Which sequences run in the next step. Pure: it knows pages and positions, and no device.

A sequence is *waiting*, then *filling* (chunks of its prompt run, one sequence at a time), then
*running* (one token in each step); where pages run out it is *aside*, its pages' contents kept by
the caller, until there is room again. The order among them is that of `Sequence.rank`: the higher
priority first, then the earlier. So the youngest is the last one of that order.

The invariant, between any two calls:

1. ``sequence.position`` is the number of its tokens whose step was planned; the pages of a filling
   or running sequence hold at least that many positions.
2. At most one sequence is filling, and at most `max_sequences` are filling or running.
3. No sequence is admitted, or brought back, ahead of one with a lower rank that waits or is aside.

Of a model with recurrent states, the state of a filling or running sequence is the one before
``sequence.position`` once all steps have run. It is kept where that is a multiple of the pool's
spacing, for texts that begin alike, and chunks of prompts end there.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from oxibonsai.model.runtime.checkpointpool import CheckpointPool
from oxibonsai.model.runtime.pages import PAGE_SIZE, ROOT, PagePool, chain_key, pages_of

__all__ = ["Chunk", "Plan", "Scheduler", "Sequence", "Stage"]

_AHEAD = 32  # positions to come that get their page when tables are written anyway


class Stage(Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    FILLING = "filling"
    RUNNING = "running"
    ASIDE = "aside"
    ENDED = "ended"


@dataclass(eq=False)
class Sequence:
    """A text that runs, as the scheduler sees it.

    Attributes
    ----------
    tokens : list of int
        The prompt, and behind it what was chosen and read.
    n_prompt : int
        Tokens of the prompt.
    last : int
        The most positions whose step may run: the last token chosen needs no step of its own.
    rank : (int, int)
        Smaller runs earlier: minus the priority, and the order of arrival.
    position : int
        Tokens whose step was planned.
    pages : list of int
        Its pages, in the order of its positions.
    n_shared : int
        Tokens of the prompt that another text's pages hold.
    """

    tokens: list[int]
    n_prompt: int
    last: int
    rank: tuple[int, int]
    stage: Stage = Stage.WAITING
    position: int = 0
    pages: list[int] = field(default_factory=list)
    n_shared: int = 0
    keys: list[bytes] = field(default_factory=list)  # of its full pages, as far as known


@dataclass(frozen=True)
class Chunk:
    """Tokens ``start`` to ``stop`` of a prompt; `ends` where they are its last."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def n_tokens(self) -> int:
        """How many."""
        return self.stop - self.start

    @property
    def ends(self) -> bool:
        """Whether the prompt ends with it, so that its first choice is made."""
        return self.stop == self.sequence.n_prompt


@dataclass(frozen=True)
class Plan:
    """A step, and what has to happen before it.

    Attributes
    ----------
    rows : list of (Sequence, int)
        Running sequences, and the position of the token that runs.
    chunk : Chunk or None
        What runs of a prompt.
    aside : list of (Sequence, list of int)
        Sequences whose pages have to be read before anything is written.
    back : list of Sequence
        Sequences whose pages have to be written.
    joined : list of Sequence
        Sequences that were admitted or brought back: their tokens and pages are new to the device.
    kept : list of (Sequence, int)
        Sequences, those of `aside` among them, whose states have to be kept before all else, and
        the places.
    restored : list of (Sequence, int)
        Sequences of `joined` that begin with a state that is kept, and its place.
    """

    rows: list[tuple[Sequence, int]]
    chunk: Chunk | None
    aside: list[tuple[Sequence, list[int]]] = field(default_factory=list)
    back: list[Sequence] = field(default_factory=list)
    joined: list[Sequence] = field(default_factory=list)
    kept: list[tuple[Sequence, int]] = field(default_factory=list)
    restored: list[tuple[Sequence, int]] = field(default_factory=list)


class Scheduler:
    """Decides what runs.

    Parameters
    ----------
    pool : PagePool
        The pages.
    max_sequences : int
        Sequences that fill or run at a time.
    chunk : int
        The most tokens of a prompt in one step.
    next_chunk : callable, optional
        Returns how many the next step should have; `chunk` where left out.
    deterministic : bool
        Whether only pages are shared whose bits do not depend on how their text came about: those
        of prompts.
    checkpoints : CheckpointPool, optional
        The states that are kept, where the model has recurrent states: then pages are shared up to
        one of them.
    """

    def __init__(
        self,
        pool: PagePool,
        max_sequences: int,
        chunk: int,
        *,
        next_chunk: Callable[[], int] | None = None,
        deterministic: bool = False,
        checkpoints: CheckpointPool | None = None,
    ) -> None:
        self._pool = pool
        self._checkpoints = checkpoints
        self._max_sequences = max_sequences
        self._chunk = chunk
        self._chunk_size = next_chunk or (lambda: chunk)
        self._deterministic = deterministic
        self._waiting: list[Sequence] = []
        self._aside: list[Sequence] = []
        self._running: list[Sequence] = []  # by rank
        self._filling: Sequence | None = None
        self._restored: list[tuple[Sequence, int]] = []  # of the plan that is made

    @property
    def waiting(self) -> list[Sequence]:
        """Those that have not begun."""
        return list(self._waiting)

    @property
    def aside(self) -> list[Sequence]:
        """Those that gave their pages up."""
        return list(self._aside)

    @property
    def running(self) -> list[Sequence]:
        """Those that have pages, the filling one included."""
        return self._active()

    @property
    def n_active(self) -> int:
        """How many have pages."""
        return len(self._running) + (self._filling is not None)

    @property
    def n_aside(self) -> int:
        """How many gave their pages up."""
        return len(self._aside)

    @property
    def busy(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self._waiting or self._aside or self._running or self._filling)

    def check(self, n_prompt: int, max_tokens: int, max_seq: int) -> None:
        """Raise ValueError for a text that can never run."""
        if n_prompt + max_tokens > max_seq:
            raise ValueError(
                f"a prompt of {n_prompt} tokens and max_tokens = {max_tokens} pass max_seq = "
                f"{max_seq}: ask for fewer, or make the engine with a larger max_seq"
            )
        needed = pages_of(n_prompt + max_tokens - 1)
        if needed > self._pool.n_pages:
            raise ValueError(
                f"a prompt of {n_prompt} tokens and max_tokens = {max_tokens} need {needed} pages, "
                f"the engine has {self._pool.n_pages}: ask for fewer tokens, or make the engine "
                "with a larger n_pages"
            )

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        insort(self._waiting, sequence, key=lambda s: s.rank)

    def end(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give its pages back; idempotent."""
        for group in (self._waiting, self._aside, self._running):
            if sequence in group:
                group.remove(sequence)
        if self._filling is sequence:
            self._filling = None
        self._pool.release(sequence.pages)
        sequence.pages = []
        sequence.stage = Stage.ENDED

    # Steps

    def plan(self) -> Plan | None:
        """Return the next step, or None where nothing can run.

        Every token that was chosen must have been read, and every end be known.
        """
        self._restored = []
        kept = self._keep_states()
        aside = self._make_room()
        back, joined = self._admit(just_aside=[sequence for sequence, _ in aside])
        chunk = self._next_chunk()
        rows = [(sequence, sequence.position) for sequence in self._running]
        if chunk is None and not rows:
            assert not aside  # the last one that runs keeps its pages
            return None
        self._take_ahead()
        self._advance(rows, chunk)
        return Plan(rows, chunk, aside, back, joined, kept, self._restored)

    def repeat(self, plan: Plan) -> Plan | None:
        """Return the step after `plan` where it is the same with other positions, else None.

        The choices of the step before need not be known.
        """
        chunk = plan.chunk
        following: Chunk | None = None
        if chunk is not None:
            if chunk.ends or self._filling is not chunk.sequence:
                return None
            following = self._next_chunk()
            assert following is not None
            if following.ends or following.n_tokens != chunk.n_tokens:
                return None
            if self._at_boundary(chunk.sequence):
                return None
        rows = []
        for sequence, _ in plan.rows:
            at = sequence.position
            if (
                sequence.stage is not Stage.RUNNING
                or at >= sequence.last
                or at >= len(sequence.pages) * PAGE_SIZE
                or self._at_boundary(sequence)
            ):
                return None
            rows.append((sequence, at))
        if len(rows) != len(self._running):
            return None
        self._advance(rows, following)
        return Plan(rows, following)

    def index(self, sequence: Sequence, n_positions: int) -> None:
        """Let others share the full pages of a sequence, up to n_positions that have run.

        With `deterministic`, only those of its prompt.
        """
        if sequence.stage not in (Stage.FILLING, Stage.RUNNING):
            return
        limit = n_positions
        if self._deterministic:
            limit = min(limit, sequence.n_prompt)
        for i in range(len(sequence.keys), limit // PAGE_SIZE):
            self._extend_key(sequence)
            self._pool.register(sequence.pages[i], sequence.keys[i])

    def _extend_key(self, sequence: Sequence) -> None:
        keys = sequence.keys
        at = PAGE_SIZE * len(keys)
        parent = keys[-1] if keys else ROOT
        keys.append(chain_key(parent, sequence.tokens[at : at + PAGE_SIZE]))

    def _active(self) -> list[Sequence]:
        return [*self._running, *([self._filling] if self._filling else [])]

    def _make_room(self) -> list[tuple[Sequence, list[int]]]:
        """Give each running sequence the page of its next position; the youngest lose theirs."""
        aside: list[tuple[Sequence, list[int]]] = []
        for sequence in list(self._running):  # oldest first
            while (
                sequence.stage is Stage.RUNNING
                and sequence.position >= len(sequence.pages) * PAGE_SIZE
            ):
                page = self._pool.allocate()
                if page is not None:
                    sequence.pages.append(page)
                    continue
                youngest = max(self._active(), key=lambda s: s.rank)
                aside.append((youngest, youngest.pages))
                self._put_aside(youngest)
        return aside

    def _put_aside(self, sequence: Sequence) -> None:
        if self._filling is sequence:
            self._filling = None
        else:
            self._running.remove(sequence)
        self._pool.release(sequence.pages)
        sequence.pages = []
        sequence.stage = Stage.ASIDE
        insort(self._aside, sequence, key=lambda s: s.rank)

    def _admit(self, just_aside: list[Sequence]) -> tuple[list[Sequence], list[Sequence]]:
        """Bring back or admit sequences, in their order, until one does not fit."""
        back: list[Sequence] = []
        joined: list[Sequence] = []
        while len(self._active()) < self._max_sequences:
            candidates = [group[0] for group in (self._aside, self._waiting) if group]
            if not candidates:
                break
            first = min(candidates, key=lambda s: s.rank)
            if first in just_aside:
                break
            fills = first.position < first.n_prompt
            if fills and self._filling is not None:
                break
            if first.stage is Stage.ASIDE:
                if not self._bring_back(first):
                    break
                back.append(first)
            elif not self._begin(first):
                break
            joined.append(first)
            if fills:
                first.stage = Stage.FILLING
                self._filling = first
            else:
                first.stage = Stage.RUNNING
                insort(self._running, first, key=lambda s: s.rank)
        return back, joined

    def _room_for(self, n_pages: int) -> bool:
        """Whether n_pages can be given away, with one left for each that has yet to get one."""
        growing = sum(pages_of(s.last) > len(s.pages) for s in self._active())
        return self._pool.n_available >= n_pages + growing

    def _bring_back(self, sequence: Sequence) -> bool:
        # A filling one gets the pages of its whole prompt, as at first.
        needed = pages_of(max(sequence.position + 1, sequence.n_prompt))
        if not self._room_for(needed):
            return False
        self._aside.remove(sequence)
        self._take(sequence, needed)
        return True

    def _begin(self, sequence: Sequence) -> bool:
        """Give a waiting sequence its pages: shared ones, and new ones for its whole prompt."""
        shared: list[int] = []
        limit = (sequence.n_prompt - 1) // PAGE_SIZE  # one token at least is computed
        alone = sequence.n_prompt % PAGE_SIZE == 1 and sequence.n_prompt % self._chunk != 1
        if self._deterministic and alone:
            limit -= 1  # other kernels would compute the last token than without sharing
        parent = ROOT
        keys: list[bytes] = []
        for i in range(limit):
            parent = chain_key(parent, sequence.tokens[PAGE_SIZE * i : PAGE_SIZE * (i + 1)])
            page = self._pool.find(parent)
            if page is None:
                break
            keys.append(parent)
            shared.append(page)
        if self._checkpoints is not None:
            n = self._checkpoints.longest(keys)
            del keys[n:], shared[n:]
        needed = pages_of(sequence.n_prompt) - len(shared)
        # Cached pages that it shares can no longer be given away.
        if not self._room_for(needed + sum(map(self._pool.is_cached, shared))):
            return False
        for page in shared:
            self._pool.retain(page)
        self._waiting.remove(sequence)
        sequence.keys = keys
        sequence.pages = shared
        sequence.position = sequence.n_shared = PAGE_SIZE * len(shared)
        if self._checkpoints is not None and keys:
            self._restored.append((sequence, self._checkpoints.use(keys[-1])))
        self._take(sequence, needed)
        return True

    def _take(self, sequence: Sequence, n_pages: int) -> None:
        for _ in range(n_pages):
            page = self._pool.allocate()
            assert page is not None
            sequence.pages.append(page)

    def _next_chunk(self) -> Chunk | None:
        """Return the next chunk of the filling prompt.

        It ends at a multiple of its size, or before, where a state has to be kept.
        """
        sequence = self._filling
        if sequence is None:
            return None
        start = sequence.position
        size = self._chunk_size()
        stop = min((start // size + 1) * size, sequence.n_prompt)
        if self._checkpoints is not None:
            stop = min(stop, self._checkpoints.next_boundary(start) or stop)
        return Chunk(sequence, start, stop)

    def _take_ahead(self) -> None:
        """Take pages for positions to come, where more than enough are free.

        A page that comes later changes a table, which waits for what is in flight.
        """
        spare = self._pool.n_available - 2 * len(self._active())
        for sequence in self._running:
            end = min(sequence.position + _AHEAD, sequence.last)
            if spare > 0 and pages_of(end) > len(sequence.pages):
                self._take(sequence, 1)
                spare -= 1

    def _at_boundary(self, sequence: Sequence) -> bool:
        """Whether the state of a sequence is now one to keep.

        With `deterministic`, none behind a prompt is, as no page behind it is shared.
        """
        at = sequence.position
        return (
            self._checkpoints is not None
            and self._checkpoints.is_boundary(at)
            and not (self._deterministic and at > sequence.n_prompt)
        )

    def _keep_states(self) -> list[tuple[Sequence, int]]:
        """Return whose states are kept before they change, and where."""
        kept: dict[int, Sequence] = {}  # a place that has to be left at once is written once
        for sequence in self._active():
            if self._checkpoints is None or not self._at_boundary(sequence):
                continue
            key = sequence.keys[sequence.position // PAGE_SIZE - 1]
            if key in self._checkpoints:
                self._checkpoints.use(key)
            else:
                kept[self._checkpoints.allocate(key)] = sequence
        return [(sequence, place) for place, sequence in kept.items()]

    def _advance(self, rows: list[tuple[Sequence, int]], chunk: Chunk | None) -> None:
        for sequence, at in rows:
            sequence.position = at + 1
        if chunk is not None:
            chunk.sequence.position = chunk.stop
            if chunk.ends:
                self._filling = None
                chunk.sequence.stage = Stage.RUNNING
                insort(self._running, chunk.sequence, key=lambda s: s.rank)
