"""Libraries and pipelines: kernels made ready to run."""

from typing import NamedTuple

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
        """Release the library; its pipelines stay. Idempotent."""
    def pipeline(self, function: str, *, constants: _Constants | None = None) -> Pipeline:
        """Return the Pipeline of the kernel `function` of this library."""

class PipelineInfo(NamedTuple):
    """Limits of a pipeline: threads of a threadgroup, SIMD-group width, bytes."""

    max_threads: int
    simd_width: int
    static_threadgroup_memory: int

@disjoint_base
class Pipeline:
    """A kernel made ready to run.

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
        For an unknown kernel or constant.
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
        """Limits of the pipeline, as a PipelineInfo."""
    def close(self) -> None:
        """Release the pipeline; recorded commands keep it. Idempotent."""
