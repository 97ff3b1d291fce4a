"""Every variant of the cpu kernels that this machine can run, and NEON under an emulator."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import reference
from cases import (
    BLOCK_FORMATS,
    activations,
    block,
    close_to,
    contents,
    dense,
    encode,
    gemv,
    random_weight,
    run_python,
    same_non_finite,
    set_scales,
    upload,
)
from places import ROOT, SHIM

from oxibonsai import formats, metal, quant
from oxibonsai.metal import DeviceNotFoundError

VARIANTS = metal.variants("cpu")
FLOAT_VARIANTS = [name for name in VARIANTS if "-" not in name]  # The others differ in int8 alone.
TERNARY = ["TQ2_0_g128", "PTQ1_0", "PQ2_0"]


@pytest.fixture(params=FLOAT_VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def graph(variant):
    with metal.Device("cpu", variant=variant) as device, metal.MetalGraph(device) as graph:
        yield graph


def ternary(name, n_rows, k, seed=0):
    """Return a weight without a code of 3, in a format that may hold one."""
    w = np.random.default_rng([seed, n_rows, k]).standard_normal((n_rows, k), np.float32)
    return quant.quantize(w, name)


def test_there_is_a_variant_for_this_processor():
    expected = {"x86_64": "avx2", "amd64": "avx2", "aarch64": "neon", "arm64": "neon"}
    assert VARIANTS[-1] == "portable"
    assert len(set(VARIANTS)) == len(VARIANTS)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "avx2 fma"
    if "avx2" in flags or platform.machine() in ("aarch64", "arm64"):
        assert expected[platform.machine().lower()] in VARIANTS
    if "avx512bw" in flags and "avx512dq" in flags and "avx512vl" in flags:
        assert VARIANTS[0].startswith("avx512")


def test_a_device_says_which_variant_it_runs(variant):
    with metal.Device("cpu", variant=variant) as device:
        assert device.info.variant == variant


def test_the_best_variant_is_the_default():
    code = """
        from oxibonsai import metal
        print(metal.Device("cpu").info.variant)
    """
    assert run_python(code, env={"OXIBONSAI_CPU_VARIANT": ""}).stdout.strip() == VARIANTS[0]
    assert run_python(code, env={"OXIBONSAI_CPU_VARIANT": "portable"}).stdout == "portable\n"


def test_an_unknown_variant_is_refused_by_name():
    with pytest.raises(DeviceNotFoundError, match=f"'mmx'.* has {', '.join(VARIANTS)} on this"):
        metal.Device("cpu", variant="mmx")
    with pytest.raises(TypeError, match="a variant is named by a str, not int"):
        metal.Device("cpu", variant=512)
    code = """
        from oxibonsai import metal
        try:
            metal.Device("cpu")
        except metal.DeviceNotFoundError as error:
            print(error)
    """
    done = run_python(code, env={"OXIBONSAI_CPU_VARIANT": "mmx"})
    assert "the environment variable OXIBONSAI_CPU_VARIANT is 'mmx'" in done.stdout


def test_only_the_cpu_driver_has_variants():
    assert metal.variants("no such driver") == ()


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("n_rows", [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200])
def test_any_number_of_rows(graph, name, n_rows):
    k = 5 * block(name)
    q, x = random_weight(name, n_rows, k), activations(k) + 0.5
    y = gemv(graph, q, x)
    w64 = dense(q)
    r = reference.gemv(w64, x)
    close_to(y, r, reference.gemv_bound(w64, x, r))


@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", *TERNARY])
@pytest.mark.parametrize("k", [6144 - 128, 6144, 6144 + 128, 16384 + 256, 65536])
def test_a_long_row_with_a_mean_and_outliers(graph, name, k):
    """Past the columns whose tables are made at once, and past a float32 sum's length."""
    q = ternary(name, 20, k)
    x = activations(k) + 3
    x[:: k // 7] *= 1000
    y = gemv(graph, q, x)
    w64 = dense(q)
    r = reference.gemv(w64, x)
    close_to(y, r, reference.gemv_bound(w64, x, r))


@pytest.mark.parametrize("name", TERNARY)
def test_a_code_of_three_takes_another_layout_with_the_same_values(graph, name):
    n_rows, k = 130, 384
    x = activations(k)
    q = ternary(name, n_rows, k)
    without = gemv(graph, q, x)
    w64 = dense(q)
    close_to(without, reference.gemv(w64, x), reference.gemv_bound(w64, x, reference.gemv(w64, x)))
    if name != "PQ2_0":
        return  # Formats whose codes cannot be 3 have no other case.
    q.data[-1, -1] |= 0xC0  # The last weight of all.
    largest = np.abs(dense(q)[-1, -128:])
    assert largest[-1] == 2 * largest[:-1].max()
    y = gemv(graph, q, x)
    w64 = dense(q)
    r = reference.gemv(w64, x)
    close_to(y, r, reference.gemv_bound(w64, x, r))


@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", *TERNARY])
def test_non_finite_scales_and_activations(graph, name):
    n_rows, k = 70, 4 * block(name)
    for scale in (np.inf, -np.inf, np.nan):
        for at in (0, -1):
            for value in (None, np.inf, np.nan, 0.0):
                q, x = ternary(name, n_rows, k), np.abs(activations(k))
                n_blocks = q.data.size // formats.get(name).block_bytes
                scales = np.full(n_blocks, 0.5, np.float16)
                scales[[at, len(scales) // 2]] = scale
                set_scales(q, scales)
                if value is not None:
                    x[5] = value
                y = gemv(graph, q, x)
                with np.errstate(invalid="ignore", over="ignore"):
                    w64 = dense(q)
                    r = np.array([np.sum(row * x.astype(np.float64)) for row in w64])
                finite = same_non_finite(y, r)
                np.testing.assert_allclose(y[finite], r[finite], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", *TERNARY])
def test_an_odd_number_of_gate_rows(graph, name):
    """The up rows then start inside a strip."""
    n_rows, k = 2 * 75, 2 * block(name)
    q, x = random_weight(name, n_rows, k), activations(k)
    device = graph.device
    with (
        upload(graph, q) as handle,
        device.upload(x) as bx,
        device.upload(np.full(n_rows // 2 + 3, 9, np.float32)) as bs,
        device.commands() as commands,
    ):
        commands.gate_up_swiglu(handle, bx, bs)
        commands.replay()
        s = contents(bs)
    r = reference.gemv(dense(q), x)
    gate, up = r[:75], r[75:]
    expected = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(s[:75], expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(s[75:], 9)


@pytest.mark.threads
@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", *TERNARY])
def test_the_same_bits_for_any_number_of_threads(variant, name):
    n_rows, k = 1030, 1024
    q, x = ternary(name, n_rows, k), activations(k)
    found = set()
    for threads in (1, 2, 3, 7):
        with (
            metal.Device("cpu", threads=threads, variant=variant) as device,
            metal.MetalGraph(device) as graph,
            upload(graph, q) as handle,
        ):
            for _ in range(20):
                y = np.zeros(n_rows, np.float32)
                encode(graph, handle, x, y)
                found.add(y.tobytes())
    assert len(found) == 1


def check_program(compiler: str, out: Path, *flags: str) -> None:
    rooms = ("front", "ops", "formats", "cpu", "gpu")
    sources = [path for room in rooms for path in (SHIM / room).rglob("*.c")]
    command = [compiler, *flags, "-std=c11", "-O2", "-D_GNU_SOURCE", "-ffp-contract=off"]
    command += [
        "-fno-math-errno",
        "-Wall",
        "-Wextra",
        "-Wshadow",
        "-Wpedantic",
        "-Ishim/include",
        "-Ishim",
    ]
    command += [
        *map(str, sorted(Path(__file__).with_name("isa_check").glob("*.c"))),
        *map(str, sources),
        "-o",
        str(out),
        "-lm",
        "-ldl",
    ]
    done = subprocess.run([*command, "-pthread"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_check_program_passes_here(tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    check_program(compiler, tmp_path / "check")
    done = subprocess.run([tmp_path / "check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, list(VARIANTS)), done.stdout


def test_neon_passes_under_an_emulator(tmp_path):
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        missing = "install gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user"
        assert not os.environ.get("OXIBONSAI_REQUIRE_NEON"), missing
        pytest.skip(missing)
    check_program(compiler, tmp_path / "check", "-static")
    done = subprocess.run([emulator, tmp_path / "check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["neon-dotprod", "neon", "portable"]), (
        done.stdout
    )
