"""Wrapped memory whose last reference is the device's: who frees it, and when."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from metal_sim.kernels import ARGS, Adder, N, adder
from metal_sim.session import Simulation
from oxibonsai import metal

SECONDS = 30
Watch = weakref.ref["Memory"]


class Memory(np.ndarray):  # type: ignore[type-arg]
    """Memory whose end can be watched."""

    ended: Callable[[], object] | None = None

    def __del__(self) -> None:
        if self.ended is not None:
            self.ended()


def aligned() -> Memory:
    pages = np.zeros(2 * 4096, np.uint8)
    return pages[-pages.ctypes.data % 4096 :][: 4 * N].view(np.float32).view(Memory)


def recorded(one: Adder, memory: NDArray[np.float32]) -> metal.Commands:
    """Record an addition to `memory`, which only the commands keep."""
    commands = one.device.commands()
    with one.device.upload(memory, copy=False) as wrapped:
        commands.dispatch(one.pipeline, [one.x, wrapped], ARGS, threadgroups=1, threads=N)
    return commands


def let_go(one: Adder, sim: Simulation, ended: Callable[[], object] | None = None) -> Watch:
    """Let the device hold the last reference to memory, and let go of it on its own thread."""
    memory = aligned()
    memory.ended = ended
    watch = weakref.ref(memory)
    with sim.hang():
        commands = recorded(one, memory)
        commands.submit()
        commands.close()
        del memory, commands  # All of the package's: the end of one of its objects is a call.
        assert watch() is not None
    sim.live()  # Waits for the device.
    return watch


def soon(condition: Callable[[], bool]) -> bool:
    """Run Python and nothing of the package until the condition holds."""
    deadline = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def memory_that_the_device_lets_go_of_is_freed_without_another_call(sim: Simulation) -> None:
    with adder() as one:
        for _ in range(50):
            watch = let_go(one, sim)
            assert soon(lambda watch=watch: watch() is None)  # type: ignore[misc]


def what_exports_the_memory_is_released_without_another_call(sim: Simulation) -> None:
    def closed(pages: mmap.mmap) -> bool:
        try:
            pages.close()
        except BufferError:
            return False
        return True

    with adder() as one:
        pages = mmap.mmap(-1, mmap.PAGESIZE)
        with sim.hang():
            commands = recorded(one, np.frombuffer(pages, np.float32, N))
            commands.submit()
            commands.close()
            del commands
            assert not closed(pages)
        assert soon(lambda: closed(pages))


def a_wait_returns_with_the_memory_freed(sim: Simulation) -> None:
    with adder() as one, one.commands() as last:
        for end in (last.wait, last.replay):
            memory = aligned()
            watch = weakref.ref(memory)
            with recorded(one, memory) as commands:
                del memory
                commands.submit()
            last.submit()
            end()
            assert watch() is None


def in_a_thread(call: Callable[[], object]) -> None:
    """Run a call in a thread, while the main thread sleeps and so runs no pending call."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def kept(one: Adder, sim: Simulation, ended: Callable[[], object] | None = None) -> Watch:
    """In a thread of in_a_thread(): let go until the main thread sleeps and so leaves it to us."""
    for _ in range(1000):
        watch = let_go(one, sim, ended)
        if watch() is not None:
            return watch
    raise AssertionError("the main thread never sleeps")


def the_next_call_frees_it_where_the_main_thread_sleeps(sim: Simulation) -> None:
    with adder() as one, one.commands() as other:
        other.replay()
        calls: list[Callable[[], object]] = [
            lambda: one.device.buffer(4).close(),
            lambda: one.device.upload(aligned(), copy=False).close(),
            lambda: one.device.commands().close(),
            other.submit,
            other.wait,
            other.replay,
            other.reset,
        ]

        def freed_by(call: Callable[[], object]) -> None:
            watch = kept(one, sim)
            call()
            assert watch() is None

        for call in calls:
            in_a_thread(lambda call=call: freed_by(call))  # type: ignore[misc]


def a_full_queue_of_pending_calls_delays_it_to_the_next_release(sim: Simulation) -> None:
    nothing = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: 0)
    add = ctypes.pythonapi.Py_AddPendingCall

    with adder() as one:
        watches: list[Watch] = []

        def fill() -> None:
            kept(one, sim)
            one.device.buffer(4).close()
            for _ in range(10_000):
                if add(nothing, None) != 0:
                    break
            else:
                raise AssertionError("the queue takes any number of calls")
            watches.append(let_go(one, sim))
            assert watches[0]() is not None

        in_a_thread(fill)
        watches.append(let_go(one, sim))
        assert soon(lambda: not any(watch() is not None for watch in watches))


def a_finaliser_may_use_and_close_what_the_call_works_on(sim: Simulation) -> None:
    with adder() as one:

        def ends(name: str) -> None:
            other = one.commands()
            other.replay()
            seen: list[float] = []

            def ended() -> None:
                if threading.current_thread() is threading.main_thread():
                    return
                with one.commands() as more:
                    more.replay()
                seen.append(one.added())
                other.close()

            kept(one, sim, ended)
            assert not seen
            getattr(other, name)()
            assert seen
            assert other.closed

        for name in ("submit", "wait", "replay", "reset", "close"):
            in_a_thread(lambda name=name: ends(name))  # type: ignore[misc]


def many_threads_let_go_at_once(sim: Simulation) -> None:
    watches: list[Watch] = []
    with adder() as one:

        def work() -> None:
            for _ in range(100):
                memory = aligned()
                watches.append(weakref.ref(memory))
                with recorded(one, memory) as commands:
                    del memory
                    commands.submit()

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sim.live()
        assert soon(lambda: all(watch() is None for watch in watches))
        assert len(watches) == 600
