"""What keeps buffers resident: the sets of macOS 15, and asking for them again, as 26 wants it."""

from __future__ import annotations

import tempfile
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
from tiny_models import chain, write_chain

from metal_sim.kernels import ARGS, N, adder
from metal_sim.session import NO_REASON, RAISE, WITH_ERROR, Simulation
from oxibonsai.metal import Device, ExecutionError
from oxibonsai.model import Model

KEPT = 0.5  # seconds after a submission, in this build of the driver
BEAT = 0.05  # seconds between two requests


def calls(sim: Simulation, *names: str) -> list[int]:
    return [sim.made(name) for name in names]


def every_buffer_of_a_dispatch_is_in_the_set(sim: Simulation) -> None:
    with tempfile.TemporaryDirectory() as folder, Device("metal") as device:
        path = write_chain(Path(folder) / "abc.gguf", chain("abcdefgh"))
        # From here on a dispatch that uses another buffer ends the process.
        sim.require_residency(1)
        with Model.load(path, device) as model, model.session() as session:
            session.forward([ord("a")], logits=None)
            assert bytes(session.generate(3)) == b"bcd"
            with model.engine(max_sequences=2, max_seq=64) as engine:
                assert bytes(engine.submit([ord("a")], 3).result().tokens) == b"bcd"
        with closing(device.buffer(N * 4, storage="private")) as buffer:
            buffer.write(np.ones(N, np.float32))
            assert np.array_equal(buffer.read(np.zeros(N, np.float32)), np.ones(N, np.float32))
    sim.require_residency(0)  # the probe's buffers are not in the set
    with adder() as one, one.commands() as commands:
        sim.require_residency(1)
        commands.replay()
        assert one.added() == 1


def buffers_are_committed_once_before_the_next_submission(sim: Simulation) -> None:
    with adder() as one, one.commands() as commands:
        before = calls(sim, "residency commit", "addAllocation", "requestResidency")
        more = [one.device.buffer(100) for _ in range(50)]
        now = calls(sim, "residency commit", "addAllocation", "requestResidency")
        assert now == [before[0], before[1] + 50, before[2]]
        commands.replay()
        assert calls(sim, "residency commit")[0] == before[0] + 1
        assert calls(sim, "requestResidency")[0] > before[2]
        commands.replay(3)
        assert calls(sim, "residency commit")[0] == before[0] + 1
        for buffer in more:
            buffer.close()


def a_freed_buffer_leaves_the_set_at_once(sim: Simulation) -> None:
    # The simulated set, as Metal's, holds a buffer until its removal is committed.
    with adder() as one, one.commands() as commands:
        for storage in ("shared", "private"):
            before = sim.live("MTLBuffer")
            buffer = one.device.buffer(100, storage=storage)
            commands.replay()
            assert sim.live("MTLBuffer") == before + 1
            buffer.close()
            assert sim.live("MTLBuffer") == before


def residency_is_asked_for_again_for_a_while(sim: Simulation) -> None:
    with adder() as one, one.commands() as commands:
        for _ in range(2):
            commands.replay()
            after = calls(sim, "requestResidency")[0]
            deadline = time.monotonic() + 30
            while calls(sim, "requestResidency")[0] < after + 3:
                assert time.monotonic() < deadline, "residency was not asked for again"
                time.sleep(BEAT)
            time.sleep(KEPT + 10 * BEAT)
            quiet = calls(sim, "requestResidency")[0]
            time.sleep(6 * BEAT)
            assert calls(sim, "requestResidency")[0] == quiet, "an idle device is let go"


def an_unused_device_asks_for_nothing(sim: Simulation) -> None:
    before = calls(sim, "requestResidency", "endResidency")
    with Device("metal") as device, closing(device.buffer(100)):
        time.sleep(4 * BEAT)
    assert calls(sim, "requestResidency", "endResidency") == before


def closing_a_device_ends_what_it_asked_for(sim: Simulation) -> None:
    before = calls(sim, "endResidency")[0]
    with adder() as one, one.commands() as commands:
        commands.replay()
    assert calls(sim, "endResidency")[0] == before + 1
    asked = calls(sim, "requestResidency")
    time.sleep(4 * BEAT)
    assert calls(sim, "requestResidency") == asked
    assert sim.live() == 0, sim.live_text()


def work_goes_on_without_sets(sim: Simulation) -> None:
    def adds() -> None:
        before = sim.made("MTLResidencySet")
        with adder() as one, one.commands() as commands:
            commands.replay(2)
            assert one.added() == 2
        assert sim.made("MTLResidencySet") == before

    sim.set_macos(14)
    adds()
    sim.set_macos(15)
    sim.set_apples(0)  # an Intel Mac's GPU
    adds()
    sim.set_apples(1)
    for how in (NO_REASON, WITH_ERROR, RAISE):
        sim.fail("newResidencySetWithDescriptor", how)
        adds()


def work_goes_on_where_a_set_fails(sim: Simulation) -> None:
    for call in ("addAllocation", "removeAllocation", "residency commit", "requestResidency"):
        sim.fail(call, RAISE)
        with adder() as one, one.commands() as commands:
            commands.replay()
            assert one.added() == 1
            one.device.buffer(100).close()
            assert sim.live("MTLBuffer") == 2, f"{call}: {sim.live_text()}"
        assert sim.live() == 0, f"{call}: {sim.live_text()}"


def a_new_queue_has_the_set(sim: Simulation) -> None:
    with adder() as one, one.commands() as commands:
        sim.require_residency(1)
        queues = sim.made("MTLCommandQueue")
        sim.fail("execute", WITH_ERROR)
        with suppress(ExecutionError):
            commands.replay()
        commands.replay()
        assert sim.made("MTLCommandQueue") == queues + 1
        assert one.added() == 1


def what_is_past_the_working_set_is_left_to_the_system(sim: Simulation) -> None:
    sim.set_working_set(1 << 20)
    with adder() as one, one.commands() as commands:
        before = calls(sim, "addAllocation")[0]
        for nbytes, added in ((1 << 19, 1), (1 << 19, 0), (1 << 21, 0), (1 << 18, 1)):
            buffer = one.device.buffer(nbytes)
            now = calls(sim, "addAllocation")[0]
            assert now == before + added, nbytes
            before = now
            if nbytes != 1 << 19 or not added:
                buffer.close()
            else:
                large = buffer
        large.close()
        with closing(one.device.buffer((1 << 20) - 4096)):
            assert calls(sim, "addAllocation")[0] == before + 1, "there is room again"
        commands.replay()
        assert one.added() == 1


def one_thread_at_a_time_uses_a_set(sim: Simulation) -> None:
    # The simulated set ends the process where two threads are in it.
    with adder() as one:

        def work() -> None:
            with (
                one.device.upload(np.ones(N, np.float32)) as x,
                one.device.upload(np.zeros(N, np.float32)) as y,
                one.device.commands() as commands,
            ):
                commands.dispatch(one.pipeline, [x, y], ARGS, threadgroups=1, threads=N)
                for _ in range(20):
                    one.device.buffer(64).close()
                    commands.replay()

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
