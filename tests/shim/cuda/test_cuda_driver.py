"""The cuda driver's C code against a libcuda that counts and fails. Needs NVRTC, but no GPU."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from cases import run_python

from oxibonsai.metal import _nvrtc

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="needs Linux and gcc"
)
# A device, every kind of memory, a weight, a kernel with constants, launches and a graph.
WORK = """
def work():
    with Device("cuda") as device, MetalGraph(device) as graph:
        w = quant.quantize(np.ones((64, 128), np.float32), "Q1_0")
        with graph.upload_q1_weight_soa(w) as weight:
            x, y = np.ones(128, np.float32), np.empty(64, np.float32)
            for _ in range(3):
                graph.encode_gemv(weight, x, y)
            memory = np.zeros(4096, np.uint8)
            start = -memory.ctypes.data % 16
            with device.upload(memory[start:][:64], copy=False) as wrapped, \\
                    device.buffer(64) as shared, device.commands() as commands:
                commands.add(wrapped, shared, 16)
                commands.replay(3)
                with device.buffer(64, storage="private") as private:
                    private.fill(1)
                    private.read(bytearray(64))
"""


# Finding


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("fake.fail('cuInit', 100, always=True)",
         "this machine has no NVIDIA GPU that the process may use"),
        ("fake.fail('cuInit', 999, always=True)",
         "cuInit gave CUDA_ERROR_FAKE (999): a test made it fail"),
        ("fake.version = 11080", "is for CUDA 11.8, and 12.0 or newer is needed"),
        ("fake.gpus = 0", 'no device "cuda:0": 0 devices of driver "cuda" present'),
        ("fake.fail('cuDeviceGetCount', 1, always=True)", "cuDeviceGetCount gave"),
        ("fake.major, fake.minor = 6, 1",
         '"cuda:0" (Fake GPU) has compute capability 6.1, and the kernels need 7.0'),
    ],
)  # fmt: skip
def test_a_device_that_is_missing_says_what_is_missing(run, setting, text):
    lines = run(
        f"""
{setting}
try:
    Device("cuda")
except metal.DeviceNotFoundError as error:
    print(error)
print(fake.alive())
fake.forgive()
print(Device().driver)
"""
    )
    assert text in lines[0]
    assert lines[1] == "{}"
    assert lines[2] == ("cuda" if "fail" in setting else "cpu")  # what was in the way is gone


def test_without_nvidias_driver():
    code = """
        import ctypes
        from oxibonsai import metal
        try:
            ctypes.CDLL("libcuda.so.1")
            print("there is one")
        except OSError:
            try:
                metal.Device("cuda")
            except metal.DeviceNotFoundError as error:
                print(error)
    """
    (line,) = run_python(code).stdout.splitlines()
    if line != "there is one":
        assert line.startswith(
            'no device "cuda": NVIDIA\'s driver is not installed (libcuda.so.1: '
        )
        assert line.endswith("install it, or use the cpu device")


def test_without_nvrtc(run):
    lines = run(
        """
import ctypes
from oxibonsai.metal import _nvrtc
_nvrtc.find = dict
try:
    print(ctypes.CDLL("libnvrtc.so.13"))
except OSError:
    try:
        Device("cuda")
    except metal.DeviceNotFoundError as error:
        print(error)
    print(Device().driver, fake.alive())
"""
    )
    if len(lines) == 2:
        assert "there is a GPU, but not NVRTC" in lines[0]
        assert "pip install nvidia-cuda-nvrtc, or install the CUDA toolkit" in lines[0]
        assert lines[1] == "cpu {}"


def test_packages_are_looked_for_by_the_files_they_hold(tmp_path, monkeypatch):
    for name, major in (("cu13", 13), ("cuda_nvrtc", 12)):
        folder = tmp_path / "nvidia" / name / "lib"
        folder.mkdir(parents=True)
        (folder / f"libnvrtc.so.{major}").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [m for m in sys.modules if m.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    found = _nvrtc.find()
    assert list(found) == [13, 12]
    (tmp_path / "nvidia" / "cu13" / "lib" / "libnvrtc.so.13").unlink()
    if 13 in _nvrtc.find():
        assert tmp_path not in _nvrtc.find()[13].parents  # an installed one


# Work


def test_nothing_is_left_after_work(run):
    lines = run(
        WORK
        + """
for _ in range(2):
    work()
    gc.collect()
    print(fake.alive())
"""
    )
    assert lines == ["{}", "{}"]


def test_each_call_that_fails_is_an_error_and_leaves_nothing_behind(run):
    lines = run(
        WORK
        + """
work()
calls = [name for name in fake.seen if name not in ("cuInit", "cuDriverGetVersion")]
assert {"cuGraphLaunch", "cuMemHostRegister", "cuMemsetD8Async", "cuModuleGetGlobal"} <= set(calls)
frees = ("Destroy", "Free", "Release", "Unload", "Unregister")
for name in calls:
    raised = 0
    for after in range(400):
        # Memory that cannot be registered is tried again as memory to read.
        fake.fail(name, 999, after=after, always=name == "cuMemHostRegister")
        error = None
        try:
            work()
        except metal.MetalGraphError as caught:
            error = str(caught)
        missed = fake.pending
        fake.forgive()
        gc.collect()
        if missed and error is None:
            break
        if error is None and (any(word in name for word in frees) or name == "cuCtxPushCurrent"):
            fake.forget()  # what could not be freed
            continue
        alive = fake.alive()
        assert alive == {}, (name, after, error, alive)
        if error is None:
            continue
        assert "999" in error, (name, error)
        raised += 1
    print(name, raised)
work()
print(fake.alive())
""",
    )
    assert lines[-1] == "{}"
    raised = {name: int(count) for name, count in (line.split() for line in lines[:-1])}
    silent = {name for name, count in raised.items() if count == 0}
    frees = ("Destroy", "Free", "Release", "Unload", "Unregister", "Synchronize")
    assert not {name for name in silent if not any(word in name for word in frees)}


def test_source_of_an_older_translation_is_refused(run):
    lines = run(
        """
from oxibonsai.msl import cuda
with Device("cuda") as device:
    source = cuda.translate(
        "kernel void k(device float *y [[buffer(0)]]) { y[0] = 1.0f; }", "k.metal"
    )
    cuda.translate = lambda source, name: source
    device.library(source)
    for version in (1, 3):
        other = source.replace("version 2", f"version {version}", 1)
        assert other != source
        try:
            device.library(other)
        except metal.CompilationError as error:
            print("is not that" in str(error))
"""
    )
    assert lines == ["True", "True"]


def test_every_misuse_is_refused_and_none_is_launched(run):
    lines = run(
        """
from misuses import MISUSES, Stage, refused
tried = [misuse for misuse in MISUSES if misuse.applies("cuda")]
with Stage("cuda") as stage:
    submits = 0
    for misuse in tried:
        refused(stage, misuse)
        submits += misuse.submits
        assert fake.launches + fake.graph_launches == submits, misuse.name
    stage.dispatch()
    stage.commands.replay()
    print(fake.launches + fake.graph_launches - submits, len(tried) > 30)
print(fake.alive())
"""
    )
    assert lines == ["1 True", "{}"]


def test_the_list_of_arguments_is_that_of_the_translation(run):
    lines = run(
        """
with Device("cuda") as device:
    for name in ("residual_add", "gemv_q1_g128_norm"):
        for a in device.pipeline(name).arguments:
            print(*a)
"""
    )
    assert lines == [
        "buffer 0 4 4 False False",
        "buffer 1 4 4 True False",
        "struct 2 16 8 False False",
        *(f"buffer {i} {size} {size} {i == 3} False" for i, size in enumerate((1, 4, 4, 4))),
        "struct 4 32 8 False False",
    ]


def test_sixteen_submissions_are_in_flight_and_a_timeout_leaves_them(run):
    lines = run(
        """
with Device("cuda") as device:
    x = device.buffer(64)
    commands = device.commands()
    commands.add(x, x, 16)
    fake.hold = 1
    commands.submit(16)
    print(device.stats.in_flight)
    try:
        commands.wait(0.05)
    except metal.ExecutionError as error:
        print(error)
    more = threading.Thread(target=commands.submit)
    fake.release()
    commands.wait(30)
    print(device.stats.in_flight, fake.graph_launches)
"""
    )
    assert lines[0] == "16"
    assert "the device did not finish within 0.05 s" in lines[1]
    assert lines[2] == "0 15"


def test_a_device_may_be_let_go_of_by_the_end_of_its_last_submission(run):
    lines = run(
        """
device = Device("cuda")
commands = device.commands()
commands.add(device.buffer(64), device.buffer(64), 16)
commands.replay()
fake.hold = 1
commands.submit(2)
commands.close()
device.close()
del commands, device
gc.collect()
print(fake.contexts)
fake.release()
print(fake.alive())
"""
    )
    assert lines == ["1", "{}"]


def test_a_lost_context_reaches_everybody_and_a_new_one_works(run):
    lines = run(
        WORK
        + """
device = Device("cuda")
first, second = device.commands(), device.commands()
x = device.buffer(64)
first.add(x, x, 16)
second.add(x, x, 16)
fake.hold = 1
first.submit(3)
second.submit()
fake.__setattr__("async", 700)
fake.release()
for call in (first.wait, second.wait, lambda: first.submit(), lambda: device.buffer(64),
             lambda: device.buffer(64, storage="private"), lambda: device.pipeline("advance")):
    try:
        call()
        print("no error")
    except metal.MetalGraphError as error:
        print(type(error).__name__, error)
del first, second, x
gc.collect()
device.close()
print(fake.alive())
work()
print(fake.alive())
"""
    )
    assert [line.split()[0] for line in lines[:6]] == [
        *["ExecutionError"] * 3,
        *["BufferCreationError"] * 2,
        "CompilationError",
    ]
    for line in lines[:6]:
        assert "CUDA_ERROR_ILLEGAL_ADDRESS (700)" in line
        assert "the context is lost, and CUDA with it in this process" in line
    assert lines[6:] == ["{}", "{}"]


def test_pages_are_registered_once(run):
    lines = run(
        """
memory = np.zeros(5 * 4096, np.uint8)
page = memory[-memory.ctypes.data % 4096:][: 4 * 4096]
with Device("cuda") as device:
    wrap = lambda first, end: device.upload(page[first:end], copy=False)
    a, b = wrap(0, 64), wrap(128, 256)
    print(fake.registrations)
    c = wrap(3 * 4096, 3 * 4096 + 16)
    d = wrap(64, 4 * 4096)
    print(fake.registrations)
    d.close()
    print(fake.registrations)
    fake.host_pointer = 0
with Device("cuda") as device:
    try:
        wrap(64, 4 * 4096)
    except metal.BufferCreationError as error:
        print(error)
    print(fake.registrations)
    for buffer in (a, b, c):
        buffer.close()
    print(fake.registrations)
"""
    )
    assert lines[:3] == ["1", "3", "2"]
    assert "cannot map the 16384 bytes" in lines[3]
    assert "copy the data instead" in lines[3]
    assert lines[5] == "0"


def test_memory_that_is_pinned_already_is_wrapped_as_it_is(run):
    lines = run(
        """
with Device("cuda") as device, device.buffer(64) as first:
    with device.upload(first, copy=False) as second:
        second.fill(9)
        print(fake.registrations, bytes(first)[:2])
    print(fake.registrations)
print(fake.alive())
"""
    )
    assert lines == ["0 b'\\t\\t'", "0", "{}"]


# The cache

COMPILE = """
with Device("cuda") as device:
    try:
        print(device.pipeline("advance").info.max_threads)
    except metal.CompilationError as error:
        print(error)
"""


DEFAULTS = """
with Device("cuda") as d:
    for op, *rows in products:
        for n_rows in rows:
            print(d.kernel_variants(op, "q1_g128", n_rows, 4096)[0].removeprefix("slices-"))
"""


def test_a_product_has_the_fewest_tiles_that_every_core_has_room_for_in_long_threadgroups(run):
    products = [
        ("gemv", 16, 32, 48, 128, 144, 192, 208, 256, 272, 384, 400, 151936),
        ("swiglu", 32, 128, 160, 256, 288, 384, 416, 24576),
    ]
    long = ["1x16", "2x16", "2x16", "2x16", "3x16", "3x16", "4x16", "4x16", "6x16", "6x16"]
    halves = ["1x16", "1x16", "2x16", "2x16", "3x16", "3x16", "3x8", "3x8"]
    assert run(f"products = {products}" + DEFAULTS) == [*long, "6x8", "6x8", *halves]
    # Rows of the 8B and the 1.7B.
    products = [("gemv", 2048, 4096, 6144, 12288, 24576), ("swiglu", 12288, 24576)]
    assert run(f"fake.cores, products = 132, {products}" + DEFAULTS) == [
        *("2x16", "2x16", "3x16", "6x16", "6x8"),
        *("3x16", "3x8"),
    ]


def test_a_product_without_whole_tiles_or_matrix_units_has_another_default(run):
    assert run("products = [('gemv', 40), ('swiglu', 48)]" + DEFAULTS) == ["lookup-1", "lookup-1"]
    old = run("fake.major, products = 7, [('gemv', 4096), ('swiglu', 4096)]" + DEFAULTS)
    assert all(name.startswith("lookup-") for name in old)


@pytest.fixture
def cached(run, tmp_path):
    """Compile into a cache of the test's own; return a way to do it again, and the entry."""

    def again(**environment: str) -> list[str]:
        return run(COMPILE, XDG_CACHE_HOME=str(tmp_path / "c"), **environment)

    assert again() == ["1024"]
    (entry,) = (tmp_path / "c" / "oxibonsai" / "cuda").iterdir()
    return again, entry


def test_an_entry_is_the_users_own_and_is_found_again(cached):
    again, entry = cached
    assert len(entry.name) == 64
    assert entry.stat().st_mode & 0o777 == 0o600
    assert entry.parent.stat().st_mode & 0o777 == 0o700
    before = entry.stat()
    assert again() == ["1024"]
    assert entry.stat().st_ino == before.st_ino
    assert len(list(entry.parent.iterdir())) == 1


def test_what_an_entry_holds_is_what_runs(cached):
    """A whole entry of other bytes is taken: it is not compiled again."""
    import hashlib

    again, entry = cached
    code = b"no machine code"
    entry.write_bytes(
        b"OXBCUDA1" + len(code).to_bytes(8, "little") + hashlib.sha256(code).digest() + code
    )
    assert "cuModuleLoadData gave" in again()[0]


@pytest.mark.parametrize(
    "damage", ["empty", "short", "long", "changed", "mark", "header", "link", "folder"]
)
def test_a_damaged_entry_is_none(cached, damage, tmp_path):
    again, entry = cached
    whole = entry.read_bytes()
    if damage in ("link", "folder"):
        entry.unlink()
        if damage == "link":
            (tmp_path / "elsewhere").write_bytes(whole)
            entry.symlink_to(tmp_path / "elsewhere")
        else:
            entry.mkdir()
    else:
        entry.write_bytes(
            {
                "empty": b"",
                "short": whole[:-1],
                "long": whole + b"\0",
                "changed": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
                "mark": b"X" + whole[1:],
                "header": whole[:20],
            }[damage]
        )
    assert again() == ["1024"]
    if damage != "folder":
        assert not entry.is_symlink()
        assert entry.read_bytes() == whole
    assert len(list(entry.parent.iterdir())) == 1


def test_a_device_tells_what_compiles_its_kernels(run):
    older, newer = (
        run(f"""
fake.version = {version}
with Device("cuda") as device:
    print(device.info.compiler)
""")[0]
        for version in (13000, 13010)
    )
    assert re.fullmatch(r"CUDA 13\.0, NVRTC \d+\.\d+", older)
    assert newer.startswith("CUDA 13.1, NVRTC ")


def test_other_options_and_another_driver_are_other_entries(cached, run, tmp_path):
    _, entry = cached
    cache = str(tmp_path / "c")
    run("fake.version = 13010" + COMPILE, XDG_CACHE_HOME=cache)
    assert len(list(entry.parent.iterdir())) == 2
    run("fake.major = 8" + COMPILE, XDG_CACHE_HOME=cache)
    assert len(list(entry.parent.iterdir())) == 3
    run('with Device("cuda") as d: d.pipeline("gemv_f32", constants={0: 4})', XDG_CACHE_HOME=cache)
    run('with Device("cuda") as d: d.pipeline("gemv_f32", constants={0: 2})', XDG_CACHE_HOME=cache)
    assert len(list(entry.parent.iterdir())) == 5


def test_kernels_with_macros_of_the_environment_are_other_entries(cached):
    again, entry = cached
    for n, defines in enumerate(("MSL_STALL", "MSL_STALL,MSL_EARLY=1u", "MSL_EARLY=1u"), 2):
        assert again(OXIBONSAI_CUDA_DEFINES=defines) == ["1024"]
        assert len(list(entry.parent.iterdir())) == n
    assert again(OXIBONSAI_CUDA_DEFINES="") == ["1024"]
    assert len(list(entry.parent.iterdir())) == 4


@pytest.mark.parametrize("mode", [0o770, 0o702])
@pytest.mark.parametrize("which", ["oxibonsai", "cuda"])
def test_a_directory_that_others_may_write_to_is_not_used(cached, which, mode):
    again, entry = cached
    entry.write_bytes(b"not looked at")
    folder = entry.parent if which == "cuda" else entry.parent.parent
    folder.chmod(mode)
    assert again() == ["1024"]
    assert entry.read_bytes() == b"not looked at"


def test_a_directory_that_is_a_link_is_not_used(cached, tmp_path):
    again, entry = cached
    entry.parent.rename(tmp_path / "other")
    (tmp_path / "c" / "oxibonsai" / "cuda").symlink_to(tmp_path / "other")
    before = {p: p.stat().st_ino for p in (tmp_path / "other").iterdir()}
    assert again() == ["1024"]
    assert {p: p.stat().st_ino for p in (tmp_path / "other").iterdir()} == before


def test_without_a_place_for_a_cache(run, tmp_path):
    home = {"XDG_CACHE_HOME": "", "HOME": str(tmp_path)}
    assert run(COMPILE, **home) == ["1024"]
    assert len(list((tmp_path / ".cache" / "oxibonsai" / "cuda").iterdir())) == 1
    for place in ("relative/path", str(tmp_path / "missing" / "below"), ""):
        assert run(COMPILE, XDG_CACHE_HOME=place, HOME="") == ["1024"]
    assert not Path("relative").exists()
