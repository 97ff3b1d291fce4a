"""Speculation: how many tokens of a draft to verify in one step, from what steps cost here.

A verifying step runs the next token and a draft behind it, and gives out as many tokens of the
draft as the choices made along it confirm. It pays where many are confirmed and where rows cost
little: on one device eight rows cost hardly more than one, on another nearly eight times as much.

How many would be confirmed is known without a verifying step, because the text is the same either
way: each token that comes is compared with the one that the index foresaw. Only the costs need
trials. Those are paid out of a small share of the time that went by, so that a text takes hardly
longer than without speculation whatever the device and the text are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from oxibonsai.model.generation.lookup import LONGEST, PromptLookup

__all__ = ["MAX_DRAFT", "Speculation"]

MAX_DRAFT = 31
"""The most tokens of a draft."""

_SHARE = 0.015  # of the time of plain steps, which trials may lose
_CREDIT = 0.01  # plain steps, for each token to come, that they may lose at once,
_MOST_CREDIT = 2.0  # but no more than so many
_MOST_PROFIT = 16.0  # plain steps of profit that later losses may use up
_MARGIN = 1.05  # by which speculation must be faster
_CHEAPEST_ROW = 0.02  # plain steps that a further row costs at least, where nothing is known
_REFILL = 4  # plain steps behind a verifying one, of which each has more of the next in flight
_COLD = 1.0  # plain steps that the first run of a size may cost for being recorded
_COMPILED = 8.0  # times what the first run of a size may cost: above, it compiled its kernels
_LOOK = 8  # tokens between two looks for a trial, while no size is known to pay
_INDEX_SECONDS = 2e-6  # that the index takes for a token
_LONG = 4096  # tokens of sleep where the index alone takes more than may be lost
_RETRY = 512  # tokens after which a size that did not pay is tried again; each time twice as many
# Confirmed predictions by the bits of the match's length, as if each had been seen `_PRIOR` times.
_FIRST_RATES = (0.0, 0.25, 0.45, 0.6, 0.75, 0.85, 0.9, 0.9)
_PRIOR = 4.0
_DECAY = 0.95  # of what was seen, with each prediction of its class


class _Rates:
    """How often the next token is what the index foresaw, by the length of the match."""

    def __init__(self) -> None:
        self._right = [_PRIOR * rate for rate in _FIRST_RATES]
        self._seen = [_PRIOR] * len(_FIRST_RATES)

    def add(self, length: int, right: bool) -> None:
        at = length.bit_length()
        self._right[at] = _DECAY * self._right[at] + right
        self._seen[at] = _DECAY * self._seen[at] + 1

    def tokens(self, length: int, n_rows: int) -> float:
        """Return how many tokens a step of n_rows may be expected to give."""
        surviving = total = 1.0
        for i in range(n_rows - 1):
            at = min(length + i, LONGEST).bit_length()
            surviving *= self._right[at] / self._seen[at]
            total += surviving
        return total


class _Plain:
    """Seconds of a plain step, the median of a few; 0 before the first.

    It is not brought up to date with each step: where a step is short, that would count.
    """

    _FEW = 8

    def __init__(self) -> None:
        self._kept: list[float] = []
        self._settled = False
        self.value = 0.0

    def add(self, seconds: float) -> None:
        kept = self._kept
        kept.append(seconds)
        if self._settled and len(kept) < self._FEW:
            return
        self.value = sorted(kept)[len(kept) // 2]
        if len(kept) == self._FEW:
            kept.clear()
            self._settled = True


class _Median:
    """The median of the last few numbers; 0 before the first."""

    def __init__(self, n_kept: int) -> None:
        self._kept: deque[float] = deque(maxlen=n_kept)
        self.value = 0.0

    def add(self, number: float) -> None:
        self._kept.append(number)
        self.value = sorted(self._kept)[len(self._kept) // 2]

    def clear(self) -> None:
        self._kept.clear()


class _Cost:
    """Seconds of a verifying step of one size."""

    def __init__(self) -> None:
        self._seconds = _Median(5)
        self.known = False
        self._cold = False  # whether the only time known includes the recording
        self.first = 0.0  # what the first run took, until the second,
        self.counted = 0.0  # and how much of that was counted
        self.tried_at = 0  # tokens that had come then
        self.wait = _RETRY

    @property
    def cold(self) -> bool:
        return self._cold

    @property
    def seconds(self) -> float:
        return self._seconds.value

    def add(self, seconds: float, *, anew: bool) -> None:
        if anew:
            self._seconds.clear()
        self._cold = not self.known
        self.known = True
        self._seconds.add(seconds)


class Speculation:
    """Decides before each step of a text whether to verify a draft, and which.

    Parameters
    ----------
    draft_tokens : int
        The most tokens of a draft, 1 to 31.
    row_cost : float
        What a further row of a step costs before it was measured, in plain steps.
    """

    def __init__(self, draft_tokens: int, *, row_cost: float) -> None:
        if not 1 <= draft_tokens <= MAX_DRAFT:
            raise ValueError(
                f"draft_tokens = {draft_tokens} must lie in 1..{MAX_DRAFT}, or be 0 for none"
            )
        self._lookup = PromptLookup()
        self._rates = _Rates()
        self._row_cost = row_cost
        # Few sizes, so that few are recorded and measured.
        sizes = (2**i for i in range(1, MAX_DRAFT.bit_length() + 1))
        self._costs = {n: _Cost() for n in sizes if n <= draft_tokens + 1}
        self._plain = _Plain()
        self._count = 0  # tokens that came
        self._credit = 0.0
        self._plain_seconds = 0.0  # what plain steps take, or would have taken, for them
        self._lost = 0.0  # seconds that verifying steps took beyond that
        self._asleep_until = 0  # a count; nothing can pay before
        self._pending: list[int] = []  # tokens that came while asleep
        self._paying = False  # whether a size is known to pay
        self._wanted = False  # whether the last look found a draft, which has not run yet
        self._refills = 0  # plain steps that come before as many are in flight as before

    def begin(self, tokens: Sequence[int], max_tokens: int) -> None:
        """Start at the end of a text, of which max_tokens are to come."""
        trials = any(not c.known or c.cold for c in self._costs.values())
        self._credit = min(_MOST_CREDIT, _CREDIT * max_tokens) if trials else 0.0
        self._pending.clear()
        self._lookup.follow(tokens)

    def push(self, token: int) -> None:
        """Take the next token of the text into account."""
        self._count += 1
        self._plain_seconds += self._plain.value
        if self._count < self._asleep_until:
            self._pending.append(token)
            return
        self._lost += _INDEX_SECONDS * (1 + len(self._pending))
        for late in self._pending:
            self._lookup.push(late)
        self._pending.clear()
        if self._lookup.length:
            self._rates.add(self._lookup.length, self._lookup.next_token == token)
        self._lookup.push(token)

    def draft(self, most_rows: int) -> list[int]:
        """Return the tokens to verify behind the last one, in a step of at most most_rows.

        There are none where a plain step is the better one. A draft that cannot run at once, for
        steps in flight, is looked for again behind the next token.
        """
        if self._pending or not self._lookup.length or not self._plain.value:
            self._wanted = False
            return []
        if not (self._paying or self._wanted) and (self._count % _LOOK or self._sleeps()):
            return []  # the time of a look counts where steps are short
        found = self._lookup.draft(self._best_size(most_rows) - 1)
        self._wanted = bool(found)
        return found

    def _sleeps(self) -> bool:
        """Leave the index alone where no trial can be paid for yet, or the index itself cannot."""
        earned = _SHARE * self._plain.value - _INDEX_SECONDS  # by each token to come
        missing = _COLD * self._plain.value - self._allowed()
        if earned > 0 and missing <= 0:
            return False
        wait = missing / earned if earned > 0 else _LONG
        self._asleep_until = self._count + int(min(wait, _LONG))
        return True

    def ran_plain(self, seconds: float) -> None:
        """Note what a step of one token took."""
        if self._refills:
            # What it takes longer because nothing was in flight is lost by the verifying step.
            self._refills -= 1
            plain = self._plain.value
            self._lost += min(max(seconds - plain, 0.0), plain)
            return
        self._plain.add(seconds)

    def ran(self, n_rows: int, n_tokens: int, seconds: float) -> None:
        """Note that a verifying step of n_rows took so long and gave n_tokens."""
        self._wanted = False
        self._refills = _REFILL
        cost = self._costs[n_rows]
        pays = cost.known and self._pays(n_rows, cost.seconds)
        cost.add(seconds, anew=self._is_due(n_rows))
        plain = self._plain.value
        if cost.cold:
            cost.first, cost.counted = seconds, self._first_seconds(n_rows)
            taken = cost.counted
        else:
            # A moment in which the machine was busy must not count for more than it is. What of the
            # first run was no compilation shows now.
            taken = cost.seconds + max(0.0, min(cost.first, cost.seconds) - cost.counted)
            cost.first = cost.counted = 0.0
        self._lost = max(self._lost + taken - n_tokens * plain, -_MOST_PROFIT * plain)
        if not cost.cold:
            if not pays and cost.tried_at and not self._pays(n_rows, cost.seconds):
                cost.wait *= 2
            cost.tried_at = self._count
        self._paying = any(c.known and self._pays(n, c.seconds) for n, c in self._costs.items())
        if not self._paying and all(c.known and not c.cold for c in self._costs.values()):
            self._asleep_until = self._count + min(c.wait for c in self._costs.values())

    def _pays(self, n_rows: int, seconds: float) -> bool:
        """Whether a step of n_rows is faster where all of its draft is confirmed."""
        return n_rows * self._plain.value > _MARGIN * seconds

    def _best_size(self, most_rows: int) -> int:
        """Return the number of rows of the best step, 1 for a plain one."""
        plain, length = self._plain.value, self._lookup.length
        allowed = self._allowed()
        best, best_rate = 1, _MARGIN / plain
        expected = self._expected(length, most_rows)
        for n_rows, tokens in expected.items():
            cost = self._costs[n_rows]
            if cost.known and not cost.cold:
                rate = tokens / cost.seconds
                if rate > best_rate and cost.seconds - tokens * plain <= allowed:
                    best, best_rate = n_rows, rate
        trial, trial_rate = best, best_rate
        for n_rows, tokens in expected.items():
            if self._is_due(n_rows):
                least, most = self._bounds(n_rows)
                rate = tokens / least
                if rate > trial_rate and most - tokens * plain <= allowed:
                    trial, trial_rate = n_rows, rate
        return trial

    def _allowed(self) -> float:
        """Return the seconds that may be lost now."""
        credit = self._credit * self._plain.value
        return credit + _SHARE * self._plain_seconds - self._lost

    def _expected(self, length: int, most_rows: int) -> dict[int, float]:
        """Return the tokens that a step of each size may give, where they could pay at all."""
        found = {}
        for n_rows in self._costs:
            if n_rows <= most_rows:
                tokens = self._rates.tokens(length, n_rows)
                if tokens > _MARGIN * (1 + _CHEAPEST_ROW * (n_rows - 1)):
                    found[n_rows] = tokens
        return found

    def _is_due(self, n_rows: int) -> bool:
        """Whether the cost of a size is not known, or so long ago that it may have changed."""
        cost = self._costs[n_rows]
        if not cost.known or cost.cold:
            return True
        return self._count - cost.tried_at >= cost.wait and not self._pays(n_rows, cost.seconds)

    def _bounds(self, n_rows: int) -> tuple[float, float]:
        """Return what a step whose cost is to be found costs at least and at most."""
        plain = self._plain.value
        own = self._costs[n_rows]
        least = plain * (1 + _CHEAPEST_ROW * (n_rows - 1))
        most = plain * (1 + self._row_cost * (n_rows - 1))
        if own.known and not own.cold:
            # Twice as fast as once measured, on a machine that is no longer busy.
            return max(least, own.seconds / 2), own.seconds
        for n, cost in self._costs.items():
            if cost.known and not cost.cold:
                if n < n_rows:
                    least = max(least, cost.seconds)
                    most = min(most, cost.seconds * n_rows / n)
                else:
                    most = min(most, cost.seconds)
        most = self._first_seconds(n_rows) if own.cold else most + _COLD * plain
        return min(least, most), most

    def _first_seconds(self, n_rows: int) -> float:
        """Return what the first run of a size took, as far as is known without compilation."""
        expected = self._plain.value * (1 + self._row_cost * (n_rows - 1) + _COLD)
        seconds = self._costs[n_rows].seconds
        # Kernels are compiled once, in seconds: text after text runs without it.
        return seconds if seconds < _COMPILED * expected else expected
