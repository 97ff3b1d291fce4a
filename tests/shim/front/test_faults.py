"""What a device that fails, hangs or refuses does to its users, by a driver of faults."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from cases import activations, random_weight, upload
from fault_driver import build

from oxibonsai import metal
from oxibonsai.cli import main
from oxibonsai.metal import (
    BufferCreationError,
    CompilationError,
    Device,
    DeviceNotFoundError,
    EncodingError,
    ExecutionError,
    MetalGraph,
)

RUN, FAIL, FAIL_SILENTLY, HOLD, REFUSE = range(5)


@pytest.fixture
def recorded(faulty):
    """Commands with one dispatch, and the buffer that it writes."""
    with faulty.buffer(64) as x, faulty.buffer(64) as y, faulty.commands() as commands:
        commands.add(x, y, 16)
        yield commands, y


def layer(graph):
    weights = [upload(graph, random_weight("Q1_0", *s)) for s in [(128, 128), (256, 128)]]
    return activations(128), np.ones(128, np.float32), [*weights, weights[0]]


# Drivers and devices


def test_a_loaded_driver_is_the_first_default(fault, monkeypatch):
    monkeypatch.delenv("OXIBONSAI_DEVICE", raising=False)
    assert metal.devices()[0].driver == "fault"
    with Device() as device:
        assert device.driver == "fault"
    fault.present = 0
    assert "fault" not in [info.driver for info in metal.devices()]
    with Device() as device:
        assert device.driver != "fault"


def test_a_driver_that_fails_to_count_is_passed_over(fault, monkeypatch):
    monkeypatch.delenv("OXIBONSAI_DEVICE", raising=False)
    fault.count_fails = 1
    assert "fault" not in [info.driver for info in metal.devices()]
    with Device() as device:
        assert device.driver != "fault"
    with pytest.raises(DeviceNotFoundError, match="the fault driver does not count today"):
        Device("fault")


def test_a_device_that_is_refused_names_the_reason_and_gives_way(fault, monkeypatch):
    monkeypatch.delenv("OXIBONSAI_DEVICE", raising=False)
    fault.open_fails = 1
    assert "fault" not in [info.driver for info in metal.devices()]
    with Device() as device:
        assert device.driver != "fault"
    with pytest.raises(DeviceNotFoundError, match="SIMD width 64, the kernels need 32"):
        Device("fault")
    refused = [one for one in metal.probe_devices().refused if one.driver == "fault"]
    reason = "fault device 0 has SIMD width 64, the kernels need 32"
    assert refused == [metal.RefusedDevice("fault", 0, reason)]
    with pytest.raises(DeviceNotFoundError, match='no device "fault:1": 1 device of driver'):
        Device("fault:1")


@pytest.mark.parametrize("refused", [0, 1, 2, 3])
def test_the_default_is_the_first_device_that_is_not_refused(fault, monkeypatch, capsys, refused):
    monkeypatch.delenv("OXIBONSAI_DEVICE", raising=False)
    fault.present, fault.refused = 3, refused
    found = metal.probe_devices()
    assert [d.index for d in found.refused if d.driver == "fault"] == list(range(refused))
    first = found.usable[0]
    assert (first.driver == "fault") == (refused < 3)
    with Device() as device:
        assert (device.driver, device.index) == (first.driver, first.index)
    assert main(["devices"]) == 0
    assert capsys.readouterr().out.startswith(f"{first.driver}:{first.index}  ")
    if refused:
        with pytest.raises(DeviceNotFoundError, match="fault device 0 has SIMD width 64"):
            Device("fault")


def test_device_that_the_environment_names_comes_first(fault, monkeypatch, capsys):
    monkeypatch.delenv("OXIBONSAI_DEVICE", raising=False)
    assert metal.devices()[0].driver == "fault"
    for name, first in (("cpu", "cpu"), ("cpu:0", "cpu"), ("fault", "fault"), ("none", "fault")):
        monkeypatch.setenv("OXIBONSAI_DEVICE", name)
        found = metal.devices()
        assert (found[0].driver, found[0].index) == (first, 0)
        assert {info.driver for info in found} >= {"fault", "cpu"}
        assert main(["devices"]) == (name == "none")
        assert capsys.readouterr().out.startswith(f"{first}:0  ")


def test_the_rate_that_a_driver_measures_is_in_the_statistics(fault, faulty):
    assert faulty.stats.work_per_second == 0
    fault.set_work_rate(0.7e12)
    assert faulty.stats.work_per_second == 0.7e12
    with Device("cpu") as cpu:
        assert cpu.stats.work_per_second == 0


def test_a_driver_of_another_version_is_refused(tmp_path):
    path = build(tmp_path, "-DFAULT_ABI")
    with pytest.raises(DeviceNotFoundError, match=r"built for driver ABI 7 .* build it again"):
        metal.load_driver(path)


def test_a_driver_that_declines_gives_its_reason(tmp_path):
    path = build(tmp_path, "-DFAULT_REASON")
    with pytest.raises(DeviceNotFoundError, match="the machine has no fault"):
        metal.load_driver(path)


# Memory


def test_a_buffer_that_the_device_does_not_give_is_an_error(fault, faulty):
    fault.buffer_fails = 0
    graph = MetalGraph(faulty)
    memory = np.zeros(64, np.uint8)
    memory = memory[-memory.ctypes.data % 16 :][:16]
    for call in (
        lambda: faulty.buffer(100),
        lambda: faulty.buffer(100, storage="private"),
        lambda: faulty.upload(b"abc"),
        lambda: faulty.upload(memory, copy=False),
        lambda: graph.upload_weight(b"abc"),
        lambda: graph.upload_q1_weight_soa(bytes(18)),
        lambda: graph.upload_tq2_weight_soa(bytes(34)),
        lambda: graph.upload_f32_weight(activations(4)),
        lambda: graph.get_or_upload_weight(1, b"abc"),
        lambda: graph.acquire_buffers(8, 8).__enter__(),
    ):
        with pytest.raises(BufferCreationError, match="the device"):
            call()
    assert len(graph.weights) == 0
    assert faulty.stats.buffers == 0
    fault.buffer_fails = -1
    assert graph.get_or_upload_weight(1, b"abc").byte_len == 3


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_a_phase_whose_buffers_fail_changes_nothing_and_can_be_tried_again(fault, faulty, left):
    graph = MetalGraph(faulty)
    hidden, norm, handles = layer(graph)
    norm = graph.upload_f32_weight(norm)
    before = faulty.stats.buffers
    fault.buffer_fails = left
    out = hidden.copy()
    with pytest.raises(BufferCreationError, match="the device gave no buffer of 512 bytes"):
        graph.encode_ffn_phase(out, hidden, norm, *handles)
    np.testing.assert_array_equal(out, hidden)
    gc.collect()
    assert faulty.stats.buffers == before
    fault.buffer_fails = -1
    graph.encode_ffn_phase(out, hidden, norm, *handles)


def test_memory_that_could_not_be_wrapped_is_let_go(fault, faulty):
    memory = np.zeros(64, np.uint8)
    view = memory[-memory.ctypes.data % 16 :][:16].view(type("Watched", (np.ndarray,), {}))
    watch = weakref.ref(view)
    fault.buffer_fails = 0
    with pytest.raises(BufferCreationError):
        faulty.upload(view, copy=False)
    del view
    gc.collect()
    assert watch() is None


def test_no_buffer_is_made_for_a_call_of_a_phase(fault, faulty):
    graph = MetalGraph(faulty)
    handle = upload(graph, random_weight("Q1_0", 128, 128))
    hidden, norm, handles = layer(graph)
    norm = graph.upload_f32_weight(norm)
    x, y = activations(128), np.zeros(128, np.float32)

    def phases():
        graph.encode_gemv(handle, x, y)
        graph.encode_qkv_phase(x, y, handle)
        graph.encode_ffn_phase(hidden, x, norm, *handles)

    phases()
    made = fault.buffers_made
    for _ in range(50):
        phases()
    assert fault.buffers_made == made


def test_private_memory_that_fails_to_copy_is_an_error(fault, faulty):
    with faulty.buffer(16, storage="private") as buffer:
        fault.mode = FAIL
        out = bytearray(16)
        for call in (lambda: buffer.read(out), lambda: buffer.write(out), buffer.fill):
            with pytest.raises(ExecutionError, match="the blit failed"):
                call()


# Compilers


def test_the_log_of_the_compiler_is_in_the_error(fault, faulty):
    fault.compile_fails = 1
    with pytest.raises(CompilationError, match=r"program_source:1:1: error: krnl void f"):
        faulty.library("krnl void f() {}")
    with pytest.raises(CompilationError, match="no function rmsnorm"):
        faulty.pipeline("rmsnorm")
    graph = MetalGraph(faulty)
    handle = graph.upload_q1_weight_soa(bytes(18), (1, 128))
    with pytest.raises(CompilationError, match="no function gemv_q1_g128"):
        graph.encode_gemv(handle, activations(128), np.zeros(1, np.float32))
    fault.compile_fails = 0
    graph.encode_gemv(handle, activations(128), np.zeros(1, np.float32))


def test_a_library_gives_pipelines_that_outlive_it(faulty):
    with Device("fault") as other:
        library = faulty.library("kernel void f() {}")
        pipeline = library.pipeline("f", constants={0: True, 3: 2.5})
        assert pipeline.function == "f"
        assert pipeline.info.max_threads == 448
        with pytest.raises(CompilationError, match="the library belongs to another device"):
            other.pipeline("f", library=library)
        library.close()
        library.close()
        with pytest.raises(EncodingError, match="the library is closed"):
            library.pipeline("f")
        assert pipeline.info.simd_width == 32


def test_static_and_dynamic_threadgroup_memory_share_the_limit(faulty):
    pipeline = faulty.pipeline("f")
    with faulty.commands() as commands, faulty.buffer(16) as b:
        commands.dispatch(pipeline, [b], threadgroups=1, threadgroup_memory=32768 - 1024)
        with pytest.raises(EncodingError, match="32769 bytes of threadgroup memory: at most 32768"):
            commands.dispatch(pipeline, [b], threadgroups=1, threadgroup_memory=32769 - 1024)
        with pytest.raises(EncodingError, match="8 x 57 x 1 threads: at most 448"):
            commands.dispatch(pipeline, [b], threadgroups=1, threads=(8, 57))
        assert len(commands) == 1


# Submissions that fail


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (FAIL, "page fault at kernel gemv"),
        (FAIL_SILENTLY, "the device gave no reason"),
        (REFUSE, "the queue is gone"),
    ],
)
def test_the_status_of_a_finished_submission_is_raised(fault, faulty, recorded, mode, text):
    commands, _ = recorded
    fault.mode = mode
    with pytest.raises(ExecutionError, match=text):
        commands.replay()
    assert commands.in_flight == 0
    assert faulty.stats.in_flight == 0
    fault.mode = RUN
    commands.replay()


@pytest.mark.parametrize("mode", [FAIL, FAIL_SILENTLY, REFUSE])
def test_a_phase_that_fails_raises_and_leaves_its_output(fault, faulty, mode):
    graph = MetalGraph(faulty)
    hidden, norm, handles = layer(graph)
    norm = graph.upload_f32_weight(norm)
    out, y = hidden.copy(), np.full(128, 7, np.float32)
    fault.mode = mode
    fault.fill = 0x22
    with pytest.raises(ExecutionError):
        graph.encode_ffn_phase(out, hidden, norm, *handles)
    with pytest.raises(ExecutionError):
        graph.encode_gemv(handles[0], hidden, y)
    np.testing.assert_array_equal(out, hidden)
    np.testing.assert_array_equal(y, np.full(128, 7, np.float32))
    fault.mode = RUN
    graph.encode_gemv(handles[0], hidden, y)
    assert (y.view(np.uint8) == 0x22).all()


def test_an_error_that_nobody_waited_for_is_raised_by_the_next_submission(fault, faulty, recorded):
    commands, y = recorded
    fault.mode = FAIL
    other = faulty.commands()
    other.add(y, y, 4)
    other.submit()
    del other
    fault.mode = RUN
    with pytest.raises(ExecutionError, match="an earlier submission failed: page fault"):
        commands.submit()
    commands.replay()  # Raised once.


def test_an_error_that_was_raised_is_not_raised_again(fault, recorded):
    commands, _ = recorded
    fault.mode = FAIL
    with pytest.raises(ExecutionError):
        commands.replay()
    commands.reset()
    fault.mode = RUN
    commands.add(recorded[1], recorded[1], 4)
    commands.replay()


def test_one_failure_among_many_submissions_is_found(fault, recorded):
    commands, _ = recorded
    fault.mode = HOLD
    commands.submit(5)
    fault.finish(2)
    fault.finish(1, fails=True)
    fault.finish()
    with pytest.raises(ExecutionError, match="late page fault"):
        commands.wait()
    assert commands.in_flight == 2
    commands.wait()
    assert commands.in_flight == 0


def test_the_times_are_those_of_the_device(recorded):
    commands, _ = recorded
    commands.replay()
    assert commands.device_time == 0.5


# Submissions that hang


def test_a_timeout_is_an_error_and_the_work_goes_on(fault, faulty, recorded):
    commands, y = recorded
    fault.mode, fault.fill = HOLD, 0x33
    commands.submit(2)
    start = time.monotonic()
    with pytest.raises(ExecutionError, match=r"did not finish within 0\.05 s"):
        commands.wait(0.05)
    assert 0.04 < time.monotonic() - start < 5
    with pytest.raises(ExecutionError, match="did not finish within 0 s"):
        commands.wait(0)
    assert commands.in_flight == faulty.stats.in_flight == 2
    with pytest.raises(EncodingError, match="2 submissions in flight: wait for them first"):
        commands.reset()
    assert not y.view().any()
    fault.finish()
    commands.wait(0)
    assert commands.in_flight == faulty.stats.in_flight == 0
    assert (y.view() == 0x33).all()


def test_what_hangs_keeps_its_buffers_and_their_owners(fault, faulty):
    memory = np.zeros(256, np.uint8)
    view = memory[-memory.ctypes.data % 16 :][:64].view(type("Watched", (np.ndarray,), {}))
    watch = weakref.ref(view)
    fault.mode, fault.fill = HOLD, 0x44
    commands = faulty.commands()
    with faulty.upload(view, copy=False) as wrapped, faulty.buffer(64) as x:
        commands.add(x, wrapped, 16)
        commands.submit()
    del view, wrapped, x, commands
    gc.collect()
    assert watch() is not None
    assert (fault.buffers_live, fault.wraps_live) == (1, 1)
    fault.finish()  # The device writes late, into memory that is still there.
    assert (fault.buffers_live, fault.wraps_live) == (0, 0)
    assert watch() is None
    assert (memory == 0x44).sum() == 64


def test_a_device_outlives_what_is_in_flight(fault):
    device = Device("fault")
    commands = device.commands()
    buffer = device.buffer(64)
    commands.add(buffer, buffer, 16)
    fault.mode = HOLD
    commands.submit(3)
    device.close()
    commands.close()
    buffer.close()
    del device, commands, buffer
    assert fault.devices_live == 1
    fault.finish()
    assert fault.devices_live == 0


@pytest.mark.parametrize("phase", ["gemv", "ffn"])
def test_the_buffers_of_a_phase_that_timed_out_are_never_used_again(fault, faulty, phase):
    graph = MetalGraph(faulty, timeout=0.05)
    hidden, norm, handles = layer(graph)
    norm = graph.upload_f32_weight(norm)
    out = hidden.copy()

    def run():
        if phase == "gemv":
            graph.encode_gemv(handles[0], hidden, out)
        else:
            graph.encode_ffn_phase(out, hidden, norm, *handles)

    fault.mode, fault.fill = HOLD, 0x55
    for _ in range(3):
        with pytest.raises(ExecutionError, match=r"did not finish within 0\.05 s"):
            run()
    np.testing.assert_array_equal(out, hidden)
    fault.mode, fault.fill = RUN, 0x66
    run()
    assert (out.view(np.uint8) == 0x66).all()
    live = fault.buffers_live
    fault.fill = 0x55
    assert fault.finish() == 3  # Late writes: into the retired buffers, which go then.
    assert fault.buffers_live < live
    with graph.acquire_buffers(128, 128) as buffers:
        assert not any((buffer.view() == 0x55).all() for buffer in buffers)


def test_a_thread_that_waited_for_buffers_that_timed_out_gets_others(fault, faulty):
    graph = MetalGraph(faulty, timeout=0.3)
    hidden, _, handles = layer(graph)
    results = {}

    def work(i):
        out = hidden.copy()
        try:
            graph.encode_gemv(handles[0], hidden, out)
            results[i] = out
        except Exception as error:
            results[i] = error

    fault.mode = HOLD
    first = threading.Thread(target=work, args=(0,))
    first.start()
    while faulty.stats.in_flight == 0:
        time.sleep(0.001)
    fault.mode, fault.fill = RUN, 0x77
    second = threading.Thread(target=work, args=(1,))
    second.start()  # Waits for the set that the first one holds.
    first.join()
    second.join()
    assert isinstance(results[0], ExecutionError)
    assert isinstance(results[1], np.ndarray), results[1]
    assert (results[1].view(np.uint8) == 0x77).all()


def test_the_17th_submission_waits_for_a_place(fault, faulty, recorded):
    commands, _ = recorded
    fault.mode = HOLD
    commands.submit(16)
    assert faulty.stats.in_flight == 16
    other = faulty.commands()
    other.add(recorded[1], recorded[1], 4)
    entered = threading.Event()

    def work():
        other.submit()
        entered.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert not entered.wait(0.1)  # Without the GIL: this thread runs.
    fault.finish(1)
    assert entered.wait(30)
    thread.join()
    fault.finish()
    commands.wait()
    other.close()


def test_other_threads_run_while_one_waits_for_the_device(fault, recorded):
    commands, _ = recorded
    fault.mode = HOLD
    thread = threading.Thread(target=commands.replay)
    thread.start()
    while commands.in_flight == 0:
        time.sleep(0.001)
    for call in (commands.wait, commands.submit, commands.reset, commands.close):
        with pytest.raises(EncodingError, match="in use by another thread"):
            call()
    assert thread.is_alive()
    fault.finish()
    thread.join(30)
    assert not thread.is_alive()


def test_a_deeper_queue_than_the_device_takes_waits_in_submit(fault, recorded):
    commands, _ = recorded
    fault.mode = HOLD
    thread = threading.Thread(target=commands.submit, args=(40,))
    thread.start()
    finished = 0
    while thread.is_alive() or finished < 40:
        assert fault.library.fault_held() <= 16
        finished += fault.finish(1)
        time.sleep(0.0005)
    thread.join()
    commands.wait()
    assert fault.submissions == 40
