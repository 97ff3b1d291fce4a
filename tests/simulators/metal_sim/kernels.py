"""Kernels in Metal Shading Language that scenarios run, and short ways to run them."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator

import numpy as np

from oxibonsai import metal

SOURCE = """
#include <metal_stdlib>
using namespace metal;

struct args { uint n; uint pad[3]; };

kernel void add(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                constant args &a [[buffer(2)]], uint i [[thread_position_in_grid]])
{
    if (i < a.n) y[i] += x[i];
}

kernel void reversed(device float *y [[buffer(0)]], threadgroup float *t [[threadgroup(0)]],
                     uint i [[thread_index_in_threadgroup]], uint n [[threads_per_threadgroup]])
{
    t[i] = y[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = t[n - 1u - i];
}

kernel void doubled(device float *y [[buffer(0)]], uint i [[thread_index_in_threadgroup]])
{
    threadgroup float own[7168];
    own[i] = y[i] * 2.0f;
    y[i] = own[i];
}

kernel void vectors(device float4 *y [[buffer(0)]], uint i [[thread_position_in_grid]])
{
    y[i] = float4(float(i));
}
"""

CONSTANTS = """
#include <metal_stdlib>
using namespace metal;

constant bool negative [[function_constant(0)]];
constant uint count [[function_constant(1)]];
constant int offset [[function_constant(2)]];
constant float factor [[function_constant(3)]];

kernel void set(device float *y [[buffer(0)]], uint i [[thread_position_in_grid]])
{
    if (i < count) y[i] = (negative ? -1.0f : 1.0f) * factor * float(int(i) + offset);
}
"""

N = 64
ARGS = struct.pack("4I", N, 0, 0, 0)


class Adder:
    """A device with `add` compiled, x = 0..63 and y = 1."""

    def __init__(self, name: str = "metal") -> None:
        self.device = metal.Device(name)
        self.library = self.device.library(SOURCE)
        self.pipeline = self.library.pipeline("add")
        self.x = self.device.upload(np.arange(N, dtype=np.float32))
        self.y = self.device.upload(np.ones(N, np.float32))

    def commands(self) -> metal.Commands:
        commands = self.device.commands()
        commands.dispatch(self.pipeline, [self.x, self.y], ARGS, threadgroups=2, threads=N // 2)
        return commands

    def added(self) -> float:
        """How many times x was added to y."""
        y = self.y.read(np.zeros(N, np.float32))
        times = (y[1] - 1) / 1
        assert np.array_equal(y, 1 + times * np.arange(N, dtype=np.float32))
        return float(times)

    def close(self) -> None:
        for one in (self.x, self.y, self.pipeline, self.library, self.device):
            one.close()


@contextlib.contextmanager
def adder(name: str = "metal") -> Iterator[Adder]:
    one = Adder(name)
    try:
        yield one
    finally:
        one.close()


def run(
    device: metal.Device, pipeline: metal.Pipeline, y: Iterable[float], memory: int = 0
) -> list[float]:
    """Run a kernel of one buffer, a thread for each number; return what it holds afterwards."""
    data = np.array([*y], np.float32)
    with device.upload(data) as buffer, device.commands() as commands:
        commands.dispatch(
            pipeline, [buffer], threadgroups=1, threads=len(data), threadgroup_memory=memory
        )
        commands.replay()
        return [float(v) for v in buffer.read(np.empty_like(data))]
