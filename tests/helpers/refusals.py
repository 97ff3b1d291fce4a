"""What a test expects of an argument that is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest


def shown(value: object) -> str:
    """Return a name for a test that is the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:60]


def refused(call: Callable[..., Any], name: str, value: Any, error: type[Exception]) -> None:
    """Expect the error of an argument at the call, not of what the call returns."""
    with pytest.raises(error, match=rf"\b{name}\b") as caught:
        call(**{name: value})
    assert type(caught.value) is error
    assert len(str(caught.value)) < 300
    if error is TypeError and value is not None and not isinstance(value, (list, dict)):
        assert re.search(rf"{name} = .* is a {type(value).__name__}\b", str(caught.value))
