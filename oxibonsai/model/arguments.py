"""What arguments must be, said once: of the right type, or a TypeError that names it.

A bool is no number: where one comes instead, an argument was most likely given in the wrong place.
"""

from __future__ import annotations

import numbers
import operator
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

__all__ = [
    "check_names",
    "check_stops",
    "flag",
    "function",
    "integer",
    "integer_in",
    "max_tokens_of",
    "number",
    "one_of",
    "sequence_of_ids",
    "token_ids",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def integer(name: str, value: Any) -> int:
    """Return an integer, of Python or of NumPy.

    Parameters
    ----------
    name : str
        The argument.
    value : int
        What was given for it.

    Returns
    -------
    int
        The value.

    Raises
    ------
    TypeError
        For anything else, a bool included.
    """
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise _no("integer", name, value)


def integer_in(name: str, value: Any, low: int, high: int, limit: str = "") -> int:
    """Return an integer in a range, both ends included.

    Parameters
    ----------
    name : str
        The argument.
    value : int
        What was given for it.
    low, high : int
        The range.
    limit : str
        What sets it, for the message.

    Returns
    -------
    int
        The value.

    Raises
    ------
    TypeError
        As of integer().
    ValueError
        Outside the range.
    """
    found = integer(name, value)
    if not low <= found <= high:
        raise ValueError(
            f"{name} = {found} must lie in {low}..{high}{', ' + limit if limit else ''}"
        )
    return found


def max_tokens_of(value: Any, low: int = 0) -> int:
    """Return max_tokens, at least `low`; TypeError or ValueError as of integer_in()."""
    found = integer("max_tokens", value)
    if found < low:
        raise ValueError(f"max_tokens = {found} must be {low} or more")
    return found


def number(name: str, value: Any) -> Any:
    """Return a real number as it came, of Python or of NumPy.

    Parameters
    ----------
    name : str
        The argument.
    value : float
        What was given for it.

    Returns
    -------
    float
        The value; float() of it raises nothing.

    Raises
    ------
    TypeError
        For anything else, a bool included.
    ValueError
        For an integer that no float is as large as.
    """
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        try:
            float(value)
        except OverflowError:
            raise ValueError(f"{name} = {reprlib.repr(value)} must be finite") from None
        return value
    raise _no("number", name, value)


def flag(name: str, value: Any) -> bool:
    """Return a bool, of Python or of NumPy; TypeError for anything else."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise _no("bool", name, value)


def function(name: str, value: _Function | None) -> _Function | None:
    """Return what can be called, or None; TypeError for anything else."""
    if value is None or callable(value):
        return value
    raise _no("function", name, value)


def sequence_of_ids(name: str, ids: Iterable[int]) -> list[int]:
    """Return the integers of an iterable; TypeError for anything else, bools and texts included."""
    scalar = isinstance(ids, np.ndarray) and ids.ndim == 0
    other = isinstance(ids, (str, bytes, bytearray, Mapping))
    if scalar or other or not isinstance(ids, Iterable):
        raise TypeError(
            f"{name} = {reprlib.repr(ids)} is a {type(ids).__name__}, not a list of ids"
        )
    # An array of NumPy's has numbers of Python's by this, which are much faster to look at.
    given = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    # operator.index() is fast, and takes bools.
    if bool not in set(map(type, given)):
        try:
            return [operator.index(token) for token in given]
        except TypeError:
            pass
    return [integer(f"{name}[{at}]", token) for at, token in enumerate(given)]


def one_of(name: str, value: Any, known: Sequence[str], *, none: bool = False) -> None:
    """Check that a value is one of several words.

    Parameters
    ----------
    name : str
        The argument.
    value : str
        What was given for it.
    known : sequence of str
        The words, at least two.
    none : bool
        Whether it may be None as well.

    Raises
    ------
    ValueError
        For anything else.
    """
    if none and value is None:
        return
    words = [*map(repr, known), *(["None"] if none else [])]
    choices = f"{', '.join(words[:-1])} or {words[-1]}"
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} = {reprlib.repr(value)}: {choices}")


def check_names(given: Iterable[str], known: Sequence[str], what: str) -> None:
    """Check the names of options.

    Parameters
    ----------
    given : iterable of str
        The names.
    known : sequence of str
        Those that there are.
    what : str
        What they are options of, for the message.

    Raises
    ------
    TypeError
        For a name that there is not; it lists those that there are.
    """
    for name in given:
        if name not in known:
            raise TypeError(f"{name!r} is no option of {what}; there are {', '.join(known)}")


def check_stops(lists: Iterable[Iterable[int]], n_vocab: int) -> None:
    """Raise ValueError for a token of a stop sequence that is outside the vocabulary."""
    for tokens in lists:
        for token in tokens:
            if not 0 <= token < n_vocab:
                raise ValueError(
                    f"stop: token {token} is outside the vocabulary: ids are 0 to {n_vocab - 1}"
                )


def token_ids(name: str, ids: Iterable[int], n_vocab: int) -> list[int]:
    """Return tokens of a vocabulary.

    Parameters
    ----------
    name : str
        The argument.
    ids : iterable of int
        What was given for it.
    n_vocab : int
        Tokens of the vocabulary.

    Returns
    -------
    list of int
        The tokens.

    Raises
    ------
    TypeError
        Where they are no integers.
    ValueError
        For one outside the vocabulary.
    """
    found = sequence_of_ids(name, ids)
    for at, token in enumerate(found):
        if not 0 <= token < n_vocab:
            raise ValueError(
                f"token {token} at {at} is outside the vocabulary: ids are 0 to {n_vocab - 1}"
            )
    return found


def _no(kind: str, name: str, value: Any) -> TypeError:
    article = "an" if kind == "integer" else "a"
    return TypeError(
        f"{name} = {reprlib.repr(value)} is a {type(value).__name__}, not {article} {kind}"
    )
