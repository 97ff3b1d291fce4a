"""The settings of sampling that a GGUF file recommends, in ``general.sampling.*``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from oxibonsai.gguf import GGUFError
from oxibonsai.model.generation.settings import SamplingOptions, SamplingSettings

__all__ = ["NAMES", "Recommending", "file_options", "recommended"]


class _Key(NamedTuple):
    """An option of SamplingSettings, and how the file's value becomes its own."""

    name: str
    of_file: Callable[[float], float]
    whole: bool = False


def _decimal(value: float) -> float:
    """Return the shortest number that a float32 stands for: 0.7, not 0.699999988."""
    return float(f"{value:.7g}")


# Files say 0 or less where a filter is off, and for a greedy choice.
_KEYS = {
    "general.sampling.temp": _Key("temperature", lambda x: max(0.0, _decimal(x))),
    "general.sampling.top_k": _Key("top_k", lambda x: max(0, x), whole=True),
    "general.sampling.top_p": _Key("top_p", _decimal),
    "general.sampling.min_p": _Key("min_p", _decimal),
    "general.sampling.penalty_repeat": _Key("repetition_penalty", _decimal),
    "general.sampling.penalty_last_n": _Key("penalty_window", lambda x: x, whole=True),
}

NAMES = tuple(key.name for key in _KEYS.values())
"""The options that a file may recommend."""


def file_options(metadata: Mapping[str, Any], path: str) -> SamplingOptions:
    """Return the options that a file recommends.

    Parameters
    ----------
    metadata : mapping
        Of the file.
    path : str
        The file, for messages.

    Returns
    -------
    SamplingOptions
        Those that it has.

    Raises
    ------
    GGUFError
        For a value that is no number or out of its range.
    """
    found: SamplingOptions = {}
    for key, (name, of_file, whole) in _KEYS.items():
        value = metadata.get(key)
        if value is None:
            continue
        try:
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ValueError(f"is no {'whole ' if whole else ''}number")
            if math.isnan(value):
                raise ValueError("is no number")
            one: dict[str, Any] = {name: of_file(value)}
            SamplingSettings(**one)
        except ValueError as error:
            raise GGUFError(
                f"{path}: {key} = {value!r}: {error}. Correct the file, or give all of "
                f"{', '.join(NAMES)} yourself"
            ) from None
        found.update(one)  # type: ignore[typeddict-item]  # the names are its own
    return found


class Recommending(Protocol):
    """A model whose file recommends settings."""

    @property
    def sampling_defaults(self) -> SamplingOptions:
        """What it recommends."""


def recommended(model: Recommending, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model's file recommends of the options that are not given.

    Raises
    ------
    GGUFError
        As of file_options(), where anything is left to the file.
    """
    if all(name in given for name in NAMES):
        return {}
    return {name: v for name, v in model.sampling_defaults.items() if name not in given}
