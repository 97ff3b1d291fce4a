"""What is generated: sampling, stopping, streaming, scoring."""

from __future__ import annotations

from oxibonsai.model.generation.generation import Generation, GenerationOptions, LogitsCallback

__all__ = ["Generation", "GenerationOptions", "LogitsCallback"]
