from collections.abc import Iterable
from typing import Literal, SupportsIndex, TypeAlias

from typing_extensions import Self, disjoint_base

from oxibonsai.metal._buffer import Buffer
from oxibonsai.metal._core import Device, _Bytes
from oxibonsai.metal._pipeline import Pipeline
from oxibonsai.metal._weights import WeightHandle

_Binding: TypeAlias = Buffer | tuple[Buffer, SupportsIndex] | WeightHandle
_Extents: TypeAlias = SupportsIndex | Iterable[SupportsIndex]

@disjoint_base
class Commands:
    def __init__(
        self, device: Device, *, activations: Literal["float32", "int8"] = "float32"
    ) -> None: ...
    @property
    def device(self) -> Device: ...
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def __len__(self) -> int: ...
    def reset(self) -> None: ...
    def dispatch(
        self,
        pipeline: Pipeline,
        bindings: Iterable[_Binding],
        args: _Bytes = b"",
        *,
        threadgroups: _Extents,
        threads: _Extents = 1,
        threadgroup_memory: SupportsIndex = 0,
    ) -> None: ...
    def submit(self, times: SupportsIndex = 1) -> None: ...
    def wait(self, timeout: float | None = None, *, keep: SupportsIndex = 0) -> None: ...
    def replay(self, times: SupportsIndex = 1, timeout: float | None = None) -> None: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def device_time(self) -> float | None: ...
    def gemv(
        self,
        weight: WeightHandle,
        x: _Binding,
        y: _Binding,
        n_rows: SupportsIndex | None = None,
        k: SupportsIndex | None = None,
        *,
        residual: bool = False,
        n_vectors: SupportsIndex = 1,
        y_stride: SupportsIndex | None = None,
        norm: _Binding | None = None,
        eps: float = 1e-6,
    ) -> None: ...
    def gate_up_swiglu(
        self,
        weight: WeightHandle,
        x: _Binding,
        y: _Binding,
        n_rows: SupportsIndex | None = None,
        k: SupportsIndex | None = None,
        *,
        n_vectors: SupportsIndex = 1,
        norm: _Binding | None = None,
        eps: float = 1e-6,
    ) -> None: ...
    def feed_forward(
        self,
        attn: _Binding,
        hidden: _Binding,
        activated: _Binding,
        *,
        attn_proj: WeightHandle,
        norm: _Binding,
        gate_up: WeightHandle,
        down: WeightHandle,
        n_vectors: SupportsIndex = 1,
        eps: float = 1e-6,
    ) -> None: ...
    def rmsnorm(
        self,
        x: _Binding,
        weight: _Binding,
        y: _Binding,
        n: SupportsIndex,
        *,
        eps: float = 1e-6,
        n_vectors: SupportsIndex = 1,
    ) -> None: ...
    def add(self, x: _Binding, y: _Binding, n: SupportsIndex) -> None: ...
    def add_bias(
        self,
        bias: _Binding,
        y: _Binding,
        n: SupportsIndex,
        n_vectors: SupportsIndex = 1,
        *,
        y_stride: SupportsIndex | None = None,
    ) -> None: ...
    def embed(
        self,
        weight: WeightHandle,
        tokens: _Binding,
        state: _Binding,
        y: _Binding,
        n_rows: SupportsIndex | None = None,
        k: SupportsIndex | None = None,
        *,
        n_tokens: SupportsIndex = 1,
    ) -> None: ...
    def qk_norm_rope(
        self,
        qkv: _Binding,
        q_norm: _Binding | None,
        k_norm: _Binding | None,
        rope: _Binding,
        state: _Binding,
        *,
        eps: float = 1e-6,
        n_heads: SupportsIndex,
        n_kv_heads: SupportsIndex,
        head_dim: SupportsIndex,
        max_seq: SupportsIndex,
        layer: SupportsIndex,
        kv_dtype: Literal["f16", "f32"],
        n_tokens: SupportsIndex = 1,
        rotary_dim: SupportsIndex = 0,
        rope_style: Literal["neox", "interleaved"] = "neox",
    ) -> None: ...
    def kv_store(
        self,
        qkv: _Binding,
        k_cache: _Binding,
        v_cache: _Binding,
        state: _Binding,
        *,
        n_heads: SupportsIndex,
        n_kv_heads: SupportsIndex,
        head_dim: SupportsIndex,
        max_seq: SupportsIndex,
        layer: SupportsIndex,
        kv_dtype: Literal["f16", "f32"],
        n_tokens: SupportsIndex = 1,
    ) -> None: ...
    def qkv_to_cache(
        self,
        qkv: _Binding,
        q_norm: _Binding | None,
        k_norm: _Binding | None,
        rope: _Binding,
        k_cache: _Binding,
        v_cache: _Binding,
        state: _Binding,
        *,
        eps: float = 1e-6,
        n_heads: SupportsIndex,
        n_kv_heads: SupportsIndex,
        head_dim: SupportsIndex,
        max_seq: SupportsIndex,
        layer: SupportsIndex,
        kv_dtype: Literal["f16", "f32"],
        n_tokens: SupportsIndex = 1,
        rotary_dim: SupportsIndex = 0,
        rope_style: Literal["neox", "interleaved"] = "neox",
    ) -> None: ...
    def attention(
        self,
        qkv: _Binding,
        k_cache: _Binding,
        v_cache: _Binding,
        state: _Binding,
        out: _Binding,
        *,
        max_length: SupportsIndex | None = None,
        scale: float | None = None,
        n_heads: SupportsIndex,
        n_kv_heads: SupportsIndex,
        head_dim: SupportsIndex,
        max_seq: SupportsIndex,
        layer: SupportsIndex,
        kv_dtype: Literal["f16", "f32"],
        n_tokens: SupportsIndex = 1,
    ) -> None: ...
    def argmax(
        self, logits: _Binding, out: _Binding, n: SupportsIndex, *, n_vectors: SupportsIndex = 1
    ) -> None: ...
    def advance(
        self,
        logits: _Binding,
        tokens: _Binding,
        state: _Binding,
        n: SupportsIndex,
        max_tokens: SupportsIndex,
        *,
        n_tokens: SupportsIndex = 1,
        greedy: bool = True,
    ) -> None: ...
