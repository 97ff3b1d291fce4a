"""The one exception of the GGUF reader and writer."""

from __future__ import annotations

__all__ = ["GGUFError"]


class GGUFError(ValueError):
    """Report a file that is not a GGUF this package can read or write.

    The message holds the file's name, the thing that is wrong, its value and the limit.
    """
