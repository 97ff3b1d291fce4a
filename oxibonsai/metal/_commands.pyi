"""Recorded command sequences."""

from collections.abc import Iterable
from typing import Literal, SupportsIndex, TypeAlias

from typing_extensions import Self, disjoint_base

from oxibonsai.metal._buffer import Buffer
from oxibonsai.metal._core import Device, _Bytes
from oxibonsai.metal._pipeline import Pipeline
from oxibonsai.metal._recurrent import RecurrentOps
from oxibonsai.metal._rotation import Rotation
from oxibonsai.metal._weights import WeightHandle

_Binding: TypeAlias = Buffer | tuple[Buffer, SupportsIndex] | WeightHandle
_Extents: TypeAlias = SupportsIndex | Iterable[SupportsIndex]

@disjoint_base
class Commands(RecurrentOps):
    """A recorded sequence of dispatches that can be submitted any number of times.

    Record with dispatch() or with the ops (gemv(), rmsnorm(), ...), then submit() and wait(), or
    replay() for both. Each dispatch sees what the ones before it wrote. The recording keeps its
    buffers and pipelines alive. Once submitted it is sealed until reset().

    A dispatch is checked when it is recorded: what is refused there is not recorded, and what is
    recorded can run. describe() shows a recording; with OXIBONSAI_TRACE=1 in the environment each
    submission prints what it runs to stderr.

    One thread uses a Commands at a time; different ones may run in different threads.

    An operand of an op, written `operand` below, is a Buffer, a pair (Buffer, offset in bytes), or
    the WeightHandle of a vector. Offsets are multiples of 4.

    Parameters
    ----------
    device : Device
        Where the sequence runs.
    activations : {"float32", "half", "int8"}
        How gemv() and gate_up_swiglu() take many vectors and matrices of 1 and 2 bits; all others
        stay float32. On GPUs, half rounds 64 or more vectors to a half for each element, with an
        error of about 2e-4 of the result's norm; attention() of 64 or more tokens over caches of
        f16, whose heads have 64 or 128 elements, rounds queries and weights, with an error of 3e-4.
        On the cpu device, int8 rounds 8 or more to 8 bits
        in blocks of 16 that share a scale, with an error of about 5e-3.
    deterministic : bool
        Give each vector of gemv() and gate_up_swiglu() the bits that it has alone, whatever their
        number. Activations are then float32 throughout.

    Attributes
    ----------
    device : Device
        Where the sequence runs.

    Raises
    ------
    ValueError
        For other activations.
    EncodingError
        For half, int8 or deterministic products on a device without such kernels (half: the cpu;
        int8: a GPU, or the cpu's portable variant), or where the device is closed.
    """

    def __init__(
        self,
        device: Device,
        *,
        activations: Literal["float32", "half", "int8"] = "float32",
        deterministic: bool = False,
    ) -> None: ...
    @property
    def device(self) -> Device:
        """Where the sequence runs."""
    @property
    def closed(self) -> bool:
        """Whether close() was called.

        Returns
        -------
        bool
            A closed one refuses everything but close().
        """
    def close(self) -> None:
        """Let go of the recording; work in flight ends by itself.

        Closing it again does nothing.

        Raises
        ------
        EncodingError
            While another thread is inside submit(), wait() or replay().
        """
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def __len__(self) -> int: ...
    def reset(self) -> None:
        """Forget the recording, to record another.

        Raises
        ------
        EncodingError
            While a submission is in flight, or where the commands are closed.
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
        bindings : iterable of operand
            Buffers for the indices from 0 on, at most 31 with the argument struct.
        args : bytes-like
            The argument struct, at most 4096 bytes, bound after the last buffer; empty for none.
        threadgroups : int or tuple of up to 3 ints
            Threadgroups of the grid.
        threads : int or tuple of up to 3 ints
            Threads of a threadgroup; 1 on the cpu device.
        threadgroup_memory : int
            Bytes of dynamic threadgroup memory, for a kernel that takes it.

        Raises
        ------
        EncodingError
            Where what is bound is not what the kernel takes (`pipeline.arguments`), where a limit
            of the pipeline or the device is passed, where an object belongs to another device or is
            closed, or where the commands were submitted and are sealed. Nothing is recorded then.
        TypeError
            Where an operand is none, or a number no integer.
        """
    def submit(self, times: SupportsIndex = 1) -> None:
        """Submit the recording `times` times, in order, and return without waiting.

        At most 16 submissions are in flight: past that it waits for the oldest. The cpu device runs
        them before it returns.

        Parameters
        ----------
        times : int
            How often, 1 to 2**31 - 1.

        Raises
        ------
        EncodingError
            Where nothing is recorded, the commands are closed or another thread is inside them.
        ExecutionError
            Where the device refused the work, or an earlier submission failed that nobody waited
            for.
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
            Where the device failed, or did not finish in time; the buffers stay alive until it
            does.
        EncodingError
            For a negative `keep`, or where the commands are closed or another thread is inside
            them.
        ValueError
            For a timeout that is negative or no number of seconds.
        """
    def replay(self, times: SupportsIndex = 1, timeout: float | None = None) -> None:
        """Submit the recording `times` times and wait for all of them, without Python in between.

        Parameters
        ----------
        times : int
            How often, 1 to 2**31 - 1.
        timeout : float, optional
            Seconds for each submission; without end where left out.

        Raises
        ------
        EncodingError
            Where nothing is recorded, the commands are closed or another thread is inside them.
        ExecutionError
            Where the device failed, or did not finish in time; the buffers stay alive until it
            does.
        ValueError
            For a timeout that is negative or no number of seconds.
        """
    @property
    def in_flight(self) -> int:
        """Submissions that nobody has waited for.

        Returns
        -------
        int
            0 to 16.
        """
    @property
    def device_time(self) -> float | None:
        """Time that the device took for the last submission waited for.

        Returns
        -------
        float or None
            Seconds; None before the first.
        """
    def describe(self) -> str:
        """Describe the recording: each dispatch, and under it what it uses.

        The first line of a dispatch has its number, kernel, function constants {index: value} and
        grid; the second the bytes of threadgroup memory, static and dynamic, and of the argument
        struct. Then a line for each binding: index, role in the op that recorded it, "r", "rw" or
        "?" for what the kernel does with it, and the bytes that the kernel sees, their offset and
        the buffer's length.

        Returns
        -------
        str
            The lines, without a newline at the end.

        Raises
        ------
        EncodingError
            Where the commands are closed or another thread is inside them.

        Examples
        --------
        >>> print(commands.describe())                              # doctest: +SKIP
        1 dispatch on cpu:0
        0 residual_add: 1 x 1 x 1 threadgroups of 1 x 1 x 1 threads
            0 bytes of threadgroup memory, 16 bytes of arguments
            buffer(0) input r, 32 bytes at 0 of 32
            buffer(1) output rw, 32 bytes at 0 of 32
        """
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

        Parameters
        ----------
        weight : WeightHandle
            The matrix W.
        x : operand
            float32 [n_vectors, k].
        y : operand
            float32 [n_vectors, n_rows], its rows y_stride elements apart. It does not overlap x.
        n_rows, k : int, optional
            Shape of the matrix; left out, the one that the handle was uploaded with.
        residual : bool
            Whether to add to y.
        n_vectors : int
            Rows of x.
        y_stride : int, optional
            Elements from one row of y to the next; n_rows where left out.
        norm : operand, optional
            float32 [k]: x is then taken as x / sqrt(mean(x^2) + eps) * norm, as rmsnorm() gives it.
            It is a weight: no op of the recording may write it.
        eps : float
            Of the norm; finite and not negative.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        TypeError
            Where an operand is none, or a number no integer.
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

        Parameters
        ----------
        weight : WeightHandle
            The matrix W: h rows of the gate, then h rows of up.
        x : operand
            float32 [n_vectors, k].
        y : operand
            float32 [n_vectors, h]. It does not overlap x.
        n_rows, k : int, optional
            Shape of the matrix; left out, the one that the handle was uploaded with.
        n_vectors : int
            Rows of x.
        norm : operand, optional
            float32 [k]: x is then taken as x / sqrt(mean(x^2) + eps) * norm, as rmsnorm() gives it.
            It is a weight: no op of the recording may write it.
        eps : float
            Of the norm; finite and not negative.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        TypeError
            Where an operand is none, or a number no integer.
        """
    def feed_forward(
        self,
        attn: _Binding,
        hidden: _Binding,
        activated: _Binding,
        *,
        attn_proj: WeightHandle,
        norm: _Binding,
        gate_up: WeightHandle,
        down: WeightHandle,
        n_vectors: SupportsIndex = 1,
        eps: float = 1e-6,
        attn_rotation: Rotation | None = None,
        gate_up_rotation: Rotation | None = None,
        down_rotation: Rotation | None = None,
    ) -> None:
        """Record the second half of a transformer layer for n_vectors rows, `hidden` in place.

        hidden += attn_proj attn; activated = silu(gate n) * (up n) with
        n = hidden / sqrt(mean(hidden^2) + eps) * norm; hidden += down activated. Where rotations
        are given, the products take in attn, n and activated rotated by them.

        Parameters
        ----------
        attn : Buffer or (Buffer, int)
            float32 [n_vectors, k of attn_proj]: the attention's output.
        hidden : Buffer or (Buffer, int)
            float32 [n_vectors, hidden_size]: the residual stream, read and written.
        activated : Buffer or (Buffer, int)
            float32 [n_vectors, intermediate_size]: overwritten.
        attn_proj : WeightHandle
            [hidden_size, k], as all weights here uploaded with its shape, in any format.
        norm : WeightHandle or Buffer
            float32 [hidden_size].
        gate_up : WeightHandle
            [2 intermediate_size, hidden_size]: gate rows, then up rows.
        down : WeightHandle
            [hidden_size, intermediate_size].
        n_vectors : int
            Rows.
        eps : float
            Added to the mean square.
        attn_rotation, gate_up_rotation, down_rotation : Rotation, optional
            Of what attn_proj, gate_up and down are multiplied with; none where left out.

        Raises
        ------
        EncodingError
            Where shapes do not fit one another or their buffers; nothing is recorded then.
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
        """Record y = x / sqrt(mean(x^2) + eps) * weight for each of n_vectors rows of n floats.

        Parameters
        ----------
        x : operand
            float32 [n_vectors, n].
        weight : operand
            float32 [n].
        y : operand
            float32 [n_vectors, n]; it may be x itself.
        n : int
            Elements of a row.
        eps : float
            Finite and not negative.
        n_vectors : int
            Rows.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        TypeError
            Where an operand is none, or a number no integer.
        """
    def add(self, x: _Binding, y: _Binding, n: SupportsIndex) -> None:
        """Record y += x over n floats.

        Parameters
        ----------
        x : operand
            float32 [n].
        y : operand
            float32 [n]; it may be x itself.
        n : int
            Elements.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        TypeError
            Where an operand is none, or a number no integer.
        """
    def add_bias(
        self,
        bias: _Binding,
        y: _Binding,
        n: SupportsIndex,
        n_vectors: SupportsIndex = 1,
        *,
        y_stride: SupportsIndex | None = None,
    ) -> None:
        """Record y[v, i] += bias[i] for each of n_vectors rows of n floats.

        Parameters
        ----------
        bias : Buffer, (Buffer, int) or WeightHandle
            float32 [n].
        y : Buffer or (Buffer, int)
            float32 [n_vectors, n], changed in place; it shares no byte with bias.
        n : int
            Elements of the bias.
        n_vectors : int
            Rows of y.
        y_stride : int, optional
            Elements from one row of y to the next, n or more; n where left out.

        Raises
        ------
        EncodingError
            Where a buffer is too short, or the two overlap; nothing is recorded then.
        """
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
        batch: bool = False,
    ) -> None:
        """Record y[t] = row tokens[position + t] of the weight; NaN where either is out of range.

        Parameters
        ----------
        weight : WeightHandle
            The matrix of embeddings, a row for each token.
        tokens : operand
            uint32, all token ids: those of a text from element ``tokens`` of its state on.
        state : operand
            struct oxb_decode_state: uint32 position, first token and first page of the sequence;
            one, or with batch [n_tokens].
        y : operand
            float32 [n_tokens, k].
        n_rows, k : int, optional
            Shape of the matrix; left out, the one that the handle was uploaded with.
        n_tokens : int
            Rows to look up, from the position on, or with batch one for each state.
        batch : bool
            Whether each row belongs to a sequence of its own.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        TypeError
            Where an operand is none, or a number no integer.
        """
    def qk_norm_rope(
        self,
        qkv: _Binding,
        q_norm: _Binding | None,
        k_norm: _Binding | None,
        rope: _Binding,
        state: _Binding,
        *,
        eps: float = 1e-6,
        n_heads: SupportsIndex,
        n_kv_heads: SupportsIndex,
        head_dim: SupportsIndex,
        max_seq: SupportsIndex,
        layer: SupportsIndex,
        kv_dtype: Literal["f16", "f32", "q8"],
        n_tokens: SupportsIndex = 1,
        rotary_dim: SupportsIndex = 0,
        rope_style: Literal["neox", "interleaved"] = "neox",
        batch: bool = False,
        pages: _Binding | None = None,
        page_size: SupportsIndex = 0,
        n_layers: SupportsIndex = 0,
        n_pages: SupportsIndex = 0,
    ) -> None:
        """Record RMSNorm and RoPE of the heads of q and k, in place.

        `layer` and `kv_dtype` are those of the caches; they change nothing here.

        Parameters
        ----------
        qkv : operand
            float32 [n_tokens, n_heads + 2 n_kv_heads, head_dim]: queries, keys, values of each
            token.
        q_norm, k_norm : operand or None
            float32 [head_dim]; both None for heads without norms.
        rope : operand
            float32 [max_seq, 2, rotary_dim / 2]: cosines, then sines, of each position.
        state : operand
            struct oxb_decode_state: uint32 position, first token and first page of the sequence;
            one, or with batch [n_tokens].
        n_heads : int
            Query heads, a multiple of n_kv_heads.
        n_kv_heads : int
            Key-value heads.
        head_dim : int
            Elements of a head: even, at most 512.
        max_seq : int
            Positions that the caches hold.
        layer : int
            Which layer of the caches, from 0.
        kv_dtype : {"f16", "f32", "q8"}
            Elements of the caches; q8 wants a head_dim that is a multiple of 32.
        n_tokens : int
            Tokens in flight, at the state's position and after it, or with batch one for each
            state, at its position.
        eps : float
            Of the norms; finite and not negative.
        rotary_dim : int
            Elements of a head that are rotated, the first ones, after the norm of the whole head:
            even, 0 for all of them.
        rope_style : {"neox", "interleaved"}
            The elements that rotate together: i and i + rotary_dim / 2, or 2 i and 2 i + 1.
        batch : bool
            Whether each token belongs to a sequence of its own.
        pages : operand, optional
            uint32, for each page_size positions of a sequence its page in the caches, from element
            ``pages`` of its state on. Without, a cache is one page of max_seq positions.
        page_size, n_layers, n_pages : int
            Positions of a page, a multiple of 64, its layers, and how many a cache has.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        ValueError
            For another kv_dtype.
        TypeError
            Where an operand is none, or a number no integer.
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
        kv_dtype: Literal["f16", "f32", "q8"],
        n_tokens: SupportsIndex = 1,
        batch: bool = False,
        pages: _Binding | None = None,
        page_size: SupportsIndex = 0,
        n_layers: SupportsIndex = 0,
        n_pages: SupportsIndex = 0,
    ) -> None:
        """Record the store of the tokens' keys and values into the caches; nothing past max_seq.

        Parameters
        ----------
        qkv : operand
            float32 [n_tokens, n_heads + 2 n_kv_heads, head_dim]: queries, keys, values of each
            token.
        k_cache, v_cache : operand
            [layers, n_kv_heads, max_seq, head_dim] of kv_dtype; of pages, [n_pages, n_layers,
            n_kv_heads, page_size, head_dim]. Each head of q8 is followed by head_dim / 16
            words of 16 bits for each position: low bits of the elements, and their unit.
        state : operand
            struct oxb_decode_state: uint32 position, first token and first page of the sequence;
            one, or with batch [n_tokens].
        n_heads : int
            Query heads, a multiple of n_kv_heads.
        n_kv_heads : int
            Key-value heads.
        head_dim : int
            Elements of a head: even, at most 512.
        max_seq : int
            Positions that the caches hold.
        layer : int
            Which layer of the caches, from 0.
        kv_dtype : {"f16", "f32", "q8"}
            Elements of the caches; q8 wants a head_dim that is a multiple of 32.
        n_tokens : int
            Tokens in flight, at the state's position and after it, or with batch one for each
            state, at its position.
        batch : bool
            Whether each token belongs to a sequence of its own.
        pages : operand, optional
            uint32, for each page_size positions of a sequence its page in the caches, from element
            ``pages`` of its state on. Without, a cache is one page of max_seq positions.
        page_size, n_layers, n_pages : int
            Positions of a page, a multiple of 64, its layers, and how many a cache has.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        ValueError
            For another kv_dtype.
        TypeError
            Where an operand is none, or a number no integer.
        """
    def qkv_to_cache(
        self,
        qkv: _Binding,
        q_norm: _Binding | None,
        k_norm: _Binding | None,
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
        kv_dtype: Literal["f16", "f32", "q8"],
        n_tokens: SupportsIndex = 1,
        rotary_dim: SupportsIndex = 0,
        rope_style: Literal["neox", "interleaved"] = "neox",
        batch: bool = False,
        pages: _Binding | None = None,
        page_size: SupportsIndex = 0,
        n_layers: SupportsIndex = 0,
        n_pages: SupportsIndex = 0,
    ) -> None:
        """Record qk_norm_rope() and kv_store() in one.

        The queries are left in qkv for attention(); what is left there of the keys is not defined.

        Parameters
        ----------
        qkv : operand
            float32 [n_tokens, n_heads + 2 n_kv_heads, head_dim]: queries, keys, values of each
            token.
        q_norm, k_norm : operand or None
            float32 [head_dim]; both None for heads without norms.
        rope : operand
            float32 [max_seq, 2, rotary_dim / 2]: cosines, then sines, of each position.
        k_cache, v_cache : operand
            [layers, n_kv_heads, max_seq, head_dim] of kv_dtype; of pages, [n_pages, n_layers,
            n_kv_heads, page_size, head_dim]. Each head of q8 is followed by head_dim / 16
            words of 16 bits for each position: low bits of the elements, and their unit.
        state : operand
            struct oxb_decode_state: uint32 position, first token and first page of the sequence;
            one, or with batch [n_tokens].
        n_heads : int
            Query heads, a multiple of n_kv_heads.
        n_kv_heads : int
            Key-value heads.
        head_dim : int
            Elements of a head: even, at most 512.
        max_seq : int
            Positions that the caches hold.
        layer : int
            Which layer of the caches, from 0.
        kv_dtype : {"f16", "f32", "q8"}
            Elements of the caches; q8 wants a head_dim that is a multiple of 32.
        n_tokens : int
            Tokens in flight, at the state's position and after it, or with batch one for each
            state, at its position.
        eps : float
            Of the norms; finite and not negative.
        rotary_dim : int
            Elements of a head that are rotated, the first ones, after the norm of the whole head:
            even, 0 for all of them.
        rope_style : {"neox", "interleaved"}
            The elements that rotate together: i and i + rotary_dim / 2, or 2 i and 2 i + 1.
        batch : bool
            Whether each token belongs to a sequence of its own.
        pages : operand, optional
            uint32, for each page_size positions of a sequence its page in the caches, from element
            ``pages`` of its state on. Without, a cache is one page of max_seq positions.
        page_size, n_layers, n_pages : int
            Positions of a page, a multiple of 64, its layers, and how many a cache has.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        ValueError
            For another kv_dtype.
        TypeError
            Where an operand is none, or a number no integer.
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
        kv_dtype: Literal["f16", "f32", "q8"],
        n_tokens: SupportsIndex = 1,
        batch: bool = False,
        pages: _Binding | None = None,
        page_size: SupportsIndex = 0,
        n_layers: SupportsIndex = 0,
        n_pages: SupportsIndex = 0,
    ) -> None:
        """Record causal attention of each token over all positions up to its own.

        Parameters
        ----------
        qkv : operand
            float32 [n_tokens, n_heads + 2 n_kv_heads, head_dim]: queries, keys, values of each
            token.
        k_cache, v_cache : operand
            [layers, n_kv_heads, max_seq, head_dim] of kv_dtype; of pages, [n_pages, n_layers,
            n_kv_heads, page_size, head_dim]. Each head of q8 is followed by head_dim / 16
            words of 16 bits for each position: low bits of the elements, and their unit.
        state : operand
            struct oxb_decode_state: uint32 position, first token and first page of the sequence;
            one, or with batch [n_tokens].
        out : operand
            float32 [n_tokens, n_heads, head_dim]; NaN for a token past max_seq. It does not overlap
            qkv.
        n_heads : int
            Query heads, a multiple of n_kv_heads.
        n_kv_heads : int
            Key-value heads.
        head_dim : int
            Elements of a head: even, at most 512.
        max_seq : int
            Positions that the caches hold.
        layer : int
            Which layer of the caches, from 0.
        kv_dtype : {"f16", "f32", "q8"}
            Elements of the caches; q8 wants a head_dim that is a multiple of 32.
        n_tokens : int
            Tokens in flight, at the state's position and after it, or with batch one for each
            state, at its position.
        max_length : int, optional
            The most positions that a replay will meet, max_seq where left out: it decides into how
            many splits the positions of one token are divided, and nothing else.
        scale : float, optional
            Factor of the scores; 1 / sqrt(head_dim) where left out.
        batch : bool
            Whether each token belongs to a sequence of its own.
        pages : operand, optional
            uint32, for each page_size positions of a sequence its page in the caches, from element
            ``pages`` of its state on. Without, a cache is one page of max_seq positions.
        page_size, n_layers, n_pages : int
            Positions of a page, a multiple of 64, its layers, and how many a cache has.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        ValueError
            For another kv_dtype.
        TypeError
            Where an operand is none, or a number no integer.
        """
    def qkv_attention(
        self,
        qkv: _Binding,
        q_norm: _Binding | None,
        k_norm: _Binding | None,
        rope: _Binding,
        k_cache: _Binding,
        v_cache: _Binding,
        state: _Binding,
        out: _Binding,
        *,
        eps: float = 1e-6,
        n_heads: SupportsIndex,
        n_kv_heads: SupportsIndex,
        head_dim: SupportsIndex,
        max_seq: SupportsIndex,
        layer: SupportsIndex,
        kv_dtype: Literal["f16", "f32", "q8"],
        n_tokens: SupportsIndex = 1,
        max_length: SupportsIndex | None = None,
        scale: float | None = None,
        rotary_dim: SupportsIndex = 0,
        rope_style: Literal["neox", "interleaved"] = "neox",
        batch: bool = False,
        pages: _Binding | None = None,
        page_size: SupportsIndex = 0,
        n_layers: SupportsIndex = 0,
        n_pages: SupportsIndex = 0,
    ) -> None:
        """Record qkv_to_cache() and attention() in one, with the same bits.

        What is left in qkv is not defined. A GPU does it in one dispatch where each sequence has
        one token in flight, and where it has such a kernel for the heads.

        Parameters
        ----------
        qkv : operand
            float32 [n_tokens, n_heads + 2 n_kv_heads, head_dim]: queries, keys, values of each
            token.
        q_norm, k_norm : operand or None
            float32 [head_dim]; both None for heads without norms.
        rope : operand
            float32 [max_seq, 2, rotary_dim / 2]: cosines, then sines, of each position.
        k_cache, v_cache : operand
            [layers, n_kv_heads, max_seq, head_dim] of kv_dtype; of pages, [n_pages, n_layers,
            n_kv_heads, page_size, head_dim]. Each head of q8 is followed by head_dim / 16
            words of 16 bits for each position: low bits of the elements, and their unit.
        state : operand
            struct oxb_decode_state: uint32 position, first token and first page of the sequence;
            one, or with batch [n_tokens].
        out : operand
            float32 [n_tokens, n_heads, head_dim]; NaN for a token past max_seq. It does not overlap
            qkv.
        n_heads : int
            Query heads, a multiple of n_kv_heads.
        n_kv_heads : int
            Key-value heads.
        head_dim : int
            Elements of a head: even, at most 512.
        max_seq : int
            Positions that the caches hold.
        layer : int
            Which layer of the caches, from 0.
        kv_dtype : {"f16", "f32", "q8"}
            Elements of the caches; q8 wants a head_dim that is a multiple of 32.
        n_tokens : int
            Tokens in flight, at the state's position and after it, or with batch one for each
            state, at its position.
        eps : float
            Of the norms; finite and not negative.
        max_length : int, optional
            The most positions that a replay will meet, max_seq where left out: it decides into how
            many splits the positions of one token are divided, and nothing else.
        scale : float, optional
            Factor of the scores; 1 / sqrt(head_dim) where left out.
        rotary_dim : int
            Elements of a head that are rotated, the first ones, after the norm of the whole head:
            even, 0 for all of them.
        rope_style : {"neox", "interleaved"}
            The elements that rotate together: i and i + rotary_dim / 2, or 2 i and 2 i + 1.
        batch : bool
            Whether each token belongs to a sequence of its own.
        pages : operand, optional
            uint32, for each page_size positions of a sequence its page in the caches, from element
            ``pages`` of its state on. Without, a cache is one page of max_seq positions.
        page_size, n_layers, n_pages : int
            Positions of a page, a multiple of 64, its layers, and how many a cache has.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        ValueError
            For another kv_dtype.
        TypeError
            Where an operand is none, or a number no integer.
        """
    def argmax(
        self, logits: _Binding, out: _Binding, n: SupportsIndex, *, n_vectors: SupportsIndex = 1
    ) -> None:
        """Record out[v] = the index of the largest of row v of the logits.

        Of equal ones the lowest index, and 0 where all are NaN.

        Parameters
        ----------
        logits : operand
            float32 [n_vectors, n].
        out : operand
            uint32 [n_vectors]. It does not overlap the logits.
        n : int
            Elements of a row.
        n_vectors : int
            Rows.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        TypeError
            Where an operand is none, or a number no integer.
        """
    def sample(
        self,
        logits: _Binding,
        settings: _Binding,
        state: _Binding,
        tokens: _Binding,
        choices: _Binding,
        n: SupportsIndex,
        max_tokens: SupportsIndex,
        *,
        n_vectors: SupportsIndex = 1,
        biases: _Binding | None = None,
        masks: _Binding | None = None,
        best: _Binding | None = None,
        n_best: SupportsIndex = 0,
        n_biases: SupportsIndex = 0,
        n_masks: SupportsIndex = 0,
        n_slots: SupportsIndex = 1,
        batch: bool = False,
        log_probabilities: bool = False,
        advance: bool = True,
    ) -> None:
        """Record the choice of the next token of each row of logits.

        Row v is for the position after its token in flight: its own sequence's where batch is set,
        else v positions further in one sequence. One seed gives one choice, whatever the device.
        Mask, biases and penalties are applied in this order, then the temperature, top-k, top-p of
        what top-k kept, and min-p. A row whose position is 2^31 or more is idle: nothing is written
        for it.

        Parameters
        ----------
        logits : operand
            float32 [n_vectors, n].
        settings : operand
            64 bytes for each sequence: struct oxb_sampling.
        state : operand
            16 bytes for each sequence: struct oxb_decode_state.
        tokens : operand
            uint32 [max_tokens]: read for penalties; where the choice goes if advance.
        choices : operand
            struct oxb_choice [n_vectors, n_slots], written at slot position % n_slots; its token
            is 0xffffffff where no logit is above -inf.
        n : int
            Logits of a row.
        max_tokens : int
            Elements of tokens.
        n_vectors : int
            Rows.
        biases : operand, optional
            struct oxb_bias [n_biases].
        masks : operand, optional
            uint32 [n_masks, (n + 31) / 32]; bit i of word i / 32 allows a token.
        best : operand, optional
            struct oxb_scored [n_vectors, n_slots, n_best], at the same slot: the largest logits as
            they came, with their log probabilities.
        n_best : int
            How many of them, 0 to 32.
        n_biases, n_masks : int
            Biases and rows of masks.
        n_slots : int
            Choices that are kept for a row.
        batch : bool
            Whether each row is of a sequence of its own; else they follow one another in one.
        log_probabilities : bool
            Whether to give the log probability of each choice, of the logits as they came; else it
            is 0.
        advance : bool
            Whether to store the choice among the tokens, as token 0 where there is none, and move
            the position on. Without batch it needs n_vectors of 1.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        TypeError
            Where an operand is none, or a number no integer.
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
        """Record position += n_tokens and, where greedy, tokens[position] = argmax of n logits.

        Parameters
        ----------
        logits : operand
            float32 [n]; read only where greedy.
        tokens : operand
            uint32 [max_tokens].
        state : operand
            16 bytes, the position as uint32 first.
        n : int
            Logits.
        max_tokens : int
            Elements of tokens; a token past them is not stored.
        n_tokens : int
            Tokens in flight.
        greedy : bool
            Whether to choose the next token.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        TypeError
            Where an operand is none, or a number no integer.
        """
