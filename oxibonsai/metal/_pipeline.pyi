"""Libraries and pipelines: kernels made ready to run."""

from typing import Literal, NamedTuple

from typing_extensions import disjoint_base

from oxibonsai.metal._core import Device, _Constants

@disjoint_base
class Library:
    """Kernels compiled from Metal Shading Language.

    Parameters
    ----------
    device : Device
        Whose compiler is used.
    source : str
        The program.

    Attributes
    ----------
    device : Device
        Whose compiler was used.

    Raises
    ------
    CompilationError
        With the compiler's log; on the cpu device always, for it runs only the kernels that ship.
    """

    def __init__(self, device: Device, source: str) -> None: ...
    @property
    def device(self) -> Device:
        """Whose compiler was used."""
    def close(self) -> None:
        """Release the library; its pipelines stay.

        Closing it again does nothing.
        """
    def pipeline(self, function: str, *, constants: _Constants | None = None) -> Pipeline:
        """Make a kernel of this library ready to run.

        Parameters
        ----------
        function : str
            Name of the kernel.
        constants : dict of int to bool, int or float, optional
            Function constants by index.

        Returns
        -------
        Pipeline
            On the library's device.

        Raises
        ------
        CompilationError
            For an unknown kernel, an unknown constant, or one that has no value or another type.
        EncodingError
            Where the library or its device is closed.
        """

class PipelineInfo(NamedTuple):
    """Limits of a pipeline.

    Attributes
    ----------
    max_threads : int
        Threads of the largest threadgroup that it runs with.
    simd_width : int
        Threads of a SIMD-group; 1 on the cpu device.
    static_threadgroup_memory : int
        Bytes that a threadgroup takes beside the dynamic ones.
    """

    max_threads: int
    simd_width: int
    static_threadgroup_memory: int

class Argument(NamedTuple):
    """What a kernel takes at one index: every dispatch is checked by it when it is recorded.

    Attributes
    ----------
    kind : {"buffer", "struct", "threadgroup"}
        A buffer, in whose place the argument struct may stand where the kernel only reads it; the
        argument struct and nothing else; or dynamic threadgroup memory.
    binding : int
        Index at which it is bound. The argument struct follows the last buffer.
    size : int
        Bytes: of a struct exactly, of what a buffer is bound to at least.
    alignment : int
        Bytes of which a buffer's offset is a multiple; 0 where the driver does not know.
    writable : bool or None
        Whether the kernel writes it; None where the driver does not know.
    optional : bool
        Whether the kernel does without it, since it does not use it.
    """

    kind: Literal["buffer", "struct", "threadgroup"]
    binding: int
    size: int
    alignment: int
    writable: bool | None
    optional: bool

@disjoint_base
class Pipeline:
    """A kernel compiled with its function constants, ready to run.

    Parameters
    ----------
    device : Device
        Where it runs.
    function : str
        Name of the kernel.
    constants : dict of int to bool, int or float, optional
        Function constants by index.
    library : Library, optional
        Where the kernel is; left out, the kernels that ship.

    Attributes
    ----------
    device : Device
        Where it runs.
    function : str
        Name of the kernel.

    Raises
    ------
    CompilationError
        For an unknown kernel, an unknown constant, or one that has no value or another type.
    EncodingError
        Where the library or the device is closed.
    """

    def __init__(
        self,
        device: Device,
        function: str,
        *,
        constants: _Constants | None = None,
        library: Library | None = None,
    ) -> None: ...
    @property
    def device(self) -> Device:
        """Where it runs."""
    @property
    def function(self) -> str:
        """Name of the kernel."""
    @property
    def info(self) -> PipelineInfo:
        """Limits of the pipeline.

        Returns
        -------
        PipelineInfo
            Threads and bytes.

        Raises
        ------
        EncodingError
            Where the pipeline or its device is closed.
        """
    @property
    def arguments(self) -> tuple[Argument, ...]:
        """What the kernel takes, by which every dispatch of it is checked.

        Returns
        -------
        tuple of Argument
            Empty where the device's driver does not know.

        Raises
        ------
        EncodingError
            Where the pipeline or its device is closed.
        """
    def close(self) -> None:
        """Release the pipeline; commands that recorded it keep it.

        Closing it again does nothing.
        """
