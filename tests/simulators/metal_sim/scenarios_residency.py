"""What keeps buffers resident: the sets of macOS 15, and asking for them again, as 26 wants it."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
from tiny_models import chain, write_chain

from metal_sim.kernels import ARGS, N, adder
from metal_sim.session import NO_REASON, RAISE, WITH_ERROR, Simulation
from oxibonsai.metal import Commands, Device, ExecutionError
from oxibonsai.model import Model

KEPT = 0.5  # seconds after a submission, in this build of the driver
BEAT = 0.05  # seconds between two requests


def calls(sim: Simulation, *names: str) -> list[int]:
    return [sim.made(name) for name in names]


def wait_for(sim: Simulation, call: str, count: int) -> None:
    """Wait until there were so many calls."""
    deadline = time.monotonic() + 30
    while sim.made(call) < count:
        assert time.monotonic() < deadline, f"no {call}"
        time.sleep(BEAT / 5)


def until_the_keeper_asks(sim: Simulation, commands: Commands) -> None:
    """Return while a request is in course; a loaded machine may delay it past the last one."""
    for _ in range(20):
        commands.replay()
        asked = sim.made("requestResidency")
        deadline = time.monotonic() + 2 * KEPT
        while time.monotonic() < deadline:
            if sim.made("requestResidency") > asked:
                return
            time.sleep(0.001)
    raise AssertionError("the keeper does not ask")


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
        more += [one.device.buffer(100) for _ in range(3)]
        assert calls(sim, "residency commit")[0] == before[0] + 1
        commands.replay()
        assert calls(sim, "residency commit")[0] == before[0] + 2
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
            deadline = time.monotonic() + 1  # should the keeper be in the set
            while sim.live("MTLBuffer") != before and time.monotonic() < deadline:
                time.sleep(0.001)
            assert sim.live("MTLBuffer") == before


def residency_is_asked_for_again_for_a_while_and_then_ended(sim: Simulation) -> None:
    with adder() as one, one.commands() as commands:
        again = []
        for _ in range(5):
            asked, ended = calls(sim, "requestResidency", "endResidency")
            commands.replay()
            assert calls(sim, "requestResidency")[0] > asked, "the next use asks again"
            wait_for(sim, "endResidency", ended + 1)
            before = calls(sim, "requestResidency")[0]
            time.sleep(6 * BEAT)
            now = calls(sim, "requestResidency", "endResidency")
            assert now == [before, ended + 1], "an idle device is let go"
            again.append(before - asked - 1)
        # A loaded machine may delay the keeper, though not every time.
        assert max(again) >= 2, "residency was not asked for again"


def a_device_in_use_is_asked_for_once(sim: Simulation) -> None:
    with adder() as one, one.commands() as commands:
        commands.replay()
        before = calls(sim, "requestResidency")[0]
        submissions, rests = 0, 0
        end = last = time.monotonic()
        end += 8 * BEAT
        while last < end:
            commands.replay()
            submissions += 1
            now = time.monotonic()
            rests += now - last > BEAT / 4  # by then the device counts as idle, on a loaded machine
            last = now
        assert calls(sim, "requestResidency")[0] <= before + rests
        assert submissions > 8


def nobody_waits_for_a_request(sim: Simulation) -> None:
    request = 0.2  # seconds that it takes
    with adder() as one, one.commands() as commands:
        commands.replay()
        sim.set_request_time(int(request * 1e6))

        def replay() -> None:
            commands.replay()

        def free() -> None:
            one.device.buffer(100).close()

        def fork() -> None:
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)

        for action in (replay, free, fork):
            quickest = request
            for _ in range(10):  # as a loaded machine may delay any of them
                until_the_keeper_asks(sim, commands)
                begin = time.monotonic()
                action()
                quickest = min(quickest, time.monotonic() - begin)
                if quickest < request / 2:
                    break
            assert quickest < request / 2, action
        sim.set_request_time(0)


def a_child_forked_during_a_request_uses_no_set(sim: Simulation) -> None:
    """And can close the device, though the thread that was in the set is not in the child."""
    with adder() as one, one.commands() as commands:
        sim.set_request_time(200_000)
        until_the_keeper_asks(sim, commands)
        ended = sim.made("endResidency")
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            commands.close()
            one.close()
            os._exit(7 if sim.made("endResidency") == ended else 8)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        sim.set_request_time(0)


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


def what_found_no_room_comes_in_when_there_is_some(sim: Simulation) -> None:
    sim.set_working_set(16 << 20)
    with adder() as one, one.commands() as commands:
        with closing(one.device.buffer(12 << 20)):
            before = calls(sim, "addAllocation")[0]
            later = one.device.buffer(12 << 20)
            commands.replay()
            assert calls(sim, "addAllocation")[0] == before
        commands.replay()
        assert calls(sim, "addAllocation")[0] == before + 1
        # What is freed while it waits never comes in.
        one.device.buffer(12 << 20).close()
        later.close()
        commands.replay()
        assert calls(sim, "addAllocation")[0] == before + 1


def devices_of_a_gpu_share_the_working_set(sim: Simulation) -> None:
    sim.set_devices(2)
    sim.set_working_set(16 << 20)
    with adder() as one, adder() as two, adder("metal:1") as other, two.commands() as commands:
        before = calls(sim, "addAllocation")[0]
        first = one.device.buffer(12 << 20)
        second = two.device.buffer(12 << 20)
        assert calls(sim, "addAllocation")[0] == before + 1
        with closing(other.device.buffer(12 << 20)):
            assert calls(sim, "addAllocation")[0] == before + 2, "another GPU has room of its own"
        first.close()
        commands.replay()
        assert calls(sim, "addAllocation")[0] == before + 3
        second.close()
    with adder() as one:
        before = calls(sim, "addAllocation")[0]
        one.device.buffer(12 << 20).close()
        assert calls(sim, "addAllocation")[0] == before + 1, "closed devices take no room"


def signals_go_to_other_threads(sim: Simulation) -> None:
    """Python's handlers have to interrupt calls of the main thread."""
    tasks = Path("/proc/self/task")

    def blocking() -> dict[str, bool]:
        masks = {}
        for task in tasks.iterdir():
            with suppress(FileNotFoundError):  # a thread that ended
                text = (task / "status").read_text()
                mask = int(text.split("SigBlk:")[1].split()[0], 16)
                masks[task.name] = bool(mask >> (signal.SIGINT - 1) & 1)
        return masks

    with adder() as one, one.commands() as commands:
        ended = sim.made("endResidency")
        commands.replay()
        wait_for(sim, "endResidency", ended + 1)
        time.sleep(4 * BEAT)  # the keeper has ended
        before = blocking()
        commands.replay()
        new = {name: blocks for name, blocks in blocking().items() if name not in before}
        assert [*new.values()] == [True], new
        assert not blocking()[str(os.getpid())], "the main thread's mask is as before"


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
