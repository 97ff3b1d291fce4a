"""Memory that a device does not map, large fills, and pages of another size."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tiny_models import Tiny, random_tensors, write

from metal_sim.kernels import ARGS, Adder, N, adder
from metal_sim.scenarios_devices import refused
from metal_sim.session import (
    NO_REASON,
    RAISE,
    WITH_ERROR,
    WRAPS,
    WRAPS_COPY,
    WRAPS_EMPTY,
    WRAPS_OTHER,
    Simulation,
)
from oxibonsai.metal import BufferCreationError, Device
from oxibonsai.model import Model

GIB = 1 << 30


def add_to(one: Adder, part: np.ndarray) -> None:
    """Wrap `part`, float32 [N], and add x to it on the device."""
    with one.device.upload(part, copy=False) as wrapped, one.device.commands() as commands:
        commands.dispatch(one.pipeline, [one.x, wrapped], ARGS, threadgroups=1, threads=N)
        commands.replay()


# Wrapped memory


def memory_that_the_device_does_not_map_is_refused(sim: Simulation) -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as pages:
        memory = np.frombuffer(pages, np.float32)[:N]
        for wrap, text in (
            (WRAPS_EMPTY, "0 bytes"),
            (WRAPS_OTHER, "another address"),
            (WRAPS_COPY, "does not share memory with the host"),
        ):
            sim.set_wrap(wrap)
            with adder() as one:
                memory[:] = 3
                before = sim.live()
                for _ in range(2):
                    with refused(BufferCreationError, "Simulated Metal 0", text, "copy=True"):
                        one.device.upload(memory, copy=False)
                assert sim.live() == before, sim.live_text()
                with one.device.upload(memory) as copied, one.device.commands() as commands:
                    commands.dispatch(
                        one.pipeline, [one.x, copied], ARGS, threadgroups=1, threads=N
                    )
                    commands.replay()
                    expected = 3 + np.arange(N, dtype=np.float32)
                    assert np.array_equal(copied.read(np.empty_like(memory)), expected)
        sim.set_wrap(WRAPS)
        with adder() as one:
            add_to(one, memory)
            assert np.array_equal(memory, 3 + np.arange(N, dtype=np.float32))
        del memory


def one_wrap_that_fails_is_refused_alone(sim: Simulation) -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as pages, adder() as one:
        memory = np.frombuffer(pages, np.float32)[:N]
        add_to(one, memory)  # The device maps memory ...
        for wrap in (WRAPS_EMPTY, WRAPS_OTHER):
            sim.set_wrap(wrap)  # ... but not all of it.
            with refused(BufferCreationError, "copy=True"):
                one.device.upload(memory, copy=False)
        sim.set_wrap(WRAPS)
        add_to(one, memory)
        assert np.array_equal(memory, 2 * np.arange(N, dtype=np.float32))
        del memory


def a_device_that_fails_the_trial_of_wrapping_refuses_nothing_else(sim: Simulation) -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as pages:
        memory = np.frombuffer(pages, np.float32)[:N]
        # The second call of each is the trial's, after the probe's.
        for call, how, skip, text in (
            ("newBufferWithBytesNoCopy", WITH_ERROR, 0, "Metal gave no buffer"),
            ("newBufferWithBytesNoCopy", RAISE, 0, "SimException"),
            ("newBufferWithLength", WITH_ERROR, 1, "Metal gave no buffer"),
            ("commandBuffer", NO_REASON, 1, "no command buffer"),
            ("commandBuffer", RAISE, 1, "SimException"),
            ("blitCommandEncoder", WITH_ERROR, 0, "no encoder"),
        ):
            sim.fail(call, how, skip=skip)
            with adder() as one, one.commands() as commands:
                before = sim.live()
                for _ in range(2):
                    with refused(BufferCreationError, "without a copy", text, "copy=True"):
                        one.device.upload(memory, copy=False)
                assert sim.live() == before, f"{call}: {sim.live_text()}"
                commands.replay()
                assert one.added() == 1
        sim.fail("execute", WITH_ERROR, skip=1, times=2)
        with adder() as one, refused(BufferCreationError, "injected failure of execute"):
            one.device.upload(memory, copy=False)
        sim.fail("execute", WITH_ERROR, skip=1)  # An error that passes is tried once more.
        with adder() as one:
            add_to(one, memory)
        del memory


def wrapping_waits_for_nothing_that_is_in_flight(sim: Simulation) -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as pages, adder() as one, one.commands() as commands:
        memory = np.frombuffer(pages, np.float32)[:N]
        made = sim.made("MTLCommandBuffer")
        with sim.hang():
            commands.submit()
            with one.device.upload(memory, copy=False):
                assert one.device.stats.in_flight == 1
        commands.wait(30)
        assert sim.made("MTLCommandBuffer") == made + 1
        del memory


def a_model_loads_where_memory_cannot_be_wrapped(sim: Simulation) -> None:
    tiny = Tiny(context=64)
    texts = []
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "tiny.gguf", tiny, random_tensors(tiny))
        for wrap in (WRAPS, WRAPS_EMPTY):
            sim.set_wrap(wrap)
            with (
                Device("metal") as device,
                Model.load(path, device) as model,
                model.session() as session,
            ):
                session.forward([1, 2, 3], logits=None)
                texts.append(list(session.generate(8)))
    assert texts[1] == texts[0]


# Fills


def resident() -> int:
    """The bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def memory_past_4_gib_is_zeroed_to_its_end(sim: Simulation) -> None:
    before = resident()
    with Device("metal") as device:
        for n in (4 * GIB, 5 * GIB + 6):
            with device.buffer(n, storage="private") as buffer:
                for offset in (0, 2 * GIB, n - 999):
                    assert not buffer.read(np.ones(999, np.uint8), offset).any(), (n, offset)
                buffer.write(np.full(9, 7, np.uint8), n - 10)
                buffer.fill(0, offset=1, nbytes=n - 2)
                end = buffer.read(np.ones(10, np.uint8), n - 10)
                assert not end.any()
    assert resident() - before < GIB // 2, "the memory is sparse"


# Pages


@contextlib.contextmanager
def mapping(page: int, nbytes: int) -> Iterator[np.ndarray]:
    """Give whole pages of memory between pages that are not mapped, for a system of such pages."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_size_t
    libc.mmap.restype = address
    libc.mmap.argtypes = [address, address, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [address, address]
    room = nbytes + 3 * page
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    first = libc.mmap(0, room, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    start = (first + page) // page * page + page
    end = start + nbytes
    assert libc.munmap(first, start - first) == 0
    assert first + room == end or libc.munmap(end, first + room - end) == 0
    try:
        yield np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(start))
    finally:
        assert libc.munmap(start, nbytes) == 0


def pages_of_16_kib_are_wrapped_whole_and_no_others(sim: Simulation) -> None:
    page = 16384
    sim.set_page_size(page)
    with adder() as one, mapping(page, 3 * page) as memory:
        floats = memory.view(np.float32)
        # At the start, inside a page, over the edge of two and at the end.
        for first in (0, 4096 // 4 + 4, page // 4 - 8, 3 * page // 4 - N):
            part = floats[first : first + N]
            part[:] = 3
            add_to(one, part)
            assert np.array_equal(part, 3 + np.arange(N, dtype=np.float32))
        one.device.upload(memory[: 2 * page + 100], copy=False).close()  # as of a mapped file
        one.device.upload(memory, copy=False).close()
