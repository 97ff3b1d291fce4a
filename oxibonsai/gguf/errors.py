"""The one exception of the GGUF reader and writer."""

from __future__ import annotations

__all__ = ["GGUFError"]


class GGUFError(ValueError):
    """A file that this package cannot read, or values that it cannot write, as GGUF.

    The message names the file, what is wrong with it, the value and the limit.
    """
