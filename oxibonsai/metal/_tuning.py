"""The tuner: which variant of each kernel is the fastest on this very device."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from oxibonsai.formats import FORMATS, Format
from oxibonsai.metal import _tuning_file
from oxibonsai.metal._core import ChosenVariant, Device, DeviceInfo
from oxibonsai.metal._errors import (
    BufferCreationError,
    CompilationError,
    DeviceNotFoundError,
    MetalGraphError,
)
from oxibonsai.metal._graph import MetalGraph
from oxibonsai.metal._tuning_file import of_class

if TYPE_CHECKING:
    from oxibonsai.metal._commands import Commands
    from oxibonsai.metal._weights import WeightHandle

__all__ = ["Measured", "Tuning", "kept_variants", "load_choices", "tune"]

_log = logging.getLogger("oxibonsai.metal")

_WORKING_SET = 128 << 20
"""Bytes of copies of a matrix that are read in turn: no cache holds them."""
_MOST_COPIES = 128
_FEW_VECTORS = 16
"""More take longer than their matrix does."""
_OWN_CHUNK, _SHARED_CHUNK, _SMALLEST_CHUNK = 512, 128, 64
"""Tokens of a prompt that run at once: on a GPU with memory of its own, on another; the smallest
class of the last ones that half products take. Each class has a choice of its own."""
_MOST_ROUNDS = 9
_FEWEST_ROUNDS = 3
_GAIN = 0.98
"""The part of the default's time below which another variant is taken."""
_MOST_ERROR = 1e-3
"""Of the norm of the default's result: a variant further away is wrong on this device."""
_HEADS = (151936, 248320)
"""Rows of heads, of which a prompt needs its last token's alone."""
_SHAPES = (
    # qkv, attention's output, gate and up, down, head: of 8B, 1.7B and 4B; then of 27B, where most
    # layers have another attention, gate and up, down, head
    ("gemv", 6144, 4096),
    ("gemv", 4096, 4096),
    ("swiglu", 24576, 4096),
    ("gemv", 4096, 12288),
    ("gemv", 151936, 4096),
    ("gemv", 4096, 2048),
    ("gemv", 2048, 2048),
    ("swiglu", 12288, 2048),
    ("gemv", 2048, 6144),
    ("gemv", 151936, 2048),
    ("gemv", 6144, 2560),
    ("gemv", 2560, 4096),
    ("swiglu", 19456, 2560),
    ("gemv", 2560, 9728),
    ("gemv", 151936, 2560),
    ("swiglu", 34816, 5120),
    ("gemv", 5120, 17408),
    ("gemv", 248320, 5120),
)


class Measured(NamedTuple):
    """What the tuner found for one product.

    Attributes
    ----------
    variant : ChosenVariant
        The product, with the kernel that the device takes from now on.
    default : str
        The kernel that it takes by itself.
    seconds : dict of str to float
        The median time of each kernel that was measured: of one product, its matrix read from
        memory.
    """

    variant: ChosenVariant
    default: str
    seconds: dict[str, float]

    @property
    def speedup(self) -> float:
        """How often as fast as by the default the product is."""
        return self.seconds[self.default] / self.seconds[self.variant.name]


class Tuning(NamedTuple):
    """What tune() found.

    Attributes
    ----------
    measured : list of Measured
        The products that were measured.
    left : list of ChosenVariant
        Those for which the budget was too short, or the device's memory, with the kernels that they
        take.
    path : str or None
        The file that keeps the choices; None where none was written.
    """

    measured: list[Measured]
    left: list[ChosenVariant]
    path: str | None


def tune(
    device: Device,
    products: Iterable[ChosenVariant] | None = None,
    *,
    budget: float = 20.0,
    keep: bool = True,
) -> Tuning:
    """Measure the variants of the kernels on a device, and choose the fastest.

    Each variant of a product is recorded over copies of its matrix that no cache holds, with the
    norm where the device fuses it and with the sum that models have. The recordings are replayed in
    turn, so that a change of the clock meets all of them, and timed by
    the device. A variant replaces the default where its median is more than 2 % shorter. Results
    change within rounding only. What was recorded before keeps its kernels.

    Parameters
    ----------
    device : Device
        Where to measure; nothing else should run on it.
    products : iterable of ChosenVariant, optional
        What to measure, most important first; names do not matter.
        ``device.recorded_variants()`` has those of a model that ran. Left out, the products of
        1-bit and ternary models of 8B, 1.7B, 4B and 27B parameters, by one vector and by those of
        a prompt: 64 to 512 on a GPU with memory of its own, 64 and 128 on another.
    budget : float
        Seconds after which no further product is begun.
    keep : bool
        Whether the choices are kept in the user's cache, ``oxibonsai/tuning`` in
        ``XDG_CACHE_HOME`` or ``~/.cache``. Devices of the same name then take them when a
        MetalGraph is made, as long as neither the package nor the device's driver changes.

    Returns
    -------
    Tuning
        The times and the choices. A product of which the device has one kernel is in no list, nor
        is one that cannot be measured: a warning says why.

    Raises
    ------
    EncodingError, ExecutionError
        If the device cannot run a product. What was measured before is chosen and kept.
    ValueError
        If `budget` is negative or NaN.
    """
    if not budget >= 0:
        raise ValueError(f"budget = {budget}: a number of seconds is needed, 0 or more")
    deadline = time.monotonic() + budget
    device.load_tuning()  # else a later graph would load it, over what is found here
    wanted = _several(device, _default_products(device) if products is None else products)
    if not wanted:
        return Tuning([], [], None)
    found: list[Measured] = []
    left: list[ChosenVariant] = []
    path = None
    n_open = len(wanted)
    try:
        # What is measured is not what the caller's device records: it has a device of its own.
        name = f"{device.driver}:{device.index}"
        with _BenchDevice(name) as own, MetalGraph(own) as graph:
            for group in _by_matrix(wanted):
                remaining = deadline - time.monotonic()
                share, n_open = remaining * len(group) / n_open, n_open - len(group)
                if remaining <= 0:
                    left += group
                    continue
                try:
                    for measured in _measure_matrix(graph, group, share):
                        found.append(measured)
                        name = measured.variant.name
                        taken = None if name == measured.default else name
                        _choose(device, measured.variant, taken)
                except (BufferCreationError, MemoryError) as error:
                    _log.warning("%s is left: %s", _told(group[0]), error)
                    done = {of_class(measured.variant) for measured in found}
                    left += [product for product in group if product not in done]
    finally:  # what was measured is not lost with the rest
        if keep and found:
            path = _tuning_file.keep(device.info, [m.variant for m in found], _changes(found))
    return Tuning(found, [_in_use(device, product) for product in left], path)


def load_choices(device: Device) -> None:
    """Choose what the user's cache has for this device; a product that has a choice keeps it."""
    _take(device, _tuning_file.load(device.info))


def _take(device: Device, choices: Iterable[ChosenVariant]) -> None:
    taken = {of_class(choice) for choice in device.chosen_variants()}
    for choice in choices:
        if of_class(choice) in taken:
            continue
        try:
            _choose(device, choice, choice.name)
        except (MetalGraphError, ValueError) as error:
            _log.warning("a choice of the tuner is left out: %s", error)


def kept_variants(device: DeviceInfo) -> list[ChosenVariant]:
    """List the choices that tune() keeps in the user's cache for devices such as this one.

    Parameters
    ----------
    device : DeviceInfo
        What ``Device.info`` or ``devices()`` tells of it.

    Returns
    -------
    list of ChosenVariant
        What a MetalGraph on the device would choose: where something is kept, the device is opened
        to ask it. Empty where nothing was kept for this name, driver and package, where the device
        cannot be opened, and where the environment variable ``OXIBONSAI_TUNING=0`` switches it off.
    """
    kept = _tuning_file.load(device)
    if not kept:
        return []
    try:
        with Device(f"{device.driver}:{device.index}") as opened:
            _take(opened, kept)
            return opened.chosen_variants()
    except DeviceNotFoundError:
        return []


def _default_products(device: Device) -> Iterator[ChosenVariant]:
    chunk = _SHARED_CHUNK if device.info.unified_memory else _OWN_CHUNK
    for device_format in ("q1_g128", "q2_g128"):
        for op, n_rows, k in _SHAPES:
            product = ChosenVariant(
                op=op, device_format=device_format, n_rows=n_rows, k=k, n_vectors=1, name=""
            )
            yield product
            n_vectors = chunk
            while n_vectors >= _SMALLEST_CHUNK and n_rows not in _HEADS:
                yield product._replace(op="gemm_half", n_vectors=n_vectors)
                n_vectors //= 2


def _several(device: Device, products: Iterable[ChosenVariant]) -> list[ChosenVariant]:
    """Return each product once that has several variants."""
    unique = dict.fromkeys(of_class(product) for product in products)
    return [product for product in unique if len(_names(device, product)) > 1]


def _by_matrix(products: list[ChosenVariant]) -> Iterator[list[ChosenVariant]]:
    """Yield the products of each matrix, which share its copies."""
    groups: dict[tuple[str, int, int], list[ChosenVariant]] = {}
    for product in products:
        matrix = (product.device_format, product.n_rows, product.k)
        groups.setdefault(matrix, []).append(product)
    yield from groups.values()


def _in_use(device: Device, product: ChosenVariant) -> ChosenVariant:
    chosen = (c for c in device.chosen_variants() if of_class(c) == product)
    return next(chosen, product._replace(name=_names(device, product)[0]))


def _names(device: Device, product: ChosenVariant) -> tuple[str, ...]:
    p = product
    return device.kernel_variants(p.op, p.device_format, p.n_rows, p.k, p.n_vectors)


def _choose(device: Device, product: ChosenVariant, name: str | None) -> None:
    p = product
    device.choose_variant(p.op, p.device_format, p.n_rows, p.k, name, n_vectors=p.n_vectors)


def _changes(found: Iterable[Measured]) -> list[ChosenVariant]:
    return [m.variant for m in found if m.variant.name != m.default]


def _file_format(device_format: str) -> Format:
    return next(f for f in FORMATS.values() if f.device_format == device_format)


def _matrix(fmt: Format, n_rows: int, k: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return blocks with random codes and finite numbers."""
    nbytes = n_rows * fmt.row_bytes(k)
    if not fmt.coded:
        return np.full(nbytes, 0x3C, np.uint8)  # small in every dense format
    data = np.frombuffer(np.random.default_rng(0).bytes(nbytes), np.uint8).copy()
    scale = np.frombuffer(np.float16(k**-0.5).tobytes(), np.uint8)
    data.reshape(-1, fmt.block_bytes)[:, fmt.scale_offset : fmt.scale_offset + 2] = scale
    return data


@contextmanager
def _copies(graph: MetalGraph, product: ChosenVariant) -> Iterator[list[WeightHandle]]:
    """Give copies of a matrix that are more than a cache holds."""
    fmt, shape = _file_format(product.device_format), (product.n_rows, product.k)
    data = _matrix(fmt, *shape)
    n = min(max(2, -(-_WORKING_SET // data.nbytes)), _MOST_COPIES)
    with ExitStack() as stack:
        handles = []
        for _ in range(n):
            if fmt.coded:
                handle = graph.upload_weight_soa(data, fmt.name, shape)
            else:
                handle = graph.upload_dense_weight([data], fmt.name, shape)
            handles.append(stack.enter_context(handle))
        yield handles


def _measure_matrix(
    graph: MetalGraph, products: list[ChosenVariant], seconds: float
) -> Iterator[Measured]:
    """Measure the products of one matrix in about so many seconds."""
    with _copies(graph, products[0]) as handles:
        for product in products:
            few = product.n_vectors <= _FEW_VECTORS  # else the matrix is read once for all vectors
            with _Bench(graph.device, product, handles if few else handles[:2]) as bench:
                measured = bench.measure(seconds / len(products))
            if measured:
                yield measured


class _BenchDevice(Device):
    """A device that takes what the tuner chooses, and nothing that was kept before."""

    def load_tuning(self) -> None:
        """Load nothing."""


class _Bench:
    """A product on a device, with what its variants read and write.

    The forms are those of a model: with the norm of its vectors where the device fuses it, and
    added to what is there, one after the other.
    """

    def __init__(self, device: Device, product: ChosenVariant, handles: list[WeightHandle]) -> None:
        self._device, self._product, self._handles = device, product, handles
        self._swiglu = product.op.startswith("swiglu")
        n_vectors, k = product.n_vectors, product.k
        self._n_out = n_vectors * product.n_rows // (2 if self._swiglu else 1)
        self._stack = ExitStack()
        x = np.random.default_rng(1).standard_normal(n_vectors * k, np.float32)
        storage = device.working_storage
        try:
            keep = self._stack.enter_context
            self._x = keep(device.upload(x, storage=storage))
            self._norm = keep(device.upload(np.ones(k, np.float32), storage=storage))
            self._y = keep(device.buffer(4 * self._n_out, storage=storage))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def measure(self, seconds: float) -> Measured | None:
        """Time the variants for about so long; None, with a warning, where that says nothing."""
        product, default = self._product, _names(self._device, self._product)[0]
        recordings = self._recordings()
        if default not in recordings:
            return None
        times = _rounds(recordings, seconds)
        medians = {
            name: statistics.median(taken) / len(self._handles) if taken else 0.0
            for name, taken in times.items()
        }
        if not all(median > 0 for median in medians.values()):
            _log.warning("%s is left out: the device tells no time", _told(product))
            return None
        best = min(medians, key=medians.__getitem__)
        if not medians[best] < _GAIN * medians[default]:
            best = default
        return Measured(product._replace(name=best), default, medians)

    def _recordings(self) -> dict[str, Commands]:
        """Record the product by each variant, the default first, and leave out what is wrong."""
        expected = None
        recordings: dict[str, Commands] = {}
        fused = self._product.n_vectors <= _FEW_VECTORS and self._is_norm_fused()
        for name in _names(self._device, self._product):
            _choose(self._device, self._product, name)
            try:
                commands = self._recorded(fused)
            except CompilationError as error:
                text = str(error).splitlines()[0]
                _log.warning("%s of %s is left out: %s", name, self._product.op, text)
                continue
            if self._product._replace(name=name) not in self._device.recorded_variants():
                text = "the device records another kernel for it"
                _log.warning("%s by %s is left out: %s", _told(self._product), name, text)
                continue
            self._y.fill(0)
            commands.replay()
            result = self._y.read(np.empty(self._n_out, np.float32))
            expected = result if expected is None else expected
            if _agree(result, expected):
                recordings[name] = commands
            else:
                _log.warning(
                    "%s of %s is wrong on this device, and left out", name, self._product.op
                )
        return recordings

    def _is_norm_fused(self) -> bool:
        with self._device.commands() as commands:
            try:
                self._record(commands, self._handles[0], norm=True, residual=False)
            except CompilationError:
                return False
            return commands.describe().startswith("1 dispatch ")

    def _recorded(self, fused: bool) -> Commands:
        half: Literal["float32", "half"] = "half" if self._product.op == "gemm_half" else "float32"
        commands = self._stack.enter_context(self._device.commands(activations=half))
        for number, handle in enumerate(self._handles):
            added = number % 2 == 1 and not self._swiglu
            self._record(commands, handle, norm=fused and not added, residual=added)
        return commands

    def _record(
        self, commands: Commands, handle: WeightHandle, *, norm: bool, residual: bool
    ) -> None:
        n_vectors, scale = self._product.n_vectors, self._norm if norm else None
        if self._swiglu:
            commands.gate_up_swiglu(handle, self._x, self._y, n_vectors=n_vectors, norm=scale)
        else:
            commands.gemv(
                handle, self._x, self._y, n_vectors=n_vectors, norm=scale, residual=residual
            )


def _told(product: ChosenVariant) -> str:
    p = product
    return f"{p.op} {p.device_format} {p.n_rows} x {p.k} by {p.n_vectors}"


def _agree(
    y: np.ndarray[tuple[int], np.dtype[np.float32]],
    default: np.ndarray[tuple[int], np.dtype[np.float32]],
) -> bool:
    distance = float(np.linalg.norm(y.astype(np.float64) - default))
    return distance <= _MOST_ERROR * float(np.linalg.norm(default.astype(np.float64)))


def _rounds(recordings: dict[str, Commands], seconds: float) -> dict[str, list[float]]:
    """Time the recordings in turn, each round in another order, for about so long."""
    end = time.monotonic() + seconds
    names = list(recordings)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(_MOST_ROUNDS):
        if number >= _FEWEST_ROUNDS and time.monotonic() > end:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            recordings[name].replay()
            taken = recordings[name].device_time
            if taken is not None:
                times[name].append(taken)
    return times
