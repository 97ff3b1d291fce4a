"""Choice of the next token from logits, on the host."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["Sampler"]


class Sampler:
    """Draws tokens.

    Parameters
    ----------
    temperature : float
        Divides the logits; 0 takes the largest one (the lowest id of equal ones).
    top_k : int
        Keeps the k largest logits; 0 keeps all.
    top_p : float
        Keeps the fewest most probable tokens whose probabilities reach top_p, in (0, 1].
    min_p : float
        Keeps tokens at least min_p times as probable as the most probable one, in [0, 1].
    repetition_penalty : float
        Divides positive and multiplies negative logits of tokens already in the context; 1 is off.
    seed : int or None
        Of the random generator; None takes one from the system.

    Raises
    ------
    ValueError
        For a value out of its range.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> None:
        for name, value, holds, limits in (
            ("temperature", temperature, 0 <= temperature < np.inf, "finite and 0 or more"),
            ("top_k", top_k, top_k >= 0, "0 or more"),
            ("top_p", top_p, 0 < top_p <= 1, "in (0, 1]"),
            ("min_p", min_p, 0 <= min_p <= 1, "in [0, 1]"),
            (
                "repetition_penalty",
                repetition_penalty,
                0 < repetition_penalty < np.inf,
                "finite and above 0",
            ),
        ):
            if not holds:
                raise ValueError(f"{name} = {value} must be {limits}")
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.min_p = min_p
        self.repetition_penalty = repetition_penalty
        self._random = np.random.default_rng(seed)

    @property
    def greedy(self) -> bool:
        """Whether the choice is the largest logit, which the device finds itself."""
        return self.temperature == 0 and self.repetition_penalty == 1

    def sample(self, logits: npt.NDArray[np.float32], context: Iterable[int] = ()) -> int:
        """Return the next token.

        Parameters
        ----------
        logits : float32 [vocab]
            The logits; a NaN is never drawn.
        context : iterable of int
            The tokens that the repetition penalty applies to.

        Returns
        -------
        int
            The token.

        Raises
        ------
        ValueError
            If every logit is NaN or -inf.
        """
        scores = np.where(np.isnan(logits), -np.inf, logits).astype(np.float64)
        if self.repetition_penalty != 1:
            seen = np.unique(np.fromiter(context, np.int64))
            penalty = np.where(
                scores[seen] > 0, 1 / self.repetition_penalty, self.repetition_penalty
            )
            scores[seen] *= penalty
        best = int(np.argmax(scores))
        if scores[best] == -np.inf:
            raise ValueError("no token can be drawn: every logit is NaN or -inf")
        if self.temperature == 0 or scores[best] == np.inf:
            return best
        # Stable: of equal probabilities the lower id comes first, so that a seed repeats a text.
        order = np.argsort(-scores, kind="stable")
        if self.top_k:
            order = order[: self.top_k]
        weights = np.exp((scores[order] - scores[best]) / self.temperature)
        keep = weights >= self.min_p * weights[0]
        if self.top_p < 1:
            share = np.cumsum(weights) / weights.sum()
            keep &= np.concatenate(([True], share[:-1] < self.top_p))
        order, weights = order[keep], weights[keep]
        return int(self._random.choice(order, p=weights / weights.sum()))
