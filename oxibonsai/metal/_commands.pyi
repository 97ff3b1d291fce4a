"""Recorded command sequences."""

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
    """A recorded sequence of dispatches that can be submitted any number of times.

    Record with dispatch() or with the ops (gemv(), rmsnorm(), ...), then submit() and wait(), or
    replay() for both. Each dispatch sees what the ones before it wrote. The recording keeps its
    buffers and pipelines alive. Once submitted it is sealed until reset().

    One thread uses a Commands at a time; different ones may run in different threads.

    Parameters
    ----------
    device : Device
        Where the sequence runs.
    activations : {"float32", "int8"}
        What gemv() and gate_up_swiglu() of 8 or more vectors make of them: int8 rounds them to 8 bits
        in blocks of 16 that share a scale, about 5e-3 of the result's norm. For matrices of 1 and 2
        bits on the cpu device; others stay float32, as fewer vectors do.

    Attributes
    ----------
    device : Device
        Where the sequence runs.

    Raises
    ------
    ValueError
        For other activations.
    EncodingError
        For int8 on a device without such kernels: a GPU, or the portable ones.
    """
    def __init__(
        self, device: Device, *, activations: Literal["float32", "int8"] = "float32"
    ) -> None: ...
    @property
    def device(self) -> Device:
        """Where the sequence runs."""
    @property
    def closed(self) -> bool:
        """Whether close() was called."""
    def close(self) -> None:
        """Let go of the recording. Work in flight ends by itself. Idempotent."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def __len__(self) -> int: ...
    def reset(self) -> None:
        """Forget the recording, to record another.

        Raises
        ------
        EncodingError
            While a submission is in flight.
        """
    def dispatch(
        self,
        pipeline: Pipeline,
        bindings: Iterable[_Binding],
        args: _Bytes = b"",
        *,
        threadgroups: _Extents,
        threads: _Extents = 1,
        threadgroup_memory: SupportsIndex = 0,
    ) -> None:
        """Record one run of `pipeline`.

        Parameters
        ----------
        pipeline : Pipeline
            The kernel.
        bindings : sequence of Buffer or (Buffer, int)
            Buffers for the indices from 0 on, each with an offset in bytes where a pair is given.
        args : buffer
            The argument struct (at most 4096 bytes), bound after the last buffer.
        threadgroups, threads : int or tuple of up to 3 ints
            Threadgroups of the grid, and threads of a threadgroup.
        threadgroup_memory : int
            Bytes of dynamic threadgroup memory.

        Raises
        ------
        EncodingError
            Where a limit of the device is passed; nothing is recorded then.
        """
    def submit(self, times: SupportsIndex = 1) -> None:
        """Submit the recording `times` times, in order, and return without waiting.

        At most 16 submissions are in flight: past that it waits for the oldest. The cpu device runs
        them before it returns.
        """
    def wait(self, timeout: float | None = None, *, keep: SupportsIndex = 0) -> None:
        """Wait until everything submitted has finished, or all but the last `keep` submissions.

        Parameters
        ----------
        timeout : float, optional
            Seconds for each submission; without end where left out.
        keep : int
            How many submissions may still be in flight: 0 waits for all of them.

        Raises
        ------
        ExecutionError
            Where the device failed, or did not finish in time; the buffers stay alive until it does.
        """
    def replay(self, times: SupportsIndex = 1, timeout: float | None = None) -> None:
        """Submit the recording `times` times and wait for all of them, without Python in between."""
    @property
    def in_flight(self) -> int:
        """Submissions that nobody has waited for."""
    @property
    def device_time(self) -> float | None:
        """Seconds the device took for the last submission waited for; None before the first."""
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
    ) -> None:
        """Record y = W x, or y += W x, for each of n_vectors rows of x.

        x: float32 [n_vectors, k], y: float32 [n_vectors, n_rows], in Buffers. The rows of y are y_stride
        elements apart, n_rows where left out. With `norm`, float32 [k], x is taken as
        x / sqrt(mean(x^2) + eps) * norm, as rmsnorm() computes it.
        """
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
    ) -> None:
        """Record y = silu(W[:h] x) * (W[h:] x), h = n_rows / 2, for each of n_vectors rows of x.

        x: float32 [n_vectors, k], y: float32 [n_vectors, h]. Norm and eps as in gemv().
        """
    def rmsnorm(
        self,
        x: _Binding,
        weight: _Binding,
        y: _Binding,
        n: SupportsIndex,
        *,
        eps: float = 1e-6,
        n_vectors: SupportsIndex = 1,
    ) -> None:
        """Record y = x / sqrt(mean(x^2) + eps) * weight for each of n_vectors rows of n floats."""
    def add(self, x: _Binding, y: _Binding, n: SupportsIndex) -> None:
        """Record y += x over n floats."""
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
    ) -> None:
        """Record y[t] = row tokens[position + t] of the weight; NaN where either is out of range.

        tokens: uint32; state: 16 bytes, the position as uint32 first; y: float32 [n_tokens, k].
        """
    def qk_norm_rope(
        self,
        qkv: _Binding,
        q_norm: _Binding,
        k_norm: _Binding,
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
    ) -> None:
        """Record RMSNorm and RoPE (on halves) of the heads of q and k, in place.

        qkv: float32 [n_tokens, n_heads + 2 n_kv_heads, head_dim], of the tokens at the state's position
        and after it; rope: float32 [max_seq, 2, head_dim / 2], cosines then sines. Layer and kv_dtype are
        those of the cache and change nothing here.
        """
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
    ) -> None:
        """Record the store of k and v at the tokens' positions.

        Caches: [layer, n_kv_heads, max_seq, head_dim] of kv_dtype, "f16" or "f32".
        """
    def qkv_to_cache(
        self,
        qkv: _Binding,
        q_norm: _Binding,
        k_norm: _Binding,
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
    ) -> None:
        """Record qk_norm_rope and kv_store in one.

        The queries are left in qkv for attention(); what is left there of the keys is not defined.
        """
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
    ) -> None:
        """Record causal attention of each token over all positions up to its own.

        out: float32 [n_tokens, n_heads, head_dim]; scale: 1 / sqrt(head_dim) where left out. Caches as in
        kv_store. max_length is the most positions that a replay will meet, max_seq where left out: it
        decides into how many parts the work of one token is cut, and nothing else.
        """
    def argmax(
        self, logits: _Binding, out: _Binding, n: SupportsIndex, *, n_vectors: SupportsIndex = 1
    ) -> None:
        """Record out[v] = the index of the largest of row v of logits [n_vectors, n].

        out: uint32 [n_vectors]. The lowest index of equal ones, and 0 where all are NaN.
        """
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
    ) -> None:
        """Record position += n_tokens and, where greedy, tokens[position] = argmax of n logits."""
