"""The settings of sampling that a GGUF file recommends, in ``general.sampling.*``."""

from __future__ import annotations

import logging
import math
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

from oxibonsai.model.generation.settings import SamplingOptions, SamplingSettings

__all__ = ["NAMES", "FileSampling", "Recommending", "recommended"]

_log = logging.getLogger("oxibonsai.model")


class _Key(NamedTuple):
    """An option of SamplingSettings, and how the file's value becomes its own."""

    name: str
    of_file: Callable[[float], float]
    whole: bool = False


def _decimal(value: float) -> float:
    """Return the shortest number that a float32 stands for: 0.7, not 0.699999988."""
    return float(f"{value:.7g}")


# As in llama.cpp, numbers beyond those that filter anything are where a filter is off, and a
# temperature of 0 or less is the greedy choice.
_KEYS = {
    "general.sampling.temp": _Key("temperature", lambda x: max(0.0, _decimal(x))),
    "general.sampling.top_k": _Key("top_k", lambda x: max(0, x), whole=True),
    "general.sampling.top_p": _Key("top_p", lambda x: _decimal(x) if 0 < x < 1 else 1.0),
    "general.sampling.min_p": _Key("min_p", lambda x: max(0.0, _decimal(x))),
    "general.sampling.penalty_repeat": _Key("repetition_penalty", _decimal),
    "general.sampling.penalty_last_n": _Key("penalty_window", lambda x: x, whole=True),
}

NAMES = tuple(key.name for key in _KEYS.values())
"""The options that a file may recommend."""


class FileSampling:
    """What a file recommends.

    Parameters
    ----------
    metadata : mapping
        Of the file.
    path : str
        The file, for messages.
    """

    def __init__(self, metadata: Mapping[str, Any], path: str) -> None:
        self._metadata = metadata
        self._path = path
        self._told: set[str] = set()

    def options(
        self,
        given: Collection[str] = (),
        warn: Callable[[str], object] = lambda message: _log.warning("%s", message),
    ) -> SamplingOptions:
        """Return the options that the file recommends, but for those that somebody gave.

        A value that means nothing is ignored.

        Parameters
        ----------
        given : collection of str
            Options that are not looked at.
        warn : callable
            Called with a message, once in all for each value that is ignored.

        Returns
        -------
        SamplingOptions
            Those that it has.
        """
        found: dict[str, Any] = {}
        for key, option in _KEYS.items():
            value = self._metadata.get(key)
            if value is None or option.name in given:
                continue
            try:
                one: dict[str, Any] = {option.name: _value(option, value)}
                SamplingSettings(**one)
            except ValueError as error:
                if key not in self._told:
                    self._told.add(key)
                    warn(f"{self._path}: {key} = {reprlib.repr(value)} is ignored: {error}")
            else:
                found.update(one)
        options: SamplingOptions = {}
        options.update(found)  # type: ignore[typeddict-item]  # the names are its own
        return options


def _value(option: _Key, value: Any) -> float:
    """Return an option's value for the file's; ValueError for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError("it is no number")
    if option.whole:
        if not float(value).is_integer():
            raise ValueError("it is no whole number")
        value = int(value)
    return option.of_file(value)


class Recommending(Protocol):
    """A model whose file recommends settings."""

    @property
    def file_sampling(self) -> FileSampling:
        """What it recommends."""


def recommended(
    model: Recommending, given: Collection[str], warn: Callable[[str], object] | None = None
) -> dict[str, Any]:
    """Return what a model's file recommends of the options that are not given.

    Parameters
    ----------
    model : Recommending
        The model.
    given : collection of str
        The names of the options that the user gave; what the file says of them is not looked at.
    warn : callable, optional
        As of FileSampling.options(); left out, a warning is logged.

    Returns
    -------
    dict
        The options.
    """
    told = {} if warn is None else {"warn": warn}
    return dict(model.file_sampling.options(given, **told))
