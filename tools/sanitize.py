"""Run tests against a build of the extension modules with sanitizers.

``address``  AddressSanitizer and UndefinedBehaviorSanitizer, the fast tests of rooms that have
             compiled code or run much of it.
``thread``   ThreadSanitizer, the tests marked ``threads``.
``metal``    Address-, UndefinedBehavior- and LeakSanitizer, the device suite on the driver "metal"
             and the simulated Metal, built alike, with the kernels in the MSL runner's check build.
             Whole models and the largest matrices (``large``) are left to the ordinary build.

The tree is copied and compiled in a scratch folder; the interpreter itself is an ordinary one, so
the sanitizer's runtime is preloaded. Further arguments go to pytest. Linux only, with gcc, and for
``metal`` with clang and what the simulated Metal needs.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from oxibonsai.metal import _nvrtc

ROOT = Path(__file__).resolve().parent.parent
SIMULATION = ROOT / "tests" / "simulators" / "metal_sim" / "build.py"
NOT_COPIED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")
ADDR_NO_RANDOMIZE = 0x0040000

# gcc before 14 misaligns 64-byte objects in the stack frames that find a use after return (GCC bug
# 110027): code for AVX-512 faults there, and is checked without.
CPUINFO = Path("/proc/cpuinfo")
AFTER_RETURN = int(not (CPUINFO.exists() and " avx512f" in CPUINFO.read_text()))


@dataclass(frozen=True)
class Kind:
    flags: str
    runtime: str
    select: str
    options: dict[str, str]
    compiler: str = "gcc"
    arguments: tuple[str, ...] = ()


# What is Python alone, or NVRTC; the compiled code that chats and the command run is the models',
# and tests/cli/test_cli.py runs all of it in processes of their own.
CLI = tuple(f"cli/test_cli_{what}.py" for what in ("docs", "inputs", "streams", "tty", "usage"))
PURE = ("chat", *CLI, "docs", "gguf", "msl", "quant", "tools", "shim/cuda/test_cuda_compile.py")
# They compile a program of their own, which no sanitizer is in.
UNTOUCHED = ("test_the_check_program_passes_here", "test_neon_passes_under_an_emulator")

KINDS = {
    "address": Kind(
        flags="-fsanitize=address,undefined -fno-sanitize-recover=all",
        runtime="libasan.so",
        select="not slow and not peer and not timing and not simulated",
        # Leaks are counted by the tests through the device's own numbers; the interpreter itself
        # keeps memory until the end of the process.
        options={
            "ASAN_OPTIONS": f"detect_leaks=0:detect_stack_use_after_return={AFTER_RETURN}",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        arguments=(
            "tests",
            *(f"--ignore=tests/{path}" for path in PURE),
            *(f"--deselect=tests/shim/cpu/test_cpu_variants.py::{name}" for name in UNTOUCHED),
        ),
    ),
    "thread": Kind(
        flags="-fsanitize=thread",
        runtime="libtsan.so",
        select="threads and not slow and not peer and not timing and not simulated",
        # Only accesses of our own code count; locks taken by the interpreter still do.
        options={"TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1:exitcode=66"},
    ),
}
# A block that leaked, and where it was allocated: the frame below the sanitizer's own.
LEAK = re.compile(r"leak of .* allocated from:\n(?: +#\d+ .*libclang_rt.*\n)*(.*)\n")
OURS = re.compile(r"oxibonsai/metal/|metal_sim|/shim/")


def metal_kind() -> Kind:
    """Return the kind ``metal``; the simulated Metal is built for it."""
    sys.path.insert(0, str(SIMULATION.parent.parent))
    simulation = importlib.import_module("metal_sim.build")
    library = simulation.build(sanitize=True)
    environment = simulation.sanitizer_environment()
    return Kind(
        # Cython calls through pointers of other types than the functions have.
        flags=" ".join([*simulation.SANITIZE, "-fno-sanitize=function"]),
        runtime=environment["LD_PRELOAD"],
        select="not slow and not peer and not timing and not simulated and not large",
        # Everything that leaked is listed, the interpreter's own included; leaks() reads the list.
        options={
            "ASAN_OPTIONS": "detect_stack_use_after_return=1:log_path={scratch}/report",
            "UBSAN_OPTIONS": environment["UBSAN_OPTIONS"],
            "LSAN_OPTIONS": "exitcode=0",
            "OXIBONSAI_METAL_SIM_MODE": "check",
        },
        compiler=simulation.compiler(),
        arguments=("tests", "--driver", str(library), "-k", "metal:0"),
    )


def leaks(report: str) -> list[str]:
    """Return the frames of our own code that allocated what LeakSanitizer reports."""
    return [frame.strip() for frame in LEAK.findall(report) if OURS.search(frame)]


def judge(status: int, reports: Path) -> int:
    """Print what the sanitizers wrote, leaks outside of our code left out; return the status."""
    for path in sorted(reports.glob("report.*")):
        text = path.read_text(errors="replace")
        own = leaks(text)
        if "LeakSanitizer: detected" not in text:
            print(text)
            status = status or 1
        elif own:
            print(f"{len(own)} leaks of our own:", *own, sep="\n")
            status = status or 1
    return status


def runtime(name: str) -> str:
    """Return the path of gcc's sanitizer library `name`."""
    if Path(name).is_absolute():
        return name
    path = subprocess.run(
        ["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        raise SystemExit(f"gcc has no {name}: install the system's sanitizer runtime for gcc")
    return str(Path(path).resolve())


def nvrtc_folders() -> list[str]:
    """Return where NVRTC lies: it loads a part of itself by the path of the caller of dlopen, which
    is the sanitizer's runtime here."""
    return sorted({str(Path(path).parent) for path in _nvrtc.find().values()})


def build(tree: Path, flags: str, compiler: str) -> None:
    shutil.copytree(ROOT, tree, ignore=NOT_COPIED, dirs_exist_ok=True)
    environment = os.environ | {
        "CC": compiler,
        "OXIBONSAI_CFLAGS": f"{flags} -O1 -g -fno-omit-frame-pointer",
        "OXIBONSAI_LDFLAGS": flags,
    }
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--force"]
    subprocess.run(command, cwd=tree, env=environment, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=[*KINDS, "metal"])
    arguments, pytest_arguments = parser.parse_known_args()
    kind = KINDS[arguments.kind] if arguments.kind in KINDS else metal_kind()
    with tempfile.TemporaryDirectory(prefix="oxibonsai-sanitize-") as scratch:
        tree = Path(scratch)
        build(tree, kind.flags, kind.compiler)
        options = {name: value.format(scratch=scratch) for name, value in kind.options.items()}
        environment = os.environ | options
        library_path = filter(None, [os.environ.get("LD_LIBRARY_PATH")])
        environment |= {
            "LD_PRELOAD": runtime(kind.runtime),
            "PYTHONPATH": scratch,
            "PYTHONMALLOC": "malloc",
            "OXIBONSAI_SANITIZER": arguments.kind,
            "LD_LIBRARY_PATH": os.pathsep.join([*nvrtc_folders(), *library_path]),
        }
        # The thread sanitizer's fixed address layout fails under strong randomisation.
        ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE)
        # Captured at sys only: the report of a sanitizer that ends the process stays visible.
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys"]
        command += ["-m", kind.select, *kind.arguments, *pytest_arguments]
        return judge(subprocess.run(command, cwd=tree, env=environment).returncode, tree)


if __name__ == "__main__":
    sys.exit(main())
