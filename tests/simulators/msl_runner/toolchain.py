"""The compilers: clang for shaders, any C++ compiler for the runtime."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .cache import PACKAGE, digest, folder, processor, runtime_digest, work_folder
from .errors import CompileError, CompilerMissingError, MslError

INCLUDE = PACKAGE / "include"
RUNTIME = PACKAGE / "runtime"
INSTALL = "apt-get install clang-19, or pip install ziglang"
_CLANGS = ("clang-19", "clang-20", "clang-21", "clang-18", "clang-17", "clang-16", "clang")
_OLDEST = 16


@dataclass(frozen=True)
class Compiler:
    """A clang: the command it runs by, its major version, and how it links."""

    command: tuple[str, ...]
    version: int
    linker: tuple[str, ...]
    cxx: tuple[str, ...]

    @property
    def identity(self) -> list[object]:
        """What the outcome of a compilation depends on."""
        path = Path(shutil.which(self.command[0]) or self.command[0]).resolve()
        return [list(self.command), self.version, path.stat().st_size, path.stat().st_mtime_ns]


def _version_of(command: Sequence[str]) -> int:
    try:
        out = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    words = out.stdout.split()
    if "version" not in words:
        return 0
    return int(words[words.index("version") + 1].partition(".")[0])


def target() -> str:
    """Give the clang target of this machine."""
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in ("x86_64", "aarch64"):
        raise CompilerMissingError(
            f"the MSL runner works on Linux on x86-64 and AArch64, not on "
            f"{platform.system()} on {machine}"
        )
    return f"{machine}-linux-gnu"


@cache
def find_compiler() -> Compiler:
    """Find clang-19, another clang of 16 or newer, or that of the package ziglang.

    $OXIBONSAI_MSL_CLANG names one to use instead.
    """
    target()
    chosen = os.environ.get("OXIBONSAI_MSL_CLANG")
    for name in [chosen] if chosen else _CLANGS:
        path = shutil.which(name)
        version = _version_of([path]) if path and "zig" not in Path(path).name else 0
        if path and version >= _OLDEST:
            cxx = shutil.which("g++") or shutil.which(path.replace("clang", "clang++")) or path
            return Compiler((path,), version, (path, "-shared", "-nostdlib"), (cxx,))
    spec = importlib.util.find_spec("ziglang")
    if spec and spec.submodule_search_locations and (not chosen or chosen == "zig"):
        zig = str(Path(spec.submodule_search_locations[0]) / "zig")
        version = _version_of([zig, "clang"])
        if version >= _OLDEST:
            return Compiler((zig, "clang"), version, (zig, "ld.lld", "-shared"), (zig, "c++"))
    raise CompilerMissingError(f"no clang {_OLDEST} or newer for MSL: {INSTALL}")


def run(
    command: Sequence[str | Path], source: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a compiler on a source given on standard input."""
    return subprocess.run(
        [str(part) for part in command], input=source, capture_output=True, text=True, check=False
    )


def run_checked(command: Sequence[str | Path]) -> None:
    """Run a command that has no reason to fail."""
    done = run(command)
    if done.returncode:
        raise MslError(f"{' '.join(map(str, command))}\n{done.stderr}")


def _make_once(path: Path, command: Sequence[str | Path]) -> Path:
    """Run a command that takes `-o FILE`, where path is missing."""
    if not path.exists():
        with work_folder() as work:
            run_checked([*command, "-o", work / path.name])
            (work / path.name).replace(path)
    return path


def runtime_library() -> Path:
    """Compile the runtime, where it is not in the cache, and give its path."""
    compiler = find_compiler()
    name = f"libmsl_runtime-{digest(runtime_digest(), compiler.identity, compiler.cxx)}.so"
    path = folder() / name
    if path.exists():
        return path
    flags = ["-std=c++17", "-O2", "-g", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden"]
    libraries = ["-pthread", "-ldl", "-Wl,--no-as-needed", "-lm", f"-Wl,-soname,{name}"]
    sources = sorted(RUNTIME.glob("*.cpp"))
    with work_folder() as work, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [work / f"{source.stem}.o" for source in sources]
        jobs = [
            [*compiler.cxx, *flags, "-c", source, "-o", target]
            for source, target in zip(sources, objects, strict=True)
        ]
        list(pool.map(run_checked, jobs))
        run_checked([*compiler.cxx, "-shared", *objects, *libraries, "-o", work / name])
        (work / name).replace(path)
    return path


def support_object(check: bool) -> Path:
    """Compile what is linked into every library."""
    compiler = find_compiler()
    name = f"support-{digest(runtime_digest(), compiler.identity, processor(), check)}.o"
    flags = ["-O2", "-fPIC", "-fvisibility=hidden", "-march=native", "-target", target()]
    defines = [f"-DMSL_CHECK_BUILD={int(check)}", "-DMSL_BFLOAT=1"]
    return _make_once(
        folder() / name,
        [*compiler.command, *flags, *defines, "-c", RUNTIME / "support.c"],
    )


def kernel_flags(version: str) -> list[str]:
    """Give the flags that every compilation of a rewritten shader has."""
    return [
        *("-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "-cl-single-precision-constant"),
        *("-target", target(), f"-I{INCLUDE}", "-fPIC", "-Wno-everything"),
        *("-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing"),
        # A call that ends a function is a call, so that its line is known; a large frame meets
        # the page that guards the stack.
        *("-fno-optimize-sibling-calls", "-fstack-clash-protection"),
        *("-Xclang", "-ffloat16-excess-precision=none", "-fno-color-diagnostics"),
        f"-D__METAL_VERSION__={metal_version(version)}",
        f"-DMSL_BFLOAT={int(metal_version(version) >= 310)}",
    ]


def metal_version(version: str) -> int:
    """Give __METAL_VERSION__ of a language version such as 2.4."""
    known = {"2.4": 240, "3.0": 300, "3.1": 310, "3.2": 320}
    if version not in known:
        raise CompileError(f"language version '{version}' is not one of {', '.join(known)}")
    return known[version]


def header_flags(version: str) -> list[str | Path]:
    """Give the flags that put our standard library before a source, parsed beforehand."""
    compiler = find_compiler()
    name = f"emu-{digest(runtime_digest(), compiler.identity, version)}.pch"
    path = _make_once(
        folder() / name,
        [
            *compiler.command,
            *kernel_flags(version),
            "-Xclang",
            "-emit-pch",
            "-c",
            INCLUDE / "msl_emu.h",
        ],
    )
    return ["-include-pch", path]
