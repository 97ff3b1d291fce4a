"""Buffers, copies and submitted work, and what can go wrong with them."""

from __future__ import annotations

import mmap
import threading
import time
from contextlib import closing

import numpy as np
from misuses import MISUSES, Stage
from misuses import refused as refused_alike

from metal_sim.kernels import ARGS, SOURCE, N, adder, run
from metal_sim.scenarios_devices import refused
from metal_sim.session import NO_REASON, RAISE, WITH_ERROR, Simulation
from oxibonsai import metal
from oxibonsai.metal import Buffer, BufferCreationError, Device, EncodingError, ExecutionError

# Buffers


def fresh_memory_is_zero_whatever_metal_gives(sim: Simulation) -> None:
    with Device("metal") as device:
        for storage in ("shared", "private"):
            for n in (1, 3, 4, 4099):
                with device.buffer(n, storage=storage) as buffer:
                    assert not buffer.read(np.ones(n, np.uint8)).any()


def a_buffer_without_memory_is_an_error_with_the_sizes(sim: Simulation) -> None:
    with Device("metal") as device, device.buffer(5000):
        sim.live()  # Waits for the device: the probe's buffer counts until its work is forgotten.
        for storage in ("shared", "private"):
            sim.fail("newBufferWithLength")
            with refused(BufferCreationError, "1000 bytes", "5000 bytes allocated"):
                device.buffer(1000, storage=storage)
            sim.fail("newBufferWithLength", RAISE)
            with refused(BufferCreationError, "SimException"):
                device.buffer(1000, storage=storage)
        sim.set_max_buffer_length(4096)
    with Device("metal") as device:
        device.buffer(4096).close()
        with refused(BufferCreationError, "4097", "4096"):
            device.buffer(4097)


def a_private_buffer_that_cannot_be_zeroed_is_not_made(sim: Simulation) -> None:
    with Device("metal") as device:
        before = sim.live()
        for call in ("commandBuffer", "blitCommandEncoder", "execute"):
            sim.fail(call)
            with refused(ExecutionError, "private buffer"):
                device.buffer(100, storage="private")
            assert sim.live() == before, f"{call}: {sim.live_text()}"


def private_memory_is_read_written_and_filled_at_any_byte(sim: Simulation) -> None:
    rng = np.random.default_rng(5)
    n = 101
    with Device("metal") as device, device.buffer(n, storage="private") as buffer:
        expected = np.zeros(n, np.uint8)
        for _ in range(60):
            begin, end = sorted(int(v) for v in rng.integers(0, n + 1, 2))
            if rng.random() < 0.5:
                data = rng.integers(0, 256, end - begin).astype(np.uint8)
                buffer.write(data, begin)
                expected[begin:end] = data
            else:
                value = int(rng.integers(0, 256))
                buffer.fill(value, offset=begin, nbytes=end - begin)
                expected[begin:end] = value
            assert np.array_equal(buffer.read(np.zeros(n, np.uint8)), expected)
            part = np.zeros(end - begin, np.uint8)
            assert np.array_equal(buffer.read(part, begin), expected[begin:end])


def private_memory_is_copied_in_pieces(sim: Simulation) -> None:
    n = (33 << 20) + 3
    data = np.random.default_rng(1).integers(0, 256, n).astype(np.uint8)
    with Device("metal") as device, device.buffer(n + 5, storage="private") as buffer:
        buffer.write(data, 1)
        assert np.array_equal(buffer.read(np.zeros(n, np.uint8), 1), data)
        edges = np.concatenate(
            [buffer.read(np.ones(1, np.uint8)), buffer.read(np.ones(4, np.uint8), n + 1)]
        )
        assert not edges.any()


def failed_copies_give_the_reason(sim: Simulation) -> None:
    data = np.zeros(10, np.uint8)
    with Device("metal") as device, device.buffer(100, storage="private") as buffer:
        actions = {
            "read 10 bytes at offset 3": lambda: buffer.read(data, 3),
            "write 10 bytes at offset 3": lambda: buffer.write(data, 3),
            "fill 100 bytes at offset 0": lambda: buffer.fill(1),
        }
        for text, action in actions.items():
            for call, how, reason in (
                ("commandBuffer", NO_REASON, "no command buffer"),
                ("blitCommandEncoder", NO_REASON, "no encoder for a copy"),
                ("execute", NO_REASON, "status 5 and no reason"),
                ("execute", WITH_ERROR, "injected failure of execute"),
            ):
                sim.fail(call, how)
                with refused(ExecutionError, text, reason):
                    action()
        sim.fail("newBufferWithLength")
        with refused(ExecutionError, "no memory to copy through"):
            buffer.read(data)
        sim.fail("commandBuffer", RAISE)
        with refused(ExecutionError, "SimException"):
            buffer.read(data)
        buffer.read(data)


def a_copy_gives_up_on_a_device_that_hangs(sim: Simulation) -> None:
    data = np.full(10, 7, np.uint8)
    with Device("metal") as device, device.buffer(100, storage="private") as buffer:
        buffer.write(data)
        with sim.hang():
            begin = time.monotonic()
            with refused(ExecutionError, "did not finish within 2 s"):
                buffer.read(np.zeros(10, np.uint8))
            assert 1.5 < time.monotonic() - begin < 30
        assert np.array_equal(buffer.read(np.zeros(10, np.uint8)), data)


def host_memory_is_wrapped_without_a_copy(sim: Simulation) -> None:
    with adder() as one, mmap.mmap(-1, 3 * mmap.PAGESIZE) as pages:
        memory = np.frombuffer(pages, np.float32)
        for first in (0, 4, mmap.PAGESIZE // 4 - 8):
            part = memory[first : first + N]
            part[:] = 3
            with one.device.upload(part, copy=False) as wrapped, one.device.commands() as commands:
                commands.dispatch(one.pipeline, [one.x, wrapped], ARGS, threadgroups=1, threads=N)
                commands.replay()
            assert np.array_equal(part, 3 + np.arange(N, dtype=np.float32))
        sim.fail("newBufferWithBytesNoCopy")
        with refused(BufferCreationError, "without a copy", "copy the data"):
            one.device.upload(memory, copy=False)
        del part, memory


# Work


def dispatches_run_in_order_and_take_time(sim: Simulation) -> None:
    with adder() as one, one.commands() as commands:
        commands.replay()
        assert commands.device_time is not None
        assert commands.device_time > 0
        commands.submit(40)
        commands.wait(30)
        assert one.added() == 41
        assert one.device.stats.in_flight == 0


def replaying_keeps_no_objects(sim: Simulation) -> None:
    with adder() as one, one.commands() as commands:
        commands.replay()
        before = sim.live()
        commands.replay(100)
        assert sim.live() == before, sim.live_text()
        assert one.added() == 101


def a_failed_command_buffer_is_an_execution_error(sim: Simulation) -> None:
    with adder() as one, one.commands() as commands:
        for how, text in (
            (NO_REASON, "status 5 and no reason"),
            (WITH_ERROR, "injected failure of execute (SimErrorDomain 77)"),
        ):
            sim.fail("execute", how)
            with refused(ExecutionError, text):
                commands.replay()
        commands.replay()
        assert one.added() == 1


def an_error_that_nobody_waited_for_is_raised_by_the_next_submission(sim: Simulation) -> None:
    with adder() as one:
        with one.commands() as commands:
            sim.fail("execute", WITH_ERROR)
            commands.submit()
        sim.live()  # Waits for the device.
        with one.commands() as commands:
            with refused(ExecutionError, "earlier", "injected failure of execute"):
                commands.replay()
            commands.replay()
        assert one.added() == 1


def work_that_cannot_be_encoded_is_an_encoding_error(sim: Simulation) -> None:
    with adder() as one, one.commands() as commands:
        before = sim.live()
        for call, how, text in (
            ("commandBuffer", NO_REASON, "dispatches 0 to 0 of 1: Metal gave no command buffer"),
            ("commandBuffer", RAISE, "SimException"),
            ("computeCommandEncoder", NO_REASON, "Metal gave no encoder"),
            ("computeCommandEncoder", RAISE, "SimException"),
            ("dispatchThreadgroups", RAISE, "SimException"),
        ):
            sim.fail(call, how)
            with refused(EncodingError, text):
                commands.replay()
            assert sim.live() == before, f"{call}: {sim.live_text()}"
            assert one.device.stats.in_flight == 0
        commands.replay()
        assert one.added() == 1


def a_hang_ends_in_an_execution_error_and_the_late_write_is_harmless(sim: Simulation) -> None:
    with adder() as one, one.commands() as commands:
        with sim.hang():
            commands.submit()
            with refused(ExecutionError, "did not finish within 0.2 s"):
                commands.wait(0.2)
            assert one.added() == 0
            assert one.device.stats.in_flight == 1
        commands.wait(30)
        assert one.added() == 1, "written late"
        commands.replay(3)
        assert one.added() == 4


def what_a_hung_device_still_uses_stays_alive(sim: Simulation) -> None:
    with sim.hang(skip=2):  # The first are the probe of the device and its trial of wrapping.
        with adder() as one, one.commands() as commands:
            commands.submit()
            with refused(ExecutionError, "did not finish within 0 s"):
                commands.wait(0)
        assert sim.live("MTLBuffer") == 2
        assert sim.live("MTLComputePipelineState") == 1
        assert sim.live("MTLCommandBuffer") == 1
    assert sim.live() == 0, sim.live_text()


def the_seventeenth_submission_waits_for_the_first(sim: Simulation) -> None:
    with adder() as one:
        all_commands = [one.commands() for _ in range(17)]
        with sim.hang():
            for commands in all_commands[:16]:
                commands.submit()
            last = threading.Thread(target=all_commands[16].submit)
            last.start()
            last.join(0.2)
            assert last.is_alive()
            assert one.device.stats.in_flight == 16
        last.join(30)
        assert not last.is_alive()
        for commands in all_commands:
            commands.wait(30)
            commands.close()
        assert one.added() == 17


def what_metal_would_trust_is_checked(sim: Simulation) -> None:
    with adder() as one:
        x, y = one.x, one.y
        vectors, reversed_ = one.library.pipeline("vectors"), one.library.pipeline("reversed")
        cases: list[tuple[metal.Pipeline, list[Buffer | tuple[Buffer, int]], bytes, str]] = [
            (one.pipeline, [x], ARGS, "it writes buffer(1)"),
            (one.pipeline, [x, y], b"", "buffer(2) is not bound"),
            (one.pipeline, [x, y], ARGS[:12], "buffer(2) has 12 bytes bound and needs 16"),
            (one.pipeline, [(x, N * 4 - 2), y], ARGS, "buffer(0) has 2 bytes"),
            (one.pipeline, [(x, 2), y], ARGS, "not a multiple of 4"),
            (vectors, [(x, 8)], b"", "starts at byte 8, which is not a multiple of 16"),
            (reversed_, [x], b"", "threadgroup(0) has no length"),
        ]
        for pipeline, bindings, args, text in cases:
            with one.device.commands() as commands:
                with refused(EncodingError, pipeline.function, text):
                    commands.dispatch(pipeline, bindings, args, threadgroups=1)
                assert len(commands) == 0
        vectors.close()
        reversed_.close()


def every_misuse_is_refused_as_on_other_devices(sim: Simulation) -> None:
    with Stage("metal") as stage:
        submits = 0
        before = sim.made("MTLCommandBuffer")
        tried = [misuse for misuse in MISUSES if misuse.applies("metal")]
        assert len(tried) > 30
        for misuse in tried:
            refused_alike(stage, misuse)
            submits += misuse.submits
            assert sim.made("MTLCommandBuffer") == before + submits, misuse.name
        stage.dispatch()  # what is right still runs
        stage.commands.replay()
        assert sim.made("MTLCommandBuffer") == before + submits + 1


def a_pipeline_lists_what_metals_reflection_says(sim: Simulation) -> None:
    with adder() as one:
        arguments = one.pipeline.arguments
        assert [(a.kind, a.binding, a.size, a.writable) for a in arguments] == [
            ("buffer", 0, 4, False),
            ("buffer", 1, 4, True),
            ("buffer", 2, 16, False),
        ]
        with closing(one.library.pipeline("reversed")) as pipeline:
            assert [a.kind for a in pipeline.arguments] == ["buffer", "threadgroup"]


def threadgroup_memory_is_given_kernel_by_kernel(sim: Simulation) -> None:
    sim.set_max_threads(1024)
    with Device("metal") as device, closing(device.library(SOURCE)) as library:
        y = np.arange(8, dtype=np.float32)
        with (
            closing(library.pipeline("reversed")) as flip,
            closing(library.pipeline("doubled")) as double,
        ):
            assert run(device, flip, y, memory=33) == [*y[::-1]]
            with device.upload(y) as buffer, device.commands() as commands:
                # 28 KiB and then 28 KiB of its own: together they would be too much.
                commands.dispatch(
                    flip, [buffer], threadgroups=1, threads=8, threadgroup_memory=28 << 10
                )
                commands.dispatch(double, [buffer], threadgroups=1, threads=8)
                commands.replay()
                assert np.array_equal(buffer.read(np.zeros(8, np.float32)), 2 * y[::-1])
