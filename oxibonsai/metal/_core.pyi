"""The C ABI's Python side: errors, devices and the function table for the other modules."""

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

_C_API: object  # PyCapsule of struct oxb_api

def format_table() -> list[tuple[str, int, int, int, int, int, str, int, int, bool]]:
    """Return the C table of weight formats.

    Returns
    -------
    list of tuple
        (name, id, ggml_type, block_weights, block_bytes, scale_offset, device_format, bits,
        group_size, coded) for each file format, as the fields of ``oxibonsai.formats.Format``.
    """

@final
class HostBytes:
    """A contiguous view of host memory, held through the buffer protocol until it is freed."""

class DeviceInfo(NamedTuple):
    """What a device is and what its limits are.

    Attributes
    ----------
    name : str
        Product name.
    driver : str
        ``"metal"``, ``"cuda"``, ``"cpu"``, or the name of a loaded driver.
    index : int
        Number of the device among those of its driver.
    variant : str
        Variant of the kernels in use, such as ``"avx2"``.
    simd_width : int
        Lanes of a SIMD-group.
    unified_memory : bool
        Whether kernels reach shared storage as fast as private storage.
    threads : int
        Threads of the cpu device, the caller's included; 0 on other devices.
    max_buffer_length : int
        Largest buffer, in bytes.
    max_threadgroup_memory : int
        Largest threadgroup memory, in bytes.
    recommended_working_set : int
        Memory that the buffers in use should not exceed together, in bytes.
    compiler : str
        What compiles kernels for it at run time, with versions, such as
        ``"CUDA 13.0, NVRTC 12.9"``; empty where the system or the package's build does.
    """

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
    compiler: str

class RefusedDevice(NamedTuple):
    """A device that is present and cannot be used.

    Attributes
    ----------
    driver : str
        Name of the driver.
    index : int
        Number of the device among those of its driver.
    reason : str
        What opening it raises, which names what the device lacks.
    """

    driver: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    reason: str

class FoundDevices(NamedTuple):
    """The devices of this machine.

    Attributes
    ----------
    usable : list of DeviceInfo
        Those that can be opened, the default first.
    refused : list of RefusedDevice
        Those that cannot, in the order of the drivers.
    """

    usable: list[DeviceInfo]
    refused: list[RefusedDevice]

class ChosenVariant(NamedTuple):
    """A kernel that a device takes for a product: one that was chosen, or that was recorded.

    The order is that of ``Device.choose_variant``, which takes one as ``*chosen``.

    Attributes
    ----------
    op : str
        Name of the op, such as ``"gemv"``.
    device_format : str
        Format of the matrix on the device, such as ``"q1_g128"``.
    n_rows : int
        Rows of the matrix; those of gate and up together for SwiGLU.
    k : int
        Columns of the matrix.
    name : str
        The variant, one of ``Device.kernel_variants(...)``.
    n_vectors : int
        The most vectors that it holds for: a power of two. It does not hold for half as many.
    """

    op: str
    device_format: str
    n_rows: int
    k: int
    name: str
    n_vectors: int
    @property
    def product(self) -> tuple[str, str, int, int, int]:
        """What there is but the name, in the order of ``Device.kernel_variants``."""

class DeviceStats(NamedTuple):
    """What a device holds and does at this moment.

    Attributes
    ----------
    buffers : int
        Live buffers.
    allocated_bytes : int
        Bytes the device allocated for them; wrapped host memory is not counted.
    in_flight : int
        Submissions that have not finished.
    submissions : int
        Submissions since the device was opened.
    work_per_second : float
        Multiply-adds a second that finished submissions took; 0.0 where the device's driver
        measures none, and before the first.
    """

    buffers: int
    allocated_bytes: int
    in_flight: int
    submissions: int
    work_per_second: float

@disjoint_base
class Device:
    """A device that runs the kernels: Apple's Metal, an NVIDIA GPU, or the CPU.

    Parameters
    ----------
    name : str, optional
        ``"metal"``, ``"cuda"``, ``"cpu"``, or with an index ``"cuda:1"``. Left out, the environment
        variable ``OXIBONSAI_DEVICE`` names it, else the first device that is not refused is taken,
        of metal, cuda, cpu.
    threads : int, optional
        Threads of the cpu device, the caller's included, 1 to 1024. Left out, the environment
        variable ``OXIBONSAI_THREADS``, else the processors this process may run on (on macOS the
        performance cores).
    variant : str, optional
        Which of ``variants("cpu")`` the cpu device runs, such as ``"avx2"``. Left out, the
        environment variable ``OXIBONSAI_CPU_VARIANT``, else the first of them.

    Attributes
    ----------
    driver : str
        Name of the driver: ``"metal"``, ``"cuda"``, ``"cpu"``, or that of a loaded driver.
    index : int
        Number of the device among those of its driver.

    Raises
    ------
    DeviceNotFoundError
        If there is no such device or variant, and the text lists those there are; or if the device
        cannot run the kernels, and the text says what it lacks.
    CompilationError
        If the environment variable ``OXIBONSAI_METALLIB`` asks for a metallib that is missing or
        that Metal refuses.
    EncodingError
        If the environment variable ``OXIBONSAI_METAL_DEBUG`` has another value than 0 and 1.
    ValueError
        If `threads` is not in 1..1024.

    Notes
    -----
    Any number of threads may use one device; what they submit runs in the order of submission. What
    was made from a device keeps it alive, so they may be closed in any order. A device cannot be
    pickled: open it in the process that uses it.
    """
    def __init__(
        self,
        name: str | None = None,
        *,
        threads: SupportsIndex | None = None,
        variant: str | None = None,
    ) -> None: ...
    @property
    def driver(self) -> str:
        """Name of the driver: ``"metal"``, ``"cuda"``, ``"cpu"``, or that of a loaded driver."""
    @property
    def index(self) -> int:
        """Number of the device among those of its driver."""
    @property
    def closed(self) -> bool:
        """Whether close() was called."""
    def close(self) -> None:
        """Release the device; idempotent.

        Work in flight finishes. New calls on the device or on what was made from it raise
        EncodingError, and its memory is freed with its last user.
        """
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    @property
    def info(self) -> DeviceInfo:
        """The device's name, limits and the variant of its kernels, as a DeviceInfo."""
    @property
    def name(self) -> str:
        """The device's product name."""
    @property
    def working_storage(self) -> _Storage:
        """The storage for what kernels read and write: "private" if the device has its own memory.

        On such a device shared storage is host memory, which kernels reach over the bus. It is
        "shared" on a device with unified memory.
        """
    @property
    def stats(self) -> DeviceStats:
        """Live buffers, bytes allocated, submissions and the measured rate, as a DeviceStats."""
    def buffer(self, nbytes: SupportsIndex, *, storage: _Storage = "shared") -> Buffer:
        """Allocate a Buffer of zeros.

        Parameters
        ----------
        nbytes : int
            Length in bytes, at least 1.
        storage : {"shared", "private"}
            Whether the host has an address for the memory.

        Returns
        -------
        Buffer
            The new buffer, which keeps the device alive.

        Raises
        ------
        BufferCreationError
            If the device does not have that much memory.
        """
    def upload(self, data: _Bytes, *, copy: bool = True, storage: _Storage = "shared") -> Buffer:
        """Make a Buffer from the bytes of `data`, as Buffer.from_data does.

        Parameters
        ----------
        data : buffer or DLPack exporter
            Any contiguous array or bytes-like object, read-only ones too.
        copy : bool
            False wraps the memory of `data` instead of copying it, which not every device can.
        storage : {"shared", "private"}
            Storage of the copy; wrapped memory is always shared.

        Returns
        -------
        Buffer
            The new buffer, of the length of `data`.

        Raises
        ------
        BufferCreationError
            If `data` is empty, too large, or cannot be wrapped.
        """
    def library(self, source: str) -> Library:
        """Compile kernels from source.

        Parameters
        ----------
        source : str
            A program in the Metal Shading Language.

        Returns
        -------
        Library
            The compiled kernels.

        Raises
        ------
        CompilationError
            If `source` does not compile; always on the cpu device, which has no compiler.
        """
    def pipeline(
        self, function: str, *, constants: _Constants | None = None, library: Library | None = None
    ) -> Pipeline:
        """Make a kernel ready to run.

        Parameters
        ----------
        function : str
            Name of the kernel.
        constants : dict of int to bool, int or float, optional
            Function constants by index.
        library : Library, optional
            Where the kernel is; the kernels that ship if left out.

        Returns
        -------
        Pipeline
            The kernel, compiled with these constants.

        Raises
        ------
        CompilationError
            If there is no such kernel, or a constant does not fit it.
        """
    def commands(
        self,
        *,
        activations: Literal["float32", "half", "int8"] = "float32",
        deterministic: bool = False,
    ) -> Commands:
        """Make an empty recording.

        Parameters
        ----------
        activations : {"float32", "half", "int8"}
            What matrix products of many vectors make of the vectors; see Commands.
        deterministic : bool
            Give each vector of a product the bits that it has alone; see Commands.

        Returns
        -------
        Commands
            A recording for one thread at a time.

        Raises
        ------
        EncodingError
            If the device has no kernels for these activations or for deterministic products.
        """
    def kernel_variants(
        self,
        op: str,
        device_format: str,
        n_rows: SupportsIndex,
        k: SupportsIndex,
        n_vectors: SupportsIndex = 1,
    ) -> tuple[str, ...]:
        """List the variants of the kernel that multiplies a matrix by vectors.

        All of them give the product within the same bounds; which is the fastest depends on the
        device and on the shape.

        Parameters
        ----------
        op : {"gemv", "swiglu", "gemm", "swiglu_gemm", "gemm_halves", "gemm_half"}
            The op, as the driver has it.
        device_format : str
            Format of the matrix on the device, such as ``"q1_g128"``.
        n_rows, k : int
            Rows of the matrix, those of gate and up together for SwiGLU, and its columns.
        n_vectors : int
            Vectors by which it is multiplied.

        Returns
        -------
        tuple of str
            The variants, the device's default first; empty where it has one form of the kernel.

        Raises
        ------
        EncodingError
            If there is no such op or format, or no such matrix.
        """
    def choose_variant(
        self,
        op: str,
        device_format: str,
        n_rows: SupportsIndex,
        k: SupportsIndex,
        name: str | None,
        n_vectors: SupportsIndex = 1,
    ) -> None:
        """Choose the kernel that multiplies a matrix by vectors, in what is recorded from here on.

        The choice holds for every number of vectors that rounds up to the same power of two.
        Deterministic recordings do not take it.

        Parameters
        ----------
        op : {"gemv", "swiglu", "gemm", "swiglu_gemm", "gemm_halves", "gemm_half"}
            The op, as the driver has it.
        device_format : str
            Format of the matrix on the device, such as ``"q1_g128"``.
        n_rows, k : int
            Rows of the matrix, those of gate and up together for SwiGLU, and its columns.
        name : str or None
            One of ``kernel_variants(...)`` for the same product; None goes back to the default.
        n_vectors : int
            Vectors by which it is multiplied.

        Raises
        ------
        EncodingError
            If there is no such op, format, matrix or variant; the text lists those there are.
        """
    def recorded_variants(self) -> list[ChosenVariant]:
        """List the products that were recorded on this device, with the kernel that each took last.

        Deterministic recordings do not count, nor do products of which the device has one form.

        Returns
        -------
        list of ChosenVariant
            In the order in which they were first recorded or chosen, the first 4096 of them.
        """
    def load_tuning(self) -> None:
        """Choose what tune() found on this machine for this device, where it kept something.

        It is done once for a device: later calls do nothing, and those of other threads meanwhile
        wait for it. A product that has a choice keeps it.
        MetalGraph calls it, so that a device is tuned before anything of a model is recorded. The
        environment variable ``OXIBONSAI_TUNING=0`` switches it off.
        """
    def chosen_variants(self) -> list[ChosenVariant]:
        """List the choices of kernels that this device has.

        Returns
        -------
        list of ChosenVariant
            In the order in which they were first made, without those that went back to the default.
        """
    def capture(
        self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]
    ) -> AbstractContextManager[None]:
        """Capture what the device does inside a ``with`` block to a file for Xcode.

        Parameters
        ----------
        path : path-like
            The ``.gputrace`` to write, which must not exist yet.

        Returns
        -------
        context manager
            It starts the capture on entry and writes the file on exit.

        Raises
        ------
        EncodingError
            If the device cannot capture, or not to that path.

        Notes
        -----
        Of the drivers that ship, Metal alone captures, in a process that was started with
        ``MTL_CAPTURE_ENABLED=1``. Wait for the work inside the block: what runs later is not in the
        file.
        """

def probe_devices() -> FoundDevices:
    """Try every device, and tell which can be used and why the others cannot.

    Returns
    -------
    FoundDevices
        The usable devices, the default first, and the refused ones with the reason. A driver that
        cannot count its devices has none. The default is the one that the environment variable
        ``OXIBONSAI_DEVICE`` names, where it names one of them. A device that a wrong variable of
        the environment keeps from opening is in neither list: ``Device(name)`` says which one.

    Notes
    -----
    A device is refused if it lacks something that the kernels are built on, such as SIMD-groups of
    32 threads, or computes it wrongly. ``Device()`` then takes the next one.
    """

def devices() -> list[DeviceInfo]:
    """List the devices that can be opened, the default first.

    Returns
    -------
    list of DeviceInfo
        One for each device; ``probe_devices()`` lists those that are refused as well.
    """

def load_driver(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
    """Load a driver from a shared library; Device() then tries it before the others.

    Parameters
    ----------
    path : path-like
        A shared library that exports ``oxb_driver_entry``, as oxb_driver.h describes. It stays
        loaded until the process ends.

    Raises
    ------
    DeviceNotFoundError
        If the library cannot be loaded, is no driver, or was built for another ABI version.
    """

def variants(driver: str) -> tuple[str, ...]:
    """List the variants of its kernels that a driver can run on this machine.

    Parameters
    ----------
    driver : str
        Name of a driver, such as ``"cpu"``.

    Returns
    -------
    tuple of str
        The variants, the fastest first. Those of "cpu" are named after instruction sets; the other
        drivers have none to choose from.
    """
