"""Steps of a generation that verify drafts: several tokens at once where that is faster."""

from __future__ import annotations

import time
from collections.abc import Callable

from oxibonsai.model.generation.speculation import Speculation
from oxibonsai.model.timeline import Timeline

__all__ = ["SpeculativeSteps", "row_cost"]


def row_cost(threads: int) -> float:
    """Return what a further row of a step may cost at most, in steps of one token.

    A device of host threads (threads > 0) multiplies as fast as it can with one row already; for
    others one row leaves most of the arithmetic idle.
    """
    return 1.3 if threads else 0.25


class SpeculativeSteps:
    """Runs the steps of one generation for the tokens that the device chose.

    Parameters
    ----------
    timeline : Timeline
        The text.
    speculation : Speculation
        What decides; it may know the costs from earlier generations on the same runner.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        timeline: Timeline,
        speculation: Speculation,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._timeline = timeline
        self._speculation = speculation
        self._clock = clock
        self._confirmed = 0  # tokens from the cursor on whose steps have run in a verifying one

    def begin(self, max_tokens: int) -> None:
        """Start at the end of the text, nothing held or in flight."""
        self._confirmed = 0
        self._speculation.begin([*self._timeline.history()], max_tokens)

    def take(self, token: int, steps: int, budget: int) -> bool:
        """Hold the token that the timeline's choice() gave, once its step has run.

        Parameters
        ----------
        token : int
            The choice.
        steps : int
            Steps in flight from the token's own on, where none of them verifies a draft.
        budget : int
            Tokens that may still come, this one included.

        Returns
        -------
        bool
            Whether the steps went on in flight, so that more of them may be next time.
        """
        timeline, speculation = self._timeline, self._speculation
        speculation.push(token)
        if self._confirmed:
            self._confirmed -= 1
            timeline.take_choice(token, 1)
            return False
        draft = speculation.draft(min(budget, timeline.room))
        started = self._clock()
        ahead = timeline.ahead
        if not draft or ahead:
            # A draft goes behind the last token that is known: what is in flight comes first.
            timeline.take_choice(token, ahead if draft else steps)
            speculation.ran_plain(self._clock() - started)
            return not draft
        n_tokens = timeline.verify(token, draft)
        speculation.ran(1 + len(draft), n_tokens, self._clock() - started)
        timeline.take_choice(token, 1)
        self._confirmed = n_tokens - 1
        return False
