"""Lists that go as several command buffers, by the time that the driver predicts for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
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
    Record,
    Simulation,
)
from oxibonsai import metal
from oxibonsai.metal import EncodingError, ExecutionError

PART = 0.1  # seconds, of shim/metal/pace.m
BUDGET = 0.6
GUESS = 256 / 0.35e12  # seconds of a thread, before anything was measured


def commands_of(one: Adder, n: int) -> metal.Commands:
    commands = one.device.commands()
    for _ in range(n):
        commands.dispatch(one.pipeline, [one.x, one.y], ARGS, threadgroups=2, threads=N // 2)
    return commands


def teach(sim: Simulation, one: Adder, seconds: float) -> int:
    """Let a dispatch of `add` take so long, and the driver know it; how many dispatches ran."""
    rounds = 8
    sim.set_cost("add", seconds / N)
    with commands_of(one, 1) as commands:
        for _ in range(rounds):
            commands.replay()
    sim.forget_records()
    return rounds


def grids(one: Adder, n: int, threads: int) -> metal.Commands:
    """Record n dispatches of so many threads, for a dry run."""
    commands = one.device.commands()
    for _ in range(n):
        commands.dispatch(
            one.pipeline, [one.x, one.y], ARGS, threadgroups=threads // 256, threads=256
        )
    return commands


@contextmanager
def dry(sim: Simulation) -> Iterator[None]:
    """Run nothing; a device is opened before, for it has to pass its probe."""
    sim.set_dry(1)
    try:
        yield
    finally:
        sim.set_dry(0)


def a_short_list_is_one_command_buffer(sim: Simulation) -> None:
    sim.set_cost(None, GUESS)
    with adder() as one, commands_of(one, 100) as commands:
        sim.forget_records()
        commands.replay(3)
        assert [r.dispatches for r in sim.records()] == [100] * 3
        assert one.added() == 300


def a_long_list_goes_in_parts_of_bounded_time(sim: Simulation) -> None:
    with adder() as one, commands_of(one, 41) as commands:
        taught = teach(sim, one, 0.021)
        commands.replay()
        assert [r.dispatches for r in sim.records()] == [4] * 10 + [1]
        assert commands.device_time is not None
        assert abs(commands.device_time - 0.861) < 1e-6, "from the first begin to the last end"
        assert one.added() == taught + 41
        assert one.device.stats.in_flight == 0


def a_list_of_less_than_twice_a_part_stays_whole(sim: Simulation) -> None:
    with adder() as one, commands_of(one, 9) as commands, commands_of(one, 10) as longer:
        teach(sim, one, 0.021)
        commands.replay()
        assert [r.dispatches for r in sim.records()] == [9]
        sim.forget_records()
        longer.replay()
        assert [r.dispatches for r in sim.records()] == [4, 4, 2]


def what_takes_five_times_the_guess_stays_in_the_budget(sim: Simulation) -> None:
    """The first list runs on the guess alone, the next one on what was measured."""
    sim.set_budget(BUDGET)
    for of_list, parts in ((0.09, 1), (0.29, 6), (2.4, 60)):  # seconds, guessed
        threads = round(of_list / 60 / GUESS / 256) * 256
        with adder() as one, grids(one, 60, threads) as commands, dry(sim):
            sim.set_cost("add", 5 * GUESS)
            sim.forget_records()
            if parts < 40:
                with sim.hang():  # until all is committed, so that nothing of it is measured
                    commands.submit()
            else:
                commands.submit()
            commands.wait(30)
            first = sim.records()
            assert len(first) == parts
            assert max(r.seconds for r in first) < BUDGET
            sim.forget_records()
            commands.replay()
            then = sim.records()
            dispatch = 5 * of_list / 60
            assert max(r.seconds for r in then) < max(1.2 * PART, 1.01 * dispatch)
            assert len(then) <= 60


def what_was_ended_for_its_time_goes_in_shorter_parts_the_next_time(sim: Simulation) -> None:
    threads = round(0.01 / GUESS / 256) * 256
    for code in (INTERACTIVITY, TIMEOUT):
        with adder() as one, grids(one, 60, threads) as commands, dry(sim):
            sim.set_budget(BUDGET, code)
            sim.set_cost("add", 20 * GUESS)
            with refused(ExecutionError, "lower the chunk"):
                commands.replay()
            sim.forget_records()
            commands.replay()
            assert max(r.seconds for r in sim.records()) < max(1.5 * PART, 1.01 * 20 * 0.01)


def what_was_ended_without_times_goes_in_shorter_parts_the_next_time(sim: Simulation) -> None:
    """Dispatches of 0.4 s, of which two exceed the budget, and which the driver guesses shorter."""
    sim.set_failed_times(0)
    for code in (INTERACTIVITY, TIMEOUT):
        for guessed, n in ((0.005, 8), (0.0025, 16), (0.01, 4)):
            threads = round(guessed / GUESS / 256) * 256
            with adder() as one, grids(one, n, threads) as commands, dry(sim):
                sim.set_budget(BUDGET, code)
                sim.set_cost("add", 0.4 / threads)
                sim.forget_records()
                with refused(ExecutionError, "lower the chunk"):
                    commands.replay()
                assert [r.code for r in sim.records()] == [code]
                sim.forget_records()
                commands.replay()
                assert [r.dispatches for r in sim.records()] == [1] * n


def other_errors_do_not_change_the_pace(sim: Simulation) -> None:
    with adder() as one, commands_of(one, 41) as commands:
        teach(sim, one, 0.021)
        for times in (1, 0):
            sim.set_failed_times(times)
            for code in (PAGE_FAULT, OUT_OF_MEMORY, VICTIM, IGNORED):
                for dispatch in (0, 3):
                    sim.end(code, dispatch=dispatch)
                    with refused(ExecutionError, "MTLCommandBufferErrorDomain"):
                        commands.replay()
        sim.forget_records()
        commands.replay()
        assert [r.dispatches for r in sim.records()] == [4] * 10 + [1]


def a_lower_pace_is_taken_on_slowly_and_a_higher_one_at_once(sim: Simulation) -> None:
    threads = round(0.02 / GUESS / 256) * 256

    def parts_of(commands: metal.Commands) -> list[Record]:
        sim.forget_records()
        commands.replay()
        return sim.records()

    with (
        adder() as one,
        dry(sim),
        grids(one, 60, threads) as commands,
        grids(one, 1, threads) as short,
    ):
        sim.set_cost("add", GUESS)
        commands.replay()
        usual = parts_of(commands)[0]
        assert 0.75 * PART < usual.seconds <= 1.01 * PART
        sim.set_cost("add", GUESS / 10)
        short.replay()
        first = parts_of(commands)[0]
        assert first.dispatches <= 2 * usual.dispatches, "one fast command buffer says little"
        for _ in range(6):
            commands.replay()
        assert max(r.seconds for r in parts_of(commands)) > 0.7 * PART
        sim.set_cost("add", GUESS)
        short.replay()
        assert parts_of(commands)[0].seconds < 1.3 * PART


def parts_of_many_submissions_never_fill_the_queue(sim: Simulation) -> None:
    """The simulated queue ends the process at its 65th command buffer in flight."""
    with adder() as one:
        taught = teach(sim, one, 0.2)
        lists = [commands_of(one, 12) for _ in range(16)]
        private = one.device.buffer(64, storage="private")
        with sim.hang():
            threads = [threading.Thread(target=commands.submit) for commands in lists]
            threads.append(threading.Thread(target=private.fill, args=(7,)))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(0.05)
            assert any(thread.is_alive() for thread in threads), "more than a queue holds"
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        for commands in lists:
            commands.wait(60)
            commands.close()
        assert one.added() == taught + 16 * 12
        assert [r.dispatches for r in sim.records()] == [1] * (16 * 12)
        private.close()


def no_list_gets_between_the_parts_of_another(sim: Simulation) -> None:
    n = 60
    with adder() as one, closing(one.library.pipeline("doubled")) as double:
        taught = teach(sim, one, 0.2)
        sim.set_cost("doubled", 0.2 / N)
        adds, doubles = commands_of(one, n), one.device.commands()
        for _ in range(n):
            doubles.dispatch(double, [one.y], threadgroups=1, threads=N)
        for _ in range(8):  # so that the driver knows its time
            doubles.replay()
        one.y.write(np.ones(N, np.float32))
        with sim.hang():
            threads = [threading.Thread(target=c.submit) for c in (adds, doubles)]
            for thread in threads:
                thread.start()
                thread.join(0.2)
                assert thread.is_alive(), "waits for a place in the queue"
        for thread in threads:
            thread.join(60)
        adds.wait(60)
        doubles.wait(60)
        x = np.arange(N, dtype=np.float32)
        y = one.y.read(np.zeros(N, np.float32))
        assert taught
        assert np.array_equal(y, (1 + n * x) * np.float32(2.0**n))
        adds.close()
        doubles.close()


def a_part_that_cannot_be_encoded_is_an_error_behind_those_that_run(sim: Simulation) -> None:
    with adder() as one, commands_of(one, 6) as commands:
        added = teach(sim, one, 0.2)
        before = sim.live()
        for call, how, text in (
            ("commandBuffer", NO_REASON, "Metal gave no command buffer"),
            ("commandBuffer", RAISE, "SimException"),
            ("computeCommandEncoder", NO_REASON, "Metal gave no encoder"),
            ("computeCommandEncoder", RAISE, "SimException"),
            ("dispatchThreadgroups", RAISE, "SimException"),
            ("commit", RAISE, "SimException"),
        ):
            for part in (1, 3, 5):
                sim.fail(call, how, skip=part)
                commands.submit()
                with refused(EncodingError, f"dispatches {part} to {part} of 6", text):
                    commands.wait(30)
                added += part
                assert one.added() == added
                assert one.device.stats.in_flight == 0
            sim.fail(call, how)
            with refused(EncodingError, "dispatches 0 to 0 of 6", text):
                commands.submit()
            assert sim.live() == before, f"{call}: {sim.live_text()}"
        commands.replay()
        assert one.added() == added + 6


def of_a_list_the_first_error_is_kept_and_the_rest_is_not_run(sim: Simulation) -> None:
    with adder() as one, commands_of(one, 6) as commands:
        added = teach(sim, one, 0.2)
        for part in (0, 2, 5):
            with sim.hang():  # until all of them are committed
                sim.end(PAGE_FAULT, skip=part)
                commands.submit()
            with refused(ExecutionError, "Address Fault", "memory that no buffer of it holds"):
                commands.wait(30)
            codes = [0] * part + [PAGE_FAULT] + [4] * (5 - part)
            assert [r.code for r in sim.records()] == codes
            added += part
            assert one.added() == added
            sim.forget_records()
        commands.replay()
        assert one.added() == added + 6


def a_list_with_an_error_goes_on_on_no_other_queue(sim: Simulation) -> None:
    """What waits for a place when an earlier part fails is not committed any more."""
    n = 100
    with adder() as one, commands_of(one, n) as commands:
        added = teach(sim, one, 0.2)
        with sim.hang():
            sim.end(INTERACTIVITY)
            submitting = threading.Thread(target=commands.submit)
            submitting.start()
            submitting.join(0.2)
            assert submitting.is_alive()
        submitting.join(60)
        with refused(ExecutionError, "Impacting Interactivity"):
            commands.wait(30)
        records: list[Record] = sim.records()
        assert len(records) < n
        assert {r.code for r in records[1:]} == {4}
        assert one.added() == added
