"""Recorded command sequences: recording, submitting, replaying, and their limits."""

from __future__ import annotations

import gc
import mmap
import os
import re
import struct
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from cases import activations, contents, random_weight, upload
from places import ROOT

from oxibonsai.metal import Commands, Device, EncodingError

ONE = np.ones(8, np.float32)


@pytest.fixture
def adder(device):
    """Commands that add a buffer of ones to another of zeros, and that other."""
    with device.upload(ONE) as x, device.buffer(32) as y, device.commands() as commands:
        commands.add(x, y, 8)
        yield commands, y


# Recording, submitting, waiting


def test_nothing_runs_before_it_is_submitted(adder):
    commands, y = adder
    assert len(commands) == 1
    assert not contents(y).any()
    commands.submit()
    commands.wait()
    np.testing.assert_array_equal(contents(y), ONE)


def test_a_recording_runs_as_often_as_it_is_submitted(adder):
    commands, y = adder
    commands.submit(3)
    commands.submit()
    commands.wait()
    np.testing.assert_array_equal(contents(y), 4 * ONE)


@pytest.mark.parametrize("times", [1, 2, 15, 16, 17, 100])
def test_replay_submits_and_waits(adder, times):
    commands, y = adder
    before = commands.device.stats.submissions
    commands.replay(times)
    assert commands.in_flight == 0
    assert commands.device.stats.submissions - before == times
    np.testing.assert_array_equal(contents(y), times * ONE)


def test_more_submissions_than_may_be_in_flight_wait_for_the_oldest(adder):
    commands, y = adder
    commands.submit(50)
    assert 0 < commands.in_flight <= 16
    commands.wait()
    assert commands.in_flight == 0
    np.testing.assert_array_equal(contents(y), 50 * ONE)


def test_wait_may_keep_the_last_submissions_in_flight(adder):
    commands, y = adder
    commands.submit(5)
    for keep in (20, 5, 3, 1, 0):
        commands.wait(keep=keep)
        assert commands.in_flight == min(keep, 5)
        # Those that were waited for have run.
        assert contents(y).min() >= (5 - commands.in_flight) * ONE.min()
    np.testing.assert_array_equal(contents(y), 5 * ONE)
    with pytest.raises(EncodingError, match="keep = -1 must be 0 or more"):
        commands.wait(keep=-1)


def test_waiting_for_nothing_is_fine(device):
    with device.commands() as commands:
        commands.wait()
        commands.wait(0)
        commands.wait(keep=3)


def test_a_timeout_long_enough_is_no_error(adder):
    commands, y = adder
    commands.replay(3, timeout=60)
    commands.submit()
    commands.wait(timeout=60)
    np.testing.assert_array_equal(contents(y), 4 * ONE)


def test_the_device_time_is_that_of_the_last_wait(adder):
    commands, _ = adder
    assert commands.device_time is None
    commands.replay()
    assert 0 <= commands.device_time < 60


def test_dispatches_run_in_order(device):
    a, b, c = (device.upload(np.full(8, v, np.float32)) for v in (1, 10, 100))
    with device.commands() as commands:
        commands.add(a, b, 8)
        commands.add(b, c, 8)
        commands.add(c, a, 8)
        commands.replay(2)
    # By hand: b = 11, c = 111, a = 112; then b = 123, c = 234, a = 346.
    assert [contents(x)[0] for x in (a, b, c)] == [346, 123, 234]


@pytest.mark.parametrize("bad", [0, -1, 2**31, 2**40])
def test_a_number_of_times_that_is_none_is_refused(adder, bad):
    commands, y = adder
    for call in (commands.submit, commands.replay):
        with pytest.raises(EncodingError, match=f"times = {bad} must lie in"):
            call(bad)
    assert not contents(y).any()


@pytest.mark.parametrize("bad", [-1, -0.5, float("nan"), -float("inf")])
def test_a_timeout_that_is_none_is_refused(adder, bad):
    commands, y = adder
    for call in (lambda: commands.wait(bad), lambda: commands.replay(1, bad)):
        with pytest.raises(ValueError, match="timeout"):
            call()
    assert not contents(y).any()


@pytest.mark.parametrize("bad", ["1", b"1", [1]])
def test_a_timeout_that_is_no_number_is_a_type_error(adder, bad):
    with pytest.raises(TypeError):
        adder[0].wait(bad)


# Sealed, reset, empty, closed


def test_empty_commands_cannot_be_submitted(device):
    with device.commands() as commands:
        assert len(commands) == 0
        for call in (commands.submit, commands.replay):
            with pytest.raises(EncodingError, match="cannot submit empty commands"):
                call()
        commands.reset()


def test_submitted_commands_are_sealed_until_reset(adder):
    commands, y = adder
    commands.replay()
    with pytest.raises(EncodingError, match=r"were submitted and are sealed: reset them first"):
        commands.add(y, y, 8)
    assert len(commands) == 1
    commands.reset()
    assert len(commands) == 0
    commands.add(y, y, 4)
    commands.replay(2)
    np.testing.assert_array_equal(contents(y), [4] * 4 + [1] * 4)


def test_reset_lets_go_of_what_was_recorded(device):
    with device.commands() as commands:
        start = device.stats.buffers
        commands.add(device.buffer(32), device.buffer(32), 8)
        gc.collect()
        assert device.stats.buffers == start + 2
        commands.reset()
        assert device.stats.buffers == start


def test_a_refused_dispatch_leaves_the_recording_as_it_was(adder):
    commands, y = adder
    for _ in range(100):
        with pytest.raises(EncodingError):
            commands.add(y, y, 9)
    assert len(commands) == 1
    commands.replay()
    np.testing.assert_array_equal(contents(y), ONE)


def test_closed_commands_refuse_everything(adder):
    commands, y = adder
    commands.close()
    commands.close()
    assert commands.closed
    assert "closed" in repr(commands)
    for call in (
        lambda: len(commands),
        lambda: commands.submit(),
        lambda: commands.wait(),
        lambda: commands.replay(),
        lambda: commands.reset(),
        lambda: commands.add(y, y, 8),
        commands.__enter__,
    ):
        with pytest.raises(EncodingError, match="the commands are closed"):
            call()


def test_making_one_twice_is_refused(device, adder):
    with pytest.raises(EncodingError, match="made already"):
        adder[0].__init__(device)
    assert len(adder[0]) == 1


def test_repr_says_how_many(adder):
    assert "1 dispatches" in repr(adder[0])


# What a recording keeps alive


def test_a_recording_keeps_buffers_and_weights_that_were_closed(device, graph):
    q, x = random_weight("Q1_0", 4, 128), activations(128)
    y = device.buffer(16)
    handle = upload(graph, q)
    expected = np.zeros(4, np.float32)
    graph.encode_gemv(handle, x, expected)
    with device.commands() as commands, device.upload(x) as bx:
        commands.gemv(handle, bx, y)
        handle.close()
        bx.close()
        gc.collect()
        commands.replay()
        np.testing.assert_array_equal(contents(y), expected)


def test_a_recording_keeps_its_pipelines(device):
    x, y = device.upload(ONE), device.buffer(32)
    args = struct.pack("<QQ", 8, 0)
    pipeline = device.pipeline("residual_add")
    threads = 1 if device.driver == "cpu" else 32
    with device.commands() as commands:
        commands.dispatch(pipeline, [x, y], args, threadgroups=1, threads=threads)
        pipeline.close()
        del pipeline
        commands.replay()
    np.testing.assert_array_equal(contents(y), ONE)


def test_dropping_commands_in_flight_lets_them_finish(device):
    x, y = device.upload(ONE), device.buffer(32)
    commands = device.commands()
    commands.add(x, y, 8)
    commands.submit(16)
    del commands
    with device.commands() as later:  # A device runs submissions in order.
        later.add(x, y, 8)
        later.replay()
    np.testing.assert_array_equal(contents(y), 17 * ONE)


def test_a_long_recording(device):
    x, y = device.upload(ONE), device.buffer(32)
    with device.commands() as commands:
        for _ in range(5000):
            commands.add(x, y, 8)
        assert len(commands) == 5000
        commands.replay(2)
    np.testing.assert_array_equal(contents(y), 10000 * ONE)


# Raw dispatches


def test_a_dispatch_names_its_limits(device):
    b = device.buffer(4096)
    pipeline = device.pipeline("residual_add")
    most = pipeline.info.max_threads
    args = struct.pack("<QQ", 8, 0)

    def dispatch(bindings=(b, b), args=args, threadgroups=1, threads=1, memory=0):
        commands.dispatch(
            pipeline,
            bindings,
            args,
            threadgroups=threadgroups,
            threads=threads,
            threadgroup_memory=memory,
        )

    with device.commands() as commands:
        for text, call in {
            "32 buffers and an argument struct: at most 31 bindings": lambda: dispatch([b] * 32),
            "32 buffers: at most 31 bindings": lambda: dispatch([b] * 32, b""),
            "31 buffers and an argument struct: at most 31 bindings": lambda: dispatch([b] * 31),
            "an argument struct of 4097 bytes: at most 4096": lambda: dispatch(args=bytes(4097)),
            "argument struct of 4294967312 bytes": lambda: dispatch(args=mmap.mmap(-1, 2**32 + 16)),
            "empty grid: 0 x 1 x 1 threadgroups": lambda: dispatch(threadgroups=0),
            "empty grid: 1 x 0 x 1 threadgroups": lambda: dispatch(threadgroups=(1, 0)),
            "empty grid: 1 x 1 x 1 threadgroups of 1 x 1 x 0 threads": lambda: dispatch(
                threads=(1, 1, 0)
            ),
            f"at most {most} are allowed": lambda: dispatch(threads=most + 1),
            f"a threadgroup of 1 x {most + 1} x 1 threads": lambda: dispatch(threads=(1, most + 1)),
            "a threadgroup of 65536 x 65536 x 1": lambda: dispatch(threads=(65536, 65536)),
            "a threadgroup of 4294967295 x": lambda: dispatch(threads=(2**32 - 1,) * 3),
            "threadgroups = 4294967296 must fit 32 bits": lambda: dispatch(threadgroups=2**32),
            r"threadgroups = \(1, 1, 1, 1\): one to three extents": lambda: dispatch(
                threadgroups=(1, 1, 1, 1)
            ),
            r"threadgroups = \(\): one to three extents": lambda: dispatch(threadgroups=()),
            "bytes of threadgroup memory: at most": lambda: dispatch(memory=2**30),
            "threadgroup_memory = 4294967296 must fit 32 bits": lambda: dispatch(memory=2**32),
            "threadgroup_memory = -1": lambda: dispatch(memory=-1),
            "binding 1 starts at byte 4096 of a buffer of 4096": lambda: dispatch([b, (b, 4096)]),
            "binding 0 starts at byte 9223372036854775807": lambda: dispatch([(b, 2**63 - 1), b]),
            "offset of binding 1 = -4 must lie": lambda: dispatch([b, (b, -4)]),
        }.items():
            with pytest.raises(EncodingError, match=text):
                call()
            assert len(commands) == 0, text
        for bad in ((b,), (b, 1, 2), ()):
            with pytest.raises(TypeError, match=r"not a tuple of \d"):
                dispatch([b, bad])
        for wrong in (None, "rmsnorm", b):
            with pytest.raises(TypeError):
                commands.dispatch(wrong, [b], threadgroups=1)


@pytest.mark.device("cpu")
@pytest.mark.parametrize(
    ("bindings", "args", "text"),
    [
        (1, struct.pack("<QQ", 8, 0), "takes 2 buffers and 16 bytes of arguments, not 1 and 16"),
        (3, struct.pack("<QQ", 8, 0), "takes 2 buffers and 16 bytes of arguments, not 3 and 16"),
        (2, struct.pack("<Q", 8), "takes 2 buffers and 16 bytes of arguments, not 2 and 8"),
        (
            2,
            struct.pack("<QQQ", 8, 0, 0),
            "takes 2 buffers and 16 bytes of arguments, not 2 and 24",
        ),
        (2, struct.pack("<QQ", 9, 0), "needs 36 bytes, and there are 32"),
        (2, struct.pack("<QQ", 2**62, 0), "describe no matrix or shape|needs"),
    ],
)
def test_the_cpu_knows_the_bytes_of_a_raw_dispatch(device, bindings, args, text):
    buffers = [device.buffer(32) for _ in range(bindings)]
    with device.commands() as commands:
        with pytest.raises(EncodingError, match=text):
            commands.dispatch(device.pipeline("residual_add"), buffers, args, threadgroups=1)
        # Nothing was recorded, and the commands can be used.
        assert len(commands) == 0
        commands.add(buffers[0], device.buffer(32), 8)
        commands.replay()


@pytest.mark.device("cpu")
@pytest.mark.parametrize("change", [(1, 8, 0), (0, 9, 0), (0, 0, 128), (-16, 0, 0), (10**18, 0, 0)])
def test_the_cpu_refuses_a_struct_that_passes_the_end_of_a_weight(device, change):
    # codes_offset, n_rows, k of struct oxb_gemv_args.
    codes_offset, n_rows, k = (a + b for a, b in zip((16, 8, 128), change, strict=True))
    weight, x, y = device.buffer(16 + 8 * 16), device.buffer(512), device.buffer(32)
    args = struct.pack("<QII16x", codes_offset, n_rows, k)
    with device.commands() as commands:
        pipeline = device.pipeline("gemv_q1_g128")
        with pytest.raises(EncodingError, match=r"needs \d+ bytes|describe no matrix"):
            commands.dispatch(pipeline, [weight, x, y], args, threadgroups=1)
        assert len(commands) == 0


@pytest.mark.device("cpu")
@pytest.mark.parametrize("grid", [1, 2, 3, (1, 3), (2, 1, 2), 1000])
def test_groups_past_the_end_do_nothing_and_missing_ones_leave_rows_out(device, grid):
    # The cpu runs 4096 elements in a group.
    n = 10000
    x, y = np.ones(n, np.float32), np.zeros(n + 100, np.float32)
    args = struct.pack("<QQ", n, 0)
    with device.commands() as commands, device.upload(x) as bx, device.upload(y) as by:
        commands.dispatch(device.pipeline("residual_add"), [bx, by], args, threadgroups=grid)
        commands.replay()
        done = min(int(np.prod(grid)) * 4096, n)
        np.testing.assert_array_equal(contents(by), np.arange(n + 100) < done)


def test_objects_of_another_device_are_refused(device, device_name, graph):
    handle = upload(graph, random_weight("Q1_0", 4, 128))
    with Device(device_name) as other, other.commands() as commands:
        foreign, own = device.buffer(1024), other.buffer(1024)
        pipeline = other.pipeline("residual_add")
        for call in (
            lambda: commands.gemv(handle, own, own),
            lambda: commands.add(foreign, own, 4),
            lambda: commands.add(own, foreign, 4),
            lambda: commands.rmsnorm(own, foreign, own, 4),
            lambda: commands.dispatch(pipeline, [own, foreign], threadgroups=1),
            lambda: commands.dispatch(device.pipeline("rmsnorm"), [own], threadgroups=1),
        ):
            with pytest.raises(EncodingError, match=r"another device|overlap"):
                call()
        assert len(commands) == 0


def test_a_library_is_asked_for_by_its_own_device(device):
    with pytest.raises(TypeError):
        device.pipeline("f", library="source")


@pytest.mark.parametrize("bad", ["f8", "f64", None, 16])
def test_a_kv_dtype_that_is_none_is_refused(device, bad):
    b = device.buffer(64)
    with device.commands() as commands, pytest.raises(ValueError, match="'f16', 'f32' or 'q8'"):
        commands.kv_store(
            b, b, b, b, n_heads=1, n_kv_heads=1, head_dim=2, max_seq=1, layer=0, kv_dtype=bad
        )


# Descriptions


def test_a_recording_describes_itself(device, graph):
    handle = upload(graph, random_weight("Q1_0", 4, 128))
    x, y = device.buffer(512), device.buffer(64)
    name = f"{device.driver}:{device.index}"
    with device.commands() as commands:
        assert commands.describe() == f"0 dispatches on {name}"
        commands.add((x, 32), y, 8)
        assert commands.describe().startswith(f"1 dispatch on {name}\n0 residual_add")
        commands.gemv(handle, x, y)
        text = commands.describe()
        commands.replay()
        assert commands.describe() == text  # a sealed one too
    head, *lines = text.splitlines()
    assert head == f"2 dispatches on {name}"
    sizes = r"\d+ x \d+ x \d+ threadgroups of \d+ x \d+ x \d+ threads"
    assert re.fullmatch(rf"0 residual_add( \{{.*\}})?: {sizes}", lines[0])
    assert re.fullmatch(r"    \d+ bytes of threadgroup memory, 16 bytes of arguments", lines[1])
    assert lines[2:4] == [
        "    buffer(0) input r, 480 bytes at 32 of 512",
        "    buffer(1) output rw, 64 bytes at 0 of 64",
    ]
    assert re.fullmatch(rf"1 gemv_q1_g128\w*( \{{\d+: .*\}})?: {sizes}", lines[4])
    assert lines[5].endswith(" 32 bytes of arguments")
    assert re.fullmatch(r"    buffer\(0\) weight r, (\d+) bytes at 0 of \1", lines[6])
    assert lines[7:] == [
        "    buffer(1) input r, 512 bytes at 0 of 512",
        "    buffer(2) output rw, 64 bytes at 0 of 64",
    ]


def test_a_raw_dispatch_is_described_without_roles(device):
    b = device.buffer(64)
    pipeline = device.pipeline("residual_add")
    with device.commands() as commands:
        commands.dispatch(pipeline, [b, (b, 16)], struct.pack("<QQ", 8, 0), threadgroups=(2, 3, 4))
        lines = commands.describe().splitlines()
        assert lines[1].startswith("0 residual_add: 2 x 3 x 4 threadgroups of 1 x 1 x 1 threads")
        assert lines[3:] == [
            "    buffer(0) r, 64 bytes at 0 of 64",
            "    buffer(1) rw, 48 bytes at 16 of 64",
        ]


def test_closed_commands_are_not_described(adder):
    adder[0].close()
    with pytest.raises(EncodingError, match="the commands are closed"):
        adder[0].describe()


TRACED = """
    from oxibonsai import metal
    with metal.Device("cpu") as device, device.commands() as commands:
        x, y = device.buffer(64), device.buffer(32)
        commands.add((x, 16), y, 8)
        commands.add(x, y, 4)
        commands.replay(2)
"""


def traced(value: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OXIBONSAI_TRACE": value, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(TRACED)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_trace_prints_each_submission_as_it_runs():
    done = traced("1")
    assert (done.returncode, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 6
    for number, part in ((1, lines[:3]), (2, lines[3:])):
        assert part[0] == (
            f"oxibonsai: cpu:0 submission {number}, dispatch 0 of 2: residual_add: 1 x 1 x 1 "
            "threadgroups of 1 x 1 x 1 threads; 0 bytes of threadgroup memory, 16 bytes of "
            "arguments; buffer(0) input r, 48 bytes at 16 of 64; buffer(1) output rw, 32 bytes "
            "at 0 of 32"
        )
        assert f"submission {number}, dispatch 1 of 2: residual_add" in part[1]
        found = re.fullmatch(
            rf"oxibonsai: cpu:0 submission {number}, done: (\d+\.\d+) ms, "
            r"(\d+\.\d+) ms of them on the device",
            part[2],
        )
        assert found
        assert float(found[1]) >= float(found[2]) >= 0


@pytest.mark.parametrize("off", ["", "0"])
def test_no_trace_prints_nothing(off):
    done = traced(off)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_another_setting_of_the_trace_is_an_error():
    done = traced("yes")
    assert done.returncode == 1
    assert "OXIBONSAI_TRACE is 'yes': set 1 to print each submission" in done.stderr
    assert "DeviceNotFoundError" in done.stderr


# Threads


@pytest.mark.threads
def test_a_second_thread_is_refused_while_the_first_is_inside(device):
    n = 1 << 20
    x, y = device.buffer(4 * n), device.buffer(4 * n)
    commands = device.commands()
    commands.add(x, y, n)
    commands.replay()
    started = time.perf_counter()
    commands.replay(5)
    times = max(int(5 * 0.3 / (time.perf_counter() - started)), 5)
    worker = threading.Thread(target=commands.replay, args=(times,))
    worker.start()
    refused = set()
    calls = {
        "submit": commands.submit,
        "wait": commands.wait,
        "replay": commands.replay,
        "reset": commands.reset,
        "close": commands.close,
        "len": lambda: len(commands),
        "add": lambda: commands.add(x, y, n),
    }
    deadline = time.monotonic() + 30
    while worker.is_alive() and time.monotonic() < deadline:
        for name, call in calls.items():
            if not worker.is_alive():
                break
            try:
                call()
            except EncodingError as error:
                if "in use by another thread" in str(error):
                    refused.add(name)
            if refused >= set(calls):
                break
        else:
            continue
        break
    worker.join()
    assert refused == set(calls)
    commands.close()


@pytest.mark.threads
def test_threads_with_commands_of_their_own_do_not_disturb_each_other(device, fast_switches):
    x = device.upload(ONE)
    results = {}

    def work(i):
        y = device.buffer(32)
        with device.commands() as commands:
            for _ in range(i + 1):
                commands.add(x, y, 8)
            commands.replay(20)
            commands.submit(7)
            commands.wait()
        results[i] = contents(y)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        np.testing.assert_array_equal(results[i], 27 * (i + 1) * ONE)


def test_commands_need_a_device():
    for bad in (None, "cpu", 0):
        with pytest.raises(TypeError):
            Commands(bad)
