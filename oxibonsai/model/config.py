"""The shape of a model, from the metadata of its file."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields, replace

import numpy as np

from oxibonsai.gguf import GGUFError, GGUFFile
from oxibonsai.model.rope import RopeScaling
from oxibonsai.model.rotation import Rotations, read_rotations

__all__ = ["MetadataReader", "ModelConfig", "RecurrentShape", "architecture_name"]

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
    "rope.dimension_count": 512,
    "full_attention_interval": 4096,
    "nextn_predict_layers": 4096,
    "ssm.conv_kernel": 8,
    "ssm.state_size": 256,
    "ssm.group_count": 4096,
    "ssm.time_step_rank": 4096,
    "ssm.inner_size": 1 << 20,
}

# What gives finite results in float32, far beyond any published model.
_RANGES = {
    "attention.layer_norm_rms_epsilon": (1e-30, 1.0),
    "rope.freq_base": (1e-2, 1e30),
    "rope.scaling.factor": (1e-3, 1e6),
    "rope.scale_linear": (1e-3, 1e6),
    # They multiply the keys, which a cache may hold as halves.
    "rope.scaling.attn_factor": (1e-2, 1e2),
    "rope.scaling.yarn_attn_factor": (1e-2, 1e2),
    "rope.scaling.yarn_beta_fast": (1e-3, 1e6),
    "rope.scaling.yarn_beta_slow": (1e-3, 1e6),
}

# YaRN divides by the base's logarithm.
_MIN_YARN_BASE = 1.001

# Keys under rope.scaling whose meaning is known, and of others the values that change nothing.
_SCALING_KEYS = {"type", "factor", "attn_factor", "original_context_length", "finetuned"}
_YARN_KEYS = {"yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"}
_NEUTRAL = {"yarn_ext_factor": (1, -1), "yarn_log_multiplier": (0,), "alpha": (0,)}


@dataclass(frozen=True)
class RecurrentShape:
    """The shape of a layer of Gated DeltaNet, and of the state that it keeps of a text.

    Attributes
    ----------
    n_key_heads, n_value_heads : int
        Heads of queries and keys, and of values; value head h reads key head h % n_key_heads.
    key_dim, value_dim : int
        The width of each.
    conv_width : int
        Tokens that the convolution sees, its own included.
    """

    n_key_heads: int
    n_value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int

    @property
    def value_size(self) -> int:
        """Width of all value heads."""
        return self.n_value_heads * self.value_dim

    @property
    def conv_channels(self) -> int:
        """Width of queries, keys and values, which go through the convolution."""
        return 2 * self.n_key_heads * self.key_dim + self.value_size

    @property
    def conv_size(self) -> int:
        """Elements of a layer's state that are the convolution's last inputs."""
        return (self.conv_width - 1) * self.conv_channels

    @property
    def layer_size(self) -> int:
        """Elements of a layer's state: the convolution's inputs, then the heads' matrices."""
        return self.conv_size + self.n_value_heads * self.key_dim * self.value_dim

    def slot_size(self, n_layers: int) -> int:
        """Elements of the state of n_layers."""
        return n_layers * self.layer_size


@dataclass(frozen=True, repr=False)
class ModelConfig:
    """The shape of a decoder: GQA attention with RoPE, RMSNorm, SwiGLU.

    Some of its layers may be recurrent: they keep a state of one size instead of keys and values.

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
    rope_dim : int or None
        Elements of a head that RoPE turns, the first ones; None: all.
    attention_layers : tuple of bool
        Which layers have attention, and so keys and values; empty: all.
    recurrent : RecurrentShape or None
        The shape of the others.
    n_skipped_layers : int
        Layers that the file has behind those of the model and that do not run: a drafter's.
    rotations : Rotations or None
        How the inputs of matrices are rotated; None where they are not.
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
    rope_dim: int | None = None
    attention_layers: tuple[bool, ...] = ()
    recurrent: RecurrentShape | None = None
    n_skipped_layers: int = 0
    rotations: Rotations | None = None

    def __repr__(self) -> str:
        # Fingerprints hash it: what a dense model does not have must not change theirs.
        shown = (
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.default is MISSING or getattr(self, f.name) != f.default
        )
        return f"ModelConfig({', '.join(shown)})"

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.n_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection of Q, K and V."""
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim

    @property
    def rotary_dim(self) -> int:
        """Elements of a head that RoPE turns."""
        return self.head_dim if self.rope_dim is None else self.rope_dim

    def is_attention(self, layer: int) -> bool:
        """Whether a layer has attention; it is recurrent otherwise.

        Parameters
        ----------
        layer : int
            Among all layers.

        Returns
        -------
        bool
            Whether it has.
        """
        return not self.attention_layers or self.attention_layers[layer]

    def ordinal(self, layer: int) -> int:
        """Return how many layers of its kind come before a layer: its place in cache or state.

        Parameters
        ----------
        layer : int
            Among all layers.

        Returns
        -------
        int
            Their number.
        """
        kind = self.is_attention(layer)
        return sum(self.is_attention(i) == kind for i in range(layer))

    @property
    def n_attention_layers(self) -> int:
        """Layers with keys and values."""
        return sum(self.attention_layers) if self.attention_layers else self.n_layers

    @property
    def n_recurrent_layers(self) -> int:
        """Layers with a recurrent state."""
        return self.n_layers - self.n_attention_layers

    @property
    def slot_size(self) -> int:
        """Elements of the recurrent state of a text, 0 of a model without one."""
        return 0 if self.recurrent is None else self.recurrent.slot_size(self.n_recurrent_layers)

    @classmethod
    def from_gguf(cls, file: GGUFFile, *, partial_rope: bool = False) -> ModelConfig:
        """Read the shape from the keys that GGUF names alike in every architecture.

        Each key begins with the file's ``general.architecture``. What one architecture asks beyond
        them, its own file in ``oxibonsai.model.architectures`` checks.

        Parameters
        ----------
        file : GGUFFile
            The open file.
        partial_rope : bool
            Whether the architecture turns the first ``rope.dimension_count`` elements of a head,
            which the file has to name then; otherwise it is all of them.

        Returns
        -------
        ModelConfig
            The shape, with as many layers as the file counts.

        Raises
        ------
        GGUFError
            For a missing or absurd value.
        """
        name = architecture_name(file)
        embedding = file.tensors.get("token_embd.weight")
        if embedding is None:
            raise GGUFError(f"{file.path}: tensor 'token_embd.weight' is missing")
        if len(embedding.shape) < 2 or math.prod(embedding.shape[:-2]) != 1:
            raise GGUFError(
                f"{file.path}: tensor 'token_embd.weight' has shape {embedding.shape}; a matrix is "
                "needed"
            )
        read = MetadataReader(file, name)
        n_layers = read.integer("block_count")
        n_heads = read.per_layer("attention.head_count", n_layers)
        hidden = read.integer("embedding_length")
        context = read.integer("context_length")
        theta = read.number("rope.freq_base", 10000.0)
        config = cls(
            n_layers=n_layers,
            hidden_size=hidden,
            intermediate_size=read.per_layer("feed_forward_length", n_layers),
            n_heads=n_heads,
            n_kv_heads=read.per_layer("attention.head_count_kv", n_layers, n_heads),
            head_dim=read.integer("attention.key_length", max(hidden // n_heads, 1)),
            vocab_size=embedding.shape[-2],
            context_length=context,
            rope_theta=theta,
            rms_eps=read.number("attention.layer_norm_rms_epsilon"),
            rope_scaling=_rope_scaling(read, context, theta),
            rotations=read_rotations(file),
        )
        if config.n_heads % config.n_kv_heads:
            raise GGUFError(
                f"{file.path}: {config.n_heads} query heads do not divide among "
                f"{config.n_kv_heads} key-value heads"
            )
        if config.head_dim % 2:
            raise GGUFError(f"{file.path}: head_dim = {config.head_dim} is odd: RoPE turns pairs")
        keys = ["attention.value_length"]
        if partial_rope:
            rope_dim = read.integer("rope.dimension_count")
            if rope_dim % 2 or rope_dim > config.head_dim:
                raise GGUFError(
                    f"{file.path}: {name}.rope.dimension_count = {rope_dim} must be even and no "
                    f"more than the head_dim, {config.head_dim}"
                )
            config = replace(config, rope_dim=rope_dim)
        else:
            keys.append("rope.dimension_count")
        for key in keys:
            value = file.metadata.get(f"{name}.{key}", config.head_dim)
            if not isinstance(value, int) or value != config.head_dim:
                raise GGUFError(
                    f"{file.path}: {name}.{key} is {value}; only the head_dim, "
                    f"{config.head_dim}, is supported"
                )
        if file.metadata.get(f"{name}.attention.causal", True) is not True:
            raise GGUFError(
                f"{file.path}: {name}.attention.causal is "
                f"{file.metadata[f'{name}.attention.causal']!r}; only causal attention is built: "
                "run models of embeddings with llama.cpp"
            )
        return config


def architecture_name(file: GGUFFile) -> str:
    """Return ``general.architecture`` of a file; GGUFError where it is missing or no text."""
    found = file.metadata.get("general.architecture")
    if not isinstance(found, str):
        raise GGUFError(f"{file.path}: general.architecture is {found!r}; a name is needed")
    return found


@dataclass(frozen=True)
class MetadataReader:
    """Reads the numbers of an architecture's metadata, each within its limits.

    Attributes
    ----------
    file : GGUFFile
        The file.
    architecture : str
        What the keys begin with.
    """

    file: GGUFFile
    architecture: str

    def per_layer(self, key: str, n_layers: int, default: int | None = None) -> int:
        """Read an integer, or an array that gives each layer the same one."""
        name = f"{self.architecture}.{key}"
        value = self._value(name, default)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            if len(value) != n_layers:
                raise GGUFError(
                    f"{self.file.path}: {name} is an array of {len(value)} integers; one for each "
                    f"of {n_layers} layers is needed"
                )
            if (value != value[0]).any():
                raise GGUFError(
                    f"{self.file.path}: {name} differs between layers ({value.min()} to "
                    f"{value.max()}); layers of one shape are supported"
                )
            value = int(value[0])
        return self._checked(key, value)

    def integer(self, key: str, default: int | None = None, *, low: int = 1) -> int:
        """Read an integer, one of `_LIMITS`; without a default the file must have it."""
        return self._checked(key, self._value(f"{self.architecture}.{key}", default), low)

    def _checked(self, key: str, value: object, low: int = 1) -> int:
        name = f"{self.architecture}.{key}"
        if isinstance(value, bool) or not isinstance(value, int):
            raise GGUFError(f"{self.file.path}: {name} is {value!r}; an integer is needed")
        if not low <= value <= _LIMITS[key]:
            limits = f"{low}..{_LIMITS[key]}"
            raise GGUFError(f"{self.file.path}: {name} = {value} must lie in {limits}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Read a number, one of `_RANGES`; without a default the file must have it."""
        name = f"{self.architecture}.{key}"
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise GGUFError(f"{self.file.path}: {name} is {value!r}; a number is needed")
        low, high = _RANGES[key]
        if not low <= value <= high:
            if not (math.isfinite(value) and value > 0):
                raise GGUFError(f"{self.file.path}: {name} = {value} must be finite and above 0")
            raise GGUFError(f"{self.file.path}: {name} = {value} must lie in {low:g}..{high:g}")
        return float(value)

    def _value(self, name: str, default: float | None) -> object:
        value = self.file.metadata.get(name, default)
        if value is None:
            raise GGUFError(f"{self.file.path}: metadata {name!r} is missing")
        return value


def _rope_scaling(read: MetadataReader, context: int, theta: float) -> RopeScaling:
    """Read the RoPE scaling; GGUFError by name for one that would not be applied as meant.

    The keys are llama.cpp's, with its meaning where a key is missing or 0: a factor without a type
    scales linearly. ``attn_factor`` multiplies what the type gives; ``yarn_attn_factor``, which
    converters take from the ``attention_factor`` of Hugging Face's configurations, stands in the
    place of YaRN's own 0.1 ln(factor) + 1.
    """
    file, architecture = read.file, read.architecture
    prefix = f"{architecture}.rope.scaling."
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
    attention_factor = read.number("rope.scaling.attn_factor", 1.0)
    key = "rope.scaling.factor"
    if f"{architecture}.{key}" not in file.metadata:
        key = "rope.scale_linear"  # the older name
    given = file.metadata.get(f"{architecture}.{key}")
    factor = 1.0 if isinstance(given, (int, float)) and given == 0 else read.number(key, 1.0)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return RopeScaling(attention_factor=attention_factor)
    if kind == "linear":
        return RopeScaling("linear", factor, attention_factor)
    if theta < _MIN_YARN_BASE:
        raise GGUFError(
            f"{file.path}: {architecture}.rope.freq_base = {theta} must be above 1 for YaRN, at "
            f"least {_MIN_YARN_BASE}"
        )
    fast = read.number("rope.scaling.yarn_beta_fast", 32.0)
    slow = read.number("rope.scaling.yarn_beta_slow", 1.0)
    if fast < slow:
        raise GGUFError(
            f"{file.path}: {prefix}yarn_beta_fast = {fast} is below yarn_beta_slow = {slow}"
        )
    own = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return RopeScaling(
        "yarn",
        factor,
        attention_factor * read.number("rope.scaling.yarn_attn_factor", own),
        read.integer("rope.scaling.original_context_length", context),
        fast,
        slow,
    )
