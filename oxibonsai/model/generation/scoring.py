"""How probable a text is to a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oxibonsai.model.choices import ScoredToken

__all__ = ["Perplexity", "ScoredToken", "log_probabilities"]


@dataclass(frozen=True, repr=False)
class Perplexity:
    """How well a model predicts a text.

    Attributes
    ----------
    log_likelihood : float
        Sum of the natural logarithms of the probabilities of the tokens.
    n_tokens : int
        Tokens in the sum: all but the first of each window.
    """

    log_likelihood: float
    n_tokens: int

    @property
    def perplexity(self) -> float:
        """exp(-log_likelihood / n_tokens)."""
        mean = -self.log_likelihood / self.n_tokens
        # Above this exp overflows; NaN stays NaN.
        return math.inf if mean > 709 else math.exp(mean)

    def __repr__(self) -> str:
        return (
            f"<Perplexity {self.perplexity:.6g} over {self.n_tokens} tokens, "
            f"log_likelihood {self.log_likelihood:.6g}>"
        )


def log_probabilities(
    logits: npt.NDArray[np.float32], tokens: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Return log softmax(logits[i])[tokens[i]] in float64, for logits float32 [len(tokens), vocab].

    One row at a time: a row of float64 is all the memory it takes.
    """
    found = np.empty(len(tokens))
    for i, token in enumerate(tokens):
        row = logits[i].astype(np.float64)
        row -= row.max()
        chosen = row[token]
        found[i] = chosen - np.log(np.exp(row, out=row).sum())
    return found
