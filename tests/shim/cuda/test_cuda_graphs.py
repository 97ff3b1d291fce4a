"""The graphs of the cuda driver, against a libcuda that counts and fails."""

from __future__ import annotations

import shutil
import sys

import fake_cuda
import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="needs Linux and gcc"
)


def test_a_list_runs_as_launches_and_then_as_a_graph(run):
    lines = run(
        """
with Device("cuda") as device, device.commands() as commands:
    x, y = device.buffer(64), device.buffer(64, storage="private")
    for n in (16, 8, 4):
        commands.add((x, 4) if n == 4 else x, y, n)
    for _ in range(4):
        commands.replay()
        print(fake.launches, fake.nodes, fake.execs, fake.graph_launches)
    last = fake.last()
    print(last["kernel"], last["grid"], last["block"])
    print(last["parameters"][0] - x.address, last["parameters"][2])
    print(f"{commands.device_time:.6f}")
    commands.reset()
    print(fake.execs)
"""
    )
    assert lines[:4] == ["3 0 0 0", "3 3 1 1", "3 3 1 2", "3 3 1 3"]
    assert lines[4] == "msl_entry_residual_add (1, 1, 1) (256, 1, 1)"
    assert lines[5] == "4 4"
    assert lines[6:] == ["0.002500", "0"]


GRAPH = """
with Device("cuda") as device, device.commands() as commands:
    x, y = device.buffer(64), device.buffer(64, storage="private")
    for n in (16, 8, 4):
        commands.add(x, y, n)
    for _ in range(2):
        commands.replay()
print(fake.serial_edges, fake.early_edges)
"""


def test_kernels_of_a_graph_start_early(run):
    assert run(GRAPH) == ["0 2"]


def test_kernels_that_do_not_wait_by_themselves_start_in_series(run):
    assert run("fake.major = 8" + GRAPH) == ["2 0"]


def test_without_edges_for_an_early_start_kernels_start_in_series(run, tmp_path):
    older = fake_cuda.build(tmp_path, "-DFAKE_NO_EDGES")
    assert run(GRAPH, **{fake_cuda.ENVIRONMENT: str(older)}) == ["2 0"]


@pytest.mark.parametrize("call", ["cuGraphAddDependencies", "cuGraphInstantiate"])
def test_a_graph_whose_early_starts_are_refused_is_built_in_series(run, call):
    lines = run(
        f"""
def graph(device):
    with device.commands() as commands:
        x, y = device.buffer(64), device.buffer(64, storage="private")
        for n in (16, 8, 4):
            commands.add(x, y, n)
        for _ in range(3):
            commands.replay()
        print(fake.serial_edges, fake.early_edges, fake.graph_launches, fake.graphs)

with Device("cuda") as device:
    fake.fail("{call}", 801)
    graph(device)
    graph(device)
with Device("cuda") as device:
    graph(device)
print(fake.execs, fake.graphs)
"""
    )
    early = 0 if call == "cuGraphAddDependencies" else 2
    # The device goes on in series at once; another one tries for itself.
    assert lines == [f"2 {early} 2 0", f"4 {early} 4 0", f"4 {early + 2} 6 0", "0 0"]


def test_a_graph_that_fails_in_series_as_well_is_an_error(run):
    lines = run(
        """
with Device("cuda") as device, device.commands() as commands:
    x, y = device.buffer(64), device.buffer(64, storage="private")
    commands.add(x, y, 16)
    commands.add(x, y, 8)
    commands.replay()
    fake.fail("cuGraphInstantiate", 801, always=True)
    try:
        commands.replay()
    except metal.MetalGraphError as error:
        print(error)
    fake.forgive()
    commands.replay()  # it was no matter of early starts: they are tried again
    print(fake.serial_edges, fake.early_edges, fake.graph_launches, fake.graphs)
"""
    )
    assert "cuGraphInstantiate" in lines[0]
    assert "801" in lines[0]
    assert lines[1:] == ["1 2 1 0"]
