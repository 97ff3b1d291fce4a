"""Where the time of a session goes."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Profile", "Run"]

_logger = logging.getLogger("oxibonsai.model")
_KEPT = 4096
_KINDS = ("prefill", "decode", "head", "choice")


@dataclass(frozen=True)
class Run:
    """One submission.

    Attributes
    ----------
    kind : {"prefill", "decode", "head", "choice"}
        Several tokens at once; one token up to the choice of the next; logits of several tokens;
        or a choice alone, of the first token of a generation.
    n_tokens : int
        Tokens (of a head: rows).
    wall : float
        Seconds of the host for it, the waiting included. Of decode steps in flight together: since
        the one before it was finished.
    encode : float
        Seconds of `wall` in which the host handed the work to the device. A device of host threads
        does the work itself then.
    device : float
        Seconds the device took.
    dispatches : int
        Kernels that ran.
    weight_bytes : int
        Bytes of weights that they read.
    """

    kind: str
    n_tokens: int
    wall: float
    encode: float
    device: float
    dispatches: int
    weight_bytes: int

    @property
    def bandwidth(self) -> float:
        """Bytes of weights a second of the device."""
        return self.weight_bytes / self.device if self.device > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"{self.kind} of {self.n_tokens}: wall {1e3 * self.wall:.3f} ms, encode "
            f"{1e3 * self.encode:.3f} ms, device {1e3 * self.device:.3f} ms, {self.dispatches} "
            f"dispatches, {self.weight_bytes / 1e6:.2f} MB of weights at "
            f"{self.bandwidth / 1e9:.2f} GB/s"
        )


class Profile:
    """What a session with ``profile=True`` has done; each run is logged as it ends.

    The logger is ``oxibonsai.model``, the level INFO.

    Attributes
    ----------
    runs : deque of Run
        The last 4096 runs.
    """

    def __init__(self) -> None:
        self.runs: deque[Run] = deque(maxlen=_KEPT)

    def add(self, run: Run) -> None:
        """Keep a run, and log it.

        Parameters
        ----------
        run : Run
            What has run.
        """
        self.runs.append(run)
        _logger.info("%s", run)

    def of(self, kind: str) -> list[Run]:
        """Return the kept runs of a kind.

        Parameters
        ----------
        kind : {"prefill", "decode", "head"}
            The kind.

        Returns
        -------
        list of Run
            Oldest first.
        """
        return [run for run in self.runs if run.kind == kind]

    def total(self, kind: str) -> Run:
        """Return the sums over the kept runs of a kind.

        Parameters
        ----------
        kind : {"prefill", "decode", "head"}
            The kind.

        Returns
        -------
        Run
            Their sums.
        """
        runs = self.of(kind)
        return Run(
            kind,
            sum(run.n_tokens for run in runs),
            sum(run.wall for run in runs),
            sum(run.encode for run in runs),
            sum(run.device for run in runs),
            sum(run.dispatches for run in runs),
            sum(run.weight_bytes for run in runs),
        )

    def clear(self) -> None:
        """Forget all runs."""
        self.runs.clear()

    def __repr__(self) -> str:
        parts = (f"{len(self.of(kind))} {kind}" for kind in _KINDS)
        return f"<Profile of {', '.join(parts)} runs>"


class Stopwatch:
    """Adds up the seconds spent inside a block."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start
