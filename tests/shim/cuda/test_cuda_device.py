"""What only an NVIDIA GPU shows: user kernels, the standard library, memory, a lost context."""

from __future__ import annotations

import mmap
import time

import numpy as np
import pytest
from cases import run_python
from shader_sources import FAMILIES

from oxibonsai.metal import (
    BufferCreationError,
    CompilationError,
    EncodingError,
)

pytestmark = pytest.mark.device("cuda")
HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"


def run(
    device, source, function, arrays, args=b"", *, groups=1, threads=32, constants=None, memory=0
):
    """Run a kernel of `source` on copies of the arrays, and return what they hold then."""
    library = device.library(HEADER + source)
    pipeline = library.pipeline(function, constants=constants)
    buffers = [device.upload(a, storage="private") for a in arrays]
    with device.commands() as commands:
        commands.dispatch(
            pipeline, buffers, args, threadgroups=groups, threads=threads, threadgroup_memory=memory
        )
        commands.replay(timeout=60)
    return [b.read(np.empty_like(a)) for a, b in zip(arrays, buffers, strict=True)]


# Kernels that ship


@pytest.mark.parametrize("function", [name for f in FAMILIES.values() for name in f.functions])
def test_every_kernel_that_ships_takes_a_threadgroup_of_256(device, function):
    info = device.pipeline(function).info
    assert info.simd_width == 32
    assert info.max_threads >= 256
    assert info.static_threadgroup_memory <= 32768


# The standard library


def test_half_is_ieee_binary16_both_ways(device):
    source = """
    kernel void widen(device const half* h [[buffer(0)]], device float* f [[buffer(1)]],
                      device half* back [[buffer(2)]], uint i [[thread_position_in_grid]])
    { f[i] = float(h[i]); back[i] = half(f[i]); }
    kernel void narrow(device const float* f [[buffer(0)]], device half* h [[buffer(1)]],
                       uint i [[thread_position_in_grid]])
    { h[i] = half(f[i]); }
    """
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    half, wide, back = run(
        device,
        source,
        "widen",
        [every, np.zeros(65536, np.float32), np.zeros(65536, np.float16)],
        groups=256,
        threads=256,
    )
    number = ~np.isnan(every)
    np.testing.assert_array_equal(wide[number], every[number].astype(np.float32))
    np.testing.assert_array_equal(back[number].view(np.uint16), half[number].view(np.uint16))
    assert np.isnan(wide[~number]).all()
    assert np.isnan(back[~number]).all()
    rng = np.random.default_rng(0)
    floats = (rng.standard_normal(65536) * 2.0 ** rng.integers(-30, 18, 65536)).astype(np.float32)
    floats[:3] = np.inf, -np.inf, 65520
    _, narrow = run(
        device, source, "narrow", [floats, np.zeros(65536, np.float16)], groups=256, threads=256
    )
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(narrow, floats.astype(np.float16))


def test_arithmetic_is_not_contracted_and_keeps_subnormals(device):
    source = """
    kernel void k(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                  uint i [[thread_position_in_grid]])
    {
        y[4 * i] = x[i] * x[i] - 1.0f;
        y[4 * i + 1] = fma(x[i], x[i], -1.0f);
        y[4 * i + 2] = x[i] * 1e-40f;
        y[4 * i + 3] = 1.0f / x[i];
    }
    """
    x = np.random.default_rng(1).uniform(0.5, 2, 64).astype(np.float32)
    _, y = run(device, source, "k", [x, np.zeros(256, np.float32)], groups=2)
    wide = x.astype(np.float64)
    np.testing.assert_array_equal(y[0::4], x * x - np.float32(1))
    np.testing.assert_array_equal(y[1::4], (wide * wide - 1).astype(np.float32))
    np.testing.assert_array_equal(y[2::4], x * np.float32(1e-40))
    np.testing.assert_array_equal(y[3::4], np.float32(1) / x)


def test_vectors_have_metals_sizes_and_operators(device):
    source = """
    struct layout { float3 a; packed_float3 b; half4 c; uchar4 d; };
    kernel void k(device uint* sizes [[buffer(0)]], device float4* v [[buffer(1)]],
                  uint i [[thread_position_in_grid]])
    {
        sizes[0] = sizeof(float3); sizes[1] = sizeof(packed_float3); sizes[2] = alignof(half4);
        sizes[3] = sizeof(layout); sizes[4] = sizeof(half3); sizes[5] = sizeof(packed_half2);
        const float4 x = v[0];
        v[0] = 2.0f * x + float4(x.xy, 1.0f, x.w) - float4(uint4(1, 2, 3, 4));
        v[1] = clamp(x, 0.0f, 2.5f);
        v[2] = float4(dot(x, x), any(x > 3.5f) ? 1.0f : 0.0f, all(x > 0.5f) ? 1.0f : 0.0f,
                      select(1.0f, 2.0f, x.x < x.y));
        v[3] = float4(as_type<float>(0x40490fdbu), min3(3.0f, 1.0f, 2.0f), fract(-0.25f),
                      sign(-3.0f));
    }
    """
    v = np.zeros((4, 4), np.float32)
    v[0] = 1, 2, 3, 4
    sizes, out = run(device, source, "k", [np.zeros(8, np.uint32), v], threads=1)
    assert sizes[:6].tolist() == [16, 12, 8, 48, 8, 4]
    np.testing.assert_array_equal(out[0], [2, 4, 4, 8])
    np.testing.assert_array_equal(out[1], [1, 2, 2.5, 2.5])
    np.testing.assert_array_equal(out[2], [30, 1, 1, 2])
    np.testing.assert_array_equal(out[3], np.float32([np.pi, 1, 0.75, -1]))


def test_simdgroup_functions(device):
    source = """
    kernel void k(device const int* x [[buffer(0)]], device int* y [[buffer(1)]],
                  device const half* h [[buffer(2)]], device half* g [[buffer(3)]],
                  uint lane [[thread_index_in_simdgroup]], uint i [[thread_position_in_grid]])
    {
        const int v = x[i];
        y[i] = simd_sum(v); y[64 + i] = simd_max(v); y[128 + i] = simd_min(v);
        y[192 + i] = simd_prefix_inclusive_sum(v); y[256 + i] = simd_prefix_exclusive_sum(v);
        y[320 + i] = simd_shuffle_xor(v, 5); y[384 + i] = simd_broadcast(v, 3);
        y[448 + i] = simd_any(v == 7) ? 1 : 0; y[512 + i] = int(ulong(simd_ballot(v > 0)));
        y[576 + i] = simd_shuffle_rotate_down(v, 3); y[640 + i] = simd_xor(v);
        g[i] = simd_shuffle_down(h[i], 1);
    }
    """
    x = np.random.default_rng(2).integers(-50, 50, 64).astype(np.int32)
    h = np.random.default_rng(3).standard_normal(64).astype(np.float16)
    _, y, _, g = run(
        device, source, "k", [x, np.zeros(704, np.int32), h, np.zeros(64, np.float16)], threads=64
    )
    lanes = np.arange(32)
    for group in range(2):
        v, at = x[32 * group :][:32], slice(32 * group, 32 * group + 32)
        rows = y.reshape(11, 64)[:, at]
        assert (rows[0] == v.sum()).all()
        assert (rows[1] == v.max()).all()
        assert (rows[2] == v.min()).all()
        np.testing.assert_array_equal(rows[3], np.cumsum(v))
        np.testing.assert_array_equal(rows[4], np.cumsum(v) - v)
        np.testing.assert_array_equal(rows[5], v[lanes ^ 5])
        assert (rows[6] == v[3]).all()
        assert (rows[7] == (v == 7).any()).all()
        ballot = np.uint32(sum(1 << i for i in lanes if v[i] > 0)).view(np.int32)
        assert (rows[8] == ballot).all()
        np.testing.assert_array_equal(rows[9], v[(lanes + 3) % 32])
        assert (rows[10] == np.bitwise_xor.reduce(v)).all()
        np.testing.assert_array_equal(g[at][:31], h[at][1:])


@pytest.mark.parametrize("element", ["float", "half"])
def test_simdgroup_matrices_multiply_in_float32(device, element):
    source = f"""
    kernel void k(device const {element}* a [[buffer(0)]], device const {element}* b [[buffer(1)]],
                  device const float* c [[buffer(2)]], device float* d [[buffer(3)]])
    {{
        simdgroup_matrix<{element}, 8, 8> ma, mb, mt;
        simdgroup_float8x8 mc, md;
        simdgroup_load(ma, a, 16, ulong2(8, 0));
        simdgroup_load(mb, b);
        simdgroup_load(mt, b, 8, ulong2(0, 0), true);
        simdgroup_load(mc, c);
        simdgroup_multiply_accumulate(md, ma, mb, mc);
        simdgroup_store(md, d);
        simdgroup_multiply(md, ma, mt);
        simdgroup_store(md, d + 64, 8, ulong2(0, 0), true);
    }}
    """
    rng = np.random.default_rng(4)
    dtype = np.float32 if element == "float" else np.float16
    a, b = rng.standard_normal((8, 16)).astype(dtype), rng.standard_normal((8, 8)).astype(dtype)
    c = rng.standard_normal((8, 8)).astype(np.float32)
    *_, d = run(device, source, "k", [a, b, c, np.zeros((2, 8, 8), np.float32)])
    wide, other = a[:, 8:].astype(np.float64), b.astype(np.float64)
    np.testing.assert_allclose(d[0], wide @ other + c, rtol=0, atol=3e-6)
    np.testing.assert_allclose(d[1], (wide @ other.T).T, rtol=0, atol=3e-6)


def test_atomics_and_both_kinds_of_threadgroup_memory(device):
    source = """
    kernel void k(device atomic_uint* total [[buffer(0)]], device uint* y [[buffer(1)]],
                  threadgroup uint* shared [[threadgroup(0)]],
                  uint i [[thread_index_in_threadgroup]], uint n [[threads_per_threadgroup]],
                  uint group [[threadgroup_position_in_grid]])
    {
        threadgroup uint fixed[128];
        shared[i] = i + group;
        fixed[n - 1 - i] = i;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        y[group * n + i] = shared[n - 1 - i] + 1000u * fixed[i];
        atomic_fetch_add_explicit(total, shared[i], memory_order_relaxed);
    }
    """
    total, y = run(
        device,
        source,
        "k",
        [np.zeros(1, np.uint32), np.zeros(384, np.uint32)],
        groups=3,
        threads=128,
        memory=512,
    )
    i = np.arange(128)
    for group in range(3):
        np.testing.assert_array_equal(y[128 * group :][:128], 1001 * (127 - i) + group)
    assert total[0] == sum(i.sum() + 128 * group for group in range(3))


# What is bound

BOUND = """
struct first_args { uint n; float scale; };
kernel void by_value(device float* y [[buffer(0)]], constant float& add [[buffer(1)]],
                     constant first_args& args [[buffer(2)]], uint i [[thread_position_in_grid]])
{ if (i < args.n) y[i] = y[i] * args.scale + add; }
kernel void by_pointer(device float* y [[buffer(0)]], constant float* args [[buffer(1)]],
                       uint i [[thread_position_in_grid]])
{ y[i] = y[i] * args[0] + args[1]; }
"""


def test_a_constant_reference_and_a_pointer_to_the_arguments(device):
    x = np.arange(32, dtype=np.float32)
    args = np.array([20], np.uint32).tobytes() + np.array([2], np.float32).tobytes()
    y, _ = run(device, BOUND, "by_value", [x, np.float32([0.5])], args)
    np.testing.assert_array_equal(y, np.where(np.arange(32) < 20, 2 * x + 0.5, x))
    (y,) = run(device, BOUND, "by_pointer", [x], np.float32([3, 1]).tobytes())
    np.testing.assert_array_equal(y, 3 * x + 1)


def test_what_is_bound_is_held_against_the_kernel(device):
    library = device.library(HEADER + BOUND)
    y, add = device.buffer(128), device.buffer(64)
    cases = [
        ("by_value", [y, add], b"", r"by_value: its buffer\(2\) is not bound"),
        ("by_value", [y, add], bytes(4), r"by_value: buffer\(2\) has 4 bytes bound and needs 8"),
        ("by_value", [y, (add, 2)], bytes(8), r"buffer\(1\) starts at byte 2, .* multiple of 4"),
        ("by_value", [y, add, add], b"", r"its buffer\(2\), the constant reference .* by value"),
        ("by_value", [y], bytes(8), r"buffer\(2\) is not bound"),
        ("by_value", [], bytes(64), r"it writes buffer\(0\), which is bound to an argument struct"),
    ]
    for function, bindings, args, text in cases:
        with device.commands() as commands:
            with pytest.raises(EncodingError, match=text):
                commands.dispatch(library.pipeline(function), bindings, args, threadgroups=1)
            assert len(commands) == 0
    pipeline = library.pipeline("by_value")
    with (
        device.commands() as commands,
        pytest.raises(EncodingError, match="a grid of 1 x 65536 x 1 threadgroups, at most"),
    ):
        commands.dispatch(pipeline, [y, add], bytes(8), threadgroups=(1, 65536))


CONSTANTS = """
constant uint count [[function_constant(0)]];
constant int shift [[function_constant(1)]];
constant float factor [[function_constant(2)]];
constant bool negate [[function_constant(3)]];
constant bool is_negated = is_function_constant_defined(negate) ? negate : false;
kernel void k(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]])
{ if (i < count) y[i] = (is_negated ? -factor : factor) * float(int(i) + shift); }
kernel void none(device float* y [[buffer(0)]]) { y[0] = 1.0f; }
"""


def test_function_constants(device):
    (y,) = run(
        device, CONSTANTS, "k", [np.zeros(32, np.float32)], constants={0: 8, 1: -3, 2: 0.1, 3: True}
    )
    expected = np.where(np.arange(32) < 8, -np.float32(0.1) * np.float32(np.arange(32) - 3), 0)
    np.testing.assert_array_equal(y, expected.astype(np.float32))
    (y,) = run(
        device, CONSTANTS, "k", [np.zeros(32, np.float32)], constants={0: 1, 1: 1, 2: np.inf}
    )
    assert y[0] == np.inf
    library = device.library(HEADER + CONSTANTS)
    for constants, text in [
        ({0: 8, 1: 1}, "function constant 2 needs a value"),
        ({0: 8, 1: 1, 2: 1.0, 9: 1}, "the kernel has no function constant 9"),
        ({0: -8, 1: 1, 2: 1.0}, "function constant 0 is a uint, and an int was given"),
        ({0: 8, 1: 2**31, 2: 1.0}, "function constant 1 is an int, and a uint was given"),
        ({0: 8, 1: 1, 2: 1}, "function constant 2 is a float"),
    ]:
        with pytest.raises(CompilationError, match=text):
            library.pipeline("k", constants=constants)
    with pytest.raises(CompilationError, match="has no function constant 0"):
        library.pipeline("none", constants={0: 1})


def test_what_is_wrong_with_a_source_is_said(device):
    with pytest.raises(CompilationError, match=r"program\.metal\(4\): error: .*undeclared_thing"):
        device.library(
            HEADER + "kernel void k(device float* y [[buffer(0)]])\n{ y[0] = undeclared_thing; }\n"
        )
    with pytest.raises(CompilationError, match=r"program\.metal:3: error: .*the attribute"):
        device.library(
            HEADER + "kernel void k(device float* y [[buffer(0)]], uint i [[nonsense]]) {}\n"
        )
    library = device.library(HEADER + BOUND)
    with pytest.raises(CompilationError, match=r"'other': .* the library has by_value, by_pointer"):
        library.pipeline("other")


# Memory


@pytest.mark.parametrize("nbytes", [1, 4095, 8 << 20, (20 << 20) + 13])
def test_private_memory_is_copied_whole(device, nbytes):
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    with device.upload(data, storage="private") as buffer:
        np.testing.assert_array_equal(buffer.read(np.empty_like(data)), data)
        buffer.fill(7, 1, nbytes // 2)
        data[1 : 1 + nbytes // 2] = 7
        np.testing.assert_array_equal(buffer.read(np.empty_like(data)), data)


def test_memory_that_shares_pages_is_wrapped_many_times(device):
    memory = np.zeros(20 * 4096, np.uint8)
    start = -memory.ctypes.data % 4096
    ranges = [(64, 100), (3008, 9000), (8192, 64), (0, 16 * 4096), (12 * 4096, 8192)]
    buffers = []
    for offset, length in ranges:
        view = memory[start + offset :][:length]
        buffers.append(device.upload(view.view(np.float32), copy=False))
    for (offset, length), buffer in zip(ranges, buffers, strict=True):
        memory[:] = 0
        ones = device.upload(np.ones(length // 4, np.float32), storage="private")
        with device.commands() as commands:
            commands.add(ones, buffer, length // 4)
            commands.replay(timeout=60)
        expected = np.zeros_like(memory)
        expected[start + offset :][:length].view(np.float32)[:] = 1
        np.testing.assert_array_equal(memory, expected)
    for buffer in buffers[::2] + buffers[1::2]:
        buffer.close()


def test_a_mapped_file_that_may_only_be_read(device, tmp_path):
    data = np.random.default_rng(5).standard_normal(4096).astype(np.float32)
    path = tmp_path / "weights"
    path.write_bytes(data.tobytes())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        wrapped = device.upload(mapped, copy=False)
        y = device.buffer(data.nbytes)
        with device.commands() as commands:
            commands.add(wrapped, y, len(data))
            commands.replay(timeout=60)
        np.testing.assert_array_equal(y.view(np.float32), data)
        wrapped.close()


def test_too_much_memory_is_refused_with_what_there_is(device):
    nbytes = device.info.max_buffer_length
    with pytest.raises(BufferCreationError, match=r"has \d+ of its \d+ bytes free"):
        device.buffer(nbytes, storage="private")


# Time, and the end of a context


def test_the_devices_time_is_a_part_of_the_hosts(device):
    x, y = (device.buffer(64 << 20, storage="private") for _ in range(2))
    with device.commands() as commands:
        for _ in range(20):
            commands.add(x, y, 16 << 20)
        commands.replay()
        for _ in range(3):  # as launches, then as a graph
            start = time.perf_counter()
            commands.replay()
            assert 0 < commands.device_time <= time.perf_counter() - start


LOST = """
import numpy as np
from oxibonsai.metal import Device, DeviceNotFoundError
device = Device("cuda")
library = device.library('''
#include <metal_stdlib>
using namespace metal;
kernel void bad(device uint* y [[buffer(0)]]) { *(device uint*)(ulong(y) + 0x700000000000ul) = 1u; }
''')
y = device.buffer(64)
commands, other = device.commands(), device.commands()
commands.dispatch(library.pipeline("bad"), [y], threadgroups=1)
other.add(y, y, 16)
for call in (lambda: commands.replay(timeout=60), lambda: other.replay(timeout=60),
             lambda: device.buffer(64, storage="private").fill(1)):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
del commands, other, y, library
device.close()
try:
    with Device("cuda") as again, again.commands() as fresh:
        x = again.upload(np.ones(8, np.float32))
        fresh.add(x, x, 8)
        fresh.replay(timeout=60)
        print(x.view(np.float32).tolist())
except DeviceNotFoundError as error:
    print(error)
"""


def test_a_lost_context_is_an_error_that_says_what_to_do(device_name):
    lines = run_python(LOST).stdout.splitlines()
    assert "ExecutionError" in lines[0]
    assert "the context is lost, and CUDA with it in this process: start a new" in lines[0]
    assert "ILLEGAL_ADDRESS" in lines[0]
    assert len(lines) == 4, lines
    # Drivers differ: one makes a new context, another has given the process up, and says so.
    assert lines[3] == str([2.0] * 8) or "start a new process" in lines[3]
