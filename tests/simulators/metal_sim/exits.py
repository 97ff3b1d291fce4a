"""A process on the simulated Metal that ends with work in flight.

    python -m metal_sim.exits LIBRARY ENDING MODEL [NUMBER]

An ending is a function of this file; NUMBER varies when it comes and, modulo len(LATE), how late
completion handlers run. What stays behind is global here, as it is in a script: the interpreter
finds it at its end.
"""

from __future__ import annotations

import atexit
import ctypes
import sys

if __name__ == "__main__" and sys.argv[2] == "completed_while_the_interpreter_ends":
    # Before anything else registers, so that nothing of Python runs from here to the end of the
    # interpreter: the handler waits for the GIL, if it does, when that ends.
    atexit.register(ctypes.PyDLL(None).usleep, 100_000)  # holds the GIL
    atexit.register(ctypes.PyDLL(sys.argv[1]).metal_sim_release_hang)

import asyncio
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np

from metal_sim.kernels import ARGS, Adder, N
from metal_sim.session import Simulation
from oxibonsai import metal
from oxibonsai.model import Model

KEPT: list[Any] = []  # until the modules are taken down
ENDINGS: dict[str, int] = {}  # the exit status of each
LATE = (0, 1, 3, 10)  # milliseconds


def ending(status: int = 0) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(function: Callable[..., None]) -> Callable[..., None]:
        ENDINGS[function.__name__] = status
        return function

    return register


class Last:
    """Calls a function when the modules are taken down, or as late as `sys`."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def __del__(self) -> None:
        self.call()


def wrapped_work(one: Adder) -> metal.Commands:
    """Record an addition to wrapped memory, of which only the commands have a reference."""
    pages = np.zeros(2 * 4096, np.uint8)
    memory = pages[-pages.ctypes.data % 4096 :][: 4 * N].view(np.float32)
    commands = one.device.commands()
    with one.device.upload(memory, copy=False) as wrapped:
        commands.dispatch(one.pipeline, [one.x, wrapped], ARGS, threadgroups=1, threads=N)
    return commands


def in_flight(one: Adder, n: int = 4) -> None:
    """Submit work over wrapped memory, whose last references are the submissions'."""
    for _ in range(n):
        with wrapped_work(one) as commands:
            commands.submit()


def started() -> Adder:
    one = Adder()
    KEPT.append(one)
    return one


def model_of(path: str) -> Model:
    model = Model.load(path, "metal")
    KEPT.append(model)
    return model


def daemon(call: Callable[[], object]) -> None:
    threading.Thread(target=call, daemon=True).start()


def pause(rng: random.Random) -> None:
    time.sleep(rng.uniform(0, 0.02))


def check_that_the_exit_waits_for_none() -> None:
    """Run the package's exit function, which waits 2 s for what does not end.

    A loaded machine may delay it, though not five times in a row.
    """
    core: Any = metal._core
    shortest = 2.0
    for _ in range(5):
        begin = time.monotonic()
        core._at_exit()
        shortest = min(shortest, time.monotonic() - begin)
        if shortest < 1.5:
            return
    raise AssertionError(f"the exit waits {shortest:.1f} s for what it need not")


# Work of the main thread


@ending()
def main_returns(sim: Simulation, rng: random.Random, path: str) -> None:
    in_flight(started())


@ending(3)
def system_exit(sim: Simulation, rng: random.Random, path: str) -> None:
    in_flight(started())
    sys.exit(3)


@ending(1)
def uncaught_exception(sim: Simulation, rng: random.Random, path: str) -> None:
    in_flight(started())
    raise RuntimeError("nobody catches this")


@ending(-signal.SIGINT)
def keyboard_interrupt(sim: Simulation, rng: random.Random, path: str) -> None:
    one = started()
    # A shell starts jobs in the background with the signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(rng.uniform(0.02, 0.05), signal.raise_signal, [signal.SIGINT]).start()
    while True:
        in_flight(one)


@ending()
def commands_that_live_on(sim: Simulation, rng: random.Random, path: str) -> None:
    commands = wrapped_work(started())
    commands.submit(5)
    sys.kept = [commands]  # type: ignore[attr-defined]


@ending()
def work_of_a_finaliser(sim: Simulation, rng: random.Random, path: str) -> None:
    commands = wrapped_work(started())
    sys.last = Last(lambda: commands.submit(3))  # type: ignore[attr-defined]


@ending()
def steps_ahead(sim: Simulation, rng: random.Random, path: str) -> None:
    session = model_of(path).session()
    session.forward([ord("a")], logits=None)
    tokens = session.generate(25, lookahead=16)
    next(tokens)
    KEPT.append((session, tokens))


# Work of other threads


@ending()
def daemon_replays(sim: Simulation, rng: random.Random, path: str) -> None:
    daemon(lambda: wrapped_work(started()).replay(1 << 30))  # without the GIL all along
    pause(rng)
    check_that_the_exit_waits_for_none()


@ending()
def daemons_submit(sim: Simulation, rng: random.Random, path: str) -> None:
    one = started()

    def submit() -> None:
        while True:
            in_flight(one)

    for _ in range(3):
        daemon(submit)
    pause(rng)
    check_that_the_exit_waits_for_none()


@ending()
def daemon_generates(sim: Simulation, rng: random.Random, path: str) -> None:
    model = model_of(path)

    def generate() -> None:
        with model.session() as session:
            while True:
                session.rewind(0)
                session.forward([ord("a")], logits=None)
                list(session.generate(20, lookahead=4))

    daemon(generate)
    pause(rng)


@ending()
def thread_of_the_program_waits(sim: Simulation, rng: random.Random, path: str) -> None:
    commands = wrapped_work(started())
    threading.Thread(target=lambda: commands.replay(20)).start()


@ending()
def engine_with_requests(sim: Simulation, rng: random.Random, path: str) -> None:
    engine = model_of(path).engine(max_sequences=2)
    KEPT.append([engine, *(engine.submit([ord("a")], 20) for _ in range(4))])
    pause(rng)


@ending(4)
def task_mid_generation(sim: Simulation, rng: random.Random, path: str) -> None:
    async def main() -> None:
        session = model_of(path).session()
        session.forward([ord("a")], logits=None)
        tokens: AsyncIterator[int] = session.agenerate(25)
        KEPT.append(tokens)
        async for _ in tokens:
            sys.exit(4)

    asyncio.run(main())


@ending()
def loop_that_nobody_closes(sim: Simulation, rng: random.Random, path: str) -> None:
    async def first(tokens: AsyncIterator[int]) -> int:
        return await anext(tokens)

    session = model_of(path).session()
    session.forward([ord("a")], logits=None)
    tokens: Any = session.agenerate(25)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(first(tokens))
    loop.run_until_complete(tokens.aclose())
    KEPT.append((loop, tokens))


# Completions that do not come in time


@ending()
def never_completed(sim: Simulation, rng: random.Random, path: str) -> None:
    one = started()
    sim.library.metal_sim_hang(0)
    in_flight(one)


@ending()
def daemon_that_waits_for_ever(sim: Simulation, rng: random.Random, path: str) -> None:
    commands = wrapped_work(started())
    sim.library.metal_sim_hang(0)
    daemon(commands.replay)
    pause(rng)


@ending()
def engine_that_waits_for_ever(sim: Simulation, rng: random.Random, path: str) -> None:
    engine = model_of(path).engine(max_sequences=2)
    engine.generate_batch([[ord("a")]], max_tokens=2)
    sim.library.metal_sim_hang(0)
    KEPT.append([engine, engine.submit([ord("a")], 20)])
    pause(rng)


@ending()
def steps_ahead_that_never_end(sim: Simulation, rng: random.Random, path: str) -> None:
    session = model_of(path).session()
    session.forward([ord("a")], logits=None)
    tokens = session.generate(25, lookahead=16)
    sim.library.metal_sim_hang(5)
    daemon(lambda: list(tokens))
    while session.model.device.stats.in_flight < 2:
        time.sleep(0.001)
    KEPT.append((session, tokens))


@ending()
def completed_while_the_interpreter_ends(sim: Simulation, rng: random.Random, path: str) -> None:
    one = started()

    def rest() -> None:
        time.sleep(0.05)  # without the GIL: who waits for it gets it

    sys.rest = Last(rest)  # type: ignore[attr-defined]
    sim.library.metal_sim_hang(0)
    in_flight(one)


@ending()
def completed_by_a_finaliser(sim: Simulation, rng: random.Random, path: str) -> None:
    one = started()
    release, drain = sim.library.metal_sim_release_hang, sim.library.metal_sim_live

    def complete() -> None:
        release()
        drain(None)

    sys.last = Last(complete)  # type: ignore[attr-defined]
    sim.library.metal_sim_hang(0)
    in_flight(one)


# Several processes


@ending(7)
def forked_child_exits(sim: Simulation, rng: random.Random, path: str) -> None:
    one = started()
    sim.library.metal_sim_hang(0)
    in_flight(one)
    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
    child = os.fork()
    if child == 0:
        check_that_the_exit_waits_for_none()
        sys.exit(7)  # through all exit functions
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sim.release_hang()
    in_flight(one)
    sys.exit(status)


def silent(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Let the traceback of an ending's own exception go: stderr is for what else is written."""
    if not isinstance(error, KeyboardInterrupt) and str(error) != "nobody catches this":
        sys.__excepthook__(kind, error, None)


def numbers(arguments: list[str]) -> Iterator[int]:
    yield from map(int, arguments or ["0"])


if __name__ == "__main__":
    library, name, path, *rest = sys.argv[1:]
    metal.load_driver(library)
    simulation = Simulation(library)
    number = next(numbers(rest))
    seed = random.Random(number)
    simulation.late(LATE[number % len(LATE)])
    sys.excepthook = silent
    globals()[name](simulation, seed, path)
