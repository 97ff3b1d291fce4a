"""Load a model from a GGUF file and run it on any device.

Feed a prompt, then generate::

    model = Model.load("alice-q1_0.gguf", device="cpu")
    session = model.session()
    session.forward(model.tokenizer.encode("The Queen"))
    for token in session.generate(max_tokens=64): ...
"""

from __future__ import annotations

from oxibonsai.model.config import ModelConfig
from oxibonsai.model.engine import Engine, EngineStatistics, Request, RequestResult
from oxibonsai.model.errors import (
    EngineClosedError,
    EngineFullError,
    SessionFileError,
    SessionFullError,
)
from oxibonsai.model.generation.sampling import Sampler
from oxibonsai.model.generation.scoring import Perplexity, ScoredToken
from oxibonsai.model.model import Model
from oxibonsai.model.runtime.profile import Profile, Run
from oxibonsai.model.session import Session
from oxibonsai.model.tokenizer import Tokenizer

__all__ = [
    "Engine",
    "EngineClosedError",
    "EngineFullError",
    "EngineStatistics",
    "Model",
    "ModelConfig",
    "Perplexity",
    "Profile",
    "Request",
    "RequestResult",
    "Run",
    "Sampler",
    "ScoredToken",
    "Session",
    "SessionFileError",
    "SessionFullError",
    "Tokenizer",
]
