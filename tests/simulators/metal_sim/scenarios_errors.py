"""Errors that a Mac's GPU gives for a command buffer, and the queue after them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import numpy as np

from metal_sim.kernels import ARGS, Adder, N, adder
from metal_sim.scenarios_devices import refused
from metal_sim.session import (
    IGNORED,
    INTERACTIVITY,
    NO_REASON,
    OUT_OF_MEMORY,
    PAGE_FAULT,
    RAISE,
    TIMEOUT,
    VICTIM,
    WITH_ERROR,
    Simulation,
)
from oxibonsai.metal import Commands, Device, EncodingError, ExecutionError

CHUNK = "lower the chunk of the session or engine"


def what_exceeds_the_budget_says_what_to_lower_and_the_next_call_succeeds(sim: Simulation) -> None:
    for code, text in ((INTERACTIVITY, "Impacting Interactivity"), (TIMEOUT, "GPU Timeout")):
        with adder() as one, one.commands() as commands:
            sim.set_budget(0.6, code)
            sim.set_cost("add", 0.7 / N)
            with refused(ExecutionError, text, f"MTLCommandBufferErrorDomain {code}", CHUNK):
                commands.replay()
            assert one.added() == 0
            sim.set_cost("add", 0.5 / N)
            commands.replay(2)
            assert one.added() == 2
            assert one.device.stats.in_flight == 0


def each_error_says_what_to_do(sim: Simulation) -> None:
    cases = {
        INTERACTIVITY: ("Impacting Interactivity", CHUNK),
        TIMEOUT: ("Caused GPU Timeout Error", CHUNK),
        PAGE_FAULT: ("Caused GPU Address Fault Error", "check the arguments"),
        OUT_OF_MEMORY: ("Insufficient Memory", "lower max_seq"),
        VICTIM: ("victim of GPU error/recovery", "another program", "submit it again"),
        11: ("Internal Error", "open another"),
    }
    with adder() as one, one.commands() as commands:
        for i, (code, texts) in enumerate(cases.items()):
            sim.end(code)
            number = 1 if code == VICTIM else code
            with refused(ExecutionError, *texts, f"(MTLCommandBufferErrorDomain {number})"):
                commands.replay()
            commands.replay()
            assert one.added() == i + 1


def what_is_in_flight_behind_an_error_is_ignored_and_says_so(sim: Simulation) -> None:
    with adder() as one:
        queues = sim.made("MTLCommandQueue")
        all_commands = [one.commands() for _ in range(16)]
        for _ in range(2):
            sim.forget_records()
            with sim.hang():
                sim.end(INTERACTIVITY, skip=1)
                for commands in all_commands:
                    commands.submit()
            all_commands[0].wait(30)
            with refused(ExecutionError, "Impacting Interactivity"):
                all_commands[1].wait(30)
            for commands in all_commands[2:]:
                with refused(ExecutionError, "not run because of an earlier error"):
                    commands.wait(30)
            assert [r.code for r in sim.records()] == [0, INTERACTIVITY, *[IGNORED] * 14]
        all_commands[0].replay()
        assert one.added() == 3
        assert sim.made("MTLCommandQueue") == queues + 2, "one for each error"
        assert sim.live("MTLCommandQueue") == 1
        for commands in all_commands:
            commands.close()


def error_of(commands: Commands) -> str:
    """Wait, and return the text of an execution error, or nothing."""
    try:
        commands.wait(30)
    except ExecutionError as error:
        return str(error)
    return ""


def a_submission_waits_for_what_fails_before_it(sim: Simulation) -> None:
    """It would be ignored on the old queue, and overtake what is still there on a new one."""
    with adder() as one, one.commands() as first, one.commands() as second:
        for _ in range(5):
            sim.end(INTERACTIVITY)
            first.submit()
            second.submit()  # before or after the failure
            with refused(ExecutionError, "Impacting Interactivity"):
                first.wait(30)
            text = error_of(second)
            assert not text or "earlier error" in text
            before = one.added()
            second.replay()
            assert one.added() == before + 1


def copies_work_after_an_error_and_their_errors_renew_the_queue(sim: Simulation) -> None:
    data = np.arange(10, dtype=np.uint8)
    with adder() as one, one.commands() as commands:
        with one.device.buffer(10, storage="private") as private:
            private.write(data)
            sim.end(INTERACTIVITY)
            with refused(ExecutionError, "Impacting Interactivity"):
                commands.replay()
            assert np.array_equal(private.read(np.zeros(10, np.uint8)), data)
            sim.end(TIMEOUT)
            with refused(ExecutionError, "read 10 bytes", "GPU Timeout"):
                private.read(np.zeros(10, np.uint8))
            assert np.array_equal(private.read(np.zeros(10, np.uint8)), data)
        commands.replay()
        assert one.added() == 1


def a_copy_that_is_ignored_for_an_error_of_others_is_made_again(sim: Simulation) -> None:
    data, found = np.arange(10, dtype=np.uint8), np.zeros(10, np.uint8)
    with (
        adder() as one,
        one.commands() as commands,
        one.device.buffer(10, storage="private") as private,
        ThreadPoolExecutor(1) as pool,
    ):
        for call in (
            lambda: private.write(data),
            lambda: private.read(found),
            lambda: private.fill(7),
        ):
            with sim.hang():
                sim.end(INTERACTIVITY)
                commands.submit()
                made = sim.made("MTLCommandBuffer")
                copy = pool.submit(call)
                while sim.made("MTLCommandBuffer") == made:
                    time.sleep(0.001)
                time.sleep(0.02)  # it is committed
            copy.result(30)
            assert "Interactivity" in error_of(commands)
        assert np.array_equal(found, data)
        assert np.array_equal(private.read(found), np.full(10, 7))
        sim.end(IGNORED)
        sim.fail("execute", WITH_ERROR, skip=1)
        with refused(ExecutionError, "read 10 bytes", "injected failure"):
            private.read(found)  # once more, and no further


def a_queue_that_cannot_be_renewed_is_an_error_and_tried_again(sim: Simulation) -> None:
    with adder() as one, one.commands() as commands:
        with one.device.buffer(10, storage="private") as private:
            for how, text in ((NO_REASON, "no new command queue"), (RAISE, "SimException")):
                sim.end(INTERACTIVITY)
                with refused(ExecutionError, "Impacting Interactivity"):
                    commands.replay()
                sim.fail("newCommandQueue", how, times=2)
                with refused(EncodingError, text):
                    commands.replay()
                with refused(ExecutionError, "read 10 bytes", text):
                    private.read(np.zeros(10, np.uint8))
                private.read(np.zeros(10, np.uint8))
                commands.replay()
        assert one.added() == 2


def a_copy_does_not_wait_for_ever_for_what_hangs_behind_an_error(sim: Simulation) -> None:
    n = 400  # dispatches, so that the second list is committed while the first one runs
    with adder() as one, one.device.commands() as first, one.commands() as second:
        for _ in range(n):
            first.dispatch(one.pipeline, [one.x, one.y], ARGS, threadgroups=2, threads=N // 2)
        with one.device.buffer(10, storage="private") as private:
            sim.end(PAGE_FAULT, dispatch=n - 1)
            with sim.hang(skip=1):
                first.submit()
                second.submit()
                with refused(ExecutionError, "Address Fault"):
                    first.wait(30)
                with refused(ExecutionError, "did not finish what is in flight within 2 s"):
                    private.read(np.zeros(10, np.uint8))
            assert "earlier error" in error_of(second)
            private.read(np.zeros(10, np.uint8))
        second.replay()
        assert one.added() == n


# Encoders


@contextmanager
def debugging(value: str) -> Iterator[None]:
    os.environ["OXIBONSAI_METAL_DEBUG"] = value
    try:
        yield
    finally:
        del os.environ["OXIBONSAI_METAL_DEBUG"]


def fail_in_the_second(sim: Simulation, one: Adder, code: int, *texts: str) -> str:
    with closing(one.library.pipeline("vectors")) as vectors, one.device.commands() as commands:
        commands.dispatch(one.pipeline, [one.x, one.y], ARGS, threadgroups=2, threads=N // 2)
        commands.dispatch(vectors, [one.y], threadgroups=1, threads=16)
        commands.dispatch(one.pipeline, [one.x, one.y], ARGS, threadgroups=2, threads=N // 2)
        sim.end(code, dispatch=1)
        with refused(ExecutionError, *texts):
            commands.replay()
        commands.replay()
        sim.end(code, dispatch=1)
        commands.submit()
        return error_of(commands)


def under_the_debug_variable_a_failure_names_its_kernels(sim: Simulation) -> None:
    with debugging("1"), adder() as one:
        fail_in_the_second(sim, one, PAGE_FAULT, "of 3 encoders vectors faulted")
        fail_in_the_second(sim, one, INTERACTIVITY, CHUNK, "of 3 encoders vectors was affected")
        with one.device.buffer(10, storage="private") as private:
            sim.end(PAGE_FAULT)
            with refused(ExecutionError, "of 1 encoders copy faulted"):
                private.read(np.zeros(10, np.uint8))


def without_the_debug_variable_there_is_one_encoder_without_a_name(sim: Simulation) -> None:
    for value in ("0", ""):
        with debugging(value), adder() as one:
            before = sim.made("MTLCommandEncoder")
            text = fail_in_the_second(sim, one, PAGE_FAULT, "Address Fault")
            assert "vectors" not in text
            assert sim.made("MTLCommandEncoder") == before + 3


def another_value_of_the_debug_variable_is_refused(sim: Simulation) -> None:
    for name in ("metal", None):  # nor is another device the default one for it
        with debugging("yes"), refused(EncodingError, "OXIBONSAI_METAL_DEBUG is 'yes'"):
            Device(name)
