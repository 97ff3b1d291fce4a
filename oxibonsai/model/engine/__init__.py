"""Many texts on one model: what joins, leaves and waits, and one thread that runs steps."""

from __future__ import annotations

from oxibonsai.model.engine.engine import MAX_SEQUENCES, Engine
from oxibonsai.model.engine.options import RequestOptions
from oxibonsai.model.engine.request import FinishReason, Request, RequestResult
from oxibonsai.model.engine.statistics import EngineStatistics

__all__ = [
    "MAX_SEQUENCES",
    "Engine",
    "EngineStatistics",
    "FinishReason",
    "Request",
    "RequestOptions",
    "RequestResult",
]
