"""Devices: finding, naming, opening and closing them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
from cases import activations, encode, random_weight, run_python, upload

from oxibonsai import metal
from oxibonsai.metal import CompilationError, Device, DeviceNotFoundError, EncodingError


@pytest.fixture
def default(monkeypatch):
    """No environment variable names the device or its threads."""
    monkeypatch.delenv("OXIBONSAI_DEVICE", raising=False)
    monkeypatch.delenv("OXIBONSAI_THREADS", raising=False)
    return monkeypatch


# Finding


def test_the_cpu_is_always_there():
    assert "cpu" in [info.driver for info in metal.devices()]


def test_every_listed_device_opens_by_its_name(device_name):
    with Device(device_name) as device:
        assert device_name == f"{device.driver}:{device.index}"
        assert device.info in metal.devices()


def test_the_default_is_the_first_listed(default):
    with Device() as device:
        assert device.info == metal.devices()[0]


def test_the_environment_variable_names_the_default(default, device_name):
    default.setenv("OXIBONSAI_DEVICE", device_name)
    with Device() as device:
        assert f"{device.driver}:{device.index}" == device_name


def test_an_empty_environment_variable_is_none(default):
    default.setenv("OXIBONSAI_DEVICE", "")
    with Device() as device:
        assert device.info == metal.devices()[0]


def test_a_name_in_the_call_wins_over_the_environment(default):
    default.setenv("OXIBONSAI_DEVICE", "nonexistent")
    Device("cpu").close()
    with pytest.raises(DeviceNotFoundError, match="nonexistent"):
        Device()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nonexistent", r'no driver "nonexistent" in this build: it has .*cpu'),
        ("CPU", r'no driver "CPU"'),
        ("cpu:1", r'no device "cpu:1": 1 device of driver "cpu" present'),
        ("cpu:65535", r'no device "cpu:65535"'),
        ("cpu:65536", "the index is past 65535"),
        (f"cpu:{2**32}", "the index is past 65535"),
        ("cpu:", "a device is named by a driver"),
        ("cpu:-1", "a device is named by a driver"),
        ("cpu:x", "a device is named by a driver"),
        ("cpu:0:0", "a device is named by a driver"),
        (":0", "a device is named by a driver"),
        ("", "a device is named by a driver"),
        (" cpu", 'no driver " cpu"'),
        ("cpu\0", "no d"),
        ("cpu\0metal", "no d"),
        ("x" * 1000, "no driver"),
    ],
)
def test_a_name_that_is_none_says_which_there_are(name, text):
    with pytest.raises(DeviceNotFoundError, match=text):
        Device(name)


@pytest.mark.parametrize("name", [0, b"cpu", 1.0, ["cpu"]])
def test_a_name_that_is_no_text_is_a_type_error(name):
    with pytest.raises(TypeError, match="named by a str"):
        Device(name)


def test_what_a_device_says_of_itself(device):
    info = device.info
    assert info._fields == (
        "name",
        "driver",
        "index",
        "variant",
        "simd_width",
        "unified_memory",
        "threads",
        "max_buffer_length",
        "max_threadgroup_memory",
        "recommended_working_set",
        "compiler",
    )
    assert info.name == device.name != ""
    assert (info.driver, info.index) == (device.driver, device.index)
    assert info.variant
    assert info.simd_width == (1 if info.driver == "cpu" else 32)
    assert isinstance(info.unified_memory, bool)
    assert info.max_buffer_length >= 1 << 20
    assert info.recommended_working_set > 0
    assert (info.threads > 0) == (info.driver == "cpu")
    assert ("NVRTC" in info.compiler) == (info.driver == "cuda")
    assert f"{info.driver}:{info.index}" in repr(device)
    assert info.name in repr(device)


# Threads of the cpu


@pytest.mark.parametrize("threads", [1, 2, 7, 1024])
def test_the_cpu_takes_a_number_of_threads(default, threads):
    default.setenv("OXIBONSAI_THREADS", "3")
    with Device("cpu", threads=threads) as device:
        assert device.info.threads == threads


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**40])
def test_a_number_of_threads_out_of_range_is_refused(threads):
    with pytest.raises(ValueError, match=f"threads = {threads}: 1 to 1024 are allowed"):
        Device("cpu", threads=threads)


def test_the_environment_gives_the_threads(default):
    default.setenv("OXIBONSAI_THREADS", "5")
    with Device("cpu") as device:
        assert device.info.threads == 5


@pytest.mark.parametrize("text", ["0", "-2", "1025", "two", "3x", "1e2", "99999999999999999999"])
def test_threads_in_the_environment_that_are_no_number_are_refused(default, text):
    default.setenv("OXIBONSAI_THREADS", text)
    with pytest.raises(DeviceNotFoundError, match=rf"OXIBONSAI_THREADS is '{text}'"):
        Device("cpu")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
def test_the_default_is_the_processors_that_the_process_may_use(default):
    with Device("cpu") as device:
        assert device.info.threads == min(len(os.sched_getaffinity(0)), 1024)
    one = min(os.sched_getaffinity(0))
    run_python(
        f"""
        import os
        os.sched_setaffinity(0, [{one}])
        from oxibonsai import metal
        assert metal.Device("cpu").info.threads == 1
        """
    )


# Opening and closing


def test_closing_is_idempotent_and_ends_a_with_statement(device_name):
    device = Device(device_name)
    with device as same:
        assert same is device
        assert not device.closed
    assert device.closed
    device.close()
    assert "closed" in repr(device)
    with pytest.raises(EncodingError, match="the device is closed"), device:
        pass


def test_a_closed_device_refuses_everything(device_name):
    device = Device(device_name)
    buffer, commands = device.buffer(16), device.commands()
    pipeline = device.pipeline("rmsnorm")
    handle = metal.MetalGraph(device).upload_f32_weight(activations(4))
    device.close()
    for call in (
        lambda: device.info,
        lambda: device.name,
        lambda: device.stats,
        lambda: device.buffer(8),
        lambda: device.upload(b"abc"),
        lambda: device.library("kernel void f() {}"),
        lambda: device.pipeline("rmsnorm"),
        lambda: device.commands(),
        lambda: metal.MetalGraph(device),
        lambda: buffer.fill(),
        lambda: buffer.nbytes,
        lambda: memoryview(buffer),
        lambda: commands.add(buffer, buffer, 4),
        lambda: pipeline.info,
        lambda: handle.nbytes,
    ):
        with pytest.raises(EncodingError, match="the device is closed: open a new Device"):
            call()
    for child in (buffer, commands, pipeline, handle):
        child.close()


def test_opening_twice_is_refused(device_name):
    with Device(device_name) as device:
        with pytest.raises(EncodingError, match="is open already"):
            device.__init__(device_name)
        assert not device.closed


def test_many_devices_may_be_open_and_know_only_their_own(device_name):
    devices = [Device(device_name) for _ in range(20)]
    buffers = [device.buffer(100) for device in devices for _ in range(3)]
    assert [device.stats.buffers for device in devices] == [3] * 20
    del buffers
    gc.collect()
    assert [device.stats.buffers for device in devices] == [0] * 20
    for device in devices:
        device.close()


def test_stats_count_buffers_bytes_and_submissions(device):
    start = device.stats
    assert start._fields == (
        "buffers", "allocated_bytes", "in_flight", "submissions", "work_per_second",
    )  # fmt: skip
    memory = np.zeros(64, np.float32)
    with (
        device.buffer(1000) as a,
        device.buffer(24, storage="private"),
        device.upload(memory, copy=False),
        device.commands() as commands,
    ):
        now = device.stats
        # Wrapped memory is a buffer, but nothing that the device allocated.
        assert now.buffers - start.buffers == 3
        assert now.allocated_bytes - start.allocated_bytes == 1024
        commands.add(a, a, 250)
        commands.replay(5)
        assert device.stats.submissions - start.submissions == 5
        assert device.stats.in_flight == 0


# Libraries, pipelines, drivers


@pytest.mark.device("cpu")
@pytest.mark.parametrize("source", ["", "kernel void f() {}", "nonsense \N{SNOWMAN}"])
def test_the_cpu_compiles_no_source_and_says_so(device, source):
    with pytest.raises(CompilationError, match="the cpu device runs only the kernels that ship"):
        device.library(source)


@pytest.mark.parametrize("source", [None, b"kernel", 5])
def test_source_that_is_no_text_is_a_type_error(device, source):
    with pytest.raises(TypeError):
        device.library(source)


def test_a_pipeline_knows_its_limits(device):
    pipeline = device.pipeline("rmsnorm")
    assert pipeline.function == "rmsnorm"
    assert pipeline.device is device
    assert pipeline.info.max_threads >= 1
    assert pipeline.info.simd_width == device.info.simd_width
    assert pipeline.info.static_threadgroup_memory <= max(device.info.max_threadgroup_memory, 0)
    pipeline.close()
    pipeline.close()
    with pytest.raises(EncodingError, match="the pipeline rmsnorm is closed"):
        _ = pipeline.info


@pytest.mark.parametrize("name", ["no_such_kernel", "", "x" * 63, "x" * 64, "x" * 100000, "a\0b"])
def test_an_unknown_kernel_is_a_compilation_error(device, name):
    with pytest.raises(CompilationError):
        device.pipeline(name)


@pytest.mark.parametrize(
    "constants",
    [{65536: 1}, {-1: 1}, {0: 2**32}, {0: -(2**31) - 1}, dict.fromkeys(range(17), 1)],
)
def test_function_constants_that_cannot_be_are_refused(device, constants):
    with pytest.raises(CompilationError, match="function constant"):
        device.pipeline("rmsnorm", constants=constants)


@pytest.mark.device("cpu")
@pytest.mark.parametrize("value", [True, 7, -7, 0.5, 2**32 - 1, -(2**31), np.int32(3)])
def test_function_constants_of_every_type_reach_the_driver(device, value):
    with pytest.raises(CompilationError, match="'rmsnorm' has no function constant 3"):
        device.pipeline("rmsnorm", constants={3: value})


@pytest.mark.parametrize("value", ["1", None, [1], 1j])
def test_function_constants_of_another_type_are_type_errors(device, value):
    with pytest.raises(TypeError):
        device.pipeline("rmsnorm", constants={0: value})


def test_what_is_no_library_is_not_loaded_as_a_driver(tmp_path):
    missing = tmp_path / "missing.so"
    with pytest.raises(DeviceNotFoundError, match=f"cannot load driver {missing}"):
        metal.load_driver(missing)
    text = tmp_path / "text.so"
    text.write_text("no library")
    with pytest.raises(DeviceNotFoundError, match=f"cannot load driver {text}"):
        metal.load_driver(str(text))
    with pytest.raises(DeviceNotFoundError, match="cannot load driver"):
        metal.load_driver(os.fsencode(missing))


def test_a_library_that_is_no_driver_is_refused():
    module = metal._core.__file__
    with pytest.raises(DeviceNotFoundError, match=r"is no driver: it does not export"):
        metal.load_driver(module)


@pytest.mark.parametrize("path", [None, 3, 1.5])
def test_a_driver_path_that_is_no_path_is_a_type_error(path):
    with pytest.raises(TypeError):
        metal.load_driver(path)


def test_a_driver_path_with_a_nul_is_refused():
    with pytest.raises(ValueError, match="null"):
        metal.load_driver(f"{metal._core.__file__}\0.so")


def test_importing_opens_no_device_and_starts_no_thread():
    run_python(
        """
        import threading
        from oxibonsai import metal, quant, gguf
        import os
        if os.path.isdir("/proc/self/task"):
            import numpy  # its BLAS has threads of its own
            before = len(os.listdir("/proc/self/task"))
            device = metal.Device("cpu")
            assert len(os.listdir("/proc/self/task")) == before
        """
    )


def test_two_devices_do_not_mix(device, graph, device_name):
    x, y = activations(128), np.zeros(4, np.float32)
    with Device(device_name) as second:
        handle = upload(metal.MetalGraph(second), random_weight("Q1_0", 4, 128))
        with pytest.raises(EncodingError, match="the weight belongs to another device"):
            encode(graph, handle, x, y)
        assert not y.any()


def test_the_module_is_the_one_that_this_interpreter_builds():
    assert metal._core.__file__.endswith(sysconfig.get_config_var("EXT_SUFFIX"))


def test_the_command_line_lists_nothing_on_import():
    done = subprocess.run(
        [sys.executable, "-c", "import oxibonsai.metal"], capture_output=True, text=True, check=True
    )
    assert done.stdout == done.stderr == ""
