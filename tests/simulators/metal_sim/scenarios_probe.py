"""What a device must do to be admitted, and what becomes of one that does not."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from shader_sources import FAMILY_OF

from metal_sim.kernels import adder
from metal_sim.scenarios_devices import refused
from metal_sim.session import IGNORED, PAGE_FAULT, TIMEOUT, VICTIM, WITH_ERROR, Simulation
from oxibonsai import metal
from oxibonsai.cli import main
from oxibonsai.metal import CompilationError, Device, DeviceNotFoundError

NO_MATRICES = """
#define simdgroup_float8x8 no_such_type
#define simdgroup_half8x8 no_such_type
"""


# The two elements of a lane are exchanged in matrices of half.
OTHER_ORDER = """
using namespace metal;
inline void multiply(thread simdgroup_float8x8 &d, thread simdgroup_half8x8 &a,
                     thread simdgroup_half8x8 &b, thread simdgroup_float8x8 &c) {
    const half first = a.thread_elements()[0];
    a.thread_elements()[0] = a.thread_elements()[1];
    a.thread_elements()[1] = first;
    simdgroup_multiply_accumulate(d, a, b, c);
}
template <typename T>
inline void multiply(thread simdgroup_float8x8 &d, thread simdgroup_float8x8 &a,
                     thread simdgroup_matrix<T, 8, 8> &b, thread simdgroup_float8x8 &c) {
    simdgroup_multiply_accumulate(d, a, b, c);
}
#define simdgroup_multiply_accumulate multiply
"""


def expect_refusal(*parts: str) -> None:
    """Expect the reason from Device(name), and the cpu as the default device."""
    expect_refusal_by_name(*parts)
    with Device() as device:
        assert device.driver == "cpu"


def expect_refusal_by_name(*parts: str) -> None:
    with refused(DeviceNotFoundError, 'device "metal:0" (Simulated Metal 0) is not usable', *parts):
        Device("metal")


def without_simdgroup_matrices_a_device_is_refused_by_name(sim: Simulation) -> None:
    sim.set_prelude(NO_MATRICES)  # Refused with the source ...
    expect_refusal("it has no SIMD-group matrices", "no_such_type")
    sim.set_prelude("")
    sim.refuse_kernels("oxb_probe_products")  # ... or with the pipeline.
    expect_refusal("it has no SIMD-group matrices", "air.simdgroup_matrix_8x8")


def without_simdgroup_functions_a_device_is_refused_by_name(sim: Simulation) -> None:
    sim.set_prelude("#define simd_shuffle_xor no_such_function")
    expect_refusal("it has no SIMD-group functions", "no_such_function")
    sim.set_prelude("")
    sim.refuse_kernels("oxb_probe_lanes")
    expect_refusal("it has no SIMD-group functions")


def a_device_that_computes_something_else_is_refused(sim: Simulation) -> None:
    for function, lines, parts in (
        ("simd_sum", "(v) (v)", ("functions", "simd_sum gave 1 in lane 0, not 528")),
        ("simd_max", "(v) (v)", ("functions", "simd_max gave 1 in lane 0, not 32")),
        ("simd_shuffle_xor", "(v, m) simd_shuffle(v, m)", ("functions", "simd_shuffle_xor")),
        ("simd_shuffle", "(v, n) simd_shuffle_xor(v, n)", ("functions", "simd_shuffle gave")),
        ("simd_shuffle_up", "(v, n) simd_shuffle_down(v, n)", ("functions", "simd_shuffle_up")),
        (
            "simdgroup_multiply_accumulate",
            "(d, a, b, c) simdgroup_multiply_accumulate(d, b, a, c)",
            ("matrices", "the product of float"),
        ),
        ("threadgroup_barrier", "(flags)", ("threadgroups", "256 threads", "29696 bytes")),
    ):
        sim.set_prelude(f"#define {function}{lines}")
        expect_refusal(*parts)
    sim.set_prelude(OTHER_ORDER)
    expect_refusal("matrices", "the product of half matrices gave")


def another_width_of_one_kernel_is_refused(sim: Simulation) -> None:
    for kernel in ("oxb_probe_lanes", "oxb_probe_products", "oxb_probe_threads"):
        for width in (16, 64):
            sim.set_kernel_width(kernel, width)
            expect_refusal(f"{width} threads", "need 32", kernel, "use the cpu device")
        sim.set_kernel_width(kernel, 32)
    with Device("metal") as device:
        sim.set_kernel_width("rmsnorm", 64)
        with refused(CompilationError, "'rmsnorm'", "64 threads", "need 32", 'Device("cpu")'):
            device.pipeline("rmsnorm")
        device.pipeline("residual_add").close()


def small_threadgroups_are_refused(sim: Simulation) -> None:
    sim.set_max_threads(255)
    expect_refusal("at most 255 threads", "need 256")
    sim.set_max_threads(256)
    sim.set_max_threadgroup_memory(16384)
    expect_refusal("16384 bytes", "need 29696")
    sim.set_max_threadgroup_memory(29696)
    Device("metal").close()


def no_kernel_needs_more_memory_than_the_probe_tries(sim: Simulation) -> None:
    sim.set_max_threadgroup_memory(16384)
    with pytest.raises(DeviceNotFoundError, match="16384 bytes") as caught:
        Device("metal")
    tried = int(str(caught.value).rpartition(" ")[2])
    sim.set_max_threadgroup_memory(tried)
    with Device("metal") as device:
        for kernel in FAMILY_OF:
            with closing(device.pipeline(kernel)) as pipeline:
                assert pipeline.info.static_threadgroup_memory <= tried, kernel


def a_virtual_device_is_admitted_by_what_it_does(sim: Simulation) -> None:
    sim.set_virtual(1)
    with adder() as one, one.commands() as commands:
        assert one.device.name == "Apple Paravirtual device"
        commands.replay()
        assert one.added() == 1


def the_probe_is_one_library_and_two_command_buffers(
    sim: Simulation,
) -> None:
    """One for the kernels and one for wrapped memory."""
    made = ("MTLLibrary", "MTLComputePipelineState", "MTLCommandBuffer")
    before = [sim.made(name) for name in made]
    Device("metal").close()
    assert [sim.made(name) - n for name, n in zip(made, before, strict=True)] == [1, 3, 2]


def an_error_that_passes_does_not_refuse_a_device(sim: Simulation) -> None:
    for code in (VICTIM, IGNORED, PAGE_FAULT, TIMEOUT):
        sim.end(code)
        with Device() as device:
            assert device.driver == "metal", code
    sim.fail("execute", WITH_ERROR, times=2)
    expect_refusal_by_name("it does not run kernels", "injected failure of execute")


def what_no_second_run_mends_is_refused_at_once(sim: Simulation) -> None:
    before = sim.made("MTLCommandBuffer")
    sim.set_prelude("#define simd_sum(v) (v)")
    expect_refusal_by_name("simd_sum gave 1")
    assert sim.made("MTLCommandBuffer") == before + 1
    sim.set_prelude("")
    with sim.hang():
        expect_refusal_by_name("did not finish within 2 s")
    assert sim.made("MTLCommandBuffer") == before + 2


def refused_devices_are_listed_with_the_reason(sim: Simulation) -> None:
    sim.set_devices(3)
    sim.set_simd_width(1, 64)
    found = metal.probe_devices()
    assert found.usable == metal.devices()
    assert [i.name for i in found.usable if i.driver == "metal"] == [
        "Simulated Metal 0",
        "Simulated Metal 2",
    ]
    (one,) = found.refused
    assert (one.driver, one.index) == ("metal", 1)
    assert "Simulated Metal 1" in one.reason
    assert "64 threads" in one.reason


def output_of(*arguments: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*arguments]) == 0
    return out.getvalue()


def the_command_line_lists_refused_devices_with_the_reason(sim: Simulation) -> None:
    sim.set_prelude(NO_MATRICES)
    lines = output_of("devices").splitlines()
    assert lines[0].startswith("cpu:0  ")
    assert lines[-1].startswith('metal:0  refused: device "metal:0" (Simulated Metal 0)')
    assert "no SIMD-group matrices" in lines[-1], "one line, whatever the compiler's log has"
    sim.set_prelude("")
    sim.set_simd_width(0, 64)
    usable, refused_one = json.loads(output_of("devices", "--json"))
    assert (usable["driver"], usable["reason"]) == ("cpu", None)
    assert (refused_one["driver"], refused_one["index"]) == ("metal", 0)
    assert "64 threads" in refused_one["reason"]


class Beside:
    """A thread that runs `action`, while this one counts how often it gets to run meanwhile."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.error: Exception | None = None
        self.turns = 0
        begin = time.monotonic()
        thread = threading.Thread(target=self._run, args=(action,))
        thread.start()
        while thread.is_alive():
            time.sleep(0.001)
            self.turns += 1
        self.seconds = time.monotonic() - begin

    def _run(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self.error = error


# An action that held the GIL for its 2 s would leave two turns, however slow the machine is.
FREE = 20


def a_probe_that_hangs_is_given_up_and_holds_nobody(sim: Simulation) -> None:
    with sim.hang():
        beside = Beside(lambda: Device("metal").close())
        assert 1.5 < beside.seconds < 30
        assert beside.turns > FREE
        assert isinstance(beside.error, DeviceNotFoundError)
        assert "did not finish within 2 s" in str(beside.error)
        with Device() as device:
            assert device.driver == "cpu"
    Device("metal").close()


def a_slow_compiler_holds_no_other_thread(sim: Simulation) -> None:
    sim.set_compile_seconds(2)
    beside = Beside(lambda: Device("metal").close())
    assert beside.error is None
    assert beside.turns > FREE
    with Device("metal") as device:
        beside = Beside(lambda: device.pipeline("rmsnorm").close())
        assert beside.error is None
        assert beside.turns > FREE


def open_at_once(n: int) -> tuple[list[Device], list[str]]:
    """Open the device in `n` threads; return the devices, and the reasons of those refused."""
    opened: list[Device] = []
    reasons: list[str] = []
    barrier = threading.Barrier(n)

    def work() -> None:
        barrier.wait()
        try:
            opened.append(Device("metal"))
        except DeviceNotFoundError as error:
            reasons.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return opened, reasons


def threads_that_open_a_device_probe_it_once(sim: Simulation) -> None:
    sim.set_compile_seconds(1)
    made = sim.made("MTLLibrary")
    opened, reasons = open_at_once(4)
    assert (len(opened), reasons) == (4, [])
    for device in opened:
        with closing(device):
            device.buffer(16).close()
    assert sim.made("MTLLibrary") == made + 1
    sim.refuse_kernels("oxb_probe_products")
    opened, reasons = open_at_once(4)
    assert opened == []
    assert len(reasons) == 4
    assert len(set(reasons)) == 1
    assert sim.made("MTLLibrary") == made + 2
