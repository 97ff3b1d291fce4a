"""The exceptions of the device layer, one for each status of the C ABI."""

from __future__ import annotations

__all__ = [
    "BufferCreationError",
    "CompilationError",
    "DeviceNotFoundError",
    "EncodingError",
    "ExecutionError",
    "MetalGraphError",
]


class MetalGraphError(Exception):
    """Base of every error of a device.

    Attributes
    ----------
    code : int
        The ``oxb_status`` of the C ABI, 0 for the base class itself.
    """

    code: int = 0


class DeviceNotFoundError(MetalGraphError):
    """No such device, or no device that can run the kernels."""

    code = 1


class CompilationError(MetalGraphError):
    """A shader library or a pipeline did not compile; the text holds the compiler's log."""

    code = 2


class BufferCreationError(MetalGraphError, MemoryError):
    """A buffer could not be made."""

    code = 3


class EncodingError(MetalGraphError, ValueError):
    """A call does not fit its arguments: lengths, shapes, formats, closed objects."""

    code = 4


class ExecutionError(MetalGraphError, RuntimeError):
    """The device failed, or did not finish in time."""

    code = 5


BY_CODE: dict[int, type[MetalGraphError]] = {
    error.code: error
    for error in (
        DeviceNotFoundError,
        CompilationError,
        BufferCreationError,
        EncodingError,
        ExecutionError,
    )
}
