from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal, SupportsIndex, TypeAlias

from typing_extensions import Self, disjoint_base

from oxibonsai.formats import Format
from oxibonsai.metal._buffer import Buffer
from oxibonsai.metal._commands import Commands
from oxibonsai.metal._core import Device, _Bytes, _Floats
from oxibonsai.metal._weights import WeightCache, WeightHandle
from oxibonsai.quant import QTensor

_Matrix: TypeAlias = QTensor | _Bytes
_Shape: TypeAlias = Sequence[SupportsIndex]

@disjoint_base
class MetalGraph:
    def __init__(
        self, device: Device | str | None = None, *, timeout: float | None = None
    ) -> None: ...
    @staticmethod
    def shared() -> MetalGraph: ...
    @property
    def device(self) -> Device: ...
    @property
    def weights(self) -> WeightCache: ...
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def commands(self, *, activations: Literal["float32", "int8"] = "float32") -> Commands: ...
    def upload_weight(self, data: _Matrix) -> WeightHandle: ...
    def upload_weight_soa(
        self, data: _Matrix, format: str | Format | None = None, shape: _Shape | None = None
    ) -> WeightHandle: ...
    def upload_q1_weight_soa(self, data: _Matrix, shape: _Shape | None = None) -> WeightHandle: ...
    def upload_tq2_weight_soa(self, data: _Matrix, shape: _Shape | None = None) -> WeightHandle: ...
    def upload_f32_weight(self, data: _Floats) -> WeightHandle: ...
    def get_or_upload_weight(self, key: SupportsIndex, data: _Matrix) -> WeightHandle: ...
    def get_or_upload_weight_lazy(
        self, key: SupportsIndex, produce: Callable[[], _Matrix]
    ) -> WeightHandle: ...
    def get_or_upload_q1_weight_soa(
        self, key: SupportsIndex, data: _Matrix, shape: _Shape | None = None
    ) -> WeightHandle: ...
    def get_or_upload_q1_weight_soa_lazy(
        self, key: SupportsIndex, produce: Callable[[], _Matrix], shape: _Shape | None = None
    ) -> WeightHandle: ...
    def get_or_upload_tq2_weight_soa(
        self, key: SupportsIndex, data: _Matrix, shape: _Shape | None = None
    ) -> WeightHandle: ...
    def get_or_upload_tq2_weight_soa_lazy(
        self, key: SupportsIndex, produce: Callable[[], _Matrix], shape: _Shape | None = None
    ) -> WeightHandle: ...
    def get_or_upload_f32_weight(self, key: SupportsIndex, data: _Floats) -> WeightHandle: ...
    def acquire_buffers(
        self, hidden: SupportsIndex, inter: SupportsIndex, attn: SupportsIndex | None = None
    ) -> AbstractContextManager[list[Buffer]]: ...
    def encode_gemv(
        self,
        weight: WeightHandle,
        input: _Floats,
        output: _Floats,
        n_rows: SupportsIndex | None = None,
        k: SupportsIndex | None = None,
    ) -> None: ...
    def encode_gemv_tq2(
        self,
        weight: WeightHandle,
        input: _Floats,
        output: _Floats,
        n_rows: SupportsIndex | None = None,
        k: SupportsIndex | None = None,
    ) -> None: ...
    def encode_qkv_phase(
        self,
        input: _Floats,
        output: _Floats,
        weight: WeightHandle,
        n_rows: SupportsIndex | None = None,
        k: SupportsIndex | None = None,
    ) -> None: ...
    def encode_ffn_phase(
        self,
        hidden: _Floats,
        attn_out: _Floats,
        norm_weight: WeightHandle | _Floats,
        attn_proj: WeightHandle,
        gate_up: WeightHandle,
        down: WeightHandle,
        hidden_size: SupportsIndex | None = None,
        intermediate_size: SupportsIndex | None = None,
        eps: float = 1e-6,
    ) -> None: ...
