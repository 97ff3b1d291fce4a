"""Build the driver "metal" on Linux against the simulated Metal, as a library for load_driver().

    python tests/simulators/metal_sim/build.py [--sanitize]     prints the path of the library

The Objective-C of shim/ is compiled as it is, by clang against GNUstep's Foundation, with GCC's
Objective-C runtime. Results are kept in .cache/ by a hash of all that goes into them.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import hashlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
RUNNER = HERE.parent / "msl_runner"
CACHE = ROOT / ".cache" / "metal_sim"
SHIM = ROOT / "shim"
INSTALL = (
    "apt-get install clang-19 lld-19 libclang-rt-19-dev libgnustep-base-dev libblocksruntime-dev"
)
COMPILERS = ("clang-19", "clang-18", "clang-17", "clang-16", "clang")
NEEDED_HEADERS = ("/usr/include/GNUstep/Foundation/Foundation.h", "/usr/include/Block.h")

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"]
OBJC = [
    "-fno-objc-arc",
    "-fblocks",
    "-fobjc-runtime=gcc",
    "-fconstant-string-class=NSConstantString",
    "-fobjc-exceptions",
    "-fexceptions",
    "-D_NATIVE_OBJC_EXCEPTIONS",
]
COMMON = ["-std=c11", "-O1", "-g", "-fPIC", "-pthread", "-fvisibility=hidden", "-D_GNU_SOURCE"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-shared-libsan"]
# A device that hangs is given up after this, not after two minutes, and memory is kept resident for
# half a second, not for three minutes.
DRIVER = [
    *("-DOXB_DRIVER_LIBRARY", "-DMETAL_BLIT_SECONDS=2.0", "-DMETAL_PROBE_SECONDS=2.0"),
    *("-DMETAL_KEEP_SECONDS=0.5", "-DMETAL_BEAT_SECONDS=0.05"),
]


class Unavailable(Exception):
    """What is needed to build is not on this machine; the text says how to get it."""


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def compiler() -> str:
    """Return the clang to use, or raise Unavailable with the install command."""
    clang = next(filter(None, map(shutil.which, COMPILERS)), None)
    missing = [header for header in NEEDED_HEADERS if not Path(header).exists()]
    if clang is None:
        missing.append("clang")
    if shutil.which("gcc") is None:
        missing.append("gcc")
    elif not Path(output("gcc", "-print-file-name=include"), "objc", "objc.h").exists():
        missing.append("objc/objc.h")
    if clang is None or missing:
        raise Unavailable(f"the simulated Metal needs {', '.join(missing)}: {INSTALL}")
    return clang


def include_flags() -> list[str]:
    folders = [HERE / "include", HERE, RUNNER, SHIM / "include", SHIM]
    flags = [f"-I{folder}" for folder in folders]
    return [
        *flags,
        "-isystem",
        "/usr/include/GNUstep",
        "-idirafter",
        output("gcc", "-print-file-name=include"),
    ]


def libraries() -> list[str]:
    libobjc = Path(output("gcc", "-print-libgcc-file-name")).parent
    # GNUstep has a _Block_copy of its own that copies nothing: the real one goes first.
    return [f"-L{libobjc}", "-lBlocksRuntime", "-lgnustep-base", "-lobjc", "-lm", "-ldl"]


def inputs() -> list[Path]:
    """Return every file that the library is made of."""
    patterns = [(SHIM, "**/*.[hmc]"), (HERE, "*.[hmc]"), (HERE, "include/**/*.h")]
    patterns += [(ROOT / "shaders", "*"), (ROOT / "oxibonsai" / "msl", "*.py")]
    patterns += [(RUNNER, pattern) for pattern in ("*.py", "*.h", "[irs]*/*")]
    files = [path for folder, pattern in patterns for path in folder.glob(pattern)]
    return sorted([*files, Path(__file__), ROOT / "tools" / "embed_shaders.py"])


def inputs_digest() -> str:
    """Return a hash of all that decides what a kernel is compiled to, the processor included."""
    version = output(compiler(), "--version")
    h = hashlib.sha256(f"{sys.executable} {compiler()} {version} {processor()} {ROOT}".encode())
    for path in inputs():
        h.update(f"{path} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return h.hexdigest()[:20]


def digest(sanitize: bool) -> str:
    return inputs_digest() + ("-sanitized" if sanitize else "")


def processor() -> str:
    """Return what the processor can do: kernels are compiled for this one."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or done.stderr:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def compile_all(folder: Path, sanitize: bool) -> None:
    run([sys.executable, str(ROOT / "tools" / "embed_shaders.py"), str(folder)])
    flags = [*COMMON, *WARNINGS, *include_flags(), *(SANITIZE if sanitize else [])]
    places = [f'-DSIM_PYTHON="{sys.executable}"', f'-DSIM_TESTS="{HERE.parent}"']
    places += [f'-DSIM_CACHE="{CACHE.parent}"', f'-DSIM_DIGEST="{inputs_digest()}"']
    sources = [
        *sorted((SHIM / "metal").glob("*.m")),
        *sorted((SHIM / "gpu").glob("*.c")),
        *sorted(HERE.glob("*.m")),
        folder / "oxb_msl.c",
    ]
    commands, objects = [], []
    for source in sources:
        objects.append(folder / f"{source.parent.name}-{source.stem}.o")
        own = DRIVER if source.parent.name == "metal" else places
        if source.suffix == ".m":
            own = [*OBJC, *own]
        commands.append([compiler(), *flags, *own, "-c", str(source), "-o", str(objects[-1])])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, commands))
    link = [compiler(), "-shared", "-pthread", *(SANITIZE if sanitize else ["-Wl,-z,defs"])]
    run([*link, *map(str, objects), *libraries(), "-o", str(folder / "metal_sim.so")])


def build(sanitize: bool = False) -> Path:
    """Return the path of the driver library, compiled where it is not in the cache.

    Raises
    ------
    Unavailable
        Where the compiler or the libraries are missing.
    RuntimeError
        Where compilation fails or warns; the text is the compiler's.
    """
    folder = CACHE / digest(sanitize)
    library = folder / "metal_sim.so"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            scratch = folder.with_suffix(".new")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            compile_all(scratch, sanitize)
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
    return library


def sanitizer_environment() -> dict[str, str]:
    """Return what a process needs in its environment to load a library built with sanitize=True."""
    runtime = output(compiler(), "-print-file-name=libclang_rt.asan-x86_64.so")
    if not Path(runtime).exists():
        runtime = output(compiler(), "-print-file-name=libclang_rt.asan.so")
    return {
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def compile_program(source: Path, target: Path) -> Path:
    """Compile an Objective-C program that links the simulated Metal itself, without the driver."""
    objects = sorted(build().parent.glob("metal_sim-*.o"))
    command = [compiler(), *COMMON, *WARNINGS, *OBJC, *include_flags(), str(source)]
    run([*command, *map(str, objects), *libraries(), "-o", str(target)])
    return target


def check_driver(macos: int) -> None:
    """Compile the driver as for a version of macOS: its SDK and its deployment target.

    Raises
    ------
    RuntimeError
        Where it fails or warns, as of what is deprecated there; the text is the compiler's.
    """
    flags = [*COMMON, *WARNINGS, *OBJC, *include_flags(), *DRIVER, f"-DSIM_MACOS={macos}"]
    for source in sorted((SHIM / "metal").glob("*.m")):
        run([compiler(), *flags, "-fsyntax-only", str(source)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sanitize", action="store_true", help="with ASan and UBSan")
    arguments = parser.parse_args()
    try:
        print(build(arguments.sanitize))
    except Unavailable as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
