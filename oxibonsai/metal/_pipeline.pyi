from typing import Literal, NamedTuple

from typing_extensions import disjoint_base

from oxibonsai.metal._core import Device, _Constants

@disjoint_base
class Library:
    def __init__(self, device: Device, source: str) -> None: ...
    @property
    def device(self) -> Device: ...
    def close(self) -> None: ...
    def pipeline(self, function: str, *, constants: _Constants | None = None) -> Pipeline: ...

class PipelineInfo(NamedTuple):
    max_threads: int
    simd_width: int
    static_threadgroup_memory: int

class Argument(NamedTuple):
    kind: Literal["buffer", "struct", "threadgroup"]
    index: int
    size: int
    alignment: int
    writable: bool | None
    optional: bool

@disjoint_base
class Pipeline:
    def __init__(
        self,
        device: Device,
        function: str,
        *,
        constants: _Constants | None = None,
        library: Library | None = None,
    ) -> None: ...
    @property
    def device(self) -> Device: ...
    @property
    def function(self) -> str: ...
    @property
    def info(self) -> PipelineInfo: ...
    @property
    def arguments(self) -> tuple[Argument, ...]: ...
    def close(self) -> None: ...
