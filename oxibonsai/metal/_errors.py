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
    """Base of every error of the device layer; never raised itself.

    Attributes
    ----------
    code : int
        The ``oxb_status`` of the C ABI, 0 for the base class.
    """

    code: int = 0


class DeviceNotFoundError(MetalGraphError):
    """Raised when a device or driver does not exist or cannot run the kernels.

    Device, MetalGraph and load_driver raise it; the text lists the devices or variants that exist.
    """

    code = 1


class CompilationError(MetalGraphError):
    """Raised when a Library or a Pipeline does not compile.

    The text holds the compiler's log, or names the kernel or function constant that does not exist.
    """

    code = 2


class BufferCreationError(MetalGraphError, MemoryError):
    """Raised when a Buffer or an upload cannot get its memory.

    The length is 0, the device does not have that much memory, or host memory cannot be wrapped.
    It is also a MemoryError.
    """

    code = 3


class EncodingError(MetalGraphError, ValueError):
    """Raised when the arguments of a call do not fit together, before anything has run.

    Lengths, shapes, formats, offsets, limits of the device, and objects that are closed or in use
    by another thread. It is also a ValueError.
    """

    code = 4


class ExecutionError(MetalGraphError, RuntimeError):
    """Raised when work on a device fails, or does not finish before the timeout.

    Results in the buffers of that work are undefined. It is also a RuntimeError.
    """

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
