"""The splits of text into words, by the names that files give them in ``tokenizer.ggml.pre``."""

from __future__ import annotations

from typing import Final

__all__ = ["DEFAULT", "SPLITS"]

DEFAULT: Final = "default"
"""The split of a file that names none, as in llama.cpp."""

_QWEN2: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# As _QWEN2, but combining marks belong to words: vowel signs of Indic scripts, and accents.
_QWEN35: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_OLD: Final = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
# Names that llama.cpp gives to one and the same split (src/llama-vocab.cpp).
_NAMES: Final = (
    "qwen2",
    "deepseek-r1-qwen",
    "megrez",
    "kormo",
    "f2llmv2",
    "stablelm2",
    "hunyuan",
    "solar-open",
    "grok-2",
)
SPLITS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(_NAMES, _QWEN2),
    "qwen35": _QWEN35,
    DEFAULT: _OLD,
}
"""The patterns of each split. Each one cuts what those before it left into matches and the rest."""
