"""What a model is called: as its file says, unless that says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["shown_name"]

# Converters name a model after its folder where nobody gave a name: "Hf" in published files.
_FOLDERS: Final = frozenset({"", "hf", "model"})


def shown_name(metadata: Mapping[str, Any], path: str) -> str:
    """Return ``general.name``, or the file's own name where that is missing or a mere folder's.

    Parameters
    ----------
    metadata : mapping
        Of the file.
    path : str
        The file.

    Returns
    -------
    str
        The name, for people.
    """
    name = metadata.get("general.name")
    if isinstance(name, str) and name.strip().lower() not in _FOLDERS:
        return name
    return Path(path).stem
