"""Ops that are cut by the device's bound of work: the same bits as those of one dispatch."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from cases import activations, block, contents, random_weight, upload
from kv_caches import KvCache
from numpy.typing import NDArray
from op_runs import SENTINEL, Heads
from paged_runs import IDLE, caches_of, paging, queries, states_of, text
from recurrent_runs import IDLE as UNPLACED
from recurrent_runs import Delta, Slots, random
from tiny_models import Tiny, random_tensors, write

from metal_sim.session import SECONDS, Simulation
from oxibonsai import metal
from oxibonsai.model import Model

UNBOUNDED = 2**64 - 1
STRIDE = 7  # elements between the rows of the output
Record = Callable[..., None]


@contextmanager
def bounded(sim: Simulation, work: int) -> Iterator[metal.Device]:
    """Open a device whose driver has this bound of the work of a dispatch."""
    bound = ctypes.c_uint64.in_dll(sim.library, "metal_dispatch_work")
    before = bound.value
    bound.value = work
    try:
        with metal.Device("metal") as device:
            yield device
    finally:
        bound.value = before


def run(
    device: metal.Device, record: Record, arrays: Sequence[NDArray[Any]], **options: Any
) -> tuple[list[bytes], int]:
    """Return the bytes of all arrays after what `record(graph, commands, *buffers)` records."""
    with metal.MetalGraph(device) as graph, device.commands(**options) as commands:
        buffers = [device.upload(np.ascontiguousarray(a)) for a in arrays]
        record(graph, commands, *buffers)
        commands.replay()
        return [contents(b, np.uint8).tobytes() for b in buffers], len(commands)


class Compared:
    """Two devices, one of them with a bound; runs the same on both."""

    def __init__(self, whole: metal.Device, cut: metal.Device) -> None:
        self.devices = whole, cut

    def dispatches(
        self, record: Record, arrays: Sequence[NDArray[Any]], **options: Any
    ) -> tuple[int, int]:
        """Hold the bytes of one to those of the other; return how many dispatches each took."""
        (expected, whole), (found, cut) = (
            run(device, record, arrays, **options) for device in self.devices
        )
        assert found == expected
        return whole, cut


@contextmanager
def compared(sim: Simulation, work: int) -> Iterator[Compared]:
    with bounded(sim, UNBOUNDED) as whole, bounded(sim, work) as cut:
        yield Compared(whole, cut)


def product(name: str, n_rows: int, k: int, n_vectors: int, form: str) -> tuple[Record, list[Any]]:
    """Return what records a product of a form, and its arrays: x, y, the weight of the norm."""
    q = random_weight(name, n_rows, k)
    n_out = n_rows // 2 if "swiglu" in form else n_rows
    x = activations(n_vectors * k).reshape(n_vectors, k) / np.float32(8)
    y = activations((n_vectors + 1) * (n_out + STRIDE), 2)
    weight = 1 + activations(k, 4) / 4

    def record(graph: metal.MetalGraph, commands: Any, bx: Any, by: Any, norm: Any) -> None:
        handle = upload(graph, q)
        options: dict[str, Any] = {"n_vectors": n_vectors}
        if "normed" in form:
            options["norm"] = norm
        if "swiglu" in form:
            commands.gate_up_swiglu(handle, bx, by, **options)
        else:
            options |= {"residual": "residual" in form, "y_stride": n_out + STRIDE}
            commands.gemv(handle, bx, by, **options)
        handle.close()

    return record, [x, y, weight]


FORMS = ("plain", "residual", "normed", "normed residual", "swiglu", "normed swiglu")


def products_have_the_bits_of_one_dispatch(sim: Simulation) -> None:
    with compared(sim, 1) as both:
        for name in ("Q1_0", "Q2_0", "F16"):
            for form in FORMS:
                record, arrays = product(name, 38, block(name), 37, form)
                whole, cut = both.dispatches(record, arrays)
                assert cut > whole, (name, form)


def products_in_half_have_the_bits_of_one_dispatch(sim: Simulation) -> None:
    with compared(sim, 1) as both:
        for name in ("Q1_0", "Q2_0"):
            for form in FORMS:
                record, arrays = product(name, 38, 128, 150, form)
                whole, cut = both.dispatches(record, arrays, activations="half")
                assert (whole, cut) == (2, 6), (name, form)  # 64, 64 and 22 vectors


def any_bound_gives_the_bits_of_one_dispatch(sim: Simulation) -> None:
    n_rows, k = 38, 128
    for vectors in (1, 20, 40):
        with compared(sim, vectors * n_rows * k) as both:
            for name in ("TQ2_0_g128", "Q8_0"):
                for n_vectors in (1, 2, 9, 33, 67):
                    record, arrays = product(name, n_rows, k, n_vectors, "residual")
                    whole, cut = both.dispatches(record, arrays)
                    assert cut == whole or n_vectors > vectors
                    assert cut > whole or n_vectors < 67  # no tile has more than 32


def vectors_of_gemv_have_the_bits_of_one_dispatch(sim: Simulation) -> None:
    n_rows, k = 38, 128
    with compared(sim, 2 * n_rows * k) as both:
        for name in ("Q1_0", "F16"):
            for form in ("plain", "normed", "swiglu"):
                record, arrays = product(name, n_rows, k, 7, form)
                whole, cut = both.dispatches(record, arrays, deterministic=True)
                assert cut == whole + 3, (name, form)  # 2, 2, 2 and 1


def attention_of(
    heads: Heads, caches: Sequence[KvCache], qkv: NDArray[Any], states: NDArray[np.uint32],
    tables: NDArray[np.uint32] | None = None, **options: Any,
) -> tuple[Record, list[NDArray[Any]]]:  # fmt: skip
    """Return what records attention, and its arrays."""

    def record(
        graph: metal.MetalGraph, commands: Any, qkv_: Any, k: Any, v: Any, state: Any, out: Any,
        pages: Any,
    ) -> None:  # fmt: skip
        more = paging(caches, pages) if tables is not None else {}
        commands.attention(
            qkv_, k, v, state, out, n_tokens=len(qkv), **heads.shape, **options, **more
        )

    out = np.full((len(qkv), heads.n_heads, heads.head_dim), SENTINEL)
    arrays = [qkv, *(c.raw for c in caches), states, out, states if tables is None else tables]
    return record, arrays


def attention_of_a_prompt_has_the_bits_of_one_dispatch(sim: Simulation) -> None:
    with compared(sim, 1) as both:
        for kv_dtype in ("f16", "f32", "q8"):
            odd = 96 if kv_dtype == "q8" else 36  # no power of two
            for n_heads, n_kv_heads, head_dim in ((4, 2, 32), (3, 3, odd), (2, 1, 160)):
                heads = Heads(n_heads, n_kv_heads, head_dim, 96, 1, kv_dtype)
                for n_tokens, start in ((1, 70), (2, 0), (21, 70), (21, 85)):  # past max_seq
                    caches = caches_of(heads)
                    rows = text(heads, min(start + n_tokens, heads.max_seq))
                    for cache, part in zip(caches, rows, strict=True):
                        cache.write([0], heads.layer, part)
                    states, _ = states_of([start], [[]])
                    of = attention_of(heads, caches, queries(heads, n_tokens), states)
                    whole, cut = both.dispatches(*of)
                    assert whole == 1
                    assert (cut > 1) == (n_tokens > 1) or n_tokens == 2


def attention_of_a_batch_has_the_bits_of_one_dispatch(sim: Simulation) -> None:
    lengths = [65, 1, 300, 64, 200]
    heads = Heads(4, 2, 16, 320, 1, "f16")
    page_size, n_pages = 64, 16
    caches = caches_of(heads, page_size, n_pages, n_layers=2)
    pages, spare = [], list(np.random.default_rng(3).permutation(n_pages))
    for length in lengths:
        pages.append([int(spare.pop()) for _ in range(-(-length // page_size))])
        for cache, part in zip(caches, text(heads, length), strict=True):
            cache.write(pages[-1], heads.layer, part)
    positions = [length - 1 for length in lengths]
    positions[4], pages[4] = IDLE, []
    qkv = queries(heads, len(lengths))
    states, tables = states_of(positions, pages)
    # Multiply-adds of a token, each of the weight of two queries that share 2 bytes.
    unit = heads.n_heads * heads.head_dim * 2 * 300 * 6
    for work, pieces in ((1, 5), (2 * unit, 3), (4 * unit, 2), (5 * unit, 1)):
        with compared(sim, work) as both:
            of = attention_of(heads, caches, qkv, states, tables, batch=True, max_length=300)
            assert both.dispatches(*of) == (2, 1 + pieces)  # one adds up the splits


def the_delta_rule_has_the_bits_of_one_dispatch(sim: Simulation) -> None:
    head = 64 * 4 * 32 * 3  # multiply-adds of three tokens
    batch = ((5, 0), (0, 2), (UNPLACED, 4))
    for states, of_batch in (((6, 1),), False), (batch, True):
        delta = Delta.random(3, 5, 5, 32, 64, states=states, slots=Slots(6, 2), batch=of_batch)
        filled = delta.slots.filled(delta.part, {s: random(delta.part, seed=s) for s in range(6)})

        def record(
            graph: metal.MetalGraph, commands: Any, *buffers: Any, delta: Delta = delta
        ) -> None:
            commands.delta(*buffers, **delta.options())

        for work, pieces in ((1, 5), (2 * head, 3), (4 * head, 2), (5 * head, 1)):
            with compared(sim, work) as both:
                assert both.dispatches(record, delta.arrays(filled)) == (1, pieces)


def a_model_gives_the_bits_of_one_dispatch(sim: Simulation) -> None:
    tiny = Tiny(context=256)
    ids = [(7 * i + 3) % tiny.vocab for i in range(40)]
    logits, texts = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "tiny.gguf", tiny, random_tensors(tiny))
        for work in (UNBOUNDED, 1):
            with bounded(sim, work) as device, Model.load(path, device) as model:
                with model.session(chunk=40) as session:
                    logits.append(np.array(session.forward(ids)).tobytes())
                # A prompt and running texts share the products of a step.
                with model.engine(2, max_seq=128, deterministic=True) as engine:
                    requests = [engine.submit(ids[:n], 4) for n in (20, 9)]
                    texts.append([request.result(SECONDS).tokens for request in requests])
    assert logits[0] == logits[1]
    assert texts[0] == texts[1]
