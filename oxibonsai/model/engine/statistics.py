"""What an engine counts."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

__all__ = ["Counters", "EngineStatistics"]

_WINDOW = 10.0  # seconds


@dataclass(frozen=True)
class EngineStatistics:
    """What an engine does at one moment.

    Attributes
    ----------
    running : int
        Sequences that have pages, the one whose prompt is read included.
    waiting : int
        Requests that have not begun.
    aside : int
        Sequences that gave their pages up and wait for others.
    pages_total, pages_used, pages_cached : int
        Pages of the caches: all, those of sequences, and those kept for texts that begin alike.
    steps : int
        Steps so far.
    prompt_tokens_computed, prompt_tokens_shared : int
        Tokens of prompts that ran, and those that did not have to: their keys and values, and the
        state behind them, were there already.
    generated_tokens : int
        Tokens chosen so far.
    tokens_per_second : float
        Tokens chosen in the last 10 seconds, or since the first request, by that time.
    times_to_first_token : tuple of float
        Seconds, of the requests that got one last, at most 64.
    checkpoints_total, checkpoints_kept : int
        Recurrent states that can be kept for texts that begin alike, and those that are; 0 where
        the model has none.
    """

    running: int
    waiting: int
    aside: int
    pages_total: int
    pages_used: int
    pages_cached: int
    steps: int
    prompt_tokens_computed: int
    prompt_tokens_shared: int
    generated_tokens: int
    tokens_per_second: float
    times_to_first_token: tuple[float, ...]
    checkpoints_total: int = 0
    checkpoints_kept: int = 0


class Counters:
    """Sums over the life of an engine; one thread counts, any may read."""

    def __init__(self) -> None:
        self.steps = 0
        self.prompt_tokens_computed = 0
        self.prompt_tokens_shared = 0
        self.generated_tokens = 0
        self.times_to_first_token: deque[float] = deque(maxlen=64)
        self._recent: deque[tuple[float, int]] = deque()  # when, and how many
        self._since = time.perf_counter()

    def begin(self) -> None:
        """Start the window of the rate, where nothing ran in it."""
        if not self._recent:
            self._since = time.perf_counter()

    def chose(self, n_tokens: int) -> None:
        """Count tokens of a step."""
        now = time.perf_counter()
        self.generated_tokens += n_tokens
        self._recent.append((now, n_tokens))
        while self._recent[0][0] < now - _WINDOW:
            self._recent.popleft()

    def rate(self) -> float:
        """Return tokens per second over the window."""
        now = time.perf_counter()
        span = min(now - self._since, _WINDOW)
        n = sum(n for when, n in self._recent.copy() if when >= now - _WINDOW)
        return n / span if span > 0 else 0.0
