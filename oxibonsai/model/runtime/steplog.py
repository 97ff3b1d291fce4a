"""The sizes of the steps that made a text, by which it can be made again bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["StepLog"]


class StepLog:
    """Sizes of steps from position 0 on, as runs of equal ones.

    A chunk of a prompt is one step, and so is each token that was generated. Products of several
    tokens round in other places than those of one, so that the state behind a text depends on how
    it was cut.

    Parameters
    ----------
    runs : sequence of (int, int)
        Sizes, and how many steps of each size follow one another.
    """

    def __init__(self, runs: Sequence[tuple[int, int]] = ()) -> None:
        # Size, count, and the tokens up to the end of the run.
        self._runs: list[tuple[int, int, int]] = []
        for size, count in runs:
            self.add(size, count)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """The runs, in a list of the caller's own."""
        return [(size, count) for size, count, _ in self._runs]

    @property
    def length(self) -> int:
        """Tokens of all steps."""
        return self._runs[-1][2] if self._runs else 0

    @property
    def last(self) -> int:
        """The size of the last step, 0 where there is none."""
        return self._runs[-1][0] if self._runs else 0

    def add(self, size: int, count: int = 1) -> None:
        """Append `count` steps of `size` tokens."""
        end = self.length + size * count
        # In one store: an interrupt comes before it or after it.
        if self._runs and self._runs[-1][0] == size:
            self._runs[-1] = (size, self._runs[-1][1] + count, end)
        else:
            self._runs.append((size, count, end))

    def truncate(self, position: int) -> None:
        """Keep what makes the first tokens: a step that goes past `position` ends there."""
        if not 0 <= position <= self.length:
            raise ValueError(f"position {position} is outside the {self.length} that were logged")
        if position == self.length:
            return
        kept = StepLog()
        for size, count, end in self._runs:
            if end > position:
                whole, rest = divmod(position - kept.length, size)
                if whole:
                    kept.add(size, whole)
                if rest:
                    kept.add(rest)
                break
            kept.add(size, count)
        self._runs = kept._runs

    def runs_from(self, position: int) -> Iterator[tuple[int, int]]:
        """Yield the runs behind the end of a step."""
        for size, count, end in self._runs:
            done, rest = divmod(max(position - (end - size * count), 0), size)
            if done < count:
                if rest:
                    raise ValueError(f"no step ends at position {position}")
                yield size, count - done
