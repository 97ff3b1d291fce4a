"""Messages about arguments of functions, in the words of the command line."""

from __future__ import annotations

import argparse
import re

__all__ = ["as_typed"]

# Arguments whose options have other names.
_OPTIONS = {"n_best": "logprobs", "batches": "batch"}
_NAMED = re.compile(r"(\w+)(?= = | of token )")


def as_typed(error: Exception, args: argparse.Namespace | None) -> str:
    """Return an error's message behind the option that was typed for what it begins with.

    Parameters
    ----------
    error : Exception
        Such as one of "n_best = 33 must lie in 0..32".
    args : Namespace, optional
        The options there are.

    Returns
    -------
    str
        Such as "--logprobs: n_best = 33 must lie in 0..32".
    """
    message = str(error)
    named = _NAMED.match(message)
    name = _OPTIONS.get(named[1], named[1]) if named is not None else ""
    return f"--{name.replace('_', '-')}: {message}" if hasattr(args, name) else message
