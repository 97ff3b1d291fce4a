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
        self._runs = [(size, count) for size, count in runs]
        self._length = sum(size * count for size, count in self._runs)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """The runs, in a list of the caller's own."""
        return list(self._runs)

    @property
    def length(self) -> int:
        """Tokens of all steps."""
        return self._length

    @property
    def last(self) -> int:
        """The size of the last step, 0 where there is none."""
        return self._runs[-1][0] if self._runs else 0

    def add(self, size: int, count: int = 1) -> None:
        """Append `count` steps of `size` tokens."""
        if self._runs and self._runs[-1][0] == size:
            self._runs[-1] = (size, self._runs[-1][1] + count)
        else:
            self._runs.append((size, count))
        self._length += size * count

    def truncate(self, position: int) -> None:
        """Keep what makes the first tokens: a step that goes past `position` ends there."""
        if not 0 <= position <= self._length:
            raise ValueError(f"position {position} is outside the {self._length} that were logged")
        while self._length > position:
            size, count = self._runs.pop()
            self._length -= size * count
            whole, rest = divmod(max(position - self._length, 0), size)
            if whole:
                self.add(size, whole)
            if rest:
                self.add(rest)

    def runs_from(self, position: int) -> Iterator[tuple[int, int]]:
        """Yield the runs behind the end of a step."""
        start = 0
        for size, count in self._runs:
            done, rest = divmod(max(position - start, 0), size)
            if done < count:
                if rest:
                    raise ValueError(f"no step ends at position {position}")
                yield size, count - done
            start += size * count
