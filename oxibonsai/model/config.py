"""The shape of a model, from the metadata of its file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from oxibonsai.gguf import GGUFError, GGUFFile
from oxibonsai.model.rope import RopeScaling

__all__ = ["ModelConfig"]

ARCHITECTURE = "qwen3"

# What the decode step's kernels and 32-bit sizes allow, far above any published model.
_LIMITS = {
    "block_count": 4096,
    "context_length": 1 << 24,
    "embedding_length": 1 << 24,
    "feed_forward_length": 1 << 24,
    "attention.head_count": 4096,
    "attention.head_count_kv": 4096,
    "attention.key_length": 512,
    "rope.scaling.original_context_length": 1 << 24,
}

# Keys under rope.scaling whose meaning is known, and of others the values that change nothing.
_SCALING_KEYS = {"type", "factor", "attn_factor", "original_context_length", "finetuned"}
_YARN_KEYS = {"yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"}
_NEUTRAL = {"yarn_ext_factor": (1, -1), "yarn_log_multiplier": (0,), "alpha": (0,)}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a qwen3 model.

    Attributes
    ----------
    n_layers, hidden_size, intermediate_size : int
        Layers, width of the residual stream, width inside the FFN.
    n_heads, n_kv_heads, head_dim : int
        Query heads, key-value heads (GQA) and the width of each.
    vocab_size : int
        Rows of the embedding.
    context_length : int
        Positions the model was made for, RoPE scaling included.
    rope_theta : float
        Base of the rotary frequencies.
    rms_eps : float
        Added to the mean square in RMSNorm.
    rope_scaling : RopeScaling
        How the rotary frequencies are changed for a long context.
    """

    n_layers: int
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rope_theta: float
    rms_eps: float
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.n_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection of Q, K and V."""
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> ModelConfig:
        """Read the shape; GGUFError for another architecture, or a missing or absurd value."""
        found = file.metadata.get("general.architecture")
        if found != ARCHITECTURE:
            raise GGUFError(
                f"{file.path}: general.architecture is {found!r}; only {ARCHITECTURE!r} is "
                "supported"
            )
        embedding = file.tensors.get("token_embd.weight")
        if embedding is None:
            raise GGUFError(f"{file.path}: tensor 'token_embd.weight' is missing")
        if len(embedding.shape) != 2:
            raise GGUFError(
                f"{file.path}: tensor 'token_embd.weight' has shape {embedding.shape}; a matrix is "
                "needed"
            )
        n_heads = _integer(file, "attention.head_count")
        hidden = _integer(file, "embedding_length")
        context = _integer(file, "context_length")
        theta = _number(file, "rope.freq_base", 10000.0)
        config = cls(
            n_layers=_integer(file, "block_count"),
            hidden_size=hidden,
            intermediate_size=_integer(file, "feed_forward_length"),
            n_heads=n_heads,
            n_kv_heads=_integer(file, "attention.head_count_kv", n_heads),
            head_dim=_integer(file, "attention.key_length", max(hidden // n_heads, 1)),
            vocab_size=embedding.shape[0],
            context_length=context,
            rope_theta=theta,
            rms_eps=_number(file, "attention.layer_norm_rms_epsilon"),
            rope_scaling=_rope_scaling(file, context, theta),
        )
        config._check(file)
        return config

    def _check(self, file: GGUFFile) -> None:
        if self.n_heads % self.n_kv_heads:
            raise GGUFError(
                f"{file.path}: {self.n_heads} query heads do not divide among {self.n_kv_heads} "
                "key-value heads"
            )
        if self.head_dim % 2:
            raise GGUFError(f"{file.path}: head_dim = {self.head_dim} is odd: RoPE turns halves")
        for key in ("attention.value_length", "rope.dimension_count"):
            value = file.metadata.get(f"{ARCHITECTURE}.{key}", self.head_dim)
            if not isinstance(value, int) or value != self.head_dim:
                raise GGUFError(
                    f"{file.path}: {ARCHITECTURE}.{key} is {value}; only the head_dim, "
                    f"{self.head_dim}, is supported"
                )


def _rope_scaling(file: GGUFFile, context: int, theta: float) -> RopeScaling:
    """Read the RoPE scaling; GGUFError by name for one that would not be applied as meant.

    The keys are llama.cpp's, with its meaning where a key is missing or 0: a factor without a type
    scales linearly. ``attn_factor`` multiplies what the type gives; ``yarn_attn_factor``, which
    converters take from the ``attention_factor`` of Hugging Face's configurations, stands in the
    place of YaRN's own 0.1 ln(factor) + 1.
    """
    prefix = f"{ARCHITECTURE}.rope.scaling."
    kind = file.metadata.get(prefix + "type", "linear")
    if not isinstance(kind, str) or kind not in ("none", "linear", "yarn"):
        raise GGUFError(
            f"{file.path}: {prefix}type is {kind!r}; 'none', 'linear' and 'yarn' are supported"
        )
    known = _SCALING_KEYS | _YARN_KEYS if kind == "yarn" else _SCALING_KEYS
    for name, value in file.metadata.items():
        key = name.removeprefix(prefix)
        if key == name or key in known:
            continue
        if not (isinstance(value, (int, float)) and value in _NEUTRAL.get(key, ())):
            raise GGUFError(
                f"{file.path}: RoPE scaling of type {kind!r} with {name} = {value!r} is not "
                "supported"
            )
    attention_factor = _number(file, "rope.scaling.attn_factor", 1.0)
    key = "rope.scaling.factor"
    if f"{ARCHITECTURE}.{key}" not in file.metadata:
        key = "rope.scale_linear"  # the older name
    given = file.metadata.get(f"{ARCHITECTURE}.{key}")
    factor = 1.0 if isinstance(given, (int, float)) and given == 0 else _number(file, key, 1.0)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return RopeScaling(attention_factor=attention_factor)
    if kind == "linear":
        return RopeScaling("linear", factor, attention_factor)
    if theta <= 1:
        raise GGUFError(
            f"{file.path}: {ARCHITECTURE}.rope.freq_base = {theta} must be above 1 for YaRN"
        )
    fast = _number(file, "rope.scaling.yarn_beta_fast", 32.0)
    slow = _number(file, "rope.scaling.yarn_beta_slow", 1.0)
    if fast < slow:
        raise GGUFError(
            f"{file.path}: {prefix}yarn_beta_fast = {fast} is below yarn_beta_slow = {slow}"
        )
    own = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return RopeScaling(
        "yarn",
        factor,
        attention_factor * _number(file, "rope.scaling.yarn_attn_factor", own),
        _integer(file, "rope.scaling.original_context_length", context),
        fast,
        slow,
    )


def _integer(file: GGUFFile, key: str, default: int | None = None) -> int:
    name = f"{ARCHITECTURE}.{key}"
    value = file.metadata.get(name, default)
    if value is None:
        raise GGUFError(f"{file.path}: metadata {name!r} is missing")
    if isinstance(value, bool) or not isinstance(value, int):
        raise GGUFError(f"{file.path}: {name} is {value!r}; an integer is needed")
    if not 1 <= value <= _LIMITS[key]:
        raise GGUFError(f"{file.path}: {name} = {value} must lie in 1..{_LIMITS[key]}")
    return value


def _number(file: GGUFFile, key: str, default: float | None = None) -> float:
    name = f"{ARCHITECTURE}.{key}"
    value = file.metadata.get(name, default)
    if value is None:
        raise GGUFError(f"{file.path}: metadata {name!r} is missing")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise GGUFError(f"{file.path}: {name} is {value!r}; a number is needed")
    if not (math.isfinite(value) and value > 0):
        raise GGUFError(f"{file.path}: {name} = {value} must be finite and above 0")
    return float(value)
