"""What a request to an engine may ask for."""

from __future__ import annotations

from typing import Final

from oxibonsai.model.generation.generation import LogitsCallback
from oxibonsai.model.generation.settings import Allowed, AllowedCallback, SamplingOptions
from oxibonsai.model.generation.stopping import Stop

__all__ = ["OPTIONS", "RequestOptions"]


class RequestOptions(SamplingOptions, total=False):
    """Arguments of Engine.submit but the first three."""

    stop: Stop
    ignore_eos: bool
    priority: int
    allowed: Allowed | AllowedCallback | None
    logits_callback: LogitsCallback | None
    log_probabilities: bool
    n_best: int


OPTIONS: Final = (
    *("prompt", "max_tokens", "block", "timeout"),
    *sorted(RequestOptions.__optional_keys__),
)
"""Names of the arguments of Engine's methods, for errors about others."""
