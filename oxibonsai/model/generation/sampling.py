"""Choice of a token from logits that the host holds, by the op that chooses on a device."""

from __future__ import annotations

import operator
import reprlib
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from oxibonsai.metal import Buffer, Commands, Device
from oxibonsai.model.arguments import integer
from oxibonsai.model.choices import CHOICE_DTYPE, NO_TOKEN
from oxibonsai.model.generation.settings import Allowed, SamplingSettings, mask_words

__all__ = ["Sampler"]

_LAST_PLACE = (1 << 31) - 1
_LOOKED_AT = 64  # tokens of a context that nothing counts


class Sampler:
    """Draws tokens as ``Session.generate`` does, by the same arithmetic.

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
        How many of the last tokens of the context the penalties count; -1: all.
    logit_bias : mapping of int to float, optional
        Added to the logits of tokens; -inf forbids one.
    seed : int or None
        Of the noise, 0 to 2^64 - 1; None takes one from the system.
    choice : int
        Which of several texts of one seed.

    Attributes
    ----------
    settings : SamplingSettings
        All of them.

    Raises
    ------
    TypeError
        For a value of another type.
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
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_window: int = 64,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        choice: int = 0,
    ) -> None:
        self.settings = SamplingSettings.resolve(
            {
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
                "presence_penalty": presence_penalty,
                "frequency_penalty": frequency_penalty,
                "penalty_window": penalty_window,
                "logit_bias": logit_bias,
                "seed": seed,
                "choice": choice,
            }
        )
        self._packed = self.settings.packed()
        self._biases = np.frombuffer(self.settings.biases() or bytes(8), np.uint8)
        self._place = 0  # of the last draw
        self._op: _Op | None = None

    @property
    def greedy(self) -> bool:
        """Whether the choice is the largest logit as it came."""
        s = self.settings
        return s.temperature == 0 and not s.penalises and not s.logit_bias

    def sample(
        self,
        logits: npt.NDArray[np.float32],
        context: Iterable[int] = (),
        *,
        allowed: Allowed | None = None,
        position: int | None = None,
    ) -> int:
        """Return the next token.

        Parameters
        ----------
        logits : float32 [n]
            The logits; a NaN is never drawn.
        context : iterable of int
            The tokens so far, of which the penalties count the last ones.
        allowed : iterable of int or bool [n], optional
            The tokens that may be drawn, or a mask of them; all where left out.
        position : int, optional
            The place in the text whose noise is used, 1 to 2^31 - 1, so that
            ``sample(logits, tokens, position=len(tokens))`` draws what a session of the same
            settings and seed draws behind these tokens. Left out, each draw has the place behind
            that of the draw before, or behind what the penalties count where that is further on.

        Returns
        -------
        int
            The token.

        Raises
        ------
        TypeError
            For an argument of another type.
        ValueError
            If every logit is NaN, -inf or not allowed, a token is outside 0..n - 1, or `position`
            is out of its range or lies before the end of what the penalties count.
        """
        row = _row(logits)
        n = row.size
        self.settings.check_vocabulary(n)
        counted = self._counted(context, n)
        words = None if allowed is None else mask_words(allowed, n)
        if position is None:
            place = max(self._place + 1, len(counted))
        else:
            place = integer("position", position)
        if not 1 <= place <= _LAST_PLACE:
            raise ValueError(f"position = {position} must lie in 1..{_LAST_PLACE}, or be left out")
        if len(counted) > place:
            raise ValueError(
                f"position = {position} lies before the end of the {len(counted)} tokens that the "
                "penalties count: give the place behind them, or leave it out"
            )
        n_tokens = place if len(counted) else 1
        if self._op is None or self._op.n != n or self._op.n_tokens < n_tokens:
            self._op = _Op(n, n_tokens, self._biases)
        token = self._op.choose(row, self._packed, counted, words, place)
        if token == NO_TOKEN:
            masked = "" if words is None else " or not allowed"
            raise ValueError(f"no token can be drawn: every logit is NaN or -inf{masked}")
        self._place = place
        return token

    def _counted(self, context: Iterable[int], n: int) -> npt.NDArray[np.uint32]:
        """Return the last tokens of a context, as many as the penalties count."""
        penalises = self.settings.penalises
        # Where none counts, the last ones are looked at all the same: a wrong one is a mistake.
        window = self.settings.penalty_window if penalises else _LOOKED_AT
        given: Any = context
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise TypeError(
                f"context = {reprlib.repr(given)} is a {type(given).__name__}, not a list of ids"
            )
        if window != -1 and isinstance(given, (list, tuple, np.ndarray)):
            given = given[-window:]
        last = deque(given, maxlen=None if window == -1 else window)
        try:
            counted = [*map(operator.index, last)]
        except TypeError:
            counted = [integer("context: token", token) for token in last]  # which says what it is
        for token in counted:
            if not 0 <= token < n:
                raise ValueError(f"context: token {token} is outside the vocabulary of {n}")
        return np.array(counted if penalises else [], np.uint32)


def _row(logits: Any) -> npt.NDArray[np.float32]:
    """Return logits as one row of float32; TypeError for what are no real numbers."""
    try:
        given = np.asarray(logits)
    except ValueError:  # rows of different lengths
        given = np.empty(0, np.object_)
    if given.dtype.kind not in "iuf":
        raise TypeError(
            f"logits = {reprlib.repr(logits)} is a {type(logits).__name__} of {given.dtype}, not a "
            "row of real numbers"
        )
    row = np.asarray(given, np.float32, order="C")
    if row.ndim != 1 or row.size == 0:
        raise ValueError(f"logits of shape {row.shape}: one row of at least one is needed")
    return row


class _Op:
    """The op, recorded on the cpu device for n logits of a text of up to n_tokens."""

    def __init__(self, n: int, n_tokens: int, biases: npt.NDArray[np.uint8]) -> None:
        self.n = n
        self.n_tokens = 1 << (n_tokens - 1).bit_length()
        self._device = Device("cpu")

        def buffer(n_bytes: int) -> Buffer:
            return self._device.buffer(n_bytes)

        self._logits = buffer(4 * n)
        self._settings = buffer(64)
        self._state = buffer(16)
        self._tokens = buffer(4 * self.n_tokens)
        self._choice = buffer(CHOICE_DTYPE.itemsize)
        self._mask = buffer((n + 31) // 32 * 4)
        self._commands: Commands = self._device.commands()
        self._commands.sample(
            self._logits,
            self._settings,
            self._state,
            self._tokens,
            self._choice,
            n,
            self.n_tokens,
            biases=self._device.upload(biases),
            n_biases=biases.size // 8,
            masks=self._mask,
            n_masks=1,
            advance=False,
        )

    def choose(
        self,
        logits: npt.NDArray[np.float32],
        packed: npt.NDArray[np.void],
        counted: npt.NDArray[np.uint32],
        mask: npt.NDArray[np.uint32] | None,
        place: int,
    ) -> int:
        settings = packed.copy()
        settings["window"] = len(counted)
        if mask is not None:
            settings["mask"] = 0
            self._mask.write(mask)
        self._logits.write(logits)
        self._settings.write(settings.tobytes())
        if counted.size:
            # The op finds a token of the text at its place.
            self._tokens.write(counted, 4 * (place - counted.size))
        self._state.write(np.array([place - 1, 0, 0, 0], np.uint32))
        self._commands.replay()
        found = self._choice.read(np.empty(1, CHOICE_DTYPE))
        return int(found["token"][0])
