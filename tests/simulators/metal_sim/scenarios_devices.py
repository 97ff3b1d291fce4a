"""Finding and opening devices, and their libraries, pipelines and captures."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from metal_sim.kernels import ARGS, CONSTANTS, SOURCE, N, adder, run
from metal_sim.session import NO_REASON, RAISE, WITH_ERROR, Simulation
from oxibonsai import metal
from oxibonsai.metal import CompilationError, Device, DeviceNotFoundError, EncodingError


@contextmanager
def refused(error: type[Exception], *parts: str) -> Iterator[None]:
    """Expect an error whose text has these parts."""
    with pytest.raises(error) as info:
        yield
    for part in parts:
        assert part in str(info.value), f"{part!r} is not in {info.value}"


# Devices


def the_simulated_device_is_the_default(sim: Simulation) -> None:
    with Device() as device:
        info = device.info
        assert (info.driver, info.name) == ("metal", "Simulated Metal 0")
        assert info.simd_width == 32
        assert info.unified_memory
        assert info.max_threadgroup_memory == 32768, "the device has 64 KiB, kernels may use 32"
        assert info.max_buffer_length == 8 << 30
        assert info.recommended_working_set == 16 << 30
        assert info in metal.devices()


def without_a_device_metal_is_not_found_and_the_default_is_the_cpu(sim: Simulation) -> None:
    sim.set_devices(0)
    with refused(DeviceNotFoundError, "metal:0", "0 devices"):
        Device("metal")
    with Device() as device:
        assert device.driver == "cpu"
    assert [info.driver for info in metal.devices()] == ["cpu"]


def without_a_system_default_the_list_of_devices_is_used(sim: Simulation) -> None:
    sim.set_default_device(7)
    with Device("metal") as device:
        assert device.name == "Simulated Metal 0"


def without_a_list_the_system_default_is_used(sim: Simulation) -> None:
    sim.fail("MTLCopyAllDevices", times=2)
    with Device("metal") as device:
        assert device.name == "Simulated Metal 0"


def of_several_devices_the_system_default_is_the_first(sim: Simulation) -> None:
    sim.set_devices(3)
    sim.set_default_device(2)
    names = [info.name for info in metal.devices() if info.driver == "metal"]
    assert names == ["Simulated Metal 2", "Simulated Metal 0", "Simulated Metal 1"]
    with refused(DeviceNotFoundError, "metal:3", "3 devices"):
        Device("metal:3")


def each_of_several_devices_works(sim: Simulation) -> None:
    sim.set_devices(2)
    for index in range(2):
        with adder(f"metal:{index}") as one, one.commands() as commands:
            commands.replay(2)
            assert one.added() == 2


def another_simd_width_is_refused_with_the_reason(sim: Simulation) -> None:
    for width in (16, 64):
        sim.set_simd_width(0, width)
        with refused(DeviceNotFoundError, "Simulated Metal 0", f"{width} threads", "need 32"):
            Device("metal")
        with Device() as device:
            assert device.driver == "cpu"


def a_refused_device_does_not_hide_the_next(sim: Simulation) -> None:
    sim.set_devices(2)
    sim.set_simd_width(0, 64)
    with Device("metal:1") as device:
        assert device.name == "Simulated Metal 1"
    assert [i.name for i in metal.devices() if i.driver == "metal"] == ["Simulated Metal 1"]


def runs_of(call: str) -> int:
    """How often a call of the probe is made until its failure refuses the device."""
    return 2 if call == "execute" else 1


def every_step_of_opening_can_fail_and_leaves_nothing(sim: Simulation) -> None:
    steps = {
        "newCommandQueue": "queue",
        "newLibraryWithSource": "cannot compile",
        "newFunctionWithName": "no SIMD-group functions",
        "newComputePipelineStateWithDescriptor": "no SIMD-group functions",
        "newBufferWithLength": "no buffer",
        "commandBuffer": "no command buffer",
        "computeCommandEncoder": "no encoder",
        "execute": "not usable",
    }
    for call, text in steps.items():
        sim.fail(call, times=runs_of(call))
        with refused(DeviceNotFoundError, "metal:0", text):
            Device("metal")
        assert sim.live() == 0, f"{call}: {sim.live_text()}"
    for call in ("newLibraryWithSource", "newComputePipelineStateWithDescriptor", "execute"):
        sim.fail(call, WITH_ERROR, times=runs_of(call))
        with refused(DeviceNotFoundError, f"injected failure of {call}"):
            Device("metal")


def an_exception_while_opening_is_a_device_not_found(sim: Simulation) -> None:
    for call in ("newCommandQueue", "newLibraryWithSource", "newBufferWithLength"):
        sim.fail(call, RAISE)
        with refused(DeviceNotFoundError, f"SimException: injected failure of {call}"):
            Device("metal")
        with Device("metal"):
            pass


def opening_and_closing_many_times_leaves_nothing(sim: Simulation) -> None:
    for _ in range(20):
        with Device("metal") as device:
            device.buffer(100, storage="private").close()
        assert sim.live() == 0, sim.live_text()


def every_macos_is_told_to_compile_careful_arithmetic(sim: Simulation) -> None:
    # The simulated compiler ends the process where a system that can be told is not.
    for version in (12, 14, 15, 26):
        sim.set_macos(version)
        with Device("metal") as device, closing(device.library(SOURCE)) as library:
            library.pipeline("add").close()


# Libraries and pipelines


def a_kernel_without_constants_is_not_specialised(sim: Simulation) -> None:
    before = sim.made("specialisation")
    with adder() as one, closing(one.device.library(CONSTANTS)) as library:
        one.device.pipeline("rmsnorm").close()
        assert sim.made("specialisation") == before
        with refused(CompilationError, "'add'", "no function constant 0"):
            one.library.pipeline("add", constants={0: 1})
        library.pipeline("set", constants={0: False, 1: 3, 2: 10, 3: 0.5}).close()
        assert sim.made("specialisation") == before + 1


def the_compilers_log_is_in_the_error(sim: Simulation) -> None:
    with Device("metal") as device:
        with refused(CompilationError, "program_source:2:", "error"):
            device.library("#include <metal_stdlib>\nkernel void broken(nonsense) {}\n")
        sim.fail("newLibraryWithSource", WITH_ERROR)
        with refused(CompilationError, "injected failure"):
            device.library(SOURCE)
        sim.fail("newLibraryWithSource", NO_REASON)
        with refused(CompilationError, "Metal gave no reason"):
            device.library(SOURCE)
        sim.fail("newLibraryWithSource", RAISE)
        with refused(CompilationError, "SimException"):
            device.library(SOURCE)
        device.library(SOURCE).close()


def an_unknown_kernel_is_named_with_those_there_are(sim: Simulation) -> None:
    with Device("metal") as device:
        with (
            closing(device.library(SOURCE)) as library,
            refused(CompilationError, "'absent'", "add"),
        ):
            library.pipeline("absent")
        with refused(CompilationError, "'absent'", "ships"):
            device.pipeline("absent")


def a_failed_pipeline_gives_the_reason_and_leaves_nothing(sim: Simulation) -> None:
    constants = {0: False, 1: 3, 2: 10, 3: 0.5}
    with Device("metal") as device, closing(device.library(CONSTANTS)) as library:
        before = sim.live()
        for call in ("newFunctionWithName:constantValues", "newComputePipelineStateWithDescriptor"):
            for how, text in (
                (NO_REASON, "no reason"),
                (WITH_ERROR, "injected failure"),
                (RAISE, "SimException"),
            ):
                sim.fail(call, how)
                with refused(CompilationError, text):
                    library.pipeline("set", constants=constants)
                assert sim.live() == before, f"{call}: {sim.live_text()}"
        library.pipeline("set", constants=constants).close()


def pipelines_report_their_own_limits(sim: Simulation) -> None:
    with adder() as one:
        limits = []
        for name in ("add", "reversed", "vectors"):
            with (
                closing(one.library.pipeline(name)) as pipeline,
                one.device.commands() as commands,
            ):
                most = pipeline.info.max_threads
                with refused(EncodingError, name, str(most)):
                    commands.dispatch(
                        pipeline, [one.x, one.y], ARGS, threadgroups=1, threads=most + 1
                    )
                limits.append(most)
        assert sorted(limits) == [256, 448, 1024]
        with closing(one.library.pipeline("doubled")) as pipeline:
            assert pipeline.info.static_threadgroup_memory == 7168 * 4


def function_constants_reach_the_kernel(sim: Simulation) -> None:
    with Device("metal") as device, closing(device.library(CONSTANTS)) as library:
        for constants, expected in (
            ({0: False, 1: 3, 2: 10, 3: 0.5}, [5.0, 5.5, 6.0, 0.0]),
            ({0: True, 1: 2, 2: -10, 3: 1.0}, [10.0, 9.0, 0.0, 0.0]),
        ):
            with closing(library.pipeline("set", constants=constants)) as pipeline:
                assert run(device, pipeline, [0.0] * 4) == expected


def function_constants_that_do_not_fit_are_refused(sim: Simulation) -> None:
    good = {0: False, 1: 3, 2: 10, 3: 0.5}
    with Device("metal") as device, closing(device.library(CONSTANTS)) as library:
        for change, text in (
            ({0: 1}, "negative"),
            ({1: -1}, "count"),
            ({1: 1.0}, "count"),
            ({2: 2**31}, "offset"),
            ({3: 1}, "factor"),
            ({9: 1}, "no function constant 9"),
        ):
            with refused(CompilationError, "'set'", text):
                library.pipeline("set", constants=good | change)
        with refused(CompilationError, "function constant 3 (factor) needs a value"):
            library.pipeline("set", constants={i: good[i] for i in range(3)})


def threads_that_need_one_family_compile_it_once(sim: Simulation) -> None:
    with Device("metal") as device:
        before, errors = sim.made("MTLLibrary"), []
        barrier = threading.Barrier(8)

        def make() -> None:
            barrier.wait()
            try:
                device.pipeline("rmsnorm").close()
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors
        assert sim.made("MTLLibrary") == before + 1


def a_family_that_failed_to_compile_is_tried_again(sim: Simulation) -> None:
    with Device("metal") as device:
        for how in (WITH_ERROR, RAISE):
            sim.fail("newLibraryWithSource", how)
            with refused(CompilationError, "'rmsnorm'", "injected failure"):
                device.pipeline("rmsnorm")
        device.pipeline("rmsnorm").close()


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


METALLIB = """simulated metallib
#include <metal_stdlib>
kernel void rmsnorm(device float *y [[buffer(0)]]) { y[0] = 1.0f; }
"""


def a_metallib_beside_the_driver_waits_to_be_asked_for(sim: Simulation) -> None:
    Path(sim.path).with_name("oxibonsai.metallib").write_text(METALLIB)
    for setting in (nullcontext(), environment("OXIBONSAI_METALLIB", "")):
        with setting, Device("metal") as device:
            assert sim.live("MTLLibrary") == 0
            device.pipeline("rmsnorm").close()
            assert sim.live("MTLLibrary") == 1, "the source's"
    with environment("OXIBONSAI_METALLIB", "0"), Device("metal"):
        assert sim.live("MTLLibrary") == 0


def a_metallib_that_is_asked_for_is_used(sim: Simulation) -> None:
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = Path(folder, "mine.metallib")
        for value, place in (
            ("1", Path(sim.path).with_name("oxibonsai.metallib")),
            (str(elsewhere), elsewhere),
        ):
            place.write_text(METALLIB)
            with environment("OXIBONSAI_METALLIB", value), Device("metal") as device:
                with closing(device.pipeline("rmsnorm")) as pipeline:
                    assert run(device, pipeline, [0.0]) == [1.0]
                assert sim.live("MTLLibrary") == 1, "the metallib alone"
                device.pipeline("residual_add").close()
                assert sim.live("MTLLibrary") == 2, "what the metallib lacks comes from the source"


def a_metallib_that_cannot_be_had_is_an_error_that_names_it(sim: Simulation) -> None:
    place = Path(sim.path).with_name("oxibonsai.metallib")
    place.unlink(missing_ok=True)
    for name in ("metal", None):  # the default device does not fall back to the cpu
        with (
            environment("OXIBONSAI_METALLIB", "1"),
            refused(CompilationError, "OXIBONSAI_METALLIB is '1'", str(place), "No such file"),
        ):
            Device(name)
        place.write_bytes(b"MTLB no simulated one")
        with environment("OXIBONSAI_METALLIB", "1"):
            with refused(CompilationError, "OXIBONSAI_METALLIB", str(place), "not a metallib"):
                Device(name)
            assert [info.driver for info in metal.devices()] == ["cpu"]
            assert sim.live() == 0, sim.live_text()
        place.unlink()
    with (
        environment("OXIBONSAI_METALLIB", "/nowhere/a.metallib"),
        refused(CompilationError, "/nowhere/a.metallib"),
    ):
        Device("metal")
    with Device("metal"):
        pass


# Captures


def a_capture_needs_the_environment_variable(sim: Simulation) -> None:
    reasons = {
        "metal": ("MTL_CAPTURE_ENABLED=1", "METAL_CAPTURE_ENABLED=1"),
        "cpu": ("the cpu device has no capture",),
    }
    for name, texts in reasons.items():
        with Device(name) as device, refused(EncodingError, *texts), device.capture("no.gputrace"):
            pass


def a_capture_names_the_kernels(sim: Simulation) -> None:
    for name in ("MTL_CAPTURE_ENABLED", "METAL_CAPTURE_ENABLED"):
        with (
            environment(name, "1"),
            tempfile.TemporaryDirectory() as folder,
            adder() as one,
            one.commands() as commands,
        ):
            path = Path(folder, "one.gputrace")
            commands.replay()
            with one.device.capture(path):
                commands.replay(2)
                other = one.device.capture(path.with_name("two.gputrace"))
                with refused(EncodingError, "a capture is running"), other:
                    pass
            commands.replay()
            assert path.read_text() == "group add\ngroup add\n"
            with refused(EncodingError, "exists"), one.device.capture(path):
                pass
            sim.fail("startCaptureWithDescriptor")
            with refused(EncodingError, "no reason"), one.device.capture(path):
                pass
            assert one.added() == 4


def the_answer_is_the_same_in_every_thread(sim: Simulation) -> None:
    with adder() as one:
        failures: list[int] = []

        def work(seed: int) -> None:
            x = np.random.default_rng(seed).standard_normal(N).astype(np.float32)
            with (
                one.device.upload(x) as bx,
                one.device.buffer(N * 4) as by,
                one.device.commands() as commands,
            ):
                commands.dispatch(one.pipeline, [bx, by], ARGS, threadgroups=1, threads=N)
                commands.replay(10)
                expected = np.zeros(N, np.float32)
                for _ in range(10):
                    expected += x
                if not np.array_equal(by.read(np.zeros(N, np.float32)), expected):
                    failures.append(seed)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
