"""MetalGraph: the fused phases of a transformer layer on one device.

Every check is made before anything runs. The phases themselves, in _phases.pyx, run without the
GIL; the uploads are in _uploads.pyx.
"""

cimport cython
from cpython.number cimport PyNumber_Index
from libc.math cimport isfinite
from libc.stdint cimport uint64_t

from oxibonsai.metal._commands cimport shape_of, timeout_seconds
from oxibonsai.metal._core cimport Device, api, check
from oxibonsai.metal._phases cimport FFN, BufferPool, BufferSet, ffn_phase, gemv_phase
from oxibonsai.metal._uploads cimport WeightUploads
from oxibonsai.metal._weights cimport WeightCache, WeightHandle, weight_of
from oxibonsai.metal.oxb cimport oxb_weight

import logging
import threading

from oxibonsai.metal._errors import EncodingError, ExecutionError
from oxibonsai.metal._phases import BufferGuard
from oxibonsai.metal._weights import upload_vector


cdef extern from "base/clock.h" nogil:
    double clock_now()


_log = logging.getLogger("oxibonsai.metal")

# One FFN timing in the log for about every token of a 36-layer model.
cdef int LOG_EVERY = 36

cdef object _shared = None
_shared_lock = threading.Lock()


cdef uint64_t _dimension(object value, str what) except 0:
    n = PyNumber_Index(value)
    if not 1 <= n <= 0x7fffffff:
        raise EncodingError(f"{what} = {n} must lie in 1..2**31 - 1")
    return n


cdef int _check_length(str what, Py_ssize_t got, uint64_t need) except -1:
    if <uint64_t>got < need:
        raise EncodingError(f"{what} too short: need {need}, got {got}")
    return 0


@cython.no_gc_clear
cdef class MetalGraph(WeightUploads):
    """MetalGraph(device=None, *, timeout=None)\n--\n
    Uploads of weights and the fused phases of a transformer layer on one device.

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

    def __init__(self, device=None, *, timeout=None):
        if not isinstance(device, Device):
            device = Device(device)
        device.load_tuning()
        self.timeout_s = timeout_seconds(timeout)
        self.device = device
        self.weights = WeightCache()
        self.pool = BufferPool(device)

    @staticmethod
    def shared():
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
        global _shared
        with _shared_lock:
            if _shared is None or _shared.closed:
                _shared = MetalGraph()
            return _shared

    @property
    def closed(self):
        """Whether close() was called, here or on the device."""
        return self.is_closed or self.device is None or self.device.closed

    def close(self):
        """Drop the cached weights and the intermediate buffers; idempotent.

        Handles that others hold stay usable on the device.
        """
        self.is_closed = True
        if self.weights is not None:
            self.weights.clear()
        if self.pool is not None:
            self.pool.clear()

    def __enter__(self):
        self.check_open()
        return self

    def __exit__(self, *exc):
        self.close()

    def commands(self, *, activations="float32", deterministic=False):
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
        self.check_open()
        return self.device.commands(activations=activations, deterministic=deterministic)

    def acquire_buffers(self, hidden, inter, attn=None):
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
        self.check_open()
        h = _dimension(hidden, "hidden")
        a = h if attn is None else _dimension(attn, "attn")
        return BufferGuard(self.pool, (h, a, h, _dimension(inter, "inter")))

    cdef int gemv(self, str what, weight, const float[::1] x, float[::1] y, n_rows, k) except -1:
        cdef WeightHandle w = weight_of(weight, "weight")
        cdef oxb_weight matrix
        cdef uint64_t rows, columns
        cdef BufferSet held = None
        cdef double timeout = self.timeout_s
        cdef int retired = 1
        w.matrix(what)
        rows, columns = shape_of(w, n_rows, k)
        check(api.weight_check(w.matrix(what), rows, columns, what.encode()))
        _check_length("input", x.shape[0], columns)
        _check_length("output", y.shape[0], rows)
        self._check_device(what, w)
        w.borrow(what, &matrix)
        try:
            while retired:
                # Rounded up, so that the shapes of a model share a few sets.
                held = self.pool.acquire((_round_up(columns), _round_up(rows)))
                with nogil:
                    retired = gemv_phase(held, &matrix, rows, columns, &x[0], &y[0], timeout)
                if retired:
                    self.pool.retire(held)
        except ExecutionError:
            if held is not None:
                self.pool.retire(held)
            raise
        finally:
            with nogil:  # the last reference may have to wait for the device
                api.buffer_release(matrix.buffer)
        return 0

    def _check_device(self, what, WeightHandle weight):
        if weight.device is not self.device:
            raise EncodingError(
                f"{what}: the weight belongs to another device: upload it to this one"
            )

    def encode_gemv(self, weight, const float[::1] input not None, float[::1] output not None,
                    n_rows=None, k=None):
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
        self.check_open()
        _check_family("encode_gemv", weight, "q1")
        self.gemv("encode_gemv", weight, input, output, n_rows, k)

    def encode_gemv_tq2(self, weight, const float[::1] input not None, float[::1] output not None,
                        n_rows=None, k=None):
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
        self.check_open()
        _check_family("encode_gemv_tq2", weight, "q2")
        self.gemv("encode_gemv_tq2", weight, input, output, n_rows, k)

    def encode_qkv_phase(self, const float[::1] input not None, float[::1] output not None, weight,
                         n_rows=None, k=None):
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
        self.check_open()
        self.gemv("encode_qkv_phase", weight, input, output, n_rows, k)

    def encode_ffn_phase(self, float[::1] hidden not None, const float[::1] attn_out not None,
                         norm_weight, attn_proj, gate_up, down, hidden_size=None,
                         intermediate_size=None, eps=1e-6):
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
        cdef FFN f
        cdef BufferSet held = None
        cdef WeightHandle norm, proj, gate, last
        cdef const oxb_weight *matrix
        cdef double timeout = self.timeout_s
        cdef double started = clock_now()
        cdef int retired = 1
        self.check_open()
        what = "encode_ffn_phase"
        proj = weight_of(attn_proj, "attn_proj")
        gate = weight_of(gate_up, "gate_up")
        last = weight_of(down, "down")
        for name, handle in (("attn_proj", proj), ("gate_up", gate), ("down", last)):
            (<WeightHandle>handle).matrix(f"{what}: {name}")
        shape = last.shape
        if hidden_size is None or intermediate_size is None:
            if shape is None:
                raise EncodingError(
                    f"{what}: down was uploaded without a shape: give hidden_size and "
                    "intermediate_size"
                )
            hidden_size = shape[0] if hidden_size is None else hidden_size
            intermediate_size = shape[1] if intermediate_size is None else intermediate_size
        f.op.hidden_size = _dimension(hidden_size, "hidden_size")
        f.op.intermediate_size = _dimension(intermediate_size, "intermediate_size")
        f.op.attn_size = proj.shape[1] if proj.shape is not None else max(attn_out.shape[0], 1)
        f.op.norm.eps = eps
        if not (isfinite(f.op.norm.eps) and f.op.norm.eps >= 0):
            raise EncodingError(f"{what}: eps = {eps} must be finite and not negative")
        if not isinstance(norm_weight, WeightHandle):
            norm_weight = upload_vector(self.device, norm_weight)
        norm = norm_weight
        if not norm.vector:
            raise EncodingError(f"{what}: norm_weight must be a float32 vector, got {norm!r}")
        norm._check_open(f"{what}: norm_weight")
        self._check_device(f"{what}: norm_weight", norm)
        _check_length("norm_weight", norm.weight.n_groups, f.op.hidden_size)
        for name, handle, rows, columns in (
            ("attn_proj", proj, f.op.hidden_size, f.op.attn_size),
            ("gate_up", gate, 2 * f.op.intermediate_size, f.op.hidden_size),
            ("down", last, f.op.hidden_size, f.op.intermediate_size),
        ):
            label = f"{what}: {name}"
            self._check_device(label, handle)
            matrix = (<WeightHandle>handle).matrix(label)
            check(api.weight_check(matrix, rows, columns, label.encode()))
        _check_length("hidden", hidden.shape[0], f.op.hidden_size)
        _check_length("attn_out", attn_out.shape[0], f.op.attn_size)
        f.op.n_vectors = 1
        f.op.attn_rotation.signs.buffer = NULL
        f.op.gate_up_rotation.signs.buffer = NULL
        f.op.down_rotation.signs.buffer = NULL
        f.op.norm.weight.offset = 0
        f.hidden = &hidden[0]
        f.attn_out = &attn_out[0]
        f.op.norm.weight.buffer = f.attn_proj.buffer = f.gate_up.buffer = f.down.buffer = NULL
        try:
            # Held from here on, whatever other threads close.
            proj.borrow(what, &f.attn_proj)
            gate.borrow(what, &f.gate_up)
            last.borrow(what, &f.down)
            api.buffer_retain(norm.vector_buffer(what))
            f.op.norm.weight.buffer = norm.weight.buffer
            while retired:
                held = self.pool.acquire((
                    f.op.hidden_size, f.op.attn_size, f.op.hidden_size, f.op.intermediate_size
                ))
                with nogil:
                    retired = ffn_phase(held, &f, timeout)
                if retired:
                    self.pool.retire(held)
        except ExecutionError:
            if held is not None:
                self.pool.retire(held)
            raise
        finally:
            with nogil:  # the last reference may have to wait for the device
                api.buffer_release(f.op.norm.weight.buffer)
                api.buffer_release(f.attn_proj.buffer)
                api.buffer_release(f.gate_up.buffer)
                api.buffer_release(f.down.buffer)
        self.ffn_calls += 1
        if self.ffn_calls % LOG_EVERY == 0 and _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "FFN phase %d: acquire %.1f us, upload %.1f us, encode %.1f us, wait %.1f us, "
                "download %.1f us",
                self.ffn_calls, 1e6 * (f.acquired - started), 1e6 * f.upload, 1e6 * f.encode,
                1e6 * f.wait, 1e6 * f.download,
            )

    def __repr__(self):
        state = "closed" if self.closed else f"{len(self.weights)} cached weights"
        return f"<MetalGraph on {self.device!r}, {state}>"

    def __reduce__(self):
        raise TypeError("a MetalGraph cannot be pickled: make one in the process that uses it")


cdef uint64_t _round_up(uint64_t n) noexcept:
    cdef uint64_t power = 4096
    while power < n:
        power *= 2
    return power


def _check_family(what, weight, family):
    device_format = weight_of(weight, "weight").device_format
    if device_format is not None and not device_format.startswith(family):
        right = {"q1": "encode_gemv", "q2": "encode_gemv_tq2"}.get(
            device_format[:2], "encode_qkv_phase"
        )
        raise EncodingError(f"{what}: the weight is {weight.format}: use {right}")
