"""How tokens are chosen: what a user may say of it, checked, and as the device reads it."""

from __future__ import annotations

import math
import operator
import reprlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from oxibonsai.model.arguments import integer, number
from oxibonsai.model.choices import BIAS_DTYPE, NO_TOKEN, SAMPLING_DTYPE, Rule

__all__ = [
    "GREEDY",
    "SAMPLING_DTYPE",
    "Allowed",
    "AllowedCallback",
    "SamplingOptions",
    "SamplingSettings",
    "UnheatedOptions",
    "mask_words",
]

Allowed: TypeAlias = Iterable[int] | npt.NDArray[np.bool_]
"""Tokens, or a mask of the whole vocabulary."""

AllowedCallback: TypeAlias = Callable[[list[int]], "Allowed | None"]
"""Given the tokens so far, returns what may come next; None allows all."""

_UNIT = 1 << 20  # units of a distance in log2 of the probability
_FLOAT32 = np.finfo(np.float32)
_SMALLEST, _LARGEST = float(_FLOAT32.tiny), float(_FLOAT32.max)
_MAX_SEED = (1 << 64) - 1
_WHOLE = ("top_k", "penalty_window", "seed", "choice")
_REAL = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


class UnheatedOptions(TypedDict, total=False):
    """SamplingOptions but the temperature, which generate() takes by place."""

    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    penalty_window: int | None
    seed: int | None
    choice: int | None
    logit_bias: Mapping[int, float] | None


class SamplingOptions(UnheatedOptions, total=False):
    """What a user may say of the choice of tokens; None is as good as nothing.

    SamplingSettings documents each option.
    """

    temperature: float | None


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen, checked and complete.

    In this order: a mask, the bias, penalties, the temperature, top-k, top-p over what top-k kept,
    min-p; then the draw.

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
        Divides positive and multiplies negative logits of tokens in the window; 1 is off.
    presence_penalty : float
        Subtracted from the logits of tokens in the window.
    frequency_penalty : float
        Subtracted once for each time that a token is in the window.
    penalty_window : int
        How many of the last tokens the penalties count, the prompt's included; -1: all.
    seed : int
        Of the noise, 0 to 2^64 - 1. A seed gives one text, whatever the device.
    choice : int
        Which of several texts of one seed.
    logit_bias : mapping of int to float
        Added to the logits of tokens; -inf forbids one.

    Raises
    ------
    TypeError
        For a value of another type.
    ValueError
        For a value out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    seed: int = 0
    choice: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _WHOLE:
            object.__setattr__(self, name, integer(name, getattr(self, name)))
        for name in _REAL:
            number(name, getattr(self, name))
        largest = f"finite and at most {_LARGEST:.2g} either way; 0 is off"
        for name, holds, limits in (
            ("temperature", 0 <= self.temperature < math.inf, "finite and 0 or more; 0 is greedy"),
            ("top_k", self.top_k >= 0, "0 or more; 0 keeps all"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]; 1 keeps all"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]; 0 keeps all"),
            (
                "repetition_penalty",
                0 < self.repetition_penalty < math.inf,
                "finite and above 0; 1 is off",
            ),
            ("presence_penalty", abs(self.presence_penalty) <= _LARGEST, largest),
            ("frequency_penalty", abs(self.frequency_penalty) <= _LARGEST, largest),
            (
                "penalty_window",
                -1 <= self.penalty_window <= NO_TOKEN,
                f"in -1..{NO_TOKEN}; -1 counts the whole context, 0 nothing",
            ),
            ("seed", 0 <= self.seed <= _MAX_SEED, f"in 0..{_MAX_SEED}, or None for any"),
            ("choice", 0 <= self.choice <= NO_TOKEN, f"in 0..{NO_TOKEN}"),
        ):
            if not holds:
                raise ValueError(f"{name} = {getattr(self, name)} must be {limits}")
        for name in _REAL:
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    @classmethod
    def resolve(cls, options: SamplingOptions, n_vocab: int | None = None) -> SamplingSettings:
        """Return the settings for what a user gave.

        Parameters
        ----------
        options : SamplingOptions
            What was given; the rest is as if nothing was sampled. Without a seed one is drawn.
        n_vocab : int, optional
            Tokens of the vocabulary, where it is known.

        Returns
        -------
        SamplingSettings
            The settings.

        Raises
        ------
        TypeError
            For a name that is no option, or a value of another type.
        ValueError
            For a value out of its range, or a biased token outside the vocabulary.
        """
        for name in options:
            if name not in cls.__dataclass_fields__:
                raise TypeError(
                    f"{name!r} is no option of the choice of tokens; there are "
                    f"{', '.join(cls.__dataclass_fields__)}"
                )
        given: dict[str, Any] = {
            name: value for name, value in options.items() if value is not None
        }
        given.setdefault("seed", secrets.randbits(64))
        settings = cls(**given)
        if n_vocab is not None:
            settings.check_vocabulary(n_vocab)
        return settings

    def check_vocabulary(self, n_vocab: int) -> None:
        """Raise ValueError for a biased token outside a vocabulary of n_vocab tokens."""
        for token in self.logit_bias:
            if token >= n_vocab:
                raise ValueError(
                    f"logit_bias of token {token}: it is outside the vocabulary, ids are 0 to "
                    f"{n_vocab - 1}"
                )

    @property
    def penalises(self) -> bool:
        """Whether a penalty changes anything."""
        off = (
            self.repetition_penalty == 1
            and self.presence_penalty == 0
            and self.frequency_penalty == 0
        )
        return self.penalty_window != 0 and not off

    def packed(self) -> npt.NDArray[np.void]:
        """Return struct oxb_sampling, the biases from 0 on and no mask.

        What changes no choice is as where it is left out: equal choices have equal bytes.
        """
        one = np.zeros((), SAMPLING_DTYPE)
        one["repetition"] = one["inverse_repetition"] = 1
        one["least"] = one["mask"] = NO_TOKEN
        one["n_biases"] = len(self.logit_bias)
        if self.temperature > 0:
            scale = _UNIT * math.log2(math.e) / self.temperature
            one["scale"] = min(max(scale, _SMALLEST), _LARGEST)
            one["seed"] = self.seed & NO_TOKEN, self.seed >> 32
            one["choice"] = self.choice
            one["top_k"] = self.top_k if self.top_k <= NO_TOKEN else 0
            # 0 keeps all, so that the least share is one unit.
            one["top_p"] = 0 if self.top_p == 1 else max(1, math.floor(self.top_p * 2**32))
            one["least"] = _largest_distance(self.min_p)
        if self.penalises:
            repetition = min(max(self.repetition_penalty, _SMALLEST), _LARGEST)
            one["repetition"] = repetition
            one["inverse_repetition"] = min(max(1 / repetition, _SMALLEST), _LARGEST)
            one["presence"] = self.presence_penalty
            one["frequency"] = self.frequency_penalty
            one["window"] = NO_TOKEN if self.penalty_window == -1 else self.penalty_window
        return one

    def biases(self) -> bytes:
        """Return struct oxb_bias for each biased token."""
        return np.array(list(self.logit_bias.items()), BIAS_DTYPE).tobytes()

    def rule(
        self,
        *,
        mask: npt.NDArray[np.uint32] | None = None,
        log_probabilities: bool = False,
        n_best: int = 0,
        stepwise: bool = False,
    ) -> Rule:
        """Return the rule of these settings.

        Parameters
        ----------
        mask : uint32 array, optional
            As of mask_words().
        log_probabilities, n_best, stepwise
            As of Rule.

        Returns
        -------
        Rule
            What the device is told.
        """
        packed = self.packed()
        if mask is not None:
            packed["mask"] = 0
        return Rule(
            packed.tobytes(),
            self.biases(),
            None if mask is None else mask.tobytes(),
            log_probabilities,
            n_best,
            stepwise,
        )


def _checked_bias(bias: Mapping[int, float]) -> dict[int, float]:
    """Return a bias by token, in the order of the tokens."""
    if not isinstance(bias, Mapping):
        raise TypeError(
            f"logit_bias = {reprlib.repr(bias)} is a {type(bias).__name__}, not a mapping of "
            "tokens to numbers"
        )
    found: dict[int, float] = {}
    for key, given in bias.items():
        token = integer("logit_bias: token", key)
        value = number(f"logit_bias of token {token}", given)
        if not 0 <= token < NO_TOKEN:
            raise ValueError(f"logit_bias of token {token}: ids are 0 or more")
        if not (math.isinf(value) or abs(value) <= _LARGEST):
            raise ValueError(
                f"logit_bias of token {token} = {value} must be a number, at most {_LARGEST:.2g} "
                "either way; -inf forbids a token"
            )
        found[token] = float(value)
    return dict(sorted(found.items()))


def _largest_distance(min_p: float) -> int:
    """Return the largest u with 2^(-u / 2^20) >= min_p."""
    if min_p == 0:
        return NO_TOKEN
    u = math.floor(-math.log2(min_p) * _UNIT)
    # The logarithm may be off by its last bit.
    while u > 0 and 2.0 ** (-u / _UNIT) < min_p:
        u -= 1
    while 2.0 ** (-(u + 1) / _UNIT) >= min_p:
        u += 1
    return u


def mask_words(allowed: Allowed | None, n_vocab: int) -> npt.NDArray[np.uint32]:
    """Return the bits of the tokens that are allowed, in words of 32.

    Parameters
    ----------
    allowed : iterable of int, bool [n_vocab] or None
        Tokens, or a mask; None allows all.
    n_vocab : int
        Tokens of the vocabulary.

    Returns
    -------
    uint32 [(n_vocab + 31) / 32]
        Bit i of word i / 32 is that of token i.

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        Where no token is allowed, one is outside the vocabulary, or a mask is of another shape.
    """
    if allowed is None:
        return np.full((n_vocab + 31) // 32, NO_TOKEN, np.uint32)
    if isinstance(allowed, (str, bytes)) or not isinstance(allowed, (Iterable, np.ndarray)):
        raise TypeError(
            f"allowed = {reprlib.repr(allowed)} is a {type(allowed).__name__}: give tokens, a mask "
            "of the vocabulary, or a function that returns one or the other"
        )
    given = np.asarray(allowed if isinstance(allowed, np.ndarray) else list(allowed))
    if given.dtype == np.bool_:
        if given.shape != (n_vocab,):
            raise ValueError(
                f"allowed: a mask of shape {given.shape}, where the vocabulary needs ({n_vocab},)"
            )
        mask = given
    else:
        mask = np.zeros(n_vocab, np.bool_)
        for token in given.tolist():
            try:
                at = operator.index(token)
            except TypeError:
                at = integer("allowed: token", token)  # which says what it is
            if not 0 <= at < n_vocab:
                raise ValueError(
                    f"allowed: token {at} is outside the vocabulary, ids are 0 to {n_vocab - 1}"
                )
            mask[at] = True
    if not mask.any():
        raise ValueError("allowed: no token is, so that none could be drawn; allow at least one")
    padded = np.zeros((n_vocab + 31) // 32 * 32, np.bool_)
    padded[:n_vocab] = mask
    return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32, copy=False)


GREEDY = SamplingSettings().rule()
"""The most probable token, nothing else asked for."""
