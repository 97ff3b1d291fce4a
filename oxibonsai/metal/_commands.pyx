"""Recorded command sequences."""

cimport cython
from cpython.number cimport PyNumber_Index
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from oxibonsai.metal._core cimport (
    Device,
    HostBytes,
    api,
    check,
    count_of,
    host_bytes,
    u32_of,
)
from oxibonsai.metal._owners cimport drain_owners
from oxibonsai.metal._pipeline cimport Pipeline
from oxibonsai.metal._recurrent cimport RecurrentOps
from oxibonsai.metal._weights cimport WeightHandle, bind_all, weight_of
from oxibonsai.metal.oxb cimport (
    OXB_ACTIVATIONS_HALF,
    OXB_ACTIVATIONS_INT8,
    OXB_KV_F16,
    OXB_KV_F32,
    OXB_KV_Q8,
    OXB_MAX_BINDINGS,
    OXB_OK,
    OXB_ROPE_INTERLEAVED,
    OXB_ROPE_NEOX,
    oxb_attention_shape,
    oxb_binding,
    oxb_commands,
    oxb_feed_forward,
    oxb_norm,
    oxb_rotation,
    oxb_sample,
    oxb_size,
    oxb_status,
)

from oxibonsai.metal._errors import EncodingError
from oxibonsai.metal._rotation import Rotation

cdef int MAX_IN_FLIGHT = 16


cdef oxb_size _size(object value, str what) except *:
    cdef oxb_size size
    extents = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not 1 <= len(extents) <= 3:
        raise EncodingError(f"{what} = {value!r}: one to three extents")
    extents = (*extents, 1, 1)
    size.x, size.y = u32_of(extents[0], what), u32_of(extents[1], what)
    size.z = u32_of(extents[2], what)
    return size


cdef oxb_attention_shape _attention_shape(
    n_heads, n_kv_heads, head_dim, max_seq, layer, kv_dtype, n_tokens, batch, pages, page_size,
    n_layers, n_pages, max_length=None
) except *:
    cdef oxb_attention_shape shape
    if kv_dtype not in ("f16", "f32", "q8"):
        raise ValueError(f"kv_dtype = {kv_dtype!r}: 'f16', 'f32' or 'q8'")
    shape.n_heads = u32_of(n_heads, "n_heads")
    shape.n_kv_heads = u32_of(n_kv_heads, "n_kv_heads")
    shape.head_dim = u32_of(head_dim, "head_dim")
    shape.max_seq = u32_of(max_seq, "max_seq")
    shape.layer = u32_of(layer, "layer")
    shape.kv_format = (
        OXB_KV_F16 if kv_dtype == "f16" else OXB_KV_F32 if kv_dtype == "f32" else OXB_KV_Q8)
    shape.n_tokens = u32_of(n_tokens, "n_tokens")
    shape.batch = bool(batch)
    shape.max_length = 0 if max_length is None else u32_of(max_length, "max_length")
    if max_length is not None and shape.max_length == 0:
        raise EncodingError(f"max_length = 0 must lie in 1..{shape.max_seq}, the max_seq")
    shape.rotary_dim = 0
    shape.rope_style = OXB_ROPE_NEOX
    shape.page_size = u32_of(page_size, "page_size")
    shape.n_layers = u32_of(n_layers, "n_layers")
    shape.n_pages = u32_of(n_pages, "n_pages")
    shape.pages.buffer = NULL
    shape.pages.offset = 0
    if pages is not None:
        bind_all((("pages", pages),), &shape.pages)
    return shape


cdef int _set_rope(oxb_attention_shape *shape, rotary_dim, rope_style) except -1:
    if rope_style not in ("neox", "interleaved"):
        raise EncodingError(f"rope_style = {rope_style!r} must be 'neox' or 'interleaved'")
    shape.rotary_dim = u32_of(rotary_dim, "rotary_dim")
    shape.rope_style = OXB_ROPE_INTERLEAVED if rope_style == "interleaved" else OXB_ROPE_NEOX
    return 0


# All but the signs, which are bound with the other operands.
cdef int _set_rotation(oxb_rotation *rotation, value, str what) except -1:
    memset(rotation, 0, sizeof(oxb_rotation))
    if value is None:
        return 0
    if not isinstance(value, Rotation):
        raise TypeError(f"{what} must be a Rotation, not {type(value).__name__}")
    rotation.block = u32_of(value.block, f"block of {what}")
    rotation.head_size = u32_of(value.head_size, f"head_size of {what}")
    rotation.n_groups = u32_of(value.n_groups, f"n_groups of {what}")
    return 0


@cython.no_gc_clear
cdef class Commands(RecurrentOps):
    """Commands(device, *, activations='float32', deterministic=False)\n--\n
    A recorded sequence of dispatches that can be submitted any number of times.

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

    def __init__(self, Device device not None, *, activations="float32", bint deterministic=False):
        cdef oxb_commands *handle = NULL
        if activations not in ("float32", "half", "int8"):
            raise ValueError(f"activations = {activations!r}: 'float32', 'half' or 'int8'")
        if self.handle:
            raise EncodingError("this Commands is made already: make a new one")
        # With the GIL: it makes a handle and asks the device nothing.
        check(api.commands_new(device.open_handle(), &handle))
        self.device = device
        self.handle = handle
        if activations == "half":
            check(api.commands_activations(handle, OXB_ACTIVATIONS_HALF))
        if activations == "int8":
            check(api.commands_activations(handle, OXB_ACTIVATIONS_INT8))
        if deterministic:
            check(api.commands_deterministic(handle, 1))

    def __dealloc__(self):
        # What is still in flight keeps itself and its buffers alive until the device is done.
        cdef int i
        with nogil:
            for i in range(self.n_flight):
                api.submission_release(self.flight[i])
            if self.handle:
                api.commands_release(self.handle)
        drain_owners()

    cdef oxb_commands *recording(self) except NULL:
        if not self.handle:
            raise EncodingError("the commands are closed: record new ones")
        if self.busy:
            raise EncodingError(
                "the commands are in use by another thread: give each thread its own")
        self.device.open_handle()
        return self.handle

    cdef int enter(self) except -1:
        self.recording()
        self.busy = True
        return 0

    cdef void leave(self) noexcept:
        # What has ended was released before whoever waited for it woke.
        self.busy = False
        drain_owners()

    @property
    def closed(self):
        """Whether close() was called.

        Returns
        -------
        bool
            A closed one refuses everything but close().
        """
        return self.handle == NULL

    def close(self):
        """Let go of the recording; work in flight ends by itself.

        Closing it again does nothing.

        Raises
        ------
        EncodingError
            While another thread is inside submit(), wait() or replay().
        """
        cdef oxb_commands *handle = self.handle
        cdef int i
        if not handle:
            return
        if self.busy:
            raise EncodingError("the commands are in use by another thread: close them after")
        self.handle = NULL
        with nogil:
            for i in range(self.n_flight):
                api.submission_release(self.flight[i])
            self.n_flight = 0
            api.commands_release(handle)
        drain_owners()

    def __enter__(self):
        self.recording()
        return self

    def __exit__(self, *exc):
        self.close()

    def __len__(self):
        return api.commands_length(self.recording())

    def reset(self):
        """Forget the recording, to record another.

        Raises
        ------
        EncodingError
            While a submission is in flight, or where the commands are closed.
        """
        check(api.commands_reset(self.recording()))
        drain_owners()

    def dispatch(self, Pipeline pipeline not None, bindings, args=b"", *, threadgroups, threads=1,
                 threadgroup_memory=0):
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
        cdef oxb_binding bound[31]
        cdef HostBytes struct = host_bytes(args)
        cdef oxb_size grid = _size(threadgroups, "threadgroups"), group = _size(threads, "threads")
        cdef uint32_t memory = u32_of(threadgroup_memory, "threadgroup_memory")
        operands = tuple((f"binding {i}", value) for i, value in enumerate(bindings))
        # The shim refuses more bindings than there is room for here.
        bind_all(operands[:<int>OXB_MAX_BINDINGS], bound)
        check(api.commands_dispatch(
            self.recording(), pipeline.open_handle(), bound, <uint32_t>len(operands),
            struct.address, struct.nbytes, grid, group, memory,
        ))

    cdef int drain(self, int keep, double timeout) except -1 nogil:
        # Wait for all but the last `keep` submissions. One that timed out stays in the list.
        cdef oxb_status status = OXB_OK
        cdef int i
        while self.n_flight > keep:
            status = api.submission_wait(self.flight[0], timeout)
            if status != OXB_OK and not api.submission_done(self.flight[0]):
                break
            if status == OXB_OK and api.submission_times(self.flight[0], &self.last) == OXB_OK:
                self.timed = True
            api.submission_release(self.flight[0])
            self.n_flight -= 1
            for i in range(self.n_flight):
                self.flight[i] = self.flight[i + 1]
            if status != OXB_OK:
                break
        return check(status)

    cdef int run(self, int times, double timeout) except -1 nogil:
        cdef int _i
        for _i in range(times):
            if self.n_flight == MAX_IN_FLIGHT:
                self.drain(MAX_IN_FLIGHT - 1, timeout)
            check(api.commands_submit(self.handle, &self.flight[self.n_flight]))
            self.n_flight += 1
        return 0

    def submit(self, times=1):
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
        cdef int n = _times(times)
        self.enter()
        try:
            with nogil:
                self.run(n, -1)
        finally:
            self.leave()

    def wait(self, timeout=None, *, keep=0):
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
        cdef double seconds = timeout_seconds(timeout)
        kept = PyNumber_Index(keep)
        if kept < 0:
            raise EncodingError(f"keep = {kept} must be 0 or more")
        cdef int rest = min(kept, MAX_IN_FLIGHT)
        self.enter()
        try:
            with nogil:
                self.drain(rest, seconds)
        finally:
            self.leave()

    def replay(self, times=1, timeout=None):
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
        cdef int n = _times(times)
        cdef double seconds = timeout_seconds(timeout)
        self.enter()
        try:
            with nogil:
                self.run(n, seconds)
                self.drain(0, seconds)
        finally:
            self.leave()

    @property
    def in_flight(self):
        """Submissions that nobody has waited for.

        Returns
        -------
        int
            0 to 16.
        """
        return self.n_flight

    @property
    def device_time(self):
        """Time that the device took for the last submission waited for.

        Returns
        -------
        float or None
            Seconds; None before the first.
        """
        return self.last.end - self.last.start if self.timed else None

    def describe(self):
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
        cdef oxb_commands *handle = self.recording()
        cdef uint32_t i, n = api.commands_length(handle)
        name = f"{self.device.driver}:{self.device.index}"
        lines = [f"{n} dispatch{'' if n == 1 else 'es'} on {name}"]
        for i in range(n):
            lines.append(f"{i} {_described(handle, i)}")
        return "\n".join(lines)

    # Each op converts its numbers first and reads open handles last: a conversion may run code
    # that closes one of them.

    def gemv(self, weight, x, y, n_rows=None, k=None, *, residual=False, n_vectors=1, y_stride=None,
             norm=None, eps=1e-6):
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
        cdef oxb_binding b[3]
        cdef oxb_norm normalise
        cdef WeightHandle w = weight_of(weight, "weight")
        cdef bint add = residual
        cdef uint64_t rows, columns, vectors = count_of(n_vectors, "n_vectors")
        rows, columns = shape_of(w, n_rows, k)
        cdef uint64_t stride = rows if y_stride is None else count_of(y_stride, "y_stride")
        normalise.eps = eps
        bind_all(_with_norm(norm, (("x", x), ("y", y))), b)
        normalise.weight = b[2]
        check(api.op_gemv(self.recording(), w.matrix("gemv"), rows, columns,
                          &normalise if norm is not None else NULL, b[0], b[1], vectors, stride,
                          add))

    def gate_up_swiglu(self, weight, x, y, n_rows=None, k=None, *, n_vectors=1, norm=None,
                       eps=1e-6):
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
        cdef oxb_binding b[3]
        cdef oxb_norm normalise
        cdef WeightHandle w = weight_of(weight, "weight")
        cdef uint64_t rows, columns, vectors = count_of(n_vectors, "n_vectors")
        rows, columns = shape_of(w, n_rows, k)
        normalise.eps = eps
        bind_all(_with_norm(norm, (("x", x), ("y", y))), b)
        normalise.weight = b[2]
        check(api.op_gate_up_swiglu(self.recording(), w.matrix("gate_up_swiglu"), rows, columns,
                                    &normalise if norm is not None else NULL, b[0], b[1], vectors))

    def feed_forward(self, attn, hidden, activated, *, attn_proj, norm, gate_up, down, n_vectors=1,
                     eps=1e-6, attn_rotation=None, gate_up_rotation=None, down_rotation=None):
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
        cdef oxb_feed_forward f
        cdef oxb_binding b[7]
        cdef oxb_rotation *rotations[3]
        cdef WeightHandle proj = weight_of(attn_proj, "attn_proj")
        cdef WeightHandle gate = weight_of(gate_up, "gate_up")
        cdef WeightHandle last = weight_of(down, "down")
        f.attn_proj = proj.matrix("feed_forward: attn_proj")
        f.gate_up = gate.matrix("feed_forward: gate_up")
        f.down = last.matrix("feed_forward: down")
        f.n_vectors = count_of(n_vectors, "n_vectors")
        f.hidden_size, f.attn_size = shape_of(proj, None, None)
        f.intermediate_size = shape_of(last, None, None)[1]
        rotations[0] = &f.attn_rotation
        rotations[1] = &f.gate_up_rotation
        rotations[2] = &f.down_rotation
        signs = []
        for i, (what, rotation) in enumerate((
            ("attn_rotation", attn_rotation),
            ("gate_up_rotation", gate_up_rotation),
            ("down_rotation", down_rotation),
        )):
            _set_rotation(rotations[i], rotation, what)
            if rotation is not None:
                signs.append((i, (f"signs of {what}", rotation.signs)))
        bind_all((
            ("attn", attn), ("hidden", hidden), ("activated", activated), ("norm", norm),
            *[operand for _, operand in signs],
        ), b)
        f.attn, f.hidden, f.activated, f.norm.weight = b[0], b[1], b[2], b[3]
        for place, (i, _) in enumerate(signs, 4):
            rotations[i].signs = b[place]
        f.norm.eps = eps
        f.normed.buffer = NULL
        f.normed.offset = 0
        check(api.op_feed_forward(self.recording(), &f))

    def rmsnorm(self, x, weight, y, n, *, eps=1e-6, n_vectors=1):
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
        cdef oxb_binding b[3]
        cdef uint64_t size = count_of(n, "n"), vectors = count_of(n_vectors, "n_vectors")
        cdef float epsilon = eps
        bind_all((("x", x), ("weight", weight), ("y", y)), b)
        check(api.op_rmsnorm(self.recording(), b[0], b[1], b[2], size, vectors, epsilon))

    def add(self, x, y, n):
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
        cdef oxb_binding b[2]
        cdef uint64_t size = count_of(n, "n")
        bind_all((("x", x), ("y", y)), b)
        check(api.op_add(self.recording(), b[0], b[1], size))

    def add_bias(self, bias, y, n, n_vectors=1, *, y_stride=None):
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
        cdef oxb_binding b[2]
        cdef uint64_t size = count_of(n, "n"), vectors = count_of(n_vectors, "n_vectors")
        cdef uint64_t stride = size if y_stride is None else count_of(y_stride, "y_stride")
        bind_all((("bias", bias), ("y", y)), b)
        check(api.op_add_bias(self.recording(), b[0], b[1], size, vectors, stride))

    def embed(self, weight, tokens, state, y, n_rows=None, k=None, *, n_tokens=1, batch=False):
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
        cdef oxb_binding b[3]
        cdef WeightHandle w = weight_of(weight, "weight")
        cdef uint64_t rows, columns, count = count_of(n_tokens, "n_tokens")
        rows, columns = shape_of(w, n_rows, k)
        bind_all((("tokens", tokens), ("state", state), ("y", y)), b)
        check(api.op_embed(
            self.recording(), w.matrix("embed"), rows, columns, b[0], b[1], b[2], count,
            bool(batch)))

    def qk_norm_rope(self, qkv, q_norm, k_norm, rope, state, *, n_heads, n_kv_heads, head_dim,
                     max_seq, layer, kv_dtype, n_tokens=1, eps=1e-6, rotary_dim=0,
                     rope_style="neox", batch=False, pages=None, page_size=0, n_layers=0,
                     n_pages=0):
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
        cdef oxb_binding b[5]
        cdef oxb_attention_shape shape = _attention_shape(
            n_heads, n_kv_heads, head_dim, max_seq, layer, kv_dtype, n_tokens, batch, pages,
            page_size, n_layers, n_pages)
        cdef float epsilon = eps
        _set_rope(&shape, rotary_dim, rope_style)
        b[3].buffer = b[4].buffer = NULL
        bind_all(_with_norms(q_norm, k_norm, (("qkv", qkv), ("rope", rope), ("state", state))), b)
        check(api.op_qk_norm_rope(self.recording(), b[0], b[3], b[4], b[1], b[2], &shape, epsilon))

    def kv_store(self, qkv, k_cache, v_cache, state, *, n_heads, n_kv_heads, head_dim, max_seq,
                 layer, kv_dtype, n_tokens=1, batch=False, pages=None, page_size=0, n_layers=0,
                 n_pages=0):
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
        cdef oxb_binding b[4]
        cdef oxb_attention_shape shape = _attention_shape(
            n_heads, n_kv_heads, head_dim, max_seq, layer, kv_dtype, n_tokens, batch, pages,
            page_size, n_layers, n_pages)
        bind_all((("qkv", qkv), ("k_cache", k_cache), ("v_cache", v_cache), ("state", state)), b)
        check(api.op_kv_store(self.recording(), b[0], b[1], b[2], b[3], &shape))

    def qkv_to_cache(self, qkv, q_norm, k_norm, rope, k_cache, v_cache, state, *, n_heads,
                     n_kv_heads, head_dim, max_seq, layer, kv_dtype, n_tokens=1, eps=1e-6,
                     rotary_dim=0, rope_style="neox", batch=False, pages=None, page_size=0,
                     n_layers=0, n_pages=0):
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
        cdef oxb_binding b[7]
        cdef oxb_attention_shape shape = _attention_shape(
            n_heads, n_kv_heads, head_dim, max_seq, layer, kv_dtype, n_tokens, batch, pages,
            page_size, n_layers, n_pages)
        cdef float epsilon = eps
        _set_rope(&shape, rotary_dim, rope_style)
        b[5].buffer = b[6].buffer = NULL
        bind_all(_with_norms(q_norm, k_norm, (
            ("qkv", qkv), ("rope", rope), ("k_cache", k_cache), ("v_cache", v_cache),
            ("state", state),
        )), b)
        check(api.op_qkv_to_cache(
            self.recording(), b[0], b[5], b[6], b[1], b[2], b[3], b[4], &shape, epsilon))

    def attention(self, qkv, k_cache, v_cache, state, out, *, n_heads, n_kv_heads, head_dim,
                  max_seq, layer, kv_dtype, n_tokens=1, max_length=None, scale=None, batch=False,
                  pages=None, page_size=0, n_layers=0, n_pages=0):
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
        cdef oxb_binding b[5]
        cdef oxb_attention_shape shape = _attention_shape(
            n_heads, n_kv_heads, head_dim, max_seq, layer, kv_dtype, n_tokens, batch, pages,
            page_size, n_layers, n_pages, max_length)
        cdef float factor = scale if scale is not None else max(shape.head_dim, 1) ** -0.5
        bind_all((("qkv", qkv), ("k_cache", k_cache), ("v_cache", v_cache), ("state", state),
                  ("out", out)), b)
        check(api.op_attention(self.recording(), b[0], b[1], b[2], b[3], b[4], &shape, factor))

    def qkv_attention(self, qkv, q_norm, k_norm, rope, k_cache, v_cache, state, out, *, n_heads,
                      n_kv_heads, head_dim, max_seq, layer, kv_dtype, n_tokens=1, eps=1e-6,
                      max_length=None, scale=None, rotary_dim=0, rope_style="neox", batch=False,
                      pages=None, page_size=0, n_layers=0, n_pages=0):
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
        cdef oxb_binding b[8]
        cdef oxb_attention_shape shape = _attention_shape(
            n_heads, n_kv_heads, head_dim, max_seq, layer, kv_dtype, n_tokens, batch, pages,
            page_size, n_layers, n_pages, max_length)
        cdef float epsilon = eps
        cdef float factor = scale if scale is not None else max(shape.head_dim, 1) ** -0.5
        _set_rope(&shape, rotary_dim, rope_style)
        b[6].buffer = b[7].buffer = NULL
        bind_all(_with_norms(q_norm, k_norm, (
            ("qkv", qkv), ("rope", rope), ("k_cache", k_cache), ("v_cache", v_cache),
            ("state", state), ("out", out),
        )), b)
        check(api.op_qkv_attention(
            self.recording(), b[0], b[6], b[7], b[1], b[2], b[3], b[4], b[5], &shape, epsilon,
            factor))

    def argmax(self, logits, out, n, *, n_vectors=1):
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
        cdef oxb_binding b[2]
        cdef uint64_t size = count_of(n, "n"), vectors = count_of(n_vectors, "n_vectors")
        bind_all((("logits", logits), ("out", out)), b)
        check(api.op_argmax(self.recording(), b[0], b[1], size, vectors))

    def sample(self, logits, settings, state, tokens, choices, n, max_tokens, *, n_vectors=1,
               biases=None, masks=None, best=None, n_best=0, n_biases=0, n_masks=0, n_slots=1,
               batch=False, log_probabilities=False, advance=True):
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
        cdef oxb_binding b[8]
        cdef oxb_sample s
        memset(&s, 0, sizeof(s))
        names = ["logits", "settings", "state", "tokens", "choices"]
        operands = [logits, settings, state, tokens, choices]
        for name, operand in (("biases", biases), ("masks", masks), ("best", best)):
            if operand is not None:
                names.append(name)
                operands.append(operand)
        bind_all(tuple(zip(names, operands)), b)
        s.logits, s.settings, s.state, s.tokens, s.choices = b[0], b[1], b[2], b[3], b[4]
        cdef int at = 5
        if biases is not None:
            s.biases = b[at]
            at += 1
        if masks is not None:
            s.masks = b[at]
            at += 1
        if best is not None:
            s.best = b[at]
        s.n, s.n_vectors = count_of(n, "n"), count_of(n_vectors, "n_vectors")
        s.max_tokens = count_of(max_tokens, "max_tokens")
        s.n_biases, s.n_masks = count_of(n_biases, "n_biases"), count_of(n_masks, "n_masks")
        s.n_slots = min(count_of(n_slots, "n_slots"), 0xffffffff)
        s.n_best = min(count_of(n_best, "n_best"), 0xffffffff)
        s.batch, s.advance = bool(batch), bool(advance)
        s.log_probabilities = bool(log_probabilities)
        check(api.op_sample(self.recording(), &s))

    def advance(self, logits, tokens, state, n, max_tokens, *, n_tokens=1, greedy=True):
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
        cdef oxb_binding b[3]
        cdef uint64_t size = count_of(n, "n"), limit = count_of(max_tokens, "max_tokens")
        cdef uint64_t count = count_of(n_tokens, "n_tokens")
        cdef bint choose = greedy
        bind_all((("logits", logits), ("tokens", tokens), ("state", state)), b)
        check(api.op_advance(self.recording(), b[0], b[1], b[2], size, limit, count, choose))

    def __repr__(self):
        if not self.handle:
            return "<Commands closed>"
        n = api.commands_length(self.handle)
        return f"<Commands of {n} dispatches, {self.n_flight} in flight>"


cdef str _described(oxb_commands *handle, uint32_t index):
    cdef char text[4096]
    cdef uint64_t length = 0
    check(api.commands_describe(handle, index, text, sizeof(text), &length))
    if length < sizeof(text):
        return text[:length].decode()
    longer = bytearray(length + 1)
    check(api.commands_describe(handle, index, longer, length + 1, &length))
    return longer[:length].decode()


cdef tuple _with_norm(norm, tuple operands):
    return operands if norm is None else (*operands, ("norm", norm))


cdef tuple _with_norms(q_norm, k_norm, tuple operands):
    if (q_norm is None) != (k_norm is None):
        given, missing = ("q_norm", "k_norm") if k_norm is None else ("k_norm", "q_norm")
        raise EncodingError(f"{given} without {missing}: give both norms, or None for both")
    return operands if q_norm is None else (*operands, ("q_norm", q_norm), ("k_norm", k_norm))


cdef int _times(object times) except -1:
    n = PyNumber_Index(times)
    if not 1 <= n <= 0x7fffffff:
        raise EncodingError(f"times = {n} must lie in 1..2**31 - 1")
    return n


cdef double timeout_seconds(object timeout) except? -2:
    # The shim's convention: negative is without end.
    if timeout is None:
        return -1
    cdef double seconds = timeout
    if not seconds >= 0:
        raise ValueError(f"timeout = {timeout!r}: seconds, 0 or more, or None")
    return seconds


cdef tuple shape_of(WeightHandle weight, n_rows, k):
    shape = weight.shape
    if n_rows is None or k is None:
        if shape is None:
            raise EncodingError("the weight was uploaded without a shape: give n_rows and k")
        n_rows = shape[0] if n_rows is None else n_rows
        k = shape[1] if k is None else k
    return count_of(n_rows, "n_rows"), count_of(k, "k")
