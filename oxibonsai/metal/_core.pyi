import os
from array import array
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol, SupportsIndex, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer as _BufferProtocol
from typing_extensions import Self, disjoint_base

from oxibonsai.metal._buffer import Buffer
from oxibonsai.metal._commands import Commands
from oxibonsai.metal._pipeline import Library, Pipeline

class _SupportsDLPack(Protocol):
    def __dlpack__(self) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

# Contiguous memory of any element type. To NumPy's stubs an array is a buffer from Python 3.12 on.
_Bytes: TypeAlias = _BufferProtocol | NDArray[Any] | _SupportsDLPack
# float32; a Buffer of a device is bytes, so that it takes a view().
_Floats: TypeAlias = NDArray[np.float32] | array[float] | memoryview[float]
_Storage: TypeAlias = Literal["shared", "private"]
_Constants: TypeAlias = Mapping[int, bool | int | float]

def format_table() -> list[tuple[str, int, int, int, int, int, str, int, int, bool]]: ...

@final
class HostBytes: ...

class DeviceInfo(NamedTuple):
    name: str
    driver: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    variant: str
    simd_width: int
    unified_memory: bool
    threads: int
    max_buffer_length: int
    max_threadgroup_memory: int
    recommended_working_set: int

class DeviceStats(NamedTuple):
    buffers: int
    allocated_bytes: int
    in_flight: int
    submissions: int

@disjoint_base
class Device:
    def __init__(
        self,
        name: str | None = None,
        *,
        threads: SupportsIndex | None = None,
        variant: str | None = None,
    ) -> None: ...
    @property
    def driver(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    @property
    def info(self) -> DeviceInfo: ...
    @property
    def name(self) -> str: ...
    @property
    def working_storage(self) -> _Storage: ...
    @property
    def stats(self) -> DeviceStats: ...
    def buffer(self, nbytes: SupportsIndex, *, storage: _Storage = "shared") -> Buffer: ...
    def upload(
        self, data: _Bytes, *, copy: bool = True, storage: _Storage = "shared"
    ) -> Buffer: ...
    def library(self, source: str) -> Library: ...
    def pipeline(
        self, function: str, *, constants: _Constants | None = None, library: Library | None = None
    ) -> Pipeline: ...
    def commands(self, *, activations: Literal["float32", "int8"] = "float32") -> Commands: ...
    def capture(
        self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]
    ) -> AbstractContextManager[None]: ...

def devices() -> list[DeviceInfo]: ...
def load_driver(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None: ...
def variants(driver: str) -> tuple[str, ...]: ...
