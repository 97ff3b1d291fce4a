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
from oxibonsai.metal._errors import CompilationError, MetalGraphError
from oxibonsai.metal._graph import MetalGraph

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
_PROMPT = 512
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
        Those for which the budget was too short, with the kernels that they take.
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

    Each variant of a product is recorded over copies of its matrix that no cache holds. The
    recordings are replayed in turn, so that a change of the clock meets all of them, and timed by
    the device. A variant replaces the default where its median is more than 2 % shorter. Results
    change within rounding only. What was recorded before keeps its kernels.

    Parameters
    ----------
    device : Device
        Where to measure; nothing else should run on it.
    products : iterable of ChosenVariant, optional
        What to measure, most important first; names do not matter.
        ``device.recorded_variants()`` has those of a model that ran. Left out, the products of
        1-bit and ternary models of 8B, 1.7B, 4B and 27B parameters, by one vector and by 512.
    budget : float
        Seconds after which no further product is begun.
    keep : bool
        Whether the choices are kept in the user's cache, ``oxibonsai/tuning`` in
        ``XDG_CACHE_HOME`` or ``~/.cache``. Devices of the same name then take them when a
        MetalGraph is made, as long as neither the package nor the device's driver changes.

    Returns
    -------
    Tuning
        The times and the choices. A product of which the device has one kernel is in no list.

    Raises
    ------
    BufferCreationError, EncodingError, ExecutionError
        If the device cannot hold or run a product.
    ValueError
        If `budget` is negative or NaN.
    """
    if not budget >= 0:
        raise ValueError(f"budget = {budget}: a number of seconds is needed, 0 or more")
    deadline = time.monotonic() + budget
    device.load_tuning()  # else a graph of the tuner's own would load it, over what is found here
    wanted = _several(device, _default_products() if products is None else products)
    found: list[Measured] = []
    left: list[ChosenVariant] = []
    for _, group in _by_matrix(wanted):
        if time.monotonic() >= deadline:
            left += [_in_use(device, product) for product in group]
            continue
        share = (deadline - time.monotonic()) * len(group) / (len(wanted) - len(found))
        found += _measure_matrix(device, group, share)
    for measured in found:
        _choose(device, measured)
    path = None
    if keep and found:
        path = _tuning_file.keep(device.info, [m.variant for m in found], _changes(found))
    return Tuning(found, left, path)


def load_choices(device: Device) -> None:
    """Choose what the user's cache has for this device; a product that has a choice keeps it."""
    taken = {choice.product for choice in device.chosen_variants()}
    for choice in _tuning_file.load(device.info):
        if choice.product in taken:
            continue
        try:
            device.choose_variant(*choice)
        except MetalGraphError as error:
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
        What a MetalGraph on the device would choose. Empty where nothing was kept for this name,
        driver and package, and where the environment variable ``OXIBONSAI_TUNING=0`` switches it
        off.
    """
    return _tuning_file.load(device)


def _default_products() -> Iterator[ChosenVariant]:
    for device_format in ("q1_g128", "q2_g128"):
        for op, n_rows, k in _SHAPES:
            yield ChosenVariant(op, device_format, n_rows, k, "", 1)
            if n_rows not in _HEADS:
                yield ChosenVariant("gemm_half", device_format, n_rows, k, "", _PROMPT)


def _several(device: Device, products: Iterable[ChosenVariant]) -> list[ChosenVariant]:
    """Return each product once that has several variants."""
    unique = dict.fromkeys(product._replace(name="") for product in products)
    return [p for p in unique if len(device.kernel_variants(*p.product)) > 1]


def _by_matrix(
    products: list[ChosenVariant],
) -> Iterator[tuple[tuple[str, int, int], list[ChosenVariant]]]:
    """Yield the products of each matrix, which share its copies."""
    groups: dict[tuple[str, int, int], list[ChosenVariant]] = {}
    for product in products:
        groups.setdefault(product[1:4], []).append(product)
    yield from groups.items()


def _in_use(device: Device, product: ChosenVariant) -> ChosenVariant:
    chosen = (c for c in device.chosen_variants() if c.product == product.product)
    return next(chosen, product._replace(name=device.kernel_variants(*product.product)[0]))


def _choose(device: Device, measured: Measured) -> None:
    op, device_format, n_rows, k, name, n_vectors = measured.variant
    taken = None if name == measured.default else name
    device.choose_variant(op, device_format, n_rows, k, taken, n_vectors)


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
    device: Device, products: list[ChosenVariant], seconds: float
) -> list[Measured]:
    """Measure the products of one matrix in about so many seconds."""
    found = []
    graph = MetalGraph(device)
    with graph, _copies(graph, products[0]) as handles:
        for product in products:
            measured = _measure(device, product, handles, seconds / len(products))
            if measured:
                found.append(measured)
    return found


def _measure(
    device: Device, product: ChosenVariant, handles: list[WeightHandle], seconds: float
) -> Measured | None:
    op, device_format, n_rows, k, _, n_vectors = product
    halved = op.startswith("swiglu")
    activations: Literal["float32", "half"] = "half" if op == "gemm_half" else "float32"
    if n_vectors > _FEW_VECTORS:
        handles = handles[:2]  # the matrix is read once for all vectors
    x = np.random.default_rng(1).standard_normal(n_vectors * k, np.float32)
    storage = device.working_storage
    n_out = n_rows // 2 if halved else n_rows
    before = next((c.name for c in device.chosen_variants() if c.product == product.product), None)
    names = device.kernel_variants(*product.product)
    recordings: dict[str, Commands] = {}
    with (
        ExitStack() as stack,
        device.upload(x, storage=storage) as a,
        device.buffer(4 * n_vectors * n_out, storage=storage) as b,
    ):
        results: dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]] = {}
        try:
            for name in names:
                device.choose_variant(op, device_format, n_rows, k, name, n_vectors)
                commands = stack.enter_context(device.commands(activations=activations))
                record = commands.gate_up_swiglu if halved else commands.gemv
                try:
                    for handle in handles:
                        record(handle, a, b, n_vectors=n_vectors)
                except CompilationError as error:
                    _log.warning("%s of %s is left out: %s", name, op, str(error).splitlines()[0])
                    continue
                commands.replay()
                results[name] = b.read(np.empty(n_vectors * n_out, np.float32))
                recordings[name] = commands
        finally:
            device.choose_variant(op, device_format, n_rows, k, before, n_vectors)
        if names[0] not in recordings:
            return None
        for name in list(recordings):
            if name != names[0] and not _agree(results[name], results[names[0]]):
                _log.warning("%s of %s is wrong on this device, and left out", name, op)
                del recordings[name]
        times = _rounds(recordings, seconds)
    medians = {name: statistics.median(ts) / len(handles) for name, ts in times.items()}
    best = min(medians, key=medians.__getitem__)
    if not medians[best] < _GAIN * medians[names[0]]:
        best = names[0]
    return Measured(product._replace(name=best), names[0], medians)


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
