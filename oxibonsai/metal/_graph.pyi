"""MetalGraph: the fused phases of a transformer layer on one device.

Every check is made before anything runs. The phases themselves, in _phases.pyx, run without the
GIL; the uploads are in _uploads.pyx.
"""

from contextlib import AbstractContextManager
from typing import Literal, SupportsIndex

from typing_extensions import Self, disjoint_base

from oxibonsai.metal._buffer import Buffer
from oxibonsai.metal._commands import Commands
from oxibonsai.metal._core import Device, _Floats
from oxibonsai.metal._uploads import WeightUploads
from oxibonsai.metal._weights import WeightHandle

@disjoint_base
class MetalGraph(WeightUploads):
    """Uploads of weights and the fused phases of a transformer layer on one device.

    Parameters
    ----------
    device : Device or str, optional
        Where it runs, or the name of a Device to open; the default device if left out.
    timeout : float, optional
        Seconds that a phase waits for the device before it raises ExecutionError; no limit if left
        out.

    Attributes
    ----------
    device : Device
        Where it runs.
    weights : WeightCache
        What the get_or_upload methods have cached.

    Raises
    ------
    DeviceNotFoundError
        If there is no such device.

    Notes
    -----
    Any number of threads may use one graph: a phase holds its intermediate buffers from upload to
    download, and phases of different shapes run side by side.
    """
    def __init__(
        self, device: Device | str | None = None, *, timeout: float | None = None
    ) -> None: ...
    @staticmethod
    def shared() -> MetalGraph:
        """Return the process-wide graph on the default device, making it on the first call.

        Returns
        -------
        MetalGraph
            The same graph for every caller, until it is closed: the next call makes a new one.

        Raises
        ------
        DeviceNotFoundError
            If no device can be opened; the next call tries again.
        """
    @property
    def closed(self) -> bool:
        """Whether close() was called, here or on the device."""
    def close(self) -> None:
        """Drop the cached weights and the intermediate buffers; idempotent.

        Handles that others hold stay usable on the device.
        """
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def commands(
        self,
        *,
        activations: Literal["float32", "half", "int8"] = "float32",
        deterministic: bool = False,
    ) -> Commands:
        """Make an empty recording on the graph's device.

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
    def acquire_buffers(
        self, hidden: SupportsIndex, inter: SupportsIndex, attn: SupportsIndex | None = None
    ) -> AbstractContextManager[list[Buffer]]:
        """Hold the FFN phase's intermediate buffers for the body of a with statement.

        Parameters
        ----------
        hidden, inter : int
            Sizes of the hidden and the intermediate vector.
        attn : int, optional
            Size of the attention output; `hidden` if left out.

        Returns
        -------
        context manager of list of Buffer
            float32 buffers in the device's working_storage: hidden, attention output, normed,
            activated. They are made on first use, and a few sets are kept by their sizes.

        Raises
        ------
        EncodingError
            If a size is not in 1..2**31 - 1.
        BufferCreationError
            If the device does not have that much memory.

        Notes
        -----
        A phase of the same sizes in another thread waits for the end of the ``with`` statement; one
        in the same thread raises EncodingError.
        """
    def encode_gemv(
        self,
        weight: WeightHandle,
        input: _Floats,
        output: _Floats,
        n_rows: SupportsIndex | None = None,
        k: SupportsIndex | None = None,
    ) -> None:
        """Compute output[:n_rows] = W input[:k] with a Q1 weight.

        Parameters
        ----------
        weight : WeightHandle
            From upload_q1_weight_soa.
        input : float32 [>= k]
            The activations; a read-only array is fine.
        output : float32 [>= n_rows]
            Receives the result; may overlap `input`.
        n_rows, k : int, optional
            Shape of the matrix; may be left out if the handle knows it.

        Raises
        ------
        EncodingError
            If lengths, shape, format or device do not fit; nothing has run then.
        ExecutionError
            If the device failed or timed out; `output` is as before.
        """
    def encode_gemv_tq2(
        self,
        weight: WeightHandle,
        input: _Floats,
        output: _Floats,
        n_rows: SupportsIndex | None = None,
        k: SupportsIndex | None = None,
    ) -> None:
        """Compute output[:n_rows] = W input[:k] with a ternary or 2-bit weight.

        Parameters
        ----------
        weight : WeightHandle
            From upload_tq2_weight_soa.
        input : float32 [>= k]
            The activations; a read-only array is fine.
        output : float32 [>= n_rows]
            Receives the result; may overlap `input`.
        n_rows, k : int, optional
            Shape of the matrix; may be left out if the handle knows it.

        Raises
        ------
        EncodingError
            If lengths, shape, format or device do not fit; nothing has run then.
        ExecutionError
            If the device failed or timed out; `output` is as before.
        """
    def encode_qkv_phase(
        self,
        input: _Floats,
        output: _Floats,
        weight: WeightHandle,
        n_rows: SupportsIndex | None = None,
        k: SupportsIndex | None = None,
    ) -> None:
        """Compute the fused projection of Q, K and V: output[:n_rows] = W input[:k].

        Parameters
        ----------
        input : float32 [>= k]
            The activations; a read-only array is fine.
        output : float32 [>= n_rows]
            Receives the result; may overlap `input`.
        weight : WeightHandle
            The rows of Q, K and V one after another, in any format.
        n_rows, k : int, optional
            Shape of the matrix; may be left out if the handle knows it.

        Raises
        ------
        EncodingError
            If lengths, shape, format or device do not fit; nothing has run then.
        ExecutionError
            If the device failed or timed out; `output` is as before.
        """
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
    ) -> None:
        """Run the second half of a layer in one submission, `hidden` in place.

        hidden += attn_proj attn_out; normed = rmsnorm(hidden, eps) * norm_weight;
        s = silu(gate normed) * (up normed); hidden += down s.

        Parameters
        ----------
        hidden : float32 [>= hidden_size]
            The residual stream, replaced by the result.
        attn_out : float32
            Output of the attention; its length is the k of `attn_proj` (heads x head_dim).
        norm_weight : WeightHandle or float32 [>= hidden_size]
            From get_or_upload_f32_weight, or an array.
        attn_proj, gate_up, down : WeightHandle
            [hidden_size, k], [2 intermediate_size, hidden_size] (gate rows, then up rows) and
            [hidden_size, intermediate_size], each in any format.
        hidden_size, intermediate_size : int, optional
            Sizes of the hidden and the intermediate vector; may be left out if the handles know
            their shapes.
        eps : float
            Added to the mean square.

        Raises
        ------
        EncodingError
            If lengths, shapes or devices do not fit; `hidden` is as before.
        ExecutionError
            If the device failed or timed out; `hidden` is as before.
        """
